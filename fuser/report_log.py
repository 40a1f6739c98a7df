"""`FUSER_LOG=explain`: what is decided about each softmax, on stderr as it is decided."""

from __future__ import annotations

import logging
import sys

NAME = "fuser"
VARIABLE = "FUSER_LOG"
EXPLAIN = "explain"


class _Stderr(logging.Handler):
    """Writes to stderr as it is then: under a progress bar, or in a test, it is not that of the start."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def switch_on(value: str) -> None:
    """Log as the value of the variable asks for; an unknown one is told of, and is otherwise nothing."""
    log = logging.getLogger(NAME)
    if value.strip().lower() == EXPLAIN:
        if not any(isinstance(handler, _Stderr) for handler in log.handlers):
            handler = _Stderr()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # or whoever has set up logging reads everything twice
    elif value.strip():
        log.warning("%s=%s is not known, and does nothing: %s=%s is", VARIABLE, value, VARIABLE, EXPLAIN)
