"""Files on the command line: arrays by name in .npz files, and whole files or none as output."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.cli_errors import Problem, described
from fuser.export import files

Array = NDArray[Any] | mx.array


def read(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name."""
    try:
        with path.open("rb") as stream:  # opened here, as NumPy leaves it open when it is no archive
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise Problem(f"'{path}' holds one array without a name: save numpy.savez(path, name=array)")
            with file:
                return {name: _numbers(path, name, file[name]) for name in file.files}
    except FileNotFoundError:
        raise Problem(f"no such file: '{path}'") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise Problem(f"cannot read '{path}': {error.strerror}") from error
        raise Problem(f"'{path}' is no .npz file of plain arrays, or it is truncated: {described(error)}") from error


def _numbers(path: Path, name: str, array: NDArray[Any]) -> Array:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how NumPy and MLX save bfloat16
        return mx.array(np.ascontiguousarray(array).view(np.uint16)).view(mx.bfloat16)
    if array.dtype.kind not in "biufc":
        raise Problem(f"array {name!r} of '{path}' is {array.dtype}: programs take numbers only")
    return array


def save(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """Write an .npz file; bfloat16, which NumPy does not have, as float32."""

    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            plain = array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(plain), allow_pickle=False)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file under another name beside `path`, renamed at the end: there is never half a file at `path`."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe stays what it is
        try:
            with path.open("wb") as file:
                yield file
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Problem(f"cannot write '{path}': {error.strerror or error}") from error
        return
    with files.replacing(path, force=True) as (draft,), draft.open("wb") as file:
        yield file


def check_writable(path: Path) -> None:
    """Refuse at once what would be refused when a long run is over."""
    folder = path.resolve().parent
    reason = None
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder '{path.parent}'"
    elif path.exists():
        # root may write anything, but a file that is marked read-only is not to be replaced by root either
        allowed = os.access(path, os.W_OK) and path.stat().st_mode & 0o222
        reason = None if allowed else "the file is there and is read-only"
    elif not os.access(folder, os.W_OK):
        reason = f"folder '{path.parent}' is read-only"
    if reason is not None:
        raise Problem(f"cannot write '{path}': {reason}")
