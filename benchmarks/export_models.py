"""Exports tiny random-weight models with torch's own ONNX exporters, to test the ONNX frontend on.

    python benchmarks/export_models.py OUT [--only bert,llama] [--exporters ts17,dyn18] [--attns eager]

Needs: pip install torch==2.13.0 transformers diffusers onnxruntime onnxscript scipy

`export_configs*.py` beside this file are the table of architectures. Each export becomes a folder
`OUT/{arch}__{attn}__{exporter}/`, which appears when it is complete:

- `model.onnx`: what the exporter wrote, except that the stack traces are cut (they carry paths);
- `io.npz`: `set{k}/in/{name}` and `set{k}/out/{name}`, outputs by ONNX Runtime's CPU kernels with its graph
  optimisations off; sets that ONNX Runtime cannot run are left out;
- `meta.json`: the architecture, how many attentions one run executes, names of inputs and outputs, the sets.

A line is printed for each export, with the reason where it failed; exports that are there already are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from export_configs import Recipe, unmasked
from export_configs_mixed import HALF as HALVED
from export_inputs import Arrays, axes, feed
from export_tiny import tiny
from torch.onnx._internal.exporter._capture_strategies import CaptureStrategy, Result
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

TABLES = (
    "",
    "_decoders",
    "_media",
    "_mixed",
    "_more",
    "_rest",
    "_parts",
    "_whole",
    "_vlm",
    "_last",
    "_diffusers",
    "_vaes",
    "_latents",
    "_wide",
)
SINGLE: list[Recipe] = [r for t in TABLES for r in importlib.import_module(f"export_configs{t}").RECIPES]
# ONNX Runtime adds in float32, where float16's smallest number swallows no score
HALF = [replace(unmasked(r), name=f"{r.name}_fp16", half=True) for r in SINGLE if r.name in HALVED.split()]
RECIPES = (*SINGLE, *HALF)
EXPORTERS = {"ts14": 14, "ts17": 17, "ts18": 18, "ts20": 20, "dyn18": 18, "dyn20": 20, "dyn23": 23}
capture = CaptureStrategy.__call__
CAPTURED: dict[str, Result] = {}  # of one architecture and attention


class Unsupported(Exception):
    """The architecture does not have what was asked for; not a failure of the exporter."""


class Late(BaseException):
    """An export takes too long; no `Exception`, which the exporters would take for a failure of one of their ways."""


# --- the model ---


def build(recipe: Recipe, attn: str) -> torch.nn.Module:
    """The model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    library, _, name = recipe.model.rpartition(".")
    cls = getattr(importlib.import_module(library or "transformers"), name)
    if library == "diffusers":
        model = cls(**recipe.options)
        if attn == "eager":
            attention = importlib.import_module("diffusers.models.attention_processor")
            for module in model.modules():
                if isinstance(module, attention.Attention):
                    module.set_processor(attention.AttnProcessor())
    else:
        try:
            options = tiny(cls.config_class(), recipe.options) if recipe.shrunk else recipe.options
            config = cls.config_class(**options)
            # the default for mixtures of experts has no counterpart in TorchScript
            experts = {"experts_implementation": "batched_mm"} if "experts" in " ".join(options) else {}
            backbone = getattr(config, "backbone_config", None) is not None  # convolutions, without attention
            chosen = {"": attn, "backbone_config": "eager"} if backbone else attn
            model = cls._from_config(config, attn_implementation=chosen, **experts)
        except ValueError as error:
            if "does not support an attention implementation" in str(error):
                raise Unsupported(f"has no {attn} attention") from None
            raise
    for parameter in model.parameters():  # the usual initialisation makes every attention nearly uniform
        if parameter.requires_grad and parameter.is_floating_point():
            wide = parameter.dim() >= 2
            spread = (parameter.numel() / parameter.shape[0]) ** -0.5 if wide else 0.1
            noise = torch.randn_like(parameter) * spread
            parameter.data = noise if wide else parameter.data + noise
    model.requires_grad_(False)
    return (model.half() if recipe.half else model).eval()


