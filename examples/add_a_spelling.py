"""How a spelling is added: what is found by meaning, what a refusal says, and the few lines that mend it.

fuser has no list of templates. It walks from the softmax back to the product of queries and keys, and a *peeler* leads
it past each node on the way. This program takes one away, as if nobody had thought of it yet, and writes it again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import mlx.core as mx

import fuser
from fuser.patterns.cursor import Cursor
from fuser.patterns.scores import PEELERS, peels

ROOT = 1 / math.sqrt(64)


# -- 1. Three programs that look different, and mean one attention ------------------------------------------


def textbook(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2) * ROOT, axis=-1) @ v


def turned(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Keys times queries, half of the scale on each, softmax along the first of the two axes."""
    scores = (k * ROOT**0.5) @ (q * ROOT**0.5).swapaxes(-1, -2)
    return mx.softmax(scores, axis=-2).swapaxes(-1, -2) @ v


def written_out(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Products as einsum, the softmax as exp, maximum and sum."""
    scores = mx.einsum("bhqd,bhkd->bhqk", q, k) / 8
    weights = mx.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return mx.einsum("bhqk,bhkd->bhqd", weights, v)


# -- 2. One that stops the walk ------------------------------------------------------------------------------


def hopfield(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """A modern Hopfield network: the lower the energy of a pattern, the more of it is recalled."""
    energy = -(q @ k.swapaxes(-1, -2)) * ROOT
    return mx.softmax(-energy, axis=-1) @ v


# -- 3. The peeler, as it stands in fuser/patterns/scores.py -------------------------------------------------


def negative(cursor: Cursor) -> Iterable[Cursor]:
    """A scale of -1."""
    yield cursor.to(cursor.operands()[0], None, cursor.scale.times(-1))


# -- 4. The nearest program that means something else --------------------------------------------------------


def distances(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Not the product counts, but how far from zero it is: no scale does that."""
    return mx.softmax(-mx.abs(q @ k.swapaxes(-1, -2)) * ROOT, axis=-1) @ v


def main() -> int:
    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, 8, 32, 64)) for _ in range(3))

    print("1. Found by meaning:\n")
    for program in (textbook, turned, written_out):
        print(fuser.explain(program, q, k, v))

    theirs = PEELERS.pop("Negative")
    try:
        print("\n2. Without its peeler, the report says at which node the walk stopped:\n")
        before = fuser.explain(hopfield, q, k, v)
        print(before)
        print("\n   That node, in the program as it was traced (print(fuser.trace(...))):\n")
        print(fuser.trace(hopfield, q, k, v))

        print("\n3. With the peeler of this file:\n")
        peels("Negative")(negative)
        after = fuser.explain(hopfield, q, k, v)
        print(after)
        checked = fuser.verify(hopfield, q, k, v)
        print(f"verified: {checked.ok}")

        print("\n4. Its neighbour is refused still:\n")
        other = fuser.explain(distances, q, k, v)
        print(other)
    finally:
        PEELERS["Negative"] = theirs

    print(
        "\nWhat to hand in: the peeler in fuser/patterns, and a line in a table of tests for each of the two programs,"
    )
    print(
        "S(...) in tests/spellings_*.py and N(...) in tests/negatives_*.py. The tests do the rest: see CONTRIBUTING.md."
    )
    verdicts = [report.regions[0].verdict for report in (before, after, other)]
    return 0 if verdicts == ["refused", "fused", "refused"] and checked else 1


if __name__ == "__main__":
    sys.exit(main())
