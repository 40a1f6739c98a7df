"""The wheel and the sdist: what is in them, and that they work where nothing but their dependencies is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import fuser
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="nothing is built: pip install '.[dev]' brings hatchling"
)


def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [*map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as an installer does from an sdist."""
    folder = tmp_path_factory.mktemp("built")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / stem(sdist))
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def stem(sdist: Path) -> str:
    return sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, built[1], cwd=folder)
    site = next(folder.rglob("site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def sources() -> Iterator[str]:
    """Every file of the package, the linked folders too."""
    for folder, _, names in os.walk(ROOT / "fuser", followlinks=True):
        for name in names:
            if "__pycache__" not in folder:
                yield (Path(folder) / name).relative_to(ROOT).as_posix()


def test_everything_of_the_package_is_in_the_wheel(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("fuser/")}
    assert held == set(sources())
    for name in ("py.typed", "report.schema.json", "page/page.js", "kernels/sdpa.py", "frontends/onnx_ops/math.py"):
        assert f"fuser/{name}" in held


def test_the_wheel_holds_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"fuser", f"mlx_fuser-{fuser.__version__}.dist-info"}


def test_the_sdist_holds_what_its_tests_and_readme_name(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)  # no link that leads out of it
    held = {member.name.partition("/")[2] for member in members}
    assert set(sources()) <= held
    for name in ("LICENSE", "README.md", "pyproject.toml", "tests/conftest.py", "examples/demo.py"):
        assert name in held
    assert not any("__pycache__" in name for name in held)


def test_the_version_is_said_in_one_place(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Version"] == fuser.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert f'"{fuser.__version__}"' in (ROOT / "fuser" / "version.py").read_text()
    assert f'version = "{fuser.__version__}"' not in (ROOT / "pyproject.toml").read_text()


def test_what_is_imported_is_asked_for(built: tuple[Path, Path]) -> None:
    """Nothing may come by way of another dependency only: older ones may not bring it."""
    with zipfile.ZipFile(built[1]) as wheel:
        trees = [ast.parse(wheel.read(name)) for name in wheel.namelist() if name.endswith(".py")]
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"fuser"}
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    asked = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in required}
    assert {"protobuf" if name == "google" else name for name in imported} == asked


def test_the_command_works(installed: Path, tmp_path: Path, llama: Path) -> None:
    assert call(installed / "mlx-fuser", "--version", cwd=tmp_path).stdout == f"mlx-fuser {fuser.__version__}\n"
    report = call(installed / "mlx-fuser", "report", llama, "--json", "-", "--html", "page.html", cwd=tmp_path)
    assert json.loads(report.stdout)["counts"]["fused"] == 2
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_it_runs_as_a_module(installed: Path, tmp_path: Path) -> None:
    assert "mlx-fuser report" in call(installed / "python", "-m", "fuser", "--help", cwd=tmp_path).stdout


def test_it_is_the_wheel_that_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import fuser, importlib.metadata as m; print(fuser.__file__, fuser.__version__, m.version('mlx-fuser'))"
    path, *versions = call(installed / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(path).is_relative_to(installed.parent)
    assert versions == [fuser.__version__] * 2
