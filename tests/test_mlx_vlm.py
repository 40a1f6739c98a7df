"""Towers and language models of mlx-vlm, built tiny; runs where mlx-vlm is installed (it brings OpenCV)."""

from __future__ import annotations

import pytest

pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed")

SUBSET = {
    "vision": ("florence2", "gemma3", "kimi_k25", "mllama", "qwen2_5_vl", "sam3"),
    "audio": ("minicpmo", "phi4mm"),
    "language": ("gemma3n", "qwen2_vl", "qwen3_5"),
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in SUBSET.items() for name in names])
def test_replayed_bit_for_bit_and_all_attentions_found_again(part: str, name: str) -> None:
    from benchmarks import mlx_vlm_sweep, sweeping

    outcome = sweeping.sweep(name, lambda: mlx_vlm_sweep.PARTS[part](name))
    assert outcome.good, str(outcome)
    assert outcome.fused > 0
