"""Whether a mask that every trace saw is the same at all sizes: nothing in the model may change it beyond them.

A sliding window looks causal to sequences that are shorter than it. So a mask counts as proved only when all numbers
that the model computes it from are smaller than what was traced, or so large that they are no sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, helper, numpy_helper

from fuser.export.onnx_edit import Editor, graphs
from fuser.export.onnx_region import Found

# fills of masks, and the ends of slices that take all
FILL = -9e3
ENDLESS = 2**31 - 1
NUMBERS = (AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.FLOATS, AttributeProto.INTS)


def proved(editor: Editor, found: Found) -> bool:
    """Whether the masks of `found` mean the same at every size."""
    longest = max(found.lengths) - 1
    for step in found.steps:
        if not step.known or not step.array.layouts:
            return False
        name = next(iter(step.array.layouts))
        if not all(_harmless(array, longest) for array in _constants(editor, name)):
            return False
    return True


def _constants(editor: Editor, name: str) -> Iterator[NDArray[Any] | None]:
    """All constants that a value is computed from; None for what is none."""
    seen, stack = {name}, [name]
    while stack:
        here = stack.pop()
        if here in editor.initializers:
            tensor = editor.initializers[here]
            yield None if tensor.external_data or tensor.data_type == 8 else numpy_helper.to_array(tensor)
            continue
        if here not in editor.producer:
            yield None
            continue
        node = editor.nodes[editor.producer[here]]
        if graphs(node):
            yield None
        yield from _numbers(node)
        if node.op_type in ("Shape", "Size"):
            continue  # the sizes were traced; what is in the array is no matter
        more = [each for each in node.input if each and each not in seen]
        seen.update(more)
        stack += more


def _numbers(node: NodeProto) -> Iterable[NDArray[Any]]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield numpy_helper.to_array(attribute.t)
        elif attribute.type in NUMBERS and attribute.name not in ("to", "axis"):
            yield np.asarray(helper.get_attribute_value(attribute))


def _harmless(array: NDArray[Any] | None, longest: int) -> bool:
    if array is None or array.dtype.kind not in "biuf":
        return False
    if array.size <= longest:
        numbers = array.astype(np.float64)
        small = np.abs(numbers) < longest
        if array.dtype.kind in "iu":
            return bool((small | (np.abs(numbers) >= ENDLESS)).all())
        return bool((small | (numbers <= FILL) | np.isinf(numbers) | (numbers >= 1e9)).all())
    if array.ndim >= 2 and array.shape[-1] == array.shape[-2]:
        # a buffer that holds the whole mask
        low = np.tri(array.shape[-1], dtype=bool)
        inside, outside = array[..., low], array[..., ~low]
        return bool((inside == inside.flat[0]).all() and (outside == outside.flat[0]).all())
    steps = np.diff(array.reshape(-1).astype(np.float64))
    return bool((steps == 1).all()) and array.size == max(array.shape)