class Wrapper(torch.nn.Module):
    """The model as a function of plain tensors: caches are taken apart, outputs are picked by name."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the recipe, for its inputs in their order."""
        given: dict[str, Any] = dict(zip(self.recipe.inputs, values, strict=True))
        caches = [_cache(given, prefix) for prefix in ("past", "cross")]
        if caches[0] is not None:
            across = caches[1] if caches[1] is not None else DynamicCache()
            pair = self.recipe.family == "encdec_past"
            given["past_key_values"] = EncoderDecoderCache(caches[0], across) if pair else caches[0]
        if self.recipe.family == "encdec_past":
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=given.pop("encoder_hidden_states"))
        given |= {name: list(given[name].unbind()) for name in self.recipe.listed}
        target: Any = self.model
        for part in self.recipe.part.split(".") if self.recipe.part else []:
            target = getattr(target, part)
        return tuple(_pick(target(**given, **self.recipe.fixed), self.recipe.outputs))


def _cache(given: dict[str, Any], prefix: str) -> DynamicCache | None:
    layers = 0
    cache = DynamicCache()
    while f"{prefix}_key_{layers}" in given:
        key, value = (given.pop(f"{prefix}_{kind}_{layers}") for kind in ("key", "value"))
        cache.update(key, value, layers)
        layers += 1
    return cache if layers else None


