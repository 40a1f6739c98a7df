"""The command line: `mlx-fuser report | run | verify | bench | convert`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from fuser.api import explain_with_graphs, optimize
from fuser.api import verify as verify_call
from fuser.cli_bench import bench
from fuser.cli_convert import convert
from fuser.cli_errors import Commands, Problem
from fuser.cli_files import check_writable, replacing, save
from fuser.cli_inputs import dimensions
from fuser.cli_options import ENDS, dims_option, inputs_option, model_argument, quiet_option, rtol_option, stdout_for_us
from fuser.cli_programs import Program, outputs, program
from fuser.cli_progress import note, step
from fuser.cli_report import console, show_verification
from fuser.model import Model
from fuser.page import page
from fuser.report_text import summary_of
from fuser.version import __version__

EXAMPLES = """\b
Examples:
  mlx-fuser report  model.onnx --dim batch=4 --dim seq=128
  mlx-fuser report  model.onnx --json report.json
  mlx-fuser run     model.onnx --inputs in.npz --outputs out.npz
  mlx-fuser verify  model.onnx
  mlx-fuser bench   model.onnx --dim batch=1 --dim seq=2048
  mlx-fuser convert model.onnx model.py
  mlx-fuser report  decoder:decode --inputs in.npz

MODEL is an .onnx file, an .mlxfn file, or module:function: a function of a Python module in the current folder or
installed.
An .npz file carries arrays under the names of the model's inputs or outputs, or of the function's parameters.
"""


@click.group(
    cls=Commands,
    epilog=f"{EXAMPLES}\n{ENDS}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="mlx-fuser %(version)s")
@click.option("--traceback", is_flag=True, help="Show Python's traceback of an error.")
def main(traceback: bool) -> None:
    """Find every attention in an MLX program or ONNX model, and put the fused kernel in its place."""


@main.command(epilog=ENDS)
@model_argument
@dims_option
@inputs_option
@click.option("--json", "json_to", metavar="FILE|-", help="Write the report as JSON; - is stdout, and only that.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as a page with each region drawn."
)
@quiet_option
def report(
    model: str, dims: tuple[str, ...], inputs: Path | None, json_to: str | None, html: Path | None, quiet: bool
) -> None:
    """Say of every softmax in MODEL whether it is fused, and why not.

    Without --inputs, an ONNX model gets inputs of its declared shapes.

    \b
    Examples:
      mlx-fuser report model.onnx --dim batch=4 --dim seq=128
      mlx-fuser report model.onnx --html report.html
      mlx-fuser report decoder:decode --inputs in.npz --json -
    """
    alone = json_to == "-"
    if json_to is not None and not alone:
        check_writable(Path(json_to))
    if html is not None:
        check_writable(html)
    with stdout_for_us():
        with step(f"loading {model}"):
            target = program(model)
            args, kwargs = target.arguments(inputs, dimensions(dims))
        with step(f"tracing {model}"):
            if target.imported is not None:
                found, before, after = target.imported.explained(kwargs if inputs is not None else None)
            else:
                found, before, after = explain_with_graphs(target.fn, *args, **kwargs)
        found = replace(found, program=model)
    if html is not None:
        with step(f"drawing {html}"):
            text = page(found, before, after)
        with replacing(html) as file:
            file.write(text.encode())
    if alone:
        click.echo(found.to_json())
        return
    if json_to is not None:
        with replacing(Path(json_to)) as file:
            file.write(f"{found.to_json()}\n".encode())
    console().print(found)


@main.command(epilog=ENDS)
@model_argument
@inputs_option
@click.option("--outputs", "to", type=click.Path(path_type=Path), metavar="OUT.npz", required=True, help="The outputs.")
@click.option("--no-fuse", is_flag=True, help="Run the program as it is.")
@quiet_option
def run(model: str, inputs: Path | None, to: Path, no_fuse: bool, quiet: bool) -> None:
    """Run MODEL, its attentions fused, and write its outputs.

    --inputs may be left out for a function that needs none.

    \b
    Examples:
      mlx-fuser run model.onnx --inputs in.npz --outputs out.npz
      mlx-fuser run decoder:decode --inputs in.npz --outputs out.npz --quiet
    """
    check_writable(to)
    with stdout_for_us():
        with step(f"loading {model}"):
            target = program(model, fuse=not no_fuse)
        if isinstance(target.fn, Model) and inputs is None and target.fn.inputs:
            raise click.UsageError("run needs --inputs IN.npz for an ONNX model")
        args, kwargs = target.arguments(inputs, {})
        fn: Any = target.fn if isinstance(target.fn, Model) else optimize(target.fn, fuse=not no_fuse)
        with step(f"running {model}"):
            results = outputs(fn(*args, **kwargs))
            mx.eval(results)
    save(to, results)
    for name, array in results.items():
        dtype = str(array.dtype).rpartition(".")[2]
        kept = " (saved as float32)" if array.dtype == mx.bfloat16 else ""
        note(f"{name}: {dtype}{list(array.shape)}{kept}")
    for line in fn.report.notes:
        note(f"note: {line}")
    if not no_fuse:
        note(summary_of(fn.report))


@main.command(short_help="Compare MODEL fused with MODEL unfused.", epilog=ENDS)
@model_argument
@dims_option
@inputs_option
@rtol_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all answers agree.")
@click.pass_context
def verify(
    context: click.Context, model: str, dims: tuple[str, ...], inputs: Path | None, rtol: float | None, quiet: bool
) -> None:
    """Run MODEL fused and unfused, and compare; exit status 1 when the answers differ.

    Compares each output, and each fused attention on the same inputs. Without --inputs, an ONNX model gets inputs
    of its declared shapes.

    \b
    Examples:
      mlx-fuser verify model.onnx --dim batch=1 --dim seq=512
      mlx-fuser verify decoder:decode --inputs in.npz --quiet || echo wrong
    """
    if rtol is not None and not rtol >= 0:
        raise Problem(f"--rtol {rtol}: a tolerance is 0 or more")
    with stdout_for_us():
        with step(f"loading {model}"):
            target: Program = program(model)
            args, kwargs = target.arguments(inputs, dimensions(dims))
        with step(f"verifying {model}"):
            found = verify_call(target.fn, *args, rtol=rtol, **kwargs)
    if not quiet or not found:
        show_verification(console(), model, found)
    if not found:
        context.exit(1)


main.add_command(bench)
main.add_command(convert)
