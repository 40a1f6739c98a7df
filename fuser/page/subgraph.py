"""What of a graph is drawn for a region: its nodes, what they read, and who reads what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from fuser.page.words import KERNELS, detail, number, title
from fuser.report import Anchors
from fuser.report_text import shape_of

# more boxes than this are no picture any more
MOST = 56
PRODUCTS = frozenset({"Matmul", "AddMM", "GatherMM", "QuantizedMatmul", "GatherQMM", "Convolution"})


@dataclass(frozen=True)
class Box:
    """A node as it is drawn."""

    title: str
    type: str
    kind: str
    """`step`, `walked`, `softmax`, `stop` or `kernel`; `given` and `taken` are what lies around the region."""
    role: str = ""
    """What it is to the region: `queries`, `mask`, ..."""


@dataclass(frozen=True)
class Picture:
    """Boxes in the program's order, and the wires between them as (from, to, operand)."""

    boxes: tuple[Box, ...]
    wires: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Drawn:
    """A picture, which regions of one form share, and the names of its nodes here."""

    picture: Picture
    names: tuple[str, ...]


Put = Callable[[Box, str], int]


def between(graph: Graph, tops: Iterable[Node], bottoms: Iterable[Node]) -> set[Node]:
    """The nodes on all ways from `tops` down to `bottoms`, those included."""
    tops, bottoms = [*tops], [*bottoms]
    last = max(map(graph.position, bottoms))
    reached, stack = set(tops), [*tops]
    while stack:
        node = stack.pop()
        for index in range(len(node.outputs)):
            for user, _ in graph.users(Value(node, index)):
                if user not in reached and graph.position(user) <= last:
                    reached.add(user)
                    stack.append(user)
    found = {node for node in bottoms if node in reached}
    stack = [*found]
    while stack:
        for operand in graph.operands(stack.pop()):
            if operand.node in reached and operand.node not in found:
                found.add(operand.node)
                stack.append(operand.node)
    return found


def before(graph: Graph, fused: Graph, anchors: Anchors) -> Drawn:
    """The region as the program has it, with the way that the matcher walked."""
    if anchors.call is anchors.softmax:
        return _drawn(graph, {anchors.softmax}, {}, anchors)
    if anchors.products:
        walked = between(graph, anchors.products, anchors.outputs)
        sources = {value.node for _, value in anchors.operands}
        region = walked | (between(graph, sources, [*anchors.products, *anchors.outputs]) - sources)
        _grow(graph, region, lambda node: node not in fused, sources)
    else:
        walked = _way(graph, anchors)
        region = walked | _beyond(graph, anchors)
    return _drawn(graph, region, dict.fromkeys(walked, "walked"), anchors)


def after(graph: Graph, original: Graph, anchors: Anchors) -> Drawn:
    """The kernel's call, and what was put around it."""
    assert anchors.call is not None
    region = {anchors.call}
    stack = [anchors.call]
    while stack and len(region) < MOST:
        node = stack.pop()
        more = [user for user, _ in graph.users(Value(node)) if user not in original and user.op not in KERNELS]
        stack += [user for user in more if user not in region]
        region.update(more)
    _grow(graph, region, lambda node: node not in original and node.op not in KERNELS, set())
    return _drawn(graph, region, {}, anchors)


def _grow(graph: Graph, region: set[Node], belongs: Callable[[Node], bool], without: set[Node]) -> None:
    """Add to `region` what it reads, as far as that belongs to it."""
    stack = [*region]
    while stack:
        for operand in graph.operands(stack.pop()):
            node = operand.node
            if node in region or node in without or node.op in (INPUT, CONSTANT) or number(graph, operand) is not None:
                continue
            if belongs(node) and len(region) < MOST:
                region.add(node)
                stack.append(node)


def _way(graph: Graph, anchors: Anchors) -> set[Node]:
    """From the softmax to where matching stopped, whichever comes first in the program."""
    stop = anchors.stop or anchors.softmax
    ends = sorted((stop, anchors.softmax), key=graph.position)
    return between(graph, ends[:1], ends[1:]) | {stop, anchors.softmax}


def _beyond(graph: Graph, anchors: Anchors) -> set[Node]:
    """What lies on both sides of a way that ended early, up to the next product: it shows where it would have led."""
    first, last = sorted((anchors.stop or anchors.softmax, anchors.softmax), key=graph.position)
    found: set[Node] = set()
    level = [first]
    for _ in range(6):
        level = [
            operand.node
            for node in level
            if node.op not in PRODUCTS
            for operand in graph.operands(node)
            if operand.node.op not in (INPUT, CONSTANT) and number(graph, operand) is None
        ]
        found.update(level[: max(0, 12 - len(found))])
    level, seen = [last], len(found) + 12
    for _ in range(6):
        level = [user for node in level if node.op not in PRODUCTS for user, _ in graph.users(Value(node))]
        found.update(level[: max(0, seen - len(found))])
        if any(node.op in PRODUCTS for node in level):
            break
    return found


def _drawn(graph: Graph, region: set[Node], kinds: dict[Node, str], anchors: Anchors) -> Drawn:
    roles = {value.node: role for role, value in anchors.operands}
    if anchors.call in region:
        for operand, role in zip(graph.operands(anchors.call), ("queries", "keys", "values", "mask"), strict=False):
            roles.setdefault(operand.node, role)
    order = sorted(region, key=graph.position)
    boxes: list[Box] = []
    names: list[str] = []
    wires: list[tuple[int, int, int]] = []
    places: dict[Value, int] = {}

    def put(box: Box, name: str) -> int:
        boxes.append(box)
        names.append(name)
        return len(boxes) - 1

    inner: dict[Node, int] = {}
    for node in order:
        numbers, feeds = [], []
        for place, operand in enumerate(graph.operands(node)):
            known = number(graph, operand) if operand.node not in region else None
            if known is not None:
                numbers.append(known)
                continue
            at = inner.get(operand.node, places.get(operand))
            if at is None:
                box = Box(title(operand.node), shape_of(operand.type), "given", roles.get(operand.node, ""))
                at = places[operand] = put(box, graph.label(operand.node))
            feeds.append((at, place))
        kind = kinds.get(node, "step")
        kind = "softmax" if node is anchors.softmax and kind != "step" else kind
        kind = "stop" if node is anchors.stop else "kernel" if node is anchors.call else kind
        text = " ".join(part for part in (title(node), *numbers, detail(node)) if part)
        at = put(Box(text, shape_of(node.outputs[0]), kind, roles.get(node, "")), graph.label(node))
        inner[node] = at
        wires += [(source, at, place) for source, place in feeds]
    _taken(graph, region, inner, put, wires)
    return Drawn(Picture(tuple(boxes), tuple(wires)), tuple(names))


def _taken(
    graph: Graph, region: set[Node], inner: dict[Node, int], put: Put, wires: list[tuple[int, int, int]]
) -> None:
    """Who reads what the region gives at its lower end."""
    for node, at in inner.items():
        users = [user for index in range(len(node.outputs)) for user, _ in graph.users(Value(node, index))]
        if any(user in region for user in users):
            continue
        if users:
            first = min(users, key=graph.position)
            more = f" and {len(users) - 1} more" if len(users) > 1 else ""
            wires.append((at, put(Box(f"{title(first)}{more}", "reads it", "taken"), graph.label(first)), 0))
        else:
            wires.append((at, put(Box("output", "of the program", "taken"), "output"), 0))
