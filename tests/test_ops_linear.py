"""Matrix products, convolutions, transforms, factorisations and random numbers, replayed bit for bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from tests.test_ops_replay import FLOATS, Case, check, grad, numbers, vmap

MODES = ("mxfp4", "mxfp8", "nvfp4")
quantized_matmul: Any = mx.quantized_matmul
gather_qmm: Any = mx.gather_qmm
CPU: dict[str, Any] = {"stream": mx.cpu}


def products() -> list[Case]:
    cases = []
    for dtype in (*FLOATS, mx.complex64):
        a, b, c = (numbers(*shape, dtype=dtype) for shape in [(2, 5, 7), (7, 3), (3,)])
        cases += [
            Case("Matmul", mx.matmul, (a, b)),
            Case("Matmul", lambda a: a @ mx.swapaxes(a, -1, -2), (a,)),
            Case("Matmul", lambda a, b: a[0, 0] @ b, (a, b)),
            Case("Matmul", lambda a: mx.einsum("bij,bkj->bik", a, a), (a,)),
        ]
        if dtype not in (mx.float64, mx.complex64):
            cases.append(Case("AddMM", lambda c, a, b: mx.addmm(c, a, b, alpha=0.5, beta=2.0), (c, a, b)))
    cases.append(Case("AddMM", mx.addmm, (numbers(5, 3), numbers(5, 7), numbers(7, 3))))
    a, b = numbers(3, 2, 8), numbers(4, 8, 5)
    left, right = mx.array([2, 0, 1, 2]), mx.array([0, 0, 1, 3])
    both = numbers(4, 8, 2), numbers(4, 2, 5)
    for ordered in (False, True):
        gather: list[tuple[Any, ...]] = [
            (lambda a, b, i, j, o=ordered: mx.gather_mm(a, b, i, j, sorted_indices=o), (a, b, left, right)),
            (lambda a, b, i, o=ordered: mx.gather_mm(a, b, lhs_indices=i, sorted_indices=o), (a, b, left)),
            (lambda a, b, j, o=ordered: mx.gather_mm(a, b, None, j, sorted_indices=o), (a, b, right[1:])),
            (
                lambda a, b, j, o=ordered: mx.gather_mm(a[:, None], b, None, j, sorted_indices=o),
                (a, b, right[:3, None] + mx.zeros((1, 2), mx.int32)),
            ),
        ]
        cases += [Case("GatherMM", *each) for each in gather]
    cases.append(Case("GatherMM", grad(lambda a, b, i: mx.gather_mm(a, b, i, i).sum(), (0, 1)), (*both, left % 2)))
    x, y = numbers(60, 64), numbers(64, 70)
    out, lhs, rhs = (numbers(*shape, dtype=mx.bool_) for shape in [(2, 3), (2, 2), (2, 3)])
    weights = [m.astype(mx.float32) * 1.5 for m in (out, lhs, rhs)]
    for masks in ((out, lhs, rhs), weights):
        o, m, n = masks
        cases += [
            Case("BlockMaskedMM", lambda a, b, o: mx.block_masked_mm(a, b, 32, o), (x, y, o)),
            Case("BlockMaskedMM", lambda a, b, m, n: mx.block_masked_mm(a, b, 32, None, m, n), (x, y, m, n)),
            Case("BlockMaskedMM", lambda a, b, *m: mx.block_masked_mm(a, b, 32, *m), (x, y, o, m, n)),
        ]
    return cases


def quantized() -> list[Case]:
    cases = []
    i, j = mx.array([1, 0, 1]), mx.array([0, 2, 2])
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        w, x = numbers(3, 32, 64, dtype=dtype), numbers(2, 5, 64, dtype=dtype)
        for group, bits in [(32, 4), (64, 8), (32, 2), (64, 3), (32, 6)]:
            packed = mx.quantize(w, group, bits)
            options = {"group_size": group, "bits": bits}
            cases += [
                Case("Quantize", lambda w, g=group, b=bits: mx.quantize(w, g, b), (w,)),
                Case("BitwiseBinary", lambda *q, o=options: mx.dequantize(*q, **o), tuple(packed)),
                Case(
                    "QuantizedMatmul",
                    lambda *q, o=options: quantized_matmul(*q, **o),
                    (x, *[p[0] for p in packed]),
                ),
            ]
        packed, options = mx.quantize(w, 32, 4), {"group_size": 32, "bits": 4}
        turned = lambda *q: quantized_matmul(*q, transpose=False, group_size=32, bits=4)  # noqa: E731
        cases.append(Case("QuantizedMatmul", turned, (x[..., :32], *[p[0] for p in packed])))
        for ordered in (False, True):
            o = {**options, "sorted_indices": ordered}
            cases += [
                Case("GatherQMM", lambda *q, o=o: gather_qmm(*q, **o), (x, *packed, i, j)),
                Case("GatherQMM", lambda *q, o=o: gather_qmm(*q, **o), (x, *packed, i)),
                Case(
                    "GatherQMM",
                    lambda *q, o=o: gather_qmm(*q[:4], rhs_indices=q[4], **o),
                    (x, *packed, j[:2]),
                ),
            ]
        turned = lambda *q: gather_qmm(*q, transpose=False, group_size=32, bits=4)  # noqa: E731
        cases.append(Case("GatherQMM", turned, (x[..., :32], *packed, i, j)))
        for mode in MODES:
            few = mx.quantize(w, mode=mode)
            multiply = lambda *q, m=mode: quantized_matmul(*q, mode=m)  # noqa: E731
            gather = lambda x, w, s, i, j, m=mode: gather_qmm(x, w, s, None, i, j, mode=m)  # noqa: E731
            cases.append(Case("QuantizedMatmul", multiply, (x, few[0][0], few[1][0])))
            cases.append(Case("GatherQMM", gather, (x, *few, i, j)))
    return cases


def convolutions() -> list[Case]:
    cases = []
    forms: list[tuple[int, dict[str, Any]]] = [
        (1, {}),
        (1, {"stride": 2, "padding": 1}),
        (1, {"padding": ([2], [0]), "kernel_dilation": 2}),
        (1, {"input_dilation": 2, "flip": True}),
        (2, {"stride": (2, 1), "padding": ([1, 0], [0, 2])}),
        (2, {"groups": 2}),
        (2, {"kernel_dilation": (1, 2), "input_dilation": (2, 1), "padding": 3}),
        (3, {"padding": 1, "flip": True}),
    ]
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        for rank, options in forms:
            x = numbers(2, *[9, 8, 7][:rank], 4, dtype=dtype)
            w = numbers(6, *[3, 2, 3][:rank], 4 // options.get("groups", 1), dtype=dtype)
            cases.append(Case("Convolution", lambda x, w, o=options: mx.conv_general(x, w, **o), (x, w)))
    x, w = numbers(2, 9, 8, 4), numbers(6, 3, 3, 4)
    cases += [
        Case("Convolution", lambda x, w: mx.conv1d(x[:, 0], w[:, 0], padding=1), (x, w)),
        Case("Convolution", lambda x, w: mx.conv2d(x, w, stride=2, padding=1, groups=1), (x, w)),
        Case(
            "Convolution",
            lambda x, w: mx.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
            (x, w),
        ),
        Case("Convolution", grad(lambda x, w: mx.conv2d(x, w, stride=2, padding=1).sum(), (0, 1)), (x, w)),
        Case("Convolution", lambda a, b: mx.convolve(a, b, "same"), (x[0, 0, :, 0], w[0, 0, :, 0])),
    ]
    return cases


def transforms() -> list[Case]:
    x, z = numbers(3, 8, 6), numbers(3, 8, 6, dtype=mx.complex64)
    cases = []
    for norm in ("backward", "ortho", "forward"):
        for axes in ((-1,), (0, 2), (2, 1), (0, 1, 2)):
            o = {"axes": axes, "norm": norm}
            cases += [Case("FFT", lambda a, f=f, o=o: f(a, **o), (z,)) for f in (mx.fft.fftn, mx.fft.ifftn)]
            cases.append(Case("FFT", lambda a, o=o: mx.fft.rfftn(a, **o), (x,)))
            cases.append(Case("FFT", lambda a, o=o: mx.fft.irfftn(a, **o), (z,)))
    cases += [
        Case("FFT", lambda a: mx.fft.irfft(a, n=9), (z,)),
        Case("FFT", lambda a: mx.fft.irfft(a, n=11), (z,)),
        Case("FFT", lambda a: mx.fft.fft(a, n=11, axis=0), (z,)),
        Case("FFT", lambda a: mx.fft.rfft2(a, s=(5, 7)), (x,)),
        Case("FFT", grad(lambda a: mx.abs(mx.fft.rfft(a)).sum()), (x,)),
        Case("FFT", grad(lambda a: mx.fft.irfft(mx.fft.rfft(a[..., :5]) * 2, n=5).sum()), (x,)),
    ]
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        for n in (16, 28, 12):
            cases.append(Case("Hadamard", mx.hadamard_transform, (numbers(2, n, dtype=dtype),)))
        cases.append(Case("Hadamard", lambda a: mx.hadamard_transform(a, 2.5), (numbers(3, 8, dtype=dtype),)))
    return cases


def factorisations() -> list[Case]:
    cases = []
    for dtype in (mx.float32, mx.float64):
        x = numbers(2, 4, 4, dtype=dtype)
        positive = x @ mx.swapaxes(x, -1, -2) + mx.eye(4, dtype=dtype)
        cases += [
            Case("Cholesky", lambda a: mx.linalg.cholesky(a, **CPU), (positive,)),
            Case("Cholesky", lambda a: mx.linalg.cholesky(a, upper=True, **CPU), (positive,)),
            Case("Eig", lambda a: mx.linalg.eig(a, **CPU), (x,)),
            Case("Eig", lambda a: mx.linalg.eigvals(a, **CPU), (x,)),
            Case("Eigh", lambda a: mx.linalg.eigh(a, **CPU), (positive,)),
            Case("Eigh", lambda a: mx.linalg.eigh(a, "U", **CPU)[1], (positive,)),
            Case("Eigh", lambda a: mx.linalg.eigvalsh(a, "U", **CPU), (positive,)),
            Case("Inverse", lambda a: mx.linalg.inv(a, **CPU), (positive,)),
            Case("Inverse", lambda a: mx.linalg.tri_inv(mx.tril(a), **CPU), (positive,)),
            Case("Inverse", lambda a: mx.linalg.tri_inv(mx.triu(a), upper=True, **CPU), (positive,)),
            Case("QRF", lambda a: mx.linalg.qr(a[:, :, :3], **CPU), (x,)),
            Case("QRF", lambda a: mx.linalg.qr(a[0], **CPU)[1], (x,)),
            Case("SVD", lambda a: mx.linalg.svd(a[:, :3], **CPU), (x,)),
            Case("SVD", lambda a: mx.linalg.svd(a, compute_uv=False, **CPU), (x,)),
            Case("SVD", lambda a: mx.linalg.pinv(a[0, :3], **CPU), (x,)),
        ]
    return cases


def randoms() -> list[Case]:
    key, keys = mx.random.key(7), mx.random.split(mx.random.key(8), 3)
    cases = [
        Case("RandomBits", lambda k, n=n: mx.random.uniform(shape=n, key=k), (key,))
        for n in [(), (1,), (2,), (3,), (5,), (8,), (3, 5), (101,), (64, 3)]
    ]
    cases += [
        # Without elements there are no bits to hash.
        Case("Divide", lambda k: mx.random.uniform(shape=(0, 2), key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.split(k, 5), (key,)),
        Case("RandomBits", lambda k: mx.random.normal((3, 3), dtype=mx.bfloat16, key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.randint(-5, 900, (7,), key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.bernoulli(0.3, (9,), key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.categorical(mx.ones((3, 5)), key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.gumbel((5,), key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.permutation(10, key=k), (key,)),
        Case("RandomBits", lambda k: mx.random.truncated_normal(-1, 1, (5,), key=k), (key,)),
        Case("RandomBits", vmap(lambda k: mx.random.uniform(shape=(5,), key=k)), (keys,)),
        Case("RandomBits", vmap(lambda k: mx.random.uniform(shape=(2, 3), key=k)), (keys,)),
        Case("RandomBits", vmap(lambda k: mx.random.uniform(shape=(), key=k)), (keys,)),
    ]
    return cases


CASES = [*products(), *quantized(), *convolutions(), *transforms(), *factorisations(), *randoms()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_linear(case: Case):
    check(case)
