"""Products: plain, einsum, transposed, elementwise, inside addmm, sums of two, split in two."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    K,
    Q,
    T,
    X,
    args,
    attend,
    bias,
    keep,
    sm,
)
from tests.spellings_shapes import BATCHED, BSHD, KEYS_LAST, ROOT, STEP, L, P, batched, bshd, scores


def ein(a, b):
    """Two einsums in the kernel's layout."""
    return lambda q, k, v: mx.einsum(b, sm(mx.einsum(a, q, k) * ROOT), v)


PLAIN = [
    P("matmul by name", lambda q, k, v: mx.matmul(sm(mx.matmul(q, T(k)) * ROOT), v)),
    P("transpose of four axes", lambda q, k, v: sm(q @ k.transpose(0, 1, 3, 2) * ROOT) @ v),
    P("moveaxis", lambda q, k, v: sm(q @ mx.moveaxis(k, -1, -2) * ROOT) @ v),
    P(
        "keys transposed before",
        lambda q, k, v: sm(q @ k * ROOT) @ v,
        KEYS_LAST,
        ref=lambda q, k, v: attend(q, T(k), v, ROOT),
        heads=(4, 4),
    ),
    P("keys transposed twice", lambda q, k, v: sm(q @ T(T(T(k))) * ROOT) @ v),
    P("another width of v", lambda q, k, v: sm(scores(q, k)) @ v, args(Q, K, (2, 4, 7, 12))),
    P("one query", lambda q, k, v: sm(scores(q, k)) @ v, STEP),
    P("one key", lambda q, k, v: sm(scores(q, k)) @ v, args(Q, (2, 4, 1, 8), (2, 4, 1, 8))),
    P("one head", lambda q, k, v: sm(scores(q, k)) @ v, args((2, 1, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8))),
    P(
        "one batch entry",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args((1, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)),
    ),
    P(
        "all sides alike",
        lambda q, k, v: sm(scores(q, k)) @ v,
        args((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4)),
    ),
    P(
        "keys are values",
        lambda q, k: sm(scores(q, k)) @ k,
        args(Q, K),
        ref=lambda q, k: attend(q, k, k, ROOT),
        heads=(4, 4),
    ),
    P(
        "queries, keys and values are one",
        lambda q, x: sm(scores(x, x)) @ x + q,
        args(X, X),
        ref=lambda q, x: attend(x, x, x, ROOT) + q,
        heads=(4, 4),
    ),
]

EINSUMS = [
    L("einsum", ein("bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd")),
    L("einsum, other letters", ein("xyij,xykj->xyik", "xyik,xykz->xyiz")),
    L("einsum, no arrow needed", ein("bhid,bhjd->bhij", "bhij,bhjd->bhid")),
    L(
        "einsum, sequence before heads",
        lambda q, k, v: mx.einsum("bhqk,bkhd->bqhd", sm(mx.einsum("bqhd,bkhd->bhqk", q, k) * ROOT), v),
        BSHD,
        ref=bshd,
        heads=(4, 4),
    ),
    L(
        "einsum, sequence before heads, mask",
        lambda q, k, v, m: mx.einsum("bnts,bsnh->btnh", sm(mx.einsum("btnh,bsnh->bnts", q, k) * ROOT + m), v),
        args((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8), bias(2, 1, 5, 7)),
        ref=bshd,
        heads=(4, 4),
        mask="additive",
    ),
    L(
        "einsum, sequence first (XLNet)",
        lambda q, k, v: mx.einsum("bnij,jbnd->ibnd", sm(mx.einsum("ibnd,jbnd->bnij", q, k) * ROOT), v),
        args((5, 2, 4, 8), (7, 2, 4, 8), (7, 2, 4, 8)),
        ref=lambda q, k, v: attend(*(x.transpose(1, 2, 0, 3) for x in (q, k, v)), ROOT).transpose(2, 0, 1, 3),
    ),
    L(
        "einsum, rank three",
        lambda q, k, v: mx.einsum("bij,bjd->bid", sm(mx.einsum("bid,bjd->bij", q, k) * ROOT), v),
        BATCHED,
        ref=batched,
    ),
    L(
        "einsum, keys by queries",
        lambda q, k, v: mx.einsum("bhkq,bhkd->bhqd", mx.softmax(mx.einsum("bhkd,bhqd->bhkq", k, q) * ROOT, axis=-2), v),
    ),
    L("einsum, then matmul", lambda q, k, v: sm(mx.einsum("bhqd,bhkd->bhqk", q, k) * ROOT) @ v),
    L(
        "einsum with the scale",
        lambda q, k, v: mx.einsum("bhqk,bhkd->bhqd", sm(mx.einsum("bhqd,bhkd,->bhqk", q, k, mx.array(ROOT))), v),
    ),
]

