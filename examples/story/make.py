"""How this folder was made: a Llama that learned one story, exported under the names that optimum gives.

It needs what the examples do not: `pip install torch transformers tokenizers onnx`.

    python examples/story/make.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnx
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.cache_utils import DynamicCache

STORY = """the old lighthouse stands on a rock in the sea . every night its lamp turns and tells the ships where the
land begins . a keeper climbs the stairs at dusk , winds the clock and lights the flame . when a storm comes he counts
the waves until the morning , and in the morning he sleeps while the gulls take the watch ."""
LAYERS, OPSET = 2, 17


class Exported(torch.nn.Module):
    """The model with its cache as tensors."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        pairs = [(past[2 * layer], past[2 * layer + 1]) for layer in range(LAYERS)]
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(pairs),
            use_cache=True,
        )
        layers = output.past_key_values.layers
        return output.logits, *(each for layer in layers for each in (layer.keys, layer.values))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = STORY.split()
    vocabulary = {token: id for id, token in enumerate(["[UNK]", *sorted(set(tokens))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    # twice, so that it goes on from the beginning
    ids = torch.tensor([tokenizer.encode(STORY).ids * 2])
    for _ in range(400):
        start = int(torch.randint(0, ids.shape[1] - 40, ()))
        window = ids[:, start : start + 40]
        loss = model(input_ids=window, labels=window).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}")
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    export(model, config, folder / "model.onnx")


def names(kind: str) -> list[str]:
    return [f"{kind}.{layer}.{each}" for layer in range(LAYERS) for each in ("key", "value")]


def export(model: torch.nn.Module, config: transformers.LlamaConfig, path: Path) -> None:
    past = [torch.zeros(1, config.num_key_value_heads, 5, config.head_dim) for _ in range(2 * LAYERS)]
    inputs = (
        torch.zeros(1, 3, dtype=torch.int64),
        torch.ones(1, 8, dtype=torch.int64),
        torch.arange(5, 8)[None],
        *past,
    )
    axes = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {0: "batch_size", 1: "past_sequence_length + sequence_length"},
        "position_ids": {0: "batch_size", 1: "sequence_length"},
        "logits": {0: "batch_size", 1: "sequence_length"},
        **{name: {0: "batch_size", 2: "past_sequence_length"} for name in names("past_key_values")},
        **{name: {0: "batch_size", 2: "past_sequence_length + sequence_length"} for name in names("present")},
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported(model),
            inputs,
            str(path),
            input_names=["input_ids", "attention_mask", "position_ids", *names("past_key_values")],
            output_names=["logits", *names("present")],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.doc_string = ""
    onnx.save(proto, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
