"""Weights inside a model's file: read where they are, whatever way they are stored; damaged files as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from fuser.errors import FuserError, InvalidModelError
from fuser.frontends import onnx_file
from fuser.frontends.onnx import load
from fuser.frontends.onnx_file import read
from tests.onnx_build import info, model
from tests.onnx_mutants import mutant, sources

F = np.float32
COUNT = 4096


def values(kind: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(kind)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return random.integers(0, 2, COUNT).astype(dtype) if kind == TensorProto.BOOL else (
        random.standard_normal(COUNT) * 50
    ).astype(dtype)  # fmt: skip


def weights_model(kind: int, raw: bool, count: int = 2) -> ModelProto:
    """The first of some weights, as float32."""
    nodes = [helper.make_node("Cast", ["w0"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "f"], ["y"])]
    built = model(nodes, [info("x", F, [COUNT])], [info("y", F, [COUNT])])
    for place in range(count):
        array = values(kind) if place == 0 else values(kind)[::-1].copy()
        tensor = helper.make_tensor(f"w{place}", kind, array.shape, array.tobytes() if raw else array, raw=raw)
        built.graph.initializer.append(tensor)
    return built


def saved(folder: Path, content: ModelProto | bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def answer(path: Path, **options: Any) -> np.ndarray[Any, Any]:
    return np.array(load(path, **options)(x=mx.zeros(COUNT))["y"])


TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "INT64", "UINT8", "BOOL", "UINT64", "FLOAT8E4M3FN")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_weights_of_every_type_are_read_from_the_file(kind: str, raw: bool, tmp_path: Path) -> None:
    number = TensorProto.DataType.Value(kind)
    path = saved(tmp_path, weights_model(number, raw))
    contents = read(path, 64)
    assert len(contents.places) == 2
    assert len(contents.model.SerializeToString()) < 1000
    np.testing.assert_array_equal(answer(path, large=64), values(number).astype(F))


def test_what_is_small_or_elsewhere_stays_as_it_is(tmp_path: Path) -> None:
    built = weights_model(TensorProto.FLOAT, True)
    path = saved(tmp_path, built)
    assert not read(path).places
    assert read(path).model == built
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert not read(path, 8).places
    np.testing.assert_array_equal(answer(path, large=8), values(TensorProto.FLOAT))


def test_a_model_behind_a_link_is_its_own_file(tmp_path: Path) -> None:
    path = saved(tmp_path, weights_model(TensorProto.FLOAT, True))
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "model.onnx"
    link.symlink_to(path)
    np.testing.assert_array_equal(answer(link, large=64), values(TensorProto.FLOAT))


def test_a_loaded_model_does_not_look_at_its_file_again(tmp_path: Path) -> None:
    path = saved(tmp_path, weights_model(TensorProto.INT64, True))
    program = load(path, large=8)
    path.write_bytes(b"")
    np.testing.assert_array_equal(np.array(program(x=mx.zeros(COUNT))["y"]), values(TensorProto.INT64).astype(F))


def field(number: int, content: bytes) -> bytes:
    length, parts = len(content), []
    while length > 0x7F:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *parts, length]) + content


def test_messages_in_parts_are_merged_as_protobuf_does(tmp_path: Path) -> None:
    built = weights_model(TensorProto.FLOAT, True)
    graph = built.graph
    parts = [onnx.GraphProto(), onnx.GraphProto()]
    parts[0].initializer.append(graph.initializer[0])
    parts[1].CopyFrom(graph)
    del parts[1].initializer[0]
    twice = field(9, values(TensorProto.FLOAT)[::-1].tobytes())  # the last values of a tensor count
    first = onnx.TensorProto(name="w0", dims=[COUNT], data_type=TensorProto.FLOAT).SerializeToString()
    doubled = field(5, first + twice + field(9, values(TensorProto.FLOAT).tobytes()))
    built.ClearField("graph")
    head = built.SerializeToString()
    for content in (
        b"".join(field(7, part.SerializeToString()) for part in parts),
        field(7, doubled) + field(7, parts[1].SerializeToString()),
    ):
        path = saved(tmp_path, head[:2] + content + head[2:])
        assert len(read(path, 64).places) == 2
        np.testing.assert_array_equal(answer(path, large=64), values(TensorProto.FLOAT))


def test_lengths_beyond_what_is_around_them_are_protobufs_error(tmp_path: Path) -> None:
    whole = weights_model(TensorProto.FLOAT, True).SerializeToString()
    tensor = field(5, weights_model(TensorProto.FLOAT, True).graph.initializer[0].SerializeToString())
    huge = bytes([7 << 3 | 2]) + b"\xff" * 9 + b"\x01"
    contents = [
        whole[:-1],
        whole[: len(whole) // 2],
        huge + whole,
        field(7, tensor[:-1]),
        whole + b"\x0b",
        b"\0" + whole,
    ]
    contents += [field(7, tensor[:3] + b"\x7f" + tensor[4:]), whole + b"\xff" * 11]
    for content in contents:
        path = saved(tmp_path, content)
        with pytest.raises(InvalidModelError) as ours:
            load(path, large=64)
        with pytest.raises(InvalidModelError) as protobufs:
            load(path, large=1 << 40)
        assert str(ours.value) == str(protobufs.value)


def test_a_file_of_very_many_fields_is_left_to_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = weights_model(TensorProto.FLOAT, True)
    path = saved(tmp_path, built)
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 5)
    assert not read(path, 64).places
    assert read(path, 64).model == built


def test_a_file_cannot_name_places_in_itself(tmp_path: Path) -> None:
    built = weights_model(TensorProto.FLOAT, True, 1)
    tensor = built.graph.initializer.add(name="v", data_type=TensorProto.FLOAT, dims=[10])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="\0" + "7")
    with pytest.raises(InvalidModelError, match="inside the model's folder"):
        load(saved(tmp_path, built), large=64)


@pytest.mark.parametrize("kind", ["bytes", "bits", "cut", "pasted", "sizes", "types", "external", "duplicated"])
def test_damaged_files_say_the_same_either_way(kind: str, tmp_path: Path) -> None:
    models = sources(())
    for number in range(12):
        _, content, inputs = mutant(models, kind, 5, number)
        path = saved(tmp_path, content)
        said: list[Any] = []
        for large in (4, 1 << 40):
            try:
                program = load(path, large=large)
                outputs = program(**program.prepare(inputs))
                said.append({name: np.array(array).tobytes() for name, array in outputs.items()})
            except FuserError:  # of weights that the checker sees, it says another
                said.append(None)
        assert said[0] == said[1]


def test_two_large_weights_of_one_name_are_an_error(tmp_path: Path) -> None:
    built = weights_model(TensorProto.FLOAT, True, 1)
    built.graph.initializer.append(helper.make_tensor("w0", TensorProto.FLOAT, [COUNT], values(1).tobytes(), raw=True))
    built.graph.input.append(info("w0", F, [COUNT]))
    for large in (64, 1 << 40):
        with pytest.raises(InvalidModelError, match="not unique"):
            load(saved(tmp_path, built), large=large)
