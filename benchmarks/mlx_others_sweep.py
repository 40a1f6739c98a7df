"""Models of other packages that are written in MLX, built tiny: traced and replayed, and their attentions found.

    python -m benchmarks.mlx_others_sweep [NAME ...]

It wants what is to be tried: `pip install --no-deps mlx-embeddings mlx-image mlx-chronos2 tabpfn-v3-mlx
parakeet-mlx moshi-mlx pocket-tts-mlx mflux`, mlx-vlm, and what those import. Nothing is downloaded. A line for each.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from benchmarks.mlx_lm_tiny import NUMBERS
from benchmarks.mlx_vlm_tiny import configuration
from benchmarks.sweeping import Outcome, Step, Subject, ready, summary, sweep

IDS = (mx.arange(12) * 7 % 90 + 3).reshape(2, 6)
MASK = mx.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
# configurations of mlx-embeddings, where their defaults are not it
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "bert": {"layer_norm_eps": 1e-5, "pad_token_id": 0},
    "gemma3_text": {"sliding_window_pattern": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "llama_bidirec": {},
    "modernbert": {"architectures": ["ModernBertModel"], "local_attention": 4, "global_attn_every_n_layers": 2},
    "xlm_roberta": {"pad_token_id": 1},
}
# attentions that a model spells out itself, in all its steps
OWN = {"bert": 2, "xlm_roberta": 2, "vit": 2, "swin": 4, "chronos2": 4, "tabpfn": 12, "pocket_tts": 6}


def new(module: str, name: str, /, *args: Any, **numbers: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args, **numbers)


def config(module: str, kind: str, **special: Any) -> Any:
    return configuration(getattr(importlib.import_module(module), kind), kind, NUMBERS, special)


def call(*args: Any, **keywords: Any) -> dict[str, Step]:
    return {"call": lambda program, _: program(*args, **keywords)}


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape)


def embeddings(name: str) -> Any:
    module = f"mlx_embeddings.models.{name}"
    model = new(module, "Model", config(module, "ModelArgs", **EMBEDDINGS[name]))
    return model, call(IDS, attention_mask=MASK)


def chronos2() -> Any:
    numbers: dict[str, Any] = {"d_model": 64, "num_heads": 4, "d_kv": 16, "d_ff": 96, "num_layers": 2, "vocab_size": 2}
    numbers |= {"input_patch_size": 4, "input_patch_stride": 4, "output_patch_size": 4, "quantiles": (0.1, 0.5, 0.9)}
    model = new("chronos2_mlx.model", "Chronos2MLXModel", config("chronos2_mlx.config", "Chronos2MLXConfig", **numbers))
    return model, call(noise(3, 32), group_ids=mx.array([0, 0, 1]), num_output_patches=2)


def tabpfn() -> Any:
    numbers = {"embed_dim": 32, "nlayers": 2, "icl_num_heads": 4, "icl_num_kv_heads": 2, "num_buckets": 20}
    numbers |= dict.fromkeys(("dist_embed_num_heads", "feat_agg_num_heads", "feat_agg_num_cls_tokens"), 2)
    numbers |= {"dist_embed_num_inducing_points": 8, "decoder_num_heads": 2, "decoder_head_dim": 16}
    model = new("tabpfn_mlx.model", "TabPFNV3", new("tabpfn_mlx.config", "TabPFNV3Config", **numbers))
    return model, call(noise(10, 1, 5), mx.array([0.0, 1, 2, 0, 1, 2, 0]))


def parakeet() -> Any:
    special: dict[str, Any] = {"feat_in": 16, "n_layers": 2, "d_model": 64, "n_heads": 4, "ff_expansion_factor": 2}
    special |= {"subsampling_factor": 4, "self_attention_model": "rel_pos", "subsampling": "dw_striding"}
    special |= {"conv_kernel_size": 5, "subsampling_conv_channels": 16, "pos_emb_max_len": 64, "use_bias": True}
    module = "parakeet_mlx.conformer"
    model = new(module, "Conformer", config(module, "ConformerArgs", **special))
    return model, call(noise(2, 40, 16), mx.array([40, 28]))


def moshi() -> Any:
    special: dict[str, Any] = {"d_model": 64, "num_heads": 4, "num_layers": 2, "dim_feedforward": 96, "kv_repeat": 1}
    special |= {"positional_embedding": "rope", "norm": "rms_norm", "gating": True, "context": 8, "layer_scale": None}
    module = "moshi_mlx.modules.transformer"
    special |= {"max_period": 10000, "use_conv_block": False, "cross_attention": False, "max_seq_len": 64}
    model = new(module, "Transformer", config(module, "TransformerConfig", **special))
    return model, decoding(lambda state, length: None), model.make_cache


def decoding(after: Callable[[Any, int], None]) -> dict[str, Step]:
    def step(x: mx.array) -> Step:
        def run(program: Callable[..., Any], state: Any) -> Any:
            result = program(x, state)
            after(state, x.shape[1])
            return result

        return run

    return {name: step(noise(1, length, 64)) for name, length in (("prefill", 5), ("decode", 1), ("next", 1))}


def pocket_tts() -> Any:
    numbers: dict[str, Any] = {"d_model": 64, "num_heads": 4, "num_layers": 2, "dim_feedforward": 96}
    model = new("pocket_tts_mlx.modules.mimi_transformer", "StreamingTransformer", kind="flow_lm", **numbers)
    states = importlib.import_module("pocket_tts_mlx.modules.stateful_module")
    steps = decoding(lambda state, length: states.increment_steps(model, state, length))
    return model, steps, lambda: states.init_states(model, 1, 32)


def flux2() -> Any:
    numbers: dict[str, Any] = {"in_channels": 8, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    numbers |= {"num_attention_heads": 4, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 4, 4)}
    model = new("mflux.models.flux2.model.flux2_transformer.transformer", "Flux2Transformer", **numbers)
    return model, call(noise(1, 6, 8), noise(1, 4, 32), mx.array([0.5]), mx.ones((1, 6, 4)), mx.ones((1, 4, 4)))


def vit() -> Any:
    model = new("mlxim.model.vit.vit", "VisionTransformer", 16, 4, 2, 4, 64, 96, num_classes=7)
    return model, call(noise(2, 16, 16, 3))


def swin() -> Any:
    numbers: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    numbers["window_size"] = [4, 4]
    return new("mlxim.model.swin_transformer.swin_transformer", "SwinTransformer", **numbers), call(noise(1, 32, 32, 3))


SUBJECTS: dict[str, Callable[[], Any]] = {name: functools.partial(embeddings, name) for name in EMBEDDINGS}
SUBJECTS |= {each.__name__: each for each in (vit, swin, chronos2, tabpfn, parakeet, moshi, pocket_tts, flux2)}


def subject(name: str) -> Subject:
    mx.random.seed(0)
    model, steps, *state = SUBJECTS[name]()
    return Subject(ready(model, name), steps, *state, own=OWN.get(name, 0))


def main() -> None:
    outcomes: list[Outcome] = []
    for name in sys.argv[1:] or SUBJECTS:
        outcomes.append(sweep(name, functools.partial(subject, name)))
        print(outcomes[-1], flush=True)
    print(summary(outcomes))


if __name__ == "__main__":
    main()
