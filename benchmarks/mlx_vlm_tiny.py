"""Builds the vision and audio towers and the language models of mlx-vlm with tiny numbers: nothing is downloaded.

A configuration is a dataclass (of dataclasses); fields are filled by name, and where names do not say it, by `TOWERS`
and `LANGUAGES`. How a tower is called its signature tells: images, or patches with the grid that they come from.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm.models

from benchmarks.mlx_lm_tiny import HEADS, MIXED, MODELS
from benchmarks.sweeping import ready

IMAGE, PATCH = 16, 4
VISION: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "width", "d_model", "out_hidden_size", "text_hidden_size"), 64),
    **dict.fromkeys(("image_emb_dim", "enc_dim", "vt_hidden_size", "vision_output_dim", "projection_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "depth", "image_num_layers", "num_layers", "enc_n_layers"), 2),
    **dict.fromkeys(("layers", "encoder_layers", "vt_num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "image_num_heads", "num_attention_heads", "heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "image_num_key_value_heads", "enc_n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("vt_num_attention_heads", "num_query_heads"), 4),
    **dict.fromkeys(("head_dim", "image_head_dim"), 16),
    **dict.fromkeys(("intermediate_size", "image_mlp_dim", "enc_ff_dim", "mlp_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("vt_intermediate_size", "projector_hidden_size"), 96),
    **dict.fromkeys(("image_size", "img_size", "crop_size", "init_pos_emb_height", "init_pos_emb_width"), IMAGE),
    **dict.fromkeys(("patch_size", "image_patch_size", "enc_patch_size", "spatial_patch_size"), PATCH),
    "window_size": 2 * PATCH,
    "fullatt_block_indexes": [1],
    "full_attn_layer_indices": [1],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
    "num_mel_bins": 16,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 2,
}
TYPES = {
    "siglip_vision_model": ("aya_vision", "internvl_chat", "llava_bunny"),
    "clip_vision_model": ("llava", "llava_next"),
    "vision": ("deepseek_vl_v2", "deepseekocr", "deepseekocr_2", "multi_modality"),
}
QWEN2 = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 96}
SAM = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SAM |= {"image_size": 32, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 32}
# where the names of the fields do not say it
TOWERS: dict[str, dict[str, Any]] = {
    **{name: {"model_type": model_type} for model_type, names in TYPES.items() for name in names},
    "deepseekocr": {"model_type": "vision", "image_size": 224, "patch_size": 14},
    "deepseekocr_2": {"model_type": "vision", "params": {"qwen2": QWEN2}},
    "fastvlm": {"layers": [1, 1, 1, 1, 1], "embed_dims": [8, 16, 32, 64, 128]},
    "florence2": {
        "depths": [1, 1, 1, 1],
        "dim_embed": [16, 32, 32, 64],
        "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4],
        "patch_size": [7, 3, 3, 3],
        "window_size": 4,
        "image_size": (32, 32),
    },
    "inkling": {"patch_size": 40, "text_hidden_size": 64},
    "llama4": {"pixel_shuffle_ratio": 0.5, "num_channels": 3, "intermediate_size": 256}
    | dict.fromkeys(("projector_input_dim", "projector_output_dim"), 64),
    "mage_vl": {"num_attention_heads": 2},
    "mllama": {"num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 128},
    "molmo": {
        "image_default_input_size": (16, 16),
        "image_pos_patch_size": PATCH,
        "image_num_pos": 17,
        "vit_layers": [-1, -2],
    },
    "moge3": {"intermediate_layers": [0, 1], "ffn": "mlp"},
    "molmo2": {
        "vit_config": {"image_num_pos": 16, "image_default_input_size": [16, 16]},
        "adapter_config": {"vit_layers": [-1, -2]},
    },
    "molmo_point": {"image_num_pos": 16},
    "multi_modality": {"model_type": "vision", "params": {}},
    "sam3": {"backbone_config": SAM, "fpn_hidden_size": 32},
    "sam3_1": {"backbone_config": SAM, "fpn_hidden_size": 32},
}
# towers for sound: class, numbers, and what it is called with
AUDIO: dict[str, tuple[str, dict[str, Any], Callable[[], tuple[Any, ...]]]] = {
    "gemma3n": (
        "AudioModel",
        {"input_feat_size": 16, "sscp_conv_channel_size": (8, 4)},
        lambda: (pictures(1, 64, 16), mx.zeros((1, 64), mx.bool_)),
    ),
    "gemma4": ("AudioEncoder", {}, lambda: (pictures(1, 64, 128), mx.zeros((1, 64), mx.bool_))),
    "inkling": ("AudioModel", {"n_mel_bins": 8}, lambda: (mx.arange(40).reshape(1, 5, 8) % 16,)),
    "minicpmo": ("AudioModel", {}, lambda: (pictures(1, 16, 40),)),
    "muse_spark": (
        "AudioModel",
        {"patch_sizes": (4, 2), "hidden_sizes": (16, 32), "depths": (1, 1), "num_hidden_layers": 2},
        lambda: (pictures(1, 64),),
    ),
    "nemotron_h_nano_omni": (
        "SoundEncoder",
        {"subsampling_conv_channels": 16},
        lambda: (pictures(1, 64, 16), mx.ones((1, 64), mx.bool_)),
    ),
    "phi4mm": (
        "ConformerEncoder",
        {"attention_dim": 64, "attention_heads": 4, "num_blocks": 2, "linear_units": 96, "input_size": 16}
        | dict.fromkeys(("ext_pw_out_channel", "depthwise_seperable_out_channel", "conv_channels"), 64),
        lambda: (pictures(1, 64, 16),),
    ),
    "qwen3_omni_moe": (
        "AudioModel",
        {"output_dim": 64, "downsample_hidden_size": 16, "n_window": 8, "n_window_infer": 32},
        lambda: (pictures(1, 16, 32),),
    ),
}
LLAMA = {"model_type": "llama"}
LANGUAGES: dict[str, dict[str, Any]] = {
    "aya_vision": {"sliding_window_pattern": 2},
    "deepseek_v4": {"o_groups": 2},
    "deepseek_v41": {"scoring_func": "sqrtsoftplus", "o_groups": 2}
    | dict.fromkeys(("engram_vocab_size", "engram_compressed_vocab_size"), 100)
    | {"engram_layer_ids": [1], "engram_num_embeddings": [100, 100, 100], "engram_n_heads": 2, "engram_head_dim": 32}
    | {"index_head_dim": 32, "head_dim": 32, "qk_rope_head_dim": 16, "q_lora_rank": 32},
    "ernie4_5_moe_vl": {"mrope_section": [3, 3, 2]},
    "gemma3": {"sliding_window_pattern": 2},
    "glm5_next": {"num_key_value_heads": HEADS, "qk_rope_head_dim": 0, "mla_use_nope": True, "index_topk": 16},
    "limite": {"rope_n_pairs": 4, "attn_gate_channels": 16},
    "kolibri1": {"layer_types": MIXED},
    "llava": LLAMA,
    "llava_next": LLAMA,
    "multi_modality": LLAMA,
    "moondream3": {"num_key_value_heads": HEADS, "rope_dim": 8},
    "mimo_v2": MODELS["mimo_v2_flash"],
    "nemotron_h_nano_omni": {"hybrid_override_pattern": ["M", "*", "E"]},
    "nemotron_nas": MODELS["nemotron-nas"],
    "lfm2_vl": {"layer_types": ["conv", "full_attention"]},
    "muse_spark": MODELS["muse_spark"]["text_config"],
}


def pictures(*shape: int) -> mx.array:
    """Random pixels."""
    return mx.random.normal(shape)


# what a tower is called with, where its parameters do not say it
CALLS: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "deepseekocr": lambda: ((pictures(1, 224, 224, 3), pictures(1, 16, 16, 64)), {}),
    "deepseekocr_2": lambda: ((pictures(1, 16, 16, 3), pictures(1, 16, 16, 64)), {}),
    "florence2": lambda: ((pictures(1, 3, 32, 32),), {}),
    "inkling": lambda: ((pictures(1, 2, 40, 40, 3),), {}),
    "internvl_chat": lambda: ((pictures(1, 16, 16, 3),), {"output_hidden_states": True}),
    "mage_vl": lambda: (
        (pictures(16, 48), mx.array([[0, y, x] for y in range(4) for x in range(4)])),
        {"grid_thw": ((1, 4, 4),)},
    ),
    "mllama": lambda: ((pictures(1, 1, 4, 3, 16, 16), mx.array([[6]]), mx.ones((1, 1, 4), mx.int32)), {}),
    "moge3": lambda: ((pictures(1, 16, 16, 3),), {"token_rows": 4, "token_cols": 4}),
    "molmo": lambda: ((pictures(1, 2, 16, 48), mx.ones((1, 2, 16))), {}),
    "molmo2": lambda: ((pictures(1, 2, 16, 48), mx.arange(32).reshape(1, 8, 4)), {}),
    "molmo_point": lambda: ((pictures(1, 16, 48),), {"patch_num": (4, 4)}),
    "paddleocr_vl": lambda: ((pictures(1, 16, 3, PATCH, PATCH),), {"grid_thw": mx.array([[1, 4, 4]])}),
    "phi4_siglip": lambda: (
        (pictures(1, 16, 48),),
        {"spatial_shapes": mx.array([[4, 4]]), "output_hidden_states": True},
    ),
    "sam3": lambda: ((pictures(1, 32, 32, 3),), {}),
    "sam3_1": lambda: ((pictures(1, 32, 32, 3),), {}),
}


def packages() -> list[str]:
    """The names of mlx-vlm's models."""
    return sorted(each.name for each in pkgutil.iter_modules(mlx_vlm.models.__path__) if each.ispkg)


