"""What a person would call a value: by what it is for, or else by what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import mlx.core as mx

from fuser.export.python_ir import CONST, INPUT, LAYERS, NUMBER, Op

# operations whose result is another form of their first operand
_FORMS = ("reshape", "transpose", "broadcast", "astype", "slice", "rotate_half", "maximum", "minimum")
# a longer name of a module is no name for what it gives
LONGEST = 16
_CALLS = {"cos": "cos", "sin": "sin", "softmax": "weights", "sigmoid": "gate", "logical_not": "blocked"}
_KINDS = {
    "tri": "causal",
    "attention": "attended",
    "less": "keep",
    "less_equal": "keep",
    "greater": "keep",
    "greater_equal": "keep",
    "equal": "same",
    "not_equal": "differs",
    "logical_and": "keep",
    "logical_or": "keep",
    "affine": "positions",
}


def roles(ops: Sequence[Op], called: Mapping[Op, str]) -> dict[Op, str]:
    """Names by use: what attention reads, and what the called modules call it; carried back through changes of form."""
    found = dict(called)
    asked: dict[Op, None] = {}
    remembered: dict[Op, None] = {}
    for op in reversed(ops):
        if op.kind == "attention":
            for arg, part in zip(op.args, ("q", "k", "v", "mask"), strict=False):
                found.setdefault(arg, part)
        if op.kind == "call" and op.attrs[0] in ("cos", "sin"):
            found.setdefault(op.args[0], "angles")
            continue
        role = found.get(op)
        if role is None:
            continue
        if op.kind == "linear" and role in ("q", "k", "v"):
            (asked if role == "q" else remembered).setdefault(op.args[0])
        if op.kind in (*_FORMS, "call") or (op.kind == "where" and role != "mask"):
            for arg in op.args:
                if arg.kind not in (NUMBER, CONST) and arg.ndim and arg.dtype == op.dtype:
                    found.setdefault(arg, role)
                    break
        elif op.kind in ("add", "multiply", "subtract", "concatenate") and op.dtype != mx.bool_:
            same = [arg for arg in op.args if arg.shape == op.shape and arg.kind not in (NUMBER, CONST, INPUT)]
            for arg in same[:1]:
                found.setdefault(arg, role)
    # keys and values of something else than the queries
    for op in remembered:
        if asked and op not in asked:
            found.setdefault(op, "memory")
    return found


def plain(op: Op, depth: int = 6) -> str:
    """A name by what the value is."""
    if op.kind == INPUT:
        return re.sub(r"[._]?\d+$", "", str(op.attrs[0])) or "x"
    if op.kind in LAYERS:
        if op.kind == "embedding" or "norm" in op.kind or op.kind == "conv":
            return "x"
        return stem(op.name) if 0 < len(op.name) <= LONGEST else "x"
    if op.kind == "call" and op.attrs[0] in _CALLS:
        return _CALLS[op.attrs[0]]
    if op.kind == "where" and any(arg.kind == NUMBER and arg.number < -1e3 for arg in op.args[1:]):
        return "mask"
    if op.kind in _KINDS:
        return _KINDS[op.kind]
    if op.kind == "reduce":
        return {"mean": "mean", "max": "highest", "min": "lowest", "any": "seen"}.get(op.attrs[0], "total")
    if (
        depth
        and op.args
        and op.kind in (*_FORMS, "add", "multiply", "subtract", "divide", "concatenate", "call", "where")
    ):
        source = next((arg for arg in op.args if arg.kind not in (NUMBER, CONST) and arg.ndim), None)
        computes = op.kind not in ("reshape", "transpose", "broadcast", "concatenate")
        if source is not None and source.dtype == op.dtype and not (computes and source.kind == INPUT):
            return plain(source, depth - 1)
    if op.dtype == mx.bool_:
        return "keep"
    return "x" if op.dtype in (mx.float32, mx.float16, mx.bfloat16) else "index"


def stem(name: str) -> str:
    """`q` for `q_proj`, `query` for `query_layer`."""
    return re.sub(r"_(proj|projection|layer|linear|lin)$", "", name).lower() or name


def strong(op: Op) -> str | None:
    """The name of an argument that is always the same kind of thing, wherever it comes from."""
    if op.kind == INPUT:
        return re.sub(r"[._]?\d+$", "", str(op.attrs[0])) or None
    name = plain(op)
    return name if name in ("cos", "sin", "mask", "keep", "positions", "causal", "seen") else None
