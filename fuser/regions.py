"""What a region is: the attention that patterns find, and that kernels, rewrite and report are told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from numpy.typing import NDArray

from fuser.ir.graph import Node, Value
from fuser.masks.mask import Mask, Scale
from fuser.masks.meaning import Reading
from fuser.reading.axes import Dim, Dims, axes_of, size_of
from fuser.reading.operands import Operand
from fuser.reading.program import Term
from fuser.reading.softmax import Softmax


@dataclass(frozen=True)
class Product:
    """A product of queries and keys, and the scale that it is multiplied with."""

    query: Operand
    key: Operand
    depth: Dim
    scale: Scale
    rows: Dim
    """The axes of the product's own query dimension."""
    values: tuple[Value, ...]
    """What the program makes of it: one value, or one for each piece of the keys behind the one that joins them."""

    @property
    def value(self) -> Value:
        """The scores that it gives."""
        return self.values[0]


@dataclass(frozen=True)
class Cap:
    """The scores before the masks are `number * tanh(scores / number)`: a softcap."""

    number: float
    at: Node
    masks: int
    """How many masks were met before it (outside of it)."""


@dataclass(frozen=True)
class Step:
    """Something done to each row of weights as a whole, which may as well be done to the output."""

    kind: Literal["multiply", "divide", "keep", "add"]
    term: Term
    number: float = 1.0
    """For `add`: what the term is multiplied with."""
    inverted: bool = False
    """For `keep`: rows are set to zero where the term holds, not where it does not."""


@dataclass(frozen=True)
class Taken:
    """One position of axes of the weights, taken (as one of two heads): what may as well be taken of the output."""

    dim: Dim
    index: int


@dataclass(frozen=True)
class Weighted:
    """The product of the weights with the values."""

    value: Operand
    width: Dim
    output: Value
    dims: Dims
    guarded: bool
    number: float
    steps: tuple[Step | Taken, ...]
    zeros: tuple[tuple[Mask, Node], ...] = ()
    """Masks that set weights of some keys to zero, and the nodes that apply them."""
    pieces: tuple[tuple[int, Operand, Dim], ...] = ()
    """Of a sum over some of the keys only: the values for these, where they begin among all, and their axes."""
    sums: tuple[tuple[Node, int], ...] = ()
    """The sums with weights of other softmaxes on the way, and which operand came this way: `output` is the whole's."""

    @property
    def array(self) -> object:
        """The values, whatever the axes are that only they have: the same for several products with them."""
        own = {axis: place for place, axis in enumerate(axes_of([self.width]))}
        dims = tuple(tuple(own.get(axis, axis) for axis in axes_of([dim])) for dim in self.value.dims)
        return self.value.value, dims, self.value.parts

    @property
    def done(self) -> tuple[object, ...]:
        """All that was done to the weights before the product."""
        return self.number, self.steps, self.guarded, [mask for mask, _ in self.zeros]


@dataclass(frozen=True)
class Roles:
    """What each axis of the scores is to the kernel, which takes `[batch, heads x groups, queries, ...]`."""

    batch: Dim
    heads: Dim
    """The heads of keys and values."""
    groups: Dim
    """The query heads that share one head of keys and values."""
    queries: Dim
    keys: Dim

    @property
    def cells(self) -> Dims:
        """The dimensions of the scores."""
        return (self.batch, self.heads + self.groups, self.queries, self.keys)

    @property
    def key_heads(self) -> int:
        """The number of heads of keys and values."""
        return size_of(self.heads)

    @property
    def query_heads(self) -> int:
        """The number of heads of queries."""
        return size_of(self.heads) * size_of(self.groups)


@dataclass(frozen=True)
class KnownSink:
    """Sink logits that are known before the program runs."""

    array: NDArray[Any]
    dims: Dims


@dataclass(frozen=True)
class Attention:
    """A region of the graph that means attention, with all that it takes to call the kernel instead."""

    softmax: Softmax
    products: tuple[Product, ...]
    """Usually one; several are to be added, which is a product of concatenated queries and keys."""
    products_with_values: tuple[Weighted, ...]
    """Usually one; several when the same weights are used with several values of one shape."""
    roles: Roles
    mask: Reading
    sink: Term | KnownSink | float | None
    """A logit for each head, or for less, that joins the softmax without a value."""
    heads: tuple[int, int]
    """The numbers of query heads and of key heads in the program; the call may count windows among them."""
    dtype: mx.Dtype
    """The type in which the kernel is called."""
    steps: tuple[Mask, ...] = ()
    """The masks one by one as the program applies them, outermost first; `mask` is what they mean together."""
    cap: Cap | None = None
    """The scores are capped by tanh before they are masked."""

    @property
    def scale(self) -> float | None:
        """The scale, when it is one number."""
        traced = any(product.scale.traced for product in self.products)
        number = self.products[0].scale.number * (self.cap.number if self.cap else 1.0)
        return None if traced else number

    @property
    def sinks_differ(self) -> bool:
        """Whether the sink is more than a number for each head: it takes a key of its own, which the mask scores."""
        heads = axes_of([self.roles.heads, self.roles.groups])
        return isinstance(self.sink, Term | KnownSink) and not set(axes_of(self.sink.dims)) <= {*heads}

    @property
    def depth(self) -> int:
        """The size of the heads of queries and keys."""
        return sum(size_of(product.depth) for product in self.products)
