"""What a primitive means that stands in the way, in words."""

from __future__ import annotations

from fuser.ir.graph import Value
from fuser.reading.program import Program

CHOICES = frozenset({"Sort", "ArgSort", "Partition", "ArgPartition"})
# between the product and the softmax
BEFORE = {
    "Tanh": "the scores are capped by tanh (softcap), which the kernel cannot do",
    "QuantizedMatmul": "the product is a quantized one: the keys are not an array of numbers",
    "Convolution": "the scores come from a convolution",
    "ArgPartition": "the scores are selected by a partial sort (top-k)",
    "Partition": "the scores are selected by a partial sort (top-k)",
    "Sort": "the scores are sorted",
    "Scatter": "some of the scores are assigned before the softmax what is no mask that is known",
    "StopGradient": "a gradient is stopped between product and softmax",
    "Input": "the scores are an input of the program: no product makes them",
    "Constant": "the scores are constant",
}
# between the softmax and the product with the values
AFTER = {
    "ArgPartition": "the weights are selected by a partial sort (top-k) after the softmax",
    "Partition": "the weights are selected by a partial sort (top-k) after the softmax",
    "ArgSort": "the weights are sorted after the softmax",
    "Sort": "the weights are sorted after the softmax",
    "Select": "the weights are masked after the softmax",
    "Add": "something is added to the weights after the softmax",
    "Subtract": "something is subtracted from the weights after the softmax",
    "Slice": "the weights are sliced after the softmax",
    "Multiply": "the weights are multiplied by an array after the softmax (dropout, or a second mask)",
    "Divide": "the weights are divided by an array after the softmax",
    "Gather": "the weights are gathered from after the softmax",
    "GatherAxis": "the weights are gathered from after the softmax",
    "StopGradient": "a gradient is stopped between softmax and product",
    "QuantizedMatmul": "the values are quantized: they are not an array of numbers",
}


def from_scores(program: Program, mask: Value, scores: Value) -> str:
    """What a mask is that is computed from the scores."""
    chosen = any(node.op in CHOICES for node in program.graph.behind(mask.node, scores.node))
    return "the mask depends on the scores (top-k)" if chosen else "the mask is made from the scores themselves"
