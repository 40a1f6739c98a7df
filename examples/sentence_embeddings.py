"""Sentence embeddings of a BERT from a Hugging Face model folder, fused: which sentences mean nearly the same?

    hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-MiniLM-L6-v2
    python examples/sentence_embeddings.py all-MiniLM-L6-v2
    python examples/sentence_embeddings.py all-MiniLM-L6-v2 --onnx all-MiniLM-L6-v2/onnx/model.onnx
    python examples/sentence_embeddings.py all-MiniLM-L6-v2 "A cat sleeps." "A dog barks." "The kitten naps."

The folder is any BERT as the `transformers` library saves it: `config.json`, `model.safetensors`, `tokenizer.json`,
and `1_Pooling/config.json` where it is a sentence encoder. `make_bert_folder.py` makes a small one without a network.
The exit status is 1 when a sentence has another neighbour than unfused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
from bert import FolderError, load, read_json
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

import fuser

SENTENCES = (
    "The cook stirs the soup and adds a little salt.",
    "The captain steers the ship into the harbour.",
    "Fresh bread comes out of the hot oven.",
    "A violin plays the slow melody once more.",
    "Waves broke over the deck of the boat all night.",
    "The bank asks for more interest on a loan.",
    "She sings a song while he plays the piano.",
    "He pays his debts with the money that he saved.",
)
BATCH = 32
# each length is traced once: with lengths of a few sizes only, there are few traces
MULTIPLE = 16
# of similarities, between which a neighbour is a matter of rounding
TIE = 1e-3

Batch = dict[str, np.ndarray]
Encoder = Callable[[Batch], mx.array]


@click.command(help=__doc__.partition("\n")[0])
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("sentences", nargs=-1)
@click.option("--onnx", type=click.Path(path_type=Path), help="Run this export of the model, not its weights.")
def main(folder: Path, sentences: tuple[str, ...], onnx: Path | None) -> None:
    if len(sentences) == 1:
        raise click.UsageError("one sentence has no neighbour: give two or more, or none for a list of eight")
    try:
        batches = tokenized(folder, sentences or SENTENCES)
        pool = pooling(folder)
        plain, fused, report = from_onnx(onnx) if onnx else from_weights(folder)
        wanted = embeddings(plain, batches, pool)
        found = embeddings(fused, batches, pool)
    except (FolderError, fuser.FuserError, OSError) as error:
        raise click.ClickException(str(error)) from None
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    same = show(out, sentences or SENTENCES, wanted, found)
    out.print()
    out.print(report())
    sys.exit(0 if same else 1)


# -- the folder ----------------------------------------------------------------------------------------------


def tokenized(folder: Path, sentences: Sequence[str]) -> list[Batch]:
    """The sentences as batches of tokens, each padded to its longest; those too long are cut."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FolderError(f"{folder} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    config = read_json(folder / "config.json")
    longest = config.get("max_position_embeddings", 512)
    if (folder / "sentence_bert_config.json").exists():
        longest = min(longest, read_json(folder / "sentence_bert_config.json").get("max_seq_length") or longest)
    tokenizer.enable_truncation(longest)
    # the file may ask for one fixed length
    padding = tokenizer.padding or {"pad_id": config.get("pad_token_id") or 0, "pad_token": "[PAD]"}
    multiple = MULTIPLE if longest % MULTIPLE == 0 else None
    tokenizer.enable_padding(
        pad_id=padding["pad_id"], pad_token=padding["pad_token"], length=None, pad_to_multiple_of=multiple
    )
    batches = []
    for start in range(0, len(sentences), BATCH):
        encoded = tokenizer.encode_batch(list(sentences[start : start + BATCH]))
        batches.append(
            {
                "input_ids": np.array([each.ids for each in encoded]),
                "attention_mask": np.array([each.attention_mask for each in encoded]),
                "token_type_ids": np.array([each.type_ids for each in encoded]),
            }
        )
    return batches


