"""Names for what plain functions compute: the line of the user's source, marked while a trace is on.

Python's own tracing tells when a line has run; the arrays that it bound are what it made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import CodeType, FrameType, TracebackType
from typing import Any

import mlx.core as mx

from fuser.frontends.marks import mark
from fuser.frontends.modules import Depth, arrays_of

_OURS = ("mlx", "fuser")


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
        self.wanted = depth.calls == 0 and not frame.f_code.co_name.startswith("<")
        self._line = frame.f_lineno
        self._known: dict[int, mx.array] = {}
        if self.wanted:
            self._known = {id(array): array for array in arrays_of(list(frame.f_locals.values()))}

    def on_event(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "exception":
            error = argument[1]
            if is_read(error):
                self._watch.failure = (place_of(frame.f_code, frame.f_lineno), str(error))
        elif self.wanted and event in ("line", "return"):
            found = [*frame.f_locals.values(), argument] if event == "return" else list(frame.f_locals.values())
            made = {id(array): array for array in arrays_of(found) if id(array) not in self._known}
            if made:
                name = f"{frame.f_code.co_name} ({place_of(frame.f_code, self._line)})"
                mark(name, list(self._known.values()), list(made.values()))
                self._known.update(made)
            self._line = frame.f_lineno
        return self.on_event


def is_read(error: object) -> bool:
    """Whether MLX raised this because the value of an array was wanted in a trace."""
    text = str(error) if isinstance(error, RuntimeError | ValueError) else ""
    return text.startswith(("[eval]", "[async_eval]")) and "transformation" in text


def place_of(code: CodeType, line: int) -> str:
    """A line of a source file, as `file.py:12`."""
    return f"{PurePath(code.co_filename).name}:{line}"


def user_line(traceback: TracebackType | None) -> str | None:
    """The innermost line of the user's own code in a traceback."""
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").split(".")[0] not in _OURS:
            found = f"{frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found
