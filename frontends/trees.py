"""Trees of arrays: lists, tuples, dictionaries and objects, taken apart and put together again."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import types
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from fuser.errors import TraceError
from fuser.frontends.containers import item_of, items_of, put_item, values_of
from fuser.frontends.variables import Attributes, Defaults, Read, Slots, Variables, filled, slots_of


class Spec(NamedTuple):
    """The shape of a tree without its arrays; hashable, so that it can key a cache of traces."""

    kind: Any
    """`ARRAY`, `STATIC`, `SHARED`, or the class of a container."""
    keys: tuple[Any, ...] = ()
    """The keys of a dictionary and the attributes of an object; type and value of a static leaf."""
    children: tuple[Spec, ...] = ()


class Attribute(NamedTuple):
    """The key of what an object holds as an attribute."""

    name: str

    def __str__(self) -> str:
        return self.name


class Slot(NamedTuple):
    """A place that holds an array: a key of a dictionary, an index of a list, or in a tuple there."""

    store: Any
    """A dictionary (the one of an object's attributes, too), a list, or the variables of a function."""
    key: Any
    path: tuple[int, ...] = ()

    @property
    def array(self) -> mx.array:
        """What it holds now."""
        found = item_of(self.store, self.key)
        for index in self.path:
            found = tuple.__getitem__(found, index)
        return found  # type: ignore[no-any-return]

    def put(self, array: mx.array) -> None:
        """Let it hold `array`."""
        new = _replaced(item_of(self.store, self.key), self.path, array) if self.path else array
        put_item(self.store, self.key, new)


class ByIdentity:
    """An object that is only ever the same as itself, whatever it says."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


ARRAY = "array"
STATIC = "static"
SHARED = "shared"
LEAF = Spec(ARRAY)
# beyond this size in memory, an object has more than a dictionary of attributes: slots, or a life outside of Python
_SIZES = [(base, type("", (base,), {}).__basicsize__) for base in (OrderedDict, dict, list, object)]
# beyond this many containers, an argument is no tree but somebody's whole world
MOST = 20_000
FEW = 1_000
# so many bytes of NumPy arrays are told apart by what they hold: lengths and places, not data
KNOWN_BYTES = 1 << 16
_ATOMS = frozenset({int, bool, str, bytes, type(None), type(...), range, mx.Dtype, mx.Device})
_PLAIN = _ATOMS | {float, complex, types.ModuleType}
_TRANSFORMED = type(mx.compile(lambda x: x))
_BUILTINS = (types.BuiltinFunctionType, type(mx.sin))
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, _TRANSFORMED, *_BUILTINS)
# a logger leads to all others
_HIDING = (deque, bytearray, memoryview, array, threading.local, ContextVar)
_OPAQUE = (*_FUNCTIONS, type, types.ModuleType, Enum, property, logging.Logger)


class Walk:
    """Takes trees apart, and remembers the containers that it met: one that is met again is `SHARED`.

    Containers are taken as they are: their places can be filled with other arrays for a while. A `lenient`
    walk takes what it cannot look into as static, by identity; otherwise that is a `TraceError`.
    """

    def __init__(self, known: Mapping[int, int] | None = None, *, lenient: bool = False) -> None:
        self.arrays: list[mx.array] = []
        self.slots: list[Slot | None] = []
        """Where each array lies; None: in no container but tuples."""
        self.objects: list[Any] = []
        """The containers, in the order in which they were met, after those that are `known` by id."""
        self.stores: list[Any] = []
        """What of them can be filled: dictionaries, lists, and dictionaries of attributes."""
        self.sets: list[set[Any]] = []
        """The sets, which are static, and may be changed in place."""
        self.numpy: list[tuple[NDArray[Any], Spec]] = []
        """The small NumPy arrays, which are static, and may be changed in place, and what they hold."""
        self.index: dict[int, int] = dict(known or {})
        self._lenient = lenient
        self._bytes = KNOWN_BYTES

    def walk(self, tree: Any, store: Any = None, key: Any = None, path: tuple[int, ...] = ()) -> Spec:
        """The shape of `tree`, which lies at `path` in the tuple at `key` of `store`."""
        kind = type(tree)
        if kind is mx.array:
            self.arrays.append(tree)
            self.slots.append(None if store is None else Slot(store, key, path))
            return LEAF
        if kind in _ATOMS:
            return Spec(STATIC, (kind, "", tree))
        if isinstance(tree, tuple):
            children = [self.walk(child, store, key, (*path, i)) for i, child in enumerate(tuple.__iter__(tree))]
            return Spec(kind, (), tuple(children))
        if kind in _BARE:
            return self._container(tree, kind)
        if kind is float:
            # 1, 1.0 and True are equal and hash alike, but make different programs; so do 0.0 and -0.0
            return Spec(STATIC, (kind, repr(tree), None))
        if kind is complex or isinstance(tree, np.number):
            return Spec(STATIC, (kind, repr(tree), tree))
        if kind is np.ndarray and not tree.dtype.hasobject and tree.nbytes <= self._bytes:
            self._bytes -= tree.nbytes
            self.numpy.append((tree, numpy_spec(tree)))
            return self.numpy[-1][1]
        if kind is types.MappingProxyType and self._lenient:  # a view of what may change
            return Spec(kind, (), tuple([self.walk(each) for each in gc.get_referents(tree)]))
        if kind is slice:
            return Spec(kind, (), tuple(self.walk(part) for part in (tree.start, tree.stop, tree.step)))
        if _is_leaf(tree, kind):
            return self._leaf(tree, kind)
        if isinstance(tree, dict | list):
            return self._container(tree, kind)
        if self._lenient and id(tree) not in self.index and (is_ours(kind) or not is_small(tree)):
            return self._leaf(tree, kind)
        return self._container(tree, kind)

    def _container(self, tree: Any, kind: type) -> Spec:
        number = self.index.get(id(tree))
        if number is not None:
            return Spec(SHARED, (number,))
        if len(self.objects) >= MOST:
            raise TraceError(f"an argument or result holds more than {MOST} containers")
        self.index[id(tree)] = len(self.index)
        self.objects.append(tree)
        keys: tuple[Hashable, ...] = ()
        parts: list[tuple[Any, list[tuple[Any, Any]]]] = []
        bare = kind in _BARE
        if isinstance(tree, list | dict | Variables):
            self.stores.append(tree)
            parts.append((tree, items_of(tree)))
            keys = () if isinstance(tree, list) else tuple([name for name, _ in parts[0][1]])
        slots = () if bare else slots_of(kind)
        if slots:
            held = Slots(tree)
            self.stores.append(held)
            parts.append((held, held.items()))
            keys += tuple(map(Attribute, held))
        attributes: dict[str, Any] | None = None if bare else getattr(tree, "__dict__", None)
        if attributes is not None:
            self.stores.append(attributes)
            # an optimized method that its object keeps is none of the program's affairs
            named = [(name, child) for name, child in attributes.items() if not is_ours(type(child))]
            parts.append((attributes, named))
            keys += tuple([Attribute(name) for name, _ in named])
        children = [self.walk(child, store, key) for store, items in parts for key, child in items]
        return Spec(kind, keys, tuple(children))

    def _leaf(self, tree: Any, kind: type) -> Spec:
        if isinstance(tree, set):
            self.sets.append(tree)
            return Spec(STATIC, (kind, "", frozenset(tree)))
        if hasattr(tree, "__next__"):
            raise TraceError(f"an iterator ({kind.__name__}) gives something else each time")
        if isinstance(tree, Awaitable | AsyncIterator):
            raise TraceError(f"the program does not run when it is called, but later ({kind.__name__})")
        if isinstance(tree, _HIDING):
            raise TraceError(f"{kind.__name__} cannot be looked into: what it holds may change")
        hidden = _slotted(tree)
        if _is_record(kind) and all(type(each) in _PLAIN for each in hidden):
            raise TraceError(f"an object of type {kind.__name__} cannot be looked into: its slots may change")
        if self._lenient and not any(isinstance(each, mx.array) for each in hidden):
            return Spec(STATIC, (kind, "", ByIdentity(tree)))
        if not all(type(each) in _ATOMS for each in hidden):
            raise TraceError(f"an argument or result of type {kind.__name__} cannot be looked into")
        brought: Any = ""
        if isinstance(tree, _FUNCTIONS):
            held = list(_brought(tree, set()))
            if not all(type(each) in _PLAIN for each in held):
                raise TraceError(f"an argument or result is a function that holds arrays or objects: {tree!r}")
            brought = tuple([Walk().walk(each) for each in held])
        try:
            hash(tree)
        except TypeError:
            what = f"an argument or result of type {kind.__name__}"
            if kind is np.ndarray:
                raise TraceError(f"{what} is not small: give an mx.array, or bind it with functools.partial") from None
            raise TraceError(f"{what} is no array and not hashable") from None
        return Spec(STATIC, (kind, brought, tree))


def numpy_spec(array: NDArray[Any]) -> Spec:
    """What a NumPy array holds, and how it is laid out."""
    return Spec(STATIC, (np.ndarray, (array.dtype, array.shape, array.strides), array.tobytes()))


# containers that are known to hold no more than their items
_BARE = frozenset({dict, list, Variables, Attributes, Defaults, Read, Slots, OrderedDict, Counter})


def _brought(function: Any, seen: set[int]) -> Iterator[Any]:
    """What a function that is passed around reads besides its arguments: the values of variables, defaults, parts."""
    if id(function) in seen:
        return
    seen.add(id(function))
    held: list[Any] = []
    if isinstance(function, types.FunctionType):
        held = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
        held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        outer = function.__globals__
        held += [outer[name] for name in names_of(function.__code__) if name in outer]
    elif isinstance(function, _BUILTINS):
        # the method of a list, say, is bound to it
        held = [getattr(function, "__self__", None)]
    elif isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
    else:
        held = [each for each in gc.get_referents(function) if each is not type(function)]
    for each in held:
        if isinstance(each, _FUNCTIONS):
            yield from _brought(each, seen)
        elif not isinstance(each, type | types.ModuleType):
            yield each


def names_of(code: types.CodeType) -> Iterator[str]:
    """The names that a function, and those inside of it, may look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def is_ours(kind: type) -> bool:
    """Whether a class is of fuser itself: an ONNX model brings constants, and no state."""
    return kind.__module__.split(".")[0] == "fuser"


def is_small(tree: Any) -> bool:
    """Whether `tree` leads to few containers, modules aside: a tokenizer is not looked into."""
    seen: set[int] = set()
    stack = [tree]
    while stack and len(seen) <= FEW:
        each = stack.pop()
        if id(each) in seen or isinstance(each, (*_OPAQUE, nn.Module)) or is_ours(type(each)):
            # modules are state however many there are; what an optimized method has traced is not its object's
            continue
        parts = list(getattr(each, "__dict__", {}).values())
        parts += values_of(each) if isinstance(each, dict | list | tuple) else ()
        if parts:
            seen.add(id(each))
            stack.extend(parts[: 50 * FEW])
    return len(seen) <= FEW


def _is_leaf(tree: Any, kind: type) -> bool:
    """Whether an object is more, or something else, than its attributes and, for a dictionary or list, its items."""
    found = _leaves.get(kind)
    if found is None:
        plain = next((size for base, size in _SIZES if isinstance(tree, base)), 0)
        in_sight = (hasattr(tree, "__dict__") and kind.__basicsize__ <= plain) or slots_of(kind)
        found = _leaves[kind] = isinstance(tree, _OPAQUE) or not in_sight
    return found


_leaves: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def _is_record(kind: type) -> bool:
    """Whether objects of the class have slots, and are known by who they are rather than by what they hold."""
    slots = any(getattr(each, "__slots__", ()) for each in kind.__mro__)
    by_value = any("__eq__" in each.__dict__ for each in kind.__mro__ if each is not object)
    return slots and not by_value and not issubclass(kind, PurePath)


def _slotted(tree: Any) -> list[Any]:
    """What an object without a dictionary of attributes holds."""
    names = [name for each in type(tree).__mro__ for name in getattr(each, "__slots__", ())]
    return [getattr(tree, name) for name in names if not isinstance(tree, PurePath) and hasattr(tree, name)]


def _replaced(tree: Any, path: tuple[int, ...], array: mx.array) -> Any:
    if not path:
        return array
    children = [_replaced(child, path[1:], array) if i == path[0] else child for i, child in items_of(tree)]
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


def flatten(tree: Any) -> tuple[list[mx.array], Spec]:
    """The arrays of `tree` in a fixed order, and the rest of it.

    Raises `TraceError` for a leaf that is neither hashable nor an object with attributes.
    """
    walk = Walk()
    spec = walk.walk(tree)
    return walk.arrays, spec


def loosened(tree: Any, arrays: Iterator[mx.array]) -> Any:
    """`tree` with other arrays where it holds them in tuples, and not in containers."""
    if isinstance(tree, mx.array):
        return next(arrays)
    if isinstance(tree, tuple):
        children = [loosened(child, arrays) for child in values_of(tree)]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return tree


def unflatten(spec: Spec, arrays: Iterable[mx.array], objects: list[Any] | None = None) -> Any:
    """The tree of `spec` with `arrays` at its leaves.

    `objects` are the containers that it shares; those that are made are put there, too.
    """
    return _unflatten(spec, iter(arrays), [] if objects is None else objects)


def _unflatten(spec: Spec, arrays: Iterator[mx.array], objects: list[Any]) -> Any:
    if spec.kind == ARRAY:
        return next(arrays)
    if spec.kind == STATIC:
        return _static(*spec.keys)
    if spec.kind == SHARED:
        return objects[spec.keys[0]]
    kind = spec.kind
    if kind is slice or issubclass(kind, tuple):
        children = [_unflatten(child, arrays, objects) for child in spec.children]
        return kind(*children) if kind is slice or hasattr(kind, "_fields") else kind(children)
    made: Any = [] if kind is list else {} if kind is dict else kind.__new__(kind)
    objects.append(made)
    # a list has its items first, and attributes at most if somebody made a class of it
    items, slots = len(spec.children) - len(spec.keys), slots_of(kind)
    if items:
        list.extend(made, [_unflatten(child, arrays, objects) for child in spec.children[:items]])
    for key, child in zip(spec.keys, spec.children[items:], strict=True):
        value = _unflatten(child, arrays, objects)
        if isinstance(key, Attribute):
            if key.name in slots:
                object.__setattr__(made, key.name, value)
            else:
                made.__dict__[key.name] = value
        else:
            put_item(made, key, value)
    return made


def _static(kind: Any, text: str, value: Any) -> Any:
    if kind is float:
        return float(text)
    if isinstance(value, ByIdentity):
        return value.value
    return kind(value) if issubclass(kind, set) else value


def names(spec: Spec) -> list[str]:
    """A name for each array of a tree: the keys that lead to it, joined by dots."""
    if spec.kind == ARRAY:
        return [""]
    if spec.kind in (STATIC, SHARED):
        return []
    keys = (*range(len(spec.children) - len(spec.keys)), *spec.keys)
    return [
        f"{key}.{rest}".rstrip(".") for key, child in zip(keys, spec.children, strict=True) for rest in names(child)
    ]
