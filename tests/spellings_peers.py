"""The shapes that ONNX optimizers look for: onnxscript and ONNX Runtime."""

from __future__ import annotations

import math

import mlx.core as mx

from tests.spellings_base import (
    FLOOR,
    INF,
    KEEP,
    QKV,
    K,
    Q,
    S,
    T,
    X,
    args,
    attend,
    bias,
    causal,
    const,
    fill,
    heads_first,
    ints,
    merge,
    sm,
    split,
)

ROOT = 8**-0.5
BRAIN, FULL, HALF = mx.bfloat16, mx.float32, mx.float16
ADD = args(Q, K, K, bias(2, 1, 5, 7))
TRI = causal(6, 6)


def P(peer, name, fn, make=QKV, scale=ROOT, level=1, **more):
    return S(f"{peer}: {name}", fn, make, scale=scale, level=level, **more)


def same(m):
    return m


# onnxscript has eight rules: with and without a mask, scaled before and after, by Mul and by Div
ONNXSCRIPT = [
    P("onnxscript", "pre mul", lambda q, k, v: sm((q * ROOT**0.5) @ (T(k) * ROOT**0.5)) @ v),
    P("onnxscript", "pre div", lambda q, k, v: sm((q / ROOT**-0.5) @ (T(k) / ROOT**-0.5)) @ v),
    P("onnxscript", "post mul", lambda q, k, v: sm((q @ T(k)) * ROOT) @ v),
    P("onnxscript", "post div", lambda q, k, v: sm((q @ T(k)) / math.sqrt(8)) @ v),
    P(
        "onnxscript",
        "masked pre mul",
        lambda q, k, v, m: sm((q * ROOT**0.5) @ (T(k) * ROOT**0.5) + m) @ v,
        ADD,
        mask="additive",
        m=same,
    ),
    P(
        "onnxscript",
        "masked pre div",
        lambda q, k, v, m: sm((q / 2.0) @ (T(k) / 2.0) + m) @ v,
        ADD,
        0.25,
        mask="additive",
        m=same,
    ),
    P(
        "onnxscript",
        "masked post mul",
        lambda q, k, v, m: sm((q @ T(k)) * ROOT + m) @ v,
        ADD,
        mask="additive",
        m=same,
    ),
    P(
        "onnxscript",
        "masked post div",
        lambda q, k, v, m: sm((q @ T(k)) / math.sqrt(8) + m) @ v,
        ADD,
        mask="additive",
        m=same,
    ),
    P(
        "onnxscript",
        "keys turned as rank three",
        lambda q, k, v: sm(q @ T(k.reshape(8, 7, 8)).reshape(2, 4, 8, 7) * ROOT) @ v,
        level=2,
    ),
]


def mask_2d(m):
    return (1.0 - m[:, None, None, :].astype(FULL)) * -10000.0


def unet(x, c, w):
    """Self or cross attention of Stable Diffusion: heads merged into the batch."""
    q, k, v = x @ w[0], c @ w[1], c @ w[2]
    q, k, v = (split(y, 4).reshape(8, -1, 8) for y in (q, k, v))
    p = sm(mx.addmm(mx.zeros((1, 1, 1)), q, k.transpose(0, 2, 1), alpha=ROOT, beta=0.0))
    return merge((p @ v).reshape(2, 4, -1, 8)) @ w[3]


def unet_kernel(x, c, w):
    return merge(attend(split(x @ w[0], 4), split(c @ w[1], 4), split(c @ w[2], 4), ROOT)) @ w[3]


def clip(q, k, v, m):
    x = (q * ROOT).reshape(8, 6, 8) @ T(k.reshape(8, 6, 8))
    x = (x.reshape(2, 4, 6, 6) + m + mx.triu(mx.full((6, 6), FLOOR), 1)).reshape(8, 6, 6)
    return (sm(x) @ v.reshape(8, 6, 8)).reshape(2, 4, 6, 8)


def gpt_unidirectional(q, k, v):
    b = mx.tril(mx.ones((1, 1, 16, 16)))[:, :, 7 - 3 : 7, :7]
    return sm(q @ T(k) / math.sqrt(8) * b - 10000.0 * (1.0 - b)) @ v


def conformer(q, k, v, r):
    return sm((q @ T(k) + q @ r) / math.sqrt(8)) @ v


