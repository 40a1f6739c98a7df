"""A model as a Python program that needs nothing but MLX, with its weights beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.export.files import check_new, replacing
from fuser.export.python_class import Classes, NeedsSize, NotAlike, camel
from fuser.export.python_dims import Unnamed
from fuser.export.python_format import wrapped
from fuser.export.python_ir import CONST, INPUT, LAYERS, ConvertError, Op, ordered
from fuser.export.python_lift import Lift, fingerprint
from fuser.export.python_modules import SPOKEN, Tree, identifier
from fuser.export.python_trace import Traces, example, fitting, traces
from fuser.export.python_verify import compare
from fuser.frontends.onnx import OnnxProgram

Source = tuple[str, dict[str, mx.array]]

_ROTATE = '''def rotate_half(x: mx.array) -> mx.array:
    """The second half of the last axis, negated, before the first."""
    half = x.shape[-1] // 2
    return mx.concatenate([-x[..., half:], x[..., :half]], axis=-1)
'''


def export_python(model: Any, path: str | os.PathLike[str], /, *args: Any, force: bool = False, **inputs: Any) -> str:
    """Write `model` to `path` as a Python program, and its weights beside it in `.safetensors`; says what was written.

    `model` is what `fuser.load_onnx` returns, `inputs` are example inputs by name. Both files are written, or none; an
    existing one is overwritten with `force` only. The program is run beside the model before it is written: raises
    `ConvertError` when there is none that gives the same answers, and `OutputError` when a file cannot be written.
    """
    if args:
        raise ConvertError("only ONNX models are written as Python, with their inputs by name")
    file = Path(path)
    beside = file.with_suffix(".safetensors")
    check_new([file, beside], force=force)
    text, weights = python_source(model, inputs, file.stem)
    targets = [file, beside] if weights else [file]
    with replacing(*targets, force=force) as drafts:
        drafts[0].write_text(text, encoding="utf-8")
        if weights:
            mx.save_safetensors(str(drafts[1]), weights)
    count = text.count("\n")
    return f"{count} lines, {len(weights)} arrays{_HOLDS if _ONLY in text else ''}"


_ONLY = "It holds for these sizes only:"
_HOLDS = "; it holds for some sizes only: see its head"


def python_source(model: Any, inputs: Mapping[str, Any], name: str = "model") -> Source:
    """The source of a program that computes what `model` does, and its weights by name.

    `model` is what `fuser.load_onnx` returns; `inputs` are example inputs: the source is run on them, and on others of
    other sizes, before it is returned. Raises `ConvertError` when there is no such program, or it would be wrong.
    """
    program: OnnxProgram = getattr(model, "program", model)
    if not isinstance(program, OnnxProgram):
        raise ConvertError("only ONNX models (fuser.load_onnx) are written as Python; write a function as .mlxfn")
    arrays = example(program, inputs)
    reasons: list[str] = []
    for attempt in traces(program, arrays):
        try:
            source = _written(program, attempt, name)
            compare(source, program, arrays)
            # sizes of 1 are special to broadcasting, and nothing at all to some models: those may refuse them
            ran = [compare(source, program, fitting(attempt.shapes, arrays, each)) for each in attempt.checks]
            if attempt.checks and not any(ran):
                raise ConvertError("the model runs at no other sizes")
        except ConvertError as error:
            reasons.append(str(error))
        except Unnamed as error:
            reasons.append(f"no input tells the size {error.args[0][0]}")
        else:
            return source
    raise ConvertError(f"{program.name}: {'; '.join(dict.fromkeys(reasons))}")


def _names(program: OnnxProgram) -> dict[tuple[Any, ...], str]:
    """The names of the model's tensors by their contents."""
    found: dict[tuple[Any, ...], str] = {}
    for name, value in program._graph.constants.items():
        array = (
            np.array(value.astype(mx.float32) if value.dtype == mx.bfloat16 else value)
            if isinstance(value, mx.array)
            else value
        )
        if not isinstance(array, np.ndarray) or "::" in name:
            continue
        found.setdefault(fingerprint(array), name)
    return found


