"""The notebook: it runs from its first cell to its last, and shows what is stored in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "report.ipynb"
# what follows differs from machine to machine: the kernel that is reached, and what it saves
COLUMNS = 8


def shown(cell: Any) -> list[list[str]]:
    """What a cell shows, line by line: of a report, the rows of its table."""
    lines = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/html" not in data:
            lines.append([data.get("text/plain", output.get("text", ""))])
            continue
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", data["text/html"]):
            lines.append(
                [re.sub(r"<[^>]*>", "", each) for each in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)][:COLUMNS]
            )
    return lines


@pytest.fixture(scope="module")
def executed() -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()


def test_the_notebook_shows_what_is_stored_in_it(executed: Any) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for number, (cell, now) in enumerate(zip(stored.cells, executed.cells, strict=True)):
        if cell.cell_type == "code":
            assert shown(now) == shown(cell), f"cell {number}: jupyter execute --inplace {NOTEBOOK.relative_to(ROOT)}"


def test_reports_are_tables(executed: Any) -> None:
    tables = [shown(cell) for cell in executed.cells if "<table>" in str(cell.get("outputs", ""))]
    fused, refused, inference, model = tables
    assert fused[1][0] == "✓" and fused[1][1].startswith("Attention")
    assert fused[1][2:6] == ["8→2", "128×128", "64", "causal"]
    assert refused[1][0] == "✕" and "dropout" in refused[2][1]
    assert inference == fused
    assert [row[0] for row in model[1:]] == ["✓"] * 6


def test_the_file_holds_no_folder_of_one_machine() -> None:
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", Path(NOTEBOOK).read_text())
