"""Damaged ONNX models, the same for the same seed: files cut and flipped, graphs that make no sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, parser

Random = np.random.Generator
EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "models"
SOURCES = ("bert__eager__ts14", "llama__sdpa__dyn18", "llama_past__sdpa__ts17", "t5__eager__ts17", "vit__sdpa__dyn18")


class Source(NamedTuple):
    """A model that is well, and inputs for it."""

    name: str
    content: bytes
    inputs: dict[str, Any]


def small() -> list[Source]:
    """Attention, control flow and functions, in a few hundred bytes: most flips hit something that counts."""
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    scores = "t = Transpose <perm = [0, 1, 3, 2]> (a) s = MatMul (a, t)"
    attention = f"{scores} c = Mul (s, half) w = Softmax <axis = -1> (c)"
    half = "float half = {0.5}"
    texts = {
        "attention": f"""(float[b,2,n,4] x) => (float[b,2,n,4] y) <{half}, float[4] bias = {{1.0, 2.0, 3.0, 4.0}}> {{
            a = Add (x, bias) {attention} y = MatMul (w, a) }}""",
        "shapes": """(float[b,2,n,4] x) => (float[b,n,8] y)
            <int64[1] two = {2}, int64[1] three = {3}, int64[1] eight = {8}> {
            s = Shape (x) zero = Constant <value_ints = [0]> () b = Gather (s, zero) n = Slice (s, two, three)
            t = Transpose <perm = [0, 2, 1, 3]> (x) to = Concat <axis = 0> (b, n, eight) y = Reshape (t, to) }""",
        "branch": f"""(float[b,2,n,4] x, bool flag) => (float[b,2,n,4] y) <{half}> {{ y = If (flag) <
            then_branch = yes () => (float[b,2,n,4] p) {{ a = Identity (x) {attention} p = MatMul (w, a) }},
            else_branch = no () => (float[b,2,n,4] q) {{ q = Neg (x) }}> }}""",
        "loop": f"""(float[b,2,n,4] x, int64 count) => (float[b,2,n,4] y) <{half}, bool yes = {{1}}> {{
            y = Loop (count, yes, x) <
            body = inner (int64 i, bool go, float[b,2,n,4] a) => (bool on, float[b,2,n,4] g) {{
            {attention} m = MatMul (w, a) g = Add (m, x) on = Identity (go) }}> }}""",
        "function": "(float[b,2,n,4] x) => (float[b,2,n,4] y) { h = local.Attend (x) y = local.Twice (h) }",
    }
    functions = f"""<domain: "local", opset_import: ["" : 18]> Attend (a) => (y)
        {{ half = Constant <value_float = 0.5> () {attention} y = MatMul (w, a) }}
        <domain: "local", opset_import: ["" : 18, "local" : 1]> Twice (x) => (y)
        {{ h = local.Attend (x) y = Add (h, x) }}"""
    given = {"flag": np.array(True), "count": np.array(3)}
    found = []
    for name, text in texts.items():
        domain, more = (', "local" : 1', functions) if name == "function" else ("", "")
        built = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18{domain}]> {name} {text} {more}')
        inputs = {"x": x, **{key: value for key, value in given.items() if f" {key})" in text.split("=>")[0]}}
        found.append(Source(name, built.SerializeToString(), inputs))
    return found


def sources(names: Sequence[str]) -> list[Source]:
    """The small models, and these of the bundled exports."""
    found = small()
    for name in names:
        with np.load(EXAMPLES / name / "inputs.npz") as arrays:
            found.append(Source(name, (EXAMPLES / name / "model.onnx").read_bytes(), dict(arrays)))
    return found


def mutant(models: Sequence[Source], kind: str, seed: int, number: int) -> tuple[str, bytes, dict[str, Any]]:
    """The mutant of this number: the name of its source, the file, inputs."""
    random = np.random.default_rng([seed, number])
    source: Source = one(models, random)
    mutate = KINDS[kind]
    if kind in BYTES:
        return source.name, mutate(source.content, random), source.inputs
    model = onnx.load_model_from_string(source.content)
    for _ in range(random.integers(1, 4)):
        mutate(model, random)
    try:
        return source.name, model.SerializeToString(), source.inputs
    except EncodeError:  # a string that is no UTF-8
        return source.name, source.content, source.inputs


# --- the file ---


def flipped(content: bytes, random: Random) -> bytes:
    """Some bytes are others."""
    damaged = bytearray(content)
    for place in random.integers(0, len(damaged), random.integers(1, 9)):
        damaged[place] = random.integers(256)
    return bytes(damaged)


def flipped_at_ends(content: bytes, random: Random) -> bytes:
    """Some bits, where the graph is and not the weights."""
    damaged = bytearray(content)
    size = min(len(damaged), 2000)
    for place in random.integers(0, size, random.integers(1, 4)):
        damaged[place if random.random() < 0.5 else len(damaged) - 1 - place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def cut(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: random.integers(len(content))]


def pasted(content: bytes, random: Random) -> bytes:
    """A part of the file stands at another place, too, or is missing."""
    start, length, place = random.integers(len(content)), int(random.integers(1, 200)), random.integers(len(content))
    if random.random() < 0.5:
        return content[:start] + content[start + length :]
    return content[:place] + content[start : start + length] + content[place:]


# --- the graph ---


def nodes_of(model: ModelProto) -> list[NodeProto]:
    """All nodes, those of inner graphs and functions too."""
    found: list[NodeProto] = []
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        for node in graph.node:
            found.append(node)
            stack += [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
    return found


def one(items: Sequence[Any], random: Random) -> Any:
    return items[int(random.integers(len(items)))]


def with_inputs(model: ModelProto, random: Random) -> NodeProto:
    found: NodeProto = one([node for node in nodes_of(model) if node.input and node.output], random)
    return found


def cycle(model: ModelProto, random: Random) -> None:
    """A node takes what is made later, of itself perhaps."""
    first, second = sorted(random.integers(len(model.graph.node), size=2))
    node = model.graph.node[first]
    if node.input:
        node.input[random.integers(len(node.input))] = model.graph.node[second].output[0]


def dangling(model: ModelProto, random: Random) -> None:
    """A name that nobody gives, or none."""
    node = with_inputs(model, random)
    node.input[random.integers(len(node.input))] = one(["nothing_gives_this", ""], random)


def rewired(model: ModelProto, random: Random) -> None:
    """An input is another value of the model, one that is there before it."""
    place = random.integers(len(model.graph.node))
    node = model.graph.node[place]
    names = [name for each in model.graph.node[:place] for name in each.output if name]
    names += [each.name for each in (*model.graph.initializer, *model.graph.input)]
    if node.input:
        node.input[random.integers(len(node.input))] = one(names, random)


def duplicated(model: ModelProto, random: Random) -> None:
    """Two values, inputs or weights of one name; a node that is there twice."""
    kind = random.integers(4)
    graph = model.graph
    if kind == 0:
        with_inputs(model, random).output[0] = one(with_inputs(model, random).output, random)
    elif kind == 1:
        graph.node.append(one(graph.node, random))
    elif kind == 2 and graph.initializer:
        one(graph.initializer, random).name = one(graph.initializer, random).name
    else:
        graph.input.append(one(graph.input, random))


def dropped(model: ModelProto, random: Random) -> None:
    """A node, weight, input or output is missing."""
    lists = [model.graph.node, model.graph.initializer, model.graph.input, model.graph.output, model.opset_import]
    chosen = one([each for each in lists if each], random)
    del chosen[random.integers(len(chosen))]


def sizes(model: ModelProto, random: Random) -> None:
    """A dimension of a weight is another: huge, negative, zero."""
    tensors = [*model.graph.initializer]
    tensors += [a.t for node in nodes_of(model) for a in node.attribute if a.type == AttributeProto.TENSOR]
    if not tensors:
        return
    tensor = one(tensors, random)
    size = one([2**62, 2**40, 2**31, 10**6, -1, -(2**63), 0, 3], random)
    if tensor.dims and random.random() < 0.8:
        tensor.dims[random.integers(len(tensor.dims))] = size
    else:
        tensor.dims.append(size)


def declared(model: ModelProto, random: Random) -> None:
    """An input or output declares other sizes, or another type."""
    value = one([*model.graph.input, *model.graph.output], random)
    tensor = value.type.tensor_type
    if tensor.shape.dim and random.random() < 0.7:
        dim = one(tensor.shape.dim, random)
        dim.dim_value = one([2**62, -1, 0, 2, -(2**40)], random)
    elif random.random() < 0.3:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        tensor.elem_type = int(random.integers(-1, 30))


def numbers(model: ModelProto, random: Random) -> None:
    """The numbers in constants: shapes to be, axes, places, loop counts."""
    tensors = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    tensors += [a.t for n in nodes_of(model) for a in n.attribute if a.t.data_type == TensorProto.INT64]
    if not tensors:
        attributes(model, random)
        return
    tensor = one(tensors, random)
    values = np.array(onnx.numpy_helper.to_array(tensor))
    if values.size:
        values.reshape(-1)[random.integers(values.size)] = one([2**62, 2**31, 10**7, -1, -5, 0, -(2**63), 7], random)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def attributes(model: ModelProto, random: Random) -> None:
    """An attribute has another value, type or name, or is missing."""
    nodes = [node for node in nodes_of(model) if node.attribute]
    if not nodes:
        return
    node = one(nodes, random)
    attribute = one(node.attribute, random)
    huge = one([2**62, -(2**62), -1, 0, 5, 10**9], random)
    kind = random.integers(5)
    if kind == 0:
        attribute.type = int(random.integers(1, 15))
    elif kind == 1:
        attribute.name = one(["axis", "perm", "to", "body", "unknown", ""], random)
    elif kind == 2:
        node.attribute.remove(attribute)
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[random.integers(len(attribute.ints))] = huge
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = one([float("nan"), float("inf"), -1.0, 0.0, 1e38], random)
    else:
        attribute.i = huge


def operators(model: ModelProto, random: Random) -> None:
    """A node is of another operator, domain or opset."""
    node = one(nodes_of(model), random)
    kind = random.integers(4)
    if kind == 0:
        node.op_type = one(nodes_of(model), random).op_type
    elif kind == 1:
        node.op_type = one(
            ["Attention", "Softmax", "Loop", "Reshape", "Expand", "Tile", "Pad", "Resize", "Ours"], random
        )
    elif kind == 2:
        node.domain = one(["com.microsoft", "ai.onnx.ml", "nowhere", "ai.onnx"], random)
    else:
        one(model.opset_import, random).version = int(one([0, 1, 6, 7, 13, 23, 27, 999, -1], random))


def types(model: ModelProto, random: Random) -> None:
    """The numbers of a weight are said to be of another type."""
    if model.graph.initializer:
        one(model.graph.initializer, random).data_type = int(random.integers(-1, 30))
    else:
        declared(model, random)


def recursion(model: ModelProto, random: Random) -> None:
    """Functions that call each other, graphs inside of graphs to a great depth."""
    if random.random() < 0.5:
        opsets = [*model.opset_import, helper.make_opsetid("deep", 1)]
        call = [helper.make_node(name, ["x"], ["y"], domain="deep") for name in ("F", "G")]
        for name, node in zip("GF", call, strict=True):
            if all(each.name != name for each in model.functions):
                model.functions.append(helper.make_function("deep", name, ["x"], ["y"], [node], opsets))
        model.opset_import.append(helper.make_opsetid("deep", 1))
        node = with_inputs(model, random)
        node.op_type, node.domain = "F", "deep"
        return
    yes = helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True)))
    leaf = [helper.make_node("Not", ["yes"], ["deep_0"])]
    other = helper.make_graph([helper.make_node("Not", ["yes"], ["no"])], "no", [], [])
    other.output.append(helper.make_tensor_value_info("no", TensorProto.BOOL, []))
    inner = leaf
    for depth in range(int(random.integers(3, 32))):
        value = helper.make_tensor_value_info(f"deep_{depth}", TensorProto.BOOL, [])
        graph = helper.make_graph(inner, "deep", [], [value])
        inner = [helper.make_node("If", ["yes"], [f"deep_{depth + 1}"], then_branch=graph, else_branch=other)]
    model.graph.node.extend([yes, *inner])


def external(model: ModelProto, random: Random) -> None:
    """A weight is said to lie in another file, inside or outside of the folder."""
    if not model.graph.initializer:
        return
    tensor = one(model.graph.initializer, random)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = ["../secret", "/etc/passwd", "model.onnx", "", "a/../../b", "/dev/zero", ".", "nothing.bin", "\\\\host\\a"]
    entries = {"location": one(places, random), "offset": one(["0", "-1", "x", str(2**62)], random)}
    for key, value in {**entries, "length": one(["4", "-8", "", str(2**62)], random)}.items():
        tensor.external_data.add(key=key, value=value)


def shuffled(model: ModelProto, random: Random) -> None:
    """Nodes in another order."""
    nodes = list(model.graph.node)
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "bytes": flipped,
    "bits": flipped_at_ends,
    "cut": cut,
    "pasted": pasted,
}
KINDS: dict[str, Callable[..., Any]] = {
    **BYTES,
    "cycle": cycle,
    "dangling": dangling,
    "rewired": rewired,
    "duplicated": duplicated,
    "dropped": dropped,
    "sizes": sizes,
    "declared": declared,
    "numbers": numbers,
    "attributes": attributes,
    "operators": operators,
    "types": types,
    "recursion": recursion,
    "external": external,
    "shuffled": shuffled,
}
