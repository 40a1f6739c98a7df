"""MODEL on the command line: an ONNX file, an exported MLX function, or a function of a Python module."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.cli_errors import Problem, described
from fuser.cli_files import Array, read
from fuser.cli_inputs import made
from fuser.export.mlxfn_import import Imported, import_mlxfn
from fuser.frontends import trees
from fuser.frontends.onnx import ValueInfo
from fuser.model import Model, load_onnx

Arguments = tuple[list[Any], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """What MODEL names."""

    name: str
    fn: Callable[..., Any]
    imported: Imported | None = None
    """What is known of an exported function."""

    def arguments(self, path: Path | None, dims: Mapping[str, int]) -> Arguments:
        """The arguments of a call: the arrays of an .npz file, or made ones."""
        if path is not None and dims:
            raise Problem("--dim is for inputs that are made: the sizes of --inputs are what they are")
        arrays = None if path is None else read(path)
        if isinstance(self.fn, Model):
            takes = self.fn.inputs
            return [], made(takes, dims) if arrays is None else _fitting(arrays, takes)
        if self.imported is not None:
            if dims:
                raise Problem("--dim is for ONNX models: an exported function is of fixed sizes")
            given = _given(self.imported, arrays)
            # its weights are loads from the file until it has run once, and MLX cannot trace those
            mx.eval(self.fn(**given))
            return [], given
        if dims:
            raise Problem("--dim is for ONNX models: a function takes its arrays from --inputs")
        return _bound(self.name, self.fn, arrays or {})


def _given(imported: Imported, arrays: Mapping[str, Array] | None) -> dict[str, mx.array]:
    """The arrays for an exported function; an .npz file has no bfloat16, so float32 is taken for it."""
    if arrays is None:
        infos = tuple(ValueInfo(name, type.dtype, type.shape) for name, type in imported.inputs.items())
        return {name: mx.array(array) for name, array in made(infos, {}).items()}
    given = {name: mx.array(array) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in given.items()}
    for types in imported.signatures:
        if shapes == {name: type.shape for name, type in types.items()}:
            small = [name for name, type in types.items() if type.dtype == mx.bfloat16]
            return given | {name: given[name].astype(mx.bfloat16) for name in small}
    return given


def program(text: str, *, fuse: bool = True) -> Program:
    """The program that `text` names; `fuse` is about ONNX models."""
    path = Path(text)
    if path.is_dir():
        raise Problem(f"{text!r} is a folder: MODEL is an .onnx or .mlxfn file, or module:function")
    if path.suffix in (".onnx", ".mlxfn") or path.exists():
        if not path.exists():
            raise Problem(f"no such file: {text!r}")
        if path.suffix == ".mlxfn":
            imported = import_mlxfn(path)
            return Program(text, imported.fn, imported)
        return Program(text, load_onnx(path, fuse=fuse))
    module, colon, attribute = text.partition(":")
    if not colon or not module or not attribute:
        raise Problem(f"no such file: {text!r}; MODEL is an .onnx or .mlxfn file, or module:function")
    return Program(text, _imported(module, attribute))


def _imported(module: str, attribute: str) -> Callable[..., Any]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise Problem(f"no module {error.name!r} in the current folder or the environment") from error
        raise Problem(f"cannot import {module!r}: {described(error)}") from error
    except (Exception, SystemExit) as error:  # the module's own code runs here
        raise Problem(f"cannot import {module!r}: {described(error)}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    for part in attribute.split("."):
        if not hasattr(found, part):
            callables = [name for name, each in vars(found).items() if callable(each) and name[0] != "_"]
            has = f"; it has {', '.join(callables)}" if 0 < len(callables) <= 12 else ""
            raise Problem(f"{module!r} has no {attribute!r}{has}")
        found = getattr(found, part)
    if not callable(found):
        raise Problem(f"{module}:{attribute} is not a function or module but of type {type(found).__name__}")
    if inspect.isclass(found):
        raise Problem(f"{module}:{attribute} is a class: name a function, or an instance")
    return found  # type: ignore[no-any-return]


def _fitting(arrays: Mapping[str, Array], takes: tuple[Any, ...]) -> dict[str, Any]:
    """The arrays for an ONNX model; an .npz file has no bfloat16, so float32 is taken for it."""
    bfloat16 = {info.name for info in takes if info.dtype == mx.bfloat16}
    return {
        name: mx.array(array).astype(mx.bfloat16) if name in bfloat16 and array.dtype == np.float32 else array
        for name, array in arrays.items()
    }


def _bound(name: str, fn: Callable[..., Any], arrays: Mapping[str, Array]) -> Arguments:
    """The arrays as arguments of `fn`, by parameter name."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        raise Problem(f"{name}: Python does not tell its parameters; wrap it in a function") from None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [each for each in parameters if each.kind not in variable]
    takes = f"it takes {', '.join(each.name for each in named)}" if named else "it takes none"
    missing = [each.name for each in named if each.default is each.empty and each.name not in arrays]
    if missing:
        raise Problem(f"{name} needs {', '.join(map(repr, missing))}: give --inputs with arrays of these names")
    unknown = sorted(set(arrays) - {each.name for each in named})
    if unknown and all(each.kind != inspect.Parameter.VAR_KEYWORD for each in parameters):
        raise Problem(f"{name} has no parameter {', '.join(map(repr, unknown))}; {takes}")
    values = {key: mx.array(array) for key, array in arrays.items()}
    positional = [each.name for each in named if each.kind == inspect.Parameter.POSITIONAL_ONLY]
    return [values.pop(each) for each in positional if each in values], values


def outputs(result: Any) -> dict[str, mx.array]:
    """The arrays of a result by name: its keys, or `output`, `output.0`, ... where it is no dictionary."""
    arrays, spec = trees.flatten(result)
    if not arrays:
        raise Problem(f"the program gave no array but a {type(result).__name__}")
    names = trees.names(spec)
    if not isinstance(result, dict):
        names = [f"output.{name}".rstrip(".") for name in names]
    return dict(zip(names, arrays, strict=True))
