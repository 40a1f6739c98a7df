"""mlx-whisper, built tiny: encoder and decoder traced and replayed, bit for bit, and their attentions found.

    python -m benchmarks.mlx_whisper_sweep

It wants `pip install mlx-whisper`. The decoder is called as mlx-whisper's decoding calls it: the prompt, then token by
token with the keys and values that the call before gave. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx_whisper.whisper import ModelDimensions, Whisper

from benchmarks.sweeping import Outcome, Subject, ready, summary, sweep

LAYERS, WIDTH, FRAMES, MELS = 2, 64, 12, 8
STEPS = {"prefill": [[1, 5, 9, 3]], "decode": [[4]], "next": [[7]]}


def build(dtype: mx.Dtype = mx.float32) -> Whisper:
    """A tiny Whisper with random weights."""
    mx.random.seed(0)
    numbers = {"audio_state": WIDTH, "audio_head": 4, "audio_layer": LAYERS, "audio_ctx": FRAMES, "mels": MELS}
    numbers |= {"text_state": WIDTH, "text_head": 4, "text_layer": LAYERS, "text_ctx": 32, "vocab": 100}
    model = Whisper(ModelDimensions(**{f"n_{name}": number for name, number in numbers.items()}), dtype)
    model.set_dtype(dtype)
    ready(model, "whisper")
    return model


def encoder(dtype: mx.Dtype) -> Subject:
    """The audio tower."""
    model = build(dtype)
    mel = mx.random.normal((2, 2 * FRAMES, MELS)).astype(dtype)
    return Subject(model.encoder, {"encode": lambda program, _: program(mel)}, own=LAYERS)


def decoder(dtype: mx.Dtype) -> Subject:
    """The text decoder, with its cache."""
    model = build(dtype)
    audio = mx.random.normal((1, FRAMES, WIDTH)).astype(dtype)

    def step(tokens: list[list[int]]) -> Callable[[Callable[..., Any], Any], Any]:
        def run(program: Callable[..., Any], state: Any) -> Any:
            logits, state["cache"], scores = program(mx.array(tokens), audio, kv_cache=state.get("cache"))
            return logits, scores

        return run

    # in each layer, and in each step, one over the text and one over the audio
    return Subject(model.decoder, {name: step(tokens) for name, tokens in STEPS.items()}, own=2 * LAYERS * len(STEPS))


def whole(dtype: mx.Dtype) -> Subject:
    """Both in one call."""
    model = build(dtype)
    mel, tokens = mx.random.normal((1, 2 * FRAMES, MELS)).astype(dtype), mx.array(STEPS["prefill"])
    return Subject(model, {"both": lambda program, _: program(mel, tokens)}, own=3 * LAYERS)


def outcomes() -> Iterator[Outcome]:
    """All that is tried."""
    for dtype in (mx.float32, mx.float16):
        name = str(dtype).rpartition(".")[2]
        for part in (encoder, decoder, whole):
            yield sweep(f"whisper {part.__name__} {name}", lambda part=part, dtype=dtype: part(dtype))


def main() -> None:
    found = []
    for outcome in outcomes():
        found.append(outcome)
        print(outcome, flush=True)
    print(summary(found))


if __name__ == "__main__":
    main()
