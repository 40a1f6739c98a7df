"""What a line of the table of spellings is made of: the record, its inputs, and the kernel as its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from fuser.report import Region

INF = math.inf
FLOOR = float(np.finfo(np.float32).min)
LOWEST = -1e9

Fn = Callable[..., Any]
Spec = tuple[int, ...] | Callable[[np.random.Generator], mx.array]
Args = Callable[[], tuple[mx.array, ...]]

# A mask known only at run time may reach the kernel as booleans or as the equal additive array: which of them
# keeps the original's answer on rows without any key depends on the fill, so the table takes both.
KEEP = "boolean|additive"


@dataclass(frozen=True)
class Spelling:
    """One way to write one attention, and what the report must say of it."""

    name: str
    fn: Fn
    args: Args
    mask: str
    scale: float | None
    heads: tuple[int | None, int | None]
    ref: Fn
    level: int
    count: int
    topic: str = ""


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float = 1.0, mask: Any = None) -> mx.array:
    """The meaning: the kernel itself, after the promotions that it leaves to its caller."""
    dtype = mx.result_type(q, k, v)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        mask = mask.astype(dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def S(
    name: str,
    fn: Fn,
    args: Args | None = None,
    *,
    scale: float | None = 1.0,
    mask: str = "none",
    m: Fn | None = None,
    ref: Fn | None = None,
    heads: tuple[int | None, int | None] | None = None,
    level: int = 1,
    count: int = 1,
) -> Spelling:
    """A line of the table.

    The reference is `ref(*args)`; without it the arguments are `q, k, v, *rest` as the kernel takes them, and
    `m(*rest)` is the kernel's mask (a bare `mask="causal"` needs none).
    """
    make = args or QKV
    if heads is None:
        q, k = make()[:2]
        heads = (q.shape[1], k.shape[1]) if ref is None else (None, None)

    def kernel(q: mx.array, k: mx.array, v: mx.array, *rest: mx.array) -> mx.array:
        assert scale is not None, "a traced scale needs a reference"
        array = m(*rest) if m else "causal" if mask == "causal" else None
        return attend(q, k, v, scale, array)

    return Spelling(name, fn, make, mask, scale, heads, ref or kernel, level, count)


def args(*specs: Spec, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Args:
    """Inputs: a shape is a normal array of `dtype`, a function makes its own array."""

    def make() -> tuple[mx.array, ...]:
        rng = np.random.default_rng(seed)
        return tuple(
            spec(rng) if callable(spec) else mx.array(rng.standard_normal(spec), dtype=mx.float32).astype(dtype)
            for spec in specs
        )

    return make


def keep(*shape: int) -> Spec:
    """A boolean mask, True where a key is seen; every row sees key 0, so no row is empty."""
    return lambda rng: mx.array(_keep(rng, shape))


def ints(*shape: int, dtype: mx.Dtype = mx.int32) -> Spec:
    """The same as ones and zeros."""
    return lambda rng: mx.array(_keep(rng, shape).astype(np.int32)).astype(dtype)


def fill(*shape: int, value: float = -INF, dtype: mx.Dtype = mx.float32) -> Spec:
    """The same as zeros and `value`, to be added."""
    return lambda rng: mx.array(np.where(_keep(rng, shape), 0.0, value).astype(np.float32)).astype(dtype)


def bias(*shape: int, dtype: mx.Dtype = mx.float32) -> Spec:
    """Any numbers, to be added."""
    return lambda rng: mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def num(value: float, *shape: int, dtype: mx.Dtype = mx.float32) -> Spec:
    """A number given at run time, as an array of `shape`."""
    return lambda rng: mx.full(shape, value, dtype=dtype)


def _keep(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True
    return mask


def const(*shape: int, seed: int = 9, scale: float = 0.3) -> mx.array:
    """A parameter of the program: a captured constant."""
    return mx.array((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def T(x: mx.array) -> mx.array:
    """The last two axes swapped."""
    return x.swapaxes(-1, -2)


def sm(x: mx.array) -> mx.array:
    """The usual softmax."""
    return mx.softmax(x, axis=-1)


def heads_first(x: mx.array) -> mx.array:
    """[B, T, H, D] to [B, H, T, D] and back."""
    return x.transpose(0, 2, 1, 3)


def split(x: mx.array, h: int) -> mx.array:
    """[B, T, H * D] to [B, H, T, D]."""
    return heads_first(x.reshape(*x.shape[:2], h, -1))


def merge(x: mx.array) -> mx.array:
    """[B, H, T, D] to [B, T, H * D]."""
    return heads_first(x).flatten(2)


def causal(rows: int, columns: int) -> mx.array:
    """The kernel's causal mask as booleans: aligned to the lower right."""
    return mx.array(np.tril(np.ones((rows, columns), dtype=bool), columns - rows))


def double(tree: Any) -> Any:
    """The floating point arrays of an argument list in float64."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(double(x) for x in tree)
    return tree.astype(mx.float64) if mx.issubdtype(tree.dtype, mx.floating) else tree


def leaves(tree: Any) -> list[mx.array]:
    """The arrays of an output."""
    return [leaf for _, leaf in tree_flatten([tree])]


def truth(ref: Fn, arguments: tuple[mx.array, ...]) -> list[np.ndarray[Any, Any]]:
    """The reference in float64, which MLX has on the CPU only."""
    with mx.stream(mx.cpu):
        return numpy(ref(*double(arguments)))


def numpy(tree: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of an output in numpy's float64."""
    with mx.stream(mx.cpu):
        return [np.array(x.astype(mx.float64)) for x in leaves(tree)]


def distance(got: list[np.ndarray[Any, Any]], want: list[np.ndarray[Any, Any]]) -> float:
    """The largest error, relative to the largest number wanted; NaN must meet NaN and infinity itself."""
    assert [x.shape for x in got] == [x.shape for x in want]
    worst = 0.0
    for x, y in zip(got, want, strict=True):
        finite = np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
            return INF
        if finite.any():
            worst = max(worst, float(np.abs(x - y)[finite].max()) / max(1.0, float(np.abs(y[finite]).max())))
    return worst


def check_regions(spelling: Spelling, regions: Sequence[Region]) -> None:
    """Each softmax is fused, into a call with the mask, scale and heads of the line."""
    assert [(r.verdict, r.reason) for r in regions] == [("fused", None)] * spelling.count
    query_heads, key_heads = spelling.heads
    for region in regions:
        assert region.mask in spelling.mask.split("|")
        # without a number the scale is traced: q is multiplied by it, or by all of it that is not constant
        assert spelling.scale is None or region.scale == pytest.approx(spelling.scale, rel=1e-3)
        assert query_heads is None or region.query_heads == query_heads
        assert key_heads is None or region.key_heads == key_heads


def check_answer(spelling: Spelling, arguments: tuple[mx.array, ...], output: Any) -> None:
    """The answer is as close to the reference as the program's own, or as rounding lets it be."""
    want = truth(spelling.ref, arguments)
    unfused = distance(numpy(spelling.fn(*arguments)), want)
    assert distance(numpy(output), want) <= max(4 * unfused, epsilon((arguments, output)))


def epsilon(tree: Any) -> float:
    """What rounding alone may do to an output of this type."""
    unit = {mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
    return max(unit.get(x.dtype, 2e-6) for x in leaves(tree))


Q, K, X = (2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 6, 8)
QKV = args(Q, K, K)
SELF = args(X, X, X)
