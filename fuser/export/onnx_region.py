"""Regions of an ONNX model in ONNX's own terms, and what several traces say of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

Layout = tuple[tuple[str, ...], ...]
"""What each dimension of an ONNX value varies over: axes by role and number, none for a size of 1."""


@dataclass(frozen=True)
class Names:
    """An array as the ONNX values that hold it, seen from every side that the model has."""

    layouts: Mapping[str, Layout]
    dtype: mx.Dtype


@dataclass(frozen=True)
class MaskStep:
    """One mask, as `fuser.masks.mask.Mask` has it."""

    kind: str
    array: Names
    scale: float
    fill: float
    inverted: bool
    known: bool
    """Whether its value depends on shapes only."""
    low: float
    """No element is lower, scaled."""


@dataclass(frozen=True)
class ProductNames:
    """A product of queries and keys."""

    query: Names
    key: Names
    number: float
    factors: tuple[Names, ...]
    divisors: tuple[Names, ...]


@dataclass(frozen=True)
class Found:
    """A region in ONNX's terms, as one trace or all traces have it."""

    node: str
    """The softmax's node."""
    products: tuple[ProductNames, ...]
    values: tuple[Names, ...]
    outputs: tuple[Names, ...]
    numbers: tuple[float, ...]
    """What each output is multiplied with."""
    stepped: bool
    guarded: bool
    sink: bool
    roles: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int | None]
    """The sizes of axes; None where it is not the same in all traces."""
    steps: tuple[MaskStep, ...]
    kind: str
    empty: str | None
    square: bool
    """Whether there are as many queries as keys."""
    lengths: tuple[int, ...]
    """The largest number of queries or keys in each trace."""
    product: mx.Dtype
    """The type of the products of queries and keys."""
    softmax: mx.Dtype
    cap: float
    """The softcap: `cap * tanh(scores / cap)`; 0 for none."""


@dataclass(frozen=True)
class Traces:
    """What the traces found."""

    found: dict[str, Found]
    missed: dict[str, str]
    """Softmaxes by node that are not expressed, and why."""


def joined(left: Found, right: Found) -> Found | str:
    """What two traces agree on of one region; a sentence's beginning when they differ."""
    for what, one, two in (
        ("the attention has another structure", _structure(left), _structure(right)),
        ("the mask means something else", _meaning(left), _meaning(right)),
    ):
        if one != two:
            return what
    sizes = {name: size if right.sizes[name] == size else None for name, size in left.sizes.items()}
    return Found(
        left.node,
        tuple(
            ProductNames(
                _common(a.query, b.query),
                _common(a.key, b.key),
                a.number,
                tuple(map(_common, a.factors, b.factors)),
                tuple(map(_common, a.divisors, b.divisors)),
            )
            for a, b in zip(left.products, right.products, strict=True)
        ),
        tuple(map(_common, left.values, right.values)),
        tuple(map(_common, left.outputs, right.outputs)),
        left.numbers,
        left.stepped,
        left.guarded,
        left.sink,
        left.roles,
        sizes,
        tuple(
            MaskStep(a.kind, _common(a.array, b.array), a.scale, a.fill, a.inverted, a.known, min(a.low, b.low))
            for a, b in zip(left.steps, right.steps, strict=True)
        ),
        left.kind if left.kind == right.kind else "mixed",
        left.empty or right.empty,
        left.square and right.square,
        left.lengths + right.lengths,
        left.product,
        left.softmax,
        left.cap,
    )


def _structure(found: Found) -> object:
    return (
        [(p.number, len(p.factors), len(p.divisors), p.query.dtype, p.key.dtype) for p in found.products],
        [each.dtype for each in (*found.values, *found.outputs)],
        (found.numbers, found.stepped, found.guarded, found.sink, found.product, found.softmax, found.cap),
        (dict(found.roles), list(found.sizes)),
    )


def _meaning(found: Found) -> object:
    return [(s.kind, s.scale, s.fill, s.inverted, s.known, s.array.dtype) for s in found.steps]


def _common(left: Names, right: Names) -> Names:
    same = {name: layout for name, layout in left.layouts.items() if right.layouts.get(name) == layout}
    return Names(same, left.dtype)
