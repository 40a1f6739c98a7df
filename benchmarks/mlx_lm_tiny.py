"""Builds the model architectures of mlx-lm with tiny numbers, from their `ModelArgs` alone: nothing is downloaded."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models

from benchmarks.sweeping import ready

LAYERS, HEADS, KEY_HEADS, WIDTH, HIDDEN = 2, 4, 2, 16, 64
# helpers of the models, and what imports something that is not there
NO_MODELS = {
    *("activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm"),
    *("switch_layers", "olmo"),
}
# by the name of the field; those that are left out keep their defaults
NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), 160),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim", "block_dim", "dim"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_attention_groups"), KEY_HEADS),
    **dict.fromkeys(("swa_num_attention_heads", "num_swa_attention_heads"), HEADS),
    **dict.fromkeys(("swa_num_key_value_heads", "num_swa_key_value_heads", "num_global_key_value_heads"), KEY_HEADS),
    **dict.fromkeys(("head_dim", "global_head_dim", "hidden_size_per_head", "kv_channels", "v_head_dim"), WIDTH),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "qk_nope_head_dim", "index_head_dim"), WIDTH),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts", "num_shared_expert", "top_k_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "model_max_length", "block_size"), 256),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "swa_rope_theta"), 10000.0),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "layernorm_epsilon"), 1e-5),
    **dict.fromkeys(("rotary_pct", "partial_rotary_factor"), 0.5),
    **dict.fromkeys(("attention_multiplier", "scale_depth", "scale_emb", "embedding_multiplier"), 0.5),
    **dict.fromkeys(("residual_multiplier", "logits_scaling", "routed_scaling_factor", "query_pre_attn_scalar"), 2.0),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "num_kv_reuse_layers", "num_kv_shared_layers"), 1),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("linear_conv_kernel_dim", "conv_kernel", "conv_L_cache", "mamba_d_conv", "conv1d_width"), 4),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "time_step_rank"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_shared_head", "decoder_sparse_step", "index_n_heads"), 1),
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 8),
    **dict.fromkeys(
        ("layer_group_size", "group_norm_size", "moe_layer_freq", "index_topk", "full_attention_interval"), 2
    ),
    **dict.fromkeys(("ssm_intermediate_size", "mamba_d_ssm", "hidden_size_per_layer_input", "mamba_expand"), 2),
    **dict.fromkeys(("norm_topk_prob", "tie_word_embeddings", "use_conv_bias", "conv_bias"), True),
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "time_step_limit": (0.001, 100.0),
    "dim_model_base": 64,
    "zero_expert_num": 1,
    "zero_expert_type": "identity",
    "attention_method": "MLA",
    "moe_layers_enum": "1",
}
# where the names do not say it
MIXED = ["sliding_attention", "full_attention"]
KDA = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 4,
    "head_dim": 16,
    "short_conv_kernel_size": 4,
    "gate_lower_bound": -5.0,
}
YARN = {
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "type": "yarn",
    "factor": 2.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LONGCAT = {"mla_scale_q_lora": True, "mla_scale_kv_lora": True}
MODELS: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": MIXED},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v2": {
        "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale_all_dim": 1, "mscale": 1},
        "topk_method": "gready",
    },
    "exaone4": {"sliding_window_pattern": "LG", "rope_scaling": None},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True]},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gear": {"layer_types": MIXED},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "text_config": {
            "layer_types": MIXED * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "intermediate_size": [96] * 4,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "hidden_size_per_layer_input": 16,
            "final_logit_softcapping": 30.0,
            "rope_local_base_freq": 10000.0,
            "altup_active_idx": 0,
        }
    },
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 10000.0}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {"rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}, "cla_share_factor": 2},
    "jamba": {"layers_block_type": ["mamba", "attention"]},
    "kimi_k3": {"text_config": {"linear_attn_config": KDA}, "linear_attn_config": KDA},
    "kimi_linear": {"linear_attn_config": KDA},
    "baichuan_m1": {"conv_window": 2, "sliding_window_layers": [1], "tie_word_embeddings": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm2-vl": {"text_config": {"layer_types": ["conv", "full_attention"]}},
    "llama4": {
        "text_config": {
            "rope_scaling": None,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
        }
    },
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": LONGCAT,
    "mellum": {"layer_types": MIXED, "rope_parameters": {kind: {"rope_theta": 10000.0} for kind in MIXED}},
    "mimo_v2_flash": {"moe_layer_freq": [0, 1], "hybrid_layer_pattern": [1, 0]},
    "minicpm3": {
        "rope_scaling": {"original_max_position_embeddings": 256, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    },
    "minimax_m3_vl": {"text_config": {"moe_layer_freq": [0, 1]}, "moe_layer_freq": [0, 1]},
    "ministral3": {"rope_parameters": YARN},
    "mistral4": {"rope_parameters": YARN},
    "mistral3": {"text_config": {"rope_parameters": YARN}},
    "muse_spark": {
        "text_config": {
            "rope_parameters": {"rope_theta": 10000.0},
            "layer_rope_theta": [10000.0, 0],
            "layer_types": MIXED,
            "mlp_layer_types": None,
            "num_shared_experts": 0,
            "moe_hidden_size": 64,
        },
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
        ]
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "E"]},
    "olmo3": {"layer_types": MIXED},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "openelm": {
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.0, 2.0],
        "ffn_dim_divisor": 16,
    },
    "prism_hadamard_qwen35": {
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {"path": "model.embed_tokens", "embedding": True, "dtype": "float16", "block": 512},
            {"path": "model.layers.1.self_attn.q_proj", "embedding": False, "dtype": "float16", "block": 512},
        ],
        "text_config": {"hidden_size": 512, "full_attention_interval": 2},
    },
    "qwen3_5_moe": {
        "text_config": {
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts_per_tok": 2,
        }
    },
    # it asks for tokens that a small vocabulary does not have, which MLX does not check
    "phi3small": {"vocab_size": 100_352},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "spark2_5": {"layer_types": MIXED, "rope_parameters": {kind: {"rope_theta": 10000.0} for kind in MIXED}},
}


def architectures() -> list[str]:
    """The names of the modules that hold a model."""
    found = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return sorted(name for name in found if name not in NO_MODELS)


def arguments(name: str) -> dict[str, Any]:
    """A tiny configuration of the architecture `name`."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = _arguments(module.ModelArgs, name)
    if "text_config" in config:
        # whichever other configuration the module knows
        kinds = [
            each.ModelArgs
            for each in vars(module).values()
            if isinstance(each, types.ModuleType) and hasattr(each, "ModelArgs")
        ]
        kinds += [each for each in vars(module).values() if _is_other(each, module.ModelArgs)]
        if kinds and not issubclass(module.ModelArgs, tuple(kinds)):
            config["text_config"] = _arguments(kinds[0], kinds[0].__module__.rpartition(".")[2])
        else:
            # the model is another's, with other weights
            config["text_config"] = arguments(module.Model.__mro__[1].__module__.rpartition(".")[2])["text_config"]
    for key, value in MODELS.get(name, {}).items():
        config[key] = {**config[key], **value} if key == "text_config" else value
    return config


def _is_other(value: Any, known: type) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and value is not known
        and hasattr(value, "from_dict")
        and "Base" not in value.__name__
    )


def _arguments(kind: Any, name: str) -> dict[str, Any]:
    config: dict[str, Any] = {"model_type": name}
    for field in dataclasses.fields(kind):
        if field.name == "text_config":
            config[field.name] = {}
        elif field.name in NUMBERS:
            config[field.name] = NUMBERS[field.name]
        elif (
            field.name not in config
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            text = str(field.type)
            config[field.name] = False if "bool" in text else [] if "ist" in text else {} if "ict" in text else 1
    return {**config, **MODELS.get(name, {})}


def build(name: str, seed: int = 0) -> nn.Module:
    """The architecture `name` with random weights, ready to run."""
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = arguments(name)
    args = module.ModelArgs.from_dict(config) if hasattr(module.ModelArgs, "from_dict") else module.ModelArgs(**config)
    return ready(module.Model(args), name)
