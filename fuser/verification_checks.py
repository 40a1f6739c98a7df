"""Answers beside each other: how far they differ, and each region of a graph beside its unfused form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from fuser.execute import runner
from fuser.fusion import match
from fuser.fusion_sums import groups
from fuser.ir.graph import Graph, Node
from fuser.kernels.cost import When
from fuser.regions import Attention, Weighted
from fuser.report import Region, Report
from fuser.rewrite import Rewriter
from fuser.segments import segmented

# of the largest value; what the kernel's order of summation may change
TOLERANCES = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 4e-2, mx.float64: 1e-6}


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference, relative to the largest finite value of the unfused answer."""

    name: str
    error: float
    """Infinite where one answer is NaN or infinite and the other is not."""
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the answers agree."""
        return self.error <= self.tolerance

    @property
    def reason(self) -> str:
        """Why a region that differs is left alone."""
        return f"its answer differs from the unfused one by {self.error:.2g} of the largest value when verified"

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'DIFFERS'}: {self.name}: {self.error:.2e} (tolerance {self.tolerance:.0e})"


def region_checks(
    graph: Graph,
    given: Mapping[Node, mx.array],
    inputs: Sequence[mx.array],
    when: When = "always",
    rtol: float | None = None,
) -> dict[Node, Check]:
    """Each region that would be fused beside its unfused form, on the same inputs; by its softmax."""
    both = graph.copy()
    rewriter = Rewriter(both, ours=True)
    found = [result for _, result in match(graph, given, ours=True, when=when)[0] if isinstance(result, Attention)]
    made = {old: new for together in groups(found) for old, new in rewriter.replacements(together)[1].items()}
    pairs = [(region, weighted) for region in found for weighted in region.products_with_values]
    values = [(weighted.output, made[weighted.output]) for _, weighted in pairs]
    both.outputs = [value for pair in values for value in pair]
    both.prune()
    # our own kernel runs as it does in a program
    arrays = (segmented(both) or runner(both))(inputs)
    nodes = [region.softmax.node for region, _ in pairs]
    worst: dict[Node, Check] = {}
    compared = checks([node.scope or graph.label(node) for node in nodes], arrays[::2], arrays[1::2], rtol)
    for (region, weighted), node, check in zip(pairs, nodes, compared, strict=True):
        if rtol is None:
            # weights that the program rounds on the way are not rounded in the kernel
            check = replace(check, tolerance=max(check.tolerance, _rounding(graph, region, weighted)))
        if node not in worst or check.error > worst[node].error:
            worst[node] = check
    return worst


def _rounding(graph: Graph, region: Attention, weighted: Weighted) -> float:
    """The tolerance of the narrowest type between the products of a region."""
    first = min((product.value.node for product in region.products), key=graph.position)
    between = graph.behind(weighted.output.node, first) - {first}
    return max(TOLERANCES.get(type.dtype, 0.0) for node in between for type in node.outputs)


def with_errors(report: Report, found: Mapping[Node, Check]) -> Report:
    """`report` with the errors that were found."""

    def entry(region: Region) -> Region:
        check = found.get(region.anchors.softmax) if region.anchors else None
        return region if check is None else replace(region, error=check.error)

    return replace(report, regions=tuple(map(entry, report.regions)))


def checks(
    names: Sequence[str], unfused: Sequence[mx.array], fused: Sequence[mx.array], rtol: float | None
) -> tuple[Check, ...]:
    """One comparison for each pair of arrays, by name."""
    return tuple(
        Check(name, difference(left, right), rtol if rtol is not None else TOLERANCES.get(left.dtype, 0.0))
        for name, left, right in zip(names, unfused, fused, strict=False)
    )


def difference(unfused: mx.array, fused: mx.array) -> float:
    """The largest difference, relative to the largest finite value of `unfused`."""
    if unfused.size == 0:
        return 0.0
    if unfused.dtype == mx.complex64:
        return max(difference(mx.real(unfused), mx.real(fused)), difference(mx.imag(unfused), mx.imag(fused)))
    left, right = (np.array(array.astype(mx.float64, stream=mx.cpu)) for array in (unfused, fused))
    finite = np.isfinite(left)
    if not (finite == np.isfinite(right)).all() or not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    largest = float(np.abs(left[finite]).max())
    error = float(np.abs(left[finite] - right[finite]).max())
    return error / largest if largest else error
