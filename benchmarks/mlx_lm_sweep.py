"""Every architecture of mlx-lm, built tiny: traced and replayed, bit for bit, and its attentions found again.

    python -m benchmarks.mlx_lm_sweep [NAME ...]

Of each model, a prefill, a decode step with a cache and a chunk of three tokens after it are tried as
`benchmarks.sweeping` says. A line for each model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from benchmarks import sweeping
from benchmarks.mlx_lm_tiny import architectures, build
from benchmarks.sweeping import Outcome, Subject, summary

STEPS = {"prefill": [1, 5, 9, 3, 7, 2, 8], "decode": [4], "chunk": [6, 1, 3]}


def subject(name: str) -> Subject:
    """The architecture `name` with random weights, and what is tried of it."""
    model = build(name)

    def step(tokens: list[int]) -> Callable[[Callable[..., Any], Any], Any]:
        return lambda program, cache: program(mx.array([tokens]), cache=cache)

    return Subject(
        model,
        {step_name: step(tokens) for step_name, tokens in STEPS.items()},
        lambda: make_prompt_cache(model),
    )


def sweep(name: str) -> Outcome:
    """Try one architecture."""
    return sweeping.sweep(name, lambda: subject(name))


def main() -> None:
    outcomes = []
    for name in sys.argv[1:] or architectures():
        outcomes.append(sweep(name))
        print(outcomes[-1], flush=True)
    print(summary(outcomes))


if __name__ == "__main__":
    main()
