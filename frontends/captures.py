"""What a callable brings along: what it is bound to, closes over or reads by name."""

from __future__ import annotations

import dis
import functools
import gc
import logging
import sys
import types
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.frontends.containers import items_of, values_of
from fuser.frontends.trees import is_ours, is_small, names_of
from fuser.frontends.variables import Attributes, Defaults, Read, Slots, Variables, filled, slots_of

_IMPORT = dis.opmap["IMPORT_NAME"]
_EASY = (bool, int, float, str, type(None), mx.array)
_COMPILED = (type(mx.compile(lambda x: x)), mx.custom_function)
# the attributes in which objects keep their optimized methods begin so; those are found by the names of the methods
BOUND = "optimized "
# pytest puts a module of its own into every function that asserts
_NOT_THEIRS = sys.stdlib_module_names | {"mlx", "fuser", "numpy", "pytest", "_pytest"}


def captures(fn: Any) -> list[Any]:
    """The roots of the state of `fn`: what it may read or change besides its arguments, as containers."""
    roots: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    names: dict[str, None] = {"__call__": None}
    owners: dict[int, Any] = {}
    large: dict[int, Any] = {}
    stack = [fn]
    while True:
        if not stack:
            found = [(owner, _reached(owner, names)) for owner in (*_bases(owners.values()), *large.values())]
            values = [value for _, reached in found for value in reached.values()]
            owners |= {id(value): value for value in values if _is_owner(value)}
            stack = [each for each in map(_function, values) if _followed(each) and id(each) not in seen]
            if not stack and len(found) == len(_bases(owners.values())) + len(large):
                break
            continue
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
                held = [cell.cell_contents for cell in each.__closure__ or () if filled(cell)]
                roots.update((id(value), value) for value in held if isinstance(value, nn.Module))
                stack += [value for value in held if _is_function(value) or isinstance(value, nn.Module)]
            else:
                variables, defaults = _variables(each), Defaults(each)
                brought = [variables, defaults, *([vars(each)] if vars(each) else ())]
                roots.update((id(part), part) for part in brought)
                names |= dict.fromkeys(names_of(each.__code__))
                stack += filter(_followed, chain.from_iterable(part.values() for part in brought))
                owners |= {id(owner): owner for owner in _owners(each)}
        elif isinstance(each, functools.partial):
            parts = [each.func, *each.args, *each.keywords.values()]
            roots.update((id(part), part) for part in parts if not _is_function(part))
            stack += filter(_followed, parts)
        elif isinstance(each, types.MethodType | types.BuiltinFunctionType):
            roots[id(each.__self__)] = each.__self__
            if not isinstance(each.__self__, nn.Module):
                stack += filter(_followed, [getattr(each, "__func__", None), each.__self__])
        elif isinstance(each, _COMPILED):
            # MLX does not tell what it has wrapped; the garbage collector does
            parts = [part for part in gc.get_referents(each) if part not in _COMPILED]
            roots.update((id(part), part) for part in parts if isinstance(part, dict | list | tuple | nn.Module))
            stack += filter(_followed, parts)
        elif isinstance(each, nn.Module):
            roots[id(each)] = each
            for _, module in paths_of(each):
                owners[id(type(module))] = type(module)
            stack += filter(_followed, _held_in(each))
        elif isinstance(each, list | tuple | dict):
            stack += filter(_followed, values_of(each))
        elif not isinstance(each, type):
            if callable(each):
                roots[id(each)] = each
            owners[id(type(each))] = type(each)
            slots = Slots(each)
            held = [value for name, value in getattr(each, "__dict__", {}).items() if not name.startswith(BOUND)]
            if not is_small(each):
                # its slots, and what is read of it by name
                large[id(each)], roots[id(slots)] = each, slots
                held = []
            stack += filter(_followed, [*held, *slots.values()])
    for owner, reached in found:
        kept = [name for name, value in reached.items() if not _is_owner(value)]
        if id(owner) in large:
            # a name may be made when the program runs
            kept += [name for name, value in vars(owner).items() if name not in reached and type(value) in _EASY]
        if kept or id(owner) in large:
            attributes = (Read if id(owner) in large else Attributes)(owner, kept)
            roots[id(attributes)] = attributes
    return list(roots.values())


def _followed(value: Any) -> bool:
    """Whether a function may be reached through `value`."""
    if isinstance(value, types.BuiltinFunctionType):
        # the method of a list, say, is bound to it
        return not isinstance(value.__self__, types.ModuleType | type | None)
    if _is_function(value) or isinstance(value, nn.Module | list | tuple | dict):
        return True
    if isinstance(value, (type, types.ModuleType, mx.array, logging.Logger)):
        return False
    return hasattr(value, "__dict__") or (bool(slots_of(type(value))) and is_small(value))


