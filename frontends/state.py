"""State that a program keeps in containers: the arrays of modules, optimizers, caches and random generators.

The arrays are swapped for others while a program is traced, and put back; what it changed is known after.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import eq, is_
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.errors import TraceError
from fuser.frontends.containers import item_of, items_of, methods_of, put_item, refill, values_of
from fuser.frontends.looks import Look, written_out
from fuser.frontends.trees import Slot, Spec, Walk, numpy_spec, unflatten
from fuser.frontends.variables import Variables

Types = tuple[tuple[tuple[int, ...], mx.Dtype], ...]
# After so many looks that found nothing new, a look is written out: that takes as long as some hundred looks.
STEADY = 8


class Held:
    """What the containers of some roots held when they were last looked at.

    A look is cheap while nothing has changed: it compares what the containers hold, by identity.
    """

    def __init__(self, roots: Sequence[Any], known: Walk | None = None) -> None:
        self.roots = roots
        walk = Walk(known.index if known is not None else None, lenient=True)
        spec = walk.walk(tuple(roots))
        self.objects, self.stores, self.ids = walk.objects, walk.stores, walk.index.keys()
        self.slots: list[Slot] = []
        self.arrays: list[mx.array] = []
        self.constants: list[mx.array] = []
        """The arrays in no container, such as those that `functools.partial` has bound: the program may read them."""
        for slot, array in zip(walk.slots, walk.arrays, strict=True):
            if slot is None:
                self.constants.append(array)
            else:
                self.slots.append(slot)
                self.arrays.append(array)
        self._types = types_of(self.arrays)
        # what of the state decides about the program: all but the values of its arrays; a set knows its hash
        self.signature: Hashable = frozenset([(spec, self._types)])
        dictionaries = [store for store in self.stores if isinstance(store, dict)]
        plain = [store for store in dictionaries if methods_of(store) is dict]
        # `dict` does not know in which order these are
        ordered = [store for store in dictionaries if isinstance(store, OrderedDict)]
        lists = [store for store in self.stores if isinstance(store, list | tuple)]
        looks = [look for store in self.stores if isinstance(store, Variables) and (look := store.look()) is not None]
        # what there is none of takes no time in a look
        values: list[tuple[Callable[[Any], Any], list[Any]]] = [
            (dict.values, plain),
            (OrderedDict.values, ordered),
            (values_of, lists),
            (lambda look: look(), looks),
        ]
        self._values_by = [(values, stores) for values, stores in values if stores]
        # those that give their keys themselves do so fastest
        listed = [each for each in plain if type(each).__iter__ is dict.__iter__]
        unlisted = [each for each in plain if type(each).__iter__ is not dict.__iter__]
        names: list[tuple[Callable[[Any], Any], list[Any]]] = [
            (iter, listed),
            (dict.keys, unlisted),
            (OrderedDict.keys, ordered),
        ]
        self._names_by = [(names, stores) for names, stores in names if stores]
        self._keys = self._names()
        self._sets, self._members = walk.sets, [frozenset(each) for each in walk.sets]
        self.numpy = walk.numpy
        self._fixed = not (self._values_by or self._names_by or self._sets or self.numpy)
        self._values = self._look()
        places: dict[int, int] = {id(value): place for place, value in enumerate(self._values)}
        self._simple = all(not slot.path for slot in self.slots) and len(set(map(id, self.arrays))) == len(self.arrays)
        self._places = [places[id(array)] for array in self.arrays] if self._simple else []
        self._steady, self._tried = 0, False
        self._written: tuple[Look, tuple[mx.array, ...]] | None = None

    def _look(self) -> list[Any]:
        return [*chain.from_iterable(chain.from_iterable([map(values, stores) for values, stores in self._values_by]))]

    def _names(self) -> list[Any]:
        return [*chain.from_iterable(chain.from_iterable([map(names, stores) for names, stores in self._names_by]))]

    def still(self) -> bool:
        """Whether all is as it was, but for the values of arrays; those are looked up again."""
        if self._fixed:
            return True
        try:
            values, before = self._look(), self._values
        except (KeyError, ValueError):
            # a variable is none any more
            return False
        if (
            len(values) != len(before)
            or self._names() != self._keys
            or (self._sets and not all(map(eq, self._sets, self._members)))
        ):
            return False
        if self.numpy and not all(numpy_spec(array) == spec for array, spec in self.numpy):
            return False
        if all(map(is_, values, before)):
            self._steady += 1
            return True
        self._steady, self._tried, self._written = 0, False, None
        if not self._simple:
            return False
        arrays = [values[place] for place in self._places]
        if not all(type(array) is mx.array for array in arrays) or types_of(arrays) != self._types:
            return False
        changed = sum(map(is_, values, before)) + len(arrays) - sum(map(is_, arrays, self.arrays))
        if changed != len(values) or len(set(map(id, arrays))) != len(arrays):
            return False
        self.arrays, self._values = arrays, values
        return True

    def shortcut(self) -> tuple[Look, tuple[mx.array, ...]] | None:
        """The fastest look, which tells only whether all is as it was, and the arrays then; it may raise an error.

        None where there is no such look, or none yet: it is made for what stays as it is.
        """
        if self._fixed:
            return _nothing_to_see, ()
        if self._steady >= STEADY and not self._tried:
            self._tried = True
            arrays = tuple(self.arrays)
            look = written_out(self.stores, self._sets) if not self.numpy else None
            # another thread may have changed something meanwhile
            if look is not None and look() and self.still() and all(map(is_, arrays, self.arrays)):
                self._written = look, arrays
        return self._written


def _nothing_to_see() -> bool:
    return True


def types_of(arrays: Sequence[mx.array]) -> Types:
    """Shapes and dtypes."""
    return tuple([(array.shape, array.dtype) for array in arrays])


class Change(NamedTuple):
    """Something that a call puts into a container: an array, or whatever else."""

    store: int
    """Which container, in the order in which they are met."""
    key: Any
    """`WHOLE` for a list whose length changed, `ORDER` for a dictionary with another order of its keys."""
    spec: Spec | None
    """None: the key is taken away."""

    def apply(self, stores: Sequence[Any], arrays: Iterator[mx.array], objects: list[Any]) -> None:
        """Do to the containers what the program did when it was traced."""
        store = stores[self.store]
        if self.spec is None:
            if dict.__contains__(store, self.key):
                methods_of(store).__delitem__(store, self.key)
            return
        value = unflatten(self.spec, arrays, objects)
        if self.key is WHOLE:
            list.__setitem__(store, WHOLE, value)
        elif self.key is ORDER:
            refill(store, [(key, item_of(store, key)) for key in value])
        else:
            put_item(store, self.key, value)


WHOLE = slice(None)
ORDER = slice(0)


@contextmanager
def swapped(
    stores: Sequence[Any],
    slots: Sequence[Slot | None],
    arrays: Sequence[mx.array],
    replacement: Callable[[Any], Any] = lambda value: None,
) -> Iterator[Callable[[Walk], list[Change]]]:
    """Inside the `with` block the `slots` of `stores` hold `arrays`; after it, all is as before.

    What else they hold is swapped for its `replacement`, where there is one (not None).

    Yields a function that tells what the program has changed since; it takes new values apart with a walk.
    """
    before = [_copy(store) for store in stores]
    try:
        for slot, array in zip(slots, arrays, strict=True):
            if slot is not None:
                slot.put(array)
        for store in stores:
            _replace(store, replacement)
        given = [_copy(store) for store in stores]
        yield lambda walk: [
            change
            for number, (store, items) in enumerate(zip(stores, given, strict=True))
            for change in _changes(number, store, items, walk)
        ]
    finally:
        for store, items in zip(stores, before, strict=True):
            _restore(store, items)


@contextmanager
def unwritten(arrays: Sequence[tuple[NDArray[Any], Spec]]) -> Iterator[None]:
    """Raises `TraceError` where the `with` block has written into NumPy arrays; they are as before then."""
    try:
        yield
    finally:
        written = [(array, spec) for array, spec in arrays if numpy_spec(array) != spec]
        for array, spec in written:
            _, (dtype, shape, _), data = spec.keys
            if (array.dtype, array.shape) == (dtype, shape):
                array[...] = np.frombuffer(data, dtype).reshape(shape)
    if written:
        raise TraceError("the program writes into a NumPy array that it was given or holds: let it take a copy first")


@contextmanager
def unmoved(arrays: Sequence[mx.array]) -> Iterator[Callable[[], bool]]:
    """After the `with` block the arrays are as before; then, what is yielded tells whether they were all the time.

    They are evaluated first: what is pending for a constant would be traced with the program.
    """
    before = [(array, array[...]) for array in arrays if readable(array)]
    moved: list[mx.array] = []
    try:
        yield lambda: not moved
    finally:
        for array, handle in before:
            if not readable(array) or address(array) != address(handle):
                moved.append(array)
                whole: Any = array
                whole[...] = handle


def address(array: mx.array) -> int:
    """Where the array's memory lies: an update in place gives it another, while we hold the old one."""
    if array.dtype == mx.bfloat16:
        # numpy has no such type; the view shares the memory
        array = array.view(mx.uint16)
    view = np.asarray(memoryview(array))  # type: ignore[arg-type]
    return int(view.__array_interface__["data"][0])


