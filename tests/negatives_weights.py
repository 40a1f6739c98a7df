"""Near-attentions broken after the scores: in the softmax, between the products, or in the second product."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from tests.negatives_base import ROOT, E, N, scores, weights
from tests.spellings_base import INF, LOWEST, QKV, K, Q, T, args, attend, bias, causal, const, keep, sm

CUBE = args((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4))
WITH_KEEP = args(Q, K, K, keep(2, 1, 5, 7))
WITH_BIAS = args(Q, K, K, bias(2, 1, 5, 7))
PASS = "weights|between|multipl|after the softmax|softmax|values vary"


def total(x, axis=-1):
    return x.sum(axis=axis, keepdims=True)


def exp(x, axis=-1):
    return mx.exp(x - x.max(axis=axis, keepdims=True))


def axis(which):
    return lambda q, k, v: mx.softmax(scores(q, k), axis=which) @ v


def then(change, *, words, name, make=QKV, either=False):
    """Weights that something changes before they meet the values."""
    return (E if either else N)(f"weights: {name}", lambda q, k, v, *r: change(weights(q, k), *r) @ v, words, make)


def dropped(q, k, v):
    p = weights(q, k)
    return (p * mx.random.bernoulli(0.8, p.shape, key=mx.random.key(3)) / 0.8) @ v


def top(p, n=3):
    return mx.where(p >= mx.min(mx.topk(p, n, axis=-1), axis=-1, keepdims=True), p, 0.0)


def quantised(p):
    return (p * 15).astype(mx.uint8).astype(p.dtype) / 15


def talking(p):
    return (p.transpose(0, 2, 3, 1) @ const(4, 4)).transpose(0, 3, 1, 2)


AXES = [
    E("softmax over the queries", axis(-2), "axis|axes|quer", CUBE),
    E("softmax over the heads", axis(1), "axis|axes|head", CUBE),
    E("softmax over the batch", axis(0), "axis|axes|batch", CUBE),
    E("softmax over queries and keys", axis([-2, -1]), "axis|axes|axes|two", CUBE),
    E("softmax over heads and keys", axis([1, -1]), "axis|axes|axes|two"),
    E(
        "softmax of everything",
        lambda q, k, v: sm(scores(q, k).flatten()).reshape(2, 4, 5, 7) @ v,
        "axis|axes|flat|reshape|shape|view|permut",
    ),
    E(
        "softmax of heads and keys as one axis",
        lambda q, k, v: (
            sm(scores(q, k).transpose(0, 2, 1, 3).reshape(2, 5, 28)).reshape(2, 5, 4, 7).transpose(0, 2, 1, 3) @ v
        ),
        "axis|axes|reshape|shape|view|permut",
    ),
    E(
        "softmax of half the keys at a time",
        lambda q, k, v: sm(scores(q, k).reshape(2, 4, 5, 2, 3)).reshape(2, 4, 5, 6) @ v,
        "axis|axes|reshape|shape|view|split",
        args(Q, (2, 4, 6, 8), (2, 4, 6, 8)),
    ),
    E(
        "keys by queries, over the queries",
        lambda q, k, v: T(sm(k @ T(q) * ROOT)) @ v,
        "axis|axes|transpos|permut",
        CUBE,
    ),
    E(
        "max of the keys, sum of the queries",
        lambda q, k, v: (lambda e: e / total(e, -2))(exp(scores(q, k))) @ v,
        "axis|axes|sum|denominator|normal|softmax",
        CUBE,
        maybe=True,
    ),
    E(
        "sum over the heads",
        lambda q, k, v: (lambda e: e / total(e, 1))(exp(scores(q, k))) @ v,
        "axis|axes|sum|denominator|normal|softmax|reduc",
        maybe=True,
    ),
]

NORMAL = [
    E(
        "sum of other exponentials",
        lambda q, k, v, m: mx.exp(scores(q, k) + m) / total(mx.exp(scores(q, k))) @ v,
        "sum|denominator|normal",
        WITH_BIAS,
        maybe=True,
    ),
    E(
        "sum squared",
        lambda q, k, v: (lambda e: e / mx.square(total(e)))(exp(scores(q, k))) @ v,
        "sum|denominator|normal",
        maybe=True,
    ),
    E(
        "sum plus a part",
        lambda q, k, v: (lambda e: e / (total(e) + 0.5))(exp(scores(q, k))) @ v,
        "sum|denominator|normal|plus",
        maybe=True,
    ),
    E(
        "sum of absolute values of scores",
        lambda q, k, v: (lambda x: x / total(mx.abs(x)))(scores(q, k)) @ v,
        "softmax|sum",
        maybe=True,
    ),
    E(
        "ReLU for exp",
        lambda q, k, v: (lambda e: e / (total(e) + 1e-6))(nn.relu(scores(q, k))) @ v,
        "softmax|exp",
        maybe=True,
    ),
    E(
        "softplus for exp",
        lambda q, k, v: (lambda e: e / total(e))(nn.softplus(scores(q, k))) @ v,
        "softmax|exp",
        maybe=True,
    ),
    E("sigmoid for softmax", lambda q, k, v: mx.sigmoid(scores(q, k)) @ v, "softmax", maybe=True),
    E("exp without a sum", lambda q, k, v: mx.exp(scores(q, k)) @ v, "softmax|sum", maybe=True),
    E(
        "sum in the output of other weights",
        lambda q, k, v: (exp(scores(q, k)) @ v) / total(exp(scores(q, k * 2.0))),
        "sum|denominator|normal",
        maybe=True,
    ),
    E(
        "log_softmax, not exp of it",
        lambda q, k, v: nn.log_softmax(scores(q, k), axis=-1) @ v,
        "log|exp|softmax",
        maybe=True,
    ),
    N(
        "softmax twice",
        lambda q, k, v: sm(weights(q, k)) @ v,
        "softmax|product|matmul|scores",
        verdicts=("refused", "not attention"),
    ),
    N(
        "over keys, then over queries (slots)",
        lambda q, k, v: (lambda p: p / total(p, -2))(weights(q, k)) @ v,
        PASS + "|divi|normal",
    ),
    N(
        "over queries, then over keys (slots)",
        lambda q, k, v: (lambda p: p / total(p))(mx.softmax(scores(q, k), axis=-2)) @ v,
        PASS + "|axis|divi|normal",
    ),
]

BETWEEN = [
    N("dropout", dropped, PASS + "|dropout|random"),
    then(lambda p, m: p * m, name="a mask multiplied", words=PASS + "|mask", make=WITH_KEEP),
    then(lambda p, m: p * m, name="numbers multiplied", words=PASS, make=WITH_BIAS),
    then(lambda p, m: p + m, name="numbers added", words=PASS + "|add", make=WITH_BIAS),
    then(
        lambda p, m: mx.where(m, p, 0.0),
        name="a mask selects",
        words=PASS + "|mask|where|select",
        make=WITH_KEEP,
    ),
    then(
        lambda p, m: mx.where(m, p, 1.0),
        name="a mask selects one",
        words=PASS + "|mask|where|select",
        make=WITH_KEEP,
    ),
    then(
        lambda p: mx.where(causal(5, 7), p, 0.0),
        name="causal after the softmax",
        words=PASS + "|mask|where|select",
    ),
    then(
        lambda p: mx.where(mx.isnan(p), 1.0, p) * mx.where(causal(5, 7), 1.0, 0.5),
        name="a guard, then numbers",
        words=PASS,
    ),
    then(top, name="top-k of the weights", words=PASS + "|top|partition|where"),
    then(lambda p: mx.where(p > 0.1, p, 0.0), name="a threshold", words=PASS + "|threshold|where|compare"),
    then(lambda p: p * p, name="squared", words=PASS),
    then(mx.square, name="squared by name", words=PASS + "|square"),
    then(mx.sqrt, name="rooted", words=PASS + "|sqrt|root"),
    then(mx.log, name="logarithm", words=PASS + "|log"),
    then(lambda p: 1.0 - p, name="the complement", words=PASS + "|subtract"),
    then(lambda p: p - p.mean(-1, keepdims=True), name="centred", words=PASS + "|subtract"),
    then(lambda p: mx.minimum(p, 0.2), name="clipped", words=PASS + "|minimum|clip"),
    then(lambda p: p + 0.1, name="a number added", words=PASS + "|add"),
    then(lambda p: mx.cumsum(p, axis=-1), name="running sum", words=PASS + "|cumsum|scan"),
    then(quantised, name="quantised", words=PASS + "|cast|int|quanti"),
    then(
        lambda p: (p * 4).astype(mx.int32).astype(mx.float32),
        name="cast to integers",
        words=PASS + "|cast|int",
    ),
    then(lambda p: (p > 0.2).astype(mx.float32), name="made boolean", words=PASS + "|cast|bool|compare"),
    then(lambda p: p[..., ::-1], name="keys in reverse", words=PASS + "|slice|revers"),
    then(lambda p: mx.roll(p, 1, axis=-1), name="keys rolled", words=PASS + "|roll|concat|slice"),
    then(lambda p: mx.roll(p, 1, axis=-2), name="queries rolled", words=PASS + "|roll|concat|slice"),
    then(T, name="transposed", words=PASS + "|transpos|permut|axis", make=CUBE),
    then(
        lambda p: p.transpose(0, 2, 1, 3),
        name="heads and queries swapped",
        words=PASS + "|transpos|permut|axis",
        make=CUBE,
    ),
    then(
        lambda p: p.transpose(0, 1, 3, 2).reshape(4, 4, 4, 4) * 1.0,
        name="transposed in a reshape",
        words=PASS + "|transpos|permut|axis",
        make=CUBE,
    ),
    then(lambda p: mx.sort(p, axis=-1), name="sorted", words=PASS + "|sort"),
    then(talking, name="heads mixed after (talking heads)", words=PASS + "|matmul|product"),
    then(
        lambda p: mx.fast.layer_norm(p, None, None, 1e-5),
        name="normalised again",
        words=PASS + "|norm|subtract|multipl",
    ),
    N("gated by the scores", lambda q, k, v: (weights(q, k) * mx.sigmoid(scores(q, k))) @ v, PASS),
    N(
        "weights of two attentions multiplied",
        lambda q, k, v: (weights(q, k) * weights(q * 2.0, k)) @ v,
        PASS,
    ),
    N(
        "some keys dropped after",
        lambda q, k, v: weights(q, k)[..., :5] @ v[:, :, :5],
        PASS + "|slice|keys",
        like=lambda q, k, v: attend(q, k[:, :, :5], v[:, :, :5], ROOT),
    ),
    N(
        "a column of ones beside the weights",
        lambda q, k, v: (
            mx.concatenate([weights(q, k), mx.ones((2, 4, 5, 1))], -1) @ mx.concatenate([v, v[:, :, :1]], 2)
        ),
        PASS + "|concat|column",
    ),
]

SINKS = [
    N(
        "logits without values beside the scores",
        lambda q, k, v, s: sm(mx.concatenate([scores(q, k), s], -1))[..., :-3] @ v,
        "no product makes",
        args(Q, K, K, bias(2, 4, 5, 3)),
    ),
    E(
        "the sink stays, a key goes",
        lambda q, k, v, s: sm(mx.concatenate([scores(q, k), mx.broadcast_to(s, (2, 4, 5, 1))], -1))[..., 1:] @ v,
        "sink|column|concat|slice",
        args(Q, K, K, bias(4, 1, 1)),
    ),
    E(
        "a sink made of the scores",
        lambda q, k, v: (lambda x: sm(mx.concatenate([x, x.mean(-1, keepdims=True)], -1))[..., :-1])(scores(q, k)) @ v,
        "sink|column|concat|slice",
    ),
]

AGAIN = [
    E(
        "a number below the line that counts",
        lambda q, k, v: (lambda e: e / (total(e) + 0.5))(exp(scores(q, k))) @ v,
        "sum|divid|softmax|normal",
        maybe=True,
    ),
    N(
        "weights masked by another mask",
        lambda q, k, v, m, n: mx.where(n, sm(mx.where(m, scores(q, k), -INF)), 0.0) @ v,
        "another mask",
        args(Q, K, K, keep(2, 1, 1, 7), keep(2, 1, 1, 7)),
        lambda q, k, v, m, n: attend(q, k, v, ROOT, m),
    ),
    N(
        "weights masked by the opposite of the mask",
        lambda q, k, v, m: mx.where(m, 0.0, sm(mx.where(m, scores(q, k), -INF))) @ v,
        "another mask",
        args(Q, K, K, keep(2, 1, 1, 7)),
        lambda q, k, v, m: attend(q, k, v, ROOT, m),
    ),
    N(
        "weights masked, scores not",
        lambda q, k, v, m: mx.where(m, sm(scores(q, k)), 0.0) @ v,
        "another mask",
        args(Q, K, K, keep(2, 1, 1, 7)),
        lambda q, k, v, m: attend(q, k, v, ROOT, m),
    ),
    N(
        "weights masked by one of two masks",
        lambda q, k, v, m, n: mx.where(m, sm(mx.where(n, mx.where(m, scores(q, k), LOWEST), LOWEST)), 0.0) @ v,
        "several masks",
        args(Q, K, K, keep(2, 1, 1, 7), keep(2, 1, 5, 7)),
        None,
    ),
    N(
        "weights masked where scores keep weight",
        lambda q, k, v, m: mx.where(m, sm(mx.where(m, scores(q, k), -2.0)), 0.0) @ v,
        "leaves them weight",
        args(Q, K, K, keep(2, 1, 1, 7)),
        lambda q, k, v, m: attend(q, k, v, ROOT, m),
    ),
]

SECOND = [
    N(
        "the values come first",
        lambda q, k, v: v @ weights(q, k),
        "operand|order|side|product|axis|contract|left|right|transpos",
        CUBE,
    ),
    N(
        "summed over the queries",
        lambda q, k, v: mx.einsum("bhqk,bhqd->bhkd", weights(q, k), v),
        PASS + "|transpos|permut|axis|contract|sum",
        CUBE,
    ),
    N(
        "summed over the heads",
        lambda q, k, v: mx.einsum("bhqk,bkhd->bqhd", weights(q, k).transpose(0, 2, 1, 3), v),
        PASS + "|transpos|permut|axis|contract|sum",
        CUBE,
    ),
    E(
        "the largest instead of the sum",
        lambda q, k, v: (weights(q, k)[..., None] * v[:, :, None]).max(-2),
        "product|matmul|sum|max|multipl",
    ),
    E("multiplied, never summed", lambda q, k, v: weights(q, k) * v, "product|matmul|sum|multipl", CUBE),
    E(
        "mean instead of sum",
        lambda q, k, v: (weights(q, k)[..., None] * v[:, :, None]).mean(-3),
        "product|matmul|sum|multipl",
        CUBE,
    ),
    N(
        "weights used with other values of another width",
        lambda q, k, v, w: (lambda p: (p @ v, p @ w))(weights(q, k)),
        PASS + "|another|other|two|more than|used|shared|users",
        args(Q, K, K, bias(2, 4, 7, 3)),
        like=None,
    ),
    N(
        "weights of one attention, values of the heads of another",
        lambda q, k, v: (lambda p: p[:, 1:] @ v[:, 1:] + p[:, :1] @ v[:, 1:])(weights(q, k)),
        PASS + "|slice|two|more than|another|used|shared",
        like=lambda q, k, v: plain_from_one(q, k, v),
    ),
]


def plain_from_one(q, k, v):
    return attend(q, k, v, ROOT)[:, 1:]


NEGATIVES = [*AXES, *AGAIN, *NORMAL, *BETWEEN, *SINKS, *SECOND]