ONNX_RUNTIME = [
    P(
        "onnxruntime",
        "BERT",
        lambda q, k, v, m: sm(q @ T(k) / math.sqrt(8) + mask_2d(m)) @ v,
        args(Q, K, K, ints(2, 7)),
        mask=KEEP,
        m=mask_2d,
    ),
    P(
        "onnxruntime",
        "BERT, mask first",
        lambda q, k, v, m: sm(mask_2d(m) + q @ T(k) / math.sqrt(8)) @ v,
        args(Q, K, K, ints(2, 7)),
        mask=KEEP,
        m=mask_2d,
    ),
    P(
        "onnxruntime",
        "DistilBERT, Where of an expanded mask",
        lambda q, k, v, m: (
            sm(mx.where(mx.broadcast_to((m == 0).reshape(2, 1, 1, 7), (2, 4, 5, 7)), -INF, (q * ROOT) @ T(k))) @ v
        ),
        args(Q, K, K, ints(2, 7)),
        mask=KEEP,
        m=lambda m: (m != 0)[:, None, None],
    ),
    P(
        "onnxruntime",
        "BART",
        lambda q, k, v, m: merge(
            (
                sm(
                    (
                        (split(q * ROOT, 4).reshape(8, 5, 8) @ T(split(k, 4).reshape(8, 7, 8))).reshape(2, 4, 5, 7) + m
                    ).reshape(8, 5, 7)
                )
                @ split(v, 4).reshape(8, 7, 8)
            ).reshape(2, 4, 5, 8)
        ),
        args((2, 5, 32), (2, 7, 32), (2, 7, 32), fill(2, 1, 5, 7)),
        mask="additive",
        ref=lambda q, k, v, m: merge(attend(*(split(x, 4) for x in (q, k, v)), ROOT, m)),
    ),
    P(
        "onnxruntime",
        "UNet",
        unet,
        args(
            (2, 6, 32),
            (2, 7, 32),
            lambda rng: mx.array((rng.standard_normal((4, 32, 32)) * 0.2).astype("float32")),
        ),
        ref=unet_kernel,
        level=2,
    ),
    P(
        "onnxruntime",
        "CLIP",
        clip,
        args(X, X, X, fill(2, 1, 1, 6)),
        mask="additive",
        m=lambda m: mx.where(TRI, m, -INF),
    ),
    P(
        "onnxruntime",
        "GPT-2, unidirectional by a buffer",
        gpt_unidirectional,
        args((2, 4, 3, 8), K, K),
        mask="additive|boolean|causal",
        m=lambda: causal(3, 7),
        level=2,
    ),
    P(
        "onnxruntime",
        "GPT-2 with a past",
        lambda q, k, v, past: (
            sm(mx.where(causal(3, 10), q @ T(mx.concatenate([past[0], k], 2)) / math.sqrt(8), -1e4))
            @ mx.concatenate([past[1], v], 2)
        ),
        args((2, 4, 3, 8), (2, 4, 3, 8), (2, 4, 3, 8), bias(2, 2, 4, 7, 8)),
        mask="additive|boolean|causal",
        ref=lambda q, k, v, past: attend(
            q, mx.concatenate([past[0], k], 2), mx.concatenate([past[1], v], 2), ROOT, "causal"
        ),
        heads=(4, 4),
    ),
    P(
        "onnxruntime",
        "T5",
        lambda q, k, v, m: sm(q @ T(k) + (const(1, 4, 5, 7) + m)) @ v,
        args(Q, K, K, fill(2, 1, 1, 7)),
        1.0,
        mask="additive",
        m=lambda m: const(1, 4, 5, 7) + m,
    ),
    P(
        "onnxruntime",
        "conformer",
        conformer,
        args(Q, K, K, bias(4, 8, 7)),
        ref=lambda q, k, v, r: attend(q, k, v, ROOT, q @ r * ROOT),
        mask="additive|none",
        level=2,
    ),
    P(
        "onnxruntime",
        "VAE",
        lambda q, k, v: sm(q @ T(k) * ROOT) @ v,
        args((2, 5, 8), (2, 7, 8), (2, 7, 8)),
        ref=lambda q, k, v: attend(q[:, None], k[:, None], v[:, None], ROOT)[:, 0],
    ),
    P(
        "onnxruntime",
        "SAM 2",
        lambda q, k, v: heads_first(sm((split(q, 4) * 0.5) @ (T(split(k, 4)) * 0.5)) @ split(v, 4)),
        args((2, 5, 32), (2, 7, 32), (2, 7, 32)),
        0.25,
        ref=lambda q, k, v: heads_first(attend(*(split(x, 4) for x in (q, k, v)), 0.25)),
        heads=(4, 4),
    ),
]

SPELLINGS = [*ONNXSCRIPT, *ONNX_RUNTIME]
