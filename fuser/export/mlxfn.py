"""Programs as exported MLX functions, with the fused calls in them: `mx.import_function` loads them, in C++ too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx

from fuser.errors import InvalidInputError, TraceError
from fuser.execute import Flat, runner
from fuser.export.files import replacing
from fuser.frontends import trees
from fuser.fusion import fuse_given
from fuser.ir.graph import Value
from fuser.ir.ops import OPAQUE
from fuser.model import Model
from fuser.optimized import Optimized, given_state, name_of, traced_call
from fuser.report import Report

Signature = tuple[tuple[tuple[int, ...], mx.Dtype], ...]


class MlxfnExporter:
    """Writes several signatures of one program to one file, as `mx.exporter` does, with its attentions fused.

        with MlxfnExporter(model, "model.mlxfn") as export:
            export(mx.zeros((1, 1), mx.int32))
            export(mx.zeros((1, 128), mx.int32))

    The file is written when the block ends; if it raises, what was there stays. With `force=False` a file that is
    there is an error.
    """

    def __init__(self, fn: Callable[..., Any], path: str | os.PathLike[str], *, force: bool = True) -> None:
        self._program = fn
        self._path, self._force = Path(path), force
        self._calls: list[tuple[list[mx.array], dict[str, mx.array], Report]] = []
        self._runs: dict[tuple[tuple[str, ...], Signature], Flat] = {}
        self._outputs: tuple[str, ...] = ()
        self._rows: dict[int, tuple[mx.array, mx.array]] = {}

    @property
    def reports(self) -> tuple[Report, ...]:
        """What was fused, for each signature."""
        return tuple(report for _, _, report in self._calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        """Add the signature of the call `fn(*args, **kwargs)`; what was fused in it.

        Arrays keep their place or keyword; those in lists, dictionaries and objects follow the positional ones, or
        are called `keyword.path`. All that is no array is fixed. Raises `TraceError` when the program cannot be
        traced, updates something in place, or draws random numbers: an exported function has no state.
        """
        fn, kwargs = _plain(self._program, kwargs)
        positional, _ = trees.flatten(args)
        named: dict[str, mx.array] = {}
        for key, value in kwargs.items():
            arrays, spec = trees.flatten(value)
            paths = [key] if isinstance(value, mx.array) else [f"{key}.{path}" for path in trees.names(spec)]
            named.update(zip(paths, arrays, strict=True))
        traced = traced_call(fn, args, kwargs)
        given = given_state(traced)
        fused = fuse_given(traced.graph, {node: slot.array for node, slot in given.items()}, name_of(fn))
        results, changes = traced.counts
        if changes or traced.mutated or traced.draws:
            what = "draws random numbers" if traced.draws else "updates arrays in place"
            raise TraceError(f"{name_of(fn)} {what}: an exported function has no state, give and take it as arrays")
        if not results:
            raise TraceError(f"{name_of(fn)} returns no array")
        outputs = tuple(trees.names(traced.results))
        if self._calls and outputs != self._outputs:
            raise InvalidInputError("the signatures give different outputs: export them to files of their own")
        self._outputs = outputs
        fused.graph.outputs = fused.graph.outputs[:results]
        fused.graph.prune()
        carried = [str(node.arguments[0]) for node in fused.graph.nodes if node.op == OPAQUE]
        if carried:
            raise TraceError(f"MLX cannot export {' and '.join(dict.fromkeys(carried))}: keep that out of the function")
        for node in fused.graph.nodes:
            if node.array is not None:
                fused.graph.redirect(Value(node), fused.graph.add_constant(self._in_rows(node.array)))
        fused.graph.prune()
        run, state = runner(fused.graph), [self._in_rows(slot.array) for slot in traced.places]
        count = traced.arguments
        if count != len(positional) + len(named):
            raise InvalidInputError("an array is given twice: give a copy of it")

        def with_state(inputs: Sequence[mx.array]) -> list[mx.array]:
            return run([*inputs, *state])

        names = tuple(sorted(named))
        signature = (names, _signature([*positional, *(named[name] for name in names)]))
        if signature in self._runs:
            raise InvalidInputError("this signature is in the file already")
        order = list(named)

        def by_name(inputs: Sequence[mx.array]) -> list[mx.array]:
            places = dict(zip(names, inputs[len(positional) :], strict=True))
            return with_state([*inputs[: len(positional)], *(places[name] for name in order)])

        self._runs[signature] = by_name
        self._calls.append((positional, named, fused.report))
        return fused.report

    def _in_rows(self, array: mx.array) -> mx.array:
        """`array`, row by row in memory: MLX writes the memory as it lies, whatever the strides are.

        The same for the same array, which the file then holds once for all signatures.
        """
        if id(array) not in self._rows:
            self._rows[id(array)] = array, mx.contiguous(array)
            mx.eval(self._rows[id(array)])
        return self._rows[id(array)][1]

    def __enter__(self) -> MlxfnExporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.write()

    def write(self) -> None:
        """Write the file."""
        if not self._calls:
            raise InvalidInputError("no signature to export: call the exporter with arguments first")

        def program(*args: mx.array, **kwargs: mx.array) -> list[mx.array]:
            inputs = [*args, *(kwargs[name] for name in sorted(kwargs))]
            return self._runs[(tuple(sorted(kwargs)), _signature(inputs))](inputs)

        with (
            replacing(self._path, force=self._force) as (draft,),
            mx.exporter(str(draft), program, metadata=self._metadata()) as export,
        ):
            for args, kwargs, _ in self._calls:
                export(*args, **kwargs)

    def _metadata(self) -> str:
        args, kwargs, _ = self._calls[0]
        return json.dumps(
            {
                "format": "mlx-fuser-function",
                "version": 1,
                "program": name_of(self._program),
                "positional": len(args),
                "keywords": list(kwargs),
                "outputs": list(self._outputs),
                "counts": [report.counts for report in self.reports],
                "signatures": [
                    {
                        "positional": [_typed(array) for array in args],
                        "keywords": {name: _typed(array) for name, array in kwargs.items()},
                        "regions": [region.to_dict() for region in report.regions],
                    }
                    for args, kwargs, report in self._calls
                ],
            }
        )


def _typed(array: mx.array) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype).rpartition(".")[2]}


def export_mlxfn(fn: Callable[..., Any], path: str | os.PathLike[str], /, *args: Any, **kwargs: Any) -> Report:
    """Write `fn` for the signature of the call `fn(*args, **kwargs)` to an `.mlxfn` file, its attentions fused.

    `mx.import_function(path)` loads it without fuser. An existing file is replaced once the new one is complete. For
    several signatures in one file, see `MlxfnExporter`. `fn` may be a model of `fuser.load_onnx`, whose inputs are
    keywords and whose outputs come in order.

    MLX exports the kernel's call as such on a GPU; on a CPU, where it has no kernel, it exports what the call is made
    of there. So export on the machine (or a machine of the kind) that the function is to run on.
    """
    with MlxfnExporter(fn, path) as export:
        return export(*args, **kwargs)


def _plain(fn: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    if isinstance(fn, Model):
        return fn.program, dict(fn.program.prepare(kwargs))
    return (fn.original if isinstance(fn, Optimized) else fn), kwargs


def _signature(arrays: Sequence[mx.array]) -> Signature:
    return tuple((tuple(array.shape), array.dtype) for array in arrays)
