"""One program in three ways, as it is, compiled and fused: compared, then timed side by side."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from fuser.cli_errors import Problem, described
from fuser.cli_progress import step
from fuser.frontends import trees
from fuser.frontends.onnx import OnnxProgram
from fuser.model import Model
from fuser.optimized import Optimized
from fuser.report import Report
from fuser.verification_checks import TOLERANCES, Check, difference
from fuser.version import __version__

NAIVE, COMPILED, FUSED = WAYS = ("naive", "compiled", "fused")
# calls before the clock runs: the first traces and compiles, the others fill MLX's cache of memory
WARM_UP = 3
# without --repeat: as many repetitions as fit into so many seconds, within bounds
SECONDS = 3.0
FEWEST, MOST = 5, 200


@dataclass(frozen=True)
class Run:
    """What one way took."""

    seconds: tuple[float, ...]
    """Of each repetition, in order."""
    peak: int | None
    """The most bytes that MLX held at once, weights and inputs included; None where it does not count."""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The lower quartile, the median and the upper quartile of the seconds."""
        if len(self.seconds) == 1:
            return (self.seconds[0],) * 3
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, median, high

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return self.quartiles[1]


@dataclass(frozen=True)
class Measured:
    """What `measure` found."""

    program: str
    report: Report
    checks: Mapping[str, tuple[Check, ...]]
    """The outputs of each other way, compared with those of the program as it is."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    """By way; empty where fused answers differ, and without the way that cannot be run."""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the fused answers agree."""
        return all(check.ok for check in self.checks[FUSED])

    @property
    def speedups(self) -> dict[str, float]:
        """How many times as fast fused is as each other way."""
        fused = self.runs.get(FUSED)
        if fused is None:
            return {}
        return {way: run.median / fused.median for way, run in self.runs.items() if way != FUSED}

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, in the format `mlx-fuser-bench` version 1."""
        return {
            "format": "mlx-fuser-bench",
            "version": 1,
            "program": self.program,
            "ran_on": ran_on(),
            "repetitions": len(self.runs[FUSED].seconds) if self.runs else 0,
            "counts": self.report.counts,
            "notes": list(self.notes),
            "checks": {
                way: [{"name": c.name, "error": _finite(c.error), "tolerance": c.tolerance, "ok": c.ok} for c in checks]
                for way, checks in self.checks.items()
            },
            "runs": {
                way: {
                    "seconds": dict(zip(("lower_quartile", "median", "upper_quartile"), run.quartiles, strict=True)),
                    "peak_memory": run.peak,
                }
                for way, run in self.runs.items()
            },
            "speedup": self.speedups,
        }


def _finite(error: float) -> float | None:
    """JSON has no infinity."""
    return error if error < float("inf") else None


def ran_on() -> dict[str, str]:
    """The device and the versions."""
    device = mx.default_device()
    kind = str(device.type).rpartition(".")[2]
    name = str(mx.device_info(device).get("device_name", platform.machine()))
    core: Any = mx  # its stub says nothing of a version
    return {
        "device": name,
        "type": kind,
        "mlx": core.__version__,
        "fuser": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def measure(
    name: str,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    repeat: int | None = None,
    rtol: float | None = None,
) -> Measured:
    """Compare and time `fn(*args, **kwargs)`, which is run as it is."""
    fast: Model | Optimized[..., Any] = Model(fn) if isinstance(fn, OnnxProgram) else Optimized(fn)
    state: Any = mx.random.state
    ways: dict[str, Callable[..., Any]] = {
        NAIVE: fn,
        FUSED: fast,
        # the last to be tried: a program that changes what it captures is broken by it
        COMPILED: mx.compile(fn, inputs=state, outputs=state),
    }
    notes: list[str] = [] if _compiles() else ["compiling is switched off (MLX_DISABLE_COMPILE): nothing is compiled"]
    answers: dict[str, tuple[list[str], list[mx.array]]] = {}
    checks: dict[str, tuple[Check, ...]] = {}
    with step(f"comparing {name}"):
        for way, call in ways.items():
            mx.random.seed(0)
            try:
                answers[way] = _named(call(*args, **kwargs))
            except Exception as error:
                if way != COMPILED:
                    raise
                notes.append(f"mx.compile cannot run it: {described(error)}".splitlines()[0])
                continue
            if way != NAIVE:
                checks[way] = _compared(answers[NAIVE], answers[way], rtol)
    checks = {way: checks[way] for way in (COMPILED, FUSED) if way in checks}
    notes += fast.report.notes
    answers.clear()
    if COMPILED not in checks:
        del ways[COMPILED]
    elif not all(check.ok for check in checks[COMPILED]):
        notes.append("the answers of mx.compile differ from those of the program as it is")
    found = Measured(name, fast.report, checks, notes=tuple(notes))
    if not found.ok:
        return found
    runs = _timed(name, {way: ways[way] for way in WAYS if way in ways}, args, kwargs, repeat)
    return Measured(name, fast.report, checks, runs, tuple(notes))


def _compiles() -> bool:
    """Whether `mx.compile` does anything: a compiled function is called once, and not again."""
    calls: list[int] = []

    def counted(x: mx.array) -> mx.array:
        calls.append(1)
        return x + 1

    compiled = mx.compile(counted)
    mx.eval(compiled(mx.zeros(1)))
    mx.eval(compiled(mx.zeros(1)))
    return len(calls) == 1


def _named(result: Any) -> tuple[list[str], list[mx.array]]:
    arrays, spec = trees.flatten(result)
    if not arrays:
        raise Problem(f"the program gave no array but a {type(result).__name__}: there is nothing to compare")
    mx.eval(arrays)
    return [f"output {name}".rstrip() for name in trees.names(spec)], arrays


def _compared(
    naive: tuple[list[str], list[mx.array]], other: tuple[list[str], list[mx.array]], rtol: float | None
) -> tuple[Check, ...]:
    if [array.shape for array in naive[1]] != [array.shape for array in other[1]]:
        return (Check("shapes of the outputs", float("inf"), 0.0),)
    return tuple(
        Check(name, difference(left, right), rtol if rtol is not None else TOLERANCES.get(left.dtype, 0.0))
        for name, left, right in zip(naive[0], naive[1], other[1], strict=True)
    )


def _timed(
    name: str,
    ways: Mapping[str, Callable[..., Any]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    repeat: int | None,
) -> dict[str, Run]:
    def once(call: Callable[..., Any]) -> float:
        start = time.perf_counter()
        mx.eval(trees.flatten(call(*args, **kwargs))[0])
        return time.perf_counter() - start

    last: dict[str, float] = {}
    try:
        with step(f"warming {name} up", WARM_UP) as done:
            for _ in range(WARM_UP):
                last = {way: once(call) for way, call in ways.items()}
                done()
    except Exception as error:
        what = f"{name} cannot be called again: {described(error)}"
        raise Problem(f"{what}; bench wants a program that keeps no state from one call to the next") from error
    if repeat is None:
        repeat = min(MOST, max(FEWEST, int(SECONDS / max(sum(last.values()), 1e-9))))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = dict.fromkeys(ways, 0)
    order = list(ways)
    with step(f"timing {name}", repeat) as done:
        for _ in range(repeat):
            for way in order:
                mx.reset_peak_memory()
                seconds[way].append(once(ways[way]))
                peaks[way] = max(peaks[way], mx.get_peak_memory())
            order = [*order[1:], order[0]]  # none always comes after the same
            done()
    return {way: Run(tuple(seconds[way]), peaks[way] or None) for way in ways}
