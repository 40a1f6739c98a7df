"""Known masks are read some rows at a time, and once for all layers: nothing may come of it but time and memory."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.ir.identity import Identity, digest
from fuser.ir.known import Known
from fuser.ir.rows import Rows
from fuser.masks import cells, meaning, settled

PLACES = mx.arange(12)
AWAY = PLACES[None] - PLACES[:, None]
SLOPES = mx.array([0.5, 0.25, 0.125])[:, None, None]

MADE: dict[str, Callable[[], mx.array]] = {
    "triu": lambda: mx.triu(mx.full((12, 12), -math.inf), k=1),
    "window": lambda: (mx.arange(12)[:, None] - mx.arange(12)[None] < 4) & mx.tril(mx.ones((12, 12), mx.bool_)),
    "slopes": lambda: SLOPES * mx.abs(AWAY),
    "transposed": lambda: (SLOPES * AWAY).transpose(1, 2, 0).swapaxes(0, 1)[:, None],
    "table": lambda: mx.arange(64).reshape(32, 2)[mx.clip(AWAY + 16, 0, 31)].transpose(2, 0, 1)[None],
    "table of two indices": lambda: mx.arange(40).reshape(2, 20)[(AWAY > 0).astype(mx.int32), mx.abs(AWAY)],
    "logarithms": lambda: mx.log((mx.abs(mx.arange(12)[:, None] - mx.arange(12)) + 1).astype(mx.float32)) * 4,
    "cast, of remainders": lambda: ((mx.arange(12)[:, None] % 5) != (mx.arange(12) // 4)).astype(mx.float16) * -1e4,
    "reshaped": lambda: mx.broadcast_to(AWAY[None, :, None], (3, 12, 2, 12)).reshape(3, 12, 24) * 2,
    "cut and joined": lambda: mx.concatenate([AWAY[:, 3:], mx.zeros((12, 2), AWAY.dtype)], axis=1)[2:],
    "bfloat16": lambda: mx.where(AWAY > 0, mx.array(-math.inf, mx.bfloat16), mx.array(0.25, mx.bfloat16)),
}


def made(make: Callable[[], mx.array]) -> tuple[Known, fuser.Value]:
    """A program's mask, as a value that is known before it runs."""
    graph = fuser.trace(lambda x: x + make(), mx.zeros(make().shape, make().dtype))
    (output,) = graph.outputs
    return Known(graph), graph.operands(output.node)[1]


