"""Architectures of mlx-lm, built tiny: replayed bit for bit, and their attentions found when they are spelled out."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

import fuser
from benchmarks.mlx_lm_sweep import sweep
from benchmarks.mlx_lm_tiny import build
from benchmarks.sweeping import arrays_of, kernel, same_bits, spelled_out

NAMES = ("llama", "qwen3", "gemma2", "phi3", "deepseek_v3", "mamba2", "gpt_oss")
PROMPT, NEXT = mx.array([[1, 5, 9, 3, 7, 2, 8]]), mx.array([[4]])


@pytest.mark.parametrize("name", NAMES)
def test_replayed_bit_for_bit(name: str) -> None:
    model = build(name)
    replay = fuser.optimize(model, fuse=False)
    for _ in range(2):
        wanted_cache, cache = make_prompt_cache(model), make_prompt_cache(model)
        for tokens in (PROMPT, NEXT):
            assert same_bits(model(tokens, cache=wanted_cache), replay(tokens, cache=cache))
            assert replay.report.notes == ("fusing was switched off",)
            assert same_bits(arrays_of(wanted_cache), arrays_of(cache))
            assert [each.offset for each in offsets(cache)] == [each.offset for each in offsets(wanted_cache)]
    assert replay.traces == 2
    assert same_bits(model(PROMPT), replay(PROMPT))


def offsets(cache: list[Any]) -> list[Any]:
    return [each for each in cache if hasattr(each, "offset")]


@pytest.mark.parametrize("name", NAMES)
def test_attentions_are_found_again(name: str) -> None:
    outcome = sweep(name)
    assert outcome.good, str(outcome)
    # one has none, another spells its own out
    assert outcome.fused == (0 if name == "mamba2" else 6)
    assert outcome.already == outcome.expected == (0 if name in ("gemma2", "mamba2") else 6)


def test_what_calls_the_kernel_is_fused_already() -> None:
    model = build("qwen3")
    report = fuser.explain(model, PROMPT)
    assert report.counts["already fused"] == 2
    assert [region.name for region in report.regions] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert [region.mask for region in report.regions] == ["causal", "causal"]
    # where mlx-lm calls it
    assert all(region.source and region.source.startswith("base.py:") for region in report.regions)


def test_generation_with_an_optimized_model() -> None:
    from mlx_lm.generate import generate_step

    model = build("llama")
    wanted = [int(token) for token, _ in generate_step(PROMPT[0], model, max_tokens=6)]
    with kernel(spelled_out):
        fast: Any = fuser.optimize(model)
        found = [int(token) for token, _ in generate_step(PROMPT[0], fast, max_tokens=6)]
    assert found == wanted
    assert fast.report.counts["fused"] == 2


def test_adapters_come_and_go_in_an_optimized_model() -> None:
    from mlx_lm.tuner.lora import LoRALinear

    model: Any = build("qwen3")
    fast: Any = fuser.optimize(model)
    with kernel(spelled_out):
        for layer in model.model.layers:
            layer.self_attn.q_proj = LoRALinear.from_base(layer.self_attn.q_proj, r=4)
        assert mx.allclose(fast(PROMPT), model(PROMPT), atol=1e-4)
        for layer in model.model.layers:
            layer.self_attn.q_proj.lora_b = mx.random.normal(layer.self_attn.q_proj.lora_b.shape)
        # other numbers in the same arrays' places: no new trace
        assert mx.allclose(fast(PROMPT), model(PROMPT), atol=1e-4) and fast.traces == 1
        for layer in model.model.layers:
            layer.self_attn.q_proj = layer.self_attn.q_proj.fuse()
        assert mx.allclose(fast(PROMPT), model(PROMPT), atol=1e-4)
        assert fast.report.counts["fused"] == 2
