"""Random spellings: the choices that hypothesis draws, the program made of them, its answer by numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from tests.spellings_base import numpy

Array = Any  # either library's
Step = Callable[..., mx.array]


def T(x: Array) -> Array:
    return x.swapaxes(-1, -2)


NOISE: dict[str, Step] = {
    "cast to itself": lambda x: x.astype(x.dtype),
    "cast up and down": lambda x: x.astype(mx.float32).astype(x.dtype),
    "transposed twice": lambda x: T(T(x)),
    "permuted and back": lambda x: x.transpose(1, 0, 2, 3).transpose(1, 0, 2, 3),
    "flat and back": lambda x: x.reshape(-1, x.shape[-1]).reshape(x.shape),
    "merged and back": lambda x: x.reshape(-1, *x.shape[2:]).reshape(x.shape),
    "an axis more and less": lambda x: mx.squeeze(mx.expand_dims(x, 1), 1),
    "plus zero": lambda x: x + 0.0,
    "zero plus": lambda x: mx.zeros((1,), dtype=x.dtype) + x,
    "times one": lambda x: x * 1.0,
    "no gradient": mx.stop_gradient,
    "all of it": lambda x: x[:, :, :, :],
}


def exp(x: mx.array) -> mx.array:
    return mx.exp(x - x.max(axis=-1, keepdims=True))


def guarded(x: mx.array) -> mx.array:
    p = mx.softmax(x, axis=-1)
    return mx.where(mx.isnan(p), 0.0, p)


SOFTMAX: dict[str, Step] = {
    "plain": lambda x: mx.softmax(x, axis=-1),
    "axis 3": lambda x: mx.softmax(x, axis=3),
    "precise": lambda x: mx.softmax(x, axis=-1, precise=True),
    "in float": lambda x: mx.softmax(x.astype(mx.float32), axis=-1).astype(x.dtype),
    "decomposed": lambda x: (lambda e: e / e.sum(axis=-1, keepdims=True))(exp(x)),
    "times the reciprocal": lambda x: (lambda e: e * (1.0 / e.sum(-1, keepdims=True)))(exp(x)),
    "over rows": lambda x: T(mx.softmax(T(x), axis=-2)),
    "less the max": lambda x: mx.softmax(x - x.max(axis=-1, keepdims=True), axis=-1),
    "guarded": guarded,
}
SCORES: dict[str, Step] = {
    "matmul": lambda q, k: q @ T(k),
    "transpose of axes": lambda q, k: mx.matmul(q, k.transpose(0, 1, 3, 2)),
    "einsum": lambda q, k: mx.einsum("bhqd,bhkd->bhqk", q, k),
    "turned": lambda q, k: T(k @ T(q)),
}
OUTPUT: dict[str, Step] = {
    "matmul": lambda p, v: p @ v,
    "einsum": lambda p, v: mx.einsum("bhqk,bhkd->bhqd", p, v),
    "turned": lambda p, v: T(T(v) @ T(p)),
}
REPEAT: dict[str, Callable[[mx.array, int], mx.array]] = {
    "repeat": lambda x, n: mx.repeat(x, n, axis=1),
    "expand": lambda x, n: mx.broadcast_to(x[:, :, None], (*x.shape[:2], n, *x.shape[2:])).reshape(
        x.shape[0], -1, *x.shape[2:]
    ),
    "flatten": lambda x, n: mx.flatten(mx.repeat(x[:, :, None], n, axis=2), 1, 2),
}
CONSUMERS: dict[str, Callable[[Any, Array, Array], tuple[Array, ...]]] = {
    "alone": lambda xp, o, k: (o,),
    "twice": lambda xp, o, k: (o, o * 2),
    "and its square": lambda xp, o, k: (o + o * o,),
    "and its sum": lambda xp, o, k: (o, o.sum(-1)),
    "and the keys": lambda xp, o, k: (o, k),
    "merged": lambda xp, o, k: (o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1),),
}
PIECES = ("none", "none", "none", "keys", "values", "keys and values")
LAYOUTS = ("heads first", "sequence first", "flat", "merged", "keys turned")
SCALES = ("none", "right", "left", "divided", "on q", "on k", "on both", "in steps", "traced", "traced on q")
MASKS = (
    "none",
    "added",
    "added for each head",
    "added to keys",
    "two added",
    "where",
    "where finite",
    "where not",
    "causal where",
    "causal added",
    "causal by indices",
    "window",
    "zeros",
    "everything",
    "causal and keys",
)
BREAKS: dict[str, Step] = {
    "weights times numbers": lambda x, p, m: (x, p * m),
    "weights plus numbers": lambda x, p, m: (x, p + m),
    "weights squared": lambda x, p, m: (x, p * p),
    "weights clipped": lambda x, p, m: (x, mx.minimum(p, 0.3)),
    "weights reversed": lambda x, p, m: (x, p[..., ::-1]),
}
BREAKS_BEFORE: dict[str, Step] = {
    "softcap of shifted scores": lambda x, m: mx.tanh((x + m) / 2.0) * 2.0,
    "scores squared": lambda x, m: mx.square(x),
    "scores times numbers": lambda x, m: x * m,
    "scores of integers": lambda x, m: (x * 8).astype(mx.int32).astype(x.dtype),
    "keys rolled": lambda x, m: mx.roll(x, 1, axis=-1),
}
BREAKS_SOFTMAX: dict[str, Step] = {
    "over queries": lambda x: mx.softmax(x, axis=-2),
    "over heads": lambda x: mx.softmax(x, axis=1),
    "over queries and keys": lambda x: mx.softmax(x, axis=[-2, -1]),
    "twice": lambda x: mx.softmax(mx.softmax(x, axis=-1), axis=-1),
}


@dataclass(frozen=True)
class Plan:
    """The choices of one program."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int
    dtype: mx.Dtype
    layout: str
    scale: str
    late_scale: bool
    mask: str
    softmax: str
    scores: str
    output: str
    repeat: str
    consumer: str
    pieces: str
    noise: tuple[tuple[str, str], ...]
    broken: str
    seed: int