def _replace(store: Any, replacement: Callable[[Any], Any]) -> None:
    for key, value in items_of(store):
        new = None if isinstance(value, mx.array) else replacement(value)
        if new is not None:
            put_item(store, key, new)


def _copy(store: Any) -> Any:
    return values_of(store) if isinstance(store, list) else dict(items_of(store))


def _restore(store: Any, items: Any) -> None:
    now = _copy(store)
    if isinstance(store, list):
        if len(now) != len(items) or not all(map(is_, now, items)):
            list.__setitem__(store, WHOLE, items)
    elif isinstance(store, Variables):
        for name in now.keys() - items.keys():
            del store[name]
        for name, value in items.items():
            if now.get(name) is not value:
                store[name] = value
    elif list(now) != list(items) or not all(map(is_, now.values(), items.values())):
        refill(store, items.items())


def _changes(number: int, store: Any, given: Any, walk: Walk) -> list[Change]:
    if isinstance(store, list):
        held = values_of(store)
        if len(held) != len(given):
            return [Change(number, WHOLE, walk.walk(tuple(held)))]
        pairs = enumerate(zip(held, given, strict=True))
        return [Change(number, place, walk.walk(new)) for place, (new, old) in pairs if new is not old]
    now = _copy(store)
    if isinstance(store, Variables) and now.keys() != given.keys():
        raise TraceError("a variable around the function is made or deleted by it")
    missing = object()
    gone = [Change(number, key, None) for key in given if key not in now]
    changed = {key: value for key, value in now.items() if given.get(key, missing) is not value}
    changes = gone + [Change(number, key, walk.walk(value)) for key, value in changed.items()]
    if list(now) != [key for key in given if key in now] + [key for key in now if key not in given]:
        changes.append(Change(number, ORDER, walk.walk(tuple(now))))
    return changes


