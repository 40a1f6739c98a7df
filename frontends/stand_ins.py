"""What stands in a trace for the calls that MLX's export leaves out or cannot hold.

While a program is traced, a few public functions of MLX are replaced by others that leave something in the trace by
which the call is known: a choice between an array and itself where the values stay as they are (that comes through
`mx.vmap` and `mx.grad`, too), and an empty kernel for everything else. The graph then holds the call itself, which is
made again whenever the graph runs.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.errors import FuserError
from fuser.frontends.captures import captures
from fuser.frontends.lines import placed, user_place
from fuser.frontends.marks import collect, mark
from fuser.frontends.modules import arrays_of
from fuser.frontends.state import Held
from fuser.ir.graph import CHECKPOINT, KERNEL
from fuser.ir.ops import CUSTOM, ENTRY, Piece

# what no trace can hold, by the module of MLX that has it
CARRIED: dict[str, tuple[str, ...]] = {
    "mx": ("from_fp8", "gather_qqmm", "logcumsumexp", "qqmm", "segmented_mm", "to_fp8"),
    "mx.fast": ("cross_entropy", "gated_delta_update"),
    "mx.linalg": ("det", "lu", "lu_factor", "slogdet", "solve"),
    "mx.distributed": (*("all_gather", "all_max", "all_min", "all_sum", "recv", "recv_like", "send", "sum_scatter"),),
}
_OWNERS: dict[str, Any] = {"mx": mx, "mx.fast": mx.fast, "mx.linalg": mx.linalg, "mx.distributed": mx.distributed}
_KERNELS = ("metal_kernel", "cuda_kernel", "precompiled_cuda_kernel")
_EMPTY = [getattr(mx.fast, name) for name in _KERNELS[:2] if hasattr(mx.fast, name)]
_BUILTIN, _METHOD = type(mx.sin), type(mx.array.__dict__["__invert__"])
_CACHED = type(functools.cache(lambda: None))
_TRANSFORMED = type(mx.checkpoint(lambda x: x))
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_MLX = (mx.Dtype, mx.Stream, mx.Device, type(mx.cpu), mx.distributed.Group)
_stop = mx.stop_gradient
_NAME = re.compile(r"fuser_piece_(\d+)_")
Patch = tuple[Any, str, Callable[..., Any]]


@dataclass(frozen=True)
class Hole:
    """Where an array was among the arguments or results of a call."""

    place: int


class Token(NamedTuple):
    """The primitive that a choice stands for."""

    op: str
    arguments: tuple[Any, ...] = ()


class StandIns:
    """The calls of one trace for which something stands."""

    def __init__(self, *, carry: bool) -> None:
        self.tokens: dict[Token, mx.array] = {}
        self.pieces: list[Piece] = []
        self.carry = carry
        """Whether calls are carried that no trace can hold."""
        self.known: dict[int, Callable[..., Any]] = {}
        """What stands for a function of MLX, by the id of that."""
        self._checkpoints = itertools.count()

    def choice(self, array: mx.array, op: str, *arguments: Any) -> mx.array:
        """`array`, marked as what the primitive `op` gives."""
        token = Token(op, arguments)
        if token not in self.tokens:
            self.tokens[token] = mx.array(True)
            mx.eval(self.tokens[token])
        # the gradient goes one way, and is the array's own
        return mx.where(self.tokens[token], array, _stop(array))

    def carried(self, function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        """What `function` gives, as the outputs of an empty kernel; as it is where the call cannot be made again."""
        token = _current.set(None)
        try:
            with collect():
                # what happens inside of it is not shown
                result = function(*args, **kwargs)
        finally:
            _current.reset(token)
        arrays: list[mx.array] = []
        outputs: list[mx.array] = []
        try:
            given, shape = _lifted((args, kwargs), arrays), _lifted(result, outputs)
        except _Unknown:
            return result
        if all(any(output is array for array in arrays) for output in outputs):
            return result
        made = _empty(f"fuser_piece_{len(self.pieces)}_", arrays, outputs)

        def again(inputs: Sequence[mx.array]) -> list[mx.array]:
            args, kwargs = _filled(given, inputs)
            found: list[mx.array] = []
            _lifted(function(*args, **kwargs), found)
            return found

        self.pieces.append(Piece(name, user_place(), again))
        return _filled(shape, made)

    def checkpointed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, each call marked as one that is to be computed again for gradients."""

        def called(*args: Any, **kwargs: Any) -> Any:
            call = next(self._checkpoints), user_place()
            # what the function is given has a name of its own: only that gets a gradient, and what is fused inside
            # must not read what is behind it
            args, kwargs = _mapped(lambda array: self.choice(array, ENTRY, *call), (args, kwargs))
            result = function(*args, **kwargs)
            arrays = list(arrays_of(result))
            # under a gradient the choice does not stay one between an array and itself
            made = iter([self.choice(array, CHECKPOINT, *call) for array in arrays])
            mark(CHECKPOINT, (), arrays, call)
            return _mapped(lambda array: next(made), result)

        return called

    def replacement(self, value: Any) -> Any:
        """What stands for the function `value`, bound to a variable of the program; None: nothing."""
        kind = type(value)
        if kind is _CACHED:
            # what it computes now is of this trace, and must not be kept for others
            return self.either(value, value.__wrapped__)
        if kind is staticmethod:
            inner = self.replacement(value.__func__)
            return inner and staticmethod(inner)
        if kind is functools.partial:
            inner = self.replacement(value.func)
            return inner and functools.partial(inner, *value.args, **value.keywords)
        if kind is _BUILTIN:
            if id(value) not in self.known and self.carry and _is_kernel(value):
                return self.either(value, functools.partial(self.carried, value, "a kernel of mx.fast"))
            return self.known.get(id(value))
        if kind is _TRANSFORMED and self.carry:
            inner = _inside(value)
            return inner and self.either(value, self.checkpointed(inner))
        return None

    def either(self, original: Callable[..., Any], new: Callable[..., Any]) -> Callable[..., Any]:
        """`new` in this trace, and `original` for whoever else calls it: a program may keep it, or share it."""

        def called(*args: Any, **kwargs: Any) -> Any:
            return (new if _current.get() is self else original)(*args, **kwargs)

        return called


