"""More of diffusers for `export_models.py`: control networks, sound, and parts around the transformers."""

from __future__ import annotations

from typing import Any

from export_configs_diffusers import AXES, FOUR, HEADS, LATENTS, joined
from export_configs_mixed import JOINT, NOISY, TOKENS, UNET, diffusion
from export_configs_more import PLACES
from export_configs_vaes import coder

CONTROL: dict[str, Any] = {k: v for k, v in UNET.items() if k not in ("up_block_types", "sample_size")}
CONTROL |= {"conditioning_embedding_out_channels": (16, 16, 16, 16)}

CONTROLS = (
    diffusion(
        "controlnet_union",
        "ControlNetUnionModel",
        5,
        {"sample": "float batch 4 8 8", "timestep": "step batch", "encoder_hidden_states": "float batch text 32"}
        | {"controlnet_cond": "float 1 batch 3 64 64", "control_type": "ones batch 6"},
        CONTROL | {"num_trans_channel": 32, "num_trans_head": 4, "num_proj_channel": 32, "addition_time_embed_dim": 8},
        "mid_block_res_sample",
        fixed={"control_type_idx": [0]},
        listed=("controlnet_cond",),
    ),
    joined(
        "controlnet_flux",
        "FluxControlNetModel",
        2,
        TOKENS
        | PLACES
        | {"controlnet_cond": "float batch 16 16", "pooled_projections": "float batch 16", "timestep": "unit batch"},
        JOINT | FOUR | AXES | {"pooled_projection_dim": 16},
        out="controlnet_single_block_samples",
    ),
    joined(
        "controlnet_sd3",
        "SD3ControlNetModel",
        2,
        NOISY | {"controlnet_cond": "float batch 4 8 8", "pooled_projections": "float batch 16"},
        HEADS
        | LATENTS
        | {"sample_size": 8, "joint_attention_dim": 32, "caption_projection_dim": 64, "pooled_projection_dim": 16}
        | {"pos_embed_max_size": 8},
    ),
    joined(
        "controlnet_sana",
        "SanaControlNetModel",
        2,
        NOISY | {"controlnet_cond": "float batch 4 8 8"},
        HEADS
        | LATENTS
        | {"num_cross_attention_heads": 4, "cross_attention_head_dim": 16, "cross_attention_dim": 64}
        | {"caption_channels": 32, "sample_size": 8},
    ),
    joined(
        "controlnet_qwen",
        "QwenImageControlNetModel",
        2,
        TOKENS
        | {"controlnet_cond": "float batch 16 16", "encoder_hidden_states_mask": "ones batch text"}
        | {"timestep": "unit batch"},
        HEADS | AXES | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 32},
        fixed={"img_shapes": [(1, 4, 4)]},
    ),
    joined(
        "controlnet_hunyuan",
        "HunyuanDiT2DControlNetModel",
        3,
        {"hidden_states": "float batch 4 8 8", "timestep": "step batch", "controlnet_cond": "float batch 4 8 8"}
        | {"encoder_hidden_states": "float batch 7 32", "text_embedding_mask": "ones batch 7"}
        | {"encoder_hidden_states_t5": "float batch 5 24", "text_embedding_mask_t5": "ones batch 5"},
        {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2, "sample_size": 8}
        | {"hidden_size": 64, "transformer_num_layers": 4, "cross_attention_dim": 32, "cross_attention_dim_t5": 24}
        | {"pooled_projection_dim": 16, "text_len": 7, "text_len_t5": 5}
        | {"use_style_cond_and_image_meta_size": False},
    ),
    diffusion(
        "controlnet_sparse",
        "SparseControlNetModel",
        6,
        {
            "sample": "float batch 4 2 8 8",
            "timestep": "step batch",
            "encoder_hidden_states": "float batch+batch text 32",
        }
        | {"controlnet_cond": "float batch 4 2 8 8", "conditioning_mask": "unit batch 1 2 8 8"},
        {k: v for k, v in CONTROL.items() if k not in ("conditioning_embedding_out_channels", "attention_head_dim")}
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "num_attention_heads": 4}
        | {"motion_num_attention_heads": 4},
        "mid_block_res_sample",
    ),
    diffusion(
        "t2i_adapter",
        "T2IAdapter",
        0,
        {"x": "float batch 3 64 64"},
        {"channels": [16, 16, 32, 32], "num_res_blocks": 1},
        note="no attention",
    ),
)