def _pick(result: Any, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    for place, name in enumerate(names):
        if name.startswith("present_"):
            cache = result.past_key_values
            cache = getattr(cache, "self_attention_cache", cache)
            _, kind, layer = name.split("_")
            yield getattr(cache.layers[int(layer)], f"{kind}s")
        elif isinstance(result, torch.Tensor):
            yield result
        else:
            found = getattr(result, name, None)
            found = result[place] if found is None else found
            yield found[-1] if isinstance(found, list | tuple) else found


# --- the export ---


def export(recipe: Recipe, model: torch.nn.Module, exporter: str, path: Path) -> str:
    """Writes `path`; a note about the dynamic axes, if they are fewer than wished for."""
    wrapper = Wrapper(model, recipe)
    arrays = feed(recipe, *recipe.sets[0], seed=0)
    args = tuple(torch.from_numpy(array) for array in arrays.values())
    common: dict[str, Any] = {
        "input_names": list(recipe.inputs),
        "output_names": list(recipe.outputs),
        "opset_version": EXPORTERS[exporter],
    }
    named = {name: axes(recipe, name) for name in recipe.inputs}
    if exporter.startswith("ts"):
        torch.onnx.export(wrapper, args, str(path), dynamo=False, dynamic_axes=named, **common)
        return ""
    common |= {"dynamo": True, "external_data": False, "verbose": False}
    CaptureStrategy.__call__ = once
    named_shapes = (tuple(named.values()),)
    free = torch.export.Dim.AUTO
    auto_shapes = (tuple(dict.fromkeys(found, free) for found in named.values()),)
    try:
        torch.onnx.export(wrapper, args, str(path), dynamic_shapes=named_shapes, **common)
        return ""
    except Exception:
        torch.onnx.export(wrapper, args, str(path), dynamic_shapes=auto_shapes, **common)
        return "axes found by the exporter"


def once(strategy: CaptureStrategy, model: torch.nn.Module, *given: Any, dynamic_shapes: Any) -> Result:
    """What torch.export captures is the same for every opset, and takes a good part of the time."""
    key = f"{type(strategy).__name__} {dynamic_shapes}"
    if key not in CAPTURED:
        CAPTURED[key] = capture(strategy, model, *given, dynamic_shapes=dynamic_shapes)
    return CAPTURED[key]


def clean(path: Path) -> int:
    """Cuts the stack traces out of the model; how many nodes it has."""
    model = onnx.load(str(path))
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for node in graph.node:
            kept = [prop for prop in node.metadata_props if not prop.key.endswith("stack_trace")]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
            node.ClearField("doc_string")
    onnx.save(model, str(path))
    return len(model.graph.node)


def run_sets(recipe: Recipe, path: Path) -> tuple[Arrays, list[dict[str, Any]], list[str]]:
    """The stored arrays, a description of each set that ONNX Runtime ran, why it did not run the others."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    stored: Arrays = {}
    described: list[dict[str, Any]] = []
    refused: list[str] = []
    for number, (label, dims) in enumerate(recipe.sets):
        inputs = {k: v for k, v in feed(recipe, label, dims, seed=number).items() if k in wanted}
        try:
            outputs = session.run(list(recipe.outputs), inputs)
        except Exception as error:
            refused.append(f"set {number}: {short(error)}")
            continue
        stored |= {f"set{number}/in/{name}": array for name, array in inputs.items()}
        stored |= {f"set{number}/out/{n}": array for n, array in zip(recipe.outputs, outputs, strict=True)}
        nan = any(np.isnan(a).any() for a in outputs if a.dtype.kind == "f")
        described.append({"set": number, "label": label, "ort_nan": bool(nan)})
    return stored, described, refused


def one(recipe: Recipe, attn: str, exporter: str, model: torch.nn.Module, out: Path) -> str:
    """Writes one folder; what to say about it."""
    name = f"{recipe.name}__{attn}__{exporter}"
    draft = out / f".{name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        note = export(recipe, model, exporter, draft / "model.onnx")
        nodes = clean(draft / "model.onnx")
        # its Attention gives zeros where a whole row of the mask is float32's smallest number
        fed = unmasked(recipe) if recipe.finite and EXPORTERS[exporter] >= 23 else recipe
        stored, described, refused = run_sets(fed, draft / "model.onnx")
        inputs = [key.split("/", 2)[2] for key in stored if key.startswith(f"{next(iter(stored), '')[:5]}in/")]
        if not described:
            raise RuntimeError("ONNX Runtime runs no set: " + refused[0])
        np.savez(draft / "io.npz", **stored)  # type: ignore[arg-type]
        meta = {
            "name": name,
            "arch": recipe.name,
            "attn": attn,
            "exporter": "torch.onnx " + ("torchscript" if exporter.startswith("ts") else "dynamo"),
            "want_opset": EXPORTERS[exporter],
            "truth": recipe.truth,
            "note": "; ".join(filter(None, [recipe.note, note])),
            "family": recipe.family,
            "dtype": "float16" if recipe.half else "float32",
            "inputs": inputs,
            "outputs": list(recipe.outputs),
            "nodes": nodes,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "sets": described,
        }
        (draft / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(out / name, ignore_errors=True)
        draft.rename(out / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    left_out = f", left out {'; '.join(refused)}" if refused else ""
    return f"{nodes} nodes, {len(described)} sets{left_out}"


# --- the command ---


def short(error: BaseException) -> str:
    """The line of an error's text that says the most: the first of its innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['?'])[0][:200]}"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing goes to the standard output, from C++ neither: the exporters print whole graphs."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def limited(seconds: int, work: Callable[[], str]) -> str:
    """Runs `work`; raises Late when it takes longer."""

    def stop(*_: object) -> None:
        raise Late(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        return work()
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description="Exports tiny models to ONNX, with inputs and outputs.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="architectures, with commas; all by default")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), help="of " + ", ".join(EXPORTERS))
    parser.add_argument("--attns", default="eager,sdpa", help="attention implementations")
    parser.add_argument("--layers", type=int, help="so many layers instead of the recipe's: to measure times on")
    parser.add_argument("--force", action="store_true", help="write again what is there already")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one export")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    only = set(filter(None, options.only.split(",")))
    if unknown := only - {recipe.name for recipe in RECIPES}:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for recipe in RECIPES:
        if only and recipe.name not in only:
            continue
        layers = {key: options.layers for key in recipe.options if "layers" in key and options.layers}
        recipe = replace(recipe, options=recipe.options | layers)
        for attn in options.attns.split(","):
            if attn not in recipe.attns:
                continue
            CAPTURED.clear()
            for exporter in options.exporters.split(","):
                name = f"{recipe.name}__{attn}__{exporter}"
                if (options.out / name).exists() and not options.force:
                    continue
                began = time.perf_counter()

                def work(recipe: Recipe = recipe, attn: str = attn, exporter: str = exporter) -> str:
                    # built anew each time: an exporter may leave its traces in a model
                    return one(recipe, attn, exporter, build(recipe, attn), options.out)

                try:
                    with silent():
                        said = limited(options.seconds, work)
                except Unsupported as error:
                    said = f"skipped: {error}"
                except (Exception, Late) as error:
                    failed += 1
                    said = f"FAILED {short(error)}"
                print(f"{name}: {said} ({time.perf_counter() - began:.1f} s)", flush=True)
                gc.collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
