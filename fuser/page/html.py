"""The page's own HTML: all that can be read without a script."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from fuser.page.layers import Layer
from fuser.report import Region, Report, Verdict
from fuser.report_text import (
    MARKS,
    amount,
    depth_of,
    dtype_of,
    heads_of,
    is_stepwise,
    lengths_of,
    plural,
    scale_of,
    shape_of,
)

KINDS: dict[Verdict, str] = {
    "fused": "fused",
    "already fused": "already",
    "refused": "refused",
    "not attention": "other",
}
# of the picture of the model: all, the names, the mark of a region
WIDTH, LABEL, MARK = 340, 112, 24


def sentence(text: str) -> str:
    """A reason, with the names of nodes set apart."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def breakable(name: str) -> str:
    """A name that may be broken behind its dots, slashes and underscores."""
    return re.sub(r"([/._])", r"\1<wbr>", escape(name))


def filters(report: Report) -> str:
    """The counts, each a button that shows and hides its regions."""
    return "".join(
        f'<button type="button" class="filter {kind}" data-kind="{kind}" aria-pressed="true"><span class="mark" '
        f'aria-hidden="true">{MARKS[verdict]}</span> {_count(verdict, report.counts[verdict])}</button>'
        for verdict, kind in KINDS.items()
        if report.counts[verdict]
    )


def _count(verdict: Verdict, count: int) -> str:
    return plural("other softmax", count) if verdict == "not attention" else f"{count} {verdict}"


def region(place: int, region: Region) -> str:
    """A region as an entry that opens; its drawings come when it does."""
    kind = KINDS[region.verdict]
    where = " by a fused kernel" if is_stepwise(region) else ""
    facts = [
        *((name, type and shape_of(type)) for name, type in (("q", region.q), ("k", region.k), ("v", region.v))),
        ("heads", heads_of(region)),
        ("mask", region.mask),
        ("scale", scale_of(region)),
        ("kernel", region.kernel),
        (f"not written{where}", amount(region.bytes_saved, "B") if region.bytes_saved else None),
        (f"not computed{where}", amount(region.flops_saved, "FLOP") if region.flops_saved else None),
        ("line", region.source),
        ("stopped at" if region.verdict in ("refused", "not attention") else "softmax", region.at),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts if value)
    text = sentence(region.reason or "")
    reason = f'<p class="reason">{text[:1].upper()}{text[1:]}</p>' if text else ""
    if region.remedy:
        reason += f'<p class="remedy">→ {sentence(region.remedy)}</p>'
    return (
        f'<details class="region {kind}" id="r{place}" data-kind="{kind}">'
        f'<summary><span class="mark" aria-hidden="true">{MARKS[region.verdict]}</span>'
        f'<span class="name">{breakable(region.name)}</span><span class="verdict">{region.verdict}</span>'
        f'<span class="brief">{brief(region)}</span></summary>'
        f'{reason}<dl>{rows}</dl><div class="drawings" data-region="{place}"></div></details>'
    )


def brief(region: Region) -> str:
    """A line about a region: its numbers, or its reason."""
    if region.q is None or region.verdict in ("refused", "not attention"):
        return sentence(region.reason or "")
    parts = [f"{heads_of(region)} heads", lengths_of(region), f"depth {depth_of(region)}"]
    parts += [f"mask {region.mask}", f"scale {scale_of(region)}", dtype_of(region.q)]
    if region.bytes_saved and not is_stepwise(region):
        parts.append(f"−{amount(region.bytes_saved, 'B')}")
    return " · ".join(map(escape, parts))


def model(layers: list[Layer], report: Report) -> str:
    """The model as one SVG: a row for each layer, its parts as wide as they have nodes, regions as marks."""
    height = 26 if len(layers) <= 24 else 20
    most = max((layer.nodes for layer in layers), default=1)
    rows = "".join(
        f'<g transform="translate(0 {8 + place * height})">{"".join(_row(layer, report, height, most))}</g>'
        for place, layer in enumerate(layers)
    )
    total = 16 + len(layers) * height
    spine = f'<path class="spine" d="M{LABEL - 6} 8V{total - 8}"/>' if len(layers) > 1 else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {total}" role="group" aria-label="The model: {plural("layer", len(layers))}">'
        f"{spine}{rows}</svg>"
    )


def _row(layer: Layer, report: Report, height: int, most: int) -> Iterable[str]:
    inner = height - 4
    yield f"<title>{escape(layer.name or 'program')}: {plural('node', layer.nodes)}</title>"
    name = escape(_short(layer.name, 16))
    yield f'<text class="layer" x="{LABEL - 12}" y="{inner / 2 + 4}" text-anchor="end">{name}</text>'
    room = WIDTH - LABEL - 4
    marks = sum(len(part.regions) for part in layer.parts)
    mark = min(MARK, room * 0.8 / marks) if marks else 0
    # the widest layer fills its row
    free = (room - marks * mark) * (0.25 + 0.75 * (layer.nodes / most) ** 0.5)
    weights = [part.nodes**0.5 for part in layer.parts]
    x = float(LABEL)
    for part, weight in zip(layer.parts, weights, strict=True):
        width = max(2.0, free * weight / sum(weights))
        name = escape(f"{layer.name}.{part.name}".strip(".") or "program")
        full = width + mark * len(part.regions)
        yield f"<g><title>{name}: {plural('node', part.nodes)}</title>"
        yield f'<rect class="part" x="{x:.1f}" y="0" width="{max(1, full - 1.5):.1f}" height="{inner}" rx="3"/>'
        text = _short(part.name, int((width - 5) / 5.7))
        if len(text) > 2:
            yield f'<text class="part" x="{x + 4:.1f}" y="{inner / 2 + 3}">{escape(text)}</text>'
        yield "</g>"
        x += width
        for number in part.regions:
            yield _mark(number, report.regions[number], x, mark, inner)
            x += mark


def _mark(number: int, region: Region, x: float, width: float, height: int) -> str:
    kind, sign = KINDS[region.verdict], MARKS[region.verdict]
    return (
        f'<a href="#r{number}" class="{kind}" aria-label="{escape(region.name)}: {region.verdict}">'
        f"<title>{escape(region.name)}: {region.verdict}</title>"
        f'<rect x="{x:.1f}" y="0" width="{max(2, width - 2.5):.1f}" height="{height}" rx="3"/>'
        f'<text x="{x + width / 2 - 1.2:.1f}" y="{height / 2 + 4}" text-anchor="middle">'
        f"{sign if width > 9 else ''}</text></a>"
    )


def _short(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    last = text.rpartition(".")[2]
    return "" if room < 3 else f"…{last}" if len(last) < min(room, len(text)) else f"{text[: room - 1]}…"
