"""The page of a report: what it holds, and what a real browser shows of it at three widths."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from rich.console import Console

import fuser
from fuser.api import explain_with_graphs
from fuser.page import page, write_page
from fuser.page.layers import segments, split
from fuser.page.layout import HEIGHT, place
from fuser.page.subgraph import before
from fuser.report import Report
from tests.page_browser import Browser, browser, missing
from tests.test_report import everything

LAYERS = 48
WIDTHS = (390, 820, 1440)


class Attention(nn.Module):
    """Spelled out; every twelfth layer samples its weights, which no kernel does."""

    def __init__(self, refused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.refused = refused

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (each(x).reshape(1, -1, 4, 4).swapaxes(1, 2) for each in (self.q, self.k, self.v))
        scores = q @ k.swapaxes(-1, -2) * 0.5 + mx.triu(mx.full((x.shape[1], x.shape[1]), -math.inf), k=1)
        weights = mx.softmax(mx.sort(scores) if self.refused else scores, axis=-1)
        return (weights @ v).swapaxes(1, 2).reshape(x.shape)


class Layer(nn.Module):
    def __init__(self, refused: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = Attention(refused), nn.Linear(16, 16), nn.RMSNorm(16)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.mlp(self.self_attn(self.norm(x)))


class Deep(nn.Module):
    """As deep as large models are, and as wide as a test can be."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Layer(place % 12 == 5) for place in range(LAYERS)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return mx.softmax(x, axis=-1)


@pytest.fixture(scope="module")
def small() -> tuple[Report, fuser.Graph, fuser.Graph]:
    """One region for each verdict."""
    q, k = mx.zeros((1, 8, 6, 16)), mx.zeros((1, 2, 6, 16))
    return explain_with_graphs(everything, q, k, k)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_page(folder / "small.html", *small)
    write_page(folder / "deep.html", *explain_with_graphs(Deep(), mx.zeros((1, 8, 16))))
    return folder


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_it_is_one_file(folder: Path) -> None:
    text = (folder / "small.html").read_text()
    assert text.startswith("<!doctype html>") and "{{" not in text
    addresses = set(re.findall(r"""(?:src|href)=["']([^"']+)|url\(([^)]+)|https?://[^\s"'<]+""", text))
    assert all(href.startswith(("#", "data:")) for href, _ in addresses if href)
    assert re.findall(r"https?://[^\s\"<]+", text) == ["http://www.w3.org/2000/svg"]


def test_every_region_is_there_without_a_script(small: Any, folder: Path) -> None:
    text = (folder / "small.html").read_text()
    for number, region in enumerate(small[0].regions):
        entry = text[text.index(f'id="r{number}"') :].split("</details>")[0]
        assert region.verdict in entry
        for word in re.findall(r"\w+", region.reason or "")[:6]:
            assert word.lower() in entry.lower()


def test_what_is_drawn(small: Any, folder: Path) -> None:
    report, data = small[0], data_of((folder / "small.html").read_text())
    for region, entry in zip(report.regions, data["regions"], strict=True):
        assert ("after" in entry) == (region.verdict == "fused")
        form = data["forms"][entry["before"]["form"]]
        assert len(form["boxes"]) == len(entry["before"]["names"])
        kinds = [box[5] for box in form["boxes"]]
        if region.verdict == "refused":
            assert entry["before"]["names"][kinds.index("stop")] == region.at
        if region.verdict == "fused":
            titles = [box[3] for box in form["boxes"] if box[5] in ("walked", "softmax")]
            assert [title.split()[0] for title in titles] == ["Matmul", "Multiply", "Add", "Softmax", "Matmul"]
            assert {box[6] for box in form["boxes"]} == {"", "queries", "keys", "values"}
            after = data["forms"][entry["after"]["form"]]
            (kernel,) = (box for box in after["boxes"] if box[5] == "kernel")
            assert "scale 0.25" in kernel[3] and "causal" in kernel[3]


def test_regions_of_one_form_share_a_drawing(folder: Path) -> None:
    data = data_of((folder / "deep.html").read_text())
    assert len(data["regions"]) == LAYERS + 1 and len(data["forms"]) <= 8
    assert (folder / "deep.html").stat().st_size < 400_000
    names = {tuple(entry["before"]["names"]) for entry in data["regions"]}
    assert len(names) == LAYERS + 1


def test_names_are_escaped() -> None:
    report, graph, after = explain_with_graphs(everything, *([mx.zeros((1, 1, 2, 4))] * 3))
    text = page(replace(report, program="</script><b>&", notes=("<i>",)), graph, after)
    assert "<b>&" not in text and "<i>" not in text and "&lt;/script&gt;" in text


def test_a_program_without_softmax() -> None:
    text = page(*explain_with_graphs(lambda x: x + 1, mx.zeros(3)))
    assert "no softmax" in text


def test_a_report_that_knows_no_nodes(small: Any) -> None:
    report = Report(tuple(replace(region, anchors=None) for region in small[0].regions))
    assert data_of(page(report, *small[1:]))["regions"] == [{}, {}, {}, {}]


def test_boxes_do_not_overlap(small: Any) -> None:
    report, graph, fused = small
    for region in report.regions:
        assert region.anchors is not None
        placed = place(before(graph, fused, region.anchors).picture)
        for number, (x, y, width) in enumerate(placed.boxes):
            assert x >= width / 2 and x + width / 2 <= placed.width and 0 <= y <= placed.height
            for other_x, other_y, other_width in placed.boxes[:number]:
                assert abs(y - other_y) >= HEIGHT or abs(x - other_x) >= (width + other_width) / 2


