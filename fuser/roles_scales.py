"""Arrays that scale scores key by key: the keys can take them, where the queries have no part in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fuser.masks.cells import cells_alone
from fuser.masks.mask import Mask, Scale
from fuser.masks.paired import paired
from fuser.reading.program import Program
from fuser.regions import Cap, Product, Roles


def on_keys(
    program: Program, masks: Sequence[Mask], products: Sequence[Product], roles: Roles, cap: Cap | None
) -> tuple[tuple[Mask, ...], tuple[Product, ...]]:
    """The masks (outermost first) without those that only scale keys, and the products with these scales.

    `softmax((q k) * s)` is `softmax(q (k * s))`, whatever `s` is, as long as it is one number for each key: a mask that
    is a float array is one, too. What was added to the scores before it is scaled with them.
    """
    steps, scale = paired(program, masks), Scale()
    kept: list[Mask] = []
    for place, mask in enumerate(steps):
        inner = steps[place + 1 :]
        if mask.kind in ("times", "over") and not cap and _is_of_keys(mask, products, roles) and _adds(inner):
            known = cells_alone(program, mask.term.value)
            if mask.kind == "over" or known is None or not known.binary():
                more = Scale(1.0, (mask.term,)) if mask.kind == "times" else Scale(1.0, (), (mask.term,))
                scale = scale.over(more)
                continue
        kept.append(replace(mask, scale=mask.scale.over(scale)) if scale.traced else mask)
    if not scale.traced:
        return tuple(masks), tuple(products)
    return tuple(kept), tuple(replace(each, scale=each.scale.over(scale)) for each in products)


def _is_of_keys(mask: Mask, products: Sequence[Product], roles: Roles) -> bool:
    own = mask.term.axes
    whole = not mask.piece and not any(product.key.parts for product in products)
    return whole and own <= {*roles.batch, *roles.heads, *roles.keys} and not own.isdisjoint(roles.keys)


def _adds(inner: Sequence[Mask]) -> bool:
    return all(mask.kind in ("add", "times", "over") for mask in inner)
