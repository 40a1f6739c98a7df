"""Repeated layers: which modules of a list are one layer over and over, and what is computed in one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuser.export.python_ir import CONST, INPUT, LAYERS, LEAVES, Op, ordered, users

Path = tuple[str, ...]


@dataclass
class Repeat:
    """Modules `path + (0,)`, `path + (1,)`, ... that compute the same with other weights."""

    path: Path
    count: int


def within(path: Path, outer: Path) -> bool:
    """Whether a module is `outer` or lies in it."""
    return path[: len(outer)] == outer


def lists(ops: Sequence[Op]) -> list[tuple[Path, list[str]]]:
    """The lists of modules, outer before inner, with their numbers in order."""
    found: dict[Path, dict[str, None]] = {}
    for op in ops:
        for place, part in enumerate(op.path):
            if part.isdigit():
                found.setdefault(op.path[:place], {})[part] = None
    return [(path, sorted(found[path], key=int)) for path in sorted(found, key=lambda path: (len(path), path))]


def settle(outputs: Sequence[Op]) -> list[Repeat]:
    """Move every operation to the module that it belongs to; the lists of modules that are one layer repeated."""
    repeats: list[Repeat] = []
    done: set[Path] = set()
    while True:
        ops = [op for op in ordered(outputs) if op.kind not in LEAVES]
        waiting = [(path, numbers) for path, numbers in lists(ops) if path not in done]
        if not waiting:
            return repeats
        path, numbers = waiting[0]
        done.add(path)
        if len(numbers) > 1 and _settle_one(outputs, ops, path, numbers):
            repeats.append(Repeat(path, len(numbers)))


def _settle_one(outputs: Sequence[Op], ops: Sequence[Op], path: Path, numbers: Sequence[str]) -> bool:
    readers = users(outputs)
    last = (*path, numbers[-1])
    body = {op for op in ops if within(op.path, last)}
    results = [op for op in ops if op in body and (op in outputs or any(user not in body for user in readers[op]))]
    if not results:
        return False
    images: list[dict[Op, Op]] = []
    for number in numbers[:-1]:
        inside = [op for op in ops if within(op.path, (*path, number))]
        mine = set(inside)
        seen = [op for op in inside if op in outputs or any(user not in mine for user in readers[op])]
        image = _image(results, seen, body)
        if image is None:
            return False
        images.append(image)
    taken: set[Op] = set(body)
    for image in images:
        mapped = {image[op] for op in body}
        if mapped & taken:
            return False
        taken |= mapped
    for number, image in zip(numbers, images, strict=False):
        for op in body:
            twin = image[op]
            twin.path = (*path, number, *op.path[len(last) :])
            twin.name = op.name
    # what only the first of them computed is computed once, outside of all
    for op in ops:
        if op not in taken and any(within(op.path, (*path, number)) for number in numbers):
            if op.kind in LAYERS and not op.path[-1].isdigit():
                op.name = op.name or op.path[-1]
            op.path = path[:-1]
    return True


def _image(results: Sequence[Op], candidates: Sequence[Op], body: set[Op]) -> dict[Op, Op] | None:
    """The operations of another module that do what those of `body` do."""
    image: dict[Op, Op] = {}
    left = list(candidates)
    for result in results:
        for candidate in reversed(left):
            tried = dict(image)
            if _unify(result, candidate, body, tried):
                image = tried
                left.remove(candidate)
                break
        else:
            return None
    return image


def _unify(one: Op, other: Op, body: set[Op], image: dict[Op, Op]) -> bool:
    stack = [(one, other)]
    while stack:
        a, b = stack.pop()
        if a in image:
            if image[a] is not b:
                return False
            continue
        image[a] = b
        if a not in body:
            if a.kind in (CONST, INPUT) or b.kind in (CONST, INPUT):
                if a.shape != b.shape or a.dtype != b.dtype or (a.kind == CONST) != (b.kind == CONST):
                    return False
            elif (a.kind in LEAVES and a is not b) or a.shape != b.shape or a.dtype != b.dtype:
                return False
            continue
        if not alike(a, b):
            return False
        stack.extend(zip(a.args, b.args, strict=True))
    return True


def alike(a: Op, b: Op) -> bool:
    """Whether two operations differ in their operands and weights only."""
    return (
        a.kind == b.kind
        and a.attrs == b.attrs
        and a.shape == b.shape
        and a.dtype == b.dtype
        and len(a.args) == len(b.args)
        and {name: array.shape for name, array in a.params.items()}
        == {name: array.shape for name, array in b.params.items()}
    )