@pytest.mark.parametrize(
    ("scope", "layer"),
    [
        ("layers.3.self_attn.q_proj", ("layers.3", "self_attn")),
        ("/m/model/layers.0/self_attn/Softmax", ("m.model.layers.0", "self_attn")),
        ("m.encoder.block.1.layer.0.SelfAttention/node_7", ("m.encoder.block.1", "layer.0")),
        ("embed_tokens", ("embed_tokens", "")),
        ("MatMul_12", ("", "")),
        ("", ("", "")),
    ],
)
def test_a_scope_is_a_layer_and_a_part(scope: str, layer: tuple[str, str]) -> None:
    assert split(segments(scope)) == layer


def test_a_notebook_and_rich_show_a_table(small: Any) -> None:
    report = small[0]
    text = report._repr_html_()
    assert text.count("<table>") == 1 and len(re.findall("<tr", text)) == 1 + 4 + 2 and "stands Sin" in text
    assert "<th>kernel</th><th>memory</th><th>FLOPs</th>" in text and f"→ {escape(report.regions[2].remedy)}" in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    shown = console.export_text()
    assert "1 of 2 attentions fused" in shown and "8→2" in shown and "causal" in shown


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with browser() as session:
        yield session


READY = "return document.documentElement.dataset.ready"
SHOWN = "return [...document.querySelectorAll('.region')].filter(each => !each.hidden).map(each => each.id)"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["small", "deep"])
def test_it_fits_and_draws(chromium: Browser, folder: Path, name: str, width: int) -> None:
    chromium.open(folder / f"{name}.html", width)
    assert chromium.run(READY) == "yes"
    assert chromium.run("document.getElementById('all').click()") is None
    chromium.until("return document.querySelectorAll('figure svg .box').length > 20")
    chromium.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    figures = chromium.run("return document.querySelectorAll('figure svg .box').length")
    assert figures > 20
    # nothing but the drawings scrolls sideways
    assert chromium.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert chromium.run("return [...document.querySelectorAll('.box.stop .tag')].length") >= 1
    assert chromium.errors() == []


def test_a_deep_model_opens_with_little_to_lay_out(chromium: Browser, folder: Path) -> None:
    """What takes a browser long is elements: these few are there in a tenth of a second."""
    chromium.open(folder / "deep.html", 1440)
    assert chromium.run(READY) == "yes"
    assert chromium.run("return document.getElementsByTagName('*').length") < 80 * (LAYERS + 1)
    marks = "return [...document.querySelectorAll('.model a')].map(each => each.className.baseVal)"
    found = chromium.run(marks)
    assert (found.count("fused"), found.count("refused"), found.count("other")) == (LAYERS - 4, 4, 1)
    # drawn when opened, not before
    assert chromium.run("return document.querySelectorAll('figure').length") == 0


def test_filters_and_search(chromium: Browser, folder: Path) -> None:
    chromium.open(folder / "deep.html", 1440)
    chromium.run("document.querySelector('.filter.fused').click()")
    assert len(chromium.run(SHOWN)) == 5
    chromium.run(
        "const s = document.getElementById('search'); s.value = 'sorted layers.17'; s.dispatchEvent(new Event('input'))"
    )
    (only,) = chromium.run(SHOWN)
    assert "layers.17" in chromium.run("return document.getElementById(arguments[0]).textContent", only)
    assert chromium.run("return document.getElementById('shown').textContent") == f"1 of {LAYERS + 1} shown"
    # a mark of the picture shows its region, whatever is filtered
    chromium.run("document.querySelector('.model a.fused').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    chromium.until("return document.querySelector('.region[open] .box.softmax text')")
    assert len(chromium.run(SHOWN)) == LAYERS + 1
    assert chromium.run("return document.querySelector('.region[open] .box.softmax text').textContent") == "Softmax"


def test_by_keyboard(chromium: Browser, folder: Path) -> None:
    tab, enter, down, escape = "\ue004", "\ue007", "\ue015", "\ue00c"
    chromium.open(folder / "small.html", 1440)
    chromium.press(tab)
    assert chromium.run("return document.activeElement.className") == "skip"
    chromium.press("/", *"stands sin")
    assert chromium.run("return document.activeElement.id") == "search"
    (only,) = chromium.run(SHOWN)
    chromium.press(tab, tab, enter)
    assert chromium.run("return document.activeElement.parentElement.id") == only
    chromium.until("return document.querySelector('#' + arguments[0] + '[open] .canvas')", only)
    chromium.press(tab, down, down)
    assert chromium.run("return document.activeElement.className") == "canvas"
    assert chromium.run("return document.querySelectorAll('.box.chosen').length") == 1
    assert "float32" in chromium.run("return document.querySelector('.region[open] .info').textContent")
    chromium.press("/", escape)
    assert len(chromium.run(SHOWN)) == 4
    named = "e.ariaLabel || e.textContent || e.labels?.length"
    nameless = f"return [...document.querySelectorAll('button, input, a')].filter(e => !({named})).length"
    assert chromium.run(nameless) == 0


def test_light_and_dark(chromium: Browser, folder: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    shades = set()
    for theme in ("light", "dark"):
        chromium.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        chromium.open(folder / "small.html", 820)
        chromium.run("localStorage.clear(); window.old = true; location.reload()")
        chromium.until("return !window.old && document.readyState === 'complete'")
        own = chromium.run(paper)
        chromium.run("document.getElementById('theme').click()")
        other = chromium.run(paper)
        assert own != other
        shades |= {(own, other)}
    (light, dark), (_, _) = sorted(shades, reverse=True)
    assert shades == {(light, dark), (dark, light)}
