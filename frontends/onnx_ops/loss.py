"""Losses."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.activation import log_softmax
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op


def _reduced(call: Call, loss: mx.array, weights: mx.array) -> mx.array:
    how = call.text("reduction", "mean")
    if how == "none":
        return loss
    if how not in ("sum", "mean"):
        raise call.invalid(f"reduction {how!r} is not one of none, sum, mean")
    axes = list(range(loss.ndim))
    total = reduced("sum", loss, axes, keep=False)
    return total if how == "sum" else total / reduced("sum", weights, axes, keep=False)


def _likelihood(call: Call, logs: mx.array, labels: mx.array, weights: mx.array | None) -> mx.array:
    """The negative log likelihood of labels along axis 1."""
    if logs.ndim != labels.ndim + 1 or logs.ndim < 2:
        raise call.invalid(f"labels {list(labels.shape)} do not fit values {list(logs.shape)}")
    ignored = call.get("ignore_index")
    index = labels.astype(mx.int64)
    count = logs.shape[1]
    safe = mx.clip(index, mx.array(0, dtype=mx.int64), mx.array(count - 1, dtype=mx.int64))
    chosen = mx.squeeze(mx.take_along_axis(logs, mx.expand_dims(safe, 1), axis=1), 1)
    scale = mx.ones(labels.shape, dtype=logs.dtype) if weights is None else mx.take(weights, safe, axis=0)
    if ignored is not None:
        scale = mx.where(mx.equal(index, mx.array(ignored, dtype=mx.int64)), const(0, scale), scale)
    return _reduced(call, -chosen * scale, scale)


@op("NegativeLogLikelihoodLoss")
def negative_log_likelihood(call: Call, logs: mx.array, labels: mx.array, weights: mx.array | None = None) -> mx.array:
    """Loss of logarithms of probabilities."""
    return _likelihood(call, logs, labels, weights)


@op("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    call: Call, scores: mx.array, labels: mx.array, weights: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Loss of scores."""
    logs = log_softmax(scores, 1)
    return _likelihood(call, logs, labels, weights), logs
