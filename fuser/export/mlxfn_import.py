"""Exported MLX functions as programs: those that fuser wrote, and those of `mx.export_function` and `mx.exporter`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx

from fuser.api import explain_with_graphs
from fuser.errors import InvalidInputError, InvalidModelError
from fuser.ir.graph import Graph
from fuser.ir.types import TensorType
from fuser.report import Region, Report

Types = dict[str, TensorType]
# numpy's own names for arrays that are saved without one
POSITIONAL = "arr_"
_FUNCTION = re.compile(r" *\d+\. Function with (\d+) positional inputs? and \d+ keyword")
_ARRAY = re.compile(r' +(?:(\d+)|"(.*)"): \(([\d,]*)\) (\w+)')


@dataclass(frozen=True)
class Imported:
    """An exported function, its arrays by keyword (those without a name are `arr_0`, ...), its results by name."""

    fn: Callable[..., dict[str, mx.array]]
    name: str
    signatures: tuple[Types, ...]
    """What it takes: one for each call that was exported."""
    written: tuple[tuple[Region, ...], ...] | None = None
    """What fuser found for each signature when it wrote the file; None: somebody else did."""

    @property
    def inputs(self) -> Types:
        """What the first signature takes."""
        return self.signatures[0]

    def explained(self, given: Mapping[str, mx.array] | None = None) -> tuple[Report, Graph, Graph]:
        """The report of all signatures, or of the one that takes `given`, and the graphs of the first."""
        if self.written is not None:
            return Report(tuple(_numbered(self.written)), self.name), Graph(), Graph()
        calls = [given] if given is not None else [_zeros(types) for types in self.signatures]
        found = []
        for call in calls:
            # its weights are loads from the file until it has run once, and MLX cannot trace those
            mx.eval(self.fn(**call))
            found.append(explain_with_graphs(self.fn, **call))
        report, before, after = found[0]
        regions = tuple(_numbered([each.regions for each, _, _ in found]))
        nodes = sum(each.nodes for each, _, _ in found)
        notes = dict.fromkeys(note for each, _, _ in found for note in each.notes)
        return replace(report, regions=regions, nodes=nodes, notes=tuple(notes)), before, after


def import_mlxfn(path: str | os.PathLike[str]) -> Imported:
    """The functions in an `.mlxfn` file, with all signatures that it holds.

    Raises `InvalidModelError` for a file that is no exported function.
    """
    name = os.fspath(path)
    try:
        imported: Any = mx.import_function(name, return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise InvalidModelError(f"{name!r} is no exported MLX function") from error
    function, text = imported
    kept = _kept(text)
    signatures = tuple(_signatures(function))
    if not signatures:
        raise InvalidModelError(f"{name!r} does not tell what it takes: call it with mx.import_function")
    outputs = kept.get("outputs")

    def call(**arrays: mx.array) -> dict[str, mx.array]:
        count = next(number for number in range(len(arrays) + 1) if f"{POSITIONAL}{number}" not in arrays)
        places = [f"{POSITIONAL}{number}" for number in range(count)]
        rest = {key: array for key, array in arrays.items() if key not in places}
        try:
            results = function(*(arrays[place] for place in places), **rest)
        except ValueError as error:
            if "No imported function found" not in str(error):
                raise
            taken = "; or ".join(", ".join(f"{key}: {type}" for key, type in each.items()) for each in signatures)
            raise InvalidInputError(f"the function was exported for other arrays: it takes {taken}") from error
        names = outputs or [f"output_{number}" for number in range(len(results))]
        return dict(zip(names, results, strict=True))

    written = None
    if "signatures" in kept:
        written = tuple(tuple(map(_region, entry["regions"])) for entry in kept["signatures"])
    return Imported(call, kept.get("program", name), signatures, written)


def _kept(text: str) -> dict[str, Any]:
    """What fuser has written about a file of its own."""
    try:
        kept = json.loads(text or "{}")
    except ValueError:
        return {}
    ours = isinstance(kept, dict) and kept.get("format") == "mlx-fuser-function"
    return kept if ours else {}


def _signatures(function: Callable[..., Any]) -> Iterator[Types]:
    """What an imported function takes. MLX lists that when it is called with something else."""
    try:
        function(**{"no function takes this": mx.zeros((0,))})
    except ValueError as error:
        text = str(error)
    else:
        return
    types: Types | None = None
    for line in text.partition("\nCalled with")[0].splitlines():
        if _FUNCTION.match(line):
            if types is not None:
                yield types
            types = {}
        elif types is not None and (found := _ARRAY.fullmatch(line)) is not None:
            place, key, shape, dtype = found.groups()
            sizes = tuple(int(size) for size in shape.split(",") if size)
            types[key if place is None else f"{POSITIONAL}{int(place) - 1}"] = TensorType(sizes, _dtype(dtype))
    if types is not None:
        yield types


def _numbered(found: tuple[tuple[Region, ...], ...] | list[tuple[Region, ...]]) -> Iterator[Region]:
    """The regions of all signatures; of several, their number leads the names."""
    for number, regions in enumerate(found, 1):
        for region in regions:
            yield replace(region, name=f"signature {number}: {region.name}") if len(found) > 1 else region


def _zeros(types: Types) -> dict[str, mx.array]:
    return {name: mx.zeros(type.shape, type.dtype) for name, type in types.items()}


def _dtype(name: str) -> mx.Dtype:
    found: mx.Dtype = mx.bool_ if name == "bool" else getattr(mx, name)
    return found


def _region(entry: dict[str, Any]) -> Region:
    known = {each.name for each in fields(Region)}
    types = {
        name: entry[name] and TensorType(tuple(entry[name]["shape"]), _dtype(entry[name]["dtype"])) for name in "qkv"
    }
    region = Region(**{name: value for name, value in (entry | types).items() if name in known})
    if region.verdict != "fused":
        return region
    return replace(region, verdict="already fused", reason="the file was written with the kernel's call in it")
