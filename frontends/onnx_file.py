"""An ONNX file read without its large weights, which stay where they are in it until they are wanted.

protobuf copies what it parses, so weights would be in memory twice. But a message is a sequence of fields: here only
their borders are found, in the model, its graph and the graph's large weights. In place of such a weight stands one
that says where its values are, as if they were in another file; all that is left is parsed by protobuf.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

LARGE = 1 << 18
# protobuf itself reads files of more fields: a walk in Python takes a microsecond for each
_MOST_FIELDS = 1 << 20
_MOST_TENSOR_FIELDS = 100
# numbers of fields in onnx.proto, and protobuf's types of what follows a number
_GRAPH, _INITIALIZER, _RAW = 7, 5, 9
_VALUES = (4, 5, 6, 7, _RAW, 10, 11)
_LAID_OUT_AS_RAW = {4: TensorProto.FLOAT, 10: TensorProto.DOUBLE}
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class Place(NamedTuple):
    """Where in the file a weight is: its values as little-endian bytes, or else a whole `TensorProto`."""

    start: int
    end: int
    values: bool


class Contents(NamedTuple):
    """A model; weights that are still in its file claim to be external, at a location that `places` has."""

    model: onnx.ModelProto
    places: dict[str, Place]
    file: mmap.mmap | None


def read(path: Path, large: int = LARGE) -> Contents:
    """The model in a file, without its weights of `large` bytes or more.

    A file that is not a sequence of fields is left to protobuf, with protobuf's errors.
    """
    # a walk through a small file would cost more than it spares
    if path.is_file() and path.stat().st_size >= max(64 * large, 1):
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        slimmer = _Slimmer(data, large)
        try:
            return Contents(onnx.ModelProto.FromString(slimmer.model()), slimmer.places, data)
        except (_NoFields, DecodeError):
            data.close()
    return Contents(onnx.load(path, format="protobuf", load_external_data=False), {}, None)


class _NoFields(Exception):
    pass


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    content: int
    end: int


class _Slimmer:
    def __init__(self, data: mmap.mmap, large: int) -> None:
        self.places: dict[str, Place] = {}
        self._data = data
        self._large = large
        self._walked = 0

    def model(self) -> bytes:
        return self._replaced(0, len(self._data), _GRAPH, self._graph)

    def _graph(self, graph: _Field) -> bytes:
        return self._replaced(graph.content, graph.end, _INITIALIZER, self._weight)

    def _replaced(self, start: int, end: int, number: int, replace: Callable[[_Field], bytes | None]) -> bytes:
        """The bytes from `start` to `end`, with large fields of this number replaced where there is something."""
        parts, kept = [], start
        for field in self._fields(start, end):
            if field.number != number or field.kind != _BYTES or field.end - field.content < self._large:
                continue
            content = replace(field)
            if content is not None:
                parts += [self._data[kept : field.start], _varint(number << 3 | _BYTES), _varint(len(content)), content]
                kept = field.end
        return b"".join([*parts, self._data[kept:end]])

    def _weight(self, field: _Field) -> bytes | None:
        """A weight without its values; `None` where it is to stay as it is."""
        values, parts, kept = [], [], field.content
        for count, inner in enumerate(self._fields(field.content, field.end)):
            if count == _MOST_TENSOR_FIELDS:
                return None
            if inner.number in _VALUES:
                values.append(inner)
                parts.append(self._data[kept : inner.start])
                kept = inner.end
        rest = b"".join([*parts, self._data[kept : field.end]])
        tensor = TensorProto.FromString(rest)
        external = tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
        if external or tensor.data_type == TensorProto.STRING:
            return None
        place = Place(field.content, field.end, False)
        if len(values) == 1 and values[0].kind == _BYTES:
            only = values[0]
            if only.number == _RAW or _LAID_OUT_AS_RAW.get(only.number) == tensor.data_type:
                place = Place(only.content, only.end, True)
        location = f"\0{len(self.places)}"  # which no file is called
        self.places[location] = place
        stand_in = TensorProto(data_location=TensorProto.EXTERNAL)
        stand_in.external_data.add(key="location", value=location)
        return b"".join([rest, stand_in.SerializeToString()])

    def _fields(self, place: int, end: int) -> Iterator[_Field]:
        """The fields from `place` on, which must fill the bytes to `end`."""
        while place < end:
            self._walked += 1
            start = place
            tag, content = self._varint(place)
            number, kind = tag >> 3, tag & 7
            if kind == _BYTES:
                length, content = self._varint(content)
                place = content + length
            elif kind == _VARINT:
                place = self._varint(content)[1]
            elif kind in (_EIGHT, _FOUR):
                place = content + (8 if kind == _EIGHT else 4)
            else:
                raise _NoFields
            if place > end or number == 0 or self._walked > _MOST_FIELDS:
                raise _NoFields
            yield _Field(number, kind, start, content, place)

    def _varint(self, place: int) -> tuple[int, int]:
        """A number of 7 bits a byte, the low ones first, and the place behind it."""
        data, number = self._data, 0
        for shift in range(0, 70, 7):
            if place >= len(data):
                raise _NoFields
            byte = data[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, place
        raise _NoFields


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
