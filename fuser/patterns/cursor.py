"""The cursor: where a match stands, and all that it has seen through on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fuser.ir.graph import Value
from fuser.masks.mask import Mask, Scale
from fuser.reading.axes import Dim, Dims, resolve
from fuser.reading.program import Miss, Program, Term, seen_through
from fuser.regions import Cap


@dataclass(frozen=True)
class Sink:
    """A logit without a value that joins the softmax: one for each head."""

    logit: Term | float
    first: bool = False
    """Whether it stands before the scores rather than after them."""
    column: Dim = ()
    """The axis of the keys with the sink among them."""


@dataclass(frozen=True)
class Cursor:
    """A place in the graph on the way from the softmax to the product, with what was peeled off so far."""

    program: Program
    value: Value
    dims: Dims
    keys: Dim
    scale: Scale = field(default_factory=Scale)
    masks: tuple[Mask, ...] = ()
    sink: Sink | None = None
    cap: Cap | None = None
    depth: int = 0
    fixed: bool = False
    """Whether a number added to all scores matters: beside a sink, inside of a cap, in one piece of the keys."""

    @property
    def op(self) -> str:
        """The primitive here."""
        return self.value.node.op

    def operands(self) -> tuple[Value, ...]:
        """What the node here reads."""
        return self.program.operands(self.value)

    def to(self, value: Value, dims: Dims | None = None, scale: Scale | None = None, *masks: Mask) -> Cursor:
        """The cursor moved to `value`, with what was seen on the way."""
        return replace(
            self,
            value=value,
            dims=resolve(self.dims if dims is None else dims),
            scale=scale or self.scale,
            masks=self.masks + masks,
            depth=self.depth + 1,
        )

    def miss(self, reason: str) -> Miss:
        """The match ends here."""
        # a way that cannot be the scores' is the last to give the reason
        node, program = self.value.node, self.program
        likelier = (node in program.fed) + program.of_activations(node)
        return Miss(reason, node, self.depth + (likelier << 20))

    def term(self, value: Value) -> Term:
        """`value`, shaped like what is here, seen through the views that only repeat or move it."""
        return seen_through(self.program, value, self.dims)

    def factors(self, value: Value) -> tuple[Term, ...]:
        """`value`, as the product that it is of one array for the queries and one for the keys."""
        term = self.term(value)
        parts = self.program.operands(term.value) if term.value.node.op == "Multiply" else ()
        found = tuple(seen_through(self.program, each, term.dims) for each in parts)
        return found if any(each.axes < term.axes for each in found) else (term,)