def pooling(folder: Path) -> str:
    """How the folder makes one vector of many: `mean`, `cls` or `max`."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    entries = read_json(path)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    asked = [name for name, on in entries.items() if name.startswith("pooling_mode_") and on is True]
    modes = [names.get(name, name) for name in asked] or [entries.get("pooling_mode", "mean")]
    if len(modes) > 1 or modes[0] not in names.values():
        raise FolderError(f"{path} asks for {' and '.join(map(str, modes))}: this example has one of mean, cls, max")
    return modes[0]


def from_weights(folder: Path) -> tuple[Encoder, Encoder, Callable[[], fuser.Report]]:
    """The BERT of the folder unfused and fused, and the report of what was run last."""
    model = load(folder)
    fast = fuser.optimize(model)

    def encoder(run: Callable[..., mx.array]) -> Encoder:
        return lambda batch: run(**{name: mx.array(array) for name, array in batch.items()})

    return encoder(model), encoder(fast), lambda: fast.report


def from_onnx(path: Path) -> tuple[Encoder, Encoder, Callable[[], fuser.Report]]:
    """An export likewise."""
    plain, fast = fuser.load_onnx(path, fuse=False), fuser.load_onnx(path)
    names = [info.name for info in fast.inputs]
    (output, *_) = [info.name for info in fast.outputs if len(info.shape or ()) == 3] or [fast.outputs[0].name]

    def encoder(run: fuser.Model) -> Encoder:
        return lambda batch: run(**{name: array for name, array in batch.items() if name in names})[output]

    return encoder(plain), encoder(fast), lambda: fast.report


# -- embeddings ----------------------------------------------------------------------------------------------


def embeddings(encoder: Encoder, batches: list[Batch], pool: str) -> np.ndarray:
    """A vector of length 1 for each sentence, `[sentences, D]`."""
    rows = []
    for batch in batches:
        hidden = encoder(batch).astype(mx.float32)
        kept = mx.array(batch["attention_mask"])[..., None]
        if pool == "cls":
            vectors = hidden[:, 0]
        elif pool == "max":
            vectors = mx.where(kept != 0, hidden, -mx.inf).max(axis=1)
        else:
            vectors = (hidden * kept).sum(axis=1) / kept.sum(axis=1)
        rows.append(np.array(vectors / mx.linalg.norm(vectors, axis=-1, keepdims=True)))
    return np.concatenate(rows)


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarities of all pairs, and of each sentence its neighbour."""
    similar = vectors @ vectors.T
    return similar, np.argmax(np.where(np.eye(len(similar), dtype=bool), -np.inf, similar), axis=1)


def show(out: Console, sentences: Sequence[str], wanted: np.ndarray, found: np.ndarray) -> bool:
    """Print the table; true when each sentence has the neighbour that it has unfused."""
    unfused, _ = nearest(wanted)
    similar, neighbours = nearest(found)
    numbers = range(len(sentences)) if len(sentences) <= 10 else ()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", justify="right")
    table.add_column("sentence", overflow="fold")
    for column in numbers:
        table.add_column(str(column + 1), justify="right")
    table.add_column("nearest", justify="right")
    for row, sentence in enumerate(sentences):
        near = neighbours[row]
        styles = {near: "bold green", row: "dim"}
        cells = [Text(f"{similar[row, column].round(2) + 0:.2f}", styles.get(column, "")) for column in numbers]
        last = f"{near + 1}" if numbers else f"{near + 1} ({similar[row, near]:.2f})"
        table.add_row(str(row + 1), Text(sentence), *cells, Text(last, "bold green"))
    out.print(table)
    rows = np.arange(len(sentences))
    best = np.where(np.eye(len(sentences), dtype=bool), -np.inf, unfused).max(axis=1)
    others = np.flatnonzero(unfused[rows, neighbours] < best - TIE)
    out.print()
    for row in others:
        out.print(Text(f"sentence {row + 1} has another neighbour unfused", "bold red"))
    difference = np.abs(similar - unfused).max()
    if not len(others):
        out.print(f"Every neighbour is the same unfused; similarities differ by {difference:.0e} at most.")
    return not len(others)


if __name__ == "__main__":
    main()
