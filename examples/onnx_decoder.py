"""Text from an ONNX decoder with a cache of keys and values, fused: greedy, and the same tokens as ONNX Runtime.

    python examples/onnx_decoder.py
    python examples/onnx_decoder.py FOLDER --prompt "when a storm comes" --tokens 40

FOLDER has `model.onnx` and `tokenizer.json`, as `optimum-cli export onnx --task text-generation-with-past` writes them:
inputs `past_key_values.N.key`, outputs `present.N.key`. Without one, a small Llama that knows one story is run.

A cache that grows by one token in each step has a new shape in each step, and so a new trace. Here the cache has
room: it is padded on the left, where the attention mask hides it, to a multiple of 32. A token takes the place of one
column of padding, so that shapes stay, and the cache is made larger only when it is full.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

import fuser

STORY = Path(__file__).parent / "story"
ROOM = 32

Arrays = dict[str, np.ndarray]
Step = Callable[[Arrays], dict[str, mx.array]]


@click.command(help=__doc__.partition("\n")[0])
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=STORY)
@click.option("--prompt", default="the old lighthouse", show_default=True)
@click.option("--tokens", default=60, show_default=True, help="How many to generate.")
def main(folder: Path, prompt: str, tokens: int) -> None:
    if not (folder / "tokenizer.json").exists():
        raise click.ClickException(f"{folder} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    try:
        model = fuser.load_onnx(folder / "model.onnx")
        start = time.perf_counter()
        generated = with_room(model, ids, tokens)
        seconds = time.perf_counter() - start
    except fuser.FuserError as error:
        raise click.ClickException(str(error)) from None

    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    out.print(Text.assemble((tokenizer.decode(ids), "dim"), " ", tokenizer.decode(generated)))
    out.print(f"\n{tokens} tokens, {1000 * seconds / tokens:.1f} ms each, traces and all.", end=" ")
    out.print(f"{model.traces} traces; a cache that grows has {tokens} shapes. The last step:\n")
    out.print(model.report)
    if find_spec("onnxruntime") is None:
        out.print("\nONNX Runtime is not installed: nothing to compare with.")
        return
    same = growing(folder / "model.onnx", model, ids, tokens) == generated
    out.print(f"\nONNX Runtime, with a cache that grows: {'the same tokens' if same else 'OTHER TOKENS'}.")
    sys.exit(0 if same else 1)


def caches(model: fuser.Model) -> dict[str, str]:
    """The inputs that are a cache, each with the output that is to be its next value."""
    presents = {info.name.removeprefix("present"): info.name for info in model.outputs if info.name[:7] == "present"}
    pairs = {}
    for info in model.inputs:
        if info.name.startswith("past"):
            rest = info.name.removeprefix("past_key_values").removeprefix("past")
            if rest not in presents:
                raise click.ClickException(f"the input {info.name} has no output that is its next value")
            pairs[info.name] = presents[rest]
    if not pairs:
        raise click.ClickException("the model has no cache: no input is called past_key_values.0.key or the like")
    return pairs


def empty(model: fuser.Model, pairs: dict[str, str]) -> dict[str, mx.array]:
    """Caches `[1, heads, 0, depth]`."""
    arrays = {}
    for info in model.inputs:
        if info.name in pairs:
            _, heads, _, depth = info.shape if info.shape and len(info.shape) == 4 else (None,) * 4
            if not isinstance(heads, int) or not isinstance(depth, int):
                raise click.ClickException(
                    f"the shape of {info.name} is not [batch, heads, length, depth] with numbers"
                )
            arrays[info.name] = mx.zeros((1, heads, 0, depth), info.dtype)
    return arrays


def tokens_of(model: fuser.Model, ids: list[int], hidden: int, seen: int) -> Arrays:
    """What the model asks for of `ids`, behind a cache of `hidden` columns of padding and `seen` tokens."""
    given = {
        "input_ids": np.array([ids]),
        "attention_mask": np.array([[0] * hidden + [1] * (seen + len(ids))]),
        "position_ids": np.arange(seen, seen + len(ids))[None],
    }
    return {info.name: given[info.name] for info in model.inputs if info.name in given}


def with_room(model: fuser.Model, prompt: list[int], tokens: int) -> list[int]:
    """The most likely tokens; the cache has room, so that few shapes are traced."""
    pairs = caches(model)
    cache = empty(model, pairs)
    generated: list[int] = []
    ids, hidden, seen = prompt, 0, 0
    while len(generated) < tokens:
        outputs = model(**tokens_of(model, ids, hidden, seen), **cache)
        generated.append(int(mx.argmax(outputs["logits"][0, -1]).item()))
        seen += len(ids)
        ids = generated[-1:]
        hidden = -seen % ROOM
        padding = ((0, 0), (0, 0), (hidden, 0), (0, 0))
        cache = {past: mx.pad(outputs[present][:, :, -seen:], padding) for past, present in pairs.items()}
    return generated


def growing(path: Path, model: fuser.Model, prompt: list[int], tokens: int) -> list[int]:
    """The same by ONNX Runtime, the plain way."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pairs = caches(model)
    names = [output.name for output in session.get_outputs()]
    cache = {name: np.array(array) for name, array in empty(model, pairs).items()}
    generated: list[int] = []
    ids, seen = prompt, 0
    while len(generated) < tokens:
        found = dict(zip(names, session.run(None, {**tokens_of(model, ids, 0, seen), **cache}), strict=True))
        generated.append(int(found["logits"][0, -1].argmax()))
        seen += len(ids)
        ids = generated[-1:]
        cache = {past: found[present] for past, present in pairs.items()}
    return generated


if __name__ == "__main__":
    main()
