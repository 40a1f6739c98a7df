"""Products with pieces of the keys, and with pieces of the values, as the one product that they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from fuser.ir.graph import Value
from fuser.reading.axes import VIEWS, Dim, after, axes_of, size_of
from fuser.reading.operands import Operand
from fuser.reading.pieces import joined, translated, translation
from fuser.reading.program import Miss, Program, is_float, seen_through
from fuser.reading.reasons import AFTER
from fuser.regions import Product, Step, Weighted


def joined_product(
    program: Program, value: Value, parts: Sequence[Product], columns: Sequence[Dim], whole: Dim
) -> Product | None:
    """The product of queries with keys of which `parts` are products with some: `columns` are theirs, `whole` all.

    `value` is what joins them. None when the queries or the scales are not the same.
    """
    # one key alone has no axis by which it could be told from the queries
    first = next((part for part, column in zip(parts, columns, strict=True) if column), parts[0])
    source = seen_through(program, first.query.value, first.query.dims)
    keys: list[tuple[Operand, Dim]] = []
    for part, column in zip(parts, columns, strict=True):
        for query, key in ((part.query, part.key), *(((part.key, part.query),) if not column else ())):
            own = seen_through(program, query.value, query.dims)
            names = translation(own.dims, source.dims, part.depth)
            alike = (query.dtype, query.number, part.scale) == (first.query.dtype, first.query.number, first.scale)
            if own.value == source.value and names is not None and alike:
                keys.append((translated(key, names), column))
                break
        else:
            return None
    key, values = joined(program, keys, whole), tuple(each for part in parts for each in part.values)
    if key is None:
        return None
    # an axis along which some piece varies (a block of the keys, say) is none of the queries alone
    rows = tuple(axis for axis in axes_of([first.rows]) if axis not in key.axes)
    return replace(first, key=key, rows=rows, values=(value, *values))


def together(program: Program, found: Sequence[Weighted], keys: Dim) -> list[Weighted]:
    """`found` with the products over pieces of the keys, which the program adds up, as the one that they are."""
    whole = [each for each in found if not each.pieces]
    rest = [each for each in found if each.pieces]
    while rest:
        for one, other in combinations(rest, 2):
            both = _sum(program, one, other, keys)
            if both is not None:
                rest = [each for each in rest if each is not one and each is not other]
                (rest if both.pieces else whole).append(both)
                break
        else:
            raise Miss(AFTER["Slice"], rest[0].output.node)
    return whole


def _sum(program: Program, left: Weighted, right: Weighted, keys: Dim) -> Weighted | None:
    """Two products over other keys, where the program adds them up; without pieces when these are all keys."""
    others = {here.output: here for here in onwards(program, right)}
    for here in onwards(program, left):
        for node, place in program.graph.users(here.output):
            there = others.get(program.graph.operands(node)[1 - place]) if node.op == "Add" else None
            names = translation(there.dims, here.dims, there.width) if there is not None else None
            # what both products add would have to be added twice
            twice = any(isinstance(step, Step) and step.kind == "add" for step in here.steps)
            if there is None or names is None or here.done != there.done or twice:
                continue
            moved = tuple((start, translated(part, names), column) for start, part, column in there.pieces)
            pieces = sorted((*here.pieces, *moved), key=lambda piece: piece[0])
            ends = [start + size_of(column) for start, _, column in pieces]
            both = replace(here, output=Value(node), pieces=tuple(pieces))
            if [start for start, _, _ in pieces] != [0, *ends[:-1]] or ends[-1] != size_of(keys):
                return both
            value = joined(program, [(part, column) for _, part, column in pieces], keys)
            return None if value is None else replace(both, value=value, pieces=())
    return None


def onwards(program: Program, found: Weighted) -> Iterator[Weighted]:
    """The product as it is, and as views and casts show it."""
    yield found
    for node, place in program.graph.users(found.output):
        given = Value(node)
        if node.op in VIEWS and place == 0:
            dims = after(node.op, node.arguments, found.dims, given.shape)
            if dims is not None:
                yield from onwards(program, replace(found, output=given, dims=dims))
        elif node.op == "AsType" and is_float(given):
            yield from onwards(program, replace(found, output=given))
