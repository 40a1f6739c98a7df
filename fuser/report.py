"""The report: every softmax of a program with its verdict, and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from fuser.ir.graph import Node, Value
from fuser.ir.types import TensorType
from fuser.report_remedies import remedy
from fuser.report_text import name_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Verdict = Literal["fused", "already fused", "refused", "not attention"]
VERDICTS: tuple[Verdict, ...] = ("fused", "already fused", "refused", "not attention")


@dataclass(frozen=True)
class Anchors:
    """Where a region lies in the traced graph, and in the fused one: what a drawing of it starts from."""

    softmax: Node
    stop: Node | None = None
    """Where matching stopped."""
    products: tuple[Node, ...] = ()
    """The products of queries and keys."""
    outputs: tuple[Node, ...] = ()
    """The products with the values."""
    operands: tuple[tuple[str, Value], ...] = ()
    """The queries, keys and values, as far back as they were seen through."""
    call: Node | None = None
    """The kernel's call in the fused graph."""


@dataclass(frozen=True, repr=False)
class Region:
    """One softmax of the program and what became of it."""

    verdict: Verdict
    reason: str | None
    """Why it was not fused, in a sentence; None when it was."""
    at: str
    """The node at which matching stopped; for a fused region, its softmax."""
    name: str
    """The module's path or the ONNX node's name."""
    q: TensorType | None = None
    """Queries as the kernel takes them, `[B, N_q, T_q, D]`; None unless it is attention."""
    k: TensorType | None = None
    """Keys, `[B, N_kv, T_kv, D]`."""
    v: TensorType | None = None
    """Values, `[B, N_kv, T_kv, D_v]`."""
    scale: float | None = None
    """The scale, when it is one number; a traced scale multiplies the queries and is None here."""
    mask: str | None = None
    """`none`, `causal`, `boolean` or `additive`."""
    query_heads: int | None = None
    key_heads: int | None = None
    bytes_saved: int = 0
    """Bytes no longer written to memory: scores, weights, repeated keys and values."""
    flops_saved: int = 0
    """Floating-point operations no longer done."""
    kernel: str | None = None
    """The kernel that the call reaches on the machine it runs on, or why MLX computes it unfused; None unless fused."""
    source: str | None = None
    """The line of the program where the softmax is, as `file.py:12`; None where it is not known."""
    error: float | None = None
    """How far the fused answer was from the unfused one, of the largest value, where the two were compared."""
    anchors: Anchors | None = field(default=None, compare=False, repr=False)
    """Its nodes, for `fuser.page`; no part of the JSON."""

    @property
    def remedy(self) -> str | None:
        """What to change so that it can be fused; None unless it was refused."""
        return remedy(self.reason) if self.verdict == "refused" and self.reason else None

    def to_dict(self) -> dict[str, Any]:
        """The region as JSON types; arrays as `{"shape": [...], "dtype": "float32"}`."""
        entry = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "anchors"}
        entry["remedy"] = self.remedy
        entry["error"] = self.error if self.error is not None and math.isfinite(self.error) else None
        for name in ("q", "k", "v"):
            type = getattr(self, name)
            entry[name] = type and {"shape": list(type.shape), "dtype": str(type.dtype).rpartition(".")[2]}
        return entry

    def __str__(self) -> str:
        why = self.reason if self.remedy is None else f"{self.reason} -> {self.remedy}"
        if self.q is None or self.k is None:
            return f"{self.verdict}: {name_of(self)} at {self.at}: {why}"
        heads = f"{self.query_heads}" if self.query_heads == self.key_heads else f"{self.query_heads}->{self.key_heads}"
        scale = "traced" if self.scale is None else f"{self.scale:.6g}"
        line = (
            f"{self.verdict}: {name_of(self)} heads {heads}, {self.q.shape[2]}x{self.k.shape[2]}, D {self.q.shape[3]}"
        )
        line += f", mask {self.mask}, scale {scale}, {str(self.q.dtype).rpartition('.')[2]}"
        return line if why is None else f"{line}: {why}"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Report:
    """What was found in a program: one region for each softmax, in the program's order."""

    regions: tuple[Region, ...] = ()
    program: str = ""
    """What was looked at: a function's, module's or file's name."""
    notes: tuple[str, ...] = ()
    """What else is to be known: why the program was not traced, say, and the original was run."""
    nodes: int = 0
    """Nodes of the traced graph."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What the steps took: `trace`, `match`, `rewrite`."""

    @property
    def counts(self) -> dict[str, int]:
        """How many regions have each verdict; all verdicts are there."""
        found = Counter(region.verdict for region in self.regions)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, in the format `mlx-fuser-report` version 1."""
        return {
            "format": "mlx-fuser-report",
            "version": 1,
            "program": self.program,
            "counts": self.counts,
            "notes": list(self.notes),
            "regions": [region.to_dict() for region in self.regions],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items() if count)
        head = f"{self.program or 'program'}: {counts or 'no softmax'}"
        return "\n".join([head, *(f"  {note}" for note in self.notes), *(f"  {region}" for region in self.regions)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        from fuser.report_show import html_of

        return html_of(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table, for `rich.print` and terminals."""
        from fuser.report_table import rendered

        yield from rendered(self, console, options)
