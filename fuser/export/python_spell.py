"""One operation as an expression in Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.export.python_dims import Dims
from fuser.export.python_ir import LAYERS, NUMBER, Dim, Op, fixed, is_one
from fuser.export.python_rules import INFIX

ATOM, UNARY, POWER, PRODUCT, SUM, AND, OR, COMPARE = 10, 8, 9, 7, 6, 4, 3, 2
_LEVELS = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "**": POWER, "&": AND, "|": OR}


@dataclass
class Text:
    """An expression, with how tightly it binds and what it computes."""

    text: str
    level: int = ATOM
    ops: frozenset[Any] = field(default_factory=frozenset)
    """What is computed in it; empty for a name or a number."""

    def at(self, level: int) -> str:
        """As an operand of something that binds at `level`."""
        return self.text if self.level >= level else f"({self.text})"


def dtype_name(dtype: mx.Dtype) -> str:
    """`mx.float32`"""
    name = str(dtype).rpartition(".")[2]
    return "mx.bool_" if name.startswith("bool") else f"mx.{name}"


def literal(value: Any, dtype: mx.Dtype) -> str:
    """A number as short as its type allows."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "mx.nan"
    if math.isinf(value):
        return "mx.inf" if value > 0 else "-mx.inf"
    short = str(np.float32(value)) if dtype != mx.float64 else repr(value)
    if "e" in short:
        digits, _, power = short.partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return short


def shape_text(dims: Dims, shape: Sequence[Dim]) -> str:
    """A shape as a tuple."""
    texts = [dims.text(dim) for dim in shape]
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def spell(op: Op, args: Sequence[Text], dims: Dims, attribute: str) -> tuple[str, int]:
    """The expression of `op` over `args`, and its level; `attribute` is what it calls its layer."""
    kind = op.kind
    plain = [arg.text for arg in args]
    first = args[0].at(ATOM) if args else ""
    if kind in INFIX and not (kind.startswith("logical") and any(arg.dtype != mx.bool_ for arg in op.args)):
        return _infix(INFIX[kind], args)
    if kind == "matmul":
        return _infix("@", args)
    if kind in LAYERS:
        return f"self.{attribute}({plain[0]})", ATOM
    if kind == "call":
        return _call(op, args)
    if kind == "astype":
        return f"{first}.astype({dtype_name(op.dtype)})", ATOM
    if kind == "reshape":
        return _reshape(op, first, dims)
    if kind == "transpose":
        return f"{first}.transpose({', '.join(map(str, op.attrs[0]))})", ATOM
    if kind == "slice":
        return f"{first}[{_slices(op, dims)}]", ATOM
    if kind == "where":
        return _where(op, plain), ATOM
    if kind in _SIMPLE:
        return _SIMPLE[kind](op, plain, dims), ATOM
    return f"mx.{kind}({', '.join(plain)})", ATOM


def _infix(sign: str, args: Sequence[Text]) -> tuple[str, int]:
    level = _LEVELS.get(sign, COMPARE)
    left, right = args
    if sign == "**":
        base, power = left.at(ATOM), right.at(ATOM)
        # a formatter puts no spaces between plain names and numbers
        return f"{base}**{power}" if re.fullmatch(r"[\w.]+-?[\w.]+", base + power) else f"{base} ** {power}", level
    # a comparison does not nest, and the right operand of `-` and `/` needs its brackets
    return f"{left.at(level + (level == COMPARE))} {sign} {right.at(level + 1)}", level


def _call(op: Op, args: Sequence[Text]) -> tuple[str, int]:
    fn, attrs = op.attrs
    if fn == "negative":
        return f"-{args[0].at(UNARY)}", UNARY
    name = fn if fn.startswith("nn.") else f"mx.{fn}"
    parts = [arg.text for arg in args] + [f"{key}={_argument(value)}" for key, value in attrs]
    return f"{name}({', '.join(parts)})", ATOM


def _argument(value: Any) -> str:
    return literal(value, mx.float32) if isinstance(value, float) else repr(value)


def _reshape(op: Op, x: str, dims: Dims) -> tuple[str, int]:
    before, after = op.args[0].shape, op.shape
    kept = [dim for dim in before if not is_one(dim)]
    if kept == [dim for dim in after if not is_one(dim)]:
        if len(after) > len(before):
            found = _inserted(before, after)
            if found is not None:
                return f"{x}[{found}]", ATOM
        elif len(after) < len(before):
            axes = _dropped(before, after)
            if axes is not None:
                return f"{x}.squeeze({axes[0] if len(axes) == 1 else tuple(axes)})", ATOM
    return f"{x}.reshape({', '.join(dims.text(dim) for dim in after) or '()'})", ATOM


