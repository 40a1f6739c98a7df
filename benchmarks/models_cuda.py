"""Whole models at real sizes with random weights, their attention written out: naive, compiled, optimized, by hand.

python benchmarks/models_cuda.py [--seconds 120]
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

import fuser
from benchmarks.attention_cases import difference, peak, timed


@dataclass(frozen=True)
class Size:
    """A stack of transformer layers, and the tokens it is given."""

    name: str
    layers: int
    width: int
    heads: int
    shared: int
    inner: int
    batch: int
    length: int
    cached: int = 0
    causal: bool = False
    gated: bool = False
    text: int = 0
    """So many tokens of a prompt, 768 numbers each, are attended to, too: a block of a diffusion model."""
    dtype: mx.Dtype = mx.bfloat16


SIZES = (
    Size("BERT-base 32x512", 12, 768, 12, 12, 3072, 32, 512, dtype=mx.float16),
    Size("ViT-L 16x577", 24, 1024, 16, 16, 4096, 16, 577, dtype=mx.float16),
    Size("Whisper large encoder 4x1500", 32, 1280, 20, 20, 5120, 4, 1500, dtype=mx.float16),
    Size("Llama-1B-like prefill 4096", 16, 2048, 32, 8, 8192, 1, 4096, causal=True, gated=True),
    Size("Llama-1B-like decode 16x1, cache 8192", 16, 2048, 32, 8, 8192, 16, 1, 8192, True, True),
    Size("Stable Diffusion UNet block 2x4096", 1, 320, 8, 8, 1280, 2, 4096, text=77, dtype=mx.float16),
)


class Layer(nn.Module):
    """Attention and a feed-forward part, each beside a residual."""

    def __init__(self, size: Size, by_hand: bool) -> None:
        super().__init__()
        self.size, self.by_hand = size, by_hand
        self.depth = size.width // size.heads
        self.q = nn.Linear(size.width, size.width, bias=False)
        self.k = nn.Linear(size.width, size.shared * self.depth, bias=False)
        self.v = nn.Linear(size.width, size.shared * self.depth, bias=False)
        self.o = nn.Linear(size.width, size.width, bias=False)
        self.up = nn.Linear(size.width, size.inner, bias=False)
        self.down = nn.Linear(size.inner, size.width, bias=False)
        self.first, self.second = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        if size.gated:
            self.gate = nn.Linear(size.width, size.inner, bias=False)
            self.rope = nn.RoPE(self.depth)

    def __call__(self, x: mx.array, cache: tuple[mx.array, mx.array] | None) -> mx.array:
        size, rows = self.size, x.shape[1]
        y = self.first(x)
        q = self.q(y).reshape(*x.shape[:2], size.heads, -1).transpose(0, 2, 1, 3)
        k = self.k(y).reshape(*x.shape[:2], size.shared, -1).transpose(0, 2, 1, 3)
        v = self.v(y).reshape(*x.shape[:2], size.shared, -1).transpose(0, 2, 1, 3)
        if size.gated:
            q, k = self.rope(q, offset=size.cached), self.rope(k, offset=size.cached)
        if cache is not None:
            k, v = mx.concatenate([cache[0], k], axis=2), mx.concatenate([cache[1], v], axis=2)
        if self.by_hand:
            mask = "causal" if size.causal and rows > 1 else None
            z = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.depth**-0.5, mask=mask)
        else:
            k, v = (mx.repeat(each, size.heads // size.shared, axis=1) for each in (k, v))
            scores = (q @ k.swapaxes(-1, -2)) / math.sqrt(self.depth)
            if size.causal and rows > 1:
                keep = mx.arange(rows)[None] <= mx.arange(rows)[:, None]
                scores = mx.where(keep, scores, mx.array(-math.inf, scores.dtype))
            z = mx.softmax(scores.astype(mx.float32), axis=-1).astype(x.dtype) @ v
        x = x + self.o(z.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))
        y = self.second(x)
        return x + self.down(nn.silu(self.gate(y)) * self.up(y) if size.gated else nn.gelu(self.up(y)))


class Attention(nn.Module):
    """Attention of a diffusion model: over itself, or over what is given."""

    def __init__(self, width: int, context: int, heads: int, by_hand: bool) -> None:
        super().__init__()
        self.heads, self.by_hand = heads, by_hand
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        q, k, v = (
            each.reshape(*each.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)
            for each in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        scale = q.shape[-1] ** -0.5
        if self.by_hand:
            z = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            z = mx.softmax((q @ k.swapaxes(-1, -2) * scale).astype(mx.float32), axis=-1).astype(x.dtype) @ v
        return self.to_out(z.transpose(0, 2, 1, 3).reshape(x.shape))


class Block(nn.Module):
    """A transformer block of Stable Diffusion's UNet: attention over the image, over the prompt, and a gated part."""

    def __init__(self, size: Size, by_hand: bool) -> None:
        super().__init__()
        width = size.width
        self.norms = [nn.LayerNorm(width) for _ in range(3)]
        self.image = Attention(width, width, size.heads, by_hand)
        self.prompt = Attention(width, 768, size.heads, by_hand)
        self.up, self.down = nn.Linear(width, 2 * size.inner), nn.Linear(size.inner, width)

    def __call__(self, x: mx.array, prompt: mx.array) -> mx.array:
        y = self.norms[0](x)
        x = x + self.image(y, y)
        x = x + self.prompt(self.norms[1](x), prompt)
        y, gate = mx.split(self.up(self.norms[2](x)), 2, axis=-1)
        return x + self.down(y * nn.gelu(gate))


