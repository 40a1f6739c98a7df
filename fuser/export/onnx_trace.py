"""An ONNX model traced at several sizes, with the ONNX values that the traced arrays are.

What one trace says of a region holds for its shapes; what all traces say in ONNX's terms (names, and axes that are
called `B0`, `Q0`, ... by their role) is what may be written into a model whose dimensions are dynamic.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import mlx.core as mx

from fuser.errors import FuserError
from fuser.export.onnx_region import Found, Layout, MaskStep, Names, ProductNames, Traces, joined
from fuser.export.onnx_samples import blanks, size_sets
from fuser.frontends.mlx import trace
from fuser.frontends.onnx import OnnxProgram
from fuser.ir.bounds import bounds
from fuser.ir.graph import Graph, Node, Value
from fuser.ir.known import Known
from fuser.masks.mask import Mask
from fuser.patterns.attention import attention
from fuser.reading.axes import VIEWS, Axis, Dim, Dims, after, axes_of, resolve, size_of
from fuser.reading.program import Miss, Program, Term
from fuser.reading.softmax import Softmax, softmaxes
from fuser.regions import Attention

log = logging.getLogger("fuser")


def traces(program: OnnxProgram, base: Mapping[str, int] | None = None) -> Traces:
    """Trace `program` at several sizes of its dimensions, and say what all traces agree on."""
    error: FuserError | None = None
    for sets in size_sets(program.inputs, base):
        try:
            made = [_Trace(program, sizes) for sizes in sets]
        except FuserError as problem:
            error = error or problem
            continue
        return _agreed(made)
    assert error is not None
    raise error


class _Trace:
    """One trace, and the regions in it."""

    def __init__(self, program: OnnxProgram, sizes: Mapping[str, int]) -> None:
        given = blanks(program.inputs, sizes)
        order: list[str] = []

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            values = program.values(**dict(zip(given, arrays, strict=True)))
            order[:] = values
            return [*(values[info.name] for info in program.outputs), *values.values()]

        self.graph: Graph = trace(run, list(given.values())).graph
        count = len(program.outputs)
        self._names: dict[Value, list[str]] = {}
        for name, value in zip(order, self.graph.outputs[count:], strict=False):
            self._names.setdefault(value, []).append(name)
        self.graph.outputs = self.graph.outputs[:count]
        self.graph.prune()
        self.known = Known(self.graph)
        self.program = Program(self.graph, self.known)
        self.regions: dict[str, Found] = {}
        self.missed: dict[str, str] = {}
        for softmax in softmaxes(self.program):
            key = self._key(softmax)
            try:
                # what MLX's kernel refuses is no matter: the operator does more (caps, double precision)
                self.regions[key] = self._found(key, attention(self.program, softmax))
            except Miss as miss:
                self.missed[key] = miss.reason
            except Exception as error:
                # what is not understood stays as it is
                log.exception("reading %s", key)
                self.missed[key] = f"fuser failed on it: {type(error).__name__}"

    def _key(self, softmax: Softmax) -> str:
        return softmax.node.scope or self.graph.label(softmax.node)

    def _found(self, key: str, region: Attention) -> Found:
        operands = [each.key for each in region.products] + [each.value for each in region.products_with_values]
        if any(each.parts for each in operands):
            raise Miss("its keys and values are kept in pieces, which are not joined in ONNX", region.softmax.node)
        if any(each.sums for each in region.products_with_values):
            raise Miss("its weights are added to others, which are not parted in ONNX", region.softmax.node)
        terms = [term for each in region.products for term in (*each.scale.factors, *each.scale.divisors)]
        if not {axis for term in terms for axis in term.axes}.isdisjoint(region.roles.keys):
            raise Miss("its scores are scaled by an array that varies along the keys", region.softmax.node)
        if any(mask.array is not None or mask.piece for mask in region.steps):
            raise Miss("some of its scores are masked alone, of which ONNX has no array", region.softmax.node)
        if region.mask.empty == "sum" or region.mask.lost is not None:
            raise Miss("a row that is masked wholly has an answer that no operator gives", region.softmax.node)
        views = _Views(self.graph, self._names)
        # all views first: they may cut axes in two, and only then do axes get their names
        made = [
            (
                views.of(each.query.value, each.query.dims),
                views.of(each.key.value, each.key.dims),
                each.scale.number,
                [views.of(term.value, term.dims) for term in each.scale.factors],
                [views.of(term.value, term.dims) for term in each.scale.divisors],
            )
            for each in region.products
        ]
        values = [views.of(each.value.value, each.value.dims) for each in region.products_with_values]
        outputs = [views.of(each.output, each.dims) for each in region.products_with_values]
        masks = [views.of(mask.term.value, mask.term.dims, repeats=True) for mask in region.steps]
        roles, names = _roles(region)
        cells = (roles["B"], roles["H"] + roles["G"], roles["Q"], roles["K"])
        steps = []
        for mask, places in zip(region.steps, masks, strict=True):
            scaled = mask.scale.traced
            steps.append(
                MaskStep(
                    "scaled" if scaled else mask.kind,
                    _named(places, names, mask.term.value.dtype, cells),
                    mask.scale.number,
                    mask.fill,
                    mask.inverted,
                    self.known.is_known(mask.term.value),
                    self._low(mask),
                )
            )
        queries, keys = size_of(region.roles.queries), size_of(region.roles.keys)
        return Found(
            key,
            tuple(
                ProductNames(
                    _named(query, names, each.query.value.dtype),
                    _named(keys_, names, each.key.value.dtype),
                    number,
                    _terms(factors, each.scale.factors, names),
                    _terms(divisors, each.scale.divisors, names),
                )
                for each, (query, keys_, number, factors, divisors) in zip(region.products, made, strict=True)
            ),
            tuple(
                _named(places, names, each.value.value.dtype)
                for places, each in zip(values, region.products_with_values, strict=True)
            ),
            tuple(
                _named(places, names, each.output.dtype)
                for places, each in zip(outputs, region.products_with_values, strict=True)
            ),
            tuple(each.number for each in region.products_with_values),
            any(each.steps for each in region.products_with_values),
            any(each.guarded for each in region.products_with_values),
            region.sink is not None,
            {role: tuple(names[axis] for axis in resolve([dim])[0]) for role, dim in roles.items()},
            {name: axis.size for axis, name in names.items()},
            tuple(steps),
            region.mask.kind,
            region.mask.empty,
            queries == keys,
            (max(queries, keys),),
            region.products[0].query.dtype,
            region.softmax.scores.dtype,
            region.cap.number if region.cap is not None else 0.0,
        )

    def _low(self, mask: Mask) -> float:
        """A bound below what a mask adds."""
        if mask.kind != "add":
            return mask.fill
        known = self.known.array(mask.term.value)
        ends = bounds(self.graph, self.known, mask.term.value) if known is None else (known.min(), known.max())
        scaled = [float(end) * mask.scale.number for end in ends]
        return min(scaled) if not any(map(math.isnan, scaled)) else -math.inf


def _terms(places: Sequence[_Places], terms: Sequence[Term], names: Mapping[Axis, str]) -> tuple[Names, ...]:
    return tuple(_named(each, names, term.value.dtype) for each, term in zip(places, terms, strict=True))


def _roles(region: Attention) -> tuple[dict[str, Dim], dict[Axis, str]]:
    """The axes of each role, and a name for each axis."""
    roles = {
        "B": region.roles.batch,
        "H": region.roles.heads,
        "G": region.roles.groups,
        "Q": region.roles.queries,
        "K": region.roles.keys,
    }
    roles |= {f"D{i}_": product.depth for i, product in enumerate(region.products)}
    roles |= {f"W{i}_": each.width for i, each in enumerate(region.products_with_values)}
    names: dict[Axis, str] = {}
    for role, dim in roles.items():
        for place, axis in enumerate(axes_of([dim])):
            names.setdefault(axis, f"{role}{place}")
    return {role: axes_of([dim]) for role, dim in roles.items()}, names


_Places = list[tuple[str, Dims]]


def _named(places: _Places, names: Mapping[Axis, str], dtype: mx.Dtype, cells: Dims = ()) -> Names:
    """`cells`: the dimensions of the scores, along which a mask may be repeated."""
    layouts: dict[str, Layout] = {}
    for name, dims in places:
        dims = resolve(dims)
        if len(dims) == len(cells):
            dims = tuple(
                cell if any(axis not in names for axis in dim) and size_of(dim) == size_of(cell) else dim
                for dim, cell in zip(dims, cells, strict=True)
            )
        if all(axis in names for dim in dims for axis in dim):
            layouts[name] = tuple(tuple(names[axis] for axis in dim) for dim in dims)
    return Names(layouts, dtype)


class _Views:
    """All ONNX values that hold an array as it is or seen from another side, with what their dimensions mean."""

    def __init__(self, graph: Graph, names: Mapping[Value, Sequence[str]]) -> None:
        self._graph, self._onnx = graph, names

    def of(self, value: Value, dims: Dims, *, repeats: bool = False) -> _Places:
        """ONNX names and dims of `value`, and of all that views make of it or made it of.

        With `repeats`, what repeats it counts too; it is repeated along axes that are nobody's.
        """
        seen: dict[Value, Dims] = {value: resolve(dims)}
        stack = [value]
        while stack:
            here = stack.pop()
            for there, found in (*self._back(here, seen[here]), *self._on(here, seen[here], repeats)):
                if found is not None and there not in seen:
                    seen[there] = found
                    stack.append(there)
        return [(name, dims) for value, dims in seen.items() for name in self._onnx.get(value, ())]

    def _back(self, value: Value, dims: Dims) -> list[tuple[Value, Dims | None]]:
        node = value.node
        if node.op not in VIEWS or node.op == "Broadcast":
            return []
        source = self._graph.operands(node)[0]
        return [(source, _seen(node, dims, source.shape, back=True))]

    def _on(self, value: Value, dims: Dims, repeats: bool) -> list[tuple[Value, Dims | None]]:
        return [
            (Value(node), _seen(node, dims, node.outputs[0].shape, back=False))
            for node, _ in self._graph.users(value)
            if node.op in VIEWS and (repeats or node.op != "Broadcast")
        ]


def _seen(node: Node, dims: Dims, shape: Sequence[int], *, back: bool) -> Dims | None:
    """The dims on the other side of a view; None where it would cut an axis."""
    dims = resolve(dims)
    if node.op == "Broadcast":
        return after(node.op, node.arguments, dims, tuple(shape))
    if node.op == "Transpose":
        order = node.arguments[0]
        if not back:
            return tuple(dims[source] for source in order)
        given: list[Dim] = [()] * len(dims)
        for place, source in enumerate(order):
            given[source] = dims[place]
        return tuple(given)
    rest = list(reversed(axes_of(dims)))
    grouped: list[Dim] = []
    for size in shape:
        dim: list[Axis] = []
        while size > 1:
            if not rest or size % rest[-1].size:
                return None
            size //= rest[-1].size
            dim.append(rest.pop())
        grouped.append(tuple(dim))
    return None if rest else tuple(grouped)


def _agreed(made: Sequence[_Trace]) -> Traces:
    first, *others = made
    found: dict[str, Found] = {}
    missed: dict[str, str] = {}
    keys = dict.fromkeys(key for each in made for key in (*each.regions, *each.missed))
    for key in keys:
        reasons = [each.missed[key] for each in made if key in each.missed]
        if reasons:
            missed[key] = reasons[0]
        elif any(key not in each.regions for each in made):
            missed[key] = "it is there at some sizes of the dynamic dimensions only"
        else:
            whole = first.regions[key]
            for other in others:
                result = joined(whole, other.regions[key])
                if isinstance(result, str):
                    missed[key] = f"{result} at other sizes of the dynamic dimensions"
                    break
                whole = result
            else:
                found[key] = whole
    return Traces(found, missed)
