"""Inputs to trace an ONNX model with: several sets of sizes, so that what depends on a size shows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx

from fuser.frontends.onnx import ValueInfo
from fuser.frontends.onnx_types import FLOATS

# primes, so that no two dimensions and no products of them look alike; small, as tables of positions may be
PRIMES = ((3, 5, 2), (7, 11, 13), (11, 13, 17), (13, 17, 19), (17, 19, 23), (19, 23, 29), (23, 29, 31))
# exporters write a dimension that is the sum of others as such: `past_sequence_length + 1`
SUM = re.compile(r"\s*[\w.]+\s*(?:\+\s*[\w.]+\s*)+")
TRACES = 3
# for models whose tables are smaller still
SMALL = ((2, 3, 4), (5, 3, 7), (3, 4, 5), (4, 5, 2))
# for models that fold or pair what they are given
EVEN = ((4, 8, 12), (16, 24, 32), (20, 12, 28), (8, 16, 20))
# samples of a second of sound, rather than tokens
WAVEFORM = 641


def named(info: ValueInfo) -> list[str | int]:
    """The dimensions of an input; one without a name is called `input[axis]`."""
    return [f"{info.name}[{axis}]" if dim is None else dim for axis, dim in enumerate(info.shape or ())]


def symbols(inputs: Sequence[ValueInfo]) -> dict[str, list[tuple[str, int]]]:
    """Where each dimension that has no fixed size occurs: input and axis."""
    found: dict[str, list[tuple[str, int]]] = {}
    for info in inputs:
        for axis, dim in enumerate(named(info)):
            if isinstance(dim, str):
                found.setdefault(dim, []).append((info.name, axis))
    return found


def size_sets(inputs: Sequence[ValueInfo], base: Mapping[str, int] | None = None) -> Iterator[list[dict[str, int]]]:
    """Ways to choose sizes, the most telling first; each is one set of sizes for each trace.

    `base` are sizes that are known to work: with them, the first trace has these. No dimension that the model
    declares dynamic has one size in all traces: it would be taken for fixed.
    """
    places = symbols(inputs)
    base = base or {}
    sums = {name: _terms(name, places, inputs) for name in places}
    for primes, alike in itertools.product((PRIMES, SMALL, EVEN), (_itself, _by_place, _by_kind)):
        classes: dict[str, int] = {}
        for name in places:
            if not sums[name]:
                classes.setdefault(alike(name, places), len(classes))
        sets = []
        for trace in range(TRACES):
            sizes: dict[str, int] = {}
            for name in places:
                if not sums[name]:
                    size = primes[classes[alike(name, places)] % len(primes)][trace]
                    size = _scaled(name, size, places, inputs)
                    sizes[name] = base.get(name, size) if trace == 0 else size
            for name in places:
                if sums[name]:
                    sizes[name] = sum(int(t) if t.isdigit() else sizes.get(t, 0) for t in sums[name])
            sets.append(sizes)
        yield sets


def _scaled(name: str, size: int, places: Mapping[str, list[tuple[str, int]]], inputs: Sequence[ValueInfo]) -> int:
    """Images have sizes that patches divide, and sound has many samples."""
    if _is_image(name, places):
        return size * 16
    ranks = {info.name: len(info.shape or ()) for info in inputs if info.dtype in FLOATS}
    sound = all(axis == 1 and ranks.get(each) == 2 for each, axis in places[name])
    return size * WAVEFORM if sound and any(word in name.lower() for word in ("time", "sample", "audio")) else size


def _is_image(name: str, places: Mapping[str, list[tuple[str, int]]]) -> bool:
    low = name.lower()
    return any(word in low for word in ("height", "width", "pixel")) and any(axis > 1 for _, axis in places[name])


def _itself(name: str, places: Mapping[str, list[tuple[str, int]]]) -> str:
    return name


def _by_place(name: str, places: Mapping[str, list[tuple[str, int]]]) -> str:
    """Dimensions without names at the same place of their inputs are taken for one."""
    return f"[{places[name][0][1]}]" if "[" in name else name


def _by_kind(name: str, places: Mapping[str, list[tuple[str, int]]]) -> str:
    """All batches are one, and all other dimensions."""
    return "batch" if all(axis == 0 for _, axis in places[name]) else "other"


def _terms(name: str, places: Mapping[str, list[tuple[str, int]]], inputs: Sequence[ValueInfo]) -> list[str]:
    """What a dimension is the sum of, by its name: `a + b`, or a total of cached and new tokens."""
    spelled = name.replace("_plus_", " + ")
    if SUM.fullmatch(spelled):
        return [term.strip() for term in spelled.split("+")]
    if "total" not in name.lower():
        return []
    plain = [each for each in places if "total" not in each.lower() and not SUM.fullmatch(each)]
    past = [each for each in plain if "past" in each.lower()]
    new = [each for each in plain if each not in past and any(word in each.lower() for word in ("seq", "len", "tok"))]
    fixed = [
        str(info.shape[1])
        for info in inputs
        if "mask" not in info.name
        and info.shape is not None
        and len(info.shape) == 2
        and isinstance(info.shape[1], int)
    ]
    new += fixed
    return [past[0], new[0]] if past and new else []


def blanks(inputs: Sequence[ValueInfo], sizes: Mapping[str, int]) -> dict[str, mx.array]:
    """Inputs of these sizes; a trace does not read their values."""
    return {
        info.name: mx.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in named(info)], info.dtype)
        for info in inputs
    }
