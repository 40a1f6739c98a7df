"""The pass: find every attention of a graph, put the kernel in its place, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
    known = Known(graph, given)
    reader = Program(graph, known)
    found: list[tuple[Node, Softmax | None, Attention | Miss | None]] = [
        (node, None, None) for node in graph.nodes if node.op == KERNEL
    ]
    found += [(softmax.node, softmax, _read(reader, softmax)) for softmax in softmaxes(reader)]
    matched = time.perf_counter()
    rewritten = graph.copy()
    rewriter = Rewriter(rewritten)
    entries: dict[Node, Region] = {}
    for node, softmax, result in found:
        if softmax is None:
            entries[node] = _called(graph, node)
        elif isinstance(result, Attention):
            call = rewriter.fuse(result)
            entries[node] = _fused(graph, result, [operand.type for operand in rewritten.operands(call.node)])
        elif isinstance(result, Miss):
            entries[node] = _missed(graph, softmax, result)
    rewritten.prune()
    end = time.perf_counter()
    regions = tuple(entries[node] for node in graph.nodes if node in entries)
    seconds = {"match": matched - start, "rewrite": end - matched}
    return Fused(rewritten, Report(regions, program, (), len(graph), seconds), frozenset(known.relied))


def _read(program: Program, softmax: Softmax) -> Attention | Miss:
    try:
        region = attention(program, softmax)
    except Miss as miss:
        return miss
    reason = sdpa.refuses(region)
    return region if reason is None else Miss(reason, softmax.node)


def _fused(graph: Graph, region: Attention, types: list[TensorType]) -> Region:
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
        region.roles.query_heads,
        region.roles.key_heads,
        sdpa.bytes_saved(region),
        sdpa.flops_saved(region),
    )


def _missed(graph: Graph, softmax: Softmax, miss: Miss) -> Region:
    node = softmax.node
    verdict = "refused" if miss.attention else "not attention"
    return Region(verdict, miss.reason, graph.label(miss.at), node.scope or graph.label(node))  # type: ignore[arg-type]


def _called(graph: Graph, node: Node) -> Region:
    q, k, v, *rest = (operand.type for operand in graph.operands(node))
    causal, sinks = node.arguments[1], node.arguments[2]
    array = rest[0] if len(rest) > sinks else None
    kind = "causal" if causal else "none" if array is None else "boolean" if array.dtype == mx.bool_ else "additive"
    reason = "the program calls the kernel itself"
    heads = q.shape[1], k.shape[1]
    scale = float(node.arguments[0])
    return Region("already fused", reason, graph.label(node), node.scope or graph.label(node), q, k, v, scale, kind, *heads)
