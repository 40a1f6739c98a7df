"""The table of primitives is complete: each one that the installed MLX exports has its entry or a reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from fuser.errors import FuserError
from fuser.ir import ops
from fuser.ir.ops import ENTRY, NOT_EXPORTED, NOT_REBUILT, OPAQUE, OPS, UnsupportedPrimitive, rebuild
from fuser.ir.ops_fast import FLASH
from tests import test_ops_elementwise, test_ops_index, test_ops_linear
from tests.test_ops_replay import trace

# MLX has no list of what it exports, but its importer says whether it knows a name: a file that holds one
# primitive is written, and read again with the name of each class in MLX's library in place of that of `Abs`.
PROBE = """
import json, struct, sys
import mlx.core as mx

path, names = sys.argv[1], json.load(sys.stdin)
mx.export_function(path, mx.abs, mx.zeros((2,)))
head = open(path, "rb").read().partition(struct.pack("<Q", 3) + b"Abs")[0]
known = []
for name in names:
    with open(path, "wb") as file:
        file.write(head + struct.pack("<Q", len(name)) + name.encode() + bytes(4096))
    try:
        mx.import_function(path)
    except Exception as error:
        if "Unable to deserialize primitive" in str(error):
            continue
    known.append(name)
print(json.dumps(known))
"""

# Entries that wait for MLX to export these primitives.
EARLY = {"BitwiseInvert", "Contiguous", "ConvertFP8", "SegmentedMM"}
# Entries of primitives that no trace on a CPU holds: tests/test_ops_fast.py rebuilds them by hand.
UNTRACED = {
    *("LayerNorm", "LayerNormVJP", "RMSNorm", "RMSNormVJP", "RoPE", "ScaledDotProductAttention"),
    *("Copy", "StopGradient"),
}


FOLDER = Path(next(iter(mx.__spec__.submodule_search_locations or []), mx.__file__)).parent


def classes() -> set[str]:
    """The names of all classes in MLX's namespace, as its library's type information spells them."""
    (library,) = [*FOLDER.glob("lib/libmlx.so"), *FOLDER.glob("lib/libmlx.dylib")]
    mangled = rb"N3mlx4core(?:4fast|11distributed)?(\d+)([A-Z]\w*?)E\0"
    return {name.decode() for length, name in re.findall(mangled, library.read_bytes()) if len(name) == int(length)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    path = tmp_path_factory.mktemp("probe") / "probe.mlxfn"
    command = [sys.executable, "-c", PROBE, str(path)]
    names = json.dumps(sorted(classes()))
    run = subprocess.run(command, input=names, capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(run.stdout))


def test_every_exported_primitive_has_its_entry_or_a_reason(exported: set[str]):
    assert {"Abs", "Matmul", "Softmax", "ScaledDotProductAttention", "View"} <= exported
    assert exported - OPS.keys() - NOT_REBUILT.keys() == set()
    assert OPS.keys() - exported - {FLASH, OPAQUE, ENTRY} == EARLY
    assert not NOT_REBUILT.keys() & OPS.keys()


def test_what_mlx_does_not_export_is_named(exported: set[str]):
    assert not NOT_EXPORTED.keys() & exported
    named = {*NOT_EXPORTED, "ConvertFP8"}  # an error spells it ToFP8 or FromFP8
    assert named >= EARLY
    headers = [FOLDER / "include/mlx" / name for name in ("primitives.h", "fast_primitives.h")]
    headers.append(FOLDER / "include/mlx/distributed/primitives.h")
    derived = r"^class (\w+) : public (?:Unary|Dist)?(?:Primitive|Custom) {"
    declared = {name for header in headers for name in re.findall(derived, header.read_text(), re.MULTILINE)}
    abstract = {"UnaryPrimitive", "DistPrimitive", "Custom"}
    assert declared - abstract - exported - named == set()


def test_every_entry_is_tested():
    tables = (test_ops_elementwise, test_ops_index, test_ops_linear)
    assert {case.op for table in tables for case in table.CASES} | UNTRACED | EARLY | {
        FLASH,
        OPAQUE,
        ENTRY,
    } == OPS.keys()


@pytest.mark.parametrize(
    ("op", "program"),
    [
        ("BitwiseInvert", lambda x: mx.bitwise_invert(x.astype(mx.int32))),
        ("Contiguous", mx.contiguous),
        ("CumLogAddExp", mx.logcumsumexp),
        ("CustomTransforms", mx.checkpoint(mx.negative)),
        ("FromFP8", lambda x: mx.from_fp8(x.astype(mx.uint8), mx.float32)),
        ("LUF", lambda x: mx.linalg.lu_factor(x, stream=mx.cpu)),
        ("SegmentedMM", lambda x: mx.segmented_mm(x, x, mx.array([[0, 2]], mx.uint32))),
        ("ToFP8", mx.to_fp8),
    ],
)
def test_mlx_still_refuses_to_export(op: str, program: Any):
    assert op in NOT_EXPORTED
    with pytest.raises(ValueError, match=f"Unable to get state for primitive {op}"):
        trace(program, mx.array([[1.0, 2.0], [3.0, 4.0]]))


def test_a_primitive_without_an_entry_is_named():
    with pytest.raises(UnsupportedPrimitive, match=r"CustomKernel.*init_value") as raised:
        rebuild("CustomKernel", (), [])
    assert raised.value.op == "CustomKernel"
    with pytest.raises(FuserError, match="Unheard"):
        rebuild("Unheard", (), [])


def test_arguments_without_a_public_call_are_named():
    with pytest.raises(UnsupportedPrimitive, match="RandomBits"):
        rebuild("RandomBits", ((4,), 2), [mx.random.key(0)])
    with pytest.raises(UnsupportedPrimitive, match="Gather"):
        rebuild("Gather", ((0,), (2,)), [mx.zeros((4,)), mx.array([1])])


def test_a_custom_kernel_is_traced_without_its_initial_value():
    """The reason why there is no entry for it, should a later MLX trace it whole."""
    kernel: Any = mx.fast.metal_kernel("k", ["x"], ["y"], "y[0] = x[0];")

    def program(x: mx.array, start: float) -> Any:
        return kernel(
            inputs=[x],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[x.dtype],
            init_value=start,
        )

    one, two = (trace(lambda x, s=start: program(x, s), mx.zeros((4,))).nodes for start in (1.0, 2.0))
    assert [node.op for node in one] == ["CustomKernel"]
    assert one[0].arguments == two[0].arguments


def test_inference_without_traced_types():
    """The entries that the rewriter adds nodes with need no traced types."""
    x, row = mx.zeros((2, 3, 4), mx.float16), mx.zeros((4,), mx.float16)
    mask = mx.zeros((2, 3, 4), mx.bool_)
    for op, arguments, inputs, shape, dtype in [
        ("Transpose", ((0, 2, 1),), [x], (2, 4, 3), mx.float16),
        ("Reshape", ((6, 4),), [x], (6, 4), mx.float16),
        ("ExpandDims", ((0,),), [x], (1, 2, 3, 4), mx.float16),
        ("Squeeze", ((0,),), [x[:1]], (3, 4), mx.float16),
        ("Broadcast", ((3, 4),), [row], (3, 4), mx.float16),
        ("Flatten", (0, 1), [x], (6, 4), mx.float16),
        ("Unflatten", (2, (2, 2)), [x], (2, 3, 2, 2), mx.float16),
        ("Multiply", (), [x, x], (2, 3, 4), mx.float16),
        ("Select", (), [mask, x, x], (2, 3, 4), mx.float16),
        ("AsType", (mx.float32,), [x], (2, 3, 4), mx.float32),
        ("Slice", ((0, 0, 1), (2, 3, 3), (1, 1, 1)), [x], (2, 3, 2), mx.float16),
        ("Concatenate", (2,), [x, x], (2, 3, 8), mx.float16),
        ("Reduce", (2, (1,)), [x], (2, 1, 4), mx.float16),
        ("Full", (), [x], (2, 3, 4), mx.float16),
        ("Softmax", (True,), [x], (2, 3, 4), mx.float16),
        ("Matmul", (), [x, mx.swapaxes(x, 1, 2)], (2, 3, 3), mx.float16),
        ("Greater", (), [x, x], (2, 3, 4), mx.bool_),
        ("LogicalAnd", (), [mask, mask], (2, 3, 4), mx.bool_),
        ("Sqrt", (True,), [x], (2, 3, 4), mx.float16),
        ("Pad", ((0,), (1,), (2,)), [x, mx.array(0, mx.float16)], (5, 3, 4), mx.float16),
    ]:
        (made,) = rebuild(op, arguments, inputs)
        assert (made.shape, made.dtype) == (shape, dtype), op


def test_the_module_says_what_is_public():
    assert set(ops.__all__) >= {"OPS", "NOT_REBUILT", "NOT_EXPORTED", "rebuild", "UnsupportedPrimitive"}
