"""One block of a diffusion transformer, its attentions spelled out: of an image on itself, and on a prompt.

The block is that of PixArt, and those of UNets hold the same two attentions. A mask hides the padding of the prompt.
The scores of the self-attention grow with the fourth power of the image's side: they are what the kernel leaves
unwritten.
"""

from __future__ import annotations

import sys

import mlx.core as mx
import mlx.nn as nn
from rich.console import Console

import fuser

SIDE, WORDS, WIDTH, TEXT_WIDTH, HEADS = 16, 77, 256, 128, 4


class Attention(nn.Module):
    """Queries of `x`, keys and values of `context`."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def __call__(self, x: mx.array, context: mx.array, keep: mx.array | None = None) -> mx.array:
        # heads are merged into the batch, as diffusers has done it from its beginnings
        q, k, v = (self.split(each) for each in (self.to_q(x), self.to_k(context), self.to_v(context)))
        scores = self.scale * (q @ k.swapaxes(-1, -2))
        if keep is not None:
            bias = mx.where(keep, 0.0, -10000.0)[:, None, :]
            scores = scores + mx.repeat(bias, self.heads, axis=0)
        weights = mx.softmax(scores, axis=-1)
        return self.to_out(self.merge(weights @ v))

    def split(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        x = x.reshape(batch, length, self.heads, width // self.heads).transpose(0, 2, 1, 3)
        return x.reshape(batch * self.heads, length, width // self.heads)

    def merge(self, x: mx.array) -> mx.array:
        batch, length, depth = x.shape
        x = x.reshape(batch // self.heads, self.heads, length, depth).transpose(0, 2, 1, 3)
        return x.reshape(batch // self.heads, length, self.heads * depth)


class Block(nn.Module):
    """Self-attention, cross-attention and an MLP; the time step shifts and scales what goes into them."""

    def __init__(self, width: int = WIDTH, text_width: int = TEXT_WIDTH, heads: int = HEADS):
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, text_width, heads)
        self.norm1 = nn.LayerNorm(width, affine=False)
        self.norm2 = nn.LayerNorm(width, affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def __call__(self, x: mx.array, time: mx.array, text: mx.array, keep: mx.array) -> mx.array:
        shift1, scale1, gate1, shift2, scale2, gate2 = mx.split(self.modulation(nn.silu(time))[:, None], 6, axis=-1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn1(y, y)
        x = x + self.attn2(x, text, keep)
        y = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(nn.gelu_approx(self.up(y)))


def sample() -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Latents, the time step, a prompt and which words it has; a batch of two, with guidance and without."""
    latents, time = mx.random.normal((2, SIDE * SIDE, WIDTH)), mx.random.normal((2, WIDTH))
    keep = mx.arange(WORDS)[None] < mx.array([[12], [1]])
    return latents, time, mx.random.normal((2, WORDS, TEXT_WIDTH)), keep


def main() -> int:
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    mx.random.seed(0)
    block, inputs = Block(), sample()
    fast = fuser.optimize(block)
    error = mx.abs(fast(*inputs) - block(*inputs)).max().item()
    out.print(fast.report)
    out.print(f"\nThe block's output differs by {error:.0e} at most from that of the block as it is written.")
    return 0 if error < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
