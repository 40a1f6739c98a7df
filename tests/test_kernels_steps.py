"""Programs that call our kernel between compiled pieces: the same answers, inside of MLX's transformations too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

import fuser
from fuser.fusion import fuse
from fuser.ir.ops import OPS
from fuser.ir.ops_fast import FLASH
from fuser.kernels import own
from fuser.kernels.admission import backend
from fuser.kernels.cost import WORTH
from fuser.segments import segmented

pytestmark = pytest.mark.skipif(backend() != "cpu", reason="cuts are made on a CPU")
LENGTH = 160


def arrays(*shapes: tuple[int, ...]) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(3), len(shapes))
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


QKV = arrays((1, 4, LENGTH, 64), (1, 2, LENGTH, 64), (1, 2, LENGTH, 64))


def attention(q: mx.array, k: mx.array, v: mx.array, cap: float = 0.0) -> mx.array:
    k, v = mx.repeat(k, 2, axis=1), mx.repeat(v, 2, axis=1)
    scores = (q @ k.swapaxes(-1, -2)) * 0.2
    if cap:
        scores = mx.tanh(scores / cap) * cap
    keep = mx.tri(LENGTH, LENGTH, dtype=mx.bool_)
    return mx.softmax(mx.where(keep, scores, -mx.inf), axis=-1) @ v


def capped(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return attention(q, k, v, 3.0)


def layers(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    first = attention(q, k, v) + q
    # the second waits for the first, the third does not
    return attention(first * 0.5, k, v) + attention(q * 2, k, v, 2.0) + mx.sin(first)


def same(found: Any, wanted: Any, rtol: float = 1e-5) -> None:
    if isinstance(wanted, list | tuple):
        for left, right in zip(found, wanted, strict=True):
            same(left, right, rtol)
        return
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    error, size = (float(mx.abs(each).max()) for each in (found - wanted, wanted))
    assert error <= rtol * max(1.0, size)


@pytest.mark.parametrize("program", [attention, capped, layers])
def test_answers(program: Callable[..., mx.array]) -> None:
    fast = fuser.optimize(program)
    same(fast(*QKV), program(*QKV))
    assert fast.report.counts["fused"] == len(fast.report.regions) > 0
    assert all("ours" in (region.kernel or "") for region in fast.report.regions)


@pytest.mark.parametrize("program", [attention, capped])
def test_transformations(program: Callable[..., mx.array]) -> None:
    fast: Callable[..., mx.array] = fuser.optimize(program)

    def loss(fn: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda *x: (fn(*x) ** 2).sum()

    q = QKV[0]
    same(mx.compile(fast)(*QKV), program(*QKV))
    same(mx.grad(loss(fast), argnums=(0, 1, 2))(*QKV), mx.grad(loss(program), argnums=(0, 1, 2))(*QKV), 1e-4)
    same(mx.compile(mx.grad(loss(fast)))(*QKV), mx.grad(loss(program))(*QKV), 1e-4)
    tangents = [mx.ones_like(x) for x in QKV]
    same(mx.jvp(fast, QKV, tangents)[1], mx.jvp(program, QKV, tangents)[1], 1e-4)
    many = mx.stack([q, q * 0.5])
    axes = (0, None, None)
    same(mx.vmap(fast, in_axes=axes)(many, *QKV[1:]), mx.vmap(program, in_axes=axes)(many, *QKV[1:]))
    found = mx.grad(lambda x: mx.vmap(fast, in_axes=axes)(x, *QKV[1:]).sum())(many)
    same(found, mx.grad(lambda x: mx.vmap(program, in_axes=axes)(x, *QKV[1:]).sum())(many), 1e-4)
    second = mx.grad(lambda x: mx.grad(loss(fast))(x, *QKV[1:]).sum())(q)
    same(second, mx.grad(lambda x: mx.grad(loss(program))(x, *QKV[1:]).sum())(q), 1e-3)


def test_a_mask_and_sinks_that_are_given() -> None:
    def program(q: mx.array, k: mx.array, v: mx.array, keep: mx.array, bias: mx.array, sinks: mx.array) -> mx.array:
        scores = (q @ k.swapaxes(-1, -2)) * 0.2
        scores = mx.where(keep, scores + bias, mx.finfo(mx.float32).min)
        column = mx.broadcast_to(sinks.reshape(1, -1, 1, 1), (*scores.shape[:3], 1))
        weights = mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1)[..., :-1]
        return weights @ v

    q, k, v, bias, sinks = arrays(*[(2, 4, LENGTH, 64)] * 3, (LENGTH, LENGTH), (4,))
    keep = mx.random.uniform(shape=(2, 1, LENGTH, LENGTH)) > 0.4
    fast = fuser.optimize(program)
    same(fast(q, k, v, keep, bias, sinks), program(q, k, v, keep, bias, sinks))
    assert "ours" in (fast.report.regions[0].kernel or "")


def test_half_types() -> None:
    halves = [x.astype(mx.float16) for x in QKV]
    fast = fuser.optimize(capped)
    same(fast(*halves), capped(*QKV).astype(mx.float16), 2e-3)


def test_small_calls_make_no_cut() -> None:
    small = [x[:, :, :16] for x in QKV]
    assert WORTH > 2 * 2 * 16 * 16 * 64

    def program(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.softmax(q[:, :2] @ k.swapaxes(-1, -2), axis=-1) @ v

    graph, report = fuse(fuser.trace(program, *small))
    assert report.counts["fused"] == 1 and segmented(graph) is None


CAPS: dict[str, Callable[[mx.array], mx.array]] = {
    "as Gemma 2 has it": lambda x: mx.tanh(x / 2.0) * 2.0,
    "bare": mx.tanh,
    "of scaled scores": lambda x: mx.tanh(x * 0.5 / 2.0) * 2.0,
    "then causal": lambda x: mx.where(mx.tri(5, 7, 2, dtype=mx.bool_), mx.tanh(x / 2.0) * 2.0, -math.inf),
    "then a bias": lambda x: mx.tanh(x / 2.0) * 2.0 + mx.arange(7) * 0.1,
}


@pytest.mark.parametrize("name", CAPS)
def test_a_softcap_is_fused_at_any_size(name: str) -> None:
    def program(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.softmax(CAPS[name](q @ k.swapaxes(-1, -2)), axis=-1) @ v

    few = QKV[0][:, :, :5], QKV[1][:, :, :7], QKV[2][:, :, :7]
    few = tuple(mx.repeat(x, QKV[0].shape[1] // x.shape[1], axis=1) for x in few)  # type: ignore[assignment]
    fast = fuser.optimize(program)
    same(fast(*few), program(*few))
    (region,) = fast.report.regions
    assert region.verdict == "fused" and "softcap" in (region.kernel or "")


def test_what_is_exported_has_no_kernel_of_ours() -> None:
    _, report = fuse(fuser.trace(capped, *QKV))
    assert report.counts["refused"] == 1 and "softcap" in (report.regions[0].reason or "")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: mx.tanh(s + 1.0 * mx.arange(LENGTH)),  # a bias under the cap
        lambda s: mx.tanh(mx.tanh(s)),
        lambda s: mx.tanh(s) * -2.0,
        lambda s: mx.tanh(s) * mx.linspace(0.5, 1, LENGTH)[:, None],
    ],
)
def test_caps_that_are_none(change: Callable[[mx.array], mx.array]) -> None:
    def program(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.softmax(change(q[:, :2] @ k.swapaxes(-1, -2)), axis=-1) @ v

    fast = fuser.optimize(program)
    same(fast(*QKV), program(*QKV), 1e-6)
    assert fast.report.counts["refused"] == 1


def test_a_scale_on_both_sides_of_the_cap() -> None:
    def program(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = -0.3 * (q[:, :2] @ k.swapaxes(-1, -2))
        return mx.softmax(mx.tanh(scores) * 4.0 * 0.5 + mx.log(mx.arange(1, LENGTH + 1) * 1.0), axis=-1) @ v

    fast = fuser.optimize(program)
    same(fast(*QKV), program(*QKV))
    assert fast.report.counts["fused"] == 1 and fast.report.regions[0].mask == "additive"


def test_nothing_is_evaluated_in_a_trace() -> None:
    form = own.Form(1.0)
    with pytest.raises(own.Untimely):
        mx.vmap(lambda x: own._run(form, (x, x, x)))(QKV[0][None])


@pytest.mark.parametrize("fill", [None, -math.inf, -1e30])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_without_a_key_answer_as_the_call_does(fill: float | None, sinks: bool) -> None:
    q, k, v, sink = [*QKV, mx.zeros(4)]
    keep = mx.logical_and(mx.random.uniform(shape=(LENGTH, LENGTH), key=mx.random.key(1)) > 0.5, mx.arange(LENGTH) > 2)
    keep = mx.logical_and(keep, mx.arange(LENGTH)[:, None] % 7 != 3)
    mask = keep if fill is None else mx.where(keep, 0.0, fill)

    def program(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
        given = sink if sinks else None
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.2, mask=mask, sinks=given)

    fast = fuser.optimize(program)
    found, wanted = fast(q, k, v, mask), program(q, k, v, mask)
    assert mx.array_equal(mx.isnan(found), mx.isnan(wanted))
    same(mx.nan_to_num(found), mx.nan_to_num(wanted))
    assert "ours" in (fast.report.regions[0].kernel or "")


def test_more_queries_than_keys_under_a_causal_call() -> None:
    def program(q: mx.array, k: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, k, scale=0.2, mask="causal")

    q, k = QKV[0], QKV[1][:, :, :100]
    same(fuser.optimize(program)(q, k), program(q, k))


def test_float16_swallows_scores_under_its_lowest_number() -> None:
    def program(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
        return mx.softmax((q[:, :2] @ k.swapaxes(-1, -2)) * 0.2 + mask, axis=-1) @ v

    halves = [x.astype(mx.float16) for x in QKV]
    mask = mx.where(mx.arange(LENGTH)[:, None] % 5 != 2, 0.0, -65504.0).astype(mx.float16)
    mask = mx.where(mx.arange(LENGTH) < 100, mask, mx.array(-65504.0, mx.float16))
    fast = fuser.optimize(program)
    given = [*halves, mask]
    same(fast(*given), program(*given), 4e-3)
    assert "ours" in (fast.report.regions[0].kernel or "")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
@pytest.mark.parametrize("sinks", [False, True])
def test_the_kernel_means_what_its_entry_says(causal: bool, mask: str, sinks: bool) -> None:
    bias, sink = arrays((1, 4, LENGTH, LENGTH), (4,))
    x = [*QKV]
    if mask != "none":
        x.append(bias if mask == "additive" else bias > -1)
    if sinks:
        x.append(sink)
    window = (0, 1 << 30) if causal else (3, 70)
    (wanted,) = OPS[FLASH]((0.3, window, sinks, 2.0, ""), x, ())
    same(own._run(own.Form(0.3, window, mask != "none", sinks, 2.0), x), wanted)
