"""Tensors of an ONNX file: stored inside it or in files beside it, read once and never from anywhere else."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import mlx.core as mx
import numpy as np
from onnx import TensorProto, numpy_helper

from fuser.errors import InvalidModelError, UnsupportedOperatorError
from fuser.frontends.onnx_file import Contents
from fuser.frontends.onnx_types import CARRIERS, NUMPY_TYPES, Host, Narrow, to_mlx, type_name


class Weights:
    """Reads the tensors of one model; `folder` is where external data may lie (`None`: nowhere).

    `contents` is the model's own file, where some are at known places.
    """

    def __init__(self, folder: Path | None, contents: Contents | None = None) -> None:
        self._folder = folder
        self._places = {} if contents is None else contents.places
        self._file = None if contents is None else contents.file
        self._maps: dict[str, mmap.mmap] = {} if self._file is None else {"": self._file}

    def lazy(self, host: Host) -> mx.array | Narrow:
        """A weight as an MLX array, with values of its own: what was read of the files need not stay in memory."""
        array = to_mlx(host)
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
        return array

    @staticmethod
    def held(host: Host) -> Host:
        """A weight that stays on the host; not as a view of a file, which may be written again or cut."""
        return host if host.flags.owndata else host.copy()

    def read(self, tensor: TensorProto) -> Host:
        """The values of a tensor as a NumPy array; nothing is allocated before the sizes are checked."""
        name = tensor.name or "constant"
        if tensor.data_type == TensorProto.STRING:
            return np.array([item.decode("utf-8", "replace") for item in tensor.string_data], dtype=object).reshape(
                tuple(tensor.dims)
            )
        if tensor.data_type not in NUMPY_TYPES:
            raise UnsupportedOperatorError(
                f"tensor {name!r}: MLX has no arrays of ONNX type {type_name(tensor.data_type)}"
            )
        shape = tuple(tensor.dims)
        if any(dim < 0 for dim in shape):
            raise InvalidModelError(f"tensor {name!r} has a negative dimension: {list(shape)}")
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor, name, shape)
        try:
            if not tensor.HasField("raw_data"):
                return numpy_helper.to_array(tensor)
            stored = tensor.raw_data  # a copy: one at a time
            self._check_size(name, tensor.data_type, shape, len(stored))
            return self._decoded(tensor.data_type, shape, stored)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise InvalidModelError(f"tensor {name!r}: {_line(error)}") from None

    @staticmethod
    def _check_size(name: str, data_type: int, shape: tuple[int, ...], stored: int) -> None:
        expected = _bytes(data_type, shape)
        if expected != stored:
            raise InvalidModelError(
                f"tensor {name!r}: {type_name(data_type)} {list(shape)} takes {expected} bytes, but {stored} are stored"
            )

    def _external(self, tensor: TensorProto, name: str, shape: tuple[int, ...]) -> Host:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = self._places.get(entries.get("location", ""))
        if place is not None and self._file is not None:
            if not place.values:
                return self.read(TensorProto.FromString(self._file[place.start : place.end]))
            self._check_size(name, tensor.data_type, shape, place.end - place.start)
            return self._decoded(tensor.data_type, shape, memoryview(self._file)[place.start : place.end])
        path = self._inside(name, entries.get("location", ""))
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(_bytes(tensor.data_type, shape))))
            size = path.stat().st_size
        except (ValueError, OSError) as error:
            raise InvalidModelError(f"tensor {name!r}: external data: {_line(error)}") from None
        if offset < 0 or length < 0 or offset + length > size:
            raise InvalidModelError(
                f"tensor {name!r}: bytes {offset} to {offset + length} lie outside {path.name!r} of {size} bytes"
            )
        self._check_size(name, tensor.data_type, shape, length)
        if length == 0:
            return np.empty(shape, dtype=NUMPY_TYPES[tensor.data_type])
        key = str(path)
        if key not in self._maps:
            with path.open("rb") as file:
                self._maps[key] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._decoded(tensor.data_type, shape, memoryview(self._maps[key])[offset : offset + length])

    @staticmethod
    def _decoded(data_type: int, shape: tuple[int, ...], stored: bytes | memoryview) -> Host:
        """The array in stored bytes, seen and not copied."""
        if data_type in CARRIERS:
            packed = TensorProto(data_type=data_type, dims=shape, raw_data=bytes(stored))
            return numpy_helper.to_array(packed)
        dtype = NUMPY_TYPES[data_type]
        return np.frombuffer(stored, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)

    def _inside(self, name: str, location: str) -> Path:
        """The file that `location` names, which must be in the model's folder after all links are followed."""
        where = f"tensor {name!r}: external data {location!r}"
        if self._folder is None:
            raise InvalidModelError(f"{where}: a model given as an object has no folder; load it from its file")
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\0" in location:
            raise InvalidModelError(f"{where} is not a file name inside the model's folder")
        folder = self._folder.resolve()
        try:
            path = (folder / location).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise InvalidModelError(f"{where}: {_line(error)}") from None
        if not path.is_relative_to(folder) or not path.is_file():
            raise InvalidModelError(f"{where} is not a file inside the model's folder")
        return path


def _bytes(data_type: int, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    bits = _BITS.get(data_type)
    return -(-count * bits // 8) if bits else count * NUMPY_TYPES[data_type].itemsize


_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(TensorProto, name)
}


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
