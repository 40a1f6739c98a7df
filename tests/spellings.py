"""The table of spellings: every way to write attention that must end in one call of the kernel.

One line a spelling, in the files beside this one by topic. Level 1 holds the usual forms, level 2 the others.
"""

from __future__ import annotations

import dataclasses

from tests import (
    spellings_assigned,
    spellings_blocks,
    spellings_boolean,
    spellings_compilers,
    spellings_consumers,
    spellings_heads,
    spellings_inductor,
    spellings_layouts,
    spellings_masks,
    spellings_peers,
    spellings_pieces,
    spellings_ports,
    spellings_products,
    spellings_scale,
    spellings_sinks,
    spellings_softmax,
    spellings_sums,
    spellings_values,
)
from tests.spellings_base import Spelling

TOPICS = {
    "scale": spellings_scale,
    "mask": spellings_masks,
    "boolean": spellings_boolean,
    "value": spellings_values,
    "softmax": spellings_softmax,
    "product": spellings_products,
    "layout": spellings_layouts,
    "heads": spellings_heads,
    "consumer": spellings_consumers,
    "inductor": spellings_inductor,
    "onnx": spellings_peers,
    "compiler": spellings_compilers,
    "port": spellings_ports,
    "piece": spellings_pieces,
    "assigned": spellings_assigned,
    "sum": spellings_sums,
    "sink": spellings_sinks,
    "block": spellings_blocks,
}

SPELLINGS: list[Spelling] = [
    dataclasses.replace(spelling, topic=topic) for topic, module in TOPICS.items() for spelling in module.SPELLINGS
]
