"""Imports go down only, from floor to floor; and what else keeps the house small."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# of a package, or of a module and its parts
FLOORS = {
    "fuser.errors": 0,
    "fuser.version": 0,
    "fuser.ir": 0,
    "fuser.reading": 1,
    "fuser.masks": 2,
    "fuser.regions": 3,
    "fuser.roles": 3,
    "fuser.joined": 3,
    "fuser.patterns": 3,
    "fuser.kernels": 4,
    "fuser.report": 4,
    "fuser.page": 4,
    "fuser.frontends": 5,
    "fuser.rewrite": 5,
    "fuser.fusion": 5,
    "fuser.execute": 5,
    "fuser.segments": 5,
    "fuser.checkpoints": 5,
    "fuser.layout": 5,
    "fuser.export": 6,
    "fuser.optimized": 6,
    "fuser.verification": 6,
    "fuser.model": 6,
    "fuser.api": 6,
    "fuser.cli": 7,
    "fuser.__main__": 7,
}
FOLDERS = {"fuser": "fuser", "kernels": "fuser.kernels", "frontends": "fuser.frontends"}
LONGEST = 400


@cache
def files() -> dict[str, Path]:
    """The package's files by the name under which they are imported."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT / folder).with_suffix("")
            if folder == "fuser" and relative.parts[0] in ("kernels", "frontends"):
                continue  # links to the folders at the top
            found[".".join([package, *(part for part in relative.parts if part != "__init__")])] = path
    return found


@cache
def packages() -> set[str]:
    return {name.rpartition(".")[0] for name in files()}


def floor(module: str) -> int | None:
    """The floor of a module: its own, that of the package it is in, or of the module that it is a part of."""
    parts = module.split(".")
    while len(parts) > 1:
        # `cli_report` is a part of `cli`
        for name in (".".join(parts), ".".join([*parts[:-1], parts[-1].split("_")[0]])):
            if name in FLOORS:
                return FLOORS[name]
        parts.pop()
    return None


@cache
def imports(module: str) -> tuple[tuple[int, str], ...]:
    """The line and full name of everything that a module imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(files()[module].read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.lineno, full if full in files() or full in packages() else str(node.module)))
    return tuple(found)


# `fuser` itself is the front door, which shows what the floors hold
@pytest.mark.parametrize("module", sorted(set(files()) - {"fuser"}))
def test_imports_go_down(module: str) -> None:
    own = floor(module)
    assert own is not None, f"{module} has no floor: give it one in FLOORS"
    for line, name in imports(module):
        if name.split(".")[0] == "fuser":
            below = floor(name)
            assert below is not None, f"{module}:{line}: import the part, not the front door"
            assert below <= own, f"{module}:{line}: floor {own} imports {name} of floor {below}"


def test_networkx_has_one_user() -> None:
    users = {module for module in files() for _, name in imports(module) if name.split(".")[0] == "networkx"}
    assert users == {"fuser.ir.graph"}


def test_no_file_is_long() -> None:
    folders = (*FOLDERS, "tests", "examples", "benchmarks")
    paths = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_the_links_are_relative() -> None:
    for name in ("kernels", "frontends"):
        link = ROOT / "fuser" / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"
