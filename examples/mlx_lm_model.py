"""An architecture of mlx-lm with its attention spelled out, optimised, and generating with its cache.

mlx-lm's own models call the fused kernel. Here the attention of its Llama is written out as in a port or a paper:
fuser finds it again, and logits and tokens are those of mlx-lm's model. Needs `pip install mlx-lm`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from rich.console import Console

import fuser

ARGS = llama.ModelArgs(
    model_type="llama",
    hidden_size=256,
    num_hidden_layers=2,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=160,
    tie_word_embeddings=False,
)
PROMPT = mx.array([[1, 15, 92, 65, 35, 89, 79, 32]])
NEW_TOKENS = 8


class SpelledOut(llama.Attention):
    """mlx-lm's attention, with scores and weights as arrays instead of the kernel's call."""

    def __call__(self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None) -> mx.array:
        batch, length, _ = x.shape

        def split(x: mx.array, heads: int) -> mx.array:
            return x.reshape(batch, length, heads, -1).swapaxes(1, 2)

        q, k = split(self.q_proj(x), self.n_heads), split(self.k_proj(x), self.n_kv_heads)
        v = split(self.v_proj(x), self.n_kv_heads)
        offset = cache.offset if cache is not None else 0
        q, k = self.rope(q, offset=offset), self.rope(k, offset=offset)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        k = mx.repeat(k, self.n_heads // self.n_kv_heads, axis=1)
        v = mx.repeat(v, self.n_heads // self.n_kv_heads, axis=1)

        scores = q @ k.swapaxes(-1, -2) * self.scale
        if isinstance(mask, str):  # "causal"
            rows, columns = scores.shape[-2:]
            mask = mx.arange(columns - rows, columns)[:, None] >= mx.arange(columns)[None]
        if mask is not None:
            scores = mx.where(mask, scores, -math.inf)
        weights = mx.softmax(scores.astype(mx.float32), axis=-1).astype(x.dtype)
        return self.o_proj((weights @ v).swapaxes(1, 2).reshape(batch, length, -1))


def models() -> tuple[nn.Module, nn.Module]:
    """mlx-lm's model, and the same with its attention spelled out, of the same weights."""
    mx.random.seed(0)
    theirs = llama.Model(ARGS)
    spelled = llama.Model(ARGS)
    for layer in spelled.layers:
        layer.self_attn = SpelledOut(ARGS)
    spelled.update(theirs.parameters())
    mx.eval(theirs.parameters())
    return theirs, spelled


def generated(model: Any) -> list[int]:
    """The most likely tokens, by mlx-lm's own loop."""
    return [int(token) for token, _ in generate_step(PROMPT[0], model, max_tokens=NEW_TOKENS)]


def main() -> int:
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    theirs, spelled = models()
    fast: Any = fuser.optimize(spelled)

    logits = fast(PROMPT)
    error = mx.abs(logits - theirs(PROMPT)).max().item()
    out.print(fast.report)
    out.print(f"\nLogits differ from mlx-lm's own model by {error:.0e} at most.")

    cache = make_prompt_cache(spelled)
    fast(PROMPT, cache=cache)
    fast(mx.array([[7]]), cache=cache)
    out.print("\nOne token with the cache of the prompt:\n")
    out.print(fast.report)

    wanted, found = generated(theirs), generated(fast)
    out.print(
        f"\nTokens by mlx-lm's loop: {found}, {'the same' if found == wanted else 'NOT THE SAME'} as mlx-lm's model."
    )
    return 0 if found == wanted and error < 1e-4 and fuser.verify(spelled, PROMPT) else 1


if __name__ == "__main__":
    sys.exit(main())
