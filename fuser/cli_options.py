"""What the commands share: their options, and what their help ends with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

ENDS = """\b
Exit status:
  0    done
  1    the fused answers differ (verify, bench)
  2    wrong usage, or something wrong with MODEL, its inputs or a file: one line on stderr says what
  130  interrupted
  141  whoever read the output has left (as in "| head")
"""


def _files(context: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
    """MODEL may be a file: the shell completes those."""
    return [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", metavar="MODEL", shell_complete=_files)
dims_option = click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic dimension.")
inputs_option = click.option("--inputs", type=click.Path(path_type=Path), metavar="IN.npz", help="The inputs.")
rtol_option = click.option(
    "--rtol", type=float, metavar="RTOL", help="Tolerance, relative to the largest value; else by dtype."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr; errors only.")


@contextlib.contextmanager
def stdout_for_us() -> Iterator[None]:
    """What a program prints while it is loaded or run goes to stderr: stdout is for our answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
