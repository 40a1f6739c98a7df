"""Names for the calls of modules: each call marks itself with the module's path while a trace is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.frontends.marks import handles, mark


class Depth:
    """How many calls of named modules are running."""

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def named_calls(names: Mapping[int, str], modules: list[nn.Module]) -> Iterator[Depth]:
    """Inside the `with` block, each call of one of the `modules` marks its arrays with its name."""
    depth = Depth()
    originals: dict[type, Callable[..., Any]] = {}
    for kind in dict.fromkeys(map(type, modules)):
        owner = next((each for each in kind.__mro__ if "__call__" in each.__dict__), None)
        if owner is not None and owner not in originals:
            originals[owner] = owner.__dict__["__call__"]
    try:
        for owner, call in originals.items():
            setattr(owner, "__call__", _marking(call, names, depth))  # noqa: B010
        yield depth
    finally:
        for owner, call in originals.items():
            setattr(owner, "__call__", call)  # noqa: B010


def _marking(call: Callable[..., Any], names: Mapping[int, str], depth: Depth) -> Callable[..., Any]:
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(self))
        if not name:
            return call(self, *args, **kwargs)
        given = handles(arrays_of([args, kwargs]))
        depth.calls += 1
        try:
            result = call(self, *args, **kwargs)
        finally:
            depth.calls -= 1
        mark(name, given, list(arrays_of(result)))
        return result

    return wrapped


def arrays_of(tree: Any) -> Iterator[mx.array]:
    """The arrays in lists, tuples and dictionaries, each of which is looked into once: they may hold one another."""
    stack, seen = [tree], set[int]()
    while stack:
        each = stack.pop()
        if isinstance(each, mx.array):
            yield each
        elif isinstance(each, dict | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            # a module is a dictionary, whose author may call a method of it `values`
            stack.extend(reversed([*dict.values(each)] if isinstance(each, dict) else each))
