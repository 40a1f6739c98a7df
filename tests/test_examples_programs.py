"""The examples that are programs: each runs, and shows what it says."""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

import fuser
from tests.conftest import ROOT, Arrays
from tests.test_examples import example

STORY = ROOT / "examples" / "story"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An example as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return import_module


def test_a_model_of_mlx_lm() -> None:
    done = example("examples/mlx_lm_model.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" and "NOT THE SAME" not in done.stdout and ", the same as" in done.stdout
    assert done.stdout.count("2 of 2 attentions fused") == 2
    assert re.search(r"layers\.1\.self_attn.*\s+4→2 +8×8 +64 +causal", done.stdout)
    assert re.search(r"layers\.1\.self_attn.*\s+4→2 +1×9 +64 +none", done.stdout)


def test_an_onnx_decoder_tells_its_story() -> None:
    done = example("examples/onnx_decoder.py")
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert text.startswith("the old lighthouse stands on a rock in the sea . every night its lamp turns")
    assert "in the morning he sleeps while the gulls take 60 tokens" in text
    assert "3 traces; a cache that grows has 60 shapes" in text
    assert "2 of 2 attentions fused" in text and "a cache that grows: the same tokens" in text


@pytest.mark.parametrize("length", [1, 31, 32, 33])
def test_the_cache_has_room_whatever_the_length_of_the_prompt(load: Any, length: int) -> None:
    decoder = load("onnx_decoder")
    model = fuser.load_onnx(STORY / "model.onnx")
    tokenizer = Tokenizer.from_file(str(STORY / "tokenizer.json"))
    prompt = tokenizer.encode("the old lighthouse stands on a rock in the sea . every night its lamp turns " * 3).ids[
        :length
    ]
    found = decoder.with_room(model, prompt, 6)
    assert found == decoder.growing(STORY / "model.onnx", model, prompt, 6)
    assert model.traces <= 3


def test_a_cache_under_other_names(load: Any) -> None:
    model = fuser.load_onnx(ROOT / "examples" / "models" / "llama_past__sdpa__ts17" / "model.onnx")
    pairs = load("onnx_decoder").caches(model)
    assert pairs["past_key_0"] == "present_key_0" and len(pairs) == 4


def test_a_decoder_without_a_cache_is_told(load: Any, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "models" / "llama__sdpa__dyn18" / "model.onnx", tmp_path)
    decoder = load("onnx_decoder")
    result = CliRunner().invoke(decoder.main, [str(tmp_path)])
    assert result.exit_code == 1 and result.stderr == f"Error: {tmp_path} has no tokenizer.json\n"
    shutil.copy(STORY / "tokenizer.json", tmp_path)
    result = CliRunner().invoke(decoder.main, [str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.startswith("Error: the model has no cache")


def test_the_story_is_that_of_onnx_runtime_in_a_batch() -> None:
    """A batch of two prompts of different lengths, padded on the left."""
    session = onnxruntime.InferenceSession(str(STORY / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs: Arrays = {
        "input_ids": np.array([[0, 0, 7, 9], [3, 5, 2, 8]]),
        "attention_mask": np.array([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "position_ids": np.array([[0, 0, 0, 1], [0, 1, 2, 3]]),
    }
    names = [f"past_key_values.{layer}.{each}" for layer in (0, 1) for each in ("key", "value")]
    inputs |= dict.fromkeys(names, np.zeros((2, 2, 0, 12), np.float32))
    wanted = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))
    model = fuser.load_onnx(STORY / "model.onnx")
    found = model(**inputs)
    np.testing.assert_allclose(np.asarray(found["logits"])[0, 2:], wanted["logits"][0, 2:], atol=1e-3)
    np.testing.assert_allclose(np.asarray(found["logits"])[1], wanted["logits"][1], atol=1e-3)


def test_a_diffusion_block(load: Any) -> None:
    done = example("examples/diffusion_block.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 attentions fused" in done.stdout
    assert re.search(r"attn1.*\s+4 +256×256", done.stdout) and re.search(
        r"attn2.*\s+4 +256×77 .* additive", done.stdout
    )


def test_a_masked_word_changes_nothing(load: Any) -> None:
    module = load("diffusion_block")
    mx.random.seed(1)
    fast = fuser.optimize(module.Block())
    latents, time, text, keep = module.sample()
    other = mx.where(keep[..., None], text, 7.0)
    assert mx.allclose(fast(latents, time, text, keep), fast(latents, time, other, keep), atol=1e-4)


def test_a_spelling_is_added() -> None:
    done = example("examples/add_a_spelling.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found, without, again, neighbour = re.split(r"^\d\. ", done.stdout, flags=re.M)[1:]
    assert found.count("fused: ") == 3
    assert "Negative, which the kernel cannot do" in without
    assert "hopfield: 1 fused" in again and "verified: True" in again
    assert "distances: 1 refused" in neighbour and "Abs" in neighbour
