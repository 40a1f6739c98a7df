"""The pass: find every attention of a graph, put the kernel in its place, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from fuser.ir.graph import KERNEL, Graph, Node
from fuser.ir.known import Known
from fuser.ir.types import TensorType
from fuser.kernels import sdpa
from fuser.patterns.attention import Attention, attention
from fuser.patterns.cursor import Miss, Program
from fuser.patterns.softmax import Softmax, softmaxes
from fuser.report import Region, Report
from fuser.rewrite import Rewriter

Found = tuple[Softmax, Attention | Miss]


@dataclass(frozen=True)
class Fused:
    """The rewritten graph, the report, and the inputs whose given values were relied on."""

    graph: Graph
    report: Report
    relied: frozenset[Node]


def fuse(graph: Graph, program: str = "") -> tuple[Graph, Report]:
    """Fuse every attention of `graph`; returns a new graph and the report. `graph` itself is not changed."""
    fused = fuse_given(graph, {}, program)
    return fused.graph, fused.report


def fuse_given(graph: Graph, given: Mapping[Node, mx.array], program: str = "") -> Fused:
    """`fuse`, where the values of some inputs may be relied on as long as the caller watches them."""
    start = time.perf_counter()
    found, relied = match(graph, given)
    matched = time.perf_counter()
    rewritten = graph.copy()
    rewriter = Rewriter(rewritten)
    entries = {node: _called(graph, node) for node in graph.nodes if node.op == KERNEL}
    for softmax, result in found:
        if isinstance(result, Miss):
            entries[softmax.node] = _missed(graph, softmax, result)
        else:
            call = rewriter.fuse(result)
            entries[softmax.node] = _fused(graph, result, [value.type for value in rewritten.operands(call.node)])
    rewritten.prune()
    seconds = {"match": matched - start, "rewrite": time.perf_counter() - matched}
    regions = tuple(entries[node] for node in graph.nodes if node in entries)
    return Fused(rewritten, Report(regions, program, (), len(graph), seconds), relied)


def match(graph: Graph, given: Mapping[Node, mx.array]) -> tuple[list[Found], frozenset[Node]]:
    """What every softmax of `graph` is, and the inputs whose given values that relies on."""
    program = Program(graph, Known(graph, given))
    found = [(softmax, _read(program, softmax)) for softmax in softmaxes(program)]
    return found, frozenset(program.known.relied)


def _read(program: Program, softmax: Softmax) -> Attention | Miss:
    try:
        region = attention(program, softmax)
    except Miss as miss:
        return miss
    reason = sdpa.refuses(region)
    return region if reason is None else Miss(reason, softmax.node)


def _fused(graph: Graph, region: Attention, types: Sequence[TensorType]) -> Region:
    node = region.softmax.node
    q, k, v = types[:3]
    return Region(
        "fused",
        None,
        graph.label(node),
        node.scope or graph.label(node),
        q,
        k,
        v,
        region.scale,
        region.mask.kind,
        region.heads[0],
        region.heads[1],
        sdpa.bytes_saved(region),
        sdpa.flops_saved(region),
    )


def _missed(graph: Graph, softmax: Softmax, miss: Miss) -> Region:
    node = softmax.node
    return Region(
        "refused" if miss.attention else "not attention",
        miss.reason,
        graph.label(miss.at),
        node.scope or graph.label(node),
    )


def _called(graph: Graph, node: Node) -> Region:
    q, k, v, *rest = (operand.type for operand in graph.operands(node))
    scale, causal, sinks = node.arguments[:3]
    array = rest[0] if len(rest) > sinks else None
    kind = "causal" if causal else "none" if array is None else "boolean" if array.dtype == mx.bool_ else "additive"
    return Region(
        "already fused",
        "the program calls the kernel itself",
        graph.label(node),
        node.scope or graph.label(node),
        q,
        k,
        v,
        float(scale),
        kind,
        q.shape[1],
        k.shape[1],
    )
