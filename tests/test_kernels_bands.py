"""Masks in fewer numbers than they have cells: what is found in an array, and programs that reach our kernel so."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.api import explain_with_graphs
from fuser.kernels.admission import backend
from fuser.kernels.bands import FAR, tilt_of, window_of
from fuser.masks import meaning, settled

SHAPES = [(1, 1), (1, 9), (7, 7), (6, 11), (11, 6), (30, 30)]
LENGTH = 48
LOWEST = float(mx.finfo(mx.float32).min)


def away(rows: int, columns: int) -> np.ndarray:
    return np.arange(columns) - (np.arange(rows)[:, None] + columns - rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ahead", [-3, 0, 2, FAR])
@pytest.mark.parametrize("behind", [-1, 0, 4, FAR])
def test_windows_are_found(shape: tuple[int, int], ahead: int, behind: int) -> None:
    distance = away(*shape)
    keep = (distance <= ahead) & (distance >= -behind)
    found = window_of(keep)
    if found is None:
        assert not keep.any()
        return
    assert np.array_equal((distance <= found[0]) & (distance >= -found[1]), keep)
    # one cell more, or less, is another mask: a window too, but for a cell at the very edge
    other = keep.copy()
    other[shape[0] // 2, shape[1] // 2] ^= True
    found = window_of(other)
    assert found is None or np.array_equal((distance <= found[0]) & (distance >= -found[1]), other)


def test_what_is_no_window() -> None:
    upper_left = np.tri(6, 11, dtype=bool)
    blocks = np.arange(12)[:, None] // 4 >= np.arange(12) // 4
    sometimes_empty = np.tri(8, dtype=bool) & (np.arange(8)[:, None] != 5)
    for keep in (np.zeros((3, 3), bool), upper_left == np.tri(6, 11, 2, dtype=bool), blocks, sometimes_empty):
        assert window_of(keep) is None


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("shape", [(7, 7), (6, 11), (1, 9), (30, 30)], ids=str)
def test_slopes_are_found(shape: tuple[int, int], folded: bool) -> None:
    distance = away(*shape)
    slopes = 2.0 ** -np.arange(1, 4)[:, None, None]
    for window in ((FAR, FAR), (0, FAR), (0, 3)):
        seen = (distance <= window[0]) & (distance >= -window[1])
        bias = (-slopes * (np.abs(distance) if folded else -distance)).astype(np.float32)
        bias = np.where(seen, bias, -np.inf).astype(np.float64)
        shifted = bias + np.arange(shape[0])[:, None]
        for array, free in ((bias, False), (bias, True), (shifted, True)):
            found = tilt_of(array, free)
            assert found is not None
            told = found.slopes[:, None, None] * (np.abs(distance) if found.folded else distance)
            inside = (distance <= found.window[0]) & (distance >= -found.window[1])
            assert np.array_equal(inside, seen)
            rest = array - told
            if free:
                rest -= np.take_along_axis(rest, np.broadcast_to(seen.argmax(1)[:, None], rest.shape)[:, :, :1], axis=2)
            assert np.abs(rest[:, seen]).max() <= 1e-6
        if shape[0] > 1:
            assert tilt_of(shifted, shifted=False) is None


def test_what_is_no_slope() -> None:
    distance = away(20, 20)
    bias = np.where(distance <= 0, 0.37 * distance, -np.inf)[None]
    assert tilt_of(bias.astype(np.float32).astype(np.float64)) is not None
    # rounded to a half type, a cell off, one head's window off, a parabola
    assert tilt_of(bias.astype(np.float16).astype(np.float64)) is None
    wrong = bias.copy()
    wrong[0, 9, 3] += 1e-3
    other = np.concatenate([bias, np.where(distance <= 1, 0.1 * distance, -np.inf)[None]])
    for array in (
        wrong,
        other,
        np.where(np.arange(20)[:, None] == 9, -1e9, np.sin(distance**2))[None],
        -0.01 * distance[None].astype(np.float64) ** 2,
    ):
        assert tilt_of(array) is None


ROW = mx.arange(LENGTH)[:, None]
COLUMN = mx.arange(LENGTH)
TRI = mx.tri(LENGTH, LENGTH, dtype=mx.bool_)
BAND = mx.logical_and(COLUMN <= ROW, COLUMN > ROW - 9)
SLOPES = mx.array([2.0**-n for n in range(1, 5)]).reshape(4, 1, 1)
AFTER = mx.array([[True] * 48, [True] * 30 + [False] * 18])[:, None, None]
BEFORE = mx.array([[True] * 48, [False] * 17 + [True] * 31])[:, None, None]
Change = Callable[..., mx.array]
# the change of the scores, and what the report's kernel is to say of it
KNOWN: dict[str, tuple[Change, str]] = {
    "causal": (lambda s: mx.where(TRI, s, -math.inf), "ours"),
    "sliding": (lambda s: mx.where(BAND, s, -math.inf), "window of 9 keys"),
    "sliding, on both sides": (lambda s: s + mx.where(mx.abs(COLUMN - ROW) <= 5, 0, LOWEST), "window of 11 keys"),
    "a triangle with an empty row": (lambda s: mx.where(COLUMN < ROW, s, -math.inf), "ours"),
    "the same, of numbers": (lambda s: mx.where(COLUMN < ROW, s, LOWEST), "ours"),
    "slopes": (lambda s: s + SLOPES * (COLUMN - ROW), "slopes"),
    "slopes of the keys alone, causal": (lambda s: mx.where(TRI, s + SLOPES * COLUMN, -math.inf), "slopes"),
    "slopes on both sides": (lambda s: s - SLOPES * mx.abs(COLUMN - ROW), "slopes"),
    "slopes in a window": (
        lambda s: mx.where(BAND, s - SLOPES * (ROW - COLUMN), -math.inf),
        "window of 9 keys, slopes",
    ),
}
GIVEN: dict[str, Change] = {
    "both": lambda s, m, fill: mx.where(mx.logical_and(TRI, m), s, fill),
    "one after the other": lambda s, m, fill: mx.where(BAND, mx.where(m, s, fill), fill),
    "added": lambda s, m, fill: s + mx.where(mx.logical_and(m, BAND), 0, fill),
    "added, chosen twice": lambda s, m, fill: s + mx.where(m, mx.where(TRI, 0, fill), fill),
    "either hides": lambda s, m, fill: mx.where(mx.logical_or(mx.logical_not(m), COLUMN > ROW), fill, s),
    "added, either hides": lambda s, m, fill: s + mx.where(mx.logical_not(mx.logical_and(TRI, m)), fill, 0),
}


def attends(change: Change) -> Callable[..., mx.array]:
    def program(q: mx.array, k: mx.array, v: mx.array, *more: mx.array) -> mx.array:
        k, v = mx.repeat(k, 2, axis=1), mx.repeat(v, 2, axis=1)
        return mx.softmax(change(q @ k.swapaxes(-1, -2) * 0.25, *more), axis=-1) @ v

    return program


def arrays() -> list[mx.array]:
    keys = mx.random.split(mx.random.key(5), 3)
    shapes = (2, 4, LENGTH, 16), (2, 2, LENGTH, 16), (2, 2, LENGTH, 24)
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


def check(change: Change, *more: mx.array) -> str:
    """Right answers, and no array as large as the scores of a head in the graph; the kernel that the report names."""
    program, given = attends(change), [*arrays(), *more]
    fast = fuser.optimize(program)
    found, wanted = np.array(fast(*given)), np.array(program(*given))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6)
    (region,) = fast.report.regions
    assert region.verdict == "fused"
    graph = explain_with_graphs(program, *given)[2]
    assert [node for node in graph.nodes if node.outputs[0].shape[-2:] == (LENGTH, LENGTH)] == []
    return region.kernel or ""


on_cpu = pytest.mark.skipif(backend() != "cpu", reason="our kernel stands on a CPU")


@on_cpu
@pytest.mark.parametrize("name", KNOWN)
def test_known_masks(name: str) -> None:
    change, words = KNOWN[name]
    assert words in check(change)


@on_cpu
@pytest.mark.parametrize("name", KNOWN)
def test_known_masks_too_large_for_an_array_of_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (meaning, settled):
        monkeypatch.setattr(module, "LARGEST", 1000)
    change, words = KNOWN[name]
    assert words in check(change)


@on_cpu
@pytest.mark.parametrize("large", [1 << 30, 1000])
def test_what_the_slopes_leave_of_a_row(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell off, a row that sees nothing, a score that is lost and shown again: none is of slopes alone."""
    for module in (meaning, settled):
        monkeypatch.setattr(module, "LARGEST", large)
    slopes = SLOPES * (COLUMN - ROW)
    off = mx.where(mx.logical_and(ROW == 40, COLUMN == 7), 0.25, 0.0)
    for change in (
        lambda s: s + slopes + off,
        lambda s: mx.where(TRI, s + slopes + off, -math.inf),
        lambda s: mx.where(ROW == 5, -math.inf, s + slopes),
        lambda s: mx.where(COLUMN < ROW, s + slopes, -math.inf),
        lambda s: s + mx.where(TRI, slopes, math.nan),
        lambda s: mx.where(TRI, s, -1e9) + slopes + 1e9 * (COLUMN > ROW),
    ):
        program, given = attends(change), arrays()
        fast = fuser.optimize(program)
        found, wanted = np.array(fast(*given)), np.array(program(*given))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6)
        assert "slopes" not in (fast.report.regions[0].kernel or "")


