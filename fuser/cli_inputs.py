"""Inputs made from the shapes that a model declares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.cli_errors import Problem
from fuser.cli_progress import note
from fuser.frontends.onnx import ValueInfo

# exporters write a dimension that is the sum of others as such: `past_sequence_length + 1`
SUM = re.compile(r"\s*(?:[A-Za-z_]\w*|\d+)\s*(?:\+\s*(?:[A-Za-z_]\w*|\d+)\s*)+")
INTEGERS = (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)
# ids below this are in any vocabulary
IDS = 10


def dimensions(texts: Sequence[str]) -> dict[str, int]:
    """The sizes that `--dim name=size` gives."""
    dims = {}
    for text in texts:
        name, equals, size = text.rpartition("=")
        if not equals or not name.strip() or not re.fullmatch(r"\s*\d+\s*", size):
            raise Problem(f"--dim {text!r}: write it as name=size, for example --dim batch=2")
        dims[name.strip()] = int(size)
    return dims


def made(inputs: Sequence[ValueInfo], dims: Mapping[str, int]) -> dict[str, mx.array]:
    """Inputs of the declared shapes and types, the same in every run; what was assumed is told on stderr."""
    for info in inputs:
        if info.shape is None:
            raise Problem(f"input {info.name!r} declares no shape: give --inputs")
    names = _symbols(inputs)
    for name in dims:
        if name not in names:
            has = f"it has {', '.join(names)}" if names else "all its dimensions are fixed"
            raise Problem(f"--dim {name}={dims[name]}: the model has no dimension {name!r}; {has}")
    sizes = _sizes(inputs, names, dims)
    assumed = [f"{name}={size}" for name, size in sizes.items() if name not in dims and name in names]
    if assumed:
        note(f"assumed {', '.join(assumed)} (set with --dim, or give --inputs)")
    random = np.random.default_rng(0)
    return {info.name: _made(info, _shape(info, sizes), random) for info in inputs}


def _named(info: ValueInfo) -> list[str | int]:
    """The dimensions of an input; one without a name is called `input[axis]`."""
    return [f"{info.name}[{axis}]" if dim is None else dim for axis, dim in enumerate(info.shape or ())]


def _symbols(inputs: Sequence[ValueInfo]) -> dict[str, list[tuple[int, int]]]:
    """Where each symbolic dimension occurs: axis, and rank of the input."""
    found: dict[str, list[tuple[int, int]]] = {}
    for info in inputs:
        dims = _named(info)
        for axis, dim in enumerate(dims):
            if isinstance(dim, str):
                found.setdefault(dim, []).append((axis, len(dims)))
    return found


def _sizes(
    inputs: Sequence[ValueInfo], names: Mapping[str, list[tuple[int, int]]], dims: Mapping[str, int]
) -> dict[str, int]:
    sizes = dict(dims)
    later = []
    for name, places in names.items():
        if SUM.fullmatch(name) or "total" in name.lower():
            later.append(name)
        else:
            sizes.setdefault(name, _usual(name, places))
    for name in later:
        terms = [term.strip() for term in name.split("+")] if SUM.fullmatch(name) else _parts(inputs, names)
        total = sum(int(term) if term.isdigit() else sizes.get(term, _usual(term, [])) for term in terms)
        sizes.setdefault(name, total)
    return sizes


def _parts(inputs: Sequence[ValueInfo], names: Mapping[str, Any]) -> list[str]:
    """What a total length is the sum of: the cached tokens and the new ones."""
    past = [name for name in names if "past" in name.lower() and not SUM.fullmatch(name)][:1]
    ids = [info for info in inputs if info.dtype in INTEGERS and "mask" not in info.name and len(info.shape or ()) == 2]
    return past + [str(dim) for info in ids[:1] for dim in _named(info)[1:]] or ["sequence"]


def _usual(name: str, places: Sequence[tuple[int, int]]) -> int:
    low = name.lower()
    if "batch" in low:
        return 2
    if "past" in low or "cache" in low:
        return 8
    if "channel" in low:
        return 3
    if "height" in low or "width" in low:
        return 32
    if low.endswith("]") and any(rank == 4 for _, rank in places):  # without a name: an image, most likely
        return (2, 3, 32, 32)[places[0][0]]
    long = any(word in low for word in ("seq", "len", "tok"))
    return 2 if places and not long and all(axis == 0 and rank > 1 for axis, rank in places) else 16


def _shape(info: ValueInfo, sizes: Mapping[str, int]) -> list[int]:
    return [sizes[dim] if isinstance(dim, str) else dim for dim in _named(info)]


def _made(info: ValueInfo, shape: list[int], random: np.random.Generator) -> mx.array:
    name = info.name.lower()
    if "mask" in name or info.dtype == mx.bool_:
        return mx.ones(shape, info.dtype)
    if info.dtype in INTEGERS:
        if "position" in name:
            return mx.broadcast_to(mx.arange(shape[-1] if shape else 1), shape).astype(info.dtype)
        if "type" in name or "segment" in name:  # two kinds at most: 0 is always one of them
            return mx.zeros(shape, info.dtype)
        return mx.array(random.integers(0, IDS, shape)).astype(info.dtype)
    return mx.array(random.standard_normal(shape).astype(np.float32)).astype(info.dtype)
