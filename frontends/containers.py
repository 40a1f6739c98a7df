"""Lists and dictionaries as Python has them, whatever the author of their class means by `values`, `pop` or `[]`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any


def methods_of(store: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The class that knows what `store` holds, and in which order."""
    return OrderedDict if isinstance(store, OrderedDict) else dict


def values_of(store: Any) -> list[Any]:
    """What a dictionary, list, tuple or variables hold."""
    if isinstance(store, dict):
        return list(methods_of(store).values(store))
    if isinstance(store, list):
        return list.__getitem__(store, slice(None))
    return list(tuple.__iter__(store)) if isinstance(store, tuple) else list(store.values())


def items_of(store: Any) -> list[tuple[Any, Any]]:
    """Keys, or places, with what is there."""
    if isinstance(store, dict):
        return list(methods_of(store).items(store))
    return list(enumerate(values_of(store))) if isinstance(store, list | tuple) else list(store.items())


def item_of(store: Any, key: Any) -> Any:
    """What a dictionary, list or variables hold at `key`."""
    if isinstance(store, dict):
        return dict.__getitem__(store, key)
    return list.__getitem__(store, key) if isinstance(store, list) else store[key]


def put_item(store: Any, key: Any, value: Any) -> None:
    """Let a dictionary, list or variables hold `value` at `key`."""
    if isinstance(store, dict):
        methods_of(store).__setitem__(store, key, value)
    elif isinstance(store, list):
        list.__setitem__(store, key, value)
    else:
        store[key] = value


def refill(store: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> None:
    """Let a dictionary hold `items` in this order, and nothing else."""
    methods = methods_of(store)
    methods.clear(store)
    for key, value in items:
        methods.__setitem__(store, key, value)