@on_cpu
def test_a_row_of_low_numbers_is_no_row_of_slopes() -> None:
    """It swallows its scores, in the program and in the array that stays."""
    program, given = attends(lambda s: s + SLOPES * (COLUMN - ROW) + mx.where(ROW == 7, -1e9, 0.0)), arrays()
    fast = fuser.optimize(program)
    np.testing.assert_allclose(np.array(fast(*given)), np.array(program(*given)), rtol=0, atol=3e-6)
    assert "slopes" not in (fast.report.regions[0].kernel or "")


@on_cpu
@pytest.mark.parametrize("mask", [AFTER, BEFORE], ids=["padded after", "padded before"])
@pytest.mark.parametrize("fill", [-math.inf, LOWEST])
@pytest.mark.parametrize("name", GIVEN)
def test_a_triangle_and_padding(name: str, fill: float, mask: mx.array) -> None:
    assert "ours" in check(lambda s, m: GIVEN[name](s, m, fill), mask)


@on_cpu
@pytest.mark.parametrize("fill", [-math.inf, LOWEST])
def test_a_window_and_an_array(fill: float) -> None:
    """The array is as large as the scores: it stays, and so does its row that is hidden only where the window is."""
    mask = mx.random.uniform(shape=(2, 1, LENGTH, LENGTH), key=mx.random.key(2)) > 0.5
    mask = mx.where(mx.logical_and(ROW == 20, COLUMN > 4), False, mask)
    program, given = attends(lambda s, m: mx.where(BAND, mx.where(m, s, fill), fill)), [*arrays(), mask]
    fast = fuser.optimize(program)
    np.testing.assert_allclose(np.array(fast(*given)), np.array(program(*given)), rtol=0, atol=3e-6)
    assert "window of 9 keys" in (fast.report.regions[0].kernel or "")


