"""What is said on stderr while a command is at work: the step it is at, and notes; nothing with `--quiet`."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

# seconds that a step may take without being shown
DELAY = 1.0


def note(text: str) -> None:
    """A line on stderr."""
    if not quiet():
        click.echo(text, err=True)


def quiet() -> bool:
    """Whether the command that is run was given `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.params.get("quiet"))


@contextlib.contextmanager
def step(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show `text` and the time it takes, once it takes over a second; on a terminal only.

    Gives a function to call after each of `total` parts; what is not counted shows a spinner.
    """
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if quiet() or not sys.stderr.isatty() or not console.is_interactive:
        yield lambda: None
        return
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn()]
    progress = Progress(*columns, Elapsed(), console=console, transient=True)
    task = progress.add_task(text, total=total)
    timer = threading.Timer(DELAY, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: progress.advance(task)
    finally:
        timer.cancel()
        timer.join()  # it may just be starting what is to be stopped
        progress.stop()
