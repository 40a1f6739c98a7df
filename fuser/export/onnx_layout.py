"""Bring an ONNX value into another layout, with sizes that stay dynamic where they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from fuser.export.onnx_edit import Editor
from fuser.export.onnx_region import Layout, Names

INT64 = TensorProto.INT64
# from here on `Shape` takes a range
SHAPE_RANGE = 15


class Unexpressed(Exception):
    """A region that stays as it is, and why."""


class Layouts:
    """Makes values of wanted layouts for one region; what is made once serves again."""

    def __init__(
        self, editor: Editor, opset: int, memo: dict[tuple[Any, ...], str], sizes: Mapping[str, int | None]
    ) -> None:
        self._editor, self.opset, self._memo, self._sizes = editor, opset, memo, sizes
        self._sources: list[tuple[str, Layout]] = []
        self.place, self.stem = 0, ""
        self.alike: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Dimensions that have the size of others at every size."""

    def at(self, place: int, stem: str, sources: Iterable[Names]) -> None:
        """What is made from now on stands before the node at `place`; `sources` can tell the sizes of axes."""
        self.place, self.stem = place, stem
        self._sources = [
            (name, layout)
            for each in sources
            for name, layout in each.layouts.items()
            if self._editor.available(name, place)
        ]

    def size(self, axes: Sequence[str]) -> int | None:
        """The number of positions that axes span; None when it is dynamic."""
        sizes = [self._sizes[axis] for axis in axes]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def usable(self, names: Names) -> dict[str, Layout]:
        """The ONNX values that are there in time."""
        found = {n: layout for n, layout in names.layouts.items() if self._editor.available(n, self.place)}
        if not found:
            raise Unexpressed("an operand is no value of the model's own graph (it is inside of another operator)")
        return found

    def exact(self, names: Names, target: Layout) -> str | None:
        """The value that has the layout as it is."""
        return next((name for name, layout in self.usable(names).items() if layout == target), None)

    def laid(self, names: Names, target: Layout) -> str:
        """A value with the layout `target`, in as few nodes as it takes."""
        found = self.usable(names)
        name = min(found, key=lambda each: self.cost(found[each], target))
        return self.relay(name, found[name], target)

    def cost(self, source: Layout, target: Layout) -> int:
        """The number of nodes that it takes."""
        if source == target:
            return 0
        if permutation(source, target) is not None or flat(source) == [a for a in flat(target) if a in flat(source)]:
            return 1
        return 3 - any(len(dim) > 1 for dim in source) if len(source) == len(flat(source)) else 3

    def relay(self, name: str, source: Layout, target: Layout, output: str = "") -> str:
        """`name`, of layout `source`, with layout `target`; called `output`, if that is given."""
        if source == target and not output:
            return name
        own = flat(source)
        # axes are called alike in all regions: sizes, and where they are read, tell them apart
        sizes = tuple(self._sizes[axis] for axis in flat(target))
        read = [self._read(name, source, (a,)) for a in flat(target) if a not in own and self._sizes[a] is None]
        key = ("relay", name, source, target, sizes, tuple(read))
        if not output and key in self._memo:
            return self._memo[key]
        if set(own) - set(flat(target)):
            raise Unexpressed("an operand varies over more than the attention's axes")
        plan: list[Callable[[str, str], str]] = []
        missing = [axis for axis in flat(target) if axis not in own]
        wanted = target
        if missing:
            if any(set(dim) & set(missing) and set(dim) & set(own) for dim in target):
                wanted = tuple((axis,) for dim in target for axis in (dim or ("",)))
            full, wanted = wanted, tuple(tuple(a for a in dim if a in own) for dim in wanted)
        here = source
        order = permutation(here, wanted)
        if order is None and flat(here) != flat(wanted):
            alone = tuple((axis,) for axis in own)
            if here != alone:
                plan.append(self._reshape(here, alone))
            here = tuple((axis,) for axis in flat(wanted))
            order = [own.index(axis) for axis in flat(wanted)]
            plan.append(self._transpose(order))
            order = None
        elif order is not None and order != sorted(order):
            plan.append(self._transpose(order))
            here = tuple(here[place] for place in order)
        if here != wanted:
            plan.append(self._reshape(here, wanted))
        if missing:
            plan.append(self._expand(name, source, wanted, full))
            spread = tuple(tuple(axis for axis in dim if axis) for dim in full)
            if spread != target:
                plan.append(self._reshape(spread, target))
        if not plan:
            plan.append(lambda value, output: self.add("Identity", [value], "view", output))
        for step in plan[:-1]:
            name = step(name, "")
        made = plan[-1](name, output)
        if not output:
            self._memo[key] = made
        return made

    def add(self, op: str, inputs: Sequence[str], stem: str, output: str = "", **attributes: Any) -> str:
        """A new node of this region."""
        return self._editor.add(self.place, op, inputs, f"{self.stem}/{stem}", output, **attributes)

    def shared(self, op: str, inputs: Sequence[str], stem: str, **attributes: Any) -> str:
        """A new node that may serve other regions too."""
        key = (op, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._memo:
            self._memo[key] = self.add(op, inputs, stem, **attributes)
        return self._memo[key]

    def numbers(self, values: Sequence[int]) -> str:
        """A constant shape."""
        return self._editor.constant(np.asarray(values, np.int64), INT64, "attention_shape")

    def _transpose(self, order: Sequence[int]) -> Callable[[str, str], str]:
        return lambda value, output: self.add("Transpose", [value], "transpose", output, perm=list(order))

    def _reshape(self, source: Layout, target: Layout) -> Callable[[str, str], str]:
        def made(value: str, output: str) -> str:
            shape: list[int | None] = []
            for place, dim in enumerate(target):
                size = self.size(dim)
                if size is None and place < len(source) and source[place] == dim:
                    size = 0
                shape.append(size)
            unknown = [place for place, size in enumerate(shape) if size is None]
            parts: dict[int, str] = {}
            for place in unknown[:]:
                if len(unknown) > 1 and target[place] in source:
                    parts[place] = self._size_at(value, source.index(target[place]))
                    unknown.remove(place)
            if len(unknown) > 1:
                raise Unexpressed("two dynamic dimensions would have to be told apart in a reshape")
            sizes = [-1 if size is None else size for size in shape]
            return self.add("Reshape", [value, self._shape(sizes, parts)], "reshape", output)

        return made

    def _expand(self, origin: str, whole: Layout, source: Layout, target: Layout) -> Callable[[str, str], str]:
        def made(value: str, output: str) -> str:
            sizes, parts = [1] * len(target), {}
            for place, dim in enumerate(target):
                dim = tuple(axis for axis in dim if axis)
                if dim == source[place]:
                    continue
                size = self.size(dim)
                if size is not None:
                    sizes[place] = size
                    continue
                found = self._read(origin, whole, dim)
                if found is None:
                    raise Unexpressed("no value of the model has a dynamic dimension that a repeat would need")
                parts[place] = self._size_at(*found)
            return self.add("Expand", [value, self._shape(sizes, parts)], "expand", output)

        return made

    def _read(self, name: str, layout: Layout, dim: tuple[str, ...]) -> tuple[str, int] | None:
        """The value and the axis of it that have the dynamic size of `dim`: `name` itself, if it does."""
        for each in (dim, self.alike.get(dim)):
            if each is not None and each in layout:
                return name, layout.index(each)
        return next(((n, own.index(dim)) for n, own in self._sources if dim in own), None)

    def _size_at(self, value: str, axis: int) -> str:
        if self.opset >= SHAPE_RANGE:
            return self.shared("Shape", [value], "size", start=axis, end=axis + 1)
        whole = self.shared("Shape", [value], "shape")
        return self.shared("Gather", [whole, self.numbers([axis])], "size")

    def _shape(self, sizes: Sequence[int], parts: Mapping[int, str]) -> str:
        if not parts:
            return self.numbers(sizes)
        inputs: list[str] = []
        place = 0
        while place < len(sizes):
            if place in parts:
                inputs.append(parts[place])
                place += 1
                continue
            end = next((i for i in range(place, len(sizes)) if i in parts), len(sizes))
            inputs.append(self.numbers(sizes[place:end]))
            place = end
        return inputs[0] if len(inputs) == 1 else self.shared("Concat", inputs, "shape", axis=0)


def flat(layout: Layout) -> list[str]:
    """All axes, outermost first."""
    return [axis for dim in layout for axis in dim]


def permutation(source: Layout, target: Layout) -> list[int] | None:
    """The order in which a transpose takes the dimensions of `source` to give `target`; None when none does."""
    if len(source) != len(target):
        return None
    rest = [place for place, dim in enumerate(source) if not dim]
    order = []
    for dim in target:
        if dim:
            if dim not in source:
                return None
            order.append(source.index(dim))
        elif rest:
            order.append(rest.pop(0))
        else:
            return None
    return order
