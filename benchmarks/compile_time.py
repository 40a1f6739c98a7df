"""What the pass costs: trace, match and rewrite of naive BERT-, Llama- and T5-like models, 12 and 48 layers.

    python benchmarks/compile_time.py [--profile]

The bare `mx.export_function` call, which any tracing needs, is measured beside it in the same process, by
turns; the pass is what comes on top of it.
"""

from __future__ import annotations

import cProfile
import gc
import math
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from rich import box
from rich.console import Console
from rich.table import Table

import fuser

HIDDEN, HEADS, KV_HEADS, LENGTH = 64, 8, 2, 16
WIDTH = HIDDEN // HEADS
SHALLOW, DEEP = 12, 48
RUNS = 7


# -- the models, attention spelled out -----------------------------------------------------------------------


def split(x: mx.array, heads: int) -> mx.array:
    return x.reshape(*x.shape[:2], heads, WIDTH).transpose(0, 2, 1, 3)


def merge(x: mx.array) -> mx.array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], HEADS * WIDTH)


class Projections(nn.Module):
    """Queries, keys, values and output."""

    def __init__(self, kv_heads: int = HEADS, bias: bool = True):
        super().__init__()
        self.q = nn.Linear(HIDDEN, HIDDEN, bias)
        self.k = nn.Linear(HIDDEN, kv_heads * WIDTH, bias)
        self.v = nn.Linear(HIDDEN, kv_heads * WIDTH, bias)
        self.o = nn.Linear(HIDDEN, HIDDEN, bias)


