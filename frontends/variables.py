"""What a program reads by name, as containers: variables, attributes of modules and classes, defaults, slots."""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary


class Variables:
    """The variables that a function reads from around it."""

    def __init__(self, cells: Mapping[str, types.CellType], outer: dict[str, Any], names: Iterable[str]) -> None:
        self._cells = dict(cells)
        self._outer = outer
        self._names = (*self._cells, *names)

    def items(self) -> list[tuple[str, Any]]:
        """Names and values; those that have none are left out."""
        found = []
        for name in self._names:
            try:
                found.append((name, self[name]))
            except (KeyError, ValueError):
                continue
        return found

    def values(self) -> list[Any]:
        """The values alone."""
        return [value for _, value in self.items()]

    def places(self) -> list[tuple[Any, str, Any]] | None:
        """Where each value is read: of which object, how that is written after it, and the value.

        None where that does not tell all: a name without a value may get one.
        """
        if len(self.items()) < len(self._names):
            return None
        outer = self._place()
        return [
            (self._cells[name], ".cell_contents", value) if name in self._cells else (outer, f"[{name!r}]", value)
            for name, value in self.items()
        ]

    def look(self) -> Callable[[], Sequence[Any]] | None:
        """Another way to `values`, for every call of a program: in few steps, while names that have a value keep one.

        It raises `KeyError` or `ValueError` where one has none any more. None when there is nothing to look at.
        """
        if not self._names:
            return None
        if len(self.items()) < len(self._names):
            # a name may get a value
            return self.values
        cells, outer = list(self._cells.values()), self._place()
        take = _taker(self._names[len(cells) :])
        if not cells:
            return lambda: take(outer)
        if len(cells) == len(self._names):
            return lambda: [cell.cell_contents for cell in cells]
        return lambda: [*[cell.cell_contents for cell in cells], *take(outer)]

    def _place(self) -> Mapping[str, Any]:
        return self._outer

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.items()])

    def __getitem__(self, name: str) -> Any:
        cell = self._cells.get(name)
        return self._outer[name] if cell is None else cell.cell_contents

    def __setitem__(self, name: str, value: Any) -> None:
        cell = self._cells.get(name)
        if cell is None:
            self._outer[name] = value
        else:
            cell.cell_contents = value

    def __delitem__(self, name: str) -> None:
        cell = self._cells.get(name)
        if cell is None:
            del self._outer[name]
        else:
            del cell.cell_contents


class Attributes(Variables):
    """What a module or a class has under some names."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        super().__init__({}, {}, names)
        self._owner = owner

    def _place(self) -> Mapping[str, Any]:
        held: Mapping[str, Any] = vars(self._owner)
        return held

    def __getitem__(self, name: str) -> Any:
        return vars(self._owner)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(self._owner, type) and isinstance(value, types.FunctionType):
            # functions of MLX do not become methods: what stands for one must not, either
            value = value if hasattr(type(vars(self._owner).get(name)), "__get__") else staticmethod(value)
        setattr(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._owner, name)


class Read(Attributes):
    """What an object too large to be looked into has under the names that a program reads, or gives it."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        super().__init__(owner, names)
        self._known = frozenset(vars(owner))
        self._unread = self._known.difference(names)

    def places(self) -> list[tuple[Any, str, Any]] | None:
        """None: there may be more attributes."""
        return None

    def items(self) -> list[tuple[str, Any]]:
        """As `Variables.items`, and what has been added since."""
        return [(name, value) for name, value in vars(self._owner).items() if name not in self._unread]

    def look(self) -> Callable[[], Sequence[Any]] | None:
        """As `Variables.look`; it raises `KeyError` where there are other attributes, too."""
        take = _taker(self._names)

        def values() -> Sequence[Any]:
            held = vars(self._owner)
            if held.keys() != self._known:
                raise KeyError
            return take(held)

        return values

    def __setitem__(self, name: str, value: Any) -> None:
        vars(self._owner)[name] = value

    def __delitem__(self, name: str) -> None:
        del vars(self._owner)[name]


class Defaults(Variables):
    """The defaults of a function's parameters."""

    def __init__(self, function: types.FunctionType) -> None:
        code, count = function.__code__, len(function.__defaults__ or ())
        last = code.co_varnames[: code.co_argcount][-count:] if count else ()
        super().__init__({}, {}, (*last, *(function.__kwdefaults__ or {})))
        self._function = function
        self._places = {name: place for place, name in enumerate(last)}

    def places(self) -> list[tuple[Any, str, Any]] | None:
        """As `Variables.places`."""
        function = self._function
        keyword = [
            (function, f".__kwdefaults__[{name!r}]", each) for name, each in (function.__kwdefaults__ or {}).items()
        ]
        return [(function, ".__defaults__", function.__defaults__), *keyword]

    def look(self) -> Callable[[], Sequence[Any]] | None:
        """As `Variables.look`."""
        return self.values if self._names else None

    def __getitem__(self, name: str) -> Any:
        place, given = self._places.get(name), self._function.__defaults__ or ()
        if place is None:
            return (self._function.__kwdefaults__ or {})[name]
        if place >= len(given):
            raise KeyError(name)
        return given[place]

    def __setitem__(self, name: str, value: Any) -> None:
        place = self._places.get(name)
        if place is None:
            self._function.__kwdefaults__ = {**(self._function.__kwdefaults__ or {}), name: value}
        else:
            given = self._function.__defaults__ or ()
            self._function.__defaults__ = (*given[:place], value, *given[place + 1 :])


class Slots(Variables):
    """The slots of an object."""

    def __init__(self, owner: Any) -> None:
        super().__init__({}, {}, slots_of(type(owner)))
        self._owner = owner

    def places(self) -> list[tuple[Any, str, Any]] | None:
        """As `Variables.places`."""
        return (
            [(self._owner, f".{name}", self[name]) for name in self._names]
            if len(self.items()) == len(self._names)
            else None
        )

    def look(self) -> Callable[[], Sequence[Any]] | None:
        """As `Variables.look`."""
        return self.values if self._names else None

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._owner, name)
        except AttributeError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        # a frozen dataclass refuses it, but not from us
        object.__setattr__(self._owner, name, value)


def _taker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(names) == 1:
        return lambda place: (place[names[0]],)
    return itemgetter(*names) if names else lambda place: ()


def filled(cell: types.CellType) -> bool:
    """Whether a variable of an outer function has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def slots_of(kind: type) -> tuple[str, ...]:
    """The slots of objects of a class of the program's; none where they have more than those and a dictionary."""
    found = _slots.get(kind)
    if found is None:
        found = _slots[kind] = _slots_of(kind)
    return found


_slots: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _slots_of(kind: type) -> tuple[str, ...]:
    # a slot in all but name
    factory = ("default_factory",) if issubclass(kind, defaultdict) else ()
    if kind.__module__.split(".")[0] in sys.stdlib_module_names:
        return factory if kind is defaultdict else ()
    bases = [base for base in kind.__mro__ if "__slots__" in vars(base)]
    # not as they are written: names with two underscores are changed
    members = [(name, each) for base in bases for name, each in vars(base).items()]
    names = factory + tuple(name for name, each in members if isinstance(each, types.MemberDescriptorType))
    plain = dict if factory else object
    apart = kind.__basicsize__ - plain.__basicsize__ - 8 * ((kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0))
    return names if apart == 8 * len(names) else ()
