"""Near-attentions over keys and values in pieces: what one attention with all of them does not mean."""

from __future__ import annotations

import mlx.core as mx

from tests.negatives_base import ROOT, N
from tests.spellings_base import K, Q, T, args, keep, sm
from tests.spellings_pieces import TWO, both, cut, joined

FOURS = args((4, 4, 5, 8), (4, 4, 7, 8), (4, 4, 7, 8), (4, 4, 3, 8), (4, 4, 3, 8))
CUT = "slice|piece"
PIECE = "piece"


COLUMN = mx.array([1.0, 2, 3, 4, 5])[:, None]
SINK = mx.broadcast_to(mx.array([0.5, -0.5, 1, 0]).reshape(4, 1, 1), (2, 4, 5, 1))


def sunk(q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=SINK[0, :, 0, 0])


def two(q, k, c, left=ROOT, right=ROOT):
    return mx.concatenate([q @ T(k) * left, q @ T(c) * right], -1)


NEGATIVES = [
    N("pieces of two scales", lambda q, k, v, c, w: cut(sm(two(q, k, c, right=0.5)), v, w), PIECE, TWO, both),
    N(
        "pieces of the queries and of their transpose",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([q @ T(k) * ROOT, q.swapaxes(0, 1) @ T(c) * ROOT], -1)), v, w),
        PIECE,
        FOURS,
        both,
    ),
    N(
        "products transposed against each other",
        lambda q, k, v, c, w: (lambda p: p[..., :7] @ v + (p[..., 7:] @ w).swapaxes(0, 1))(sm(joined(q, k, c))),
        CUT,
        FOURS,
        both,
    ),
    N(
        "pieces of two queries",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([q @ T(k) * ROOT, (q * q) @ T(c) * ROOT], -1)), v, w),
        PIECE,
        TWO,
        both,
    ),
    N("one piece without values", lambda q, k, v, c, w: sm(joined(q, k, c))[..., :7] @ v, CUT, TWO),
    N(
        "products over pieces that overlap",
        lambda q, k, v, c, w: (lambda p: p[..., :7] @ v + p[..., 3:] @ v)(sm(joined(q, k, c))),
        CUT,
        TWO,
        both,
    ),
    N(
        "one product subtracted",
        lambda q, k, v, c, w: (lambda p: p[..., :7] @ v - p[..., 7:] @ w)(sm(joined(q, k, c))),
        CUT,
        TWO,
        both,
    ),
    N(
        "a column added to each product",
        lambda q, k, v, c, w: (lambda p: mx.addmm(COLUMN, p[..., :7], v) + mx.addmm(COLUMN, p[..., 7:], w))(
            sm(joined(q, k, c))
        ),
        CUT,
        TWO,
        both,
    ),
    N(
        "a sink scaled with the scores",
        lambda q, k, v: sm(mx.concatenate([q @ T(k), SINK], -1) * ROOT)[..., :-1] @ v,
        "scaled",
        like=sunk,
    ),
    N(
        "weights of a sink multiplied with the others",
        lambda q, k, v, m: (sm(mx.concatenate([q @ T(k) * ROOT, SINK], -1)) * m)[..., :-1] @ v,
        "multiplied",
        args(Q, K, K, (5, 8)),
        lambda q, k, v, m: sunk(q, k, v),
    ),
    N(
        "weights of a sink zeroed with the others",
        lambda q, k, v, m: mx.where(m, sm(mx.concatenate([q @ T(k) * ROOT, SINK], -1)), 0)[..., :-1] @ v,
        "masked after",
        args(Q, K, K, keep(5, 8)),
        lambda q, k, v, m: sunk(q, k, v),
    ),
    N(
        "one product halved",
        lambda q, k, v, c, w: (lambda p: p[..., :7] @ v * 0.5 + p[..., 7:] @ w)(sm(joined(q, k, c))),
        CUT,
        TWO,
        both,
    ),
    N(
        "pieces of squared weights",
        lambda q, k, v, c, w: cut(sm(joined(q, k, c)) ** 2, v, w),
        CUT + "|square|power",
        TWO,
        both,
    ),
    N(
        "one piece capped",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([mx.tanh(q @ T(k)), q @ T(c)], -1) * ROOT), v, w),
        PIECE + "|cap",
        TWO,
        both,
    ),
    N(
        "one piece cut off below",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([mx.maximum(q @ T(k), -1.0), q @ T(c)], -1) * ROOT), v, w),
        PIECE + "|below",
        TWO,
        both,
    ),
    N(
        "scores beside numbers",
        lambda q, k, v, c, w, m: cut(sm(mx.concatenate([q @ T(k) * ROOT, m], -1)), v, w),
        "concat|input|product",
        args(Q, K, K, (2, 4, 3, 8), (2, 4, 3, 8), (2, 4, 5, 3)),
        lambda q, k, v, c, w, m: both(q, k, v, c, w),
    ),
]