class RandomState:
    """MLX's global random state, as a container of one array that can be filled.

    Nobody can set it but the captured outputs of a compiled function: one that gives back its argument does.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self) -> mx.array:
        """The key from which the next draw comes."""
        state: Any = mx.random.state
        return state[0]  # type: ignore[no-any-return]

    def put(self, key: mx.array) -> bool:
        """Let the next draw come from `key`; false where that cannot be: while MLX traces the state itself."""
        local = self._local
        if not hasattr(local, "setter"):
            local.box, local.traced = [None], False

            def give(array: mx.array) -> list[mx.array]:
                local.traced = True
                local.box[0] = array
                return []

            local.setter = mx.compile(give, outputs=local.box)
            # the first call is the one in which MLX traces it
            local.setter(mx.zeros((2,), mx.uint32))
        local.traced = False
        local.box[0] = mx.random.state
        try:
            local.setter(key)
        finally:
            local.box[0] = None
        return not local.traced or self._put_evaluated(key)

    @staticmethod
    def _put_evaluated(key: mx.array) -> bool:
        """Without compilation there is no captured output; the numbers of the key are a seed, too."""
        try:
            high, low = np.array(key).tolist()
        except (RuntimeError, ValueError):
            return False
        mx.random.seed((high << 32) | low)
        return True


random_state = RandomState()


def number_of(array: mx.array) -> str | None:
    """The value of an array of one element, -0.0 and NaN told apart; None: it has more, or is traced by MLX."""
    try:
        return repr(array.item()) if array.size == 1 else None
    except (RuntimeError, ValueError):
        return None


def differentiated(array: mx.array) -> bool:
    """Whether a gradient with respect to `array` is being taken: MLX lets its value be read all the same."""
    probe, told = mx.stop_gradient(array), io.StringIO()
    # what is computed forgets what it was computed from, but for gradients
    mx.eval(probe)
    mx.export_to_dot(told, probe)
    return "StopGradient" in told.getvalue()


def readable(array: mx.array) -> bool:
    """Whether the value of `array` is there: not while MLX traces it."""
    try:
        mx.eval(array)
    except (RuntimeError, ValueError):
        return False
    return True