@st.composite
def plans(draw: st.DrawFn, broken: bool = False) -> Plan:
    low = 2 if broken else 1
    mask = draw(st.sampled_from(MASKS))
    layout = draw(st.sampled_from(LAYOUTS))
    queries = draw(st.integers(low, 6))
    places = st.sampled_from(("q", "k", "v", "scores", "weights", "out"))
    noise = st.tuples(places, st.sampled_from(sorted(NOISE)))
    breaks = sorted([*BREAKS, *BREAKS_BEFORE, *BREAKS_SOFTMAX])
    return Plan(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(low, 3)),
        groups=draw(st.sampled_from((1, 1, 2, 3))),
        queries=queries,
        # one key alone is no softmax: MLX drops sums over an axis of one, and a decomposed softmax with them
        keys=max(2, queries + draw(st.integers(0, 3)))
        if "causal" in mask or mask == "window"
        else draw(st.integers(2, 7)),
        width=draw(st.sampled_from((4, 8))),
        value_width=draw(st.sampled_from((4, 8))),
        dtype=draw(st.sampled_from((mx.float32, mx.float32, mx.float16, mx.bfloat16))),
        layout=layout,
        scale=draw(st.sampled_from(SCALES)),
        late_scale=draw(st.booleans()),
        mask=mask,
        softmax=draw(st.sampled_from(sorted(SOFTMAX))),
        scores=draw(st.sampled_from(sorted(SCORES))),
        output=draw(st.sampled_from(sorted(OUTPUT))),
        repeat=draw(st.sampled_from(sorted(REPEAT))),
        consumer=draw(st.sampled_from(sorted(CONSUMERS))),
        pieces=draw(st.sampled_from(PIECES)),
        noise=tuple(draw(st.lists(noise, max_size=3))),
        broken=draw(st.sampled_from(breaks)) if broken else "",
        seed=draw(st.integers(0, 2**16)),
    )


