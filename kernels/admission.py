"""Which calls of `mx.fast.scaled_dot_product_attention` reach a fused kernel, and why MLX falls back for the others.

These are the rules of MLX 0.32.4 for its Metal and its CUDA backend, as pure functions over what a call is; a call that
reaches no fused kernel is still right, MLX then computes it unfused. `benchmarks/admission.py` holds the rules against
MLX itself: on CUDA against `force_fused=True`, for Metal against the table in MLX's library or source text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from fuser.ir.types import TensorType

Mask = Literal["none", "causal", "boolean", "additive"]
Backend = Literal["metal", "cuda", "cpu"]
HALVES = (mx.float16, mx.bfloat16)

# Metal: queries up to this many take the vector kernel, more the tiled one
METAL_SHORT = 8
METAL_TILED = frozenset({(d, d) for d in (64, 72, 80, 96, 128, 192, 256)} | {(96, 64)})
METAL_VECTOR = frozenset({(d, d) for d in (64, 96, 128, 192, 256, 512)} | {(96, 64), (192, 128)})
# rows of queries in all heads of one group
METAL_ROWS = 32
# CUDA: queries fewer than this may take the vector kernel
CUDA_SHORT = 4
CUDA_VECTOR = frozenset({(d, d) for d in (64, 96, 128)})
CUDA_WIDEST = 128


@dataclass(frozen=True)
class Call:
    """A call of the kernel, as far as the rules look at it."""

    q: TensorType
    k: TensorType
    v: TensorType
    mask: Mask = "none"
    sinks: bool = False

    @property
    def heads(self) -> tuple[int, int]:
        """The sizes of the heads of queries (and keys) and of values."""
        return self.q.shape[3], self.v.shape[3]

    @property
    def lengths(self) -> tuple[int, int]:
        """The numbers of queries and of keys."""
        return self.q.shape[2], self.k.shape[2]

    @property
    def groups(self) -> int:
        """The query heads for each head of keys."""
        return self.q.shape[1] // max(self.k.shape[1], 1)

    @property
    def cells(self) -> int:
        """The number of scores."""
        return self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[2]

    @property
    def array(self) -> bool:
        """Whether the mask is an array."""
        return self.mask in ("boolean", "additive")

    @property
    def dtype(self) -> mx.Dtype:
        """The type in which the call is computed."""
        return self.q.dtype


@dataclass(frozen=True)
class Admission:
    """The kernel that a call reaches, or the reason for which MLX computes it unfused."""

    kernel: str | None
    reason: str | None = None
    forced: bool = False
    """Not fused of itself, because the unfused way is faster; `force_fused=True` would take the kernel."""

    def __str__(self) -> str:
        return self.kernel or f"unfused: {self.reason}"


def metal(call: Call, nax: bool = False) -> Admission:
    """What Metal does with `call`; `nax` says that the chip has neural accelerators in its GPU.

    For a training step Metal asks for other things; these are the rules of a forward pass.
    """
    rows, columns = call.lengths
    if call.dtype not in (mx.float32, *HALVES):
        return Admission(None, f"Metal has no kernel for {_name(call.dtype)}")
    if _blocked(call) and not nax:
        return Admission("blocked")
    reason = _no_tiled(call, nax) if rows > METAL_SHORT else _no_vector(call)
    if reason is not None:
        return Admission(None, reason)
    size = call.heads
    causal = call.mask == "causal"
    if rows <= METAL_SHORT:
        if size == (192, 192):
            return Admission(None, "the unfused way is faster at head size 192", forced=True)
        return Admission("vector")
    if size[0] == 512:
        blocks = -(-rows // 32) * call.q.shape[0] * call.q.shape[1]
        if causal and rows >= 1024 and blocks >= 1024:
            return Admission("tiled (neural accelerators)")
        return Admission(None, "the unfused way is faster at head size 512 unless causal and long", forced=True)
    if size[0] == 256:
        if nax and call.mask != "none" and rows >= 1024:
            return Admission("tiled, split heads (neural accelerators)")
        if not nax and causal and call.dtype in HALVES and rows >= 2048 and rows == columns:
            return Admission("tiled")
    if size[0] in (192, 256):
        return Admission(None, f"the unfused way is faster at head size {size[0]}", forced=True)
    return Admission("tiled")


def _blocked(call: Call) -> bool:
    rows, columns = call.lengths
    long = call.heads == (512, 512) and rows >= 1024 and rows <= columns
    return long and call.mask == "causal" and not call.sinks and call.dtype in HALVES


def _no_tiled(call: Call, nax: bool) -> str | None:
    rows, columns = call.lengths
    wide = nax and call.heads == (512, 512)
    if call.heads not in METAL_TILED and not wide:
        return f"the tiled kernel has no head size {_heads(call)}"
    if call.mask == "causal" and rows > columns:
        return f"the tiled kernel takes no causal mask for {rows} queries over {columns} keys"
    return None


def _no_vector(call: Call) -> str | None:
    rows, columns = call.lengths
    if call.heads not in METAL_VECTOR:
        return f"the vector kernel has no head size {_heads(call)}"
    if rows > columns:
        return f"the vector kernel takes no more queries ({rows}) than keys ({columns})"
    if rows * call.groups > METAL_ROWS:
        return f"the vector kernel takes at most {METAL_ROWS} rows of a group: {rows} queries x {call.groups} heads"
    if call.heads == (512, 512) and (rows != 1 or call.groups != 8 or call.array or columns < 1024):
        return "the vector kernel takes head size 512 for one query, 8 heads a group, 1024 keys and no array mask"
    return None


def cuda(call: Call, cache: bool = False) -> Admission:
    """What CUDA (compute capability 8 or later) does with `call`.

    `cache` says that keys and values are slices of caches whose length is a multiple of 256, evaluated before: then
    cuDNN takes single queries too.
    """
    rows = call.lengths[0]
    cudnn = _no_cudnn(call, cache)
    if cudnn is None:
        return Admission("cuDNN")
    if rows < CUDA_SHORT and not call.array and call.heads in CUDA_VECTOR:
        return Admission("vector")
    if rows >= CUDA_SHORT:
        return Admission(None, cudnn)
    short = "takes no array mask" if call.array else f"has no head size {_heads(call)}"
    return Admission(None, f"{cudnn}, and the vector kernel {short}")


def _no_cudnn(call: Call, cache: bool) -> str | None:
    rows, columns = call.lengths
    if call.dtype not in HALVES:
        return f"cuDNN computes in half types, not in {_name(call.dtype)}"
    if any(size % 8 or size > CUDA_WIDEST for size in call.heads):
        return f"cuDNN takes head sizes that are multiples of 8 up to {CUDA_WIDEST}, not {_heads(call)}"
    if call.mask == "causal" and rows > columns:
        return f"cuDNN takes no causal mask for {rows} queries over {columns} keys"
    if rows == 1 and not (cache and not call.array and columns >= 256):
        return "cuDNN takes a single query only over slices of a fixed cache, without array mask"
    return None


def has_accelerators(architecture: str) -> bool:
    """Whether a GPU of this name (`applegpu_g17s`) has neural accelerators, as far as names tell."""
    found = re.fullmatch(r"applegpu_g(\d+)([a-z])", architecture)
    return found is not None and int(found[1]) >= (18 if found[2] == "p" else 17)


def backend() -> Backend:
    """Where MLX runs what it is not told to run elsewhere."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


@functools.cache
def hopper() -> bool:
    """Whether MLX runs on a GPU of compute capability 9: its tensor cores work for four warps at once."""
    return backend() == "cuda" and mx.device_info().get("compute_capability_major") == 9


def reached(call: Call) -> str:
    """The kernel that `call` reaches where it runs, or why none; on a CPU, which has none, what the GPUs would do."""
    where = backend()
    if where == "metal":
        return f"Metal, {metal(call, has_accelerators(str(mx.device_info().get('architecture', ''))))}"
    if where == "cuda":
        return f"CUDA, {cuda(call)}"
    return f"CPU, unfused: MLX has no fused kernel there (Metal: {metal(call)}; CUDA: {cuda(call)})"


def _heads(call: Call) -> str:
    depth, width = call.heads
    return str(depth) if depth == width else f"{depth} with values of {width}"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


def sizes(pairs: Collection[tuple[int, int]]) -> tuple[set[int], set[tuple[int, int]]]:
    """Pairs of head sizes as the equal ones and the others, which is how MLX's messages name them."""
    return {d for d, w in pairs if d == w}, {(d, w) for d, w in pairs if d != w}
