"""What one step on the scores is that masks or scales them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from numpy.typing import NDArray

from fuser.reading.axes import Dim
from fuser.reading.program import Program, Term, seen_through

# a score this low has no weight beside any other: exp(-9000) is zero in every float type
VANISHES = -9e3
# adding this swallows scores of a usual size, so that a wholly masked row is uniform
SURE = -1e8
# as SURE, in float16
SWALLOWS_HALF = -6e4
# adding this, or anything lower, leaves nothing of any score
DROWNS = -1e30


# of the keys: where it begins among all, and its axes
Piece = tuple[int, Dim]


@dataclass(frozen=True)
class Scale:
    """A product of one number and of arrays that do not vary along the keys."""

    number: float = 1.0
    factors: tuple[Term, ...] = ()
    divisors: tuple[Term, ...] = ()

    @property
    def traced(self) -> bool:
        """Whether arrays are part of it."""
        return bool(self.factors or self.divisors)

    def times(self, number: float) -> Scale:
        """The scale, `number` times as large."""
        return replace(self, number=self.number * number)

    def over(self, outer: Scale) -> Scale:
        """This scale times another."""
        return Scale(self.number * outer.number, self.factors + outer.factors, self.divisors + outer.divisors)


@dataclass(frozen=True)
class Mask:
    """One step that masks scores; the scale met before it (outside of it) applies to it too."""

    kind: Literal["add", "keep", "times", "over", "floor"]
    term: Term
    scale: Scale = field(default_factory=Scale)
    fill: float = 0.0
    """For `keep`: what stands where the mask does not keep, scaled. For `floor`: the smallest score."""
    inverted: bool = False
    """For `keep`: the mask says what to drop."""
    piece: Piece | None = None
    """Where the keys that it masks begin among all, and their axes, when it masks only a piece of them."""
    array: NDArray[Any] | None = field(default=None, compare=False)
    """What it is along the axes of the term, where that is known but no value of the program."""


def uncast(program: Program, term: Term) -> Term:
    """What `term` was before it was cast: the condition that a mask of zeros and ones is."""
    while term.value.node.op == "AsType":
        term = seen_through(program, program.operands(term.value)[0], term.dims)
    return term