class Program:
    """A plan made into a function, its arguments, and its answer in float64 by numpy."""

    def __init__(self, plan: Plan) -> None:
        self.plan = p = plan
        self.rng = np.random.default_rng(p.seed)
        self.factor = 1 / math.sqrt(p.width)
        shapes = {
            "q": (p.batch, p.heads * p.groups, p.queries, p.width),
            "k": (p.batch, p.heads, p.keys, p.width),
            "v": (p.batch, p.heads, p.keys, p.value_width),
        }
        self.q, self.k, self.v = (self.normal(*shape) for shape in shapes.values())
        heads = p.heads * p.groups
        self.bias = {
            "added": self.normal(p.batch, 1, p.queries, p.keys),
            "added for each head": self.normal(heads, p.queries, p.keys),
            "added to keys": self.normal(p.batch, 1, 1, p.keys),
            "two added": self.normal(1, heads, p.queries, p.keys),
        }.get(p.mask, self.normal(1))
        seen = self.rng.random((p.batch, 1, 1, p.keys)) < 0.6
        seen[..., 0] = True
        self.seen = mx.array(seen)
        self.other = mx.abs(self.normal(p.queries, p.keys)) + 0.1

    def normal(self, *shape: int) -> mx.array:
        return mx.array(self.rng.standard_normal(shape).astype(np.float32)).astype(self.plan.dtype)

    def arguments(self) -> tuple[mx.array, ...]:
        q, k, v = self.q, self.k, self.v
        if self.plan.layout in ("sequence first", "flat"):
            q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        if self.plan.layout == "flat":
            q, k, v = (x.flatten(2) for x in (q, k, v))
        if self.plan.layout == "keys turned":
            k = T(k)
        factor = mx.array(self.factor, dtype=self.plan.dtype)
        return q, k, v, self.bias, self.seen, self.other, factor

    def noisy(self, place: str, x: mx.array) -> mx.array:
        for where, what in self.plan.noise:
            # a gradient that is stopped inside is not the kernel's
            inside = where in ("scores", "weights") and what == "no gradient"
            if where == place and not inside:
                x = NOISE[what](x)
        return x

    def masked(self, x: mx.array, bias: mx.array, seen: mx.array) -> mx.array:
        rows, columns = x.shape[-2:]
        i, j = mx.arange(columns - rows, columns)[:, None], mx.arange(columns)
        triangle = mx.tri(rows, columns, columns - rows, dtype=mx.bool_)
        match self.plan.mask:
            case "none":
                return x
            case "added" | "added for each head":
                return x + bias
            case "added to keys":
                return bias + x
            case "two added":
                return x + bias + mx.where(seen, 0.0, -mx.inf).astype(x.dtype)
            case "where":
                return mx.where(seen, x, -mx.inf)
            case "where finite":
                return mx.where(seen, x, -3e4)
            case "where not":
                return mx.where(mx.logical_not(seen), mx.array(-mx.inf, dtype=x.dtype), x)
            case "causal where":
                return mx.where(triangle, x, -mx.inf)
            case "causal added":
                return x + mx.triu(mx.full((rows, columns), -mx.inf, dtype=x.dtype), k=columns - rows + 1)
            case "causal by indices":
                return mx.where(i < j, -mx.inf, x)
            case "window":
                return mx.where(mx.logical_and(i >= j, i - j < 3), x, -mx.inf)
            case "zeros":
                return x + mx.zeros((rows, columns), dtype=x.dtype)
            case "everything":
                return mx.where(mx.ones((rows, columns), dtype=mx.bool_), x, -mx.inf)
            case _:
                return mx.where(mx.logical_and(triangle, seen), x, -mx.inf)

    def scaled(self, x: mx.array, factor: mx.array) -> mx.array:
        match self.plan.scale:
            case "right":
                return x * self.factor
            case "left":
                return self.factor * x
            case "divided":
                return x / math.sqrt(self.plan.width)
            case "in steps":
                return x * 0.5 * (2 * self.factor)
            case "traced":
                return x * factor
            case _:
                return x

    def late(self) -> bool:
        """Whether the scale follows the mask.

        A finite fill is not scaled, lest it stop to be one, nor any fill by a traced number, of any sign.
        """
        filled = self.plan.mask in (
            "where",
            "where not",
            "causal where",
            "causal by indices",
            "causal and keys",
        )
        filled = filled or self.plan.mask in ("causal added", "two added", "window", "everything")
        # a guard would also replace what a scale of the other sign made of minus infinity
        doubtful = filled or (self.plan.softmax == "guarded" and "added" in self.plan.mask)
        traced = self.plan.scale == "traced" and doubtful
        return self.plan.late_scale and self.plan.mask != "where finite" and not traced

    def run(self, q, k, v, bias, seen, other, factor):
        p = self.plan
        heads = p.heads * p.groups
        if p.layout == "flat":
            q = q.reshape(p.batch, -1, heads, p.width)
            k, v = (x.reshape(p.batch, p.keys, p.heads, -1) for x in (k, v))
        if p.layout in ("flat", "sequence first"):
            q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        if p.layout == "keys turned":
            k = T(k)
        keys = k
        q, k, v = self.noisy("q", q), self.noisy("k", k), self.noisy("v", v)
        if p.scale in ("on q", "on both", "traced on q"):
            q = q * {"on q": self.factor, "on both": math.sqrt(self.factor), "traced on q": factor}[p.scale]
        if p.groups > 1:
            k, v = REPEAT[p.repeat](k, p.groups), REPEAT[p.repeat](v, p.groups)
        if p.scale in ("on k", "on both"):
            k = k * (self.factor if p.scale == "on k" else math.sqrt(self.factor))
        if p.layout == "merged":
            q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
            x = (q @ T(k)).reshape(p.batch, heads, p.queries, p.keys)
        else:
            parts = [k[:, :, :2], k[:, :, 2:]] if "keys" in p.pieces and p.keys > 2 else [k]
            x = mx.concatenate([SCORES[p.scores](q, part) for part in parts], -1)
        x = x if self.late() else self.scaled(x, factor)
        if p.broken in BREAKS_BEFORE:
            x = BREAKS_BEFORE[p.broken](x, other)
        x = self.masked(self.noisy("scores", x), bias, seen)
        x = self.scaled(x, factor) if self.late() else x
        w = BREAKS_SOFTMAX[p.broken](x) if p.broken in BREAKS_SOFTMAX else SOFTMAX[p.softmax](x)
        if p.broken in BREAKS:
            x, w = BREAKS[p.broken](x, w, other)
        w = self.noisy("weights", w)
        if p.layout == "merged":
            o = (w.reshape(-1, *w.shape[2:]) @ v).reshape(p.batch, heads, p.queries, -1)
        elif "values" in p.pieces and p.keys > 2:
            o = OUTPUT[p.output](w[..., 2:], v[:, :, 2:]) + OUTPUT[p.output](w[..., :2], v[:, :, :2])
        else:
            o = OUTPUT[p.output](w, v)
        return CONSUMERS[p.consumer](mx, self.noisy("out", o), keys)

    def answer(self) -> list[np.ndarray[Any, Any]]:
        """The answer by numpy, in float64, from the meaning alone."""
        p = self.plan
        q, k, v, bias, seen = (numpy(x)[0] for x in (self.q, self.k, self.v, self.bias, self.seen.astype(mx.int32)))
        x = q @ np.repeat(k, p.groups, axis=1).swapaxes(-1, -2)
        factor = 1.0 if p.scale == "none" else self.factor
        late = self.late() and p.scale in ("right", "left", "divided", "in steps", "traced")
        x = x if late else x * factor
        i, j = np.arange(p.keys - p.queries, p.keys)[:, None], np.arange(p.keys)
        kept: Array = np.ones_like(x, dtype=bool)
        if p.mask in ("where", "where finite", "where not", "two added", "causal and keys"):
            kept = kept & (seen > 0)
        if "causal" in p.mask or p.mask == "window":
            kept = kept & (i >= j)
        if p.mask == "window":
            kept = kept & (i - j < 3)
        x = np.where(kept, x + bias if "added" in p.mask and "causal" not in p.mask else x, -np.inf)
        x = x * factor if late else x
        w = np.exp(x - x.max(-1, keepdims=True))
        o = (w / w.sum(-1, keepdims=True)) @ np.repeat(v, p.groups, axis=1)
        return list(CONSUMERS[p.consumer](np, o, k))
