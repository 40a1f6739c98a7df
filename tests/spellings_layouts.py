"""Layouts: sequence before heads, merged heads, ranks 1 to 5, packed queries, keys and values."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    INF,
    K,
    Q,
    args,
    attend,
    bias,
    const,
    fill,
    heads_first,
    merge,
    sm,
    split,
)
from tests.spellings_shapes import BATCHED, BSHD, FLAT, MATRIX, ROOT, TRI, L, P, batched, bshd, scores


def flat(q, k, v, mask=None):
    return merge(attend(*(split(x, 4) for x in (q, k, v)), ROOT, mask))


def matrix(q, k, v, mask=None):
    return attend(q[None, None], k[None, None], v[None, None], ROOT, mask)[0, 0]


def folded(q, k, v):
    q, k, v = (x.reshape(8, -1, 8) for x in (q, k, v))
    return (sm(scores(q, k)) @ v).reshape(2, 4, -1, 8)


def folded_back(q, k, v, m):
    x = scores(q.reshape(8, 5, 8), k.reshape(8, 7, 8)).reshape(2, 4, 5, 7) + m
    return (sm(x).reshape(8, 5, 7) @ v.reshape(8, 7, 8)).reshape(2, 4, 5, 8)


def folded_bshd(q, k, v):
    q, k, v = (heads_first(x).reshape(8, -1, 8) for x in (q, k, v))
    return (sm(scores(q, k)) @ v).reshape(2, 4, -1, 8).transpose(0, 2, 1, 3)


def folded_flat(q, k, v):
    q, k, v = (split(x, 4).flatten(0, 1) for x in (q, k, v))
    return merge((sm(scores(q, k)) @ v).reshape(2, 4, -1, 8))


LAYOUTS = [
    P(
        "sequence before heads",
        lambda q, k, v: heads_first(sm(scores(heads_first(q), heads_first(k))) @ heads_first(v)),
        BSHD,
        ref=bshd,
        heads=(4, 4),
    ),
    P(
        "sequence before heads, keys straight to columns",
        lambda q, k, v: heads_first(sm(heads_first(q) @ k.transpose(0, 2, 3, 1) * ROOT) @ heads_first(v)),
        BSHD,
        ref=bshd,
        heads=(4, 4),
    ),
    P(
        "sequence before heads, swapped axes",
        lambda q, k, v: sm(scores(q.swapaxes(1, 2), k.swapaxes(1, 2))) @ v.swapaxes(1, 2),
        BSHD,
        ref=lambda *a: heads_first(bshd(*a)),
        heads=(4, 4),
    ),
    P(
        "heads split and merged",
        lambda q, k, v: merge(sm(scores(split(q, 4), split(k, 4))) @ split(v, 4)),
        FLAT,
        ref=flat,
        heads=(4, 4),
    ),
    P(
        "heads unflattened",
        lambda q, k, v: merge(
            (lambda a, b, c: sm(scores(a, b)) @ c)(*(mx.unflatten(x, -1, (4, 8)).swapaxes(1, 2) for x in (q, k, v)))
        ),
        FLAT,
        ref=flat,
        heads=(4, 4),
    ),
    L(
        "heads of width four, sequence first, batch second",
        lambda q, k, v: (
            sm(scores(q.transpose(1, 2, 0, 3), k.transpose(1, 2, 0, 3))) @ v.transpose(1, 2, 0, 3)
        ).transpose(2, 0, 1, 3),
        args((5, 2, 4, 8), (7, 2, 4, 8), (7, 2, 4, 8)),
        ref=lambda q, k, v: attend(*(x.transpose(1, 2, 0, 3) for x in (q, k, v)), ROOT).transpose(2, 0, 1, 3),
    ),
    L(
        "heads before batch",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args((4, 2, 5, 8), (4, 2, 7, 8), (4, 2, 7, 8)),
        ref=lambda q, k, v: attend(q, k, v, ROOT),
    ),
    P("batch and heads merged", folded),
    P(
        "batch and heads merged, mask between",
        folded_back,
        args(Q, K, K, bias(2, 1, 5, 7)),
        mask="additive",
        m=lambda m: m,
    ),
    P("batch and heads merged, sequence before heads", folded_bshd, BSHD, ref=bshd),
    P("batch and heads merged, split and merged", folded_flat, FLAT, ref=flat),
    P("rank three", lambda q, k, v: sm(scores(q, k)) @ v, BATCHED, ref=batched),
    P(
        "rank three, added mask",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args((8, 5, 8), (8, 7, 8), (8, 7, 8), bias(8, 5, 7)),
        ref=batched,
        mask="additive",
    ),
    P(
        "rank three, causal",
        lambda q, k, v: sm(mx.where(TRI, scores(q, k), -INF)) @ v,
        args((8, 6, 8), (8, 6, 8), (8, 6, 8)),
        ref=lambda q, k, v: batched(q, k, v, "causal"),
        mask="causal",
    ),
    P(
        "rank three, keys transposed by axes",
        lambda q, k, v: sm(q @ k.transpose(0, 2, 1) * ROOT) @ v,
        BATCHED,
        ref=batched,
    ),
    P("rank two", lambda q, k, v: sm(q @ k.T * ROOT) @ v, MATRIX, ref=matrix),
    L("rank two, inner", lambda q, k, v: sm(mx.inner(q, k) * ROOT) @ v, MATRIX, ref=matrix),
    L(
        "rank two, tensordot",
        lambda q, k, v: mx.tensordot(sm(mx.tensordot(q, k.T, 1) * ROOT), v, 1),
        MATRIX,
        ref=matrix,
    ),
    L(
        "rank one query",
        lambda q, k, v: sm(q @ k.T * ROOT) @ v,
        args((8,), (7, 8), (7, 8)),
        ref=lambda q, k, v: matrix(q[None], k, v)[0],
    ),
    L(
        "rank five",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
        ref=lambda q, k, v: attend(*(x.flatten(0, 1) for x in (q, k, v)), ROOT).reshape(2, 3, 4, 5, 8),
    ),
    L(
        "rank five with a mask of rank five",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8), fill(1, 3, 1, 5, 7)),
        ref=lambda q, k, v, m: attend(
            *(x.flatten(0, 1) for x in (q, k, v)), ROOT, mx.concatenate([m[0], m[0]])
        ).reshape(2, 3, 4, 5, 8),
        mask="additive",
    ),
    L(
        "keys and values shared by the batch",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args(Q, (1, 4, 7, 8), (1, 4, 7, 8)),
        ref=lambda q, k, v: attend(q, mx.repeat(k, 2, 0), mx.repeat(v, 2, 0), ROOT),
        heads=(None, 4),
    ),
    L(
        "constant queries shared by the batch (DETR)",
        lambda k, v: sm(scores(const(1, 4, 5, 8), k)) @ v,
        args(K, K),
        ref=lambda k, v: attend(mx.repeat(const(1, 4, 5, 8), 2, 0), k, v, ROOT),
        heads=(None, None),
    ),
    L(
        "keys and values without a batch",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args(Q, (4, 7, 8), (4, 7, 8)),
        ref=lambda q, k, v: attend(q, mx.stack([k, k]), mx.stack([v, v]), ROOT),
        heads=(None, 4),
    ),
]

PACKED = [
    P(
        "packed, split in three",
        lambda x: (lambda q, k, v: merge(sm(scores(split(q, 4), split(k, 4))) @ split(v, 4)))(*mx.split(x, 3, axis=-1)),
        args((2, 6, 96)),
        ref=lambda x: flat(*mx.split(x, 3, axis=-1)),
        heads=(4, 4),
    ),
    P(
        "packed, three then heads (ViT)",
        lambda x: (lambda a: merge(sm(scores(a[0], a[1])) @ a[2]))(x.reshape(2, 6, 3, 4, 8).transpose(2, 0, 3, 1, 4)),
        args((2, 6, 96)),
        ref=lambda x: flat(*mx.split(x, 3, axis=-1)),
        heads=(4, 4),
    ),
    P(
        "packed, heads then three (GPT-NeoX)",
        lambda x: (lambda q, k, v: sm(scores(q, k)) @ v)(*mx.split(x.reshape(2, 6, 4, 24).swapaxes(1, 2), 3, axis=-1)),
        args((2, 6, 96)),
        ref=lambda x: attend(*mx.split(x.reshape(2, 6, 4, 24).swapaxes(1, 2), 3, axis=-1), ROOT),
        heads=(4, 4),
    ),
    P(
        "packed, three last (BLOOM)",
        lambda x: (lambda a: sm(scores(a[..., 0, :], a[..., 1, :])) @ a[..., 2, :])(
            x.reshape(2, 6, 4, 3, 8).swapaxes(1, 2)
        ),
        args((2, 6, 96)),
        ref=lambda x: (lambda a: attend(a[..., 0, :], a[..., 1, :], a[..., 2, :], ROOT))(
            x.reshape(2, 6, 4, 3, 8).swapaxes(1, 2)
        ),
        heads=(4, 4),
    ),
    P(
        "packed, keys and values only",
        lambda x, y: (lambda k, v: merge(sm(scores(split(x, 4), split(k, 4))) @ split(v, 4)))(*mx.split(y, 2, -1)),
        args((2, 5, 32), (2, 7, 64)),
        ref=lambda x, y: flat(x, *mx.split(y, 2, -1)),
        heads=(4, 4),
    ),
    P(
        "packed, sliced",
        lambda x: sm(scores(x[..., :8], x[..., 8:16])) @ x[..., 16:],
        args((2, 4, 6, 24)),
        ref=lambda x: attend(x[..., :8], x[..., 8:16], x[..., 16:], ROOT),
        heads=(4, 4),
    ),
]

SPELLINGS = [*LAYOUTS, *PACKED]
