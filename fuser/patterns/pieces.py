"""Scores in pieces: joined or padded before the softmax, or a piece of them changed alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from fuser.ir.graph import Value
from fuser.joined import joined_product
from fuser.masks.assigned import ADDED, REPLACED, assigned_piece, assignment
from fuser.masks.mask import Mask, Scale
from fuser.patterns.cursor import Cursor, Sink
from fuser.patterns.scores import ENDS, PEELERS, Scores, peels, scores, uncapped
from fuser.reading.axes import Dim, Dims, axes_of, fresh, resolve, size_of
from fuser.reading.blocks import Blocks
from fuser.reading.operands import operand
from fuser.reading.pieces import joined
from fuser.reading.program import Miss, Program, Term, seen_through
from fuser.reading.reasons import BEFORE
from fuser.regions import Weighted


def concatenated(cursor: Cursor) -> Scores:
    """The scores of keys that are kept in pieces, with a sink's column before or after them, or without."""
    (axis,) = cursor.value.node.arguments
    operands = cursor.operands()
    if resolve(cursor.dims)[axis] == axes_of([cursor.keys]):
        ways = [(operands, None, False), (operands[:-1], operands[-1], False), (operands[1:], operands[0], True)]
        for pieces, logit, first in ways:
            if logit is not None and (logit.shape[axis] != 1 or _changed(cursor)):
                if logit.shape[axis] == 1 and logit.node not in cursor.program.fed:
                    reason = cursor.miss("a sink's column is scaled or masked with the scores, beside which it stands")
                continue
            try:
                return pieced(cursor, axis, pieces) if logit is None else with_sink(cursor, axis, pieces, logit, first)
            except Miss as miss:
                reason = miss
        if len(operands) > 1 and any(operand.node in cursor.program.fed for operand in operands):
            of_none = reason.at not in cursor.program.fed
            raise cursor.miss("the scores are joined with logits that no product makes") if of_none else reason
    raise cursor.miss("the scores are concatenated with something else before the softmax")


def pieced(cursor: Cursor, axis: int, pieces: Sequence[Value]) -> Scores:
    """Products of the same queries with several pieces of the keys: one product with all of them."""
    if len(pieces) == 1:
        return scores(cursor.to(pieces[0]))
    columns = [fresh(piece.shape[axis], "keys") for piece in pieces]
    whole = resolve(cursor.dims)
    dims = [tuple(column if i == axis else dim for i, dim in enumerate(whole)) for column in columns]
    return _together(cursor, [Term(*each) for each in zip(pieces, dims, strict=True)], columns)


def in_blocks(program: Program, found: Blocks, output: Value) -> tuple[Scores, list[Weighted], Dims]:
    """Scores, values and dimensions of a softmax that the program computes over blocks of the keys."""
    columns = [axes_of([part.keys]) for part in found.parts]
    keys, first = fresh(sum(map(size_of, columns)), "keys"), found.parts[0]
    dims = tuple(keys if dim == columns[0] else dim for dim in resolve(first.dims))
    parts = [Term(part.scores, resolve(part.dims)) for part in found.parts]
    before = _together(Cursor(program, first.scores, dims, keys, fixed=True), parts, columns)
    values = [operand(program, part.values.value, part.values.dims) for part in found.parts if part.values]
    value, here = joined(program, list(zip(values, columns, strict=True)), keys), resolve(found.output)
    if value is None:
        raise Miss("the values of several blocks of the keys are not of one type and scale", output.node)
    width = tuple(axis for axis in axes_of(here) if axis not in axes_of(dims))
    return before, [Weighted(value, width, output, here, False, value.number, ())], dims


def _together(cursor: Cursor, pieces: Sequence[Term], columns: Sequence[Dim]) -> Scores:
    found: list[Scores] = []
    masks, start = cursor.masks, 0
    for piece, column in zip(pieces, columns, strict=True):
        part = scores(Cursor(cursor.program, piece.value, piece.dims, column, depth=cursor.depth + 1, fixed=True))
        if part.cap or part.sink:
            raise cursor.miss("the scores of one piece of the keys are changed alone")
        masks += tuple(on_piece(mask, cursor, start, column) for mask in part.masks)
        start += size_of(column)
        found.append(part)
    lengths = {len(part.products) for part in found}
    alike = zip(*(part.products for part in found), strict=True) if len(lengths) == 1 else ()
    columns = [part.keys for part in found]
    together = [joined_product(cursor.program, cursor.value, each, columns, cursor.keys) for each in alike]
    if None in together or not together:
        raise cursor.miss("the scores of several pieces of the keys are not of the same queries and scale")
    products = tuple(replace(each, scale=cursor.scale.over(each.scale)) for each in together if each)
    return uncapped(Scores(products, masks, cursor.keys, cursor.sink, cursor.depth, cursor.cap))