@pytest.mark.parametrize("name", MADE)
def test_rows_are_those_of_the_whole(name: str) -> None:
    known, value = made(MADE[name])
    whole = known.array(value)
    assert whole is not None
    for axis, size in enumerate(value.shape):
        rows = Rows(known, value, axis)
        for start, stop in ((0, 1), (0, size), (size - 1, size), (size // 3, size - size // 4)):
            part = np.array(rows.read(start, stop).astype(mx.float32))
            index = (*[slice(None)] * axis, slice(start, stop))
            assert np.array_equal(part, whole[index].astype(np.float32), equal_nan=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two rows at a time."""
    monkeypatch.setattr(cells, "BLOCK", 16)


def explained(mask: mx.array, rows: int = 12, heads: int = 1) -> fuser.Region:
    """The region of an attention under a known mask."""

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = q @ k.swapaxes(-1, -2)
        scores = mx.where(mask, scores, -math.inf) if mask.dtype == mx.bool_ else scores + mask
        return mx.softmax(scores, axis=-1) @ v

    q, k = (mx.random.normal((1, heads, length, 4), key=mx.random.key(length)) for length in (rows, 12))
    fast = fuser.optimize(attend, when="always")
    assert mx.allclose(fast(q, k, k), attend(q, k, k), atol=1e-5)
    (region,) = fast.report.regions
    assert region.verdict == "fused"
    return region


CAUSAL = np.tri(12, dtype=bool)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("cell", [None, (0, 1), (0, 11), (5, 2), (11, 10), (11, 0)])
def test_one_cell_makes_a_causal_mask_another(cell: tuple[int, int] | None) -> None:
    mask = CAUSAL.copy()
    if cell is not None:
        mask[cell] ^= True
    kind = "causal" if cell is None else "boolean"
    assert explained(mx.array(mask)).mask == kind
    assert explained(mx.array(np.where(mask, 0, -np.inf).astype(np.float32))).mask == kind
    assert explained(mx.array(np.where(mask, 0, -1e9).astype(np.float32)), heads=2).mask == kind


@pytest.mark.usefixtures("tiny")
def test_a_mask_that_is_alike_in_all_rows_is_not_causal_for_its_first_row() -> None:
    # the first of four rows sees nine of twelve keys under a causal mask
    assert explained(mx.arange(12)[None] < 9, rows=4).mask == "boolean"
    assert explained(mx.array(CAUSAL[-4:]), rows=4).mask == "causal"
    assert explained(mx.ones((4, 12), mx.bool_), rows=4).mask == "none"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("late", [0, 6, 11])
def test_a_row_may_be_another_than_all_before_it(late: int) -> None:
    hidden = np.zeros((12, 12), np.float32)
    hidden[late, 3] = -np.inf
    assert explained(mx.array(hidden)).mask == "boolean"


@pytest.mark.usefixtures("tiny")
def test_the_last_row_alone_makes_it_a_bias() -> None:
    length = 300
    bias = np.where(np.tri(length, dtype=bool), 0, -np.inf).astype(np.float32)
    bias[-1, 0] = 0.5

    def attend(q: mx.array) -> mx.array:
        return mx.softmax(q @ q.swapaxes(-1, -2) + mx.array(bias), axis=-1) @ q

    q = mx.random.normal((1, 1, length, 4), key=mx.random.key(0))
    fast = fuser.optimize(attend, when="always")
    assert mx.allclose(fast(q), attend(q), atol=1e-5)
    assert [region.mask for region in fast.report.regions] == ["additive"]


def decoder(layers: int, mask: Callable[[int], mx.array]) -> Callable[[mx.array], mx.array]:
    def decode(x: mx.array) -> mx.array:
        for layer in range(layers):
            x = mx.softmax(x @ x.swapaxes(-1, -2) + mask(layer), axis=-1) @ x
        return x

    return decode


def arrays_in(fn: Callable[[mx.array], mx.array]) -> int:
    """How many arrays of the scores' size the fused program holds."""
    graph, report = fuser.fuse(fuser.trace(fn, mx.zeros((1, 3, 12, 4))))
    assert report.counts["fused"] == len(report.regions)
    return sum(node.op == "Constant" and node.outputs[0].shape[-2:] == (12, 12) for node in graph.nodes)


def test_layers_share_what_each_makes_anew() -> None:
    def slopes(layer: int) -> mx.array:
        places = mx.arange(12)
        return mx.array([0.5, 0.25, 0.125])[:, None, None] * (places[None] - places[:, None])

    assert arrays_in(decoder(4, slopes)) == 1
    assert arrays_in(decoder(4, lambda layer: slopes(layer) * (1 + layer % 2))) == 2


@pytest.mark.parametrize("written", [0, 1 << 24])
def test_a_large_mask_beside_one_of_run_time_is_left_to_the_program(
    written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "WRITTEN", written)

    def attend(x: mx.array, bias: mx.array) -> mx.array:
        scores = x @ x.swapaxes(-1, -2) + bias + mx.triu(mx.full((12, 12), -math.inf), k=1)
        return mx.softmax(scores, axis=-1) @ x

    x, bias = (mx.random.normal(shape, key=mx.random.key(1)) for shape in ((1, 2, 12, 4), (2, 12, 12)))
    graph, report = fuser.fuse(fuser.trace(attend, x, bias))
    held = [node for node in graph.nodes if node.op == "Constant" and node.outputs[0].shape[-2:] == (12, 12)]
    assert (report.counts["fused"], len(held)) == (1, 1 if written else 0)
    assert mx.allclose(fuser.optimize(attend, when="always")(x, bias), attend(x, bias), atol=1e-5)


def test_what_is_the_same() -> None:
    def numbers(*makes: Callable[[], mx.array]) -> list[int]:
        graph = fuser.trace(lambda x: [x + make() for make in makes], mx.zeros((3,)))
        identity = Identity(Known(graph))
        return [identity.number(graph.operands(output.node)[1]) for output in graph.outputs]

    same = numbers(lambda: mx.arange(3.0) * mx.array([1.0, 2, 3]), lambda: mx.arange(3.0) * mx.array([1.0, 2, 3]))
    assert same[0] == same[1]
    other = numbers(
        lambda: mx.array([0.0, 1, 1]),
        lambda: mx.array([-0.0, 1, 1]),
        lambda: mx.arange(0.0, 3.0),
        lambda: mx.arange(1.0, 4.0),
        lambda: mx.arange(3.0) * mx.array([1.0, 2, 3]),
        lambda: mx.arange(3.0) + mx.array([1.0, 2, 3]),
    )
    assert len(set(other)) == len(other)
    assert digest(np.zeros(2, np.int32)) != digest(np.zeros(2, np.float32)) != digest(np.zeros((2, 1), np.float32))


def test_a_long_causal_mask_is_never_made() -> None:
    length = 4096

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = q @ k.swapaxes(-1, -2) + mx.triu(mx.full((length, length), -math.inf), k=1)
        return mx.softmax(scores, axis=-1) @ v

    q = mx.zeros((1, 8, length, 64))
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    tracemalloc.start()
    try:
        (region,) = fuser.explain(attend, q, q, q).regions
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert region.mask == "causal"
    # of 64 MB
    assert peak < 16e6
    assert mx.get_peak_memory() - held < 16e6


def beside(change: Callable[[mx.array], mx.array], rows: int = 12) -> fuser.Report:
    """The report of a program whose scores `change` masks, which gives the same answers fused and as it is."""

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.softmax(change(q @ k.swapaxes(-1, -2)), axis=-1) @ v

    q, k = (mx.random.normal((1, 1, length, 4), key=mx.random.key(length + 1)) for length in (rows, 12))
    fast = fuser.optimize(attend, when="always")
    assert mx.allclose(fast(q, k, k), attend(q, k, k), rtol=1e-3, atol=3e-3, equal_nan=True)
    return fast.report


SOME = (PLACES[:, None] % 5 != 2) & (AWAY <= 0)
LOWEST = float(np.finfo(np.float32).min)

MET: dict[str, tuple[Callable[[mx.array], mx.array], str]] = {
    "a bias lost in rows filled with a number that swallows no score": (
        lambda s: mx.where(SOME, s + 0.1 * AWAY, -1e4),
        "fused",
    ),
    "a bias about the number that hides": (lambda s: s + 0.3 * AWAY + mx.where(SOME, 0.0, -9e3), "fused"),
    "scores lifted over a floor as low as the mask": (
        lambda s: mx.where(AWAY < 3, mx.maximum(s + mx.where(SOME, 0.0, -1e4), -1e4), -math.inf),
        "refused",
    ),
    "a floor under rows that are all lost": (
        lambda s: mx.maximum(s + 0.1 * AWAY + mx.where(SOME, 0.0, LOWEST), -1e4),
        "fused",
    ),
    "zero times infinity": (
        lambda s: (s + mx.log(SOME.astype(mx.float32))) * (AWAY < 5) + ((AWAY < 5) - 1.0) * 1e9,
        "refused",
    ),
    "zero times infinity, of two that meet": (
        lambda s: (mx.where(SOME, s, LOWEST) + mx.where(AWAY < 5, 0.0, -3e38)) * (AWAY < 5) + ((AWAY < 5) - 1.0) * 1e9,
        "refused",
    ),
    "a fill scaled to beyond all numbers": (
        lambda s: 2.0 * (s * SOME + (SOME.astype(mx.float32) - 1.0) * 3e38),
        "fused",
    ),
    "a mask scaled to beyond all numbers": (lambda s: 2.0 * (s + mx.where(AWAY > 0, LOWEST, 0.0)), "fused"),
    "rows of a mask scaled to beyond all numbers": (lambda s: 2.0 * (s + mx.where(SOME, 0.0, LOWEST)), "fused"),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", MET)
def test_masks_that_meet(name: str) -> None:
    change, verdict = MET[name]
    (region,) = beside(change).regions
    assert region.verdict == verdict
    assert "bug" not in (region.reason or "")


def test_a_floor_beside_masks_too_large_to_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (meaning, settled):
        monkeypatch.setattr(module, "LARGEST", 16)
    beside(MET["a floor under rows that are all lost"][0])


def test_a_mask_of_what_is_no_number_in_float16() -> None:
    mask = mx.where(AWAY == 4, math.nan, 0.1 * AWAY).astype(mx.float16)
    assert "NaN" in (beside(lambda s: (s.astype(mx.float16) + mask).astype(mx.float32)).regions[0].reason or "")
