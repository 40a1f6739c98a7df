"""The type of an array: shape and dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of one array; `dtype` is one of MLX's (`mx.float32`, ...)."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the array, dense."""
        return self.size * self.dtype.size

    def __str__(self) -> str:
        return f"{str(self.dtype).rpartition('.')[2]}[{', '.join(map(str, self.shape))}]"


def type_of(array: mx.array) -> TensorType:
    """The type of `array`, without evaluating it."""
    return TensorType(tuple(array.shape), array.dtype)