@on_cpu
def test_a_window_with_sinks_and_a_cap() -> None:
    def change(scores: mx.array, sinks: mx.array) -> mx.array:
        scores = mx.where(BAND, mx.tanh(scores / 3.0) * 3.0, -math.inf)
        return mx.concatenate([scores, mx.broadcast_to(sinks.reshape(4, 1, 1), (2, 4, LENGTH, 1))], axis=-1)

    def program(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
        k, v = mx.repeat(k, 2, axis=1), mx.repeat(v, 2, axis=1)
        return mx.softmax(change(q @ k.swapaxes(-1, -2) * 0.25, sinks), axis=-1)[..., :-1] @ v

    given = [*arrays(), mx.array([0.5, -1.0, 2.0, 0.0])]
    fast = fuser.optimize(program)
    np.testing.assert_allclose(np.array(fast(*given)), np.array(program(*given)), rtol=0, atol=3e-6)
    assert "softcap 3, window of 9 keys" in (fast.report.regions[0].kernel or "")


@on_cpu
def test_sinks_see_what_a_row_has_more() -> None:
    """With a sink, slopes of the keys alone are not those of the distance: the array stays."""

    def program(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        k, v = mx.repeat(k, 2, axis=1), mx.repeat(v, 2, axis=1)
        scores = q @ k.swapaxes(-1, -2) * 0.25 + SLOPES * COLUMN * 0.1
        column = mx.zeros((2, 4, LENGTH, 1))
        return mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1)[..., :-1] @ v

    fast = fuser.optimize(program)
    np.testing.assert_allclose(np.array(fast(*arrays())), np.array(program(*arrays())), rtol=0, atol=3e-6)
    assert "slopes" not in (fast.report.regions[0].kernel or "slopes")