def _inserted(before: Sequence[Dim], after: Sequence[Dim]) -> str | None:
    """The index that adds axes of size 1: `:, None`."""
    parts, place = [], 0
    spare = len(after) - len(before)
    for dim in after:
        if place < len(before) and dim == before[place] and not (is_one(dim) and spare):
            parts.append(":")
            place += 1
        elif is_one(dim) and spare:
            parts.append("None")
            spare -= 1
        else:
            return None
    while parts and parts[-1] == ":":
        parts.pop()
    return ", ".join(parts) if place == len(before) else None


def _dropped(before: Sequence[Dim], after: Sequence[Dim]) -> list[int] | None:
    axes: list[int] = []
    place = 0
    for axis, dim in enumerate(before):
        if place < len(after) and dim == after[place] and not (is_one(dim) and len(axes) < len(before) - len(after)):
            place += 1
        elif is_one(dim):
            axes.append(axis)
        else:
            return None
    return axes if place == len(after) and len(before) - len(axes) == len(after) else None


def _slices(op: Op, dims: Dims) -> str:
    starts, stops, steps = op.attrs
    parts = []
    for start, stop, step, size in zip(starts, stops, steps, op.args[0].shape, strict=True):
        if step[0] > 0:
            low = _start(start, size, dims) if any(start) else ""
            high = "" if stop == size else dims.text(stop)
        else:  # to the front: a negative stop would be counted from the end
            low = "" if start in (size, tuple(n - 1 for n in size)) else dims.text(start)
            high = "" if all(n < 0 for n in stop) else dims.text(stop)
        stride = f":{step[0]}" if step[0] != 1 else ""
        parts.append(f"{low}:{high}{stride}")
    whole = len(parts)
    while parts and parts[-1] == ":":
        parts.pop()
    lead = 0
    while lead < len(parts) and parts[lead] == ":":
        lead += 1
    if lead > 1 and len(parts) == whole:
        parts = ["...", *parts[lead:]]
    return ", ".join(parts)


def _start(start: Dim, size: Dim, dims: Dims) -> str:
    back = {n - s for n, s in zip(size, start, strict=True)}
    if not fixed(start) and len(back) == 1:
        return f"-{back.pop()}"
    return dims.text(start)


def _where(op: Op, plain: Sequence[str]) -> str:
    text = f"mx.where({', '.join(plain)})"
    numbers = [arg for arg in op.args[1:] if arg.kind == NUMBER]
    if len(numbers) == 2 and op.dtype not in (mx.float32, mx.bool_, mx.int32):
        return f"{text}.astype({dtype_name(op.dtype)})"
    return text


def _attention(op: Op, plain: Sequence[str], dims: Dims) -> str:
    scale, causal, sinks = op.attrs
    depth = op.args[0].shape[-1][0]
    text = f"{depth}**-0.5" if math.isclose(scale, depth**-0.5, rel_tol=1e-6) else literal(float(scale), mx.float32)
    parts = [*plain[:3], f"scale={text}"]
    rest = list(plain[3:])
    sink = rest.pop() if sinks else None
    if rest or causal:
        parts.append(f"mask={rest[0]}" if rest else 'mask="causal"')
    if sink is not None:
        parts.append(f"sinks={sink}")
    return f"mx.fast.scaled_dot_product_attention({', '.join(parts)})"


def _full(op: Op, plain: Sequence[str], dims: Dims) -> str:
    value, shape = op.args[0].number, shape_text(dims, op.shape)
    kind = "" if op.dtype == mx.float32 else f", dtype={dtype_name(op.dtype)}"
    if value is not None and value in (0, 1) and (value or math.copysign(1, value) > 0):
        return f"mx.{'ones' if value else 'zeros'}({shape}{kind})"
    return f"mx.full({shape}, {plain[0]}, dtype={dtype_name(op.dtype)})"


def _affine(op: Op, plain: Sequence[str], dims: Dims) -> str:
    base, steps = op.attrs
    kind = f", dtype={dtype_name(op.dtype)}" if op.dtype != mx.int32 else ""
    terms: list[str] = []
    for axis, (dim, step) in enumerate(zip(op.shape, steps, strict=True)):
        if is_one(dim):
            continue
        start = not terms and any(base)
        first = f"{dims.text(base)}, {dims.text(tuple(b + n for b, n in zip(base, dim, strict=True)))}" if start else ""
        term = f"mx.arange({first or dims.text(dim)}{kind})"
        index = _inserted((dim,), tuple(dim if each == axis else (1,) * len(dim) for each in range(op.ndim)))
        term += f"[{index}]" if index else ""
        if set(step) != {1}:
            factor = dims.text(step)
            term += f" * {factor}" if " " not in factor else f" * ({factor})"
        terms.append(term)
    return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"


