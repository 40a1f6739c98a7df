"""The table of near-attentions: programs that must stay as they are, each with its reason."""

from __future__ import annotations

from tests import negatives_assigned, negatives_pieces, negatives_scores, negatives_traps, negatives_weights
from tests.negatives_base import Negative

NEGATIVES: list[Negative] = [
    *negatives_weights.NEGATIVES,
    *negatives_scores.NEGATIVES,
    *negatives_pieces.NEGATIVES,
    *negatives_assigned.NEGATIVES,
]
TRAPS: list[Negative] = [*negatives_traps.TRAPS, *negatives_assigned.TRAPS]
