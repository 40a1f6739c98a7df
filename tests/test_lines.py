"""Lines of the user's program: how a report and an error call them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import fuser

SOURCE = """
def attention(x):
    return mx.softmax(x @ x.swapaxes(-1, -2), axis=-1) @ x
def reads(x):
    return x * float(x.sum())
"""


@pytest.mark.parametrize(
    ("file", "line", "read"),
    [
        ("/srv/ipykernel_812/709923736.py", "cell, line 3", "cell, line 5"),
        ("<ipython-input-4-0c1d2e>", "cell 4, line 3", "cell 4, line 5"),
        ("/srv/model.py", "model.py:3", "/srv/model.py:5"),
    ],
)
def test_where_a_line_is(file: str, line: str, read: str) -> None:
    made: dict[str, Any] = {"mx": mx, "__name__": "__main__"}
    exec(compile(SOURCE, file, "exec"), made)
    (region,) = fuser.explain(made["attention"], mx.ones((1, 3, 4))).regions
    assert region.source == line and region.name == f"attention ({line})"
    with pytest.raises(fuser.TraceError, match=f"{read} reads the value"):
        fuser.trace(made["reads"], mx.ones((1, 3, 4)))


class Holder(dict[str, Any]):
    """A dictionary with a method of its author's own."""

    def values(self, scale: float) -> Any:  # type: ignore[override]
        return dict.__getitem__(self, "x") * scale


def test_variables_may_hold_themselves_and_dictionaries_of_any_class() -> None:
    def attention(x: mx.array) -> mx.array:
        held = Holder(x=x)
        around: list[Any] = [held]
        around.append(around)
        scaled = held.values(0.5)
        return mx.softmax(scaled @ x.swapaxes(-1, -2), axis=-1) @ x

    (region,) = fuser.explain(attention, mx.ones((1, 3, 4))).regions
    assert region.verdict == "fused" and region.scale == 0.5
    assert str(region.name).startswith("test_variables_may_hold_themselves_and_dictionaries_of_any_class.attention")
