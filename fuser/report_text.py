"""Words and numbers of a report as people read them; the page, notebooks and terminals share them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuser.ir.types import TensorType
    from fuser.report import Region, Report

# what a table says of an attention besides its name
COLUMNS = ("heads", "lengths", "depth", "mask", "scale", "dtype", "kernel", "memory", "FLOPs")
# said in shape as well as in colour
MARKS = {"fused": "✓", "already fused": "●", "refused": "✕", "not attention": "·"}


def name_of(region: Region) -> str:
    """The region's name, and the line of the program where that does not say it already."""
    told = region.source is None or region.source in region.name
    return region.name if told else f"{region.name} ({region.source})"


def dtype_of(type: TensorType) -> str:
    """`float32`."""
    return str(type.dtype).rpartition(".")[2]


def shape_of(type: TensorType) -> str:
    """`2×8×16×64 float32`; a number without axes is a `scalar`."""
    return f"{'×'.join(map(str, type.shape)) or 'scalar'} {dtype_of(type)}"


def heads_of(region: Region) -> str:
    """Query heads, and onto how many key heads they are grouped: `8→2`."""
    if region.query_heads is None:
        return ""
    same = region.query_heads == region.key_heads
    return str(region.query_heads) if same else f"{region.query_heads}→{region.key_heads}"


def lengths_of(region: Region) -> str:
    """Queries by keys: `16×16`."""
    return "" if region.q is None or region.k is None else f"{region.q.shape[2]}×{region.k.shape[2]}"


def depth_of(region: Region) -> str:
    """The size of a head, and that of the values where it is another."""
    if region.q is None or region.v is None:
        return ""
    depth, width = region.q.shape[3], region.v.shape[3]
    return str(depth) if depth == width else f"{depth}, {width}"


def scale_of(region: Region) -> str:
    """The scale, or that it is computed."""
    return "" if region.q is None else "computed" if region.scale is None else f"{region.scale:.4g}"


def kernel_of(region: Region) -> str:
    """The kernel that is reached, in a word or two: `Metal, tiled`, `CPU, unfused`."""
    where_and_which = (region.kernel or "").split(", ")[:2]
    return re.split(r":| \(", ", ".join(where_and_which))[0]


def is_stepwise(region: Region) -> bool:
    """Whether MLX computes the call step by step on this machine, so that it saves nothing here."""
    return kernel_of(region).endswith("unfused")


def cells(region: Region) -> tuple[str, ...]:
    """A cell for each of `COLUMNS`; what only another machine would save is in parentheses."""
    saved = (amount(region.bytes_saved, "B"), amount(region.flops_saved, ""))
    memory, flops = (
        (f"(-{text.strip()})" if is_stepwise(region) else f"-{text.strip()}")
        if count
        else ("-" if region.verdict == "fused" else "")
        for text, count in zip(saved, (region.bytes_saved, region.flops_saved), strict=True)
    )
    return (
        heads_of(region),
        lengths_of(region),
        depth_of(region),
        region.mask or "",
        scale_of(region),
        "" if region.q is None else dtype_of(region.q),
        kernel_of(region),
        memory,
        flops,
    )


def amount(count: float, unit: str) -> str:
    """`1.08 GB`: a number of bytes or operations, to three digits."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} T{unit}"


def plural(noun: str, count: int) -> str:
    """The count, and the noun as it goes with it."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}es" if noun.endswith("x") else f"{count} {noun}s"


def summary_of(report: Report) -> str:
    """The report in a line."""
    counts = report.counts
    total = counts["fused"] + counts["refused"]
    if not report.regions:
        return "no softmax, so no attention"
    parts = [f"{counts['fused']} of {plural('attention', total)} fused" if total else "no attention to fuse"]
    if counts["already fused"]:
        parts.append(f"{counts['already fused']} already fused in the program")
    calls = [region for region in report.regions if region.verdict in ("fused", "already fused")]
    saving = [region for region in calls if not is_stepwise(region)]
    if len(saving) < len(calls):
        which = f"{len(calls) - len(saving)} of them" if saving else "them" if len(calls) > 1 else "it"
        parts[-1] += f" (on this machine MLX computes {which} step by step)"
    if counts["not attention"]:
        parts.append(plural("other softmax", counts["not attention"]))
    text = ", ".join(parts)
    saved = [
        f"{amount(count, unit)} less {verb}"
        for count, unit, verb in (
            (sum(region.bytes_saved for region in saving), "B", "memory written in each run"),
            (sum(region.flops_saved for region in saving), "FLOP", "computed"),
        )
        if count
    ]
    return f"{text}; {', '.join(saved)}" if saved else text
