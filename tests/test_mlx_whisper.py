"""mlx-whisper, built tiny: encoder and decoder with its cache; runs where it is installed (it brings torch)."""

from __future__ import annotations

import mlx.core as mx
import pytest

import fuser

pytest.importorskip("mlx_whisper", reason="mlx-whisper is not installed")


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("part", ["encoder", "decoder", "whole"])
def test_replayed_bit_for_bit_and_all_attentions_fused(part: str, dtype: mx.Dtype) -> None:
    from benchmarks import mlx_whisper_sweep, sweeping

    outcome = sweeping.sweep(part, lambda: getattr(mlx_whisper_sweep, part)(dtype))
    assert outcome.good, str(outcome)
    assert outcome.fused == outcome.own


def test_attentions_have_the_names_of_their_modules() -> None:
    from benchmarks import mlx_whisper_sweep

    model = mlx_whisper_sweep.build()
    report = fuser.explain(model.decoder, mx.array([[1, 2, 3]]), mx.zeros((1, 12, 64)))
    assert [region.name for region in report.regions] == [
        *("blocks.0.attn", "blocks.0.cross_attn"),
        *("blocks.1.attn", "blocks.1.cross_attn"),
    ]
