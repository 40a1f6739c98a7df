"""The short way of an optimized function: calls like the last ones are not taken apart, only told from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.frontends.state import Held

# the same object is the same argument
_STATIC = {mx.array, bool, int, float, str, type(None), mx.Dtype}


class Rest(NamedTuple):
    """Arguments that are not just arrays by position."""

    names: tuple[str, ...]
    kinds: list[type]
    statics: list[tuple[int, Any]]

    def arrays(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[mx.array] | None:
        """The arrays among arguments that are otherwise these very ones; None where they are not."""
        given = (*args, *kwargs.values())
        if (*kwargs,) != self.names or [*map(type, given)] != self.kinds:
            return None
        if not all(given[place] is each for place, each in self.statics):
            return None
        return [each for each in given if type(each) is mx.array]


class Quick(NamedTuple):
    """What a call takes that is like the last ones. MLX itself looks at shapes and dtypes of the arguments."""

    kinds: list[type]
    rest: Rest | None
    still: Callable[[], bool]
    """Whether the state is what it was; it may raise an error."""
    run: Callable[..., Any]
    arrays: tuple[mx.array, ...]
    """Those of the state."""


def quick_way(
    run: Callable[..., Any],
    held: Held,
    holds: Callable[[Sequence[mx.array]], bool] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Quick | None:
    """The short way for calls like this one, if there is one yet: the state has to stay as it is for some calls.

    `run` makes the results from the arrays of arguments and state, and raises an error where it was not made for their
    types; `holds` tells whether values of the state are what was relied on.
    """
    given = (*args, *kwargs.values())
    kinds = [*map(type, given)]
    known = held.shortcut() if set(kinds) <= _STATIC else None
    if known is None:
        return None
    look, arrays = known
    statics = [(place, each) for place, each in enumerate(given) if type(each) is not mx.array]
    rest = Rest(tuple(kwargs), kinds, statics) if kwargs or statics else None
    return Quick(kinds, rest, look if holds is None else lambda: look() and holds(arrays), run, arrays)
