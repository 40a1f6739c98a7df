"""Threads take turns: a trace puts other arrays into shared containers, and swaps functions of MLX."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Busy(Exception):
    """Another thread runs a program that a trace would disturb."""


class Turns:
    """One thread traces, or any number of threads run programs that touch what a trace swaps."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._guard = threading.Lock()
        self._running: dict[int, int] = {}
        self._tracer: int | None = None
        self.epoch = 0
        """Odd while a trace is on. What was read from containers holds if it is even, and the same after."""

    @property
    def mine(self) -> bool:
        """Whether this thread is the one that traces."""
        return self._tracer is not None and self._tracer == threading.get_ident()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """A turn to trace; raises `Busy` when another thread runs a program: that could take for ever."""
        me = threading.get_ident()
        with self._lock:
            with self._guard:
                if any(thread != me for thread in self._running):
                    raise Busy
                outer, self._tracer = self._tracer, me
                self.epoch += outer is None
            try:
                yield
            finally:
                with self._guard:
                    self._tracer = outer
                    self.epoch += outer is None

    @contextmanager
    def running(self) -> Iterator[None]:
        """A turn to run a program as it is, beside others; a trace of another thread is waited for."""
        me = threading.get_ident()
        with self._lock, self._guard:
            self._running[me] = self._running.get(me, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                self._running[me] -= 1
                if not self._running[me]:
                    del self._running[me]

    def settled(self) -> int:
        """The epoch, once no other thread traces."""
        if self.epoch % 2 and not self.mine:
            with self._lock:
                return self.epoch
        return self.epoch


turns = Turns()
