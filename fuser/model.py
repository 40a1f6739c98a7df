"""An ONNX model as users hold it: arrays in by name, arrays out by name, its attentions fused."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx

from fuser.frontends.onnx import OnnxProgram, ValueInfo, load
from fuser.frontends.onnx_ops.registry import plain
from fuser.frontends.onnx_pieces import unpacked
from fuser.model_pieces import Pieces, Run, completed, joined
from fuser.report import Region, Report


class Model:
    """What `fuser.load_onnx` returns."""

    def __init__(self, program: OnnxProgram, *, fuse: bool = True) -> None:
        self.program = program
        """The model as a plain MLX callable, unfused."""
        self._fuse = fuse
        self._pieces = Pieces(program.parts(), fuse=fuse)
        self._last: Run | None = None

    @property
    def inputs(self) -> tuple[ValueInfo, ...]:
        """The inputs: `name`, `dtype`, and `shape`, in which a symbolic dimension is a string."""
        return self.program.inputs

    @property
    def outputs(self) -> tuple[ValueInfo, ...]:
        """The outputs, likewise."""
        return self.program.outputs

    @property
    def report(self) -> Report:
        """The report for the shapes that were last run; an empty one before the first call."""
        if self._last is None:
            return Report(program=self.program.name)
        report, *others = self._last.reports.values()
        if others or self._last.cuts:
            return joined(self._last, self.program)
        if not self._fuse:
            return report
        if report.regions or not report.notes:
            return completed(report, self.program)
        return self.untraced(report.notes[0])

    @property
    def traces(self) -> int:
        """How many traces the calls have made: one for each set of shapes, and for each piece of the model."""
        return self._pieces.traces

    def untraced(self, why: str) -> Report:
        """The report of a model that cannot be traced: what the file says of its softmaxes is all there is."""
        regions = tuple(Region("refused", why, name, name) for name in self.program.softmaxes())
        return Report(regions, self.program.name, (why,))

    def __call__(self, /, **inputs: Any) -> dict[str, mx.array]:
        """The outputs by name, for inputs by name: MLX or numpy arrays.

        Traced once for each set of shapes, and of flags that choose a branch. What only a run can decide runs on the
        host, between graphs. Raises `InvalidInputError` for a wrong name, shape or type.
        """
        run = Run()
        made = self._pieces.run(self.program.packed(self.program.arguments(inputs)), run)
        self._last = run
        return {info.name: plain(unpacked(made[info.name])) for info in self.outputs}

    def __repr__(self) -> str:
        return f"<Model {self.program.name}: {len(self.inputs)} inputs, {len(self.outputs)} outputs>"


def load_onnx(path: str | os.PathLike[str], *, fuse: bool = True) -> Model:
    """The ONNX model at `path` (opset 7 to 26) as an MLX program with its attentions fused.

    The result is called with arrays by input name and gives arrays by output name; `fuse=False` leaves it as it is.
    Raises `InvalidModelError` when the file is broken or no model, `UnsupportedOperatorError` with all operators that
    fuser does not have.
    """
    return Model(load(path), fuse=fuse)
