"""Everything that the README shows runs, and prints what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fuser.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The shell commands of the README, each with what it is said to print."""
    for kind, text in BLOCKS:
        if kind not in ("sh", "console"):
            continue
        for line in text.splitlines():
            if kind == "sh" or line.startswith("$ "):
                shown: list[str] = []
                yield line.removeprefix("$ ").split("#")[0].strip(), shown
            else:
                shown.append(line.rstrip())


OURS = [(command, shown) for command, shown in commands() if command.startswith("mlx-fuser")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the README's paths are good."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steady(lines: list[str]) -> list[str]:
    """Without what differs from one machine to the next."""
    text = re.sub(r"\d\.\de-\d\d|\([^()]*:\d+\)", "#", "\n".join(line.rstrip() for line in lines))
    # which kernel is reached, and how wide its column is
    text = re.sub(r"(CPU|Metal|CUDA), (\w+ \(.*\)|\w+)", "#", text)
    return [" ".join(line.split()) for line in text.strip().splitlines() if line]


@pytest.mark.parametrize(("command", "shown"), OURS, ids=[command for command, _ in OURS])
def test_commands_run_and_print_what_they_say(folder: Path, command: str, shown: list[str]) -> None:
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    if shown:
        assert steady(result.output.splitlines()) == steady(shown)


def test_python_runs_and_prints_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "python":
            exec(compile(text, f"README.md, block {number}", "exec"), names)
            printed = capsys.readouterr().out
            following = BLOCKS[number + 1] if number + 1 < len(BLOCKS) else ("", "")
            if following[0] == "text":
                assert steady(printed.splitlines()) == steady(following[1].splitlines())


def test_the_commands_of_make_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(
        re.findall(r"make (demo|test|lint|docs|bench|format|clean)\b", README + (ROOT / "CONTRIBUTING.md").read_text())
    )
    assert {"demo", "test"} <= named <= targets


def test_the_command_block_is_not_empty() -> None:
    assert len(OURS) >= 5 and any(shown for _, shown in OURS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/models/README.md"])
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:examples|fuser|tests|kernels|frontends|benchmarks|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
