"""Matrix products, convolutions, transforms and factorisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from fuser.ir.ops_table import Arguments, Rebuild

# MLX's enumeration of quantisation modes, by their public names.
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


def _gather_mm(x: Sequence[mx.array], left_sorted: bool, right_sorted: bool) -> mx.array:
    # MLX sets the flag of one side only where the indices of the other were left out: leaving them out again
    # gives the same indices and the flag.
    return mx.gather_mm(
        x[0],
        x[1],
        lhs_indices=None if right_sorted else x[2],
        rhs_indices=None if left_sorted else x[3],
        sorted_indices=left_sorted or right_sorted,
    )


def _gather_qmm(a: Arguments, x: Sequence[mx.array]) -> mx.array:
    group_size, bits, mode, transpose, left_sorted, right_sorted = a
    return mx.gather_qmm(
        x[0],
        x[1],
        x[2],
        x[3] if len(x) == 6 else None,
        lhs_indices=None if right_sorted else x[-2],
        rhs_indices=None if left_sorted else x[-1],
        transpose=transpose,
        group_size=group_size,
        bits=bits,
        mode=MODES[mode],
        sorted_indices=left_sorted or right_sorted,
    )


def _quantized_matmul(a: Arguments, x: Sequence[mx.array]) -> mx.array:
    biases = x[3] if len(x) > 3 else None
    return mx.quantized_matmul(x[0], x[1], x[2], biases, transpose=a[3], group_size=a[0], bits=a[1], mode=MODES[a[2]])


def _block_masked_mm(x: Sequence[mx.array], block_size: int) -> mx.array:
    out = x[2] if len(x) in (3, 5) else None
    left, right = x[-2:] if len(x) > 3 else (None, None)
    return mx.block_masked_mm(x[0], x[1], block_size, out, left, right)


def _fft(x: mx.array, axes: Sequence[int], inverse: bool, real: bool, odd: bool) -> mx.array:
    if not real:
        return mx.fft.ifftn(x, axes=axes) if inverse else mx.fft.fftn(x, axes=axes)
    if not inverse:
        return mx.fft.rfftn(x, axes=axes)
    sizes = [x.shape[axis] for axis in axes]
    sizes[-1] = 2 * (sizes[-1] - 1) + odd
    return mx.fft.irfftn(x, s=tuple(sizes), axes=axes)


def _svd(x: mx.array, vectors: bool) -> Sequence[mx.array]:
    found: Any = mx.linalg.svd(x, compute_uv=vectors, stream=mx.cpu)
    return found if vectors else (found,)


# Factorisations run on the CPU alone, whatever the default device is.
LINEAR: dict[str, Rebuild] = {
    "AddMM": lambda a, x, _: (mx.addmm(x[2], x[0], x[1], alpha=a[0], beta=a[1]),),
    "BlockMaskedMM": lambda a, x, _: (_block_masked_mm(x, a[0]),),
    "GatherMM": lambda a, x, _: (_gather_mm(x, a[0], a[1]),),
    "GatherQMM": lambda a, x, _: (_gather_qmm(a, x),),
    "QuantizedMatmul": lambda a, x, _: (_quantized_matmul(a, x),),
    "SegmentedMM": lambda a, x, _: (mx.segmented_mm(x[0], x[1], x[2]),),
    "Convolution": lambda a, x, _: (mx.conv_general(x[0], x[1], a[0], (a[1], a[2]), a[3], a[4], a[5], a[6]),),
    "Hadamard": lambda a, x, _: (mx.hadamard_transform(x[0], scale=a[0]),),
    "FFT": lambda a, x, _: (_fft(x[0], *a),),
    "Cholesky": lambda a, x, _: (mx.linalg.cholesky(x[0], upper=a[0], stream=mx.cpu),),
    "Eig": lambda a, x, _: mx.linalg.eig(x[0], stream=mx.cpu) if a[0] else (mx.linalg.eigvals(x[0], stream=mx.cpu),),
    "Eigh": lambda a, x, _: (
        mx.linalg.eigh(x[0], a[0], stream=mx.cpu) if a[1] else (mx.linalg.eigvalsh(x[0], a[0], stream=mx.cpu),)
    ),
    "Inverse": lambda a, x, _: (
        mx.linalg.tri_inv(x[0], upper=a[1], stream=mx.cpu) if a[0] else mx.linalg.inv(x[0], stream=mx.cpu),
    ),
    "QRF": lambda a, x, _: mx.linalg.qr(x[0], stream=mx.cpu),
    "SVD": lambda a, x, _: _svd(x[0], a[0]),
}