def _held_in(module: nn.Module) -> list[Any]:
    """What a module and those inside of it hold besides modules and containers."""
    found: list[Any] = []
    seen: set[int] = set()
    stack: list[Any] = [module]
    while stack:
        each = stack.pop()
        if isinstance(each, dict | list | tuple):
            if id(each) not in seen:
                seen.add(id(each))
                stack += values_of(each)
                stack += [value for name, value in getattr(each, "__dict__", {}).items() if not name.startswith(BOUND)]
        else:
            found.append(each)
    return found


def _bases(owners: Iterable[Any]) -> list[Any]:
    """The modules and classes of the program, with the bases of those; not what MLX and Python have of their own."""
    found = {id(base): base for owner in owners for base in (owner.__mro__ if isinstance(owner, type) else [owner])}
    return [base for base in found.values() if _is_owner(base)]


def _is_owner(value: Any) -> bool:
    if not isinstance(value, type | types.ModuleType):
        return False
    name = value.__module__ if isinstance(value, type) else value.__name__
    return name.split(".")[0] not in _NOT_THEIRS


def _owners(fn: types.FunctionType) -> list[Any]:
    """The modules and classes that a function names."""
    cells = [cell.cell_contents for cell in fn.__closure__ or () if filled(cell)]
    outer = fn.__globals__
    read = [outer[name] for name in names_of(fn.__code__) if name in outer]
    return [each for each in (*cells, *read, *_imported(fn.__code__, outer)) if _is_owner(each)]


def _imported(code: types.CodeType, outer: dict[str, Any]) -> Iterator[Any]:
    """The modules that a function imports when it runs, if loaded; a dot may stand for any package around it."""
    if _IMPORT in code.co_code[::2]:
        package = (outer.get("__package__") or "").split(".")
        above = [".".join(package[:length]) for length in range(1, len(package) + 1)]
        for name in code.co_names:
            yield from filter(None, map(sys.modules.get, (name, *(f"{each}.{name}" for each in above))))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, outer)


def _reached(owner: Any, names: dict[str, None]) -> dict[str, Any]:
    """What of a module or class may be read by these names."""
    held = vars(owner)
    return {name: held[name] for name in names if name in held and (_is_owner(held[name]) or _matters(held[name]))}


def _function(value: Any) -> Any:
    """The function that an attribute of a class is a property or a method of."""
    value = getattr(value, "original", value) if is_ours(type(value)) else value
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


def is_mlx(function: types.FunctionType) -> bool:
    """Whether a function is MLX's or ours: it reads nothing that changes."""
    return (function.__module__ or "").split(".")[0] in ("mlx", "fuser")


def _is_function(value: Any) -> bool:
    kinds = (types.FunctionType, types.MethodType, functools.partial, *_COMPILED)
    return isinstance(value, kinds) or hasattr(type(value), "original")


def _variables(fn: types.FunctionType) -> Variables:
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    kept = {name: cell for name, cell in cells.items() if not filled(cell) or _matters(cell.cell_contents)}
    outer = fn.__globals__
    names = dict.fromkeys(name for name in names_of(fn.__code__) if name in outer and _matters(outer[name]))
    return Variables(kept, outer, names)


def _matters(value: Any) -> bool:
    return not isinstance(value, types.ModuleType | type)


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
        elif isinstance(each, dict | list | tuple | Variables):
            stack += [(_joined(name, key), child) for key, child in items_of(each)]
        elif _looked_into(each):
            stack += [(_joined(name, key), child) for key, child in vars(each).items()]
    if len(found) == 1:
        return list(found.values())
    inner = {id(module) for _, top in found.values() for path, module in paths_of(top) if path}
    return [(name, module) for name, module in found.values() if id(module) not in inner]


def paths_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules inside of `module`, itself included, with their paths."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", module)]
    while stack:
        path, each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            found.append((path, each))
        stack += [(_joined(path, key), child) for key, child in items_of(each) if isinstance(child, dict | list)]
    return found


def parameters_of(module: nn.Module) -> list[mx.array]:
    """The arrays that a module counts as its parameters."""
    found: list[mx.array] = []
    seen: set[int] = set()
    stack: list[Any] = [module]
    while stack:
        each = stack.pop()
        if isinstance(each, mx.array):
            found.append(each)
        elif isinstance(each, nn.Module) and id(each) not in seen:
            shown = [(str(key), child) for key, child in items_of(each)]
            stack += [child for key, child in shown if not key.startswith("_") and not isinstance(child, tuple)]
        elif isinstance(each, dict | list | tuple) and id(each) not in seen:
            stack += values_of(each)
        seen.add(id(each))
    return found


def _looked_into(value: Any) -> bool:
    kinds = (type, types.ModuleType, types.FunctionType, logging.Logger, *_COMPILED)
    return hasattr(value, "__dict__") and not isinstance(value, kinds) and not is_ours(type(value)) and is_small(value)


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
