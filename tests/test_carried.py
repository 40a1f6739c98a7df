"""Calls that MLX's export cannot hold: they are made again when the program runs, and the rest is fused around them."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import fuser
from fuser.execute import runner
from tests.programs_base import Block, X, arrays, attention, same

ROOT = Path(__file__).resolve().parent.parent
grad: Any = mx.grad
checkpoint: Any = mx.checkpoint
A = arrays((2, 4, 4))[0] + 4 * mx.eye(4)
W = arrays((64, 64), seed=1)[0]


def quantized(x: mx.array) -> mx.array:
    packed = mx.quantize(mx.tile(x, (1, 1, 8)), mode="mxfp8")
    return mx.dequantize(*packed, mode="mxfp8", dtype=mx.float32)


CALLS: dict[str, Callable[[mx.array], Any]] = {
    "lu": lambda x: mx.linalg.lu(x, stream=mx.cpu),
    "lu_factor": lambda x: mx.linalg.lu_factor(x, stream=mx.cpu),
    "solve": lambda x: mx.linalg.solve(x, x * 2, stream=mx.cpu),
    "logcumsumexp": lambda x: mx.logcumsumexp(x, axis=1),
    "fp8": lambda x: mx.from_fp8(mx.to_fp8(x), mx.float32),
    "quantize": quantized,
    "segmented_mm": lambda x: mx.segmented_mm(x[0], x[1], mx.array([[0, 2], [2, 4]], mx.uint32)),
    "several": lambda x: mx.logcumsumexp(mx.linalg.solve(x, x + 1, stream=mx.cpu), axis=0),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_no_trace_holds(name: str) -> None:
    call = CALLS[name]

    def program(x: mx.array) -> Any:
        return call(x), attention(x, x, x), call(x * 2)

    for fuse in (True, False):
        fast = fuser.optimize(program, fuse=fuse)
        for x in (A, A + 1):
            same(fast(x), program(x))
            assert mx.array_equal(mx.concatenate(flat(fast(x)[0])), mx.concatenate(flat(call(x))))
        assert fast.traces == 1 and fast.report.counts["fused"] == fuse


def flat(tree: Any) -> list[mx.array]:
    return [tree.reshape(-1)] if isinstance(tree, mx.array) else [each.reshape(-1) for each in tree]


def test_what_a_choice_stands_for() -> None:
    def program(x: mx.array) -> Any:
        n = x.astype(mx.int32)
        return ~n, mx.bitwise_invert(n.astype(mx.uint8)), ~(x > 0), mx.contiguous(x.T, True), mx.contiguous(x.T)

    graph = fuser.trace(program, A)
    ops = Counter(node.op for node in graph.nodes)
    assert (ops["BitwiseInvert"], ops["Contiguous"], ops["Select"], ops["Opaque"]) == (2, 2, 0, 0)
    fast = fuser.optimize(program)
    same(fast(A), program(A))
    same(fuser.optimize(mx.vmap(lambda x: ~x))(mx.arange(3)), ~mx.arange(3))


def test_the_graph_says_what_is_called_and_where() -> None:
    graph = fuser.trace(lambda x: mx.linalg.lu_factor(x, stream=mx.cpu), A)
    line = test_the_graph_says_what_is_called_and_where.__code__.co_firstlineno + 1
    assert f"mx.linalg.lu_factor (test_carried.py:{line})" in str(graph)
    assert not graph.lint()


def test_gradients_and_vmap_outside() -> None:
    def program(x: mx.array) -> Any:
        return (mx.logcumsumexp(x, axis=0) * mx.softmax(x, axis=-1)).sum()

    fast = fuser.optimize(program)
    same(grad(fast)(A[0]), grad(program)(A[0]))
    same(mx.vmap(fast)(A), mx.vmap(program)(A))
    assert not fast.report.notes


def test_gradients_and_vmap_inside_run_the_original() -> None:
    def row(x: mx.array) -> Any:
        return mx.logcumsumexp(x, axis=0).sum()

    for program in (grad(row), mx.vmap(row)):
        fast = fuser.optimize(program)
        same(fast(A), program(A))
        (note,) = fast.report.notes
        assert "mx.logcumsumexp" in note


def test_a_kernel_of_the_program_stands_between_attentions() -> None:
    kernel: Any = mx.fast.metal_kernel("double", ["x"], ["y"], "y[thread_position_in_grid.x] = 2 * x[0];")

    def doubled(x: mx.array, start: float) -> mx.array:
        (made,) = kernel(
            inputs=[x],
            grid=(x.size, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[x.dtype],
            init_value=start,
        )
        return made  # type: ignore[no-any-return]

    def program(x: mx.array) -> mx.array:
        y = doubled(attention(x, x, x), 3.0)
        return attention(y, y, y)

    report = fuser.explain(program, X)
    assert report.counts["fused"] == 2
    graph, _ = fuser.fuse(fuser.trace(program, X))
    ops = Counter(node.op for node in graph.nodes)
    assert ops["Opaque"] == 1 and ops["CustomKernel"] == 0
    again: list[dict[str, Any]] = []
    mx.export_function(again.append, lambda x: runner(graph)([x]), X)
    (called,) = [record for record in again if record.get("name") == "CustomKernel"]
    assert "double" in called["arguments"][0] and called["inputs"][0][1] == X.shape


@mx.custom_function
def odd(x: mx.array) -> Any:
    return mx.sin(x)


@odd.vjp
def odd_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    return cotangents * 7


def test_a_custom_function_keeps_its_gradient() -> None:
    called: Any = odd

    def program(x: mx.array) -> Any:
        return (called(attention(x, x, x)) * x).sum()

    fast = fuser.optimize(program)
    same([fast(X), grad(fast)(X)], [program(X), grad(program)(X)])
    assert fast.report.counts["fused"] == 1 and fast.traces == 1
    (note,) = fast.report.notes
    assert note.startswith("mx.custom_function (test_carried.py:") and "nothing inside is fused" in note
    inside = fuser.optimize(grad(program))
    same(inside(X), grad(program)(X))
    assert "mx.custom_function (test_carried.py" in inside.report.notes[0]


def test_a_custom_function_that_reads_arrays_is_not_carried() -> None:
    held = {"w": mx.ones(())}
    made: Any = mx.custom_function(lambda x: x * held["w"])
    made.vjp(lambda primals, cotangents, outputs: cotangents)
    fast = fuser.optimize(lambda x: made(x) + 1)
    for number in (1.0, 2.0):
        held["w"] = mx.array(number)
        same(fast(X), X * number + 1)
    assert "CustomTransforms" in fast.report.notes[0]


def early(x: mx.array) -> mx.array:
    return attention(x, x, x) * x


EARLY = checkpoint(early)


def test_checkpoints_are_seen_through() -> None:
    modules = [Block(), Block()]
    wrapped = [nn.utils.checkpoint(module) for module in modules]
    programs: list[Callable[[mx.array], Any]] = [
        lambda x: checkpoint(early)(x).sum(),
        lambda x: EARLY(x).sum(),
        lambda x: wrapped[1](wrapped[0](x)).sum(),
        lambda x: checkpoint(lambda x: EARLY(x) + x)(x).sum(),
        checkpoint(lambda x: early(x).sum()),
    ]
    for program, count in zip(programs, (1, 1, 2, 1, 1), strict=True):
        fast = fuser.optimize(program)
        same([fast(X), grad(fast)(X)], [program(X), grad(program)(X)])
        assert fast.report.counts["fused"] == count and not fast.report.notes and fast.traces == 1
        plain = fuser.optimize(program, fuse=False)
        assert mx.array_equal(plain(X), program(X)) and mx.array_equal(grad(plain)(X), grad(program)(X))


def test_a_checkpoint_is_computed_again_for_gradients() -> None:
    def program(x: mx.array) -> Any:
        return checkpoint(lambda x: mx.exp(mx.sin(x)))(x).sum()

    def count(fn: Callable[..., Any]) -> int:
        records: list[dict[str, Any]] = []
        with pytest.raises(ValueError, match="CustomTransforms"):
            mx.export_function(records.append, lambda x: [fn(x), grad(fn)(x)], X)
        return sum(record.get("name") == "Sin" for record in records)

    mx.disable_compile()
    try:
        assert count(fuser.optimize(program, fuse=False)) == count(program)
    finally:
        mx.enable_compile()


def test_what_a_checkpoint_reads_besides_gets_no_gradient() -> None:
    def program(wrap: Any, w: mx.array) -> Any:
        return wrap(lambda x: checkpoint(lambda y: mx.sin(y) * w)(x).sum())(X)

    w = mx.full((), 2.0)
    same(grad(lambda w: program(fuser.optimize, w))(w), grad(lambda w: program(lambda f: f, w))(w))


def test_checkpoints_in_a_row_share_arguments_and_hide_what_is_behind_them() -> None:
    def layer(x: mx.array, mask: mx.array) -> mx.array:
        return mx.softmax(x @ x.swapaxes(-1, -2) + mask, axis=-1) @ x

    def program(x: mx.array, mask: mx.array) -> Any:
        for _ in range(2):
            x = checkpoint(layer)(x, mask)
        # an argument that the function reads by another name, too
        return checkpoint(lambda y: y @ x.swapaxes(-1, -2))(x).sum()

    bias = mx.random.normal((X.shape[-2], X.shape[-2]))
    for fuse in (True, False):
        fast = fuser.optimize(program, fuse=fuse)
        same(fast(X, bias), program(X, bias))
        same(mx.grad(fast, argnums=(0, 1))(X, bias), mx.grad(program, argnums=(0, 1))(X, bias))
        assert fast.traces == 1 and fast.report.counts["fused"] == (2 if fuse else 0)


def test_a_checkpoint_inside_of_a_gradient_runs_as_it_is() -> None:
    def linear(x: mx.array) -> mx.array:
        return x + x

    def loss(inner: Callable[..., Any], x: mx.array) -> Any:
        return checkpoint(inner)(x).sum()

    for inner in (early, linear):
        program: Any = mx.value_and_grad(functools.partial(loss, inner))
        fast = fuser.optimize(program)
        same(fast(X), program(X))
        assert "mx.checkpoint (test_carried.py" in fast.report.notes[0]


def test_gradients_through_contiguous_are_its_own() -> None:
    def program(x: mx.array) -> Any:
        return (mx.contiguous(x.T) * mx.array([float("inf"), -0.0])).sum()

    x = mx.ones((2, 2))
    found, wanted = fuser.optimize(grad(program))(x), grad(program)(x)
    assert mx.array_equal(1 / found, 1 / wanted).item()


KERNEL: Any = mx.fast.scaled_dot_product_attention
SOFTMAX: Any = mx.softmax


class Kept:
    kernel, static, softmax = KERNEL, staticmethod(KERNEL), SOFTMAX

    def __call__(self, x: mx.array) -> Any:
        return self.kernel(x, x, x, scale=0.5) + self.static(x, x, x, scale=0.5) + self.softmax(x, axis=-1)


def test_the_kernel_by_other_names() -> None:
    def positional(x: mx.array, kernel: Any = KERNEL) -> Any:
        return kernel(x, x, x, scale=0.5)

    def keyword(x: mx.array, *, kernel: Any = KERNEL) -> Any:
        return kernel(x, x, x, scale=0.5)

    x = X[:, None]
    for program, count in ((positional, 1), (keyword, 1), (Kept(), 2)):
        fast = fuser.optimize(program)
        same(fast(x), program(x))
        assert fast.report.counts["already fused"] == count and fast.report.counts["fused"] == 0
    assert positional.__defaults__ == (KERNEL,) and vars(Kept)["kernel"] is KERNEL


RING = """
import mlx.core as mx
import fuser

group = mx.distributed.init(backend="ring", strict=True)

def attention(x):
    return mx.softmax(x @ x.swapaxes(-1, -2), axis=-1) @ x

def program(x):
    total = mx.distributed.all_sum(attention(x), group=group, stream=mx.cpu)
    return mx.distributed.all_gather(attention(total), group=group, stream=mx.cpu)

x = mx.arange(80).reshape(2, 5, 8) * 0.01 * (group.rank() + 1)
fast = fuser.optimize(program)
assert mx.allclose(fast(x), program(x), atol=1e-5).item()
print(group.size(), fast.report.counts["fused"], fast.report.notes)
"""


def test_two_processes(tmp_path: Path) -> None:
    if not mx.distributed.is_available("ring"):
        pytest.skip("MLX without its ring")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RING],
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [run.communicate(timeout=120)[0] for run in runs] == ["2 2 ()\n"] * 2
    finally:
        for run in runs:
            run.kill()
