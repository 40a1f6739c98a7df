"""Exports tiny random-weight models with optimum's ONNX exporter, merged decoders included.

    python benchmarks/export_optimum.py OUT [--only llama,t5] [--opset 18]

Needs: pip install torch==2.13.0 optimum-onnx onnxruntime

Every file that optimum writes becomes a folder `OUT/{architecture}_{file}__sdpa__opt{opset}/` in the form of
`export_models.py`, for `check_exports.py`. Inputs are made from what the file declares; a merged decoder is run on both
branches, with and without a past.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.tasks import TasksManager

Arrays = dict[str, np.ndarray]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
BOTH = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64} | {
    "decoder_start_token_id": 0
}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "eos_token_id": 2}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 64}
SPEECH = BOTH | {"max_target_positions": 32, "num_mel_bins": 8, "suppress_tokens": None}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "max_position_embeddings": 64} | {
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}
FEATURES, GENERATION = "feature-extraction", "text-generation-with-past"
PAIR, SPEAKING = "text2text-generation-with-past", "automatic-speech-recognition-with-past"

# class of transformers -> task, options
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "AlbertModel": (FEATURES, SMALL | {"embedding_size": 16}),
    "BertModel": (FEATURES, SMALL),
    "CamembertModel": (FEATURES, SMALL),
    "DebertaV2Model": (FEATURES, SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "DeiTModel": (FEATURES, IMAGE),
    "DistilBertModel": (FEATURES, DISTIL),
    "ElectraModel": (FEATURES, SMALL | {"embedding_size": 16}),
    "MPNetModel": (FEATURES, SMALL),
    "RobertaModel": (FEATURES, SMALL),
    "ViTModel": (FEATURES, IMAGE),
    "XLMRobertaModel": (FEATURES, SMALL),
    "BloomForCausalLM": (GENERATION, {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
    "CodeGenForCausalLM": (GENERATION, GPT2 | {"rotary_dim": 4}),
    "FalconForCausalLM": (GENERATION, SMALL | {"alibi": False, "new_decoder_architecture": False}),
    "GPT2LMHeadModel": (GENERATION, GPT2),
    "GPTJForCausalLM": (GENERATION, GPT2 | {"rotary_dim": 4}),
    "GPTNeoForCausalLM": (GENERATION, NEO),
    "GPTNeoXForCausalLM": (GENERATION, SMALL),
    "GemmaForCausalLM": (GENERATION, GROUPED | {"head_dim": 8}),
    "GraniteForCausalLM": (GENERATION, GROUPED),
    "LlamaForCausalLM": (GENERATION, GROUPED),
    "MistralForCausalLM": (GENERATION, GROUPED),
    "OPTForCausalLM": (GENERATION, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "OlmoForCausalLM": (GENERATION, GROUPED),
    "Phi3ForCausalLM": (GENERATION, GROUPED),
    "PhiForCausalLM": (GENERATION, SMALL),
    "Qwen2ForCausalLM": (GENERATION, GROUPED),
    "Qwen3ForCausalLM": (GENERATION, GROUPED | {"head_dim": 8}),
    "StableLmForCausalLM": (GENERATION, GROUPED),
    "BartForConditionalGeneration": (PAIR, BOTH),
    "BlenderbotForConditionalGeneration": (PAIR, BOTH),
    "M2M100ForConditionalGeneration": (PAIR, BOTH),
    "MBartForConditionalGeneration": (PAIR, BOTH),
    "MT5ForConditionalGeneration": (PAIR, T5),
    "MarianMTModel": (PAIR, BOTH),
    "PegasusForConditionalGeneration": (PAIR, BOTH),
    "T5ForConditionalGeneration": (PAIR, T5),
    "WhisperForConditionalGeneration": (SPEAKING, SPEECH),
}
# what stands before the heads for other tasks is the same
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("fill-mask", SMALL),
    "BertForMultipleChoice": ("multiple-choice", SMALL),
    "BertForQuestionAnswering": ("question-answering", SMALL),
    "BertForSequenceClassification": ("text-classification", SMALL),
    "BertForTokenClassification": ("token-classification", SMALL),
    "GPT2ForSequenceClassification": ("text-classification", GPT2 | {"pad_token_id": 0}),
    "LlamaForSequenceClassification": ("text-classification", GROUPED),
    "ViTForImageClassification": ("image-classification", IMAGE),
    "ViTForMaskedImageModeling": ("masked-im", IMAGE | {"encoder_stride": 8}),
    "GPT2LMHeadModel": ("text-generation", GPT2),
    "LlamaForCausalLM": ("text-generation", GROUPED),
    "T5ForConditionalGeneration": ("text2text-generation", T5),
    "BartForConditionalGeneration": ("text2text-generation", BOTH),
    "WhisperForConditionalGeneration": ("automatic-speech-recognition", SPEECH),
}
TABLES = ("", "_decoders", "_media", "_mixed", "_more", "_rest")
TASKS = {"encoder": FEATURES, "vision": FEATURES, "audio": FEATURES, "decoder": GENERATION, "encdec": PAIR}
OWN_TASKS = {
    "Owlv2ForObjectDetection": "zero-shot-object-detection",
    "MoonshineForConditionalGeneration": SPEAKING,
    "Speech2TextForConditionalGeneration": SPEAKING,
    "SpeechT5ForSpeechToText": SPEAKING,
    "VisionEncoderDecoderModel": "image-to-text-with-past",
}
ENDINGS = ("ForConditionalGeneration", "ForCausalLM", "LMHeadModel", "MTModel", "Model")
LAYERS = 2
SIZED = ("pixel_values", "pixel_mask", "input_values", "input_features")


@dataclass(frozen=True)
class Model:
    """One model, and how it is exported."""

    name: str
    cls: str
    task: str
    options: dict[str, Any]
    truth: int = LAYERS  # of a file that is neither an encoder nor a decoder
    inputs: dict[str, str] = field(default_factory=dict)  # sizes of images and sounds, as in `export_configs.py`
    dims: tuple[dict[str, int], ...] = ({},)  # of each set


@dataclass(frozen=True)
class Sizes:
    """The dimensions of one set of inputs."""

    batch: int
    new: int
    past: int
    source: int
    cached: bool = True

    def of(self, dim: str) -> int:
        """The size of a dimension, by the names that optimum gives."""
        low = dim.lower()
        if "+" in dim:
            return sum(self.of(part) for part in dim.split("+"))
        if dim.strip().isdigit():
            return int(dim)
        if "batch" in low:
            return self.batch
        if "past" in low:
            return self.past
        if "encoder_sequence" in low:
            return self.source
        return {"num_channels": 3, "height": 32, "width": 32}.get(low.strip(), self.new)


SETS = (Sizes(2, 3, 4, 6), Sizes(1, 1, 7, 5), Sizes(2, 4, 2, 3, cached=False))


def models() -> Iterator[Model]:
    """Those of this file, and one of each other type that optimum takes, from the table of `export_models.py`."""
    for cls, (task, options) in MODELS.items():
        ending = next(end for end in ENDINGS if cls.endswith(end))
        yield Model(cls.removesuffix(ending).lower(), cls, task, options)
    for cls, (task, options) in HEADS.items():
        yield Model(f"{cls.removesuffix('LMHeadModel').partition('For')[0].lower()}-{task}", cls, task, options)
    known = {getattr(transformers, cls).config_class.model_type for cls in MODELS}
    taken = {name.replace("_", "-"): kinds.get("onnx") for name, kinds in TasksManager._SUPPORTED_MODEL_TYPE.items()}
    for table in TABLES:
        for recipe in importlib.import_module(f"export_configs{table}").RECIPES:
            kind = getattr(getattr(transformers, recipe.model, None), "config_class", None)
            task = OWN_TASKS.get(recipe.model, TASKS.get(recipe.family, ""))
            backbone = "backbone_config" in recipe.options  # these versions want its weights from the network
            if kind and not recipe.shrunk and not backbone and kind.model_type not in known and not recipe.part:
                tasks = taken.get(kind.model_type.replace("_", "-")) or {}
                task = task if task in tasks else task.removesuffix("-with-past")
                if task in tasks:
                    known.add(kind.model_type)
                    dims = tuple(dims for _, dims in recipe.sets)
                    yield Model(recipe.name, recipe.model, task, recipe.options, recipe.truth, recipe.inputs, dims)


def build(cls: str, options: dict[str, Any]) -> transformers.PreTrainedModel:
    """The model with random weights: wide enough that its attentions are not nearly uniform."""
    torch.manual_seed(0)
    kind = getattr(transformers, cls)
    model: transformers.PreTrainedModel = kind(kind.config_class(**options)).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data = torch.randn_like(parameter) * (parameter.numel() / parameter.shape[0]) ** -0.5
    return model


def feed(session: ort.InferenceSession, model: Model, sizes: Sizes, seed: int) -> Arrays:
    """Inputs for what the session declares."""
    known = {**model.dims[seed % len(model.dims)], "batch": sizes.batch}
    random = np.random.default_rng(seed)
    names = {value.name for value in session.get_inputs()}
    made: Arrays = {}
    given = {name: model.inputs[name].split()[1:] for name in SIZED if name in names and name in model.inputs}
    shapes = {name: [int(w) if w.isdigit() else known[w] for w in words] for name, words in given.items()}
    # a dimension of the same name has the same size elsewhere
    pairs = [zip(v.shape, shapes[v.name], strict=True) for v in session.get_inputs() if v.name in shapes]
    bound = dict(chain.from_iterable(pairs))
    for value in session.get_inputs():
        shape = shapes.get(value.name) or [
            dim if isinstance(dim, int) else bound.get(dim) or sizes.of(str(dim)) for dim in value.shape
        ]
        if value.name == "use_cache_branch":
            made[value.name] = np.array([sizes.cached])
        elif "mask" in value.name:
            made[value.name] = np.ones(shape, np.int64)
            if shape[0] > 1:
                made[value.name][0, :1] = 0  # padding on the left, and at the encoder's
        elif value.name == "position_ids":
            start = sizes.past if any(name.startswith("past") for name in names) else 0
            made[value.name] = np.broadcast_to(np.arange(shape[-1]) + start, shape).copy()
        elif value.name == "token_type_ids":
            made[value.name] = np.zeros(shape, np.int64)
        elif value.type == "tensor(int64)":
            made[value.name] = random.integers(3, 60, shape)
        else:
            made[value.name] = random.standard_normal(shape, np.float32)
    return made


def truth(file: str, model: Model) -> int:
    """The attentions that a run executes: in decoders of a pair there are two in each layer."""
    return 2 * LAYERS if file.startswith("decoder") else LAYERS if file.startswith("encoder") else model.truth


def runs(path: Path, model: Model) -> Iterator[tuple[Arrays, Arrays]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    for number, sizes in enumerate(SETS):
        inputs = feed(session, model, sizes, number)
        yield inputs, dict(zip(outputs, session.run(outputs, inputs), strict=True))


def keep(path: Path, model: Model, file: str, opset: int, out: Path) -> str:
    """Writes one folder; what to say about it."""
    folder = out / f"{model.name}_{file}__sdpa__opt{opset}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    graph = onnx.load(path)
    if any(node.op_type.startswith("Random") for node in graph.graph.node):
        raise ValueError("draws random numbers: there is nothing to compare")
    onnx.save(graph, folder / "model.onnx")
    stored: Arrays = {}
    sets = []
    for number, (inputs, outputs) in enumerate(runs(path, model)):
        stored |= {f"set{number}/in/{key}": array for key, array in inputs.items()}
        stored |= {f"set{number}/out/{key}": array for key, array in outputs.items()}
        sets.append({"set": number, "label": "cached" if SETS[number].cached else "fresh"})
    np.savez(folder / "io.npz", **stored)  # type: ignore[arg-type]
    meta = {
        "name": folder.name,
        "exporter": "optimum",
        "truth": truth(file, model),
        "nodes": len(graph.graph.node),
        "sets": sets,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return f"{folder.name}: {meta['nodes']} nodes, {len(sets)} sets"


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Exports tiny models with optimum, with inputs and outputs.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="architectures, with commas; all by default")
    parser.add_argument("--opset", type=int, default=18)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    only = set(filter(None, options.only.split(",")))
    failed = 0
    for model in models():
        if only and model.name not in only:
            continue
        with tempfile.TemporaryDirectory() as draft:
            try:
                built = build(model.cls, model.options)
                onnx_export_from_model(built, draft, task=model.task, opset=options.opset, do_validation=False)
            except Exception as error:
                failed += 1
                print(f"{model.name}: FAILED {short(error)}", flush=True)
                continue
            for path in sorted(Path(draft).glob("*.onnx")):
                file = path.stem.removesuffix("_model").removeprefix("model") or "model"
                try:
                    print(keep(path, model, file.replace("_model", ""), options.opset, options.out), flush=True)
                except Exception as error:
                    failed += 1
                    shutil.rmtree(options.out / f"{model.name}_{file}__sdpa__opt{options.opset}", ignore_errors=True)
                    print(f"{model.name} {file}: FAILED {short(error)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
