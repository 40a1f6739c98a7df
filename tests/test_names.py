"""What a report calls a softmax: its module or function, and the line."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.core import softmax

import fuser


def line_of(function: Any, text: str) -> str:
    """Where `text` stands in the source of `function`."""
    lines, start = inspect.getsourcelines(function)
    (number,) = (number for number, line in enumerate(lines, start) if text in line)
    return f"test_names.py:{number}"


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.out = nn.Linear(16, 16)

    def __call__(self, x: mx.array, cache: list[mx.array] | None = None) -> tuple[mx.array, mx.array]:
        q = x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
        scores = q @ q.swapaxes(-1, -2) * 0.5
        weights = mx.softmax(scores, axis=-1)  # the primitive
        return self.out((weights @ q).swapaxes(1, 2).reshape(x.shape)), scores


class Written(Attention):
    def __call__(self, x: mx.array, cache: list[mx.array] | None = None) -> tuple[mx.array, mx.array]:
        q = x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
        scores = q @ q.swapaxes(-1, -2) * 0.5
        powers = (scores - scores.max(axis=-1, keepdims=True)).exp()  # written out
        weights = powers / powers.sum(axis=-1, keepdims=True)
        return self.out((weights @ q).swapaxes(1, 2).reshape(x.shape)), scores


class Called(Attention):
    def __call__(self, x: mx.array, cache: list[mx.array] | None = None) -> tuple[mx.array, mx.array]:
        q = x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
        y = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5)  # the kernel
        return self.out(y.swapaxes(1, 2).reshape(x.shape)), q


class Block(nn.Module):
    def __init__(self, kind: type[Attention]) -> None:
        super().__init__()
        self.attn = kind(4)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        y, scores = self.attn(x)
        # what the block before gave is updated in place
        x += y
        return x, scores


class Decoder(nn.Module):
    def __init__(self, kind: type[Attention]) -> None:
        super().__init__()
        self.blocks = [Block(kind) for _ in range(3)]

    def __call__(self, x: mx.array) -> tuple[mx.array, list[mx.array]]:
        x, kept = x * 2, []
        for block in self.blocks:
            x, scores = block(x)
            kept.append(scores)
        return x, kept


X = mx.random.normal((1, 5, 16))
KINDS = [(Attention, "# the primitive"), (Written, "# written out"), (Called, "# the kernel")]


@pytest.mark.parametrize(("kind", "text"), KINDS, ids=["primitive", "written out", "kernel"])
def test_a_module_has_its_path_and_the_line(kind: type[Attention], text: str) -> None:
    report = fuser.explain(Decoder(kind), X)
    assert [region.name for region in report.regions] == [f"blocks.{number}.attn" for number in range(3)]
    assert {region.source for region in report.regions} == {line_of(kind, text)}
    assert f"blocks.1.attn ({line_of(kind, text)})" in str(report)
    assert report.to_dict()["regions"][0]["source"] == line_of(kind, text)


def helper(q: mx.array) -> mx.array:
    scores = q @ q.swapaxes(-1, -2)
    return softmax(scores, axis=-1) @ q  # imported by name


class Plain:
    def method(self, q: mx.array) -> mx.array:
        weights = mx.softmax(q @ q.swapaxes(-1, -2), axis=-1)  # in a method
        return weights @ q


def outer(q: mx.array) -> mx.array:
    def inner(q: mx.array) -> mx.array:
        scores = q @ q.swapaxes(-1, -2)
        weights: mx.array = nn.softmax(scores, axis=-1)  # in a function
        return weights @ q

    return inner(q)


def test_a_function_has_its_name_and_the_line() -> None:
    for function, name, text in (
        (helper, "helper", "# imported by name"),
        (outer, "inner", "# in a function"),
        (Plain().method, "method", "# in a method"),
    ):
        (region,) = fuser.explain(function, X).regions
        place = line_of(function, text)
        assert region.name.endswith(f"{name} ({place})") and region.source == place
        assert str(region).count(place) == 1


def test_a_lambda_has_its_line() -> None:
    attend = lambda q: mx.softmax(q @ q.swapaxes(-1, -2), axis=-1) @ q  # noqa: E731
    (region,) = fuser.explain(attend, X).regions
    assert region.source == line_of(attend, "lambda q") and region.source in region.name


def test_a_line_inside_of_a_transformation_costs_no_name() -> None:
    decoder = Decoder(Attention)

    def program(x: mx.array) -> mx.array:
        squares = mx.vmap(lambda row: mx.softmax(row @ row.T, axis=-1) @ row)(x)
        return decoder(squares)[0]

    report = fuser.explain(program, X)
    assert [region.name for region in report.regions[1:]] == [f"blocks.{n}.attn" for n in range(3)]


def test_no_line_of_the_caller_is_said_to_be_the_models(models: Any) -> None:
    model = fuser.load_onnx(models / "bert__sdpa__dyn18" / "model.onnx")
    inputs = {each.name: mx.zeros((1, 4), mx.int64) for each in model.inputs}
    assert {region.source for region in fuser.explain(model, **inputs).regions} == {None}
