"""Where the boxes of a picture stand: in levels from top to bottom, each row ordered so that few wires cross.

The rows come from the longest way to the lower end, so what is given stands just above where it is read. Within a row
places are the weighted least squares fit to where the neighbours stand, in that order and without overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fuser.page.subgraph import Box, Picture

CHARACTER = 6.7
HEIGHT = 38
ROLE = 14
GAP = 18
LEVEL = 68
MARGIN = 10
SWEEPS = 120
SPINE = {"walked", "softmax", "stop"}


@dataclass(frozen=True)
class Placed:
    """A picture with coordinates: the middle of each box and its width, and a path for each wire."""

    width: int
    height: int
    boxes: tuple[tuple[int, int, int], ...]
    paths: tuple[str, ...]


@dataclass
class _Spot:
    """A box, or a place where a long wire passes a level."""

    width: float
    weight: float
    level: int
    up: list[tuple[int, float, float]]
    """Who is above, how far from the middle of this the wire ends, and how straight it is to be."""
    down: list[tuple[int, float, float]]
    """Who is below, how far from the middle of that the wire ends, and how straight it is to be."""
    x: float = 0.0


def place(picture: Picture) -> Placed:
    """Lay out a picture."""
    spots, routes = _spots(picture)
    rows: list[list[int]] = [[] for _ in range(1 + max((spot.level for spot in spots), default=0))]
    for number, spot in enumerate(spots):
        rows[spot.level].append(number)
    _order(spots, rows)
    for row in rows:
        x = 0.0
        for number in row:
            spots[number].x = x + spots[number].width / 2
            x += spots[number].width + GAP
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            _settle(spots, row)
    left = min(spot.x - spot.width / 2 for spot in spots) - MARGIN
    right = max(spot.x + spot.width / 2 for spot in spots) + MARGIN
    top = [MARGIN + ROLE + HEIGHT / 2 + LEVEL * level for level in range(len(rows))]
    boxes = tuple((round(s.x - left), round(top[s.level]), round(s.width)) for s in spots[: len(picture.boxes)])
    paths = tuple(_path(spots, top, left, route, shift) for route, shift in routes)
    return Placed(round(right - left), round(top[-1] + HEIGHT / 2 + MARGIN), boxes, paths)


def width_of(box: Box) -> float:
    """The width that its text needs."""
    return max(len(box.title), len(box.type) * 0.92, 8) * CHARACTER + 20


def _spots(picture: Picture) -> tuple[list[_Spot], list[tuple[list[int], float]]]:
    count = len(picture.boxes)
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for source, target, _ in picture.wires:
        below[source].append(target)
        above[target].append(source)
    depth = [-1] * count

    def measure(start: int) -> None:
        stack = [start]
        while stack:
            waiting = [target for target in below[stack[-1]] if depth[target] < 0]
            if waiting:
                stack += waiting
            else:
                box = stack.pop()
                depth[box] = 1 + max((depth[target] for target in below[box]), default=-1)

    for box in range(count):
        measure(box)
    deepest = max(depth, default=0)
    spots = [
        _Spot(width_of(box), 40.0 if box.kind in ("walked", "softmax", "stop", "kernel") else 1.0, deepest - d, [], [])
        for box, d in zip(picture.boxes, depth, strict=True)
    ]
    routes: list[tuple[list[int], float]] = []
    for source, target, operand in picture.wires:
        route = [source]
        for level in range(spots[source].level + 1, spots[target].level):
            spots.append(_Spot(8.0, 2.0, level, [], []))
            route.append(len(spots) - 1)
        route.append(target)
        operands = max(1, len(above[target]))
        room = min(40.0, (spots[target].width - 24) / operands)
        order = sorted(place for _, to, place in picture.wires if to == target)
        # the way that the matcher walked is straight
        spine = {picture.boxes[source].kind, picture.boxes[target].kind} <= SPINE
        shift = 0.0 if spine else (order.index(operand) - (operands - 1) / 2) * room
        for a, b in pairwise(route):
            end = shift if b == target else 0.0
            spots[a].down.append((b, end, 12.0 if spine else 1.0))
            spots[b].up.append((a, end, 12.0 if spine else 1.0))
        routes.append((route, shift))
    return spots, routes


def _order(spots: list[_Spot], rows: list[list[int]]) -> None:
    """Order each row by the middle of its neighbours, from both sides in turn."""
    at: dict[int, float] = {}
    for row in rows:
        at.update({number: place / max(1, len(row) - 1) for place, number in enumerate(row)})
    for sweep in range(9):
        upward = sweep % 2 == 0
        for row in rows[::-1] if upward else rows:
            middle = {}
            for number in row:
                # the operands of one box stand in their order
                near = [at[each] + end * 1e-4 for each, end, _ in spots[number].down] if upward else []
                near = near or [at[each] for each, *_ in spots[number].up]
                middle[number] = sum(near) / len(near) if near else at[number]
            row.sort(key=middle.__getitem__)
            at.update({number: place / max(1, len(row) - 1) for place, number in enumerate(row)})


def _settle(spots: list[_Spot], row: list[int]) -> None:
    """Move a row to where its neighbours stand, as near as order and room allow (pooled adjacent violators)."""
    offset, offsets = 0.0, []
    for place, number in enumerate(row):
        if place:
            offset += (spots[row[place - 1]].width + spots[number].width) / 2 + GAP
        offsets.append(offset)
    pools: list[tuple[float, float, int]] = []
    for number, own in zip(row, offsets, strict=True):
        spot = spots[number]
        near = [(spots[each].x - end, weight * spots[each].weight) for each, end, weight in spot.up]
        near += [(spots[each].x + end, weight * spots[each].weight) for each, end, weight in spot.down]
        total = sum(weight for _, weight in near)
        wanted = sum(x * weight for x, weight in near) / total if near else spot.x
        pool = (wanted - own, spot.weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, weight, members = pools.pop()
            weight_all = weight + pool[1]
            pool = ((mean * weight + pool[0] * pool[1]) / weight_all, weight_all, members + pool[2])
        pools.append(pool)
    place = 0
    for mean, _, members in pools:
        for number in row[place : place + members]:
            spots[number].x = mean + offsets[place]
            place += 1


def _path(spots: list[_Spot], top: list[float], left: float, route: list[int], shift: float) -> str:
    """A wire as an SVG path, through the places that it passes."""
    points = [(spots[number].x - left, top[spots[number].level]) for number in route]
    x, y = points[0][0], points[0][1] + HEIGHT / 2
    path = f"M{x:.0f} {y:.0f}"
    for place, (to_x, to_y) in enumerate(points[1:], 1):
        last = place == len(points) - 1
        to_x, end = (to_x + shift, to_y - HEIGHT / 2 - 3) if last else (to_x, to_y)
        bend = (end - y) / 2
        path += f"C{x:.0f} {y + bend:.0f} {to_x:.0f} {end - bend:.0f} {to_x:.0f} {end:.0f}"
        x, y = to_x, end
    return path
