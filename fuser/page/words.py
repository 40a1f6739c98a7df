"""How a node is called in a drawing."""

from __future__ import annotations

from typing import Any

from fuser.ir.graph import CONSTANT, INPUT, KERNEL, Graph, Node, Value
from fuser.ir.ops_fast import FLASH

KERNELS = (KERNEL, FLASH)
REDUCTIONS = ("and", "or", "sum", "product", "min", "max")
# views of one number give that number
SPREADS = frozenset({"Broadcast", "AsType", "Reshape", "ExpandDims", "Squeeze"})
# their shapes say it all
SILENT = frozenset({"Broadcast", "Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "Softmax", "Gather"})
LONGEST = 22


def title(node: Node) -> str:
    """The operation; a reduction by its kind, the kernel by the name under which it is called."""
    if node.op == KERNEL:
        return "fast.scaled_dot_product_attention"
    if node.op == "Reduce":
        return f"Reduce {REDUCTIONS[node.arguments[0]]}" if node.arguments[0] in range(6) else "Reduce"
    if node.op == INPUT and node.scope:
        return f"input {node.scope}"
    return node.op.lower() if node.op in (INPUT, CONSTANT) else node.op


def detail(node: Node) -> str:
    """Its arguments, as far as they say something and are short."""
    if node.op == KERNEL:
        return f"scale {node.arguments[0]:.4g}{', causal' if node.arguments[1] else ''}"
    if node.op == FLASH:
        scale, window, _, cap, slopes = node.arguments
        causal = ", causal" if window[0] == 0 else ""
        return f"scale {scale:.4g}{causal}{f', softcap {cap:.4g}' if cap else ''}{', slopes' if slopes else ''}"
    if node.op == "Transpose":
        return " ".join(map(str, node.arguments[0])) if node.arguments else ""
    if node.op == "AsType":
        return f"to {_plain(node.arguments[0])}"
    if node.op == "Concatenate":
        return f"axis {node.arguments[0]}"
    if node.op == "Slice":
        start, stop, step = node.arguments
        parts = (f"{a}:{b}" + (f":{c}" if c != 1 else "") for a, b, c in zip(start, stop, step, strict=True))
        text = f"[{', '.join(parts)}]"
        return text if len(text) <= 2 * LONGEST else ""
    if node.op == "Reduce":
        return f"axis {', '.join(map(str, node.arguments[1]))}"
    if node.op in SILENT or all(isinstance(each, bool) for each in node.arguments):
        return ""
    text = ", ".join(map(_plain, node.arguments))
    return text if len(text) <= LONGEST else ""


def number(graph: Graph, value: Value) -> str | None:
    """The one number that `value` is, however it is spread; None when it is an array."""
    while value.node.op in SPREADS:
        value = graph.operands(value.node)[0]
    array = value.node.array
    if value.node.op != CONSTANT or array is None or array.size != 1:
        return None
    found = array.item()
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def _plain(argument: Any) -> str:
    return str(argument).replace("mlx.core.", "")
