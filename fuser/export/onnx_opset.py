"""A model's opset raised node by node: what means the same stays byte for byte, what does not is refused by name.

`onnx.version_converter` rebuilds the whole model (metadata, functions and names of values may go); most operators did
not change, so here only those are touched that did.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, defs, helper

from fuser.errors import FuserError
from fuser.export.onnx_edit import Editor, every

# operators that mean something else from a version on, though inputs and attributes may look the same
CHANGED = {
    ("Softmax", 13): "", ("LogSoftmax", 13): "", ("Hardmax", 13): "", ("RoiAlign", 16): "",
    ("AveragePool", 19): "ceil_mode", ("DFT", 20): "", ("GroupNormalization", 21): "",
    ("Resize", 11): "", ("Upsample", 10): "", ("Dropout", 12): "", ("Clip", 11): "", ("Pad", 11): "",
    ("Slice", 10): "", ("TopK", 10): "", ("Scan", 9): "",
}  # fmt: skip
SAMPLING = {"bilinear": "linear", "bicubic": "cubic"}
# their `axes` went from an attribute to an input
AXES = {
    "ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13, "ReduceL1": 18, "ReduceL2": 18, "ReduceLogSum": 18,
    "ReduceLogSumExp": 18, "ReduceMax": 18, "ReduceMean": 18, "ReduceMin": 18, "ReduceProd": 18,
    "ReduceSumSquare": 18,
}  # fmt: skip


class OpsetError(FuserError):
    """The opset cannot be raised, or not be what was asked for."""


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def raise_opset(editor: Editor, target: int) -> None:
    """Let the model mean the same at opset `target`; raises `OpsetError` with all nodes that cannot."""
    model = editor.model
    version = opset_of(model)
    if target == version:
        return
    problems = []
    for proto in model.functions:
        own = {entry.domain: entry.version for entry in proto.opset_import}
        changed = {
            node.op_type for node in every(proto.node) if _since(node, own.get("", version)) != _since(node, target)
        }
        problems += [f"{op} in function {proto.name}" for op in sorted(changed)]
    places = {id(node): i for i, node in enumerate(editor.nodes)}
    for node in every(editor.nodes):
        reason = _raised(editor, node, version, target, places.get(id(node)))
        if reason:
            problems.append(f"{reason} ({node.name or node.output[0]!r})")
    if problems:
        some = "; ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise OpsetError(
            f"the model is of opset {version} and cannot be raised to {target} as it is: {some}; "
            f"--opset {max(version, 14)} uses ONNX Runtime's own operators instead"
        )
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    lowest = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, lowest)


def _since(node: NodeProto, version: int) -> int:
    if node.domain not in ("", "ai.onnx"):
        return 0
    try:
        return int(defs.get_schema(node.op_type, version, "").since_version)
    except defs.SchemaError:
        return -1


def _raised(editor: Editor, node: NodeProto, version: int, target: int, place: int | None) -> str:
    """Make one node mean the same at `target`; why not, where that cannot be."""
    old, new = _since(node, version), _since(node, target)
    if old == new and old != -1:
        return ""
    if -1 in (old, new):
        return f"{node.op_type} is no operator of opset {target if new == -1 else version}"
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for (op, since), only in CHANGED.items():
        last = op in ("Softmax", "LogSoftmax", "Hardmax") and attributes.get("axis") == -1
        if op == node.op_type and old < since <= new and (not only or attributes.get(only)) and not last:
            return f"{op} changed at opset {since}"
    if node.op_type in AXES and old < AXES[node.op_type] <= new:
        if "axes" not in attributes:
            return ""
        if place is None:
            return f"{node.op_type} in an inner graph takes its axes as an input from opset {AXES[node.op_type]}"
        axes = editor.constant(np.asarray(attributes["axes"], np.int64), TensorProto.INT64, "axes")
        changed = _copy(node, without="axes")
        changed.input.append(axes)
        _exchange(editor, place, changed)
        return ""
    if node.op_type == "Split" and old < 18 <= new:
        if old < 13 and "split" in attributes:
            return "Split takes its sizes as an input from opset 13"
        if len(node.input) > 1 and node.input[1]:
            return ""
        if place is None:
            return "Split in an inner graph takes the number of outputs from opset 18"
        changed = _copy(node)
        changed.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
        _exchange(editor, place, changed)
        return ""
    if node.op_type == "GridSample" and old < 20 <= new:
        if place is None:
            return "GridSample in an inner graph calls its modes by other names from opset 20"
        mode = attributes.get("mode", b"bilinear").decode()
        changed = _copy(node, without="mode")
        changed.attribute.append(helper.make_attribute("mode", SAMPLING.get(mode, mode)))
        _exchange(editor, place, changed)
        return ""
    return _differs(node, defs.get_schema(node.op_type, version, ""), defs.get_schema(node.op_type, target, ""))


def _differs(node: NodeProto, old: defs.OpSchema, new: defs.OpSchema) -> str:
    """Why a node of one schema is not the same node of the other; most changes only add types."""
    kept: Mapping[str, defs.OpSchema.Attribute] = new.attributes
    for attribute in node.attribute:
        if attribute.name not in kept:
            return f"{node.op_type} has no attribute {attribute.name!r} any more"
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in old.attributes.items():
        if name not in given and name in kept and attribute.default_value != kept[name].default_value:
            return f"{node.op_type} has another default of {name!r}"
    if node.op_type == "BatchNormalization" and len(node.output) > 1:
        return "BatchNormalization has other outputs when training"
    if not new.min_input <= len(node.input) <= new.max_input or len(node.output) > new.max_output:
        return f"{node.op_type} takes other inputs"
    names = [each.name for each in old.inputs[: len(node.input)]]
    if len(new.inputs) < len(names) and new.max_input < 1000:
        return f"{node.op_type} takes other inputs"
    return ""


def _copy(node: NodeProto, without: str = "") -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name != without]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _exchange(editor: Editor, place: int, node: NodeProto) -> None:
    editor.nodes[place] = node
