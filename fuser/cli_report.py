"""Reports and verifications as people read them: the summary on top, then a line for each softmax."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fuser.report import Region, Report
from fuser.verification import Check, Verification

# columns where stdout is a file or a pipe, which has no width
WIDTH = 120


def console() -> Console:
    """Where reports go: stdout, without colours where it is no terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an arrow that a locale lacks is no reason to fail
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)


def show_report(console: Console, report: Report) -> None:
    """Print a report."""
    by_verdict = {verdict: [r for r in report.regions if r.verdict == verdict] for verdict in report.counts}
    console.print(Text(report.program or "program", "bold"))
    console.print(summary(report))
    for note in report.notes:
        console.print(Text(f"note: {note}", "yellow"))
    for title, regions in (("Fused", by_verdict["fused"]), ("Already fused", by_verdict["already fused"])):
        if regions:
            console.print()
            table = _attentions(title, regions)
            wants = console.measure(table, options=console.options.update(max_width=1000)).maximum
            if wants <= console.width:
                console.print(table)
            else:
                _narrow(console, title, regions)
    if by_verdict["refused"]:
        console.print(Text("\nNot fused", "bold yellow"))
        for region in by_verdict["refused"]:
            console.print(Padding(Text(region.name, "bold"), (0, 0, 0, 2), expand=False))
            console.print(Padding(Text(region.reason or ""), (0, 0, 0, 4), expand=False))
            if region.at != region.name:
                console.print(Padding(Text(f"at {region.at}", "dim"), (0, 0, 0, 4), expand=False))
    if by_verdict["not attention"]:
        console.print(Text("\nOther softmaxes", "bold"))
        for region in by_verdict["not attention"]:
            console.print(Padding(Text(f"{region.name}: {region.reason}"), (0, 0, 0, 2), expand=False))


def summary(report: Report) -> Text:
    """The report in a line."""
    counts = report.counts
    attentions = counts["fused"] + counts["refused"]
    saved = sum(region.bytes_saved for region in report.regions)
    flops = sum(region.flops_saved for region in report.regions)
    if not report.regions:
        return Text("no softmax, so no attention")
    text = Text()
    if attentions:
        style = "bold green" if not counts["refused"] else "bold yellow"
        text.append(f"{counts['fused']} of {attentions} {plural('attention', attentions)} fused", style)
    else:
        text.append("no attention to fuse", "bold")
    if counts["already fused"]:
        text.append(f", {counts['already fused']} already fused in the program")
    if counts["not attention"]:
        text.append(f", {counts['not attention']} other {plural('softmax', counts['not attention'])}")
    if saved:
        text.append(f"; {bytes_of(saved)} less memory written in each run")
    if flops:
        text.append(f", {_scaled(flops, 'FLOP')} less computed")
    return text


def _attentions(title: str, regions: Sequence[Region]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("heads", "lengths", "depth"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mask", no_wrap=True)
    table.add_column("scale", justify="right", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("saved", justify="right", no_wrap=True)
    for region in regions:
        cells = (
            region.name,
            heads_of(region),
            *_sizes(region),
            region.mask or "",
            _scale(region),
            _dtype(region),
        )
        table.add_row(*map(Text, cells), Text(bytes_of(region.bytes_saved) if region.bytes_saved else "-"))
    return table


def _narrow(console: Console, title: str, regions: Sequence[Region]) -> None:
    """Two lines for each, where the names leave a table no room."""
    console.print(Text(title, "bold"))
    for region in regions:
        lengths, depth = _sizes(region)
        details = f"{heads_of(region)} heads, {lengths}, depth {depth}, mask {region.mask}, scale {_scale(region)}, "
        saved = f", -{bytes_of(region.bytes_saved)}" if region.bytes_saved else ""
        console.print(Padding(Text(region.name), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(details + _dtype(region) + saved, "dim"), (0, 0, 0, 4), expand=False))


def heads_of(region: Region) -> str:
    """Query heads, and onto how many key heads they are grouped."""
    if region.query_heads == region.key_heads:
        return str(region.query_heads)
    return f"{region.query_heads}→{region.key_heads}"


def _sizes(region: Region) -> tuple[str, str]:
    if region.q is None or region.k is None or region.v is None:
        return "", ""
    lengths = f"{region.q.shape[2]}×{region.k.shape[2]}"
    depth, width = region.q.shape[3], region.v.shape[3]
    return lengths, str(depth) if depth == width else f"{depth}, {width}"


def _scale(region: Region) -> str:
    return "computed" if region.scale is None else f"{region.scale:.4g}"


def _dtype(region: Region) -> str:
    return "" if region.q is None else str(region.q.dtype).rpartition(".")[2]


def show_verification(console: Console, name: str, verification: Verification) -> None:
    """Print what `verify` found."""
    checks = (*verification.outputs, *verification.regions)
    wrong = [check for check in checks if not check.ok]
    outputs, regions = len(verification.outputs), len(verification.regions)
    what = f"{outputs} {plural('output', outputs)} and {regions} fused {plural('attention', regions)}"
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


def plural(noun: str, count: int) -> str:
    """The noun as it goes with `count`."""
    return noun if count == 1 else f"{noun}es" if noun.endswith("x") else f"{noun}s"


def bytes_of(count: int) -> str:
    """A number of bytes, to three digits."""
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if count < 999.5 or prefix == "T":
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    raise AssertionError
