"""The graph: built, read, changed, pruned, checked and printed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser import Graph, Node, TensorType, Value
from fuser.errors import FuserError
from fuser.execute import runner

ROW = TensorType((2, 3), mx.float32)
COLUMN = TensorType((3, 4), mx.float32)


def product() -> tuple[Graph, Value, Value, Value]:
    graph = Graph()
    x, y = graph.add_input(ROW), graph.add_input(COLUMN)
    z = graph.add("Matmul", [x, y])
    graph.outputs = [z]
    return graph, x, y, z


def test_add_infers_the_type() -> None:
    graph, x, _, z = product()
    assert z.type == TensorType((2, 4), mx.float32)
    assert z.shape == (2, 4) and z.dtype == mx.float32
    assert graph.add("Transpose", [x], (1, 0)).shape == (3, 2)
    assert graph.add("Greater", [x, x]).dtype == mx.bool_


def test_add_takes_the_types_that_a_trace_tells() -> None:
    graph, x, _, _ = product()
    told = graph.add("Abs", [x], outputs=[ROW], scope="layer.0")
    assert told.type == ROW and told.node.scope == "layer.0"


def test_add_refuses_what_mlx_refuses() -> None:
    graph, x, _, z = product()
    with pytest.raises(ValueError, match="matmul"):
        graph.add("Matmul", [z, x])
    with pytest.raises(FuserError, match="Nonsense"):
        graph.add("Nonsense", [x])
    assert len(graph) == 3 and graph.lint() == []


def test_operands_and_users_are_told_in_order() -> None:
    graph, x, y, z = product()
    twice = graph.add("Multiply", [z, z])
    assert graph.operands(z.node) == (x, y)
    assert graph.operands(twice.node) == (z, z)
    assert sorted(place for _, place in graph.users(z)) == [0, 1]
    assert graph.users(twice) == []


def test_nodes_come_after_what_they_read() -> None:
    graph, x, _, z = product()
    late = graph.add("Negative", [x])
    graph.redirect(x, x)
    order = graph.nodes
    assert [graph.position(node) for node in order] == list(range(len(graph)))
    assert order.index(late.node) > order.index(x.node) and order.index(z.node) > order.index(x.node)


def test_outputs_of_one_node_are_told_apart() -> None:
    graph = fuser.trace(lambda x: mx.split(x, 2)[1], mx.zeros((4, 2)))
    (split,) = (node for node in graph.nodes if node.op == "Split")
    assert len(split.outputs) == 2
    assert graph.outputs == [Value(split, 1)] and graph.users(Value(split, 0)) == []


def test_redirect_moves_readers_and_outputs() -> None:
    graph, x, y, z = product()
    reader = graph.add("Abs", [z])
    graph.outputs = [z, reader]
    other = graph.add("Negative", [graph.add("Matmul", [x, y])])
    graph.redirect(z, other)
    assert graph.operands(reader.node) == (other,)
    assert graph.outputs == [other, reader] and graph.users(z) == []


@pytest.mark.parametrize("type", [TensorType((4, 2), mx.float32), TensorType((2, 4), mx.float16)], ids=str)
def test_redirect_refuses_a_change_of_type(type: TensorType) -> None:
    graph, _, _, z = product()
    other = graph.add_input(type)
    with pytest.raises(TypeError, match=r"cannot put .* where float32\[2, 4\] was"):
        graph.redirect(z, other)
    assert graph.outputs == [z]


def test_prune_drops_what_no_output_needs_and_keeps_inputs() -> None:
    graph, x, _, z = product()
    unused = graph.add("Abs", [graph.add("Negative", [x])])
    spare = graph.add_input(ROW)
    graph.prune()
    assert unused.node not in graph and spare.node in graph and z.node in graph
    assert len(graph) == 4 and graph.lint() == []


def test_a_copy_is_changed_on_its_own() -> None:
    graph, _, _, z = product()
    twin = graph.copy()
    twin.outputs = [twin.add("Abs", [z])]
    twin.prune()
    assert len(twin) == 4 and len(graph) == 3 and graph.outputs == [z]


def test_nodes_are_equal_only_to_themselves() -> None:
    graph, x, y, z = product()
    again = graph.add("Matmul", [x, y])
    assert again.node != z.node and again != z
    with pytest.raises(AttributeError):
        z.node.op = "Abs"  # type: ignore[misc]


def test_constants_are_shared() -> None:
    array = mx.arange(6).reshape(2, 3)
    graph = Graph()
    assert graph.add_constant(array).node.array is array


def test_a_sound_graph_has_nothing_to_complain_about() -> None:
    graph, _, _, _ = product()
    assert graph.lint() == []


def test_lint_names_what_is_wrong() -> None:
    graph, _, _, z = product()
    graph.add("Quux", [z], outputs=[ROW])
    stray = Node("Input", (), (ROW,))
    graph.outputs = [z, Value(stray)]
    complaints = graph.lint()
    assert any("Quux" in line and "no such primitive" in line for line in complaints)
    assert "output 1 is not in the graph" in complaints


def test_lint_sees_an_output_that_its_node_does_not_have() -> None:
    graph, _, _, z = product()
    graph.add("Abs", [Value(z.node, 3)], outputs=[ROW])
    assert any("output 3" in line for line in graph.lint())


def test_lint_sees_a_cycle() -> None:
    graph, _, _, z = product()
    graph.redirect(z, graph.add("Abs", [z]))
    assert graph.lint() == ["the graph has a cycle"]


def test_it_prints_as_a_program() -> None:
    graph = fuser.trace(lambda x, y: mx.softmax(x @ y * 2, axis=-1), mx.zeros((2, 3)), mx.zeros((3, 4)))
    node = graph.nodes[-1]
    where = f"  # {node.scope}"
    assert node.source is not None and node.source in where
    assert str(graph).splitlines() == [
        "%0: float32[2, 3] = Input()",
        "%1: float32[3, 4] = Input()",
        "%2: float32[] = Constant(2.0)",
        f"%3: float32[2, 4] = Matmul(%0, %1){where}",
        f"%4: float32[2, 4] = Broadcast(%2, (2, 4)){where}",
        f"%5: float32[2, 4] = Multiply(%3, %4){where}",
        f"%6: float32[2, 4] = Softmax(%5, False){where}",
        "return %6",
    ]


def test_labels_are_unique_and_say_where() -> None:
    graph, x, y, _ = product()
    pair = [graph.add("Matmul", [x, y], scope="layers.0") for _ in range(2)]
    assert [graph.label(each.node) for each in pair] == ["layers.0/Matmul", "layers.0/Matmul_1"]
    assert len({graph.label(node) for node in graph.nodes}) == len(graph)


def test_a_graph_made_by_hand_runs() -> None:
    graph, _, _, _ = product()
    x, y = mx.random.normal((2, 3)), mx.random.normal((3, 4))
    (result,) = runner(graph)([x, y])
    assert np.array_equal(np.asarray(result), np.asarray(x @ y))


@pytest.mark.parametrize(
    ("type", "text"),
    [(TensorType((2, 3), mx.bfloat16), "bfloat16[2, 3]"), (TensorType((), mx.bool_), "bool[]")],
)
def test_types_print_and_count(type: TensorType, text: str) -> None:
    assert str(type) == text
    assert type.ndim == len(type.shape)
    assert type.nbytes == type.size * type.dtype.size
