"""mlx-vlm, built tiny: vision and audio towers and language models traced and replayed, and their attentions found.

    python -m benchmarks.mlx_vlm_sweep [vision|audio|language] [NAME ...]

It wants `pip install mlx-vlm`. Nothing is downloaded. What a tower reads on the host (the grid of the patches, say) it
is given by `functools.partial`, so that it is fixed in the trace; pixels are its argument. Language models run a
prefill, a decode step with a cache and a chunk of three tokens after it. A line for each.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.cache import make_prompt_cache

from benchmarks.mlx_lm_sweep import STEPS
from benchmarks.mlx_lm_tiny import NUMBERS
from benchmarks.mlx_vlm_tiny import AUDIO, CALLS, TOWERS, VISION, build, images, language, packages
from benchmarks.sweeping import Outcome, Subject, plain, summary, sweep

CLASSES = ("VisionModel", "VisionTower", "VisionEncoder", "MoGe3Encoder")
# why some are left out
LEFT_OUT = {
    "vision": {
        "deepseek_v4": "no class for the tower",
        "deepseek_v41": "no class for the tower",
        "gemma3n": "a MobileNet of fixed size",
        "phi3_v": "a CLIP of fixed size",
        "rfdetr": "a stub: detection runs elsewhere",
        "rt_detr_v2": "a ResNet, without attention",
        "sam3d_body": "a stub: the backbone runs elsewhere",
        "sam3d_objects": "no class for the tower",
    },
    "language": {
        "embedding_gemma2": "no language model",
        "hunyuan_vl": "the whole model gives it its positions",
        "jina_vlm": "its head belongs to the whole model",
        "mistral4": "no language model of its own",
        "nemotron_parse": "decoder that wants the encoder's output",
        "phi3_v": "a stub",
        "phi3small": "it writes beyond the end of an array, which MLX does not check",
        "rfdetr": "a stub",
        "rt_detr_v2": "a stub",
        "sam3d_body": "a stub",
    },
}


def vision(name: str) -> Subject:
    """The vision tower of `name`."""
    module = importlib.import_module(f"mlx_vlm.models.{name}.vision")
    model = build(
        f"{name}.vision", next(each for each in CLASSES if hasattr(module, each)), TOWERS.get(name, {}), VISION
    )
    parameters = list(inspect.signature(type(model).__call__).parameters)[1:]
    tries = [CALLS[name]()] if name in CALLS else list(images(getattr(model, "config", None), parameters))
    problem: Exception = TypeError("nothing to call it with")
    for args, keywords in tries:
        try:
            mx.eval([each for _, each in tree_flatten([plain(model(*args, **keywords))]) if isinstance(each, mx.array)])
        except Exception as error:
            problem = error
            continue
        # pixels are the argument; all else says where they lie
        program = functools.partial(model, **keywords) if keywords else model
        return Subject(program, {"encode": _call(*args)})
    raise problem


def audio(name: str) -> Subject:
    """The audio tower of `name`."""
    kind, special, arguments = AUDIO[name]
    return Subject(build(f"{name}.audio", kind, special, VISION), {"encode": _call(*arguments())})


def text(name: str) -> Subject:
    """The language model of `name`, with its caches."""
    model = build(f"{name}.language", "LanguageModel", language(name), NUMBERS)
    return Subject(
        model,
        {step: _step(tokens) for step, tokens in STEPS.items()},
        lambda: make_prompt_cache(model),
    )


def _call(*args: Any) -> Callable[[Callable[..., Any], Any], Any]:
    return lambda program, _: program(*args)


def _step(tokens: list[int]) -> Callable[[Callable[..., Any], Any], Any]:
    return lambda program, cache: program(mx.array([tokens]), cache=cache)


PARTS: dict[str, Callable[[str], Subject]] = {"vision": vision, "audio": audio, "language": text}


def has(name: str, part: str) -> bool:
    """Whether the model `name` has such a part."""
    return name in AUDIO if part == "audio" else importlib.util.find_spec(f"mlx_vlm.models.{name}.{part}") is not None


def main() -> None:
    chosen = sys.argv[1:]
    parts = [each for each in PARTS if each in chosen] or list(PARTS)
    names = [each for each in chosen if each not in PARTS] or packages()
    for part in parts:
        outcomes: list[Outcome] = []
        for name in names:
            if not has(name, part):
                continue
            if name in LEFT_OUT.get(part, {}):
                print(f"{part} {name}: left out, {LEFT_OUT[part][name]}", flush=True)
                continue
            outcomes.append(sweep(f"{part} {name}", functools.partial(PARTS[part], name)))
            print(outcomes[-1], flush=True)
        print(summary(outcomes))


if __name__ == "__main__":
    main()
