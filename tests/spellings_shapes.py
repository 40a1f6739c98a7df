"""What the tables of layouts and of products share: shapes, and a spelling of each layout in the kernel's."""

from __future__ import annotations

from tests.spellings_base import QKV, K, Q, S, T, args, attend, causal, heads_first

ROOT = 8**-0.5
BSHD = args((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8))
FLAT = args((2, 5, 32), (2, 7, 32), (2, 7, 32))
BATCHED = args((8, 5, 8), (8, 7, 8), (8, 7, 8))
MATRIX = args((5, 8), (7, 8), (7, 8))
KEYS_LAST = args(Q, (2, 4, 8, 7), K)
STEP = args((2, 4, 1, 8), K, K)
TRI = causal(6, 6)


def P(name, fn, make=QKV, level=1, **more):
    return S(name, fn, make, scale=more.pop("scale", ROOT), level=level, **more)


def L(name, fn, make=QKV, **more):
    return P(name, fn, make, 2, **more)


def scores(q, k):
    return q @ T(k) * ROOT


def bshd(q, k, v, mask=None):
    return heads_first(attend(*map(heads_first, (q, k, v)), ROOT, mask))


def batched(q, k, v, mask=None):
    return attend(q[None], k[None], v[None], ROOT, mask)[0]
