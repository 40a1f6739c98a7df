"""The mask of a region as one ONNX value, and what the rows are given in which it hides every key.

Runtimes differ on such rows: ONNX Runtime's `Attention` gives zeros where all of a row is -inf, or as low as float32
goes; others give NaN or the mean. So the mask is kept away from its lowest numbers, and rows that are -inf throughout
get the model's own answer after the operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.export.onnx_causal import proved
from fuser.export.onnx_edit import Editor
from fuser.export.onnx_layout import Layouts, Unexpressed
from fuser.export.onnx_region import Found, Layout, MaskStep, Names
from fuser.frontends.onnx_types import number_of

# as low as a mask may go: no score survives the sum, and no kernel takes it for the lowest number that there is
LOWEST = {mx.float32: -1e30, mx.bfloat16: -1e30, mx.float64: -1e30, mx.float16: -6e4}

LARGEST = {mx.float32: 3.4028235e38, mx.bfloat16: 3.3895314e38, mx.float64: 1.7976931348623157e308, mx.float16: 65504}


@dataclass
class OnnxMask:
    """What goes into the operator, and what comes after it."""

    value: str = ""
    layout: Layout = ()
    causal: bool = False
    boolean: bool = False
    kept: str = ""
    """Rows that keep a key, as a boolean of the mask's layout with one key; empty when there are no others."""
    other: float = 0.0
    """What the other rows give."""


