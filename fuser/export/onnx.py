"""ONNX to ONNX: each attention as the standard operator, everything else byte for byte as it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx
from onnx import ModelProto

from fuser.export.files import check_new, replacing
from fuser.export.onnx_edit import Editor
from fuser.export.onnx_emit import ATTENTION, MICROSOFT, Emitter
from fuser.export.onnx_layout import Unexpressed
from fuser.export.onnx_opset import OpsetError, opset_of, raise_opset
from fuser.export.onnx_region import Found, Traces
from fuser.export.onnx_trace import traces
from fuser.frontends.onnx import load

# operators that are a fused attention already
FUSED = frozenset(
    {
        "Attention",
        "DecoderAttention",
        "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention",
        "FlexAttention",
        "GroupQueryAttention",
        "LongformerAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "PagedAttention",
        "QAttention",
        "SparseAttention",
    }
)


@dataclass(frozen=True)
class Conversion:
    """What became of each softmax of a model, by its node."""

    fused: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    """Attention operators that the model had."""
    kept: tuple[tuple[str, str], ...] = ()
    """Nodes that stay as they are, each with the reason."""
    opset: int = 0
    """The opset of what was written."""

    def __str__(self) -> str:
        head = f"{len(self.fused)} fused, {len(self.already)} already fused, {len(self.kept)} left"
        return "\n".join([head, *(f"  left: {node}: {reason}" for node, reason in self.kept)])


def export_onnx(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    opset: int | None = None,
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
) -> Conversion:
    """Write the ONNX model `model` to `out` with each attention as one operator, and say what was done.

    The operator is `Attention` of opset 23, to which the model is raised; `opset` asks for another, and one below 23
    gives ONNX Runtime's `com.microsoft.MultiHeadAttention`. What cannot be said with the operator stays as it is. A
    model in which nothing is to be done is copied. `sizes` are sizes of dynamic dimensions that are known to work.

    Raises `OpsetError` when the opset cannot be had, `OutputError` when `out` cannot be written.
    """
    source, target = Path(model), Path(out)
    check_new([target], force=force)
    program = load(source)  # checks it, too
    proto = onnx.load(source, format="protobuf", load_external_data=False)
    fused, result = converted(proto, traces(program, sizes), opset=opset)
    _write(fused if result.fused else None, source, target, force=force)
    return result


def converted(model: ModelProto, found: Traces, *, opset: int | None = None) -> tuple[ModelProto, Conversion]:
    """`model` with the attentions `found` in it fused, as a new model, and what was done."""
    version = opset_of(model)
    target = max(version, ATTENTION) if opset is None else opset
    if target < version:
        raise OpsetError(f"the model is of opset {version}: it cannot be lowered to {target}")
    skipped: dict[str, str] = {}
    while True:
        fused, result, idle = _attempt(model, found.found, target, skipped)
        if not idle:
            break
        skipped |= idle
    editor = Editor(model)
    already = [node for node in found.missed if _is_fused(editor, node)]
    kept = [(node, reason) for node, reason in found.missed.items() if node not in already]
    return fused, Conversion(
        result.fused,
        (*result.already, *already),
        (*result.kept, *kept),
        target if result.fused else version,
    )


def _is_fused(editor: Editor, node: str) -> bool:
    return node in editor.places and editor.nodes[editor.places[node]].op_type in FUSED


def _attempt(
    model: ModelProto, regions: Mapping[str, Found], opset: int, skipped: Mapping[str, str]
) -> tuple[ModelProto, Conversion, dict[str, str]]:
    """One try; the last result are regions whose softmax would stay, so that the operator would be work on top."""
    copy = ModelProto()
    copy.CopyFrom(model)
    editor = Editor(copy)
    emitter = Emitter(editor, opset)
    fused: list[str] = []
    already: list[str] = []
    kept: list[tuple[str, str]] = list(skipped.items())
    order: list[tuple[int, str]] = []
    for key, found in regions.items():
        if key in skipped:
            continue
        try:
            if _is_fused(editor, key):
                already.append(key)
            else:
                order.append((emitter.place(found), key))
        except Unexpressed as reason:
            kept.append((key, str(reason)))
    for _, key in sorted(order):
        try:
            emitter.emit(regions[key])
            fused.append(key)
        except Unexpressed as reason:
            kept.append((key, str(reason)))
    result = Conversion(tuple(fused), tuple(already), tuple(kept), opset)
    if not fused:
        return model, result, {}
    live = editor.live(after=True)
    idle = {
        key: "its weights are used elsewhere, too, so that nothing would be saved"
        for key in fused
        if editor.places.get(key) in live
    }
    if idle:
        return model, result, idle
    raise_opset(editor, opset)
    if opset < ATTENTION and all(entry.domain != MICROSOFT for entry in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    editor.apply()
    return copy, result, {}


def _write(model: ModelProto | None, source: Path, target: Path, *, force: bool) -> None:
    """Write `model`, or the file at `source` as it is; data beside it comes along in one file."""
    proto = model if model is not None else onnx.load(source, format="protobuf", load_external_data=False)
    tensors = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if not tensors:
        with replacing(target, force=force) as (draft,):
            draft.write_bytes(source.read_bytes() if model is None else proto.SerializeToString())
        return
    beside = target.with_name(f"{target.name}.data")
    with replacing(beside, target, force=force) as (data, draft):
        with data.open("wb") as file:
            for tensor in tensors:
                info = {entry.key: entry.value for entry in tensor.external_data}
                start = file.seek(-(-file.tell() // 4096) * 4096)
                length = _copy(source.parent / info["location"], int(info.get("offset", 0)), info.get("length"), file)
                del tensor.external_data[:]
                for key, value in (("location", beside.name), ("offset", str(start)), ("length", str(length))):
                    tensor.external_data.add(key=key, value=value)
        draft.write_bytes(proto.SerializeToString())


def _copy(path: Path, offset: int, length: str | None, file: IO[bytes]) -> int:
    left = int(length) if length is not None else path.stat().st_size - offset
    total = left
    with path.open("rb") as source:
        source.seek(offset)
        while left > 0:
            block = source.read(min(left, 1 << 24))
            if not block:
                raise OSError(f"'{path}' ends too early")
            file.write(block)
            left -= len(block)
    return total


__all__ = ["Conversion", "OpsetError", "converted", "export_onnx"]
