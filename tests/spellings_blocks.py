"""Softmax over blocks of the keys, each less a running maximum: flash attention written by hand."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import INF, KEEP, LOWEST, QKV, SELF, K, Q, S, args, attend, causal, heads_first, keep
from tests.spellings_shapes import ROOT


def flash(q, k, v, *, ends=(2, 4), mask=None, start=-INF):
    """One block after the other; `mask` changes the scores of a block of keys."""
    most, total = mx.full((*q.shape[:3], 1), start), mx.zeros((*q.shape[:3], 1))
    output = mx.zeros((*q.shape[:3], v.shape[-1]))
    for keys in (slice(a, b) for a, b in zip((0, *ends), (*ends, k.shape[2]), strict=True)):
        x = q @ k[:, :, keys].swapaxes(-1, -2) * ROOT
        x = x if mask is None else mask(x, keys)
        new = mx.maximum(most, x.max(axis=-1, keepdims=True))
        old, e = mx.exp(most - new), mx.exp(x - new)
        total, output, most = total * old + e.sum(-1, keepdims=True), output * old + e @ v[:, :, keys], new
    return output / total


def at_once(q, k, v):
    """All blocks less one maximum, which is found first."""
    x = [q @ part.swapaxes(-1, -2) * ROOT for part in mx.split(k, [4], axis=2)]
    most = mx.maximum(*(part.max(-1) for part in x))
    e = [mx.exp(part - most[..., None]) for part in x]
    total = e[0].sum(-1) + e[1].sum(-1)
    return (e[0] @ v[:, :, :4] + e[1] @ v[:, :, 4:]) / total[..., None]


def in_einsums(q, k, v):
    """Tokens before heads, and statistics without a last axis."""
    most = mx.full((2, 4, 5), -INF)
    total, output = mx.zeros((2, 4, 5)), mx.zeros((2, 5, 4, 8))
    for keys in (slice(0, 4), slice(4, 7)):
        x = mx.einsum("bqhd,bkhd->bhqk", q, k[:, keys]) * ROOT
        new = mx.maximum(most, x.max(-1))
        old, e = mx.exp(most - new), mx.exp(x - new[..., None])
        total = old * total + e.sum(-1)
        part = mx.einsum("bhqk,bkhd->bqhd", e, v[:, keys])
        output, most = output * old.transpose(0, 2, 1)[..., None] + part, new
    return output / total.transpose(0, 2, 1)[..., None]


def no_maximum(q, k, v):
    e = [mx.exp(q @ part.swapaxes(-1, -2) * ROOT) for part in (k[:, :, :4], k[:, :, 4:])]
    return (e[0] @ v[:, :, :4] + e[1] @ v[:, :, 4:]) / (e[0].sum(-1, keepdims=True) + e[1].sum(-1, keepdims=True))


def triangle(fill):
    return lambda x, keys: mx.where(causal(6, 6)[:, keys], x, fill)


def B(name, fn, make=QKV, **more):
    return S(name, fn, make, scale=ROOT, level=2, **more)


def kernel(q, k, v):
    return mx.fast.scaled_dot_product_attention(*map(heads_first, (q, k, v)), scale=ROOT)


SPELLINGS = [
    B("two blocks", lambda q, k, v: flash(q, k, v, ends=(4,))),
    B("three blocks", flash),
    B("from a large number", lambda q, k, v: flash(q, k, v, start=-1e30)),
    B("all blocks at once", at_once),
    B("no maximum", no_maximum),
    B(
        "in einsums",
        in_einsums,
        args((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8)),
        ref=lambda q, k, v: heads_first(kernel(q, k, v)),
        heads=(4, 4),
    ),
    B(
        "grouped heads",
        lambda q, k, v: flash(q, mx.repeat(k, 2, 1), mx.repeat(v, 2, 1)),
        args(Q, (2, 2, 7, 8), (2, 2, 7, 8)),
        ref=lambda q, k, v: attend(q, k, v, ROOT),
        heads=(4, 2),
    ),
    B("causal", lambda q, k, v: flash(q, k, v, mask=triangle(-INF)), SELF, mask="causal"),
    B("causal, filled", lambda q, k, v: flash(q, k, v, mask=triangle(LOWEST)), SELF, mask="causal"),
    B(
        "padding",
        lambda q, k, v, m: flash(q, k, v, mask=lambda x, keys: mx.where(m[..., keys], x, LOWEST)),
        args(Q, K, K, keep(2, 1, 1, 7)),
        mask=KEEP,
        m=lambda m: m,
    ),
]
