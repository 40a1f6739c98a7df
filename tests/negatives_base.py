"""What a near-attention of the table is made of."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from tests.spellings_base import QKV, Args, Fn, T, attend, sm

EITHER = ("refused", "not attention")
ROOT = 8**-0.5


@dataclass(frozen=True)
class Negative:
    """A program that must stay as it is.

    `like` is the attention for which a careless eye would take it; its answer is another one. `words` are
    alternatives, one of which the reason holds. `maybe` marks programs without a proper softmax, of which the
    report may be silent.
    """

    name: str
    fn: Fn
    args: Args
    words: tuple[str, ...]
    verdicts: tuple[str, ...]
    like: Fn | None
    maybe: bool = False


def plain(q: mx.array, k: mx.array, v: mx.array, *_: mx.array) -> mx.array:
    """The attention of the three operands, and nothing else."""
    return attend(q, k, v, ROOT)


def N(
    name: str,
    fn: Fn,
    words: str,
    args: Args | None = None,
    like: Fn | None = plain,
    verdicts: tuple[str, ...] = ("refused",),
    maybe: bool = False,
) -> Negative:
    """A near-attention, refused with a reason."""
    return Negative(name, fn, args or QKV, tuple(words.split("|")), verdicts, like, maybe)


def E(
    name: str, fn: Fn, words: str, args: Args | None = None, like: Fn | None = plain, maybe: bool = False
) -> Negative:
    """A near-attention for which either verdict is fair."""
    return N(name, fn, words, args, like, EITHER, maybe)


def O(name: str, fn: Fn, args: Args, words: str = "") -> Negative:  # noqa: E743
    """A softmax that is no attention at all."""
    return N(name, fn, words, args, None, ("not attention",))


def scores(q: mx.array, k: mx.array) -> mx.array:
    return q @ T(k) * ROOT


def weights(q: mx.array, k: mx.array) -> mx.array:
    return sm(scores(q, k))


def trap(name: str, fn: Fn, args: Args, like: Fn | None = plain) -> Negative:
    """Attention, but not the one that it looks like: fused or refused, the answer must be its own."""
    return Negative(name, fn, args, (), (), like)
