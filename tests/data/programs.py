"""Programs for the command line's tests."""

import math

import mlx.core as mx
import mlx.nn as nn


def attend(q: mx.array, k: mx.array, v: mx.array, bias: mx.array | None = None) -> mx.array:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    return mx.softmax(scores if bias is None else scores + bias, axis=-1) @ v


def positional(q: mx.array, /, k: mx.array, *, v: mx.array) -> mx.array:
    return attend(q, k, v)


def alone() -> dict[str, mx.array]:
    print("computing")
    x = mx.random.normal((1, 2, 6, 8), key=mx.random.key(3))
    return {"out": attend(x, x, x), "sum": x.sum()}


def pair(q: mx.array) -> tuple[mx.array, list[mx.array]]:
    return attend(q, q, q), [q.astype(mx.bfloat16)]


def plain(x: mx.array) -> mx.array:
    return x * 2


def reads(x: mx.array) -> mx.array:
    return x * 2 if bool(mx.any(x > 0)) else x


def nothing() -> int:
    return 3


def fails(x: mx.array) -> mx.array:
    raise RuntimeError("this program fails\nwith two lines")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 16)

    def __call__(self, x: mx.array) -> mx.array:
        heads = self.q(x).reshape(*x.shape[:2], 2, 8).transpose(0, 2, 1, 3)
        return attend(heads, heads, heads)


block = Block()
number = 7
