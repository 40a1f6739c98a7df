"""Whole layers as people who port from PyTorch write them in MLX, each beside itself with the kernel."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from tests.spellings_base import (
    FLOOR,
    INF,
    KEEP,
    S,
    T,
    args,
    attend,
    bias,
    causal,
    const,
    fill,
    ints,
    keep,
    merge,
    sm,
    split,
)

ROOT = 8**-0.5
W = [const(32, 32, seed=i, scale=0.2) for i in range(4)]
QKV, QKV_BIAS = const(32, 96, seed=5, scale=0.2), const(96, seed=6)
KV = [const(32, 16, seed=i, scale=0.2) for i in (7, 8)]
X, Y = (2, 6, 32), (2, 9, 32)
ROPE = nn.RoPE(8, traditional=False)


def M(name, fn, ref, make=None, scale=ROOT, heads=(4, 4), level=1, **more):
    """A model's layer."""
    return S(name, fn, make or args(X), scale=scale, ref=ref, heads=heads, level=level, **more)


def three(x):
    return mx.split(x @ QKV + QKV_BIAS, 3, axis=-1)


def nano_gpt(x):
    b, t, c = x.shape
    q, k, v = (y.reshape(b, t, 4, c // 4).transpose(0, 2, 1, 3) for y in three(x))
    att = (q @ k.transpose(0, 1, 3, 2)) * (1.0 / math.sqrt(k.shape[-1]))
    buffer = mx.tril(mx.ones((16, 16))).reshape(1, 1, 16, 16)
    att = mx.where(buffer[:, :, :t, :t] == 0, -INF, att)
    y = mx.softmax(att, axis=-1) @ v
    return y.transpose(0, 2, 1, 3).reshape(b, t, c) @ W[3]


def kernel_three(mask=None, scale=ROOT):
    return lambda x, *rest: (
        merge(attend(*(split(y, 4) for y in three(x)), scale, mask(*rest) if callable(mask) else mask)) @ W[3]
    )


def repeat_kv(x, n):
    b, h, t, d = x.shape
    return x if n == 1 else mx.broadcast_to(x[:, :, None], (b, h, n, t, d)).reshape(b, h * n, t, d)


def llama(x):
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    q, k = ROPE(q), ROPE(k)
    k, v = repeat_kv(k, 2), repeat_kv(v, 2)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(8)
    mask = nn.MultiHeadAttention.create_additive_causal_mask(x.shape[1])
    scores = scores + mask.astype(scores.dtype)
    scores = mx.softmax(scores.astype(mx.float32), axis=-1).astype(q.dtype)
    return merge(scores @ v) @ W[3]


def llama_kernel(x):
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    return merge(attend(ROPE(q), ROPE(k), v, ROOT, "causal")) @ W[3]


def llama_step(x, ck, cv):
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    q, k = ROPE(q, offset=7), ROPE(k, offset=7)
    k, v = mx.concatenate([ck, k], axis=2), mx.concatenate([cv, v], axis=2)
    scores = q @ T(repeat_kv(k, 2)) / math.sqrt(8)
    return merge(sm(scores) @ repeat_kv(v, 2)) @ W[3], k, v


def llama_step_kernel(x, ck, cv):
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    k, v = mx.concatenate([ck, ROPE(k, offset=7)], axis=2), mx.concatenate([cv, v], axis=2)
    return merge(attend(ROPE(q, offset=7), k, v, ROOT)) @ W[3], k, v


def llama_fixed_cache(x, ck, cv):
    """The cache is a buffer of eight; the step writes its fifth row and reads five."""
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    ck, cv = mx.array(ck), mx.array(cv)
    ck[:, :, 4:5], cv[:, :, 4:5] = k, v
    k, v = ck[:, :, :5], cv[:, :, :5]
    return merge(sm(q @ T(repeat_kv(k, 2)) * ROOT) @ repeat_kv(v, 2)) @ W[3], ck, cv


def llama_fixed_cache_kernel(x, ck, cv):
    q, k, v = split(x @ W[0], 4), split(x @ KV[0], 2), split(x @ KV[1], 2)
    ck = mx.concatenate([ck[:, :, :4], k, ck[:, :, 5:]], axis=2)
    cv = mx.concatenate([cv[:, :, :4], v, cv[:, :, 5:]], axis=2)
    return merge(attend(q, ck[:, :, :5], cv[:, :, :5], ROOT)) @ W[3], ck, cv


def bert(x, m):
    def shape(y):
        return y.reshape(*y.shape[:-1], 4, 8).transpose(0, 2, 1, 3)

    q, k, v = shape(x @ W[0]), shape(x @ W[1]), shape(x @ W[2])
    extended = (1.0 - m[:, None, None, :].astype(x.dtype)) * FLOOR
    scores = mx.matmul(q, k.swapaxes(-1, -2)) / math.sqrt(8) + extended
    context = mx.matmul(mx.softmax(scores, axis=-1), v).transpose(0, 2, 1, 3)
    return context.reshape(*context.shape[:-2], 32)


def kernel_of(mask=None, scale=ROOT, out=True):
    def run(x, *rest):
        q, k, v = (split(x @ w, 4) for w in W[:3])
        y = merge(attend(q, k, v, scale, mask(*rest) if callable(mask) else mask))
        return y @ W[3] if out else y

    return run


def vit(x):
    b, n, c = x.shape
    qkv = (x @ QKV + QKV_BIAS).reshape(b, n, 3, 4, c // 4).transpose(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    attn = mx.softmax((q @ k.transpose(0, 1, 3, 2)) * ROOT, axis=-1)
    return (attn @ v).transpose(0, 2, 1, 3).reshape(b, n, c) @ W[3]


BUCKETS = mx.array([[min(max(j - i + 3, 0), 6) for j in range(6)] for i in range(6)])
TABLE = const(7, 4, seed=11)


def t5(x, m):
    q, k, v = (split(x @ w, 4) for w in W[:3])
    position = TABLE[BUCKETS].transpose(2, 0, 1)[None]
    scores = q @ k.transpose(0, 1, 3, 2)
    weights = mx.softmax((scores + (position + m)).astype(mx.float32), axis=-1).astype(scores.dtype)
    return merge(weights @ v) @ W[3]


def t5_mask(m):
    return TABLE[BUCKETS].transpose(2, 0, 1)[None] + m


def whisper(x, y=None, mask=None):
    """OpenAI's Whisper scales both sides by the fourth root."""
    q, k, v = x @ W[0], (x if y is None else y) @ W[1], (x if y is None else y) @ W[2]
    n = q.shape[1]
    q = q.reshape(*q.shape[:2], 4, -1).transpose(0, 2, 1, 3) * 8**-0.25
    k = k.reshape(*k.shape[:2], 4, -1).transpose(0, 2, 3, 1) * 8**-0.25
    v = v.reshape(*v.shape[:2], 4, -1).transpose(0, 2, 1, 3)
    qk = q @ k
    if mask is not None:
        qk = qk + mask[:n, :n]
    w = mx.softmax(qk, axis=-1, precise=True)
    return (w @ v).transpose(0, 2, 1, 3).reshape(x.shape[0], n, -1) @ W[3]


def cross_kernel(x, y):
    return merge(attend(split(x @ W[0], 4), split(y @ W[1], 4), split(y @ W[2], 4), ROOT)) @ W[3]


def swin(x, m):
    """Windows of six tokens, four windows in two images; the shift's mask is one for each window."""
    q, k, v = (y.reshape(4, 6, 4, 8).transpose(0, 2, 1, 3) for y in three(x))
    attn = (q * ROOT) @ k.swapaxes(-2, -1) + TABLE[BUCKETS].transpose(2, 0, 1)[None]
    attn = attn.reshape(2, 2, 4, 6, 6) + m[None, :, None]
    attn = mx.softmax(attn.reshape(-1, 4, 6, 6), axis=-1)
    return (attn @ v).transpose(0, 2, 1, 3).reshape(4, 6, 32) @ W[3]


def swin_mask(m):
    return TABLE[BUCKETS].transpose(2, 0, 1)[None] + mx.tile(m, (2, 1, 1))[:, None]


def swin_v2(x, m):
    """Normalised q and k, and one learned scale a head."""
    q, k, v = (split(y, 4) for y in three(x))
    q = q / mx.linalg.norm(q, axis=-1, keepdims=True)
    k = k / mx.linalg.norm(k, axis=-1, keepdims=True)
    attn = (q @ T(k)) * mx.exp(mx.minimum(LOGITS, math.log(100.0))) + m
    return merge(sm(attn) @ v) @ W[3]


LOGITS = const(4, 1, 1, seed=12)


def swin_v2_kernel(x, m):
    q, k, v = (split(y, 4) for y in three(x))
    q, k = (y / mx.linalg.norm(y, axis=-1, keepdims=True) for y in (q, k))
    return merge(attend(q * mx.exp(LOGITS), k, v, 1.0, m)) @ W[3]


def falcon(x, alibi):
    """One key head; BLOOM's and Falcon's ALiBi joins before the scale."""
    q = split(x @ W[0], 4)
    k, v = (x @ KV[0][:, :8])[:, None], (x @ KV[1][:, :8])[:, None]
    scores = (q @ T(k) + alibi) * ROOT
    return merge(sm(mx.where(causal(6, 6), scores, FLOOR)) @ v) @ W[3]


def falcon_kernel(x, alibi):
    q = split(x @ W[0], 4)
    k, v = (x @ KV[0][:, :8])[:, None], (x @ KV[1][:, :8])[:, None]
    return merge(attend(q, k, v, ROOT, mx.where(causal(6, 6), alibi * ROOT, -INF))) @ W[3]


def bloom(x, alibi, m):
    q, k, v = (split(y, 4).reshape(8, 6, 8) for y in three(x))
    scores = mx.addmm(alibi.reshape(8, 1, 6), q, k.transpose(0, 2, 1), alpha=ROOT, beta=1.0)
    scores = scores.reshape(2, 4, 6, 6) + m
    p = mx.softmax(scores.astype(mx.float32), axis=-1).astype(x.dtype).reshape(8, 6, 6)
    return merge((p @ v).reshape(2, 4, 6, 8)) @ W[3]


def gpt_neox(x):
    qkv = (x @ QKV + QKV_BIAS).reshape(2, 6, 4, 24)
    q, k, v = (y.transpose(0, 2, 1, 3) for y in (qkv[..., :8], qkv[..., 8:16], qkv[..., 16:]))
    q = mx.concatenate([PARTIAL(q[..., :4]), q[..., 4:]], axis=-1)
    k = mx.concatenate([PARTIAL(k[..., :4]), k[..., 4:]], axis=-1)
    scores = mx.matmul(q, T(k)) / mx.array(math.sqrt(8))
    return merge(sm(mx.where(causal(6, 6), scores, mx.array(FLOOR))) @ v) @ W[3]


PARTIAL = nn.RoPE(4)


def gpt_neox_kernel(x):
    qkv = (x @ QKV + QKV_BIAS).reshape(2, 6, 4, 24).transpose(0, 2, 1, 3)
    q, k, v = qkv[..., :8], qkv[..., 8:16], qkv[..., 16:]
    q, k = (mx.concatenate([PARTIAL(y[..., :4]), y[..., 4:]], axis=-1) for y in (q, k))
    return merge(attend(q, k, v, ROOT, "causal")) @ W[3]


def sd_block(x):
    """Stable Diffusion's VAE: one head over the pixels."""
    b, h, w, c = x.shape
    q, k, v = ((x @ m).reshape(b, h * w, c) for m in W[:3])
    weights = sm((q * c**-0.5) @ k.transpose(0, 2, 1))
    return (weights @ v).reshape(b, h, w, c) @ W[3] + x


def sd_block_kernel(x):
    b, h, w, c = x.shape
    q, k, v = ((x @ m).reshape(b, 1, h * w, c) for m in W[:3])
    return attend(q, k, v, c**-0.5).reshape(b, h, w, c) @ W[3] + x


def lucid(x):
    """einops style."""
    q, k, v = (y.reshape(2, 6, 4, 8).transpose(0, 2, 1, 3) for y in three(x))
    sim = mx.einsum("bhid,bhjd->bhij", q * ROOT, k)
    sim = sim - mx.stop_gradient(mx.max(sim, axis=-1, keepdims=True))
    out = mx.einsum("bhij,bhjd->bhid", sm(sim), v)
    return out.transpose(0, 2, 1, 3).reshape(2, 6, 32) @ W[3]


def torch_sdpa(x, m):
    """The reference code of PyTorch's own documentation."""
    q, k, v = (split(x @ w, 4) for w in W[:3])
    attn_bias = mx.zeros((6, 6), dtype=q.dtype)
    attn_bias = mx.where(m, attn_bias, -INF)
    weight = q @ T(k) * (1 / math.sqrt(q.shape[-1])) + attn_bias
    return merge(mx.softmax(weight, axis=-1) @ v) @ W[3]


def torch_exported(x, m):
    """What torch's exporter makes of it: both sides scaled, and a NaN guard."""
    q, k, v = (split(x @ w, 4) for w in W[:3])
    s = math.sqrt(ROOT)
    p = sm((q * s) @ (k.transpose(0, 1, 3, 2) * s) + m)
    return merge(mx.where(mx.isnan(p), 0.0, p) @ v) @ W[3]


def perceiver(x):
    q, k, v = split(const(1, 5, 32, seed=13), 4), split(x @ W[1], 4), split(x @ W[2], 4)
    return merge(sm(q @ T(k) * ROOT) @ v) @ W[3]


def perceiver_kernel(x):
    q = mx.repeat(split(const(1, 5, 32, seed=13), 4), 2, axis=0)
    return merge(attend(q, split(x @ W[1], 4), split(x @ W[2], 4), ROOT)) @ W[3]


STEP = args((2, 1, 32), bias(2, 2, 7, 8), bias(2, 2, 7, 8))
SHIFTED = args((4, 6, 32), fill(2, 6, 6, value=-100.0))

SPELLINGS = [
    M("nanoGPT", nano_gpt, kernel_three("causal"), mask="causal"),
    M(
        "nanoGPT in half precision",
        nano_gpt,
        kernel_three("causal"),
        args(X, dtype=mx.float16),
        mask="causal",
    ),
    M("minimal Llama", llama, llama_kernel, heads=(4, 2), mask="causal"),
    M("minimal Llama, one step with a cache", llama_step, llama_step_kernel, STEP, heads=(4, 2)),
    M(
        "minimal Llama, one step in a fixed cache",
        llama_fixed_cache,
        llama_fixed_cache_kernel,
        args((2, 1, 32), bias(2, 2, 8, 8), bias(2, 2, 8, 8)),
        heads=(4, 2),
    ),
    M("BERT", bert, kernel_of(lambda m: (m != 0)[:, None, None], out=False), args(X, ints(2, 6)), mask=KEEP),
    M("ViT", vit, kernel_three()),
    M("T5", t5, kernel_of(t5_mask, 1.0), args(X, fill(2, 1, 1, 6)), scale=1.0, mask="additive"),
    M("Whisper encoder", whisper, kernel_of()),
    M(
        "Whisper decoder",
        lambda x: whisper(x, mask=nn.MultiHeadAttention.create_additive_causal_mask(9)),
        kernel_of("causal"),
        mask="causal",
    ),
    M("Whisper cross attention", whisper, cross_kernel, args(X, Y)),
    M(
        "Swin with shifted windows",
        swin,
        lambda x, m: kernel_three(swin_mask)(x, m),
        SHIFTED,
        mask="additive",
        heads=(None, None),  # windows may be folded into heads, which keeps the mask small
        level=2,
    ),
    M("Swin v2", swin_v2, swin_v2_kernel, args(X, bias(4, 6, 6)), scale=None, mask="additive", level=2),
    M("Falcon", falcon, falcon_kernel, args(X, bias(2, 4, 1, 6)), heads=(4, 1), mask="additive"),
    M(
        "BLOOM",
        bloom,
        lambda x, a, m: kernel_three(lambda: a.reshape(2, 4, 1, 6) + m)(x),
        args(X, bias(2, 4, 1, 6), fill(2, 1, 6, 6)),
        mask="additive",
        level=2,
    ),
    M("GPT-NeoX", gpt_neox, gpt_neox_kernel, mask="causal"),
    M(
        "Stable Diffusion VAE",
        sd_block,
        sd_block_kernel,
        args((2, 2, 3, 32)),
        scale=32**-0.5,
        heads=(None, None),
    ),
    M("einops style", lucid, kernel_three(), level=2),
    M("PyTorch's reference", torch_sdpa, kernel_of(lambda m: m), args(X, keep(6, 6)), mask=KEEP),
    M("PyTorch's exporter", torch_exported, kernel_of(lambda m: m), args(X, fill(2, 1, 6, 6)), mask=KEEP),
    M("Perceiver", perceiver, perceiver_kernel, level=2),
]
