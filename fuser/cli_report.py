"""Verifications and timings as people read them: the summary on top, then a line for each."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fuser.cli_measure import FUSED, NAIVE, Measured, ran_on
from fuser.report_table import summary
from fuser.report_text import amount, plural
from fuser.verification import Verification
from fuser.verification_checks import Check

# columns where stdout is a file or a pipe, which has no width
WIDTH = 120


def console() -> Console:
    """Where reports go: stdout, without colours where it is no terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an arrow that a locale lacks is no reason to fail
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)


def show_verification(console: Console, name: str, verification: Verification) -> None:
    """Print what `verify` found."""
    checks = (*verification.outputs, *verification.regions)
    wrong = [check for check in checks if not check.ok]
    outputs, regions = len(verification.outputs), len(verification.regions)
    what = f"{plural('output', outputs)} and {plural('fused attention', regions)}"
    console.print(Text(name, "bold"))
    if wrong:
        console.print(Text(f"{len(wrong)} of {what} DIFFER from the unfused program", "bold red"))
    else:
        console.print(Text(f"{what} agree with the unfused program", "bold green"))
    console.print()
    console.print(_checks(checks))


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("compared", overflow="fold")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in checks:
        verdict = Text("ok", "green") if check.ok else Text("DIFFERS", "bold red")
        table.add_row(Text(check.name), f"{check.error:.1e}", f"{check.tolerance:.0e}", verdict)
    return table


def show_measured(console: Console, measured: Measured) -> None:
    """Print what `bench` found."""
    console.print(Text(measured.program, "bold"))
    console.print(summary(measured.report))
    on = ran_on()
    repetitions = len(measured.runs[FUSED].seconds) if measured.runs else 0
    turns = f"; {plural('repetition', repetitions)}, taking turns" if repetitions else ""
    versions = f"MLX {on['mlx']}, fuser {on['fuser']}, Python {on['python']}"
    console.print(Text(f"on {on['device']} ({on['type']}), {on['system']}, {versions}{turns}", "dim"))
    for line in measured.notes:
        console.print(Text(f"note: {line}", "yellow"))
    for way, checks in measured.checks.items():
        wrong = [check for check in checks if not check.ok]
        if wrong:
            console.print(Text(f"{way}: {len(wrong)} of {plural('output', len(checks))} DIFFER", "bold red"))
            console.print(_checks(checks))
    if not measured.runs:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("median", "quartiles", "peak memory", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    naive = measured.runs[NAIVE].median
    for way, run in measured.runs.items():
        low, median, high = (amount(1000 * seconds, "") for seconds in run.quartiles)
        peak = "-" if run.peak is None else amount(run.peak, "B")
        speedup = f"{naive / run.median:.2f}x"
        table.add_row(way, f"{median}ms", f"{low}- {high}ms", peak, speedup, style="bold" if way == FUSED else "")
    console.print()
    console.print(table)
    against = (f"{ratio:.2f} times as fast as {way}" for way, ratio in measured.speedups.items())
    console.print(Text(f"\nfused is {', '.join(against)}"))
