"""Trees of arrays: lists, tuples, named tuples, dataclasses and dictionaries, taken apart and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.errors import TraceError


class Spec(NamedTuple):
    """The shape of a tree without its arrays; hashable, so that it can key a cache of traces."""

    kind: Hashable
    """`ARRAY`, `STATIC`, or the class of a container."""
    keys: tuple[Hashable, ...] = ()
    """The keys of a dictionary or fields of a dataclass; the value of a static leaf, with its type."""
    children: tuple[Spec, ...] = ()


ARRAY = "array"
STATIC = "static"
_LEAF = Spec(ARRAY)


def flatten(tree: Any) -> tuple[list[mx.array], Spec]:
    """The arrays of `tree` in a fixed order, and the rest of it; raises `TraceError` for a leaf that cannot be hashed."""
    arrays: list[mx.array] = []
    return arrays, _flatten(tree, arrays)


def _flatten(tree: Any, arrays: list[mx.array]) -> Spec:
    if isinstance(tree, mx.array):
        arrays.append(tree)
        return _LEAF
    kind: type = type(tree)
    if isinstance(tree, dict):
        return Spec(kind, tuple(tree), tuple(_flatten(child, arrays) for child in tree.values()))
    if isinstance(tree, list | tuple):
        return Spec(kind, (), tuple(_flatten(child, arrays) for child in tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = tuple(field.name for field in dataclasses.fields(tree))
        children = tuple(_flatten(getattr(tree, name), arrays) for name in names)
        if any(map(_has_array, children)):
            return Spec(kind, names, children)
    try:
        hash(tree)
    except TypeError:
        raise TraceError(f"an argument or result of type {kind.__name__} is neither an array nor hashable") from None
    # 1, 1.0 and True are equal and hash alike, but make different programs; so do 0.0 and -0.0
    return Spec(STATIC, (kind, repr(tree) if isinstance(tree, float) else "", tree))


def _has_array(spec: Spec) -> bool:
    return spec.kind == ARRAY or any(map(_has_array, spec.children))


def unflatten(spec: Spec, arrays: Iterable[mx.array]) -> Any:
    """The tree of `spec` with `arrays` at its leaves."""
    return _unflatten(spec, iter(arrays))


def _unflatten(spec: Spec, arrays: Iterator[mx.array]) -> Any:
    if spec.kind == ARRAY:
        return next(arrays)
    if spec.kind == STATIC:
        return spec.keys[2]
    children = [_unflatten(child, arrays) for child in spec.children]
    kind: Callable[..., Any] = spec.kind  # type: ignore[assignment]
    if issubclass(spec.kind, dict):  # type: ignore[arg-type]
        return _dictionary(kind, dict(zip(spec.keys, children, strict=True)))
    if spec.keys:
        made = object.__new__(spec.kind)  # type: ignore[arg-type]
        for name, child in zip(spec.keys, children, strict=True):
            object.__setattr__(made, str(name), child)
        return made
    return kind(*children) if hasattr(kind, "_fields") else kind(children)


def _dictionary(kind: Callable[..., Any], items: dict[Any, Any]) -> Any:
    if kind is dict:
        return items
    made = kind.__new__(kind)  # type: ignore[call-overload]
    made.update(items)
    return made


def names(spec: Spec) -> list[str]:
    """A name for each array of a tree: the keys that lead to it, joined by dots."""
    if spec.kind == ARRAY:
        return [""]
    if spec.kind == STATIC:
        return []
    keys = spec.keys or range(len(spec.children))
    return [
        f"{key}.{rest}".rstrip(".") for key, child in zip(keys, spec.children, strict=True) for rest in names(child)
    ]
