"""A look at containers, written out as code: whether they hold what they held, in as few steps as Python can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from fuser.frontends.variables import Variables

Look = Callable[[], bool]


def written_out(stores: Sequence[Any], sets: Sequence[set[Any]]) -> Look | None:
    """A function that tells whether the `stores` hold the very objects that they hold now, in this order.

    It may raise an error where they do not: a name may be gone. None where a container needs more than such a look.
    """
    names: dict[int, str] = {}
    known: dict[str, Any] = {}

    def named(value: Any) -> str:
        name = names.setdefault(id(value), f"_{len(names)}")
        # which keeps it, too: nothing else gets its id
        known[name] = value
        return name

    terms: list[str] = []
    dictionaries = [store for store in stores if isinstance(store, dict)]
    if dictionaries:
        keys = [*chain.from_iterable(dictionaries)]
        terms.append(f"[*{named(chain.from_iterable)}({named(dictionaries)})] == {named(keys)}")
    for store in stores:
        if isinstance(store, dict):
            if type(store).__iter__ is not dict.__iter__ or type(store).__getitem__ is not dict.__getitem__:
                return None
            for key, value in dict.items(store):
                # what is written in the code is looked up fastest
                place = repr(key) if type(key) is str else named(key)
                terms.append(f"{named(store)}[{place}] is {named(value)}")
        elif type(store) is list:
            terms.append(f"len({named(store)}) == {len(store)}")
            terms += [f"{named(store)}[{place}] is {named(value)}" for place, value in enumerate(store)]
        elif isinstance(store, Variables) and (places := store.places()) is not None:
            terms += [f"{named(owner)}{place} is {named(value)}" for owner, place, value in places]
        else:
            return None
    terms += [f"{named(each)} == {named(frozenset(each))}" for each in sets]
    # parameters are the fastest names that there are
    parameters = ", ".join(f"{name}={name}" for name in known)
    exec(f"def look({parameters}):\n return (" + "\n  and ".join(terms or ["True"]) + ")", known)
    look: Look = known["look"]
    return look