class Model(nn.Module):
    """The stack."""

    def __init__(self, size: Size, by_hand: bool) -> None:
        super().__init__()
        self.layers = [Layer(size, by_hand) for _ in range(size.layers)]

    def __call__(self, x: mx.array, *cache: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers):
            x = layer(x, (cache[2 * number], cache[2 * number + 1]) if cache else None)
        return x


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    start = time.perf_counter()
    hand = "by hand | by hand, weights as inputs | by hand, by fuser | ours, 5 calls at once | by hand, likewise"
    print(f"{mx.device_info().get('device_name', 'GPU')}, MLX {version('mlx')}")
    print(f"| model | naive | mx.compile | ours | {hand} | peak | causal found | first call of ours | error |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        if time.perf_counter() - start > options.seconds:
            print(f"({size.name}: no time left)")
            continue
        mx.random.seed(0)
        kind = Block if size.text else Model
        plain, expert = kind(size, False), kind(size, True)
        plain.update(tree_map(lambda array, size=size: array.astype(size.dtype), plain.parameters()))
        expert.update(plain.parameters())
        shape = (size.batch, size.shared, size.cached, size.width // size.heads)
        cache = [mx.random.normal(shape, size.dtype) for _ in range(2 * size.layers)] if size.cached else []
        arrays = [mx.random.normal((size.batch, size.length, size.width), size.dtype), *cache]
        arrays += [mx.random.normal((size.batch, size.text, 768), size.dtype)] if size.text else []
        mx.eval(plain.parameters(), arrays)
        fast = fuser.optimize(plain)
        before = time.perf_counter()
        mx.eval(fast(*arrays))
        first = time.perf_counter() - before
        # that of an expert: with its weights as constants, as inputs, and dispatched as ours is
        ways = [fast, mx.compile(expert), mx.compile(expert, inputs=expert.state), fuser.optimize(expert)]
        numbers = timed([plain, mx.compile(plain)], arrays, 2.0, 20)
        mx.clear_cache()
        numbers += timed(ways, arrays, 4.0, 60)
        numbers += timed(ways[:2], arrays, 3.0, 20, calls=5)
        memory = f"{peak(plain, arrays) / 1e9:.2f} -> {peak(fast, arrays) / 1e9:.2f} GB"
        error = difference(fast(*arrays), plain(*arrays))
        regions = fast.report.regions
        causal = sum(region.mask == "causal" for region in regions if region.verdict == "fused")
        cells = " | ".join(f"{number:.2f}" for number in numbers)
        print(
            f"| {size.name} | {cells} | {memory} | {causal} of {len(regions)} | {first:.1f} s | {error:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