SOUNDS = (
    diffusion(
        "audioldm2_unet",
        "AudioLDM2UNet2DConditionModel",
        24,
        {"sample": "float batch 4 8 8", "timestep": "step batch", "encoder_hidden_states": "float batch 4 32"}
        | {"encoder_hidden_states_1": "float batch text 32"},
        UNET | {"cross_attention_dim": ([None, 32, 32], [None, 32, 32])},
    ),
    joined(
        "ace_step",
        "AceStepTransformer1DModel",
        4,
        {"hidden_states": "float batch 12 8", "timestep": "unit batch", "timestep_r": "unit batch"}
        | {"encoder_hidden_states": "float batch text 32", "context_latents": "float batch 12 16"},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8}
        | {"sliding_window": 2, "encoder_hidden_size": 32},
        note="a window, all; GQA",
    ),
    joined(
        "ace_step_tokens",
        "AceStepAudioTokenDetokenizer",
        2,
        {"hidden_states": "float batch 3 32"},
        {"hidden_size": 32, "intermediate_size": 64, "audio_acoustic_hidden_dim": 8, "pool_window_size": 5}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 2},
    ),
    joined(
        "longcat_audio",
        "LongCatAudioDiTTransformer",
        4,
        {"hidden_states": "float batch 12 8", "encoder_hidden_states": "float batch text 32"}
        | {"encoder_attention_mask": "true batch text", "timestep": "unit batch", "attention_mask": "true batch 12"}
        | {"latent_cond": "float batch 12 8"},
        {"dit_dim": 64, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": 32, "latent_dim": 8, "ff_mult": 2.0},
    ),
    joined(
        "music3",
        "MiniMaxMusic3Transformer1DModel",
        2,
        {"hidden_states": "float batch 8 12", "timestep": "unit batch", "encoder_hidden_states": "float batch 12 32"},
        {"in_channels": 8, "condition_dim": 32, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16}
        | {"ff_inner_dim": 64, "rotary_dim": 8, "fourier_embedding_dim": 16},
    ),
    joined(
        "music3_depth",
        "MiniMaxMusic3RVQDepthDecoder",
        2,
        {"inputs_embeds": "float batch text 32"},
        {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        | {"audio_vocab_size": 16, "num_codebooks": 4},
    ),
    joined(
        "stable_audio3",
        "StableAudio3DiTModel",
        8,
        {"hidden_states": "float batch 8 12", "timestep": "unit batch", "encoder_hidden_states": "float batch text 32"}
        | {"global_hidden_states": "float batch 24", "local_add_cond": "float batch 4 12"},
        {"io_channels": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "cond_token_dim": 32, "global_cond_dim": 24}
        | {"local_add_cond_dim": 4, "timestep_features_dim": 16, "num_memory_tokens": 4},
        note="differential attention",
    ),
    coder(
        "transformer_temporal",
        "TransformerTemporalModel",
        2,
        {"hidden_states": "float 2 32 4 4"},
        {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 32, "norm_num_groups": 8},
        fixed={"num_frames": 2},
    ),
    diffusion(
        "unet1d",
        "UNet1DModel",
        12,
        {"sample": "float batch 2 64", "timestep": "step batch"},
        {"sample_size": 64, "extra_in_channels": 64, "block_out_channels": (32, 32, 64)},
        note="its attention computes the softmax by hand",
    ),
    joined(
        "anima_text",
        "AnimaTextConditioner",
        4,
        {"source_hidden_states": "float batch text 32", "target_input_ids": "ids batch 6"},
        {"source_dim": 32, "target_dim": 32, "model_dim": 32, "num_layers": 2, "num_attention_heads": 4}
        | {"target_vocab_size": 128, "min_sequence_length": 8},
    ),
    joined(
        "kandinsky3_unet",
        "Kandinsky3UNet",
        19,
        {"sample": "float batch 4 16 16", "timestep": "step batch", "encoder_hidden_states": "float batch text 32"}
        | {"encoder_attention_mask": "true batch text"},
        {"time_embedding_dim": 32, "groups": 4, "attention_head_dim": 8, "layers_per_block": 2}
        | {"block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 32, "encoder_hid_dim": 32},
    ),
)

RECIPES = (*CONTROLS, *SOUNDS)
