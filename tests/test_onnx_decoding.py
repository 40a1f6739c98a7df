"""Decoders that take a past and give a present: 20 tokens, chosen greedily, are the reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from fuser.frontends.onnx import load
from fuser.model import Model

Arrays = dict[str, Any]
TOKENS = 20
FOLDER = Path(__file__).resolve().parent.parent / "examples" / "models" / "llama_past__sdpa__ts17"


def decode(run: Callable[..., Mapping[str, Any]], first: Arrays) -> list[list[int]]:
    """The token of each step, for the batch; the presents of one step are the past of the next."""
    feed, tokens = dict(first), []
    for _ in range(TOKENS):
        outputs = run(**feed)
        token = np.array(outputs["logits"])[:, -1].argmax(-1)
        tokens.append(token.tolist())
        feed |= {name: np.array(outputs[name.replace("past", "present")]) for name in feed if name.startswith("past")}
        feed["input_ids"] = token[:, None]
        if "attention_mask" in feed:
            feed["attention_mask"] = np.pad(feed["attention_mask"], ((0, 0), (0, 1)), constant_values=1)
        if "use_cache" in feed:
            feed["use_cache"] = np.array([True])
    return tokens


def both(built: onnx.ModelProto, first: Arrays) -> Model:
    """The model, after its tokens were compared with the reference's."""
    reference, loaded = ReferenceEvaluator(built), Model(load(built))

    def expected(**feed: Any) -> dict[str, Any]:
        return dict(zip(reference.output_names, reference.run(None, feed), strict=True))

    assert decode(loaded, first) == decode(expected, first)
    return loaded


def test_an_exported_decoder_gives_the_references_tokens() -> None:
    with np.load(FOLDER / "inputs.npz") as arrays:
        first = {name: arrays[name] for name in arrays}
    loaded = both(onnx.load(FOLDER / "model.onnx"), first)
    loaded(**first)
    assert loaded.report.counts["fused"] == 2


def branch(name: str, keys: str) -> str:
    """Attention of the queries to `keys`; what a step needs of it is the branch's own."""
    return f"""{name} () => (float[batch,1,new,16] {name}_y, float[batch,1,all,16] {name}_k) {{
        {name}_k = {keys}
        {name}_t = Transpose <perm = [0, 1, 3, 2]> ({name}_k)
        {name}_s = MatMul (h, {name}_t)
        [{name}] {name}_w = Softmax <axis = -1> ({name}_s)
        {name}_y = MatMul ({name}_w, {name}_k)
    }}"""


@pytest.mark.parametrize("batch", [1, 2])
def test_a_merged_decoder_gives_the_references_tokens(batch: int) -> None:
    built = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        merged (int64[batch,new] input_ids, float[batch,1,past,16] past, bool[1] use_cache)
            => (float[batch,new,40] logits, float[batch,1,all,16] present) {{
            embedded = Gather (words, input_ids)
            one = Constant <value_ints = [1]> ()
            h = Unsqueeze (embedded, one)
            y, present = If (use_cache) <then_branch = {branch("cached", "Concat <axis = 2> (past, h)")},
                                         else_branch = {branch("fresh", "Identity (h)")}>
            flat = Squeeze (y, one)
            turned = Transpose <perm = [1, 0]> (after)
            logits = MatMul (flat, turned)
        }}"""
    )
    random = np.random.default_rng(5)
    for name in ("words", "after"):
        weights = random.standard_normal((40, 16)).astype(np.float32)
        built.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    first = {
        "input_ids": random.integers(0, 40, (batch, 3)),
        "past": np.zeros((batch, 1, 1, 16), np.float32),
        "use_cache": np.array([False]),
    }
    loaded = both(built, first)
    for flag, name in ((False, "fresh"), (True, "cached")):
        loaded(**first | {"use_cache": np.array([flag])})
        (region,) = loaded.report.regions
        assert region.verdict == "fused" and region.name.endswith(name) and loaded.report.notes == ()
