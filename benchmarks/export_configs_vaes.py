"""More of diffusers for `export_models.py`: autoencoders of images, videos and sound, there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export_configs import Recipe
from export_configs_mixed import SDPA, diffusion
from export_configs_parts import ONE

IMAGE = {"sample": "float batch 3 16 16"}
VIDEO = {"sample": "float 1 3 5 16 16"}
TWICE = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
WAN: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1}
WAN |= {"temperal_downsample": [True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
MATCHED: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (16, 16), "layers_per_block": 1}
MOCHI: dict[str, Any] = {f"{p}_block_out_channels": (32,) * 4 for p in ("encoder", "decoder")}
MOCHI |= {"latent_channels": 4, "layers_per_block": (1,) * 5}


def coder(name: str, model: str, truth: int, inputs: dict[str, str], options: dict[str, Any], **more: Any) -> Recipe:
    """An autoencoder, there and back; those of videos are exported for one clip."""
    recipe = diffusion(name, model, truth, inputs, options, **more)
    return recipe if "batch" in str(inputs) else replace(recipe, sets=ONE)


AUTOENCODERS = (
    coder(
        "vae_asymmetric",
        "AsymmetricAutoencoderKL",
        2,
        IMAGE,
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (8, 16)}
        | {"up_block_types": ("UpDecoderBlock2D",) * 2, "up_block_out_channels": (8, 16), "norm_num_groups": 4},
    ),
    coder("vae_flux2", "AutoencoderKLFlux2", 2, IMAGE, TWICE | BLOCKS | {"latent_channels": 4}),
    coder(
        "vae_svd",
        "AutoencoderKLTemporalDecoder",
        2,
        {"sample": "float 2 3 16 16"},
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32)} | {"layers_per_block": 2},
        fixed={"num_frames": 2},
    ),
    coder(
        "vae_tiny",
        "AutoencoderTiny",
        0,
        IMAGE,
        {f"{p}_block_out_channels": (8, 8) for p in ("encoder", "decoder")}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
    ),
    coder(
        "vae_hunyuan_image",
        "AutoencoderKLHunyuanImage",
        2,
        IMAGE,
        MATCHED
        | {"in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32), "spatial_compression_ratio": 2}
        | {"sample_size": 16},
    ),
    coder(
        "vae_kvae",
        "AutoencoderKLKVAE",
        0,
        IMAGE,
        {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1}
        | {"z_channels": 4, "ch_mult": (1, 1), "sample_size": 16},
    ),
    coder("vae_wan", "AutoencoderKLWan", 5, VIDEO, WAN),
    coder("vae_qwen_image", "AutoencoderKLQwenImage", 2, VIDEO | {"sample": "float 1 3 1 16 16"}, WAN),
    coder(
        "vae_cosmos",
        "AutoencoderKLCosmos",
        4,
        VIDEO | {"sample": "float 1 3 9 32 32"},
        {"latent_channels": 4, "encoder_block_out_channels": (16, 16), "decode_block_out_channels": (16, 16)}
        | {"resolution": 32, "num_layers": 1, "patch_size": 2, "spatial_compression_ratio": 4}
        | {"temporal_compression_ratio": 4, "attention_resolutions": (8,)}
        | {"latents_mean": [0.0] * 40, "latents_std": [1.0] * 40},
    ),
    coder(
        "vae_hunyuan_video",
        "AutoencoderKLHunyuanVideo",
        2,
        VIDEO,
        TWICE
        | {"latent_channels": 4, "down_block_types": ("HunyuanVideoDownBlock3D",) * 4}
        | {"up_block_types": ("HunyuanVideoUpBlock3D",) * 4, "block_out_channels": (8, 8, 8, 8)},
    ),
    coder(
        "vae_hunyuan_video15",
        "AutoencoderKLHunyuanVideo15",
        2,
        VIDEO,
        MATCHED | {"spatial_compression_ratio": 2, "temporal_compression_ratio": 2},
    ),
    coder(
        "vae_hunyuan_refiner",
        "AutoencoderKLHunyuanImageRefiner",
        2,
        VIDEO,
        MATCHED | {"spatial_compression_ratio": 2, "temporal_compression_ratio": 2},
    ),
    coder(
        "vae_magvit",
        "AutoencoderKLMagvit",
        0,
        VIDEO,
        TWICE
        | {"latent_channels": 4, "down_block_types": ["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"]}
        | {"up_block_types": ["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"], "block_out_channels": [8, 16]},
    ),
    coder(
        "vae_mochi_decoder",
        "AutoencoderKLMochi",
        0,
        {"hidden_states": "float 1 4 2 4 4"},
        MOCHI,
        part="decoder",
    ),
    coder(
        "vae_mochi_encoder",
        "AutoencoderKLMochi",
        2,
        {"hidden_states": "float 1 3 6 16 16"},
        MOCHI,
        part="encoder",
        attns=SDPA,
    ),
    coder(
        "vae_cogvideox",
        "AutoencoderKLCogVideoX",
        0,
        VIDEO,
        TWICE
        | {"latent_channels": 4, "down_block_types": ("CogVideoXDownBlock3D",) * 2, "sample_height": 16}
        | {"up_block_types": ("CogVideoXUpBlock3D",) * 2, "sample_width": 16, "temporal_compression_ratio": 2},
        note="no attention",
    ),
    coder(
        "vae_rae",
        "AutoencoderRAE",
        4,
        {"sample": "float batch 3 32 32"},
        {"encoder_hidden_size": 64, "encoder_patch_size": 8, "encoder_num_hidden_layers": 2, "decoder_hidden_size": 32}
        | {"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64}
        | {"patch_size": 8, "encoder_input_size": 32, "image_size": 32},
    ),
    coder(
        "vae_minimax_h3",
        "AutoencoderKLMiniMaxH3",
        2,
        {"sample": "float 1 3 5 16 16"},
        {"latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
        | {"spatial_downsample_factors": (2, 2), "temporal_downsample_factors": (1, 2), "decoder_num_layers": 2}
        | {"decoder_num_attention_heads": 4, "decoder_attention_head_dim": 16, "latents_mean": (0.0,) * 4}
        | {"latents_std": (1.0,) * 4, "clip_length": 5, "token_drop": 0},
    ),
    coder(
        "vae_same",
        "AutoencoderSAME",
        4,
        {"sample": "float batch 2 64"},
        {"patch_size": 4, "encoder_channels": 16, "encoder_c_mults": (2,), "encoder_strides": (2,), "latent_dim": 8}
        | {"encoder_transformer_depths": (1,), "dim_heads": 8},
    ),
    coder(
        "vae_oobleck",
        "AutoencoderOobleck",
        0,
        {"sample": "float batch 2 64"},
        {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "decoder_channels": 8}
        | {"decoder_input_channels": 4},
        note="no attention",
    ),
    coder(
        "vae_minimax_audio",
        "AutoencoderKLMiniMaxH3Audio",
        1,
        {"sample": "float batch 1 64"},
        {"encoder_dim": 8, "encoder_rates": (2, 2), "latent_dim": 32, "latent_channels": 4, "num_attention_heads": 2}
        | {"decoder_dim": 16, "decoder_rates": (2, 2), "decoder_kernel_sizes": (4, 4)},
    ),
    coder(
        "vae_ltx2_audio",
        "AutoencoderKLLTX2Audio",
        2,
        {"sample": "float batch 2 16 16"},
        {"base_channels": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "resolution": 16, "latent_channels": 4}
        | {"mel_bins": 16, "mid_block_add_attention": True},
    ),
    coder(
        "vae_mmaudio",
        "MMAudioVAE",
        1,
        {"z": "float batch 4 8"},
        {"mel_bins": 16, "latent_channels": 4, "hidden_channels": 16, "channel_multipliers": (1, 2)}
        | {"layers_per_block": 1},
        part="vae.decoder",
    ),
    coder(
        "vae_vidtok",
        "AutoencoderVidTok",
        2,
        VIDEO,
        {"ch": 32, "ch_mult": [1, 1], "z_channels": 4, "num_res_blocks": 1, "spatial_ds": [0], "spatial_us": [1]}
        | {"tempo_ds": [0], "tempo_us": [1]},
        fixed={"sample_posterior": False},
    ),
    coder(
        "vae_kandinsky6_sr",
        "Kandinsky6SRVAE",
        0,
        VIDEO,
        {"latent_channels": 4, "layers_per_block": 1}
        | {"encoder_block_out_channels": (8, 16, 16), "decoder_block_out_channels": (8, 16, 16)},
    ),
)

RECIPES = AUTOENCODERS
