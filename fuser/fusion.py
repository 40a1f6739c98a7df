"""The pass: find every attention of a graph, put the kernel in its place, and say what was done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import mlx.core as mx

from fuser.fusion_sums import Found, groups, whole
from fuser.ir.graph import KERNEL, Graph, Node
from fuser.ir.known import Known
from fuser.ir.ops import CUSTOM, OPAQUE
from fuser.ir.pause import uncollected
from fuser.kernels import own, sdpa
from fuser.kernels.cost import When
from fuser.patterns.attention import attention
from fuser.reading.program import Miss, Program
from fuser.reading.softmax import Softmax, softmaxes
from fuser.regions import Attention
from fuser.report import Anchors, Region, Report
from fuser.rewrite import Rewriter

log = logging.getLogger("fuser")


@dataclass(frozen=True)
class Fused:
    """The rewritten graph, the report, and the inputs whose given values were relied on."""

    graph: Graph
    report: Report
    relied: frozenset[Node]


def fuse(graph: Graph, program: str = "") -> tuple[Graph, Report]:
    """Fuse every attention of `graph`; returns a new graph and the report. `graph` itself is not changed."""
    fused = fuse_given(graph.copy(), {}, program)
    return fused.graph, fused.report


@uncollected()
def fuse_given(
    graph: Graph,
    given: Mapping[Node, mx.array],
    program: str = "",
    *,
    ours: bool = False,
    when: When = "always",
    refused: Mapping[Node, str] = MappingProxyType({}),
) -> Fused:
    """`fuse` in place, where the values of some inputs may be relied on as long as the caller watches them.

    `ours` lets our own kernel be called, for what MLX's cannot do: the graph is then one to be run, not to be exported.
    `when="profitable"` leaves alone what gains nothing by it on this machine. `refused` are softmaxes that are to be
    left alone, with the reason.
    """
    start = time.perf_counter()
    found, relied = match(graph, given, ours=ours, when=when)
    matched = time.perf_counter()
    count, order = len(graph), {node: place for place, node in enumerate(graph.nodes)}
    entries = {node: _called(graph, node) for node in order if node.op == KERNEL}
    if refused:
        found = whole(graph, [(s, Miss(refused[s.node], s.node) if s.node in refused else r) for s, r in found])
    entries |= {s.node: _missed(graph, s, result) for s, result in found if isinstance(result, Miss)}
    regions = {s.node: _fused(graph, result) for s, result in found if isinstance(result, Attention)}
    rewriter = Rewriter(graph, ours)
    for together in groups([result for _, result in found if isinstance(result, Attention)]):
        try:
            calls = rewriter.fuse(together)
        except Exception as error:
            # nothing has been redirected yet: the regions stay as they were
            log.exception("rewriting %s", regions[together[0].softmax.node].name)
            missed = {
                r.softmax.node: replace(regions[r.softmax.node], verdict="refused", reason=_ours(error))
                for r in together
            }
            entries |= missed
            continue
        for region, call in zip(together, calls, strict=True):
            entry = regions[region.softmax.node]
            q, k, v = (value.type for value in graph.operands(call.node)[:3])
            anchors = entry.anchors and replace(entry.anchors, call=call.node)
            kernel = own.kernel_of(graph, call.node)
            entries[region.softmax.node] = replace(entry, q=q, k=k, v=v, anchors=anchors, kernel=kernel)
    graph.prune()
    # weights that something else reads are written all the same
    kept = {node for node in graph.nodes if node in entries and entries[node].verdict == "fused"}
    entries |= {node: replace(entries[node], bytes_saved=0, flops_saved=0) for node in kept}
    seconds = {"match": matched - start, "rewrite": time.perf_counter() - matched}
    regions_in_order = tuple(entries[node] for node in sorted(entries, key=order.__getitem__))
    report = Report(regions_in_order, program, _unseen(order), count, seconds)
    for decision in report.regions:
        log.info("%s", decision)
    return Fused(graph, report, relied)


def _unseen(nodes: Iterable[Node]) -> tuple[str, ...]:
    """What the program computes where nobody can look: an attention may be in there."""
    pieces = [str(node.arguments[0]) for node in nodes if node.op == OPAQUE and node.arguments[0].name == CUSTOM]
    return tuple(f"{piece} has a gradient of its own and runs as it is: nothing inside is fused" for piece in pieces)


def match(
    graph: Graph, given: Mapping[Node, mx.array], *, ours: bool = False, when: When = "always"
) -> tuple[list[Found], frozenset[Node]]:
    """What every softmax of `graph` is, and the inputs whose given values that relies on."""
    program = Program(graph, Known(graph, given))
    found = [(softmax, _read(program, softmax, ours, when)) for softmax in softmaxes(program)]
    return whole(graph, found), frozenset(program.known.relied)


def _read(program: Program, softmax: Softmax, ours: bool, when: When) -> Attention | Miss:
    try:
        region = attention(program, softmax)
    except Miss as miss:
        return miss
    except Exception as error:
        # an optimiser that meets something unknown leaves it alone, and says so
        log.exception("reading %s", program.graph.label(softmax.node))
        return Miss(_ours(error), softmax.node)
    reason = sdpa.refuses(region, ours, when)
    return region if reason is None else Miss(reason, region.cap.at if region.cap else softmax.node)


def _ours(error: Exception) -> str:
    return f"fuser failed on it, which is a bug to report ({type(error).__name__}: {error})"


def _fused(graph: Graph, region: Attention) -> Region:
    node = region.softmax.node
    return Region(
        "fused",
        None,
        graph.label(node),
        node.scope or graph.label(node),
        scale=region.scale,
        mask=region.mask.kind,
        query_heads=region.heads[0],
        key_heads=region.heads[1],
        bytes_saved=sdpa.bytes_saved(region),
        flops_saved=sdpa.flops_saved(region),
        source=_source(graph, region.softmax),
        anchors=_anchors(region),
    )


def _source(graph: Graph, softmax: Softmax) -> str | None:
    """The line of the softmax; of one that is written out, that of the nearest step between scores and weights."""
    steps, seen = [softmax.node], set[Node]()
    for node in steps:
        if node.source:
            return node.source
        if node not in seen and node != softmax.scores.node and len(steps) < 40:
            seen.add(node)
            steps += [operand.node for operand in graph.operands(node)]
    return None


def _anchors(region: Attention) -> Anchors:
    first, weighted = region.products[0], region.products_with_values
    return Anchors(
        region.softmax.node,
        None,
        tuple(product.value.node for product in region.products),
        tuple(each.output.node for each in weighted),
        (("queries", first.query.value), ("keys", first.key.value), ("values", weighted[0].value.value)),
    )


def _missed(graph: Graph, softmax: Softmax, miss: Miss) -> Region:
    node = softmax.node
    return Region(
        "refused" if miss.attention else "not attention",
        miss.reason,
        graph.label(miss.at),
        node.scope or graph.label(node),
        source=_source(graph, softmax),
        anchors=Anchors(node, miss.at),
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
        source=node.source or None,
        anchors=Anchors(node, call=node),
        kernel=own.kernel_of(graph, node),
    )