def with_sink(cursor: Cursor, axis: int, pieces: Sequence[Value], logit: Value, first: bool) -> Scores:
    """One more column of logits, to which no value belongs: a sink, as gpt-oss has."""
    whole = resolve(cursor.dims)
    column = fresh(sum(piece.shape[axis] for piece in pieces), "keys")
    dims = tuple(column if i == axis else dim for i, dim in enumerate(whole))
    alone = tuple(() if i == axis else dim for i, dim in enumerate(whole)) if logit.shape else ()
    number, term = cursor.program.known.number(logit), seen_through(cursor.program, logit, alone)
    if number is not None and not math.isfinite(number):
        raise cursor.miss("a column of infinite numbers is joined to the scores")
    found = Sink(term if number is None else number, first, axes_of([cursor.keys]))
    return pieced(replace(cursor, dims=dims, keys=column, sink=found, fixed=True), axis, pieces)


def _changed(cursor: Cursor) -> bool:
    return bool(cursor.masks or cursor.sink or cursor.cap or cursor.scale != Scale())


def padded(cursor: Cursor) -> Scores:
    """A sink's column by padding: one number beside the scores."""
    source, number = cursor.operands()
    ends = [each for each in zip(*cursor.value.node.arguments, strict=True) if any(each[1:])]
    if len(ends) == 1 and not _changed(cursor):
        axis, before, behind = ends[0]
        if before + behind == 1 and resolve(cursor.dims)[axis] == axes_of([cursor.keys]):
            return with_sink(cursor, axis, [source], number, bool(before))
    raise cursor.miss("the scores are padded before the softmax")


ENDS.update(Concatenate=concatenated, Pad=padded)


@peels("SliceUpdate", "Scatter", "ScatterAxis")
def assigned(cursor: Cursor) -> Iterable[Cursor]:
    """`scores[..., :2] = fill` and `scores[..., 2:] += mask`: masks on some of the scores."""
    program, (source, *_, update) = cursor.program, cursor.operands()
    mask = assignment(program, cursor.value, cursor.dims, cursor.scale)
    part = assigned_piece(program, cursor.value, cursor.dims, cursor.keys) if mask is None else None
    masks: tuple[Mask, ...] | None = None if mask is None else (mask,)
    if part is not None:
        dims, start, column = part
        there = Cursor(program, update, dims, column, fixed=True)
        kind = cursor.value.node.arguments[0]
        if kind == ADDED["SliceUpdate"]:
            masks = (Mask("add", there.term(update)),)
        elif kind == REPLACED["SliceUpdate"]:
            masks = within(there, replace(there, value=cursor.value))
        masks = masks and tuple(on_piece(each, cursor, start, column) for each in masks)
    if masks is None:
        raise cursor.miss(BEFORE["Scatter"])
    yield cursor.to(source, None, None, *masks)


def within(cursor: Cursor, piece: Cursor) -> tuple[Mask, ...] | None:
    """The masks between `cursor` and the `piece` of the scores that is assigned to; None when there is more."""
    here, there = cursor.value.node, piece.value.node
    if here.op == "Slice" and (here.arguments, cursor.operands()[0]) == (there.arguments[1:], piece.operands()[0]):
        plain = cursor.scale == Scale() and not cursor.cap and resolve(cursor.dims) == resolve(piece.dims)
        return cursor.masks if plain else None
    with suppress(Miss):
        for way in PEELERS[cursor.op](cursor) if cursor.op in PEELERS else ():
            found = within(way, piece)
            if found is not None:
                return found
    return None


def on_piece(mask: Mask, cursor: Cursor, start: int, column: Dim) -> Mask:
    """A mask on a piece of the keys, under the scale of all of them."""
    if cursor.cap or cursor.scale.traced or mask.piece:
        raise cursor.miss("the scores of one piece of the keys are changed alone")
    number = cursor.scale.number
    return replace(mask, scale=mask.scale.times(number), fill=mask.fill * number, piece=(start, column))