def language(name: str) -> dict[str, Any]:
    """What is special about the language model of `name`."""
    special = LANGUAGES.get(name, MODELS.get(name, {}))
    return {**special, **special.get("text_config", {})}


def configuration(kind: Any, name: str, numbers: dict[str, Any], special: dict[str, Any]) -> Any:
    """A tiny `kind`, a dataclass with dataclasses in it."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        nested = _dataclass(kind, field)
        if field.name in special and not (nested and isinstance(special[field.name], dict)):
            values[field.name] = special[field.name]
        elif nested is not None:
            values[field.name] = configuration(nested, name, numbers, special.get(field.name, {}))
        elif field.name in numbers:
            values[field.name] = numbers[field.name]
        elif field.name == "model_type" and field.default is dataclasses.MISSING:
            values[field.name] = special.get("model_type", name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            text = str(field.type)
            values[field.name] = False if "bool" in text else [] if "ist" in text else {} if "ict" in text else 1
    config = kind(**values)
    for key in special.keys() - values.keys():
        # some keep numbers as attributes of the class
        setattr(config, key, special[key])
    return config


def _dataclass(kind: Any, field: Any) -> Any:
    declared = field.type
    if isinstance(declared, str):
        try:
            declared = eval(declared, vars(importlib.import_module(kind.__module__)))
        except Exception:
            return None
    return next((each for each in (declared, *get_args(declared)) if dataclasses.is_dataclass(each)), None)


def build(module: str, kind: str, special: dict[str, Any], numbers: dict[str, Any]) -> nn.Module:
    """The module `kind` with random weights."""
    mx.random.seed(0)
    part = importlib.import_module(f"mlx_vlm.models.{module}")
    cls = getattr(part, kind)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    given = []
    for parameter in parameters:
        wanted = parameter.annotation
        if isinstance(wanted, str):
            wanted = vars(part).get(wanted)
        wanted = next((each for each in (wanted, *get_args(wanted)) if dataclasses.is_dataclass(each)), None)
        if wanted is None and parameter.name in ("config", "args"):
            config = importlib.import_module(f"mlx_vlm.models.{module.partition('.')[0]}.config")
            wanted = getattr(config, part_of(kind), None) or config.ModelConfig
        if wanted is not None:
            given.append(configuration(wanted, module.partition(".")[0], numbers, special))
        elif parameter.default is inspect.Parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"what is {parameter} of {module}.{kind}?")
    return ready(cls(*given), module)


def part_of(kind: str) -> str:
    """The name of the configuration that goes with a class."""
    return {"LanguageModel": "TextConfig", "VisionModel": "VisionConfig"}.get(kind, "AudioConfig")


def images(config: Any, parameters: list[str]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the tower may take, as its parameters tell; the first that it does take is used."""
    known = ("patch_size", "temporal_patch_size", "in_channels", "image_size")
    patch, frames, channels, size = (getattr(config, each, None) for each in known)
    patch, channels, size = patch or PATCH, channels or 3, size or IMAGE
    size = size if isinstance(size, int) else size[0]
    picture = pictures(1, size, size, channels)
    grids = {"grid_thw", "grid_thws", "spatial_shapes", "tgt_sizes", "image_sizes"} & set(parameters)
    for grid in sorted(grids):
        shapes = [((1, 4, 4),), mx.array([[1, 4, 4]])] if "grid" in grid else []
        shapes += [((4, 4),), mx.array([[4, 4]])]
        for depth in dict.fromkeys((frames or 1, 1, 2)):
            flat = pictures(16, channels * depth * patch * patch)
            patches = flat.reshape(16, patch, patch, -1)
            for taken in (flat, flat[None], patches, patches.transpose(0, 3, 1, 2)):
                yield from (((taken,), {grid: shape}) for shape in shapes)
    yield (picture,), {}
    yield (picture.transpose(0, 3, 1, 2),), {}
    yield (pictures(1, 16, channels * patch * patch),), {}
    yield (picture[None],), {}
