"""A small decoder, written for MLX as people port them from PyTorch: every attention spelled out.

Grouped-query attention with keys and values repeated for each query head, rotary positions, a causal mask
made with `triu`, the softmax in float32. Nothing here knows about fuser:

    mlx-fuser report examples.decoder:sample
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass
class Config:
    """Sizes of a decoder."""

    vocabulary: int = 512
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.hidden // self.heads


def rotate_half(x: mx.array) -> mx.array:
    half = x.shape[-1] // 2
    return mx.concatenate([-x[..., half:], x[..., :half]], axis=-1)


def apply_rotary(q: mx.array, k: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def repeat_kv(x: mx.array, n_rep: int) -> mx.array:
    batch, kv_heads, length, head_dim = x.shape
    x = mx.broadcast_to(x[:, :, None], (batch, kv_heads, n_rep, length, head_dim))
    return x.reshape(batch, kv_heads * n_rep, length, head_dim)


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width = config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.heads * width, bias=False)
        self.k_proj = nn.Linear(config.hidden, config.kv_heads * width, bias=False)
        self.v_proj = nn.Linear(config.hidden, config.kv_heads * width, bias=False)
        self.o_proj = nn.Linear(config.heads * width, config.hidden, bias=False)

    def __call__(self, x: mx.array, mask: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        batch, length, _ = x.shape
        heads, kv_heads, width = self.config.heads, self.config.kv_heads, self.config.head_dim
        q = self.q_proj(x).reshape(batch, length, heads, width).transpose(0, 2, 1, 3)
        k = self.k_proj(x).reshape(batch, length, kv_heads, width).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(batch, length, kv_heads, width).transpose(0, 2, 1, 3)
        q, k = apply_rotary(q, k, cos, sin)
        k = repeat_kv(k, heads // kv_heads)
        v = repeat_kv(v, heads // kv_heads)

        weights = q @ k.transpose(0, 1, 3, 2) / math.sqrt(width)
        weights = weights + mask
        weights = mx.softmax(weights.astype(mx.float32), axis=-1).astype(q.dtype)
        output = weights @ v

        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(batch, length, heads * width))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each normalised before and added to what came in."""

    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden)

    def __call__(self, x: mx.array, mask: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Tokens to logits."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = [Layer(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.hidden)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed_tokens(tokens)
        length = tokens.shape[1]
        mask = mx.triu(mx.full((length, length), -float("inf")), k=1).astype(x.dtype)

        width = self.config.head_dim
        inv_freq = 1.0 / (self.config.rope_theta ** (mx.arange(0, width, 2).astype(mx.float32) / width))
        angles = mx.arange(length).astype(mx.float32)[:, None] * inv_freq[None]
        angles = mx.concatenate([angles, angles], axis=-1)
        cos, sin = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)

        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        return self.embed_tokens.as_linear(self.norm(x))


model = Decoder(Config())


def sample(tokens: mx.array | None = None) -> mx.array:
    """Logits for some tokens; without any, for the first 64."""
    return model(mx.arange(64)[None] if tokens is None else tokens)