TURNED = [
    L("scores turned: (k q')'", lambda q, k, v: sm(T(k @ T(q)) * ROOT) @ v),
    L("output turned: (v' p')'", lambda q, k, v: T(T(v) @ T(sm(scores(q, k))))),
    L("both turned", lambda q, k, v: T(T(v) @ T(sm(T(k @ T(q)) * ROOT)))),
    L(
        "never turned back",
        lambda q, k, v: T(v) @ mx.softmax(k @ T(q) * ROOT, axis=-2),
        ref=lambda q, k, v: T(attend(q, k, v, ROOT)),
        heads=(4, 4),
    ),
    L(
        "one query, elementwise",
        lambda q, k, v: (sm((q * k).sum(-1) * ROOT)[..., None] * v).sum(-2, keepdims=True),
        STEP,
    ),
    L(
        "one query, elementwise scores",
        lambda q, k, v: sm(mx.sum(q * k, axis=-1)[:, :, None] * ROOT) @ v,
        STEP,
    ),
    L(
        "one query, elementwise output",
        lambda q, k, v: mx.sum(T(sm(scores(q, k))) * v, axis=2, keepdims=True),
        STEP,
    ),
    L(
        "elementwise all through",
        lambda q, k, v: (sm((q[:, :, :, None] * k[:, :, None]).sum(-1) * ROOT)[..., None] * v[:, :, None]).sum(-2),
    ),
]

SUMS = [
    P(
        "addmm with the mask",
        lambda q, k, v, m: sm(mx.addmm(m, q * ROOT, T(k))) @ v,
        args(Q, K, K, bias(2, 1, 5, 7)),
        mask="additive",
        m=lambda m: m,
        level=2,
    ),
    L(
        "addmm with the residual",
        lambda q, k, v, r: mx.addmm(r, sm(scores(q, k)), v),
        args(Q, K, K, bias(*Q)),
        ref=lambda q, k, v, r: attend(q, k, v, ROOT) + r,
        heads=(4, 4),
    ),
    L(
        "two score products (MLA)",
        lambda q, k, v, a, b: sm((q @ T(k) + a @ T(b)) * ROOT) @ v,
        args(Q, K, K, bias(2, 4, 5, 4), bias(2, 4, 7, 4)),
        ref=lambda q, k, v, a, b: attend(mx.concatenate([q, a], -1), mx.concatenate([k, b], -1), v, ROOT),
        heads=(4, 4),
        scale=None,
        mask="none|additive",
    ),
    L(
        "two score products, one key for all heads (MLA)",
        lambda q, k, v, a, b: sm((q @ T(k) + a @ T(b)) * ROOT) @ v,
        args(Q, K, K, bias(2, 4, 5, 4), bias(2, 1, 7, 4)),
        ref=lambda q, k, v, a, b: attend(
            mx.concatenate([q, a], -1), mx.concatenate([k, mx.repeat(b, 4, 1)], -1), v, ROOT
        ),
        heads=(4, 4),
        scale=None,
        mask="none|additive",
    ),
    L(
        "two score products, of which one is masked (MLA)",
        lambda q, k, v, a, b, m: sm(q @ T(k) * ROOT + mx.where(m, a @ T(b) * ROOT, -1e30)) @ v,
        args(Q, K, K, bias(2, 4, 5, 4), bias(2, 1, 7, 4), keep(2, 1, 1, 7)),
        ref=lambda q, k, v, a, b, m: attend(
            mx.concatenate([q, a], -1), mx.concatenate([k, mx.repeat(b, 4, 1)], -1), v, ROOT, m
        ),
        heads=(4, 4),
        scale=None,
        mask="boolean|additive",
    ),
    P(
        "queries and keys of two parts (MLA)",
        lambda q, k, v, a, b: sm(scores(mx.concatenate([q, a], -1), mx.concatenate([k, b], -1))) @ v,
        args(Q, K, K, bias(2, 4, 5, 4), bias(2, 4, 7, 4)),
        ref=lambda q, k, v, a, b: attend(mx.concatenate([q, a], -1), mx.concatenate([k, b], -1), v, ROOT),
        heads=(4, 4),
    ),
    P(
        "keys and values after a cache",
        lambda q, k, v, c, w: sm(scores(q, mx.concatenate([c, k], 2))) @ mx.concatenate([w, v], 2),
        args((2, 4, 1, 8), (2, 4, 1, 8), (2, 4, 1, 8), bias(*K), bias(*K)),
        ref=lambda q, k, v, c, w: attend(q, mx.concatenate([c, k], 2), mx.concatenate([w, v], 2), ROOT),
        heads=(4, 4),
    ),
]

SPELLINGS = [*PLAIN, *EINSUMS, *TURNED, *SUMS]
