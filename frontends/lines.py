"""Names for what plain functions compute: the line of the user's source, marked while a trace is on.

Python's own tracing tells when a line has run; the arrays that it bound are what it made.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import CodeType, FrameType, TracebackType
from typing import Any

import mlx.core as mx

from fuser.frontends.marks import handles, mark
from fuser.frontends.modules import Depth, arrays_of

_OURS = ("mlx", "fuser")
# what stands between a user's line and MLX while a program is traced
_BETWEEN = ("fuser.frontends.lines", "fuser.frontends.modules", "fuser.frontends.stand_ins")


class Watch:
    """What was seen while a program was traced."""

    def __init__(self) -> None:
        self.failure: tuple[str, str] | None = None
        """A read of an array's value that the program went on after: where, and MLX's words."""


@contextmanager
def marked_lines(depth: Depth) -> Iterator[Watch]:
    """Inside the `with` block, each line of a user's function marks the arrays that it binds.

    Lines inside of the calls of named modules are left alone: the module's path says it better.
    """
    watch = Watch()
    if sys.gettrace() is not None:
        # a debugger or a measurement of coverage is at work
        yield watch
        return

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
            return None
        lines = _Lines(frame, depth, watch)
        frame.f_trace_lines = lines.wanted
        return lines.on_event

    sys.settrace(on_call)
    try:
        yield watch
    finally:
        sys.settrace(None)


class _Lines:
    def __init__(self, frame: FrameType, depth: Depth, watch: Watch) -> None:
        self._watch = watch
        name = frame.f_code.co_name
        self.wanted = depth.calls == 0 and (name == "<lambda>" or not name.startswith("<"))
        self._name, self._line = _path_of(frame.f_code), frame.f_lineno
        self._known: dict[int, mx.array] = {}
        # met since the last mark, as they were then: the program may update them in place
        self._fresh: list[mx.array] = []
        if self.wanted:
            self._meet({id(array): array for array in arrays_of(list(frame.f_locals.values()))})

    def on_event(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "exception":
            error = argument[1]
            if is_read(error):
                self._watch.failure = (place_of(frame.f_code, frame.f_lineno), str(error))
        elif self.wanted and event in ("line", "return"):
            found = [*frame.f_locals.values(), argument] if event == "return" else list(frame.f_locals.values())
            made = {id(array): array for array in arrays_of(found) if id(array) not in self._known}
            if made:
                place = place_of(frame.f_code, self._line)
                mark(f"{self._name} ({place})", self._fresh, list(made.values()), source=place, within=self)
                self._fresh.clear()
                self._meet(made)
            self._line = frame.f_lineno
        return self.on_event

    def _meet(self, arrays: dict[int, mx.array]) -> None:
        self._known.update(arrays)
        self._fresh.extend(handles(arrays.values()))


def placed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which marks its result with the user's line that called it."""

    def called(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        place = user_place()
        if place:
            mark("", (), [result], source=place)
        return result

    return called


def user_place() -> str:
    """The user's line that runs, as `file.py:12`; nothing where it is not the user's code that called MLX."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] not in _OURS:
            return place_of(frame.f_code, frame.f_lineno)
        if module.split(".")[0] == "fuser" and module not in _BETWEEN:
            break
        frame = frame.f_back
    return ""


def _path_of(code: CodeType) -> str:
    # a function in a function, or of a class; Python 3.10 knows its name alone
    path: str = getattr(code, "co_qualname", code.co_name)
    return path.replace("<locals>.", "").removesuffix(".__call__")


def is_read(error: object) -> bool:
    """Whether MLX raised this because the value of an array was wanted in a trace."""
    text = str(error) if isinstance(error, RuntimeError | ValueError) else ""
    return text.startswith(("[eval]", "[async_eval]")) and "transformation" in text


def place_of(code: CodeType, line: int) -> str:
    """A line of a source file, as `file.py:12`; of a notebook, whose cells have made-up files, as `cell, line 12`."""
    return _cell(code.co_filename, line) or f"{PurePath(code.co_filename).name}:{line}"


def _cell(file: str, line: int) -> str:
    path = PurePath(file)
    numbered = re.match(r"<ipython-input-(\d+)", path.name)
    made_up = numbered or path.parent.name.startswith("ipykernel_")
    return f"cell{f' {numbered[1]}' if numbered else ''}, line {line}" if made_up else ""


def user_line(traceback: TracebackType | None) -> str | None:
    """The innermost line of the user's own code in a traceback."""
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").split(".")[0] not in _OURS:
            file, line = frame.f_code.co_filename, traceback.tb_lineno
            found = _cell(file, line) or f"{file}:{line}"
        traceback = traceback.tb_next
    return found