_current: ContextVar[StandIns | None] = ContextVar("fuser_stand_ins", default=None)


def replacement(value: Any) -> Any:
    """What the trace that is on puts for a function of MLX that a program has bound; None: nothing."""
    current = _current.get()
    return None if current is None else current.replacement(value)


def piece_of(kernel: str) -> int | None:
    """The number of the piece for which the kernel of this name stands."""
    found = _NAME.search(kernel)
    return None if found is None else int(found[1])


@contextmanager
def standing_in(ours: StandIns) -> Iterator[None]:
    """Inside the `with` block functions of MLX are replaced, where they are MLX's own still."""
    # MLX's export takes distributed primitives for others, and reads what they do not have
    patches = [*_patches(ours), *_calls(ours, "mx.distributed"), *(_carried(ours) if ours.carry else ())]
    before = [(owner, name, owner.__dict__[name], new) for owner, name, new in patches if name in owner.__dict__]
    before = [each for each in before if isinstance(each[2], _BUILTIN | _METHOD)]
    token = _current.set(ours)
    try:
        for owner, name, original, new in before:
            wrapper = ours.known[id(original)] = ours.either(original, new)
            setattr(owner, name, wrapper)
        yield
    finally:
        for owner, name, original, _ in before:
            setattr(owner, name, original)
        _current.reset(token)


def _patches(ours: StandIns) -> list[Patch]:
    kernel, stop, contiguous = mx.fast.scaled_dot_product_attention, mx.stop_gradient, mx.contiguous
    invert = mx.bitwise_invert

    def marked(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **options: Any) -> mx.array:
        # on a CPU the kernel's call is traced as its fallback: the mark shows it on any backend
        result: mx.array = kernel(q, k, v, scale=scale, mask=mask, **options)
        sinks = options.get("sinks")
        arrays = [q, k, v, *(extra for extra in (mask, sinks) if isinstance(extra, mx.array))]
        causal, forced = (
            mask == "causal" if isinstance(mask, str) else False,
            bool(options.get("force_fused", False)),
        )
        mark(KERNEL, arrays, [result], (float(scale), causal, sinks is not None, False, forced), user_place())
        return result

    def stopped(a: mx.array, /, **options: Any) -> mx.array:
        # a trace leaves it out, and gradients of the graph would flow
        return ours.choice(stop(a, **options), "StopGradient")

    def laid_out(a: mx.array, /, allow_col_major: bool = False, **options: Any) -> mx.array:
        contiguous(a, allow_col_major, **options)
        return ours.choice(a, "Contiguous", allow_col_major)

    def inverted(a: Any, /, **options: Any) -> mx.array:
        made = invert(a, **options)
        integers = isinstance(a, mx.array) and mx.issubdtype(a.dtype, mx.integer)
        return ours.choice(a, "BitwiseInvert") if integers else made

    return [
        (mx.fast, "scaled_dot_product_attention", marked),
        (mx, "stop_gradient", stopped),
        (mx, "contiguous", laid_out),
        (mx, "bitwise_invert", inverted),
        (mx.array, "__invert__", inverted),
        # it says when to compute, and not what; MLX refuses it in a trace
        (mx, "async_eval", lambda *_: None),
        (mx, "softmax", placed(mx.softmax)),
        (mx, "exp", placed(mx.exp)),
        (mx.array, "exp", placed(mx.exp)),
    ]


