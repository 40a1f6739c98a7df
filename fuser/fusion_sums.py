"""Weights of several softmaxes that are added before they meet the values: all are fused, or none.

`(a - 0.3 * b) @ v` is `a @ v - 0.3 * (b @ v)`: each softmax is an attention of its own with the same values, and what
the calls of the kernel give is added. Walks from the softmaxes go past the sum; here is seen
that nothing of it is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fuser.ir.graph import Graph, Node, Value
from fuser.reading.program import Miss
from fuser.reading.reasons import AFTER
from fuser.reading.softmax import Softmax
from fuser.regions import Attention

Found = tuple[Softmax, Attention | Miss]
Way = tuple[tuple[Node, int], ...]


def groups(regions: Sequence[Attention]) -> list[list[Attention]]:
    """`regions` with those together that have an output in common."""
    found: list[list[Attention]] = []
    for region in regions:
        outputs = _outputs(region) if any(each.sums for each in region.products_with_values) else set()
        alike = [group for group in found if any(outputs & _outputs(other) for other in group)]
        found = [group for group in found if group not in alike]
        found.append([*(each for group in alike for each in group), region])
    return found


def whole(graph: Graph, found: Sequence[Found]) -> list[Found]:
    """`found` without the attentions whose weights are added to something else than those of other attentions."""
    results = dict(found)
    while True:
        ways: dict[Value, list[Way]] = {}
        for result in results.values():
            for each in result.products_with_values if isinstance(result, Attention) else ():
                ways.setdefault(each.output, []).append(each.sums)
        broken = {output: ways[output] for output in ways if not _complete(ways[output])}
        left = [
            s for s, result in results.items() if isinstance(result, Attention) and broken.keys() & _outputs(result)
        ]
        if not left:
            return list(results.items())
        for softmax in left:
            results[softmax] = _miss(graph, results, softmax, broken)


def _outputs(region: Attention) -> set[Value]:
    return {each.output for each in region.products_with_values}


def _complete(ways: Sequence[Way]) -> bool:
    """Whether each operand of each sum, from the last one back, is the weights of one softmax or such a sum again."""
    if not any(ways):
        return len(ways) == 1
    sides = [[way[:-1] for way in ways if way and way[-1][1] == place] for place in (0, 1)]
    return all(ways) and len({way[-1][0] for way in ways}) == 1 and all(map(_complete, sides))


def _miss(graph: Graph, results: dict[Softmax, Attention | Miss], softmax: Softmax, broken: Collection[Value]) -> Miss:
    """Why the attention around `softmax`, one of those added up to the `broken` outputs, is left alone."""
    region = results[softmax]
    assert isinstance(region, Attention)
    each = next(each for each in region.products_with_values if each.output in broken)
    if not each.sums:
        return Miss("the weights are multiplied with themselves", each.output.node)
    for node, place in each.sums:
        other = graph.operands(node)[1 - place].node
        for found, result in results.items():
            if isinstance(result, Miss) and found.node in graph.behind(other, found.node):
                return Miss(
                    f"the weights are added to others whose attention is left alone: {result.reason}", result.at
                )
    return Miss(AFTER[each.sums[0][0].op], each.sums[0][0])