class Masks:
    """Builds the masks of regions; layers that share a mask share what is made of it."""

    def __init__(self, editor: Editor, layouts: Layouts, found: Found, dtype: mx.Dtype) -> None:
        self._editor, self._layouts, self._found, self._dtype = editor, layouts, found, dtype
        self._type = number_of(dtype)
        roles = found.roles
        self._cells: Layout = (roles["B"], roles["H"] + roles["G"], roles["Q"], roles["K"])

    def made(self, *, boolean: bool) -> OnnxMask:
        """The mask; `boolean` says that the operator takes one as it is."""
        found = self._found
        if not found.steps or (found.kind == "none" and proved(self._editor, found)):
            return OnnxMask()
        if found.kind == "causal" and found.square and proved(self._editor, found):
            return OnnxMask(causal=True)
        for step in found.steps:
            self._check(step)
        *outer, inner = found.steps
        # a mask of shapes alone of which no row is hidden at any traced size is passed on as it is
        sure = found.empty is None and all(step.known for step in found.steps)
        if not outer and inner.kind == "keep" and (inner.fill == -math.inf or sure):
            return self._boolean(inner, sure=sure, boolean=boolean)
        total, layout = self._total()
        floored = any(step.kind == "floor" for step in found.steps)
        if floored and found.guarded:
            raise Unexpressed("a floor below the masked scores meets a guard against NaN")
        kept = ""
        infinite = not sure and not floored and self._overflows()
        if infinite:
            largest = self._shared("ReduceMax", [total, *self._axes()], "largest", **self._axes_attribute())
            kept = self._shared("Greater", [largest, self._number(-math.inf)], "kept")
        filled = not outer and inner.kind == "keep" and inner.fill > -math.inf
        if floored or not (sure or filled):
            total = self._raised(total, whole=not infinite)
        return OnnxMask(total, layout, False, False, kept, 0.0 if found.guarded else math.nan)

    def _overflows(self) -> bool:
        """Whether the sum of the masks may be -inf somewhere: each, or all together, are as low."""
        low = 0.0
        for step in reversed(self._found.steps):
            low = low + step.low if step.kind == "add" else min(low, step.low)
        return not low >= -float(LARGEST[self._dtype])

    def _raised(self, total: str, *, whole: bool) -> str:
        """The mask without finite numbers so low that a kernel takes them for -inf; `whole`: there is no -inf in it."""
        raised = self._shared("Max", [total, self._number(LOWEST[self._dtype])], "raised")
        if whole or any(step.kind == "floor" for step in self._found.steps):
            return raised
        infinite = self._shared("Equal", [total, self._number(-math.inf)], "infinite")
        return self._where(infinite, total, raised)

    def _check(self, step: MaskStep) -> None:
        if step.kind == "scaled":
            raise Unexpressed("a mask is scaled by an array")
        if step.kind == "times":
            raise Unexpressed("the scores are multiplied by a mask")

    def _boolean(self, step: MaskStep, *, sure: bool, boolean: bool) -> OnnxMask:
        keep, layout = self._keep(step)
        kept = ""
        if not sure:
            as_number = self._shared("Cast", [keep], "keeps", to=self._type)
            largest = self._shared("ReduceMax", [as_number, *self._axes()], "largest", **self._axes_attribute())
            kept = self._shared("Cast", [largest], "kept", to=TensorProto.BOOL)
        other = 0.0 if self._found.guarded else math.nan
        if boolean:
            return OnnxMask(keep, layout, False, True, kept, other)
        low = self._number(LOWEST[self._dtype])
        return OnnxMask(self._where(keep, self._number(0.0), low), layout, False, False, kept, other)

    def _total(self) -> tuple[str, Layout]:
        """All masks as one that is added to the scores."""
        total, layout = "", cast("Layout", ())
        steps = self._found.steps
        for place in range(len(steps) - 1, -1, -1):
            step = steps[place]
            if step.kind == "floor":
                if not total:
                    raise Unexpressed("the scores have a floor before they are masked")
                continue
            if step.kind == "keep":
                keep, own = self._keep(step)
                later = any(each.kind == "add" for each in steps[:place])
                fill = step.fill if later or step.fill == -math.inf else LOWEST[self._dtype]
                part = self._where(keep, total or self._number(0.0), self._number(fill))
            else:
                part, own = self._placed(step.array)
                if step.array.dtype != self._dtype:
                    part = self._shared("Cast", [part], "mask", to=self._type)
                if step.scale != 1:
                    part = self._shared("Mul", [part, self._number(step.scale)], "mask")
                part = self._shared("Add", [total, part], "mask") if total else part
            total, layout = part, _broadcast(layout, own)
        return total, layout

    def _keep(self, step: MaskStep) -> tuple[str, Layout]:
        keep, layout = self._placed(step.array)
        if step.array.dtype != mx.bool_:
            keep = self._shared("Cast", [keep], "keep", to=TensorProto.BOOL)
        return (self._shared("Not", [keep], "keep") if step.inverted else keep), layout

    def _placed(self, names: Names) -> tuple[str, Layout]:
        """A mask in four dimensions or fewer, of which each is that of the scores or of size 1."""
        fitting = [
            (name, layout)
            for name, layout in self._layouts.usable(names).items()
            if len(layout) <= 4 and all(d in ((), c) for d, c in zip(layout[::-1], self._cells[::-1], strict=False))
        ]
        if fitting:
            return max(fitting, key=lambda each: len(each[1]))
        axes = {axis for layout in names.layouts.values() for dim in layout for axis in dim}
        target = tuple(cell if set(cell) & axes else () for cell in self._cells)
        return self._layouts.laid(names, target), target

    def full(self, mask: OnnxMask, *, rank: int = 0) -> str:
        """The mask with as many rows as there are queries, which ONNX Runtime asks for."""
        layout = ((),) * (rank - len(mask.layout)) + mask.layout
        value = self._layouts.relay(mask.value, mask.layout, layout)
        if len(layout) > 1 and layout[-2] == self._cells[-2] and layout[-1] == self._cells[-1]:
            return value
        target = (*layout[:-2], *self._cells[2:]) if len(layout) > 1 else self._cells[2:]
        return self._layouts.relay(value, layout, target)

    # -- small things ----------------------------------------------------------------------------------------------

    def _axes(self) -> list[str]:
        return [self._layouts.numbers([-1])] if self._layouts.opset >= 18 else []

    def _axes_attribute(self) -> dict[str, object]:
        return {"keepdims": 1} if self._layouts.opset >= 18 else {"keepdims": 1, "axes": [-1]}

    def _shared(self, op: str, inputs: list[str], stem: str, **attributes: object) -> str:
        return self._layouts.shared(op, inputs, stem, **attributes)

    def _where(self, keep: str, yes: str, no: str) -> str:
        return self._shared("Where", [keep, yes, no], "mask")

    def _number(self, number: float) -> str:
        return self._editor.constant(np.asarray(number, _numpy(self._dtype)), self._type, "attention_number")


def _numpy(dtype: mx.Dtype) -> Any:
    return {mx.float16: np.float16, mx.float64: np.float64}.get(dtype, np.float32)


def _broadcast(left: Layout, right: Layout) -> Layout:
    rank = max(len(left), len(right))
    pairs = zip(((),) * (rank - len(left)) + left, ((),) * (rank - len(right)) + right, strict=True)
    return tuple(one or two for one, two in pairs)
