"""Our own kernel as a step of a program: on a CPU compiled code, on a GPU the same body as a custom kernel of MLX.

On a CPU a step is called between two pieces of a program, on arrays that are not computed yet. Outside of MLX's
transformations it runs the kernel; inside of `mx.compile` or `mx.vmap`, where nothing can be evaluated, the same in
MLX's operations. On a GPU it is a primitive, which `mx.compile` takes and no other transformation does. Gradients are
those of MLX's operations: the kernel stands under `mx.custom_function`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.ir.graph import KERNEL, Graph, Node
from fuser.ir.ops import OPS
from fuser.ir.ops_fast import FLASH
from fuser.ir.types import TensorType
from fuser.kernels import checked, flash_gpu, host, padding
from fuser.kernels.admission import HALVES, Call, Mask, backend, cuda, reached
from fuser.kernels.bands import FAR, Window
from fuser.kernels.cost import memory, unworthy

Step = Callable[[Sequence[mx.array]], list[mx.array]]
LOWEST = float(np.finfo(np.float32).min)
TYPES = (mx.float32, *HALVES)


@dataclass(frozen=True)
class Form:
    """What a call of the kernel asks for, besides its arrays: q, k, v, and mask, slopes, sinks where they are there."""

    scale: float
    window: Window = (FAR, FAR)
    mask: bool = False
    sinks: bool = False
    softcap: float = 0.0
    slopes: str = ""
    lowest: bool = False
    """Rows without a key answer as MLX's call does, which sets what is hidden to the lowest number."""

    @property
    def causal(self) -> bool:
        """Whether no query sees ahead."""
        return self.window[0] == 0


def form_of(node: Node, count: int) -> Form:
    """The form of a call node with `count` operands."""
    scale, causal, sinks, *more = node.arguments
    if node.op == KERNEL:
        return Form(float(scale), (0 if causal else FAR, FAR), count - bool(sinks) > 3, bool(sinks), lowest=True)
    cap, slopes = more
    return Form(float(scale), causal, count - bool(sinks) - bool(slopes) > 3, bool(sinks), float(cap), slopes)


def call_of(form: Form, operands: Sequence[TensorType]) -> Call:
    """The call as the rules of admission look at it."""
    kind: Mask = "causal" if form.causal else "none"
    if form.mask and not form.causal:
        kind = "boolean" if operands[3].dtype == mx.bool_ else "additive"
    return Call(operands[0], operands[1], operands[2], kind, form.sinks)


def refuses(call: Call, capped: bool = False, slopes: bool = False) -> str | None:
    """Why our kernel cannot compute a call, or None. On a GPU it is built and tried where that was not done before."""
    where, widest = backend(), flash_gpu.WIDEST
    if max(call.heads) > widest:
        return f"our kernel for it has no room for head sizes over {widest}"
    if call.dtype not in TYPES:
        return f"our kernel for it does not compute in {call.dtype}"
    if where == "cpu":
        return None
    mask: checked.Array = call.mask if call.mask in ("boolean", "additive") else "none"
    failed = checked.failure(call.dtype, call.heads, mask, call.sinks, slopes, capped)
    return failed and f"our kernel for it {failed}"


def kernel_of(graph: Graph, call: Node) -> str:
    """Which kernel a call reaches where it runs, or why MLX computes it unfused: for the report."""
    operands = [operand.type for operand in graph.operands(call)]
    form = form_of(call, len(operands))
    if call.op == FLASH:
        return _name(form)
    asked = call_of(form, operands)
    larger = padding.padded(asked)
    if larger is not None:
        return f"{reached(larger)}, padded to {' and '.join(map(str, sorted(set(larger.heads))))}"
    return _name(form) if step(graph, call) is not None else reached(asked)


def _name(form: Form) -> str:
    on_cpu = "CPU, ours (compiled C++)" if host.library() is not None else "CPU, ours (numpy, no C++ compiler found)"
    where = {"cpu": on_cpu, "cuda": "CUDA, ours", "metal": "Metal, ours"}[backend()]
    ahead, behind = form.window
    some = (
        f"softcap {form.softcap:g}" if form.softcap else "",
        f"window of {ahead + behind + 1} keys" if ahead < FAR and behind < FAR else "",
        "slopes" if form.slopes else "",
    )
    return ", ".join((where, *filter(None, some)))


def takes(call: Call, banded: bool = False) -> bool:
    """Whether a call that MLX could take as well goes to ours: where MLX has no kernel, and that pays.

    `banded` says that most of its mask, an array for MLX's kernel, is two numbers for ours. On macOS MLX's own products
    run on Accelerate, against which ours has not been measured.
    """
    where = backend()
    if banded:
        wanted = where == "cuda" and call.dtype in HALVES
    elif where == "cuda":
        wanted = cuda(call).kernel is None
    else:
        wanted = sys.platform != "darwin"
    return wanted and unworthy(call, where, memory()) is None and refuses(call) is None