def _calls(ours: StandIns, owner: str) -> Iterator[Patch]:
    for name in CARRIED[owner]:
        function = getattr(_OWNERS[owner], name, None)
        if function is not None:
            yield _OWNERS[owner], name, functools.partial(ours.carried, function, f"{owner}.{name}")


def _carried(ours: StandIns) -> Iterator[Patch]:
    for owner in ("mx", "mx.fast", "mx.linalg"):
        yield from _calls(ours, owner)
    quantize, dequantize = mx.quantize, mx.dequantize

    def packing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        modes = [each for each in (*args, *kwargs.values()) if isinstance(each, str)]
        if modes in ([], ["affine"]):
            return function(*args, **kwargs)
        return ours.carried(function, f"mx.{function.__name__}", *args, **kwargs)

    yield mx, "quantize", functools.partial(packing, quantize)
    yield mx, "dequantize", functools.partial(packing, dequantize)
    for name in _KERNELS:
        if hasattr(mx.fast, name):
            yield mx.fast, name, functools.partial(_kernel, ours, getattr(mx.fast, name))
    checkpoint, custom = mx.checkpoint, mx.custom_function.__dict__["__call__"]
    yield mx, "checkpoint", lambda function: ours.either(checkpoint(function), ours.checkpointed(function))

    def custom_called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _reads_arrays(self):
            # they would be those of today whenever the function is called again
            return custom(self, *args, **kwargs)
        return ours.carried(functools.partial(custom, self), CUSTOM, *args, **kwargs)

    yield mx.custom_function, "__call__", custom_called


def _kernel(ours: StandIns, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    kernel = factory(*args, **kwargs)
    return ours.either(kernel, functools.partial(ours.carried, kernel, f"a kernel of mx.fast.{factory.__name__}"))


def _reads_arrays(function: Any) -> bool:
    try:
        return bool(Held(captures(function)).arrays)
    except FuserError:
        return True


def _is_kernel(function: Any) -> bool:
    """Whether MLX has made this function from a kernel's source: it tells by what it takes alone."""
    return "output_shapes" in (function.__doc__ or "") and not function.__name__


def _inside(function: Any) -> Callable[..., Any] | None:
    """The function that `mx.checkpoint` was given when it made this one; None: another transformation made it.

    MLX does not tell. The garbage collector sees what is wrapped, and a gradient wants its arguments before the
    wrapped function does: called without any, that one is not reached, or cannot run.
    """
    held = [each for each in gc.get_referents(function) if each is not _TRANSFORMED]
    if len(held) != 1 or not callable(held[0]):
        return None
    try:
        inspect.signature(held[0]).bind()
    except ValueError:
        return None
    except TypeError:
        pass
    else:
        return None
    try:
        function()
    except ValueError:
        return None
    except TypeError:
        found: Callable[..., Any] = held[0]
        return found
    return None


class _Unknown(Exception):
    """Something that may hold arrays, and is no tree of them."""


def _lifted(tree: Any, arrays: list[mx.array]) -> Any:
    """`tree` with holes for its arrays, which are put into `arrays`."""

    def hole(array: mx.array) -> Hole:
        arrays.append(array)
        return Hole(len(arrays) - 1)

    return _mapped(hole, tree, strict=True)


def _filled(tree: Any, arrays: Sequence[mx.array]) -> Any:
    return _mapped(lambda hole: arrays[hole.place], tree)


def _mapped(function: Callable[[Any], Any], tree: Any, *, strict: bool = False) -> Any:
    if isinstance(tree, mx.array | Hole):
        return function(tree)
    if type(tree) is dict:
        return {key: _mapped(function, child, strict=strict) for key, child in tree.items()}
    if isinstance(tree, tuple) or type(tree) is list:
        children = [_mapped(function, child, strict=strict) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    if strict and not isinstance(tree, (*_PLAIN, *_MLX)):
        raise _Unknown
    return tree


def _empty(name: str, inputs: list[mx.array], outputs: list[mx.array]) -> list[mx.array]:
    """The outputs of a kernel that does nothing: it is traced, and never run."""
    for number, factory in enumerate(_EMPTY, 1):
        try:
            kernel = factory(
                name, [f"x{place}" for place in range(len(inputs))], [f"y{place}" for place in range(len(outputs))], ""
            )
            made: list[mx.array] = kernel(
                inputs=inputs,
                grid=(1, 1, 1),
                threadgroup=(1, 1, 1),
                output_shapes=[output.shape for output in outputs],
                output_dtypes=[output.dtype for output in outputs],
            )
        except RuntimeError:
            if number == len(_EMPTY):
                raise
            continue
        return made
    raise AssertionError("MLX has no kernels")
