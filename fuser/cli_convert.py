"""The command line: `mlx-fuser convert`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import click

from fuser.cli_errors import Problem
from fuser.cli_inputs import dimensions
from fuser.cli_options import ENDS, inputs_option, model_argument, quiet_option, stdout_for_us
from fuser.cli_programs import program
from fuser.cli_progress import note, step
from fuser.export.files import OutputError, check_new
from fuser.export.mlxfn import MlxfnExporter
from fuser.export.onnx import export_onnx
from fuser.export.python import export_python

KINDS = (".mlxfn", ".py", ".onnx")


@click.command(short_help="Write MODEL with its attentions fused to a file.", epilog=ENDS)
@model_argument
@click.argument("out", metavar="OUT.{mlxfn,py,onnx}", type=click.Path(path_type=Path))
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=SIZE",
    help="Size of a symbolic dimension; one again: another signature.",
)
@inputs_option
@click.option(
    "--opset", type=click.IntRange(7), metavar="N", help="For .onnx: the opset; 23, or the model's, if higher."
)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@quiet_option
def convert(
    model: str, out: Path, dims: tuple[str, ...], inputs: Path | None, opset: int | None, force: bool, quiet: bool
) -> None:
    """Write MODEL with its attentions fused to OUT, whose ending says as what.

    \b
    .mlxfn  an exported MLX function, for mx.import_function in Python and C++
    .py     a Python program of MLX layers, with its weights beside it in .safetensors
    .onnx   the ONNX model with each attention as one operator

    Several sizes of a dimension (--dim seq=1 --dim seq=128) give several signatures in one .mlxfn file.

    \b
    Examples:
      mlx-fuser convert model.onnx model.py
      mlx-fuser convert model.onnx fused.onnx --opset 23
      mlx-fuser convert model.onnx model.mlxfn --dim batch=1 --dim seq=1 --dim seq=128
    """
    kind = out.suffix.lower()
    if kind not in KINDS:
        raise Problem(f"'{out}' ends in {kind or 'nothing'}: convert writes {', '.join(KINDS)}")
    if opset is not None and kind != ".onnx":
        raise Problem("--opset is for .onnx files")
    try:
        check_new([out, out.with_suffix(".safetensors")] if kind == ".py" else [out], force=force)
    except OutputError as error:
        raise Problem(str(error).replace("use force", "use --force")) from None
    with stdout_for_us(), step(f"converting {model}"):
        if kind == ".onnx":
            _to_onnx(model, out, dims, inputs, opset, force)
        elif kind == ".mlxfn":
            _to_mlxfn(model, out, dims, inputs, force)
        else:
            _to_python(model, out, dims, inputs, force)


def _to_onnx(model: str, out: Path, dims: Sequence[str], inputs: Path | None, opset: int | None, force: bool) -> None:
    path = Path(model)
    if path.suffix != ".onnx":
        raise Problem(f"{model!r} is no .onnx file: only those are written as .onnx; write a function as .mlxfn")
    if not path.is_file():
        raise Problem(f"no such file: {model!r}")
    if inputs is not None:
        raise Problem(
            "--inputs is not for .onnx: dimensions stay dynamic (--dim gives sizes to look at the model with)"
        )
    done = export_onnx(path, out, opset=opset, sizes=dimensions(dims), force=force)
    for node, reason in done.kept:
        note(f"left: {node}: {reason}")
    already = f", {len(done.already)} fused already" if done.already else ""
    what = "" if done.fused else "; the model is unchanged"
    note(f"{out}: {len(done.fused)} attentions fused{already}, {len(done.kept)} left, opset {done.opset}{what}")


def _to_mlxfn(model: str, out: Path, dims: Sequence[str], inputs: Path | None, force: bool) -> None:
    target = program(model)
    with MlxfnExporter(target.fn, out, force=force) as export:
        for sizes in signatures(dims):
            args, kwargs = target.arguments(inputs, sizes)
            export(*args, **kwargs)
    for report in export.reports:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items() if count)
        note(f"{out}: {counts or 'no softmax'}")


def _to_python(model: str, out: Path, dims: Sequence[str], inputs: Path | None, force: bool) -> None:
    target = program(model)
    args, kwargs = target.arguments(inputs, dimensions(dims))
    note(f"{out}: {export_python(target.fn, out, *args, force=force, **kwargs)}")


def signatures(texts: Sequence[str]) -> list[dict[str, int]]:
    """All combinations of the sizes that `--dim` gives."""
    sizes: dict[str, list[int]] = {}
    for text in texts:
        for name, size in dimensions([text]).items():
            sizes.setdefault(name, [])
            if size not in sizes[name]:
                sizes[name].append(size)
    return [dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product(*sizes.values())]