def step(graph: Graph, node: Node) -> Step | None:
    """What to run for `node` between pieces of the program; None when it is to be part of one."""
    if node.op not in (KERNEL, FLASH) or (node.op == KERNEL and any(node.arguments[3:])):
        return None
    operands = [operand.type for operand in graph.operands(node)]
    q, k = operands[:2]
    if backend() != "cpu" and not all(operand.size for operand in operands):
        return None
    form = form_of(node, len(operands))
    if node.op == KERNEL:
        larger = padding.padded(call_of(form, operands))
        if larger is not None:
            return lambda x: [_padded(form, larger, x)]
        # rows before the first key, which only a causal mask of fewer keys than queries has, see all keys in MLX
        if not takes(call_of(form, operands)) or (form.causal and q.shape[2] > k.shape[2]):
            return None
    if refuses(call_of(form, operands), form.softcap > 0, bool(form.slopes)) is not None:
        return None
    # cells of a mask are counted in 32 bits
    if form.mask and q.size // max(q.shape[3], 1) * k.shape[2] >= 1 << 31:
        return None
    return differentiable(lambda x: _run(form, x), lambda x: OPS[node.op](node.arguments, x, node.outputs)[0])


def differentiable(run: Callable[[Sequence[mx.array]], mx.array], plain: Callable[..., mx.array]) -> Step:
    """`run` with the transformations of `plain`, which is the same in MLX's operations."""

    def listed(*x: mx.array) -> mx.array:
        return plain(x)

    @mx.custom_function
    def attend(*x: mx.array) -> mx.array:
        try:
            return run(x)
        except Untimely:
            return plain(x)

    @attend.vjp
    def backward(primals: Any, cotangent: mx.array, _: mx.array) -> Any:
        # masks may be boolean: they have no gradient
        found = iter(mx.vjp(_of_floats(plain, primals), _floats(primals), [cotangent])[1])
        return tuple(next(found) if _is_float(x) else mx.zeros_like(x) for x in primals)

    @attend.jvp
    def forward(primals: Any, tangents: Any) -> Any:
        pairs = [(x, t) for x, t in zip(primals, tangents, strict=True) if _is_float(x)]
        moved: list[mx.array] = [mx.zeros(x.shape, x.dtype) if t is None else t for x, t in pairs]
        return mx.jvp(_of_floats(plain, primals), _floats(primals), moved)[1][0]

    @attend.vmap
    def mapped(inputs: Any, axes: Any) -> Any:
        return mx.vmap(listed, in_axes=tuple(axes), out_axes=0)(*inputs), 0

    call: Callable[..., Any] = attend
    return lambda x: [call(*x)]


class Untimely(Exception):
    """Nothing can be evaluated here: inside of a transformation."""


def _is_float(x: mx.array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating)


def _floats(x: Sequence[mx.array]) -> list[mx.array]:
    return [each for each in x if _is_float(each)]


def _of_floats(plain: Callable[..., mx.array], x: Sequence[mx.array]) -> Callable[..., mx.array]:
    def run(*floats: mx.array) -> mx.array:
        given = iter(floats)
        return plain([next(given) if _is_float(each) else each for each in x])

    return run


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | None = None,
    sinks: mx.array | None = None,
    slopes: mx.array | None = None,
    folded: bool = False,
    softcap: float = 0.0,
    ahead: int = FAR,
    behind: int = FAR,
    fill: float = -math.inf,
    empty: float = 0.0,
) -> mx.array:
    """Our kernel on MLX's arrays, where it is `available`; see `fuser.kernels.host.attend` for what it computes.

    On a CPU the arrays are evaluated: raises `Untimely` where that cannot be.
    """
    scalars: dict[str, Any] = {"scale": scale, "folded": folded, "softcap": softcap, "ahead": ahead, "behind": behind}
    scalars |= {"fill": fill, "empty": empty}
    given: dict[str, Any] = {
        name: array for name, array in (("mask", mask), ("sinks", sinks), ("slopes", slopes)) if array is not None
    }
    where = backend()
    if where != "cpu":
        cores = checked.cores(where, q.dtype, (q.shape[3], v.shape[3]))
        return flash_gpu.attend(q, k, v, **given, **scalars, cores=cores)
    dtype = q.dtype
    arrays = [x if x.dtype in (mx.float32, mx.bool_) else x.astype(mx.float32) for x in (q, k, v, *given.values())]
    try:
        mx.eval(arrays)
    except ValueError as error:
        raise Untimely from error
    views: list[Any] = [np.asarray(memoryview(array)) for array in arrays]
    rest: dict[str, Any] = dict(zip(given, views[3:], strict=True))
    found = mx.array(host.attend(views[0], views[1], views[2], **rest, **scalars))
    return found if dtype == mx.float32 else found.astype(dtype)


def _padded(form: Form, larger: Call, x: Sequence[mx.array]) -> mx.array:
    mask: mx.array | str | None = "causal" if form.causal else x[3] if form.mask else None
    sinks = x[-1] if form.sinks else None
    return padding.attend(larger, x[:3], scale=form.scale, mask=mask, sinks=sinks)


def _run(form: Form, x: Sequence[mx.array]) -> mx.array:
    q, k, v, *rest = x
    sinks = rest.pop() if form.sinks else None
    slopes = rest.pop() if form.slopes else None
    ahead, behind = form.window
    return attend(
        q,
        k,
        v,
        scale=form.scale,
        mask=rest[0] if form.mask else None,
        sinks=sinks,
        slopes=slopes,
        folded=form.slopes == "folded",
        softcap=form.softcap,
        ahead=ahead,
        behind=behind,
        fill=LOWEST if form.lowest else -math.inf,
        empty=math.nan if form.lowest else 0.0,
    )
