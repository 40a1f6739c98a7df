"""Names for the calls of modules: each call marks itself with the module's path while a trace is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.frontends.marks import mark


def modules_of(owner: Any) -> list[nn.Module]:
    """The modules that a callable is, is a method of, or captures."""
    if isinstance(owner, nn.Module):
        return [owner]
    if isinstance(owner, partial):
        return [found for part in (owner.func, *owner.args, *owner.keywords.values()) for found in modules_of(part)]
    bound = getattr(owner, "__self__", None)
    if isinstance(bound, nn.Module):
        return [bound]
    held = [cell.cell_contents for cell in getattr(owner, "__closure__", None) or () if _filled(cell)]
    code = getattr(owner, "__code__", None)
    if code is not None:
        held += [owner.__globals__[name] for name in code.co_names if name in owner.__globals__]
    unique = {id(each): each for each in held if isinstance(each, nn.Module)}
    return list(unique.values())


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@contextmanager
def named_calls(owner: Any) -> Iterator[None]:
    """Inside the `with` block, each call of a module that `owner` is or holds marks its arrays with the module's path."""
    names: dict[int, str] = {}
    for root in modules_of(owner):
        for path, module in root.named_modules():
            names[id(module)] = path or type(root).__name__
    classes = {type(module) for root in modules_of(owner) for _, module in root.named_modules()}
    originals: dict[type, Callable[..., Any]] = {}
    for each in classes:
        # a class that inherits its `__call__` gets one of its own, taken away again at the end
        call = each.__dict__.get("__call__")
        if call is not None:
            originals[each] = call
            setattr(each, "__call__", _marking(call, names))  # noqa: B010
    try:
        yield
    finally:
        for each, call in originals.items():
            setattr(each, "__call__", call)  # noqa: B010


def _marking(call: Callable[..., Any], names: dict[int, str]) -> Callable[..., Any]:
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = call(self, *args, **kwargs)
        name = names.get(id(self))
        if name:
            mark(name, list(_arrays([args, kwargs])), list(_arrays(result)))
        return result

    return wrapped


def _arrays(tree: Any) -> Iterator[mx.array]:
    if isinstance(tree, mx.array):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from _arrays(child)
    elif isinstance(tree, list | tuple):
        for child in tree:
            yield from _arrays(child)
