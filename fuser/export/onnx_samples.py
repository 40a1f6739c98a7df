"""Inputs to trace an ONNX model with: several sets of sizes, so that what depends on a size shows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx

from fuser.frontends.onnx import ValueInfo

# primes, so that no two dimensions and no products of them look alike; small, as tables of positions may be
PRIMES = ((3, 5, 2), (7, 11, 13), (11, 13, 17), (13, 17, 19), (17, 19, 23), (19, 23, 29), (23, 29, 31))
# exporters write a dimension that is the sum of others as such: `past_sequence_length + 1`
SUM = re.compile(r"\s*[\w.]+\s*(?:\+\s*[\w.]+\s*)+")
TRACES = 3
# for models whose tables are smaller still
SMALL = ((2, 3, 4), (5, 3, 7), (3, 4, 5), (4, 5, 2))


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

    `base` are sizes that are known to work: with them, the first trace has these.
    """
    places = symbols(inputs)
    base = base or {}
    for primes, alike in itertools.product((PRIMES, SMALL), (_itself, _by_place, _by_kind)):
        classes: dict[str, int] = {}
        for name in places:
            if not _terms(name, places):
                classes.setdefault(alike(name, places), len(classes))
        sets = []
        for trace in range(TRACES):
            sizes: dict[str, int] = {}
            for name in places:
                if not _terms(name, places):
                    size = primes[classes[alike(name, places)] % len(primes)][trace]
                    size = _scaled(name, size, places)
                    sizes[name] = base.get(name, size) if trace == 0 else size
            for name in places:
                terms = _terms(name, places)
                if terms:
                    sizes[name] = sum(int(term) if term.isdigit() else sizes.get(term, 0) for term in terms)
            sets.append(sizes)
        yield sets


def _scaled(name: str, size: int, places: Mapping[str, list[tuple[str, int]]]) -> int:
    """Images have sizes that patches divide."""
    return size * 16 if _is_image(name, places) else size


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


def _terms(name: str, places: Mapping[str, list[tuple[str, int]]]) -> list[str]:
    """What a dimension is the sum of, by its name: `a + b`, or a total of cached and new tokens."""
    if SUM.fullmatch(name):
        return [term.strip() for term in name.split("+")]
    if "total" not in name.lower():
        return []
    plain = [each for each in places if "total" not in each.lower() and not SUM.fullmatch(each)]
    past = [each for each in plain if "past" in each.lower()]
    new = [each for each in plain if each not in past and any(word in each.lower() for word in ("seq", "len", "tok"))]
    return [past[0], new[0]] if past and new else []


def blanks(inputs: Sequence[ValueInfo], sizes: Mapping[str, int]) -> dict[str, mx.array]:
    """Inputs of these sizes; a trace does not read their values."""
    return {
        info.name: mx.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in named(info)], info.dtype)
        for info in inputs
    }
