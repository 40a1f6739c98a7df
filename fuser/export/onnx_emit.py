"""Write a region as one operator: `Attention` of opset 23, or ONNX Runtime's `MultiHeadAttention` below it."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.export.onnx_edit import Editor, attention_name
from fuser.export.onnx_layout import Layouts, Unexpressed
from fuser.export.onnx_masks import Masks, OnnxMask
from fuser.export.onnx_region import Found, Layout, Names, ProductNames
from fuser.frontends.onnx_types import number_of

ATTENTION = 23
MICROSOFT = "com.microsoft"
HALVES = (mx.float16, mx.bfloat16)


class Emitter:
    """Writes regions of one model, in the order of their places."""

    def __init__(self, editor: Editor, opset: int) -> None:
        self._editor, self._opset = editor, opset
        self._memo: dict[tuple[Any, ...], str] = {}

    def place(self, found: Found) -> int:
        """Where the outputs of a region are made."""
        return max((self._editor.producer.get(self._root(names), -1) for names in found.outputs), default=-1)

    def emit(self, found: Found) -> None:
        """Put the operator where the region was; raises `Unexpressed` where it cannot say what the region does."""
        if found.sink:
            raise Unexpressed("the softmax has a sink, which the operator does not")
        if found.stepped:
            raise Unexpressed("the weights are changed between softmax and values")
        for number in range(len(found.outputs)):
            _Region(self._editor, self._opset, self._memo, found, number).emit(self._root(found.outputs[number]))

    def _root(self, names: Names) -> str:
        """The product with the values: the first of the values that hold the output."""
        made = [name for name in names.layouts if name in self._editor.producer]
        if not made:
            raise Unexpressed("the output is no value of the model's own graph (it is inside of another operator)")
        return min(made, key=self._editor.producer.__getitem__)


class _Region:
    def __init__(self, editor: Editor, opset: int, memo: dict[tuple[Any, ...], str], found: Found, number: int) -> None:
        self._editor, self._opset, self._found, self._number = editor, opset, found, number
        self._layouts = Layouts(editor, opset, memo, found.sizes)
        self._dtype = found.product
        roles = found.roles
        self._heads = roles["H"] + roles["G"]
        self._width = roles[f"W{number}_"]
        self._depth = roles["D0_"]
        # the sign of a scale goes to the queries: kernels take the largest product for that of the largest score
        self._scale = abs(found.products[0].number) or 1.0

    def emit(self, root: str) -> None:
        found, roles, layouts = self._found, self._found.roles, self._layouts
        chain = self._chain(root)
        stem = attention_name(found.node)
        value = found.values[self._number]
        sources = [*(n for p in found.products for n in (p.query, p.key)), value]
        layouts.at(self._editor.producer[root], stem, sources)
        if found.square:
            layouts.alike = {roles["Q"]: roles["K"]}
        masks = Masks(self._editor, layouts, found, self._dtype)
        four: Layout = (roles["B"], self._heads, roles["Q"], self._width)
        three: Layout = (roles["B"], roles["Q"], self._heads + self._width)
        flat = self._flat(value)
        form = three if flat else four
        if self._opset >= ATTENTION:
            made = self._attention(masks, value, flat=flat)
        else:
            made, form = self._multi_head(masks, value), three
        op, inputs, attributes, mask = made
        by_head = bool(mask.kept and set(mask.layout[-3] if len(mask.layout) > 2 else ()) & set(self._heads))
        between = form == three and by_head
        form = four if between else form
        output = min(chain, key=lambda name: (layouts.cost(form, chain[name]), list(chain).index(name)))
        after = self._after(mask, form)
        direct = chain[output] == form and not after and not between
        if op != "Attention":
            attributes["domain"] = MICROSOFT
        names = self._editor.add(layouts.place, op, inputs, stem, output if direct else "", **attributes)
        if between:
            names = layouts.relay(names, three, four)
        for place, (step, extra, first) in enumerate(after):
            last = place == len(after) - 1 and chain[output] == form
            operands = [extra[0], names, *extra[1:]] if first else [names, *extra]
            names = layouts.add(step[0], operands, step[1], output if last else "", **step[2])
        if chain[output] != form:
            layouts.relay(names, form, chain[output], output)
        self._editor.gone.add(self._editor.producer[output])

    # -- the output ------------------------------------------------------------------------------------------------

    def _chain(self, root: str) -> dict[str, Layout]:
        """The values that may be replaced: the product, and views of it that are all that reads it."""
        layouts = self._found.outputs[self._number].layouts
        chain = {root: layouts[root]}
        editor, here = self._editor, root
        while here not in editor.outputs and len(editor.readers.get(here, ())) == 1:
            node = editor.nodes[editor.readers[here][0]]
            if len(node.output) != 1 or node.output[0] not in layouts or node.input[0] != here:
                break
            here = node.output[0]
            chain[here] = layouts[here]
        return chain

    def _after(self, mask: OnnxMask, form: Layout) -> list[tuple[tuple[str, str, dict[str, Any]], list[str], bool]]:
        """What is done to the operator's output: the model's own answer in hidden rows, a factor, a cast."""
        steps: list[tuple[tuple[str, str, dict[str, Any]], list[str], bool]] = []
        if mask.kept:
            kept_layout = (*mask.layout[:-1], ())
            kept = mask.kept
            if len(form) == 3:
                padded = ((),) * (4 - len(kept_layout)) + kept_layout
                kept = self._layouts.relay(kept, kept_layout, (padded[0], padded[2], ()))
            steps.append((("Where", "rows", {}), [kept, self._number_of(mask.other)], True))
        number = self._found.numbers[self._number]
        if number != 1:
            steps.append((("Mul", "factor", {}), [self._number_of(number)], False))
        target = self._found.outputs[self._number].dtype
        if target != self._dtype:
            steps.append((("Cast", "cast", {"to": number_of(target)}), [], False))
        return steps

    # -- the operators ---------------------------------------------------------------------------------------------

    def _flat(self, value: Names) -> bool:
        """Whether all operands are there with their heads merged, as linear layers give and take them."""
        found, roles, exact = self._found, self._found.roles, self._layouts.exact
        if self._opset < ATTENTION:
            return True
        (first, *more) = found.products
        if more or first.factors or first.divisors or first.number <= 0:
            return False
        batch, heads = roles["B"], roles["H"]
        chain = [layout for layout in found.outputs[self._number].layouts.values() if len(layout) == 3]
        out = (batch, roles["Q"], self._heads + self._width) in chain
        return (
            out
            and self._layouts.size(self._heads) is not None
            and self._masked_by_rows()
            and exact(first.query, (batch, roles["Q"], self._heads + self._depth)) is not None
            and exact(first.key, (batch, roles["K"], heads + self._depth)) is not None
            and exact(value, (batch, roles["K"], heads + self._width)) is not None
        )

    def _masked_by_rows(self) -> bool:
        """Whether rows that a mask hides wholly are the same for all heads."""
        heads = set(self._heads)
        layouts = [layout for step in self._found.steps for layout in step.array.layouts.values()]
        return self._found.empty is None or not any(heads & set(dim) for layout in layouts for dim in layout)

    def _attention(self, masks: Masks, value: Names, *, flat: bool) -> tuple[str, list[str], dict[str, Any], OnnxMask]:
        roles = self._found.roles
        mask = masks.made(boolean=True)
        batch, heads = roles["B"], roles["H"]
        if flat:
            query = self._one(self._found.products[0], (batch, roles["Q"], self._heads + self._depth))
            key = self._laid(self._found.products[0].key, (batch, roles["K"], heads + self._depth))
            values = self._laid(value, (batch, roles["K"], heads + self._width))
        else:
            query = self._joined([self._query(each, i) for i, each in enumerate(self._found.products)])
            key = self._joined(
                [
                    self._laid(each.key, (batch, heads, roles["K"], roles[f"D{i}_"]))
                    for i, each in enumerate(self._found.products)
                ]
            )
            values = self._laid(value, (batch, heads, roles["K"], self._width))
        if flat:
            # ONNX's shape inference takes a width that it does not know for zero
            widths = (self._heads + self._depth, heads + self._depth, heads + self._width)
            for name, axes in zip((query, key, values), widths, strict=True):
                self._editor.tell(name, number_of(self._dtype), (None, None, self._layouts.size(axes)))
        inputs = [query, key, values]
        attributes: dict[str, Any] = {"scale": self._scale}
        if self._found.cap:
            # the operator divides the scaled scores by the cap itself
            attributes = {"scale": self._scale * self._found.cap, "softcap": self._found.cap}
        if flat:
            attributes |= {
                "q_num_heads": self._layouts.size(self._heads),
                "kv_num_heads": self._layouts.size(heads),
            }
        if mask.causal:
            attributes["is_causal"] = 1
        if mask.value:
            inputs.append(masks.full(mask))
        if self._dtype in HALVES and self._found.softmax not in HALVES:
            attributes["softmax_precision"] = TensorProto.FLOAT
        return "Attention", inputs, attributes, mask

    def _multi_head(self, masks: Masks, value: Names) -> tuple[str, list[str], dict[str, Any], OnnxMask]:
        """ONNX Runtime's operators: merged heads, and an additive mask of four dimensions.

        `MultiHeadAttention` has as many heads of keys as of queries, so shared ones are repeated as the model does;
        `GroupQueryAttention` has fewer, but only for causal masks.
        """
        found, roles = self._found, self._found.roles
        if found.cap:
            raise Unexpressed("the scores are capped by tanh (softcap), which needs opset 23")
        if len(found.products) > 1:
            raise Unexpressed("two products of queries and keys are added, which needs opset 23")
        count = self._layouts.size(self._heads)
        if count is None:
            raise Unexpressed("the number of heads is dynamic")
        mask = masks.made(boolean=False)
        grouped = bool(roles["G"]) and mask.causal and self._width_of_depth()
        batch, heads = roles["B"], roles["H"] if grouped else self._heads
        inputs = [
            self._one(found.products[0], (batch, roles["Q"], self._heads + self._depth)),
            self._laid(found.products[0].key, (batch, roles["K"], heads + self._depth)),
            self._laid(value, (batch, roles["K"], heads + self._width)),
        ]
        attributes: dict[str, Any] = {"num_heads": count, "scale": self._scale}
        if grouped:
            attributes["kv_num_heads"] = self._layouts.size(heads)
            return "GroupQueryAttention", [*inputs, "", "", *self._lengths(inputs[1])], attributes, mask
        if mask.causal:
            attributes["unidirectional"] = 1
        if mask.value:
            inputs += ["", "", masks.full(mask, rank=4)]
        return "MultiHeadAttention", inputs, attributes, mask

    def _width_of_depth(self) -> bool:
        return self._layouts.size(self._width) == self._layouts.size(self._depth)

    def _lengths(self, key: str) -> list[str]:
        """What `GroupQueryAttention` wants to know of a cache that there is none of: all keys count."""
        shared, numbers = self._layouts.shared, self._layouts.numbers
        shape = shared("Cast", [shared("Shape", [key], "shape")], "shape", to=TensorProto.INT32)
        batch = shared("Gather", [shared("Shape", [key], "shape"), numbers([0])], "batch")
        length = shared("Gather", [shape, numbers([1])], "length")
        one = self._editor.constant(np.asarray([1], np.int32), TensorProto.INT32, "attention_number")
        last = shared("Expand", [shared("Sub", [length, one], "last"), batch], "lengths")
        return [last, length]

    # -- operands --------------------------------------------------------------------------------------------------

    def _laid(self, names: Names, target: Layout) -> str:
        value = self._layouts.laid(names, target)
        if names.dtype == self._dtype:
            return value
        return self._layouts.shared("Cast", [value], "cast", to=number_of(self._dtype))

    def _one(self, product: ProductNames, target: Layout) -> str:
        """The queries with their heads merged."""
        if product.factors or product.divisors:
            raise Unexpressed("the scale is an array, which needs opset 23")
        value = self._laid(product.query, target)
        return self._times(value, product.number / self._scale)

    def _query(self, product: ProductNames, number: int) -> str:
        """The queries in four dimensions, with what of the scale is no single number."""
        roles = self._found.roles
        target: Layout = (roles["B"], self._heads, roles["Q"], roles[f"D{number}_"])
        value = self._laid(product.query, target)
        for op, factors in (("Mul", product.factors), ("Div", product.divisors)):
            for factor in factors:
                axes = {axis for layout in factor.layouts.values() for dim in layout for axis in dim}
                places = tuple(dim if set(dim) & axes else () for dim in target)
                value = self._layouts.add(op, [value, self._laid(factor, places)], "scaled")
        return self._times(value, product.number / self._scale)

    def _times(self, value: str, number: float) -> str:
        return value if number == 1 else self._layouts.shared("Mul", [value, self._number_of(number)], "scaled")

    def _joined(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self._layouts.add("Concat", parts, "joined", axis=-1)

    def _number_of(self, number: float) -> str:
        kind = {mx.float16: np.float16, mx.float64: np.float64}.get(self._dtype, np.float32)
        name = "attention_nan" if math.isnan(number) else "attention_number"
        return self._editor.constant(np.asarray(number, kind), number_of(self._dtype), name)
