"""Inputs for the models of `export_models.py`, as their recipes describe them."""

from __future__ import annotations

import numpy as np
from export_configs import Recipe

Arrays = dict[str, np.ndarray]


def sizes(recipe: Recipe, name: str, dims: dict[str, int]) -> tuple[int, ...]:
    """The shape of an input: integers, names of dimensions, and sums of names."""
    words = recipe.inputs[name].split()[1:]
    return tuple(sum(int(part) if part.isdigit() else dims[part] for part in w.split("+")) for w in words)


def axes(recipe: Recipe, name: str) -> dict[int, str]:
    """The dynamic axes of an input."""
    words = recipe.inputs[name].split()[1:]
    return {axis: w.replace("+", "_plus_") for axis, w in enumerate(words) if not w.isdigit()}


def feed(recipe: Recipe, label: str, dims: dict[str, int], seed: int) -> Arrays:
    """One set of inputs, in the order of the recipe."""
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for name, spec in recipe.inputs.items():
        kind, shape = spec.split()[0], sizes(recipe, name, dims)
        if kind == "ids":
            made[name] = random.integers(5, 100, shape)
        elif kind == "mask":
            made[name] = np.ones(shape, np.int64)
            for row, line in enumerate(made[name]):
                if label.startswith("rightpad") and row % 2 == 0:
                    line[-2 - row // 2 :] = 0
                elif label.startswith("leftpad") and row != 1:
                    line[: 2 + row // 2] = 0
        elif kind == "zeros":
            made[name] = np.zeros(shape, np.int64)
        elif kind == "ones":
            made[name] = np.ones(shape, np.int64)
        elif kind.startswith("="):
            made[name] = np.broadcast_to(np.array(kind[1:].split(","), np.int64), shape).copy()
        elif kind == "true":
            made[name] = np.ones(shape, bool)
        elif kind == "arange":
            made[name] = np.broadcast_to(np.arange(shape[-1]), shape).copy()
        elif kind == "unit":
            made[name] = random.random(shape, np.float32)
        elif kind.startswith("int"):
            made[name] = random.integers(0, int(kind[3:]), shape)
        elif kind.startswith("step"):
            made[name] = random.integers(1, 900, shape).astype(kind[4:] or "float32")
        else:
            made[name] = random.standard_normal(shape, np.float32)
        if recipe.half and made[name].dtype == np.float32:
            made[name] = made[name].astype(np.float16)
    return made
