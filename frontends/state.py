"""State that a program keeps in containers: the arrays of modules, optimizers, caches and random generators.

The arrays are swapped for others while a program is traced, and put back; what the program changed is known after.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx


class Slot(NamedTuple):
    """A place that holds an array: a key of a dictionary or an index of a list."""

    container: Any
    key: Hashable

    @property
    def array(self) -> mx.array:
        """What it holds now."""
        array: mx.array = self.container[self.key]
        return array


def slots(trees: Sequence[Any]) -> list[Slot]:
    """Every place in the dictionaries and lists of `trees` (modules are dictionaries) that holds an array, each once."""
    found: list[Slot] = []
    seen: set[int] = set()
    for tree in trees:
        _collect(tree, found, seen)
    return found


def _collect(tree: Any, found: list[Slot], seen: set[int]) -> None:
    if not isinstance(tree, dict | list | tuple) or id(tree) in seen:
        return
    seen.add(id(tree))
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(child, mx.array):
            if not isinstance(tree, tuple):
                found.append(Slot(tree, key))
        else:
            _collect(child, found, seen)


@contextmanager
def swapped(
    trees: Sequence[Any], places: Sequence[Slot], arrays: Sequence[mx.array]
) -> Iterator[Callable[[], list[Slot]]]:
    """Inside the `with` block the `places` of `trees` hold `arrays`; after it, all is as before.

    Yields a function that tells which places the program has changed since.
    """
    containers = _containers(trees)
    before = [(each, list(each.items()) if isinstance(each, dict) else list(each)) for each in containers]
    for (container, key), array in zip(places, arrays, strict=True):
        container[key] = array
    placed = {(id(container), key): array for (container, key), array in zip(places, arrays, strict=True)}

    def changed() -> list[Slot]:
        return [each for each in slots(trees) if placed.get((id(each.container), each.key)) is not each.array]

    try:
        yield changed
    finally:
        for container, items in before:
            # a module is a dictionary with an `update` of its own
            if isinstance(container, dict):
                dict.clear(container)
                dict.update(container, items)
            else:
                container[:] = items


def _containers(trees: Sequence[Any]) -> list[Any]:
    found: dict[int, Any] = {}
    stack = list(trees)
    while stack:
        tree = stack.pop()
        if isinstance(tree, dict | list | tuple) and id(tree) not in found:
            found[id(tree)] = tree
            stack.extend(tree.values() if isinstance(tree, dict) else tree)
    return [each for each in found.values() if not isinstance(each, tuple)]
