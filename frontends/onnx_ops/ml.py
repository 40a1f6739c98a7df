"""The few operators of ai.onnx.ml that are arithmetic."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.index import safe_host
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import Host

_ML = "ai.onnx.ml"


@op("Binarizer", domain=_ML)
def binarizer(call: Call, x: mx.array) -> mx.array:
    """One above a threshold, else zero."""
    return (x > const(call.number("threshold", 0.0), x)).astype(x.dtype)


@op("ArrayFeatureExtractor", domain=_ML, host=(1,))
def array_feature_extractor(call: Call, x: mx.array, places: Host) -> mx.array:
    """Columns of the last axis."""
    index = safe_host(call, places.reshape(-1), x.shape[-1])
    x = x[None] if x.ndim == 1 else x
    return mx.take(x, mx.array(index), axis=-1)


@op("Scaler", domain=_ML)
def scaler(call: Call, x: mx.array) -> mx.array:
    """(x - offset) * scale, in float32."""
    offset, scale = (
        np.array(call.get(name, [default]), dtype=np.float32) for name, default in (("offset", 0), ("scale", 1))
    )
    return (x.astype(mx.float32) - mx.array(offset)) * mx.array(scale)