class BertLayer(Projections):
    """Post-norm layer with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        q, k, v = split(self.q(x), HEADS), split(self.k(x), HEADS), split(self.v(x), HEADS)
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH) + mask
        x = self.norm1(x + self.o(merge(mx.softmax(scores, axis=-1) @ v)))
        return self.norm2(x + self.down(nn.gelu(self.up(x))))


class Bert(nn.Module):
    """Encoder."""

    def __init__(self, layers: int):
        super().__init__()
        self.embed = nn.Embedding(128, HIDDEN)
        self.layers = [BertLayer() for _ in range(layers)]

    def __call__(self, ids: mx.array, keep: mx.array) -> mx.array:
        mask = (1.0 - keep[:, None, None].astype(mx.float32)) * -1e9
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class LlamaLayer(Projections):
    """Pre-norm layer with grouped queries and rotary positions."""

    def __init__(self) -> None:
        super().__init__(KV_HEADS, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.gate, self.up = nn.Linear(HIDDEN, 128, bias=False), nn.Linear(HIDDEN, 128, bias=False)
        self.down = nn.Linear(128, HIDDEN, bias=False)

    def __call__(self, x: mx.array, mask: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        y = self.norm1(x)
        q, k, v = split(self.q(y), HEADS), split(self.k(y), KV_HEADS), split(self.v(y), KV_HEADS)
        q, k = (
            each * cos + mx.concatenate([-each[..., WIDTH // 2 :], each[..., : WIDTH // 2]], -1) * sin
            for each in (q, k)
        )
        k, v = mx.repeat(k, HEADS // KV_HEADS, axis=1), mx.repeat(v, HEADS // KV_HEADS, axis=1)
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH) + mask
        x = x + self.o(merge(mx.softmax(scores, axis=-1) @ v))
        y = self.norm2(x)
        return x + self.down(nn.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Decoder."""

    def __init__(self, layers: int):
        super().__init__()
        self.embed = nn.Embedding(128, HIDDEN)
        self.layers = [LlamaLayer() for _ in range(layers)]

    def __call__(self, ids: mx.array) -> mx.array:
        length = ids.shape[1]
        mask = mx.triu(mx.full((length, length), -math.inf), k=1)
        angles = mx.arange(length)[:, None] * mx.exp(mx.arange(WIDTH // 2) * -1.0)[None]
        angles = mx.concatenate([angles, angles], -1)
        x, cos, sin = self.embed(ids), mx.cos(angles), mx.sin(angles)
        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        return self.embed.as_linear(x)


class T5Attention(Projections):
    """No scale; a bias of positions, or none."""

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.norm = nn.RMSNorm(HIDDEN)

    def __call__(self, x: mx.array, source: mx.array | None, bias: mx.array | None) -> mx.array:
        y = self.norm(x)
        source = y if source is None else source
        q, k, v = split(self.q(y), HEADS), split(self.k(source), HEADS), split(self.v(source), HEADS)
        scores = q @ k.transpose(0, 1, 3, 2)
        scores = scores if bias is None else scores + bias
        return x + self.o(merge(mx.softmax(scores, axis=-1) @ v))


class T5(nn.Module):
    """Encoder and decoder of half the layers each; a decoder's layer attends twice."""

    def __init__(self, layers: int):
        super().__init__()
        self.embed = nn.Embedding(128, HIDDEN)
        self.positions = nn.Embedding(32, HEADS)
        self.encoder = [T5Attention() for _ in range(layers // 2)]
        self.decoder = [(T5Attention(), T5Attention()) for _ in range(layers // 2)]
        self.feeds = [(nn.Linear(HIDDEN, 128, bias=False), nn.Linear(128, HIDDEN, bias=False)) for _ in range(layers)]

    def __call__(self, ids: mx.array, targets: mx.array) -> mx.array:
        place = mx.arange(ids.shape[1])
        away = mx.clip(place[None] - place[:, None] + 16, 0, 31)
        bias = self.positions(away).transpose(2, 0, 1)[None]
        causal = bias + mx.triu(mx.full(away.shape, -math.inf), k=1)
        x, y = self.embed(ids), self.embed(targets)
        feeds = iter(self.feeds)
        for attend in self.encoder:
            x = attend(x, None, bias)
            up, down = next(feeds)
            x = x + down(nn.relu(up(x)))
        for attend, cross in self.decoder:
            y = cross(attend(y, None, causal), x, None)
            up, down = next(feeds)
            y = y + down(nn.relu(up(y)))
        return y


def cases() -> dict[str, tuple[Callable[[int], Any], tuple[mx.array, ...]]]:
    ids, keep = mx.zeros((2, LENGTH), mx.int32), mx.ones((2, LENGTH), mx.int32)
    return {"BERT": (Bert, (ids, keep)), "Llama": (Llama, (ids,)), "T5": (T5, (ids, ids))}


# -- measuring -----------------------------------------------------------------------------------------------


def bare(model: nn.Module, args: tuple[mx.array, ...]) -> float:
    """Seconds of `mx.export_function` alone, with a callback that does nothing."""
    start = time.perf_counter()
    mx.export_function(lambda record: None, model, *args)
    return time.perf_counter() - start


def whole(model: nn.Module, args: tuple[mx.array, ...]) -> tuple[float, fuser.Report]:
    """Seconds of the pass as a user pays for it, and its report."""
    start = time.perf_counter()
    report = fuser.explain(model, *args)
    return time.perf_counter() - start, report


def measure(model: nn.Module, args: tuple[mx.array, ...]) -> dict[str, float]:
    """Medians of several runs, the bare export and the pass by turns."""
    mx.eval(model.parameters())
    rows: list[dict[str, float]] = []
    report = whole(model, args)[1]
    if report.counts["fused"] != len(report.regions):
        raise SystemExit(f"not all is fused, so the numbers mean little:\n{report}")
    for _ in range(RUNS):
        gc.collect()
        export = bare(model, args)
        total, report = whole(model, args)
        match, rewrite = report.seconds["match"], report.seconds["rewrite"]
        trace = total - match - rewrite - export
        rows.append({"export": export, "trace": trace, "match": match, "rewrite": rewrite, "pass": total - export})
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    best = min(row["pass"] for row in rows)
    return {**medians, "best": best, "nodes": report.nodes, "fused": report.counts["fused"]}


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    columns = (
        "model",
        "layers",
        "nodes",
        "fused",
        "export",
        "trace",
        "match",
        "rewrite",
        "pass",
        "µs a node",
    )
    for column in (*columns, f"{DEEP} to {SHALLOW}"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, (build, args) in cases().items():
        found = {layers: measure(build(layers), args) for layers in (SHALLOW, DEEP)}
        for layers, row in found.items():
            times = (f"{row[step]:.3f} s" for step in ("export", "trace", "match", "rewrite", "pass"))
            per_node = (f"{1e6 * row[which] / row['nodes']:.1f}" for which in ("pass", "best"))
            ratio = f"{row['pass'] / found[SHALLOW]['pass']:.1f}" if layers == DEEP else ""
            table.add_row(name, str(layers), f"{row['nodes']:.0f}", f"{row['fused']:.0f}", *times, *per_node, ratio)
    console.print(table)
    console.print(
        f"medians of {RUNS} runs; export: the bare mx.export_function; trace: what the tracer adds to it; "
        "pass: trace + match + rewrite; at best: the fastest run, for a machine that is busy",
        style="dim",
    )
    if "--profile" in sys.argv[1:]:
        for build, args in cases().values():
            model = build(DEEP)
            mx.eval(model.parameters())
            profile = cProfile.Profile()
            profile.runcall(fuser.explain, model, *args)
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
