"""A head size that no fused kernel takes, padded with zeros to one that a kernel does.

Zeros in queries and keys add nothing to a score; zeros in values are columns of the answer that are cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from fuser.ir.types import TensorType
from fuser.kernels import admission
from fuser.kernels.admission import Call


def padded(call: Call) -> Call | None:
    """The call with larger heads that reaches a fused kernel where `call` reaches none; None when that does not help.

    Measured on CUDA alone, where cuDNN takes every multiple of 8: nothing is padded elsewhere.
    """
    if admission.backend() != "cuda" or admission.cuda(call).kernel is not None:
        return None
    q, k, v = (_widened(type, -type.shape[3] % 8) for type in (call.q, call.k, call.v))
    larger = replace(call, q=q, k=k, v=v)
    return larger if larger != call and admission.cuda(larger).kernel is not None else None


def _widened(type: TensorType, more: int) -> TensorType:
    return TensorType((*type.shape[:3], type.shape[3] + more), type.dtype)


def attend(
    larger: Call, x: Sequence[mx.array], *, scale: float, mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    """The call over queries, keys and values `x`, made as `larger`."""
    width = x[2].shape[3]
    q, k, v = (
        mx.pad(array, [(0, 0), (0, 0), (0, 0), (0, type.shape[3] - array.shape[3])])
        for array, type in zip(x, (larger.q, larger.k, larger.v), strict=True)
    )
    found = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    return found[..., :width]
