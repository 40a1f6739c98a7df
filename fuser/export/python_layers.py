"""Layers and activations by their arithmetic: norms, GELU, SiLU, biases, the rotation of halves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from fuser.export.python_ir import CONST, NUMBER, SIZE, Op, Shape, fixed, is_one, product

if TYPE_CHECKING:
    from fuser.export.python_rules import Rules

HALVES = (mx.float16, mx.bfloat16)


def close(op: Op, value: float) -> bool:
    """Whether `op` is the number `value`, as well as its type can say."""
    number = op.number
    return number is not None and math.isclose(float(number), value, rel_tol=1e-2 if op.dtype in HALVES else 1e-6)


def is_call(op: Op, fn: str) -> bool:
    """Whether `op` is the function `fn` of one operand."""
    return op.kind == "call" and op.attrs[0] == fn


def either(args: Sequence[Op]) -> Iterator[tuple[Op, Op]]:
    """Both orders of two operands."""
    yield args[0], args[1]
    yield args[1], args[0]


# -- norms ---------------------------------------------------------------------------------------------------------


def normalized(rules: Rules, fn: str, args: Sequence[Op], shape: Shape) -> Op | None:
    """A mean, a norm without or with its weights, or a layer with its bias, when the operation completes one."""
    if fn == "multiply":
        for x, y in either(args):
            found = _mean(rules, x, y) or _rms(rules, x, y) or _weighted(rules, x, y)
            if found is not None:
                return found
    elif fn == "divide":
        x, y = args
        if x.number == 1 and is_call(y, "sqrt"):
            return rules.call("rsqrt", y.args, y.shape, y.dtype)
        if y.kind == NUMBER and y.number:
            found = _mean(rules, x, rules.number(1 / y.number, y.dtype))
            if found is not None:
                return found
        if is_call(y, "sqrt"):
            return _rms(rules, x, rules.call("rsqrt", y.args, y.shape, y.dtype))
    elif fn == "add":
        for x, bias in either(args):
            found = _biased(rules, x, bias, shape)
            if found is not None:
                return found
    return None


def _mean(rules: Rules, total: Op, share: Op) -> Op | None:
    if total.kind != "reduce" or total.attrs[0] != "sum":
        return None
    dims = [total.args[0].shape[axis] for axis in total.attrs[1]]
    if share.kind == "divide" and share.args[0].number == 1 and share.args[1].kind == SIZE:
        if share.args[1].attrs[0] != product(dims, rules.traces):
            return None
    elif not all(map(fixed, dims)) or not close(share, 1 / math.prod(dim[0] for dim in dims)):
        return None
    return rules.op("reduce", total.args, ("mean", *total.attrs[1:]), total.shape, total.dtype)


def _last_mean(op: Op) -> Op | None:
    """What `op` is the mean of, over the last axis."""
    if op.kind == "reduce" and op.attrs[0] == "mean" and op.attrs[2] and op.attrs[1] == (op.ndim - 1,):
        return op.args[0]
    return None


def _rms(rules: Rules, x: Op, factor: Op) -> Op | None:
    """`x * rsqrt(mean(x * x) + eps)`, also over what is centred already."""
    if not is_call(factor, "rsqrt") or factor.args[0].kind != "add":
        return None
    for mean, eps in either(factor.args[0].args):
        squared = _last_mean(mean)
        if squared is None or eps.kind != NUMBER or not is_call(squared, "square") or squared.args[0] is not x:
            continue
        if x.kind == "subtract" and _last_mean(x.args[1]) is x.args[0]:
            return rules.op("layer_norm_plain", x.args[:1], (eps.number,), x.shape, x.dtype)
        return rules.op("rms_norm_plain", (x,), (eps.number,), x.shape, x.dtype)
    return None


def _weighted(rules: Rules, norm: Op, weight: Op) -> Op | None:
    if norm.kind not in ("rms_norm_plain", "layer_norm_plain") or not _is_vector(weight, norm):
        return None
    vector = _vector(rules, weight)
    return rules.layer(norm.kind.removesuffix("_plain"), norm.args[0], norm.attrs, norm.shape, {"weight": vector})


def _is_vector(weight: Op, x: Op) -> bool:
    return (
        weight.kind == CONST
        and bool(weight.shape)
        and weight.shape[-1] == x.shape[-1]
        and all(map(is_one, weight.shape[:-1]))
    )


def _vector(rules: Rules, weight: Op) -> Op:
    assert weight.array is not None
    if weight.ndim == 1:
        return weight
    return rules.const(mx.reshape(weight.array, (-1,)), ("vector", id(weight)), weight.name)


def _biased(rules: Rules, x: Op, bias: Op, shape: Shape) -> Op | None:
    if bias.kind != CONST or x.shape != shape or bias.array is None:
        return None
    if x.kind == "transpose" and x.args[0].kind == "conv":
        # channels come second in ONNX: the bias lies along that axis
        channel = x.attrs[0].index(x.ndim - 1)
        lead = bias.ndim - (x.ndim - channel)
        if all(is_one(dim) for axis, dim in enumerate(bias.shape) if axis != lead) and lead >= 0:
            vector = rules.const(mx.reshape(bias.array, (-1,)), ("vector", id(bias)), bias.name)
            inner = _biased(rules, x.args[0], vector, x.args[0].shape)
            return None if inner is None else rules.transpose(inner, x.attrs[0])
        return None
    if x.kind not in ("linear", "layer_norm", "conv") or "bias" in x.params or not _is_vector(bias, x):
        return None
    params = {name: rules.const(array, ("param", id(array))) for name, array in x.params.items()}
    return rules.layer(x.kind, x.args[0], x.attrs, x.shape, {**params, "bias": _vector(rules, bias)})


# -- activations ---------------------------------------------------------------------------------------------------


def recognized(
    rules: Rules, fn: str, args: Sequence[Op], shape: Shape, dtype: mx.Dtype, axis: int | None = None
) -> Op | None:
    """An activation or helper that the operation completes."""
    if fn == "multiply":
        for x, y in either(args):
            if is_call(y, "sigmoid") and y.args[0] is x:
                return _activation(rules, "silu", x)
        return _gelu(rules, args)
    if fn == "maximum" and args[1].number == 0 and dtype in (mx.float32, *HALVES) and args[0].shape == shape:
        return _activation(rules, "relu", args[0])
    if fn == "concatenate" and axis == len(shape) - 1 and len(args) == 2:
        return _rotated(rules, args[0], args[1])
    return None


def _activation(rules: Rules, name: str, x: Op) -> Op:
    return rules.call(f"nn.{name}", [x], x.shape, x.dtype)


def _factors(op: Op, fn: str) -> list[Op]:
    return [leaf for arg in op.args for leaf in _factors(arg, fn)] if op.kind == fn else [op]


def _gelu(rules: Rules, args: Sequence[Op]) -> Op | None:
    """`0.5 * x * (1 + erf(x / sqrt(2)))`, multiplied in any order, or the same with tanh."""
    factors = [leaf for arg in args for leaf in _factors(arg, "multiply")]
    if len(factors) != 3 or not any(close(factor, 0.5) for factor in factors):
        return None
    rest = [factor for factor in factors if not close(factor, 0.5)]
    if len(rest) != 2:
        return None
    for x, bell in either(rest):
        if bell.kind != "add":
            continue
        for one, curve in either(bell.args):
            if not close(one, 1):
                continue
            if is_call(curve, "erf") and _scaled(curve.args[0], x, 1 / math.sqrt(2)):
                return _activation(rules, "gelu", x)
            if is_call(curve, "tanh") and _cubic(curve.args[0], x):
                return _activation(rules, "gelu_approx", x)
    return None


def _scaled(op: Op, x: Op, scale: float) -> bool:
    if op.kind == "divide":
        return op.args[0] is x and close(op.args[1], 1 / scale)
    return op.kind == "multiply" and any(a is x and close(b, scale) for a, b in either(op.args))


def _cubic(op: Op, x: Op) -> bool:
    """`sqrt(2 / pi) * (x + 0.044715 * x ** 3)`"""
    if op.kind != "multiply":
        return False
    for scale, total in either(op.args):
        if close(scale, math.sqrt(2 / math.pi)) and total.kind == "add":
            for plain, cube in either(total.args):
                if plain is x and sorted(map(_weight_of(x), _factors(cube, "multiply"))) == ["0.044715", "x**3"]:
                    return True
                parts = _factors(cube, "multiply")
                if plain is x and len(parts) == 4 and sum(part is x for part in parts) == 3:
                    return any(close(part, 0.044715) for part in parts)
    return False


def _weight_of(x: Op) -> Any:
    def name(op: Op) -> str:
        if close(op, 0.044715):
            return "0.044715"
        return "x**3" if op.kind == "power" and op.args[0] is x and close(op.args[1], 3) else "?"

    return name


def _rotated(rules: Rules, left: Op, right: Op) -> Op | None:
    """`concatenate([-x[..., half:], x[..., :half]])`: the second half, negated, before the first."""
    if not is_call(left, "negative") or left.args[0].kind != "slice" or right.kind != "slice":
        return None
    upper = left.args[0]
    x = upper.args[0]
    if right.args[0] is not x or not fixed(x.shape[-1]) or x.shape[-1][0] % 2:
        return None
    width = x.shape[-1][0]
    half = rules.dim(width // 2)
    for part, start, stop in ((upper, half, x.shape[-1]), (right, rules.dim(0), half)):
        starts, stops, steps = part.attrs
        whole = all(
            not any(low) and high == dim for low, high, dim in list(zip(starts, stops, x.shape, strict=True))[:-1]
        )
        if not whole or starts[-1] != start or stops[-1] != stop or any(step != rules.dim(1) for step in steps):
            return None
    return rules.op("rotate_half", (x,), (), x.shape, x.dtype)
