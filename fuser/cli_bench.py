"""The command line: `mlx-fuser bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fuser.cli_errors import Problem
from fuser.cli_files import check_writable, replacing
from fuser.cli_inputs import dimensions
from fuser.cli_measure import measure
from fuser.cli_options import ENDS, dims_option, inputs_option, model_argument, quiet_option, rtol_option, stdout_for_us
from fuser.cli_programs import program
from fuser.cli_progress import note, step
from fuser.cli_report import console, show_measured
from fuser.model import Model
from fuser.optimized import Optimized


@click.command(short_help="Time MODEL as it is, compiled and fused.", epilog=ENDS)
@model_argument
@dims_option
@inputs_option
@click.option("--repeat", type=click.IntRange(1), metavar="N", help="Repetitions; else as many as take some seconds.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the figures as JSON; - is stdout, and only that.")
@rtol_option
@quiet_option
@click.pass_context
def bench(
    context: click.Context,
    model: str,
    dims: tuple[str, ...],
    inputs: Path | None,
    repeat: int | None,
    json_to: str | None,
    rtol: float | None,
    quiet: bool,
) -> None:
    """Time MODEL as it is, under mx.compile, and fused.

    The answers are compared first: where the fused ones differ, nothing is timed. Then all are warmed up, and take
    turns in every repetition. Told are the median and the quartiles, the most memory that MLX held, and what it ran on.
    Without --inputs, an ONNX model gets inputs of its declared shapes.

    \b
    Examples:
      mlx-fuser bench model.onnx --dim batch=1 --dim seq=2048
      mlx-fuser bench model.onnx --inputs in.npz --repeat 100 --json bench.json
      mlx-fuser bench decoder:decode --inputs in.npz
    """
    if rtol is not None and not rtol >= 0:
        raise Problem(f"--rtol {rtol}: a tolerance is 0 or more")
    alone = json_to == "-"
    if json_to is not None and not alone:
        check_writable(Path(json_to))
    with stdout_for_us():
        with step(f"loading {model}"):
            target = program(model)
            args, kwargs = target.arguments(inputs, dimensions(dims))
        fn, kwargs = _plain(target.fn, kwargs)
        found = measure(model, fn, args, kwargs, repeat=repeat, rtol=rtol)
    text = json.dumps(found.to_dict(), indent=2)
    if alone:
        click.echo(text)
        for line in found.notes:
            note(f"note: {line}")
    else:
        if json_to is not None:
            with replacing(Path(json_to)) as file:
                file.write(f"{text}\n".encode())
        show_measured(console(), found)
    if not found.ok:
        context.exit(1)


def _plain(fn: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The program as it is, and its arguments ready: what is timed is the program, not the reading of inputs."""
    if isinstance(fn, Model):
        return fn.program, dict(fn.program.prepare(kwargs))
    return (fn.original if isinstance(fn, Optimized) else fn), kwargs