def _written(program: OnnxProgram, attempt: Traces, name: str) -> Source:
    lift = Lift(attempt, _names(program))
    results = lift.outputs()
    outputs = dict(zip((info.name for info in program.outputs), results, strict=True))
    for op in ordered(results):
        if op.kind == CONST:
            op.name = _attribute(op.name)
        elif op.kind in LAYERS:
            op.name = ""
    symbols: dict[tuple[int, ...], str] = {}
    for symbol, sizes in attempt.symbols.items():
        stem = identifier(symbol, "size")
        stem = f"{stem}_size" if stem in SPOKEN else stem
        free = (stem if n < 2 else f"{stem}_{n}" for n in range(1, len(attempt.symbols) + 2))
        symbols[sizes] = next(each for each in free if each not in symbols.values())
    tree = Tree(results)
    inputs = {op.attrs[0]: op for op in ordered(results) if op.kind == INPUT}
    for info in program.inputs:
        if info.name not in inputs:
            shape = tuple(
                attempt.symbols.get(dim, (attempt.frozen.get(dim, 0),) * lift.rules.traces)
                if isinstance(dim, str)
                else (dim,) * lift.rules.traces
                for dim in attempt.shapes[info.name]
            )
            inputs[info.name] = lift.rules.op(INPUT, (), (info.name,), shape, info.dtype)
    tree.inputs = [inputs[info.name] for info in program.inputs]
    root = identifier(camel(name))
    root = f"{root}Model" if root in SPOKEN or root.endswith("_") else root
    while True:
        try:
            classes = Classes(tree, symbols, root, outputs, _frozen(attempt))
            break
        except NotAlike as error:
            tree.repeats.pop(error.path)
            tree.root = tree._build()
        except NeedsSize as error:
            tree.dissolve(error.path)
    text = _file(program, attempt, root, classes, results)
    return text, classes.weights


def _frozen(attempt: Traces) -> dict[str, list[tuple[int, int]]]:
    """The axes of each input that must have the size which they had."""
    return {
        name: [
            (axis, attempt.frozen[dim])
            for axis, dim in enumerate(shape)
            if isinstance(dim, str) and dim in attempt.frozen
        ]
        for name, shape in attempt.shapes.items()
    }


def _attribute(name: str) -> str:
    last = re.split(r"[./]", name)[-1] if name else ""
    return last if re.fullmatch(r"[A-Za-z]\w*", last) and not re.search(r"\d{2,}$|^val_|_output_0$", last) else ""


def _file(program: OnnxProgram, attempt: Traces, root: str, classes: Classes, results: list[Op]) -> str:
    body = "\n\n".join(classes.sources)
    lines = [f'"""{root}, an MLX program that mlx-fuser wrote from an ONNX model.', ""]
    lines += ["Inputs:", *(f"    {_described(info.name, attempt.shapes[info.name])}" for info in program.inputs)]
    lines += ["Outputs:", *(_shown(f"    {info.name}") for info in program.outputs)]
    if attempt.frozen:
        lines += ["", _ONLY]
        lines += [_shown(f"    {name} = {size}") for name, size in attempt.frozen.items()]
    lines += ['"""', "", "from pathlib import Path", "", "import mlx.core as mx"]
    lines += ["import mlx.nn as nn", "", ""]
    text = "\n".join(lines) + "\n"
    if "rotate_half(" in body:
        text += _ROTATE + "\n\n"
    text += body + "\n\n" + _load(root, bool(classes.weights))
    return text


def _described(name: str, shape: tuple[str | int, ...]) -> str:
    return _shown(f"{name} [{', '.join(map(str, shape))}]")


def _shown(text: str) -> str:
    """A model's own words inside of a docstring: they may be anything."""
    return re.sub(r"[^\w\[\](){}.,:;/+*=<>@#$%&!? -]", "_", text)


def _load(root: str, weights: bool) -> str:
    lines = [f"def load(weights: str | Path | None = None) -> {root}:"]
    lines += ['    """The model with its weights, which lie beside this file unless told otherwise."""']
    lines += wrapped(f"model = {root}()", 4)
    if weights:
        lines += [
            '    file = weights or Path(__file__).with_suffix(".safetensors")',
            "    model.load_weights(str(file))",
        ]
    return "\n".join([*lines, "    return model", ""])
