"""The shortest way in: a function with its attention spelled out, and an ONNX model. Used in the README."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

import fuser


@fuser.optimize
def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    k, v = mx.repeat(k, 4, axis=1), mx.repeat(v, 4, axis=1)
    length = q.shape[2]
    hidden = mx.triu(mx.full((length, length), -float("inf")), k=1)
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5 + hidden
    return mx.softmax(scores, axis=-1) @ v


q = mx.random.normal((1, 8, 128, 64))
k = mx.random.normal((1, 2, 128, 64))
v = mx.random.normal((1, 2, 128, 64))
output = attention(q, k, v)
print(attention.report)

folder = Path(__file__).parent / "models" / "bert__sdpa__dyn18"
model = fuser.load_onnx(folder / "model.onnx")
ids = np.array([[2, 7, 1, 8, 0, 0], [3, 1, 4, 1, 5, 9]])
outputs = model(input_ids=ids, attention_mask=(ids != 0).astype(np.int64))
print(model.report)
print({name: array.shape for name, array in outputs.items()})

print(fuser.verify(model, input_ids=ids, attention_mask=(ids != 0).astype(np.int64)))
