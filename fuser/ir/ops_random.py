"""Random bits.

MLX has no public call for them, but `mx.random.split(key, n)` is nothing else than 2n words. The generator
pairs word i of the first half with word i of the second, so an odd number of words is the even number above
it but for the middle word, which has no partner and is hashed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from fuser.ir.ops_table import Rebuild, UnsupportedPrimitive

# Threefry 2x32: the rotations of its rounds, four by four, and the parity of its key schedule.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def _middle_word(keys: mx.array, count: int) -> mx.array:
    """The first word of Threefry's hash of (count, 0), one for each row of `keys`."""
    first, second = keys[:, 0:1], keys[:, 1:2]
    schedule = (first, second, first ^ second ^ mx.array(PARITY, mx.uint32))
    x, y = first + mx.array(count, mx.uint32), second
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << mx.array(bits, mx.uint32)) | (y >> mx.array(32 - bits, mx.uint32))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + mx.array(group + 1, mx.uint32)
    return x


def _random_bits(key: mx.array, shape: Sequence[int], width: int) -> mx.array:
    if width != 4:
        raise UnsupportedPrimitive("RandomBits", f"MLX has no public call for words of {width} bytes")
    size = math.prod(shape)
    keys = key.size // 2
    if size == 0 or keys == 0:
        return mx.zeros(shape, mx.uint32)
    words = size // keys
    half = (words + 1) // 2
    if keys == 1:
        pairs = mx.random.split(mx.reshape(key, (2,)), half)
    else:
        pairs = mx.vmap(lambda one: mx.random.split(one, half))(mx.reshape(key, (keys, 2)))
    if words % 2 == 0:
        return mx.reshape(pairs, shape)
    flat = mx.reshape(pairs, (keys, 2 * half))
    middle = _middle_word(mx.reshape(key, (keys, 2)), half - 1)
    return mx.reshape(mx.concatenate([flat[:, : half - 1], middle, flat[:, half:-1]], axis=1), shape)


RANDOM: dict[str, Rebuild] = {
    "RandomBits": lambda a, x, _: (_random_bits(x[0], a[0], a[1]),),
}
