"""BERT as people write it in MLX, its attention spelled out, and the loading of a Hugging Face model folder.

The modules carry BERT's own parameter names (`encoder.layer.0.attention.self.query.weight`), so a checkpoint needs no
table of renamings. Nothing in the model knows about fuser; `sentence_embeddings.py` optimises it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}


class FolderError(Exception):
    """What a folder lacks, in one line."""


@dataclass(frozen=True)
class Config:
    """The sizes of a BERT, under the names of `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0


class SelfAttention(nn.Module):
    """Scores, weights and their product with the values, each an array of its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        batch, length, width = x.shape
        depth = width // self.heads

        def split(x: mx.array) -> mx.array:
            return x.reshape(batch, length, self.heads, depth).transpose(0, 2, 1, 3)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(depth)
        weights = mx.softmax(scores + mask, axis=-1)
        return (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)


class Output(nn.Module):
    """A projection, added to what came in and normalised."""

    def __init__(self, width: int, config: Config):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Attention and its projection."""

    def __init__(self, config: Config):
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    """The wide layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    """Attention and MLP."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Embeddings(nn.Module):
    """Words, positions and token types, added and normalised."""

    def __init__(self, config: Config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array) -> mx.array:
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.LayerNorm(x + self.position_embeddings(mx.arange(input_ids.shape[1])))


class Encoder(nn.Module):
    """The layers, under the name that they have in a checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.layer = [Layer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Bert(nn.Module):
    """Tokens `[B, T]` to their last hidden states `[B, T, D]`; `attention_mask` is 0 where a row is padded."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def __call__(self, input_ids: mx.array, attention_mask: mx.array, token_type_ids: mx.array) -> mx.array:
        x = self.embeddings(input_ids, token_type_ids)
        mask = (1 - attention_mask[:, None, None, :]).astype(x.dtype) * mx.finfo(x.dtype).min
        return self.encoder(x, mask)


# -- a model folder ------------------------------------------------------------------------------------------


def load(folder: Path) -> Bert:
    """The BERT of a folder with `config.json` and `model.safetensors`; raises `FolderError`."""
    config = read_config(folder)
    model = Bert(config)
    wanted = dict(tree_flatten(model.parameters()))
    found = read_weights(folder)
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FolderError(f"the weights of {folder} lack {', '.join(missing[:3])}{more}")
    for name, array in wanted.items():
        if found[name].shape != array.shape:
            shapes = f"{found[name].shape}, but config.json makes it {array.shape}"
            raise FolderError(f"{name} in the weights of {folder} is {shapes}")
    # poolers and heads stay behind
    model.update(tree_unflatten([(name, found[name]) for name in wanted]))
    model.eval()
    mx.eval(model.parameters())
    return model


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `FolderError` when it is not there or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path.parent} has no {path.name}: is it the folder of a model?") from None
    except ValueError as error:
        raise FolderError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise FolderError(f"{path} holds no object")
    return content


def read_config(folder: Path) -> Config:
    """The sizes in `config.json`; raises `FolderError` for what is missing, and for what is not a BERT."""
    entries = read_json(folder / "config.json")
    kind = entries.get("model_type", "bert")
    if kind != "bert":
        raise FolderError(f"{folder / 'config.json'} is of a {kind}: this example reads BERT only")
    positions = entries.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise FolderError(f"{folder / 'config.json'} asks for {positions} positions: this example has absolute ones")
    known = {field.name: entries[field.name] for field in fields(Config) if entries.get(field.name) is not None}
    lacking = [field.name for field in fields(Config) if field.default is MISSING and field.name not in known]
    if lacking:
        raise FolderError(f"{folder / 'config.json'} lacks {', '.join(lacking)}")
    config = Config(**known)
    if config.hidden_act not in ACTIVATIONS:
        raise FolderError(f"hidden_act {config.hidden_act} is none of {', '.join(ACTIVATIONS)}")
    return config


def read_weights(folder: Path) -> dict[str, mx.array]:
    """The arrays of `model.safetensors`, or of its shards, under BERT's names of today without a prefix."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        others = "; pytorch_model.bin is not read: save it with safe_serialization=True"
        hint = others if (folder / "pytorch_model.bin").exists() else ""
        raise FolderError(f"{folder} has no model.safetensors{hint}")
    arrays: dict[str, mx.array] = {}
    for file in files:
        try:
            arrays |= mx.load(str(file))
        except RuntimeError as error:
            raise FolderError(f"{file} cannot be read: {error}") from None
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in arrays if name.endswith(anchor)), None)
    if prefix is None:
        raise FolderError(f"the weights of {folder} lack {anchor}: they are not those of a BERT")
    return {today(name.removeprefix(prefix)): array for name, array in arrays.items() if name.startswith(prefix)}


def today(name: str) -> str:
    """The name of a parameter; checkpoints converted from TensorFlow call the two of a LayerNorm gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
