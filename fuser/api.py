"""The public calls: the whole way from a callable to a fused one, in a few lines each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from fuser.errors import TraceError, UnsupportedOperatorError
from fuser.fusion import Fused, fuse_given
from fuser.ir.graph import Graph
from fuser.model import Model
from fuser.optimized import Optimized, Traced, given_state, name_of, traced_call
from fuser.report import Report
from fuser.verification import Verification
from fuser.verification import verify as verify_call

P = ParamSpec("P")
R = TypeVar("R")


@overload
def optimize(fn: Callable[P, R], *, inputs: Any = None, outputs: Any = None, fuse: bool = True) -> Optimized[P, R]: ...
@overload
def optimize(
    fn: None = None, *, inputs: Any = None, outputs: Any = None, fuse: bool = True
) -> Callable[[Callable[P, R]], Optimized[P, R]]: ...


def optimize(
    fn: Callable[P, R] | None = None, *, inputs: Any = None, outputs: Any = None, fuse: bool = True
) -> Optimized[P, R] | Callable[[Callable[P, R]], Optimized[P, R]]:
    """`fn` with its attentions computed by `mx.fast.scaled_dot_product_attention`; also a decorator.

    `fn` is any callable over trees of arrays, or an `nn.Module`. It is traced once for each signature (the tree of its
    arguments, their shapes and dtypes, static arguments) and compiled, as `mx.compile` does. `inputs` and `outputs` are
    captured state as `mx.compile` takes it: lists or dictionaries of arrays that `fn` reads or updates. The arrays of
    modules that `fn` is, or captures, are such state without being named.

    With `fuse=False` the program is traced and replayed only, bit for bit. What cannot be traced runs as it is;
    `report` of the result says so, as it says for every softmax whether it was fused, and why not.
    """
    if fn is None:
        return lambda fn: Optimized(_plain(fn), inputs, outputs, fuse=fuse)
    return Optimized(_plain(fn), inputs, outputs, fuse=fuse)


def trace(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Graph:
    """The graph of the call `fn(*args, **kwargs)`; it is not run.

    Inputs of the graph are the arrays of the arguments, in order, then those of the modules that `fn` is or captures.
    Raises `TraceError` when MLX cannot trace it.
    """
    return traced_call(_plain(fn), args, _arrays(fn, kwargs)).graph


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Report:
    """What `optimize(fn)(*args, **kwargs)` would fuse, and why not the rest; nothing is run.

    Raises `TraceError` when a function cannot be traced; of an ONNX model, the report says so of each softmax.
    """
    return explain_with_graphs(fn, *args, **kwargs)[0]


def explain_with_graphs(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Report, Graph, Graph]:
    """`explain`, and the graph before and after: what `fuser.page` draws."""
    arrays = _arrays(fn, kwargs)
    try:
        traced = traced_call(_plain(fn), args, arrays)
    except (TraceError, UnsupportedOperatorError) as error:
        if not isinstance(fn, Model):
            raise
        return fn.untraced(f"the original program runs: {error}"), Graph(), Graph()
    before = traced.graph.copy()
    fused = _explained(fn, traced)
    return fused.report, before, fused.graph


def _explained(fn: Callable[..., Any], traced: Traced) -> Fused:
    given = {node: slot.array for node, slot in given_state(traced).items()}
    return fuse_given(traced.graph, given, name_of(_plain(fn)), ours=True)


def verify(fn: Callable[..., Any], /, *args: Any, rtol: float | None = None, **kwargs: Any) -> Verification:
    """Run `fn(*args, **kwargs)` fused and unfused and compare: each output, and each region on the same inputs.

    Errors are relative to the largest value of the unfused answer; the tolerance is `rtol`, or one that fits the dtype
    (1e-4 for float32, 1e-2 for float16, 4e-2 for bfloat16). The result is true when all agree; printed, it shows every
    comparison. Raises `TraceError` when the program cannot be traced.
    """
    return verify_call(_plain(fn), *args, rtol=rtol, **_arrays(fn, kwargs))


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The program itself, where `fn` is one that is optimized already."""
    if isinstance(fn, Model):
        return fn.program
    return fn.original if isinstance(fn, Optimized) else fn


def _arrays(fn: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(fn.program.prepare(kwargs)) if isinstance(fn, Model) else kwargs
