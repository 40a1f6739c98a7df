"""What a callable brings along: what it is bound to, closes over or reads by name."""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.frontends.trees import Variables, is_ours, is_small

_COMPILED = (type(mx.compile(lambda x: x)), mx.custom_function)
_NOT_THEIRS = sys.stdlib_module_names | {"mlx", "fuser", "numpy"}


def captures(fn: Any) -> list[Any]:
    """The roots of the state of `fn`: what it may read or change besides its arguments, as containers."""
    roots: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    names: dict[str, None] = {"__call__": None}
    kinds: dict[type, None] = {}
    stack = [fn]
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if is_ours(type(each)):
            # an optimized function brings along what the original does
            stack += filter(None, [getattr(each, "original", None)])
        elif isinstance(each, types.FunctionType):
            if is_mlx(each):
                # a transformation of MLX: what it wraps is in its closure
                held = [cell.cell_contents for cell in each.__closure__ or () if _filled(cell)]
                roots.update((id(value), value) for value in held if isinstance(value, nn.Module))
                stack += [value for value in held if _is_function(value) or isinstance(value, nn.Module)]
            else:
                variables = _variables(each)
                roots[id(variables)] = variables
                names |= dict.fromkeys(_names(each.__code__))
                defaults = [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
                roots.update((id(value), value) for value in defaults if isinstance(value, dict | list))
                stack += filter(_followed, [*variables.values(), *defaults])
        elif isinstance(each, functools.partial):
            parts = [each.func, *each.args, *each.keywords.values()]
            roots.update((id(part), part) for part in parts if not _is_function(part))
            stack += filter(_followed, parts)
        elif isinstance(each, types.MethodType):
            roots[id(each.__self__)] = each.__self__
            if not isinstance(each.__self__, nn.Module):
                stack += filter(_followed, [each.__func__, each.__self__])
        elif isinstance(each, _COMPILED):
            # MLX does not tell what it has wrapped; the garbage collector does
            parts = [part for part in gc.get_referents(each) if part not in _COMPILED]
            roots.update((id(part), part) for part in parts if isinstance(part, dict | list | tuple | nn.Module))
            stack += filter(_followed, parts)
        elif isinstance(each, nn.Module):
            roots[id(each)] = each
            for _, module in paths_of(each):
                kinds[type(module)] = None
                stack += filter(_is_function, (*vars(module).values(), *module.values()))
        elif isinstance(each, list | tuple | dict):
            stack += filter(_followed, each.values() if isinstance(each, dict) else each)
        elif hasattr(each, "__dict__") and not isinstance(each, type):
            if callable(each):
                roots[id(each)] = each
            kinds[type(each)] = None
            stack += filter(_followed, vars(each).values())
        if not stack:
            stack = [each for kind in kinds for each in _methods(kind, names) if id(each) not in seen]
    return list(roots.values())


def _followed(value: Any) -> bool:
    """Whether a function may be reached through `value`."""
    if _is_function(value) or isinstance(value, nn.Module | list | tuple | dict):
        return True
    kinds = (type, types.ModuleType, mx.array)
    return hasattr(value, "__dict__") and not isinstance(value, kinds) and is_small(value)


def _methods(kind: type, names: dict[str, None]) -> Iterator[types.FunctionType]:
    """The functions of these names in a class of the program's, not of MLX's or Python's own."""
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in _NOT_THEIRS:
            for name in names.keys() & base.__dict__.keys():
                method = base.__dict__[name]
                method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                if isinstance(method, types.FunctionType) and not is_mlx(method):
                    yield method


def is_mlx(function: types.FunctionType) -> bool:
    """Whether a function is MLX's or ours: it reads nothing that changes."""
    return (function.__module__ or "").split(".")[0] in ("mlx", "fuser")


def _is_function(value: Any) -> bool:
    kinds = (types.FunctionType, types.MethodType, functools.partial, *_COMPILED)
    return isinstance(value, kinds) or hasattr(type(value), "original")


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _variables(fn: types.FunctionType) -> Variables:
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    kept = {name: cell for name, cell in cells.items() if not _filled(cell) or _matters(cell.cell_contents)}
    outer = fn.__globals__
    names = dict.fromkeys(name for name in _names(fn.__code__) if name in outer and _matters(outer[name]))
    return Variables(kept, outer, names)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _matters(value: Any) -> bool:
    return not isinstance(value, types.ModuleType | type) and is_small(value)


def names_in(tops: list[tuple[str, nn.Module]]) -> dict[int, str]:
    """The names of all modules in some outermost ones, by id.

    They are paths, after the name of the variable that holds the outermost module, if there are several.
    """
    names: dict[int, str] = {}
    for name, top in tops:
        for path, module in paths_of(top):
            full = _joined(name, path) if len(tops) > 1 and path else path
            names.setdefault(id(module), full or (name if len(tops) > 1 and name else type(top).__name__))
    return names


def tops_of(roots: list[Any]) -> list[tuple[str, nn.Module]]:
    """The modules that `roots` lead to, without those inside of other modules, with the names that hold them."""
    found: dict[int, tuple[str, nn.Module]] = {}
    seen: set[int] = set()
    stack = [("", root) for root in reversed(roots)]
    while stack:
        name, each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            found[id(each)] = (name, each)
        elif isinstance(each, dict | Variables):
            stack += [(_joined(name, key), child) for key, child in each.items()]
        elif isinstance(each, list | tuple):
            stack += [(_joined(name, number), child) for number, child in enumerate(each)]
        elif _looked_into(each):
            stack += [(_joined(name, key), child) for key, child in vars(each).items()]
    if len(found) == 1:
        return list(found.values())
    inner = {id(module) for _, top in found.values() for path, module in paths_of(top) if path}
    return [(name, module) for name, module in found.values() if id(module) not in inner]


def paths_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules inside of `module`, itself included, with their paths."""
    return list(module.named_modules())


def _looked_into(value: Any) -> bool:
    kinds = (type, types.ModuleType, types.FunctionType, *_COMPILED)
    return hasattr(value, "__dict__") and not isinstance(value, kinds) and not is_ours(type(value)) and is_small(value)


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
