"""What tests share: the bundled real exports, and a folder to run in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from fuser.cli import main

ROOT = Path(__file__).resolve().parent.parent
Arrays = dict[str, NDArray[Any]]


class Export(NamedTuple):
    """A real export with what ONNX Runtime gave for it."""

    path: Path
    truth: int
    """The attentions that it holds."""
    sets: tuple[tuple[Arrays, Arrays], ...]
    """Inputs and outputs."""


def read_export(folder: Path) -> Export:
    sets: dict[str, tuple[Arrays, Arrays]] = {}
    with np.load(folder / "io.npz") as file:
        for key in file.files:
            number, way, name = key.split("/", 2)
            sets.setdefault(number, ({}, {}))[way == "out"][name] = file[key]
    truth = json.loads((folder / "meta.json").read_text())["truth"]
    return Export(folder / "model.onnx", truth, tuple(sets.values()))


@pytest.fixture
def models() -> Path:
    """The folder of the bundled exports."""
    return ROOT / "examples" / "models"


@pytest.fixture
def llama(models: Path) -> Path:
    return models / "llama__sdpa__dyn18" / "model.onnx"


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `mlx-fuser` in an empty folder; no exception but `SystemExit` may come out of it."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(each) for each in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
