"""What containers hold is swapped for a while; what has changed is known."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from fuser.frontends.state import Held, random_state, swapped
from fuser.frontends.trees import Walk

A, B, C = mx.array(1.0), mx.array([2.0]), mx.array([[3.0]])


def test_a_look_is_cheap_until_something_changes() -> None:
    state: dict[str, Any] = {"a": A, "inner": [B, (C,)], "n": 1}
    held = Held([state])
    assert held.still() and held.arrays == [A, B, C]
    first = held.signature
    state["n"] = 2
    assert not held.still()
    assert Held([state]).signature != first
    state["n"] = 1
    assert Held([state]).signature == first


def test_other_arrays_of_the_same_types_are_picked_up() -> None:
    layer = nn.Linear(2, 2)
    held = Held([layer])
    layer.weight = layer.weight + 1
    assert held.still()
    assert any(array is layer.weight for array in held.arrays)
    layer.weight = mx.zeros((3, 2))
    assert not held.still()


@pytest.mark.parametrize("change", ["new key", "gone", "mode", "frozen", "longer", "renamed"])
def test_changes_of_the_structure_are_seen(change: str) -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    held = Held([layer])
    if change == "new key":
        layer.extra = mx.zeros(1)
    elif change == "gone":
        del layer.layers[0]["bias"]
    elif change == "mode":
        layer.eval()
    elif change == "frozen":
        layer.freeze()
    elif change == "renamed":
        layer["other"] = layer.pop("layers")
    else:
        layer.layers.append(nn.ReLU())
    assert not held.still()


def test_another_order_is_seen() -> None:
    state = OrderedDict(a=A, b=B)
    held = Held([state])
    assert held.still()
    state.move_to_end("a")
    assert not held.still()


def test_swapped_and_put_back() -> None:
    state: dict[str, Any] = {"a": A, "inner": [B, (C, 5)], "gone": 1}
    walk = Walk()
    walk.walk(state)
    others = [mx.zeros(()), mx.zeros((1,)), mx.zeros((1, 1))]
    with swapped(walk.stores, walk.slots, others) as changes:
        assert state["a"] is others[0] and state["inner"][1][0] is others[2]
        assert changes(Walk(walk.index)) == []
        state["a"] = state["a"] + 1
        state["new"] = "text"
        del state["gone"]
        state["inner"].append(7)
        found = {(change.store, str(change.key)) for change in changes(Walk(walk.index))}
    assert found == {(0, "a"), (0, "new"), (0, "gone"), (1, str(slice(None)))}
    assert state["a"] is A and state["inner"][0] is B and state["inner"][1] == (C, 5)
    assert state.keys() == {"a", "inner", "gone"} and len(state["inner"]) == 2


def test_all_is_put_back_after_an_error() -> None:
    state = [A, B]
    walk = Walk()
    walk.walk(state)
    with pytest.raises(KeyError), swapped(walk.stores, walk.slots, [mx.zeros(()), mx.zeros((1,))]):
        state.clear()
        raise KeyError
    assert state[0] is A and state[1] is B


def test_the_random_state_can_be_set() -> None:
    mx.random.seed((7 << 32) | 9)
    key = random_state.get()
    wanted = mx.random.uniform(shape=(3,))
    assert random_state.put(key)
    assert mx.array_equal(mx.random.uniform(shape=(3,)), wanted)
    mx.disable_compile()
    try:
        assert random_state.put(key)
    finally:
        mx.enable_compile()
    assert mx.array_equal(mx.random.uniform(shape=(3,)), wanted)
