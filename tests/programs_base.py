"""What the tests of `fuser.optimize` share."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.utils


def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2) * 0.125, axis=-1) @ v


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


def same(left: Any, right: Any) -> None:
    """Trees of arrays are alike to float32's rounding."""
    flat: Any = mlx.utils.tree_flatten
    lefts, rights = flat(left), flat(right)
    assert [path for path, _ in lefts] == [path for path, _ in rights]
    for (path, a), (_, b) in zip(lefts, rights, strict=True):
        if isinstance(a, mx.array):
            assert a.shape == b.shape and a.dtype == b.dtype, path
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True).item(), path
        else:
            assert a == b and type(a) is type(b), path


class Block(nn.Module):
    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.strength = 1.0

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = mx.split(self.project(x), 3, axis=-1)
        return x + self.out(attention(q[:, None], k[:, None], v[:, None])[:, 0]) * self.strength

    def twice(self, x: mx.array) -> mx.array:
        return self(self(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Block() for _ in range(2)]
        self.head: Any = nn.Linear(32, 8)

    def __call__(self, x: mx.array) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


X, Y = arrays((2, 5, 32), (2, 5, 32))
