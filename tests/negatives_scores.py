"""Near-attentions broken before the softmax, and softmaxes that never were attention."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from tests.negatives_base import ROOT, E, N, O, scores, weights
from tests.spellings_base import INF, LOWEST, QKV, K, Q, T, args, attend, bias, causal, const, keep, sm
from tests.spellings_blocks import flash

CUBE = args((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4))
ADD = args(Q, K, K, bias(2, 1, 5, 7))
TALL = args((2, 4, 7, 8), (2, 4, 5, 8), (2, 4, 5, 8))
TOKENS = args((2, 6, 32))
DEEP = "scores|product|matmul|values vary"


def through(change, *, words, name, make=QKV):
    """Scores that something changes."""
    return N(f"scores: {name}", lambda q, k, v, *r: sm(change(scores(q, k), *r)) @ v, f"{DEEP}|{words}", make)


def cap(x, c=2.0):
    return mx.tanh(x / c) * c


def linear_attention(q, k, v):
    return sm(q) @ (T(mx.softmax(k, axis=-2)) @ v)


def in_two(q, k, v, weights=None, axis=-1):
    """A softmax over two blocks of the keys, each less its own maximum, or (with `weights`) both less the same."""
    x = [scores(q, keys) for keys in (k[:, :, :4], k[:, :, 4:])]
    most = [part.max(axis, keepdims=True) for part in x]
    most = [mx.maximum(*most)] * 2 if weights else most
    e = [mx.exp(part - top) for part, top in zip(x, most, strict=True)]
    left, right = (part.sum(-1, keepdims=True) * n for part, n in zip(e, weights or (1, 1), strict=True))
    return (e[0] @ v[:, :, :4] + e[1] @ v[:, :, 4:]) / (left + right)


CHANGED = [
    N("blocks each less its own maximum", in_two, "division by their own sum"),
    N(
        "a block that counts twice in the sum",
        lambda q, k, v: in_two(q, k, v, weights=(1, 2)),
        "division by their own sum",
    ),
    N(
        "blocks less the largest of each key",
        lambda q, k, v: in_two(q, k, v, axis=-2),
        "division by their own sum|no shift|hidden",
    ),
    N(
        "a first block that is hidden with -inf",
        lambda q, k, v: flash(q, k, v, mask=lambda x, keys: mx.where(mx.arange(7)[keys] > 2, x, -INF)),
        "hidden wholly",
        like=lambda q, k, v: attend(q, k, v, ROOT, (mx.arange(7) > 2)[None]),
    ),
    N(
        "blocks hidden with -inf by an input",
        lambda q, k, v, m: flash(q, k, v, mask=lambda x, keys: mx.where(m[..., keys], x, -INF)),
        "hidden wholly",
        args(Q, K, K, lambda rng: mx.arange(7) > 2),
        like=lambda q, k, v, m: attend(q, k, v, ROOT, m[None]),
    ),
    through(lambda x, m: cap(x + m), name="softcap after a mask", words="tanh|softcap|cap", make=ADD),
    through(lambda x: cap(cap(x), 1.5), name="two softcaps", words="tanh|softcap|cap"),
    through(mx.sigmoid, name="sigmoid", words="sigmoid"),
    through(nn.relu, name="ReLU", words="relu|maximum"),
    through(lambda x: nn.leaky_relu(x, 0.1), name="leaky ReLU (GAT)", words="relu|maximum"),
    through(mx.exp, name="exp", words="exp"),
    through(mx.abs, name="absolute value", words="abs"),
    through(mx.square, name="squared", words="square|multipl"),
    through(lambda x: x * x, name="multiplied by itself", words="multipl|square|scale"),
    through(lambda x: mx.clip(x, -0.5, 0.5), name="clipped on both sides", words="clip|minimum|maximum"),
    through(lambda x: mx.minimum(x, 0.2), name="clipped above", words="clip|minimum"),
    through(lambda x: mx.maximum(x, -0.2), name="clipped below at a number of weight", words="clip|maximum"),
    through(lambda x: mx.floor(x * 4) / 4, name="rounded", words="floor|round"),
    through(lambda x: (x * 4).astype(mx.int32).astype(mx.float32), name="cast to integers", words="cast|int"),
    through(mx.sign, name="sign", words="sign"),
    through(lambda x: mx.sort(x, axis=-1), name="sorted", words="sort"),
    through(lambda x: mx.cumsum(x, axis=-1), name="running sum", words="cumsum|scan"),
    through(
        lambda x, w: x / w,
        name="divided for each score",
        words="vector|scale|key|divi",
        make=args(Q, K, K, bias(2, 1, 5, 7)),
    ),
    through(
        lambda x, w: mx.where(mx.arange(7) > 4, -INF, x) * w,
        name="temperature for each key, after a mask",
        words="vector|scale|key|multipl",
        make=args(Q, K, K, lambda rng: mx.array(rng.random(7) + 0.5)),
    ),
    through(lambda x, w: x * w, name="a number for each score", words="scale|multipl|vector", make=ADD),
    through(lambda x: x * const(5, 7), name="a constant for each score", words="scale|multipl|vector|constant"),
    through(
        lambda x: (x.transpose(0, 2, 3, 1) @ const(4, 4)).transpose(0, 3, 1, 2),
        name="heads mixed before (talking heads)",
        words="permut|transpos|axis|head",
    ),
    through(lambda x: x[..., ::-1], name="keys in reverse", words="slice|revers"),
    through(lambda x: mx.roll(x, 1, axis=-1), name="keys rolled (Transformer-XL)", words="roll|concat|slice"),
    through(
        lambda x: x.reshape(4, 4, 4, 4).transpose(0, 2, 1, 3),
        name="heads and queries swapped",
        words="permut|transpos|axis|view",
        make=CUBE,
    ),
    through(
        lambda x: mx.where(x >= mx.min(mx.topk(x, 3, axis=-1), axis=-1, keepdims=True), x, -INF),
        name="top-k of the scores",
        words="top|partition|mask|depend",
    ),
    through(lambda x: mx.where(x > 0.0, x, -1.0), name="a threshold", words="where|mask|depend|select|fill"),
    through(lambda x: mx.where(causal(5, 7), x, 0.0), name="filled with zero", words="where|mask|fill|select"),
    through(
        lambda x: mx.where(causal(5, 7), x, -1.0),
        name="filled with less than enough",
        words="where|mask|fill|select",
    ),
    through(
        lambda x, m: mx.where(m, x, x * 0.5),
        name="selected among scores",
        words="where|mask|fill|select",
        make=args(Q, K, K, keep(2, 1, 5, 7)),
    ),
]

SOURCES = [
    N(
        "multiplied and filled by numbers that nobody knows to be ones and zeros",
        lambda q, k, v, m: sm(scores(q, k) * m + (1.0 - m) * LOWEST) @ v,
        f"{DEEP}|scale|multipl|vector|mask",
        args(Q, K, K, lambda rng: mx.array([[1.0, 0.9999, 0.0, 1.0, 0.5, 1.0, 0.25]] * 5)),
        lambda q, k, v, m: attend(q, k, v, ROOT, m > 0.5),
    ),
    N(
        "two score products multiplied",
        lambda q, k, v: sm(scores(q, k) * scores(q + 1.0, k)) @ v,
        f"{DEEP}|multipl|scale",
    ),
    N(
        "larger of two score products",
        lambda q, k, v: sm(mx.maximum(scores(q, k), scores(q + 1.0, k))) @ v,
        f"{DEEP}|maximum",
    ),
    E("scores given", lambda q, k, v, x: sm(x) @ v, f"{DEEP}|input", args(Q, K, K, bias(2, 4, 5, 7))),
    E(
        "scores given, and a mask",
        lambda q, k, v, x: sm(x * ROOT + mx.where(causal(5, 7), 0.0, LOWEST)) @ v,
        f"{DEEP}|input",
        args(Q, K, K, bias(2, 4, 5, 7)),
    ),
    E(
        "a sum of things that are no products",
        lambda q, k, v, x, y: sm(x + y) @ v,
        f"{DEEP}|input|sum",
        args(Q, K, K, bias(2, 4, 5, 7), bias(5, 7)),
    ),
    E("constant scores (Synthesizer)", lambda q, k, v: sm(const(4, 5, 7)) @ v, f"{DEEP}|constant"),
    E(
        "scores from a table",
        lambda q, k, v: sm(mx.take(const(9, 7), mx.array([0, 2, 4, 6, 8]), axis=0)) @ v,
        f"{DEEP}|constant|take|gather",
    ),
    E(
        "distances",
        lambda q, k, v: sm(-mx.square(q[:, :, :, None] - k[:, :, None]).sum(-1)) @ v,
        f"{DEEP}|sum|reduce|square",
    ),
    E(
        "absolute distances",
        lambda q, k, v: sm(-mx.abs(q[:, :, :, None] - k[:, :, None]).sum(-1)) @ v,
        f"{DEEP}|sum|reduce|abs",
    ),
    E(
        "largest component instead of the dot",
        lambda q, k, v: sm((q[:, :, :, None] * k[:, :, None]).max(-1)) @ v,
        f"{DEEP}|max|sum|reduce",
    ),
    E("linear attention", linear_attention, f"{DEEP}|input|softmax|axis"),
    E(
        "linear attention by features",
        lambda q, k, v: (lambda a, b: (a @ (T(b) @ v)) / (a @ T(b).sum(-1, keepdims=True)))(
            nn.elu(q) + 1, nn.elu(k) + 1
        ),
        "softmax|exp",
        maybe=True,
    ),
    E(
        "exponentials of sums (AFT)",
        lambda q, k, v: mx.sigmoid(q) * ((mx.exp(const(5, 7)) @ (mx.exp(k) * v)) / (mx.exp(const(5, 7)) @ mx.exp(k))),
        "softmax|exp|sum",
        maybe=True,
    ),
    E(
        "convolved scores",
        lambda q, k, v: (
            sm(mx.conv2d(scores(q, k).transpose(0, 2, 3, 1), const(4, 1, 3, 4), padding=(0, 1)).transpose(0, 3, 1, 2))
            @ v
        ),
        f"{DEEP}|conv|permut|axis|transpos",
    ),
]

NO_ATTENTION = [
    O("classifier", lambda x: sm(x @ const(32, 10)), TOKENS),
    O(
        "classifier, precise, in float",
        lambda x: mx.softmax((x @ const(32, 10)).astype(mx.float32), axis=-1, precise=True),
        TOKENS,
    ),
    O("classifier with a temperature", lambda x: sm(x @ const(32, 10) / 0.7), TOKENS),
    O("classifier, then the best", lambda x: mx.argmax(sm(x @ const(32, 10)), axis=-1), TOKENS),
    O(
        "classifier, decomposed",
        lambda x: (lambda e: e / e.sum(-1, keepdims=True))(mx.exp(x @ const(32, 10))),
        TOKENS,
    ),
    O("loss", lambda x: -mx.log(sm(x @ const(32, 10))[..., 0]).mean(), TOKENS),
    O("router", lambda x: mx.topk(sm(x @ const(32, 8)), 2, axis=-1), TOKENS),
    O(
        "router, indices and weights",
        lambda x: (lambda p: (mx.argpartition(-p, 2, axis=-1)[..., :2], p))(sm(x @ const(32, 8))),
        TOKENS,
    ),
    O("gate", lambda x: sm(x @ const(32, 32)) * x, TOKENS),
    O("gate over channels", lambda x: x * sm(x.mean(1, keepdims=True)), TOKENS),
    E("weights returned alone", lambda q, k: weights(q, k), "weights|values|product", args(Q, K), None),
    E(
        "weights averaged",
        lambda q, k: weights(q, k).mean(1),
        "weights|values|product|reduce",
        args(Q, K),
        None,
    ),
    O("softmax of an input", lambda x: sm(x), TOKENS),
    O(
        "sampling with Gumbel noise",
        lambda x, g: sm((x @ const(32, 10) + g) / 0.5),
        args((2, 6, 32), bias(2, 6, 10)),
    ),
    O(
        "two experts by turns",
        lambda x: (lambda g: g[..., :1] * mx.tanh(x) + g[..., 1:] * mx.sin(x))(sm(x @ const(32, 2))),
        TOKENS,
    ),
    O(
        "scalar mix of layers (ELMo)",
        lambda x: (lambda w: w[0] * x + w[1] * mx.tanh(x))(sm(const(2))),
        TOKENS,
    ),
    O("softmax of rows, then their norm", lambda x: mx.linalg.norm(sm(x @ const(32, 10)), axis=-1), TOKENS),
]

NEGATIVES = [*CHANGED, *SOURCES, *NO_ATTENTION]
