"""Sentence embeddings of a BERT folder, from its weights and from its export; the script that makes such a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import fuser
from tests.conftest import ROOT
from tests.test_examples import example

# two of each subject
NEIGHBOURS = [3, 5, 1, 7, 2, 8, 4, 6]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    done = example("examples/make_bert_folder.py", str(folder))
    assert done.returncode == 0, done.stderr
    assert "seed 0" in done.stdout and done.stderr == ""
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """One to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def bert(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return import_module("bert")


@pytest.fixture
def embeddings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return import_module("sentence_embeddings")


def test_the_folder_is_small_and_laid_out_as_others(made: Path) -> None:
    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "onnx/model.onnx"}
    assert sum((made / name).stat().st_size for name in names) < 1_000_000
    weights = mx.load(str(made / "model.safetensors"))
    assert isinstance(weights, dict) and "encoder.layer.1.attention.self.query.weight" in weights


def test_a_folder_is_not_overwritten(made: Path) -> None:
    done = example("examples/make_bert_folder.py", str(made))
    assert done.returncode == 1 and done.stderr == f"Error: {made} is not empty\n"


@pytest.mark.parametrize("onnx", [False, True], ids=["weights", "export"])
def test_sentences_find_their_neighbours(made: Path, onnx: bool) -> None:
    options = ["--onnx", str(made / "onnx" / "model.onnx")] if onnx else []
    done = example("examples/sentence_embeddings.py", str(made), *options)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [int(line.split()[-1]) for line in lines[2:10]] == NEIGHBOURS
    assert "Every neighbour is the same unfused" in done.stdout
    assert "2 of 2 attentions fused" in done.stdout


def test_sentences_of_ones_own(made: Path) -> None:
    sentences = ["The gardener plants roses.", "The bank lends money.", "Bees visit the flowers."]
    done = example("examples/sentence_embeddings.py", str(made), *sentences)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()[2:5:2]] == ["3", "1"]


def test_weights_and_export_are_one_model(made: Path, bert: Any, embeddings: Any) -> None:
    (batch,) = embeddings.tokenized(made, embeddings.SENTENCES)
    assert batch["attention_mask"].min() == 0
    session = onnxruntime.InferenceSession(str(made / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, batch)
    model = bert.load(made)
    fast = fuser.optimize(model)
    for run in (model, fast):
        np.testing.assert_allclose(run(**{name: mx.array(each) for name, each in batch.items()}), wanted, atol=1e-4)
    assert [region.name for region in fast.report.regions] == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert {region.mask for region in fast.report.regions} == {"additive"}


def test_a_sentence_is_the_same_in_a_longer_batch(made: Path, embeddings: Any) -> None:
    short, long = "The violin plays.", "The captain sails the old ship out of the harbour and the wind drives it along."
    _, fused, report = embeddings.from_weights(made)
    alone = embeddings.embeddings(fused, embeddings.tokenized(made, [short]), "mean")
    beside = embeddings.embeddings(fused, embeddings.tokenized(made, [short, long]), "mean")
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)
    assert report().counts["fused"] == 2


def older(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {f"bert.{name}": array for name, array in weights.items()},
        lambda weights: {older(name): array for name, array in weights.items()},
        lambda weights: {name: array.astype(mx.float16) for name, array in weights.items()},
        lambda weights: weights | {"embeddings.position_ids": mx.arange(64)[None], "pooler.dense.bias": mx.zeros(48)},
    ],
    ids=["prefix", "gamma and beta", "float16", "more than is used"],
)
def test_weights_as_others_store_them(
    made: Path, folder: Path, embeddings: Any, change: Callable[[dict[str, mx.array]], dict[str, mx.array]]
) -> None:
    weights = mx.load(str(made / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), change(weights))
    batches = embeddings.tokenized(folder, embeddings.SENTENCES)
    wanted = embeddings.embeddings(embeddings.from_weights(made)[0], batches, "mean")
    _, fused, report = embeddings.from_weights(folder)
    np.testing.assert_allclose(embeddings.embeddings(fused, batches, "mean"), wanted, atol=1e-2)
    assert report().counts["fused"] == 2


def test_weights_in_shards(made: Path, folder: Path, bert: Any) -> None:
    weights = mx.load(str(made / "model.safetensors"))
    assert isinstance(weights, dict)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = folder / f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(file), {name: weights[name] for name in part})
    ids = mx.array([[2, 9, 8, 3]])
    assert mx.array_equal(
        bert.load(folder)(ids, ids != 0, ids * 0),
        bert.load(made)(ids, ids != 0, ids * 0),
    )


@pytest.mark.parametrize("mode", ["cls", "max", "mean"])
def test_the_folder_says_how_it_pools(folder: Path, embeddings: Any, mode: str) -> None:
    names = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens"}
    entries = {name: name == names[mode] for name in names.values()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(entries))
    batches = embeddings.tokenized(folder, embeddings.SENTENCES)
    plain, fused, _ = embeddings.from_weights(folder)
    found = embeddings.embeddings(fused, batches, embeddings.pooling(folder))
    hidden = np.array(plain(batches[0]))
    kept = batches[0]["attention_mask"][..., None]
    wanted = {
        "cls": hidden[:, 0],
        "max": np.where(kept == 1, hidden, -np.inf).max(axis=1),
        "mean": (hidden * kept).sum(axis=1) / kept.sum(axis=1),
    }[mode]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def config(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def lacking(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = mx.load(str(path))
        assert isinstance(weights, dict)
        kept = {name: mx.array(np.array(each)) for name, each in weights.items() if not name.startswith(names)}
        mx.save_safetensors(str(path), kept)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("tokenizer.json"), "has no tokenizer.json"),
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no model.safetensors"),
        (config(model_type="roberta"), "is of a roberta"),
        (config(hidden_size=None), "config.json lacks hidden_size"),
        (config(hidden_act="swish"), "hidden_act swish is none of gelu"),
        (config(intermediate_size=97), "encoder.layer.0.intermediate.dense.weight in the weights of"),
        (config(position_embedding_type="relative_key"), "relative_key positions"),
        (lacking("encoder.layer.1"), "lack encoder.layer.1.attention.self.query.weight"),
        (lacking("embeddings.word"), "they are not those of a BERT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_said_in_one_line(
    folder: Path, embeddings: Any, change: Callable[[Path], None], words: str
) -> None:
    change(folder)
    result = CliRunner().invoke(embeddings.main, [str(folder)])
    assert result.exit_code == 1
    assert words in result.stderr and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_more_sentences_than_a_table_is_wide(made: Path, embeddings: Any) -> None:
    sentences = [
        f"{each} {word}" for word in ("Roses.", "Bread.", "Money.", "Waves.", "Songs.") for each in embeddings.SENTENCES
    ]
    assert len(sentences) > embeddings.BATCH
    result = CliRunner().invoke(embeddings.main, [str(made), *sentences])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()[2:42]]
    assert [row[0] for row in rows] == [str(number + 1) for number in range(40)]
    assert all(0.5 < float(row[-1].strip("()")) <= 1.01 for row in rows)