def _reduce(op: Op, plain: Sequence[str], dims: Dims) -> str:
    fn, axes, keep = op.attrs
    last = len(op.args[0].shape) - 1
    axis = "-1" if axes == (last,) else str(axes[0]) if len(axes) == 1 else str(tuple(axes))
    return f"mx.{fn}({plain[0]}, axis={axis}{', keepdims=True' if keep else ''})"


def _take(op: Op, plain: Sequence[str], dims: Dims) -> str:
    axis = op.attrs[0]
    return f"mx.take({plain[0]}, {plain[1]}, axis={axis})"


def _concatenate(op: Op, plain: Sequence[str], dims: Dims) -> str:
    axis = -1 if op.attrs[0] == op.ndim - 1 else op.attrs[0]
    return f"mx.concatenate([{', '.join(plain)}], axis={axis})"


_SIMPLE: dict[str, Callable[[Op, Sequence[str], Dims], str]] = {
    "attention": _attention,
    "full": _full,
    "affine": _affine,
    "reduce": _reduce,
    "take": _take,
    "concatenate": _concatenate,
    "broadcast": lambda op, plain, dims: f"mx.broadcast_to({plain[0]}, {shape_text(dims, op.shape)})",
    "tri": lambda op, plain, dims: (
        f"mx.tri({dims.text(op.shape[0])}"
        + (f", {dims.text(op.shape[1])}" if op.shape[0] != op.shape[1] or any(op.attrs[0]) else "")
        + (f", {dims.text(op.attrs[0])}" if any(op.attrs[0]) else "")
        + ", dtype=mx.bool_)"
    ),
    "vector": lambda op, plain, dims: (
        f"mx.array([{', '.join(map(dims.text, op.attrs[0]))}]"
        + (f", dtype={dtype_name(op.dtype)}" if op.dtype != mx.int32 else "")
        + ")"
    ),
    "index": lambda op, plain, dims: f"{plain[0]}[{', '.join(plain[1:])}]",
    "rotate_half": lambda op, plain, dims: f"rotate_half({plain[0]})",
    "rms_norm_plain": lambda op, plain, dims: f"mx.fast.rms_norm({plain[0]}, None, {literal(op.attrs[0], mx.float32)})",
    "layer_norm_plain": lambda op, plain, dims: (
        f"mx.fast.layer_norm({plain[0]}, None, None, {literal(op.attrs[0], mx.float32)})"
    ),
}


def constructed(op: Op) -> str:
    """How a layer is made in `__init__`."""
    weight = op.params["weight"]
    extra = []
    if op.kind == "linear":
        out, into = weight.shape
        return f"nn.Linear({into}, {out}{'' if 'bias' in op.params else ', bias=False'})"
    if op.kind == "embedding":
        return f"nn.Embedding({weight.shape[0]}, {weight.shape[1]})"
    if op.kind == "conv":
        stride, padding, dilation, groups = op.attrs
        two = len(stride) == 2
        for name, value, usual in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
            if any(each != usual for each in value):
                extra.append(f"{name}={value[0] if len(set(value)) == 1 else tuple(value)}")
        extra += [f"groups={groups}"] if groups != 1 else []
        extra += [] if "bias" in op.params else ["bias=False"]
        size = weight.shape[1:-1]
        kernel = str(size[0]) if len(set(size)) == 1 else str(tuple(size))
        head = [str(weight.shape[-1] * groups), str(weight.shape[0]), kernel]
        return f"nn.Conv{'2d' if two else '1d'}({', '.join([*head, *extra])})"
    if not math.isclose(op.attrs[0], 1e-5, rel_tol=1e-4):
        extra.append(f"eps={literal(op.attrs[0], mx.float32)}")
    if op.kind == "layer_norm" and "bias" not in op.params:
        extra.append("bias=False")
    name = "RMSNorm" if op.kind == "rms_norm" else "LayerNorm"
    return f"nn.{name}({', '.join([str(weight.shape[0]), *extra])})"


def stored(op: Op) -> str:
    """How a buffer is made in `__init__`, before its values are loaded."""
    shape = tuple(dim[0] for dim in op.shape)
    kind = "" if op.dtype == mx.float32 else f", dtype={dtype_name(op.dtype)}"
    return f"mx.zeros({shape}{kind})"
