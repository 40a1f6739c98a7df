"""The rules of which calls reach a fused kernel, and what the report says of them."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest

import fuser
from fuser.ir.types import TensorType
from fuser.kernels import admission, own, padding, sdpa
from fuser.kernels.admission import Backend, Call, Mask, cuda, metal
from fuser.kernels.cost import gains_nothing, unworthy

Shape = tuple[int, int, int, int]


def call(
    q: Shape, k: Shape, width: int | None = None, mask: Mask = "none", dtype: mx.Dtype = mx.float16, sinks: bool = False
) -> Call:
    v = (*k[:3], width or k[3])
    return Call(TensorType(q, dtype), TensorType(k, dtype), TensorType(v, dtype), mask, sinks)


def square(depth: int, length: int = 128, heads: int = 4) -> tuple[Shape, Shape]:
    return (1, heads, length, depth), (1, heads, length, depth)


@pytest.mark.parametrize("depth", [64, 72, 80, 96, 128])
def test_metal_tiles(depth: int) -> None:
    assert metal(call(*square(depth))).kernel == "tiled"
    assert metal(call(*square(depth), mask="boolean", dtype=mx.float32)).kernel == "tiled"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (call(*square(40)), "no head size 40"),
        (call(*square(128), width=64), "128 with values of 64"),
        (call(*square(256)), "faster"),
        (call(*square(192)), "faster"),
        (call((1, 4, 64, 64), (1, 4, 32, 64), mask="causal"), "no causal mask"),
        (call((1, 4, 4, 80), (1, 4, 32, 80)), "no head size 80"),
        (call((1, 4, 8, 64), (1, 4, 4, 64)), "no more queries"),
        (call((1, 40, 8, 64), (1, 4, 32, 64)), "at most 32"),
        (call((1, 8, 1, 512), (1, 1, 512, 512)), "512"),
        (call((1, 4, 1, 192), (1, 4, 64, 192)), "faster"),
    ],
)
def test_metal_falls_back(given: Call, words: str) -> None:
    found = metal(given)
    assert found.kernel is None and words in str(found)


def test_metal_where_it_depends() -> None:
    assert metal(call((1, 4, 32, 96), (1, 4, 32, 96), width=64)).kernel == "tiled"
    assert metal(call((1, 4, 1, 192), (1, 4, 32, 192), width=128)).kernel == "vector"
    assert metal(call((1, 8, 1, 512), (1, 1, 1024, 512))).kernel == "vector"
    long = square(256, 2048)
    assert metal(call(*long, mask="causal")).kernel == "tiled"
    assert metal(call(*long, mask="causal", dtype=mx.float32)).kernel is None
    assert metal(call(*long, mask="boolean"), nax=True).kernel is not None
    assert metal(call(*square(512, 1024), mask="causal")).kernel == "blocked"


@pytest.mark.parametrize(
    ("given", "kernel"),
    [
        (call(*square(64)), "cuDNN"),
        (call(*square(40), mask="boolean"), "cuDNN"),
        (call(*square(64), dtype=mx.float32), None),
        (call(*square(100)), None),
        (call(*square(136)), None),
        (call((1, 4, 2, 64), (1, 4, 32, 64), dtype=mx.float32), "vector"),
        (call((1, 4, 1, 64), (1, 4, 32, 64)), "vector"),
        (call((1, 4, 1, 64), (1, 4, 32, 64), mask="boolean"), None),
        (call((1, 4, 64, 64), (1, 4, 32, 64), mask="causal"), None),
        (call((1, 4, 3, 64), (1, 4, 2, 64), mask="causal"), "vector"),
        (call((1, 4, 2, 64), (1, 4, 32, 64), sinks=True), "cuDNN"),
    ],
)
def test_cuda(given: Call, kernel: str | None) -> None:
    found = cuda(given)
    assert found.kernel == kernel
    assert (found.reason is None) == (kernel is not None)


def test_cuda_decodes_over_a_cache() -> None:
    given = call((1, 4, 1, 72), (1, 4, 300, 72))
    assert cuda(given).kernel is None and cuda(given, cache=True).kernel == "cuDNN"


def test_names_of_chips() -> None:
    assert admission.has_accelerators("applegpu_g17s") and not admission.has_accelerators("applegpu_g16s")
    assert not admission.has_accelerators("applegpu_g17p") and not admission.has_accelerators("")


def test_padded_heads_answer_as_they_are() -> None:
    odd, larger = call(*square(100), width=36), call(*square(104), width=40)
    assert padding.padded(odd) is None or admission.backend() == "metal"
    q = mx.random.normal((1, 4, 128, 100))
    v = mx.random.normal((1, 4, 128, 36))
    found = padding.attend(larger, (q, q, v), scale=0.1, mask="causal", sinks=None)
    wanted = mx.fast.scaled_dot_product_attention(q, q, v, scale=0.1, mask="causal")
    assert found.shape == wanted.shape and mx.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("steps", "helps"), [((10, 8), True), ((10, 10), False)])
def test_heads_are_padded_on_metal_where_that_is_measured_to_help(
    steps: tuple[int, int], helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the clock shows before and after a call as it is, and before and after the padded one
    shown = iter(itertools.accumulate(itertools.chain.from_iterable((0, steps[0], 0, steps[1]) for _ in range(100))))
    monkeypatch.setattr(admission, "backend", lambda: "metal")
    monkeypatch.setattr(padding, "clock", lambda: next(shown))
    padding.faster.cache_clear()
    for heads, size in (((40, 40), 64), ((100, 100), 128), ((64, 32), 64)):
        given = call((1, 4, 32, heads[0]), (1, 2, 32, heads[0]), width=heads[1], mask="boolean")
        larger = padding.padded(given)
        assert (larger.heads if larger is not None else None) == ((size, size) if helps else None)
    # those that have a kernel, that MLX leaves unfused as the faster way, that are too large
    for size in (64, 192, 520):
        assert padding.padded(call(*square(size))) is None
    padding.faster.cache_clear()


def test_float32_gains_nothing_on_cuda() -> None:
    plain = call(*square(64, 512), dtype=mx.float32)
    where: Backend
    for where in ("metal", "cpu"):
        assert gains_nothing(plain, where, 80 << 30) is None
    assert "float32" in (gains_nothing(plain, "cuda", 80 << 30) or "")
    # the vector kernel, half types, repeated keys that are spared, scores that fill the memory
    few = call((1, 4, 2, 64), (1, 4, 512, 64), dtype=mx.float32)
    grouped = call((1, 4, 512, 64), (1, 2, 512, 64), dtype=mx.float32)
    for other in (few, call(*square(64, 512)), call(*square(100, 512)), grouped):
        assert gains_nothing(other, "cuda", 80 << 30) is None
    assert gains_nothing(plain, "cuda", 8 << 20) is None


def test_our_kernel_pays_for_many_scores() -> None:
    few, many = call((1, 1, 16, 32), (1, 1, 16, 32)), call((1, 2, 32, 64), (1, 2, 32, 64))
    assert unworthy(few, "cpu", 0) is not None and unworthy(many, "cpu", 0) is None
    long = call(*square(64, 1 << 15), dtype=mx.float32)
    for where in ("cuda", "metal"):
        assert unworthy(long, where, 80 << 30) is not None and unworthy(long, where, 8 << 30) is None
    # on tensor cores it does but for wide heads that see all of many keys
    assert unworthy(few, "cuda", 80 << 30) is None and unworthy(call(*square(256, 512)), "cuda", 80 << 30) is None
    assert unworthy(call(*square(256, 2048), mask="causal"), "cuda", 80 << 30) is None
    assert (unworthy(call(*square(256, 2048)), "cuda", 80 << 30) is None) == admission.hopper()


def test_masks_that_are_numbers_go_to_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "backend", lambda: "cuda")
    monkeypatch.setattr(own, "refuses", lambda *_: None)
    masked, plain = call(*square(64, 2048), mask="boolean"), call(*square(64, 2048))
    assert own.takes(masked, banded=True) and not own.takes(masked) and not own.takes(plain)
    assert not own.takes(call(*square(64, 2048), mask="boolean", dtype=mx.float32), banded=True)
    # no multiple of 8
    assert own.takes(call(*square(100))) and own.takes(call(*square(100), mask="boolean"), banded=True)
    # one query and an array: MLX has no kernel
    assert own.takes(call((4, 8, 1, 64), (4, 2, 512, 64), mask="boolean"))


def test_what_gains_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(q: mx.array) -> mx.array:
        return mx.softmax(q @ q.swapaxes(-1, -2), axis=-1) @ q

    monkeypatch.setattr(sdpa, "backend", lambda: "cuda")
    q = mx.random.normal((1, 2, 16, 64))
    left, done = fuser.optimize(program), fuser.optimize(program, when="always")
    assert mx.array_equal(left(q), program(q)) and mx.allclose(done(q), program(q), atol=1e-5)
    assert left.report.counts["refused"] == 1 and done.report.counts["fused"] == 1
    assert "always" in (left.report.regions[0].reason or "")
    assert fuser.explain(program, q.astype(mx.float16)).counts["fused"] == 1
    with pytest.raises(ValueError, match="profitable"):
        fuser.optimize(program, when="now")  # type: ignore[call-overload]


def test_the_report_names_the_kernel() -> None:
    def program(q: mx.array) -> mx.array:
        return mx.softmax(q @ q.swapaxes(-1, -2) * 0.125, axis=-1) @ q

    small = fuser.explain(program, mx.zeros((1, 2, 16, 64), mx.float16)).regions[0]
    assert small.verdict == "fused" and small.kernel is not None
    if admission.backend() == "cpu":
        assert "Metal: tiled" in small.kernel and "CUDA: cuDNN" in small.kernel
    large = fuser.explain(program, mx.zeros((1, 8, 512, 64), mx.float16)).regions[0]
    assert large.kernel is not None and ("ours" in large.kernel) == (admission.backend() == "cpu")
    assert large.to_dict()["kernel"] == large.kernel
