"""The public calls: the whole way from a callable to a fused one, in a few lines each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args, overload

from fuser.errors import FuserError, TraceError, UnsupportedOperatorError
from fuser.fusion import Fused, fuse_given
from fuser.ir.graph import Graph
from fuser.kernels.cost import When
from fuser.model import Model
from fuser.model_pieces import completed
from fuser.optimized import Optimized, Traced, given_state, name_of, traced_call
from fuser.optimized_shapeless import Shapeless
from fuser.report import Report
from fuser.verification import Verification, compared
from fuser.verification import verify as verify_call

P = ParamSpec("P")
R = TypeVar("R")


@overload
def optimize(
    fn: Callable[P, R],
    *,
    inputs: Any = None,
    outputs: Any = None,
    fuse: bool = True,
    when: When = "profitable",
    verify: bool = False,
    shapeless: bool = False,
) -> Optimized[P, R]: ...
@overload
def optimize(
    fn: None = None,
    *,
    inputs: Any = None,
    outputs: Any = None,
    fuse: bool = True,
    when: When = "profitable",
    verify: bool = False,
    shapeless: bool = False,
) -> Callable[[Callable[P, R]], Optimized[P, R]]: ...


def optimize(
    fn: Callable[P, R] | None = None,
    *,
    inputs: Any = None,
    outputs: Any = None,
    fuse: bool = True,
    when: When = "profitable",
    verify: bool = False,
    shapeless: bool = False,
) -> Optimized[P, R] | Callable[[Callable[P, R]], Optimized[P, R]]:
    """`fn` with its attentions computed by `mx.fast.scaled_dot_product_attention`; also a decorator.

    `fn` is any callable over trees of arrays, or an `nn.Module`. It is traced once for each signature (the tree of its
    arguments, their shapes and dtypes, static arguments) and compiled, as `mx.compile` does. `inputs` and `outputs` are
    captured state as `mx.compile` takes it: lists or dictionaries of arrays that `fn` reads or updates. The arrays of
    modules that `fn` is, or captures, are such state without being named.

    `when="always"` fuses what gains nothing by it, too: float32 on CUDA, where there is no kernel for it, and a softcap
    there in float32, and on Metal. Everything else is fused either way. Raises `ValueError` for another word.

    With `verify=True` the first call of each signature runs each region beside its unfused form, too: one that differs
    by more than the tolerance of `fuser.verify` is left unfused, with a `RuntimeWarning`, and errors are in the report.

    With `shapeless=True` one trace serves arguments of all sizes, as with `mx.compile`; at other sizes than the first
    it is traced once more to see that the program is the same. Where it is not (it reshapes to numbers, makes a mask of
    a length, slices up to a size) or cannot be traced, the call raises `TraceError`, which says where. What a program
    does at some sizes only (`if x.shape[1] > 100`) is not seen.

    With `fuse=False` the program is traced and replayed only, bit for bit. What cannot be traced runs as it is;
    `report` of the result says so, as it says for every softmax whether it was fused, and why not.
    """
    if when not in get_args(When):
        raise ValueError(f"when={when!r} is none of {', '.join(get_args(When))}")
    kind = Shapeless if shapeless else Optimized
    if fn is None:
        return lambda fn: kind(_plain(fn), inputs, outputs, fuse=fuse, when=when, verify=verify)
    return kind(_plain(fn), inputs, outputs, fuse=fuse, when=when, verify=verify)


def trace(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Graph:
    """The graph of the call `fn(*args, **kwargs)`; it is not run.

    Inputs of the graph are the arrays of the arguments, in order, then those of the modules that `fn` is or captures.
    Raises `TraceError` when MLX cannot trace it.
    """
    return traced_call(_plain(fn), args, _arrays(fn, kwargs)).graph


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Report:
    """What `optimize(fn)(*args, **kwargs)` would fuse, and why not the rest; nothing is run.

    Raises `TraceError` when a function cannot be traced. An ONNX model that has to be cut is run, in pieces: what lies
    behind a cut is known only then.
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
        return _explained_in_pieces(fn, error, kwargs), Graph(), Graph()
    before = traced.graph.copy()
    fused = _explained(fn, traced)
    report = completed(fused.report, fn.program) if isinstance(fn, Model) else fused.report
    return report, before, fused.graph


def _explained_in_pieces(model: Model, error: FuserError, inputs: dict[str, Any]) -> Report:
    """What a run says: what lies behind a step on the host is known only then."""
    fused = Model(model.program)
    try:
        fused(**inputs)
    except FuserError:
        return model.untraced(f"the original program runs: {error}")
    return fused.report


def _explained(fn: Callable[..., Any], traced: Traced) -> Fused:
    given = {node: slot.array for node, slot in given_state(traced).items()}
    when = fn.when if isinstance(fn, Optimized) else "profitable"
    return fuse_given(traced.graph, given, name_of(_plain(fn)), ours=True, when=when)


def verify(fn: Callable[..., Any], /, *args: Any, rtol: float | None = None, **kwargs: Any) -> Verification:
    """Run `fn(*args, **kwargs)` fused and unfused and compare: each output, and each region on the same inputs.

    Errors are relative to the largest value of the unfused answer; the tolerance is `rtol`, or one that fits the dtype
    (1e-4 for float32, 1e-2 for float16, 4e-2 for bfloat16). The result is true when all agree; printed, it shows every
    comparison. Raises `TraceError` when a function cannot be traced; of an ONNX model that is run in pieces, the
    outputs are compared.
    """
    arrays = _arrays(fn, kwargs)
    try:
        return verify_call(_plain(fn), *args, rtol=rtol, **arrays)
    except TraceError:
        if not isinstance(fn, Model):
            raise
    pieces = Model(fn.program)
    return compared(fn.program(**arrays), pieces(**kwargs), pieces.report, rtol)


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The program itself, where `fn` is one that is optimized already."""
    if isinstance(fn, Model):
        return fn.program
    return fn.original if isinstance(fn, Optimized) else fn


def _arrays(fn: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(fn.program.arguments(kwargs)) if isinstance(fn, Model) else kwargs
