"""The documentation: every Python block runs and prints what it says, every call is listed, and the site builds."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fuser
from tests.conftest import ROOT, Run
from tests.test_readme import steady

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))])
def test_python_runs_and_prints_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    names: dict[str, Any] = {"__name__": "docs"}
    for number, (kind, text) in enumerate(found):
        if kind != "python":
            continue
        exec(compile(text, f"{page}, block {number}", "exec"), names)
        printed = capsys.readouterr().out
        following = found[number + 1] if number + 1 < len(found) else ("", "")
        if following[0] == "text":
            assert steady(printed.splitlines()) == steady(following[1].splitlines())


def commands(page: str) -> list[str]:
    """The lines of a page that call `mlx-fuser`."""
    lines = [line.removeprefix("$ ") for kind, text in blocks(page) if kind != "text" for line in text.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("mlx-fuser ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_run(page: str, run: Run, tmp_path: Path, llama: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copy(llama.parent / "inputs.npz", tmp_path / "in.npz")
    for line in commands(page):
        given = {"MODEL": str(llama), "OUT": "out.py", "seq=1024": "seq=64"}
        words = [given.get(word, word) for word in shlex.split(line)[1:]]
        once = ["--repeat", "1"] if words[0] == "bench" else []
        result = run(*words, *once)
        assert result.exit_code == 0, result.output


def test_every_page_is_in_the_menu() -> None:
    named = set(re.findall(r"- ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert named <= set(PAGES)
    # what is linked from another page only
    assert {page for page in set(PAGES) - named if not page.startswith(("kernels", "convert"))} == set()


def test_the_reference_lists_what_is_public() -> None:
    listed = set(re.findall(r"^::: fuser\.(\w+)$", (DOCS / "api.md").read_text(), re.M))
    assert listed == set(fuser.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_folder_of_one_machine(page: str) -> None:
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", (DOCS / page).read_text())


def test_the_site_builds(tmp_path: Path) -> None:
    missing = [name for name in ("material", "mkdocstrings") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip("the site is not built: pip install '.[docs]' brings mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Report" in (tmp_path / "site" / "api" / "index.html").read_text()
