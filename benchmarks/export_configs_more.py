"""The last of the table in `export_configs.py`: newer encoders, videos, time series, more of diffusion."""

from __future__ import annotations

from typing import Any

from export_configs import SMALL, encdec, encoder
from export_configs_media import VIT, custom, vision
from export_configs_mixed import JOINT, NOISY, SDPA, TOKENS, UNET, diffusion

CLIP: dict[str, Any] = VIT | {"num_frames": 4, "tubelet_size": 2}
VIDEO = {"pixel_values": "float batch 4 3 32 32"}
VALUES: dict[str, Any] = {
    "prediction_length": 6,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "input_size": 1,
}
VALUES |= {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "scaling": None, "num_time_features": 1}
SERIES = {
    "past_values": "float batch 14",
    "past_time_features": "float batch 14 1",
    "past_observed_mask": "ones batch 14",
    "future_values": "float batch 6",
    "future_time_features": "float batch 6 1",
}

NEWER = (
    encoder("gte", "GteModel", note="rotary"),
    encoder("esmc", "EsmcModel"),
    encoder("ultrabert", "UltrabertModel"),
    encoder("neomme", "NeoMMEModel"),
    encoder("tipsv2_text", "Tipsv2TextModel"),
    encoder("gemma3_hidden", "Gemma3TextModel", head_dim=8, num_key_value_heads=2),
    encoder("embedding_gemma2", "EmbeddingGemma2TextModel"),
    encoder("imagegpt", "ImageGPTModel"),
    encoder("dpr", "DPRQuestionEncoder"),
    encdec("mvp", "MvpForConditionalGeneration"),
    vision("pixio", "PixioModel"),
    vision("sapiens2", "Sapiens2Model"),
    vision("internvl_vision", "InternVLVisionModel", image_size=[32, 32], patch_size=[8, 8]),
    vision("idefics3_vision", "Idefics3VisionTransformer"),
    vision("mlcd", "MLCDVisionModel", note="rotary on the patches"),
    vision("tipsv2_vision", "Tipsv2VisionModel"),
    vision("sam3_vit", "Sam3ViTModel", window_size=2, global_attn_indexes=[1]),
    custom("videomae", "VideoMAEModel", 2, "vision", VIDEO, **CLIP, note="videos"),
    custom("vivit", "VivitModel", 2, "vision", VIDEO, **CLIP | {"tubelet_size": [2, 8, 8]}, note="videos"),
    custom("timesformer", "TimesformerModel", 4, "vision", VIDEO, **VIT, num_frames=4, note="time, then space"),
    custom(
        "siglip2_vision",
        "Siglip2VisionModel",
        3,
        "vision",
        {
            "pixel_values": "float batch 16 192",
            "pixel_attention_mask": "mask batch 16",
            "spatial_shapes": "=4 batch 2",
        },
        "last_hidden_state pooler_output",
        (("rightpad", {"batch": 2}), ("full", {"batch": 1})),
        **VIT | {"num_patches": 16},
    ),
    custom("time_series", "TimeSeriesTransformerModel", 6, "series", SERIES, **VALUES),
    custom("informer", "InformerModel", 6, "series", SERIES, **VALUES, attention_type="full", distil=False),
    custom(
        "timesfm",
        "TimesFmModel",
        2,
        "series",
        {"past_values": "float batch 32", "past_values_padding": "zeros batch 32", "freq": "int3 batch 1"},
        **{k: SMALL[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        head_dim=16,
        patch_length=8,
        context_length=32,
        horizon_length=8,
    ),
)

HEADS = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
CLIPS = {
    "hidden_states": "float batch 4 2 8 8",
    "encoder_hidden_states": "float batch text 32",
    "timestep": "step batch",
}
MASKED = {"encoder_attention_mask": "true batch text"}
PLACES = {"img_ids": "float 16 3", "txt_ids": "float text 3"}

DIFFUSION = (
    diffusion(
        "controlnet",
        "ControlNetModel",
        4,
        {
            "sample": "float batch 4 8 8",
            "timestep": "step batch",
            "encoder_hidden_states": "float batch text 32",
            "controlnet_cond": "float batch 3 64 64",
        },
        {key: value for key, value in UNET.items() if key not in ("up_block_types", "sample_size")}
        | {"conditioning_embedding_out_channels": (16, 16, 16, 16)},
        "mid_block_res_sample",
    ),
    diffusion(
        "unet3d",
        "UNet3DConditionModel",
        18,
        {
            "sample": "float batch 4 3 8 8",
            "timestep": "step batch",
            "encoder_hidden_states": "float batch text 32",
        },
        UNET
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        note="space and time",
    ),
    diffusion(
        "hunyuan_dit",
        "HunyuanDiT2DModel",
        5,
        {
            "hidden_states": "float batch 4 8 8",
            "timestep": "step batch",
            "encoder_hidden_states": "float batch 7 32",
            "text_embedding_mask": "ones batch 7",
            "encoder_hidden_states_t5": "float batch 5 24",
            "text_embedding_mask_t5": "ones batch 5",
        },
        HEADS
        | {"in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 64, "cross_attention_dim": 32}
        | {"cross_attention_dim_t5": 24, "pooled_projection_dim": 16, "text_len": 7, "text_len_t5": 5}
        | {"use_style_cond_and_image_meta_size": False},
        attns=SDPA,
        note="self and cross, pooling of the text",
    ),
    diffusion(
        "cogview4",
        "CogView4Transformer2DModel",
        2,
        NOISY | {"original_size": "unit batch 2", "target_size": "unit batch 2", "crop_coords": "unit batch 2"},
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 32,
            "time_embed_dim": 16,
            "condition_dim": 8,
        }
        | {"pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (16, 16)},
        attns=SDPA,
    ),
    diffusion(
        "latte",
        "LatteTransformer3DModel",
        6,
        CLIPS,
        HEADS
        | {"in_channels": 4, "out_channels": 4, "sample_size": 8, "patch_size": 2, "cross_attention_dim": 64}
        | {
            "caption_channels": 32,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 10,
        }
        | {"norm_elementwise_affine": False, "activation_fn": "gelu-approximate", "attention_bias": True},
        note="space, across and time",
    ),
    diffusion(
        "chroma",
        "ChromaTransformer2DModel",
        2,
        TOKENS | {"timestep": "unit batch"} | PLACES | {"attention_mask": "true batch text+16"},
        JOINT
        | {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (4, 6, 6)}
        | {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1},
        attns=SDPA,
    ),
    diffusion(
        "bria",
        "BriaTransformer2DModel",
        2,
        TOKENS | {"timestep": "unit batch"} | PLACES,
        JOINT | {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (4, 6, 6)},
        attns=SDPA,
    ),
    diffusion(
        "qwen_image",
        "QwenImageTransformer2DModel",
        2,
        TOKENS | {"encoder_hidden_states_mask": "ones batch text", "timestep": "unit batch"},
        HEADS | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)},
        attns=SDPA,
        fixed={"img_shapes": [(1, 4, 4)]},
    ),
    diffusion(
        "prx",
        "PRXTransformer2DModel",
        2,
        NOISY | {"attention_mask": "true batch text"},
        {
            "in_channels": 4,
            "context_in_dim": 32,
            "hidden_size": 64,
            "num_heads": 4,
            "depth": 2,
            "axes_dim": [8, 8],
        },
        attns=SDPA,
    ),
    diffusion(
        "lumina2",
        "Lumina2Transformer2DModel",
        4,
        NOISY | MASKED,
        {"sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1}
        | {"num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (4, 4, 4), "axes_lens": (16, 16, 16)}
        | {"cap_feat_dim": 32, "multiple_of": 16},
        attns=SDPA,
        note="GQA; two refiners",
    ),
    diffusion(
        "hunyuan_video",
        "HunyuanVideoTransformer3DModel",
        3,
        CLIPS | {"encoder_attention_mask": "true batch text", "pooled_projections": "float batch 16"},
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
        }
        | {"patch_size": 2, "text_embed_dim": 32, "pooled_projection_dim": 16, "rope_axes_dim": (4, 6, 6)}
        | {"guidance_embeds": False},
        attns=SDPA,
    ),
    diffusion(
        "uvit",
        "UVit2DModel",
        8,
        {
            "input_ids": "ids batch 8 8",
            "encoder_hidden_states": "float batch text 32",
            "pooled_text_emb": "float batch 16",
            "micro_conds": "unit batch 5",
        },
        {"hidden_size": 64, "cond_embed_dim": 16, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40}
        | {"encoder_hidden_size": 32, "vocab_size": 128, "codebook_size": 120, "in_channels": 32}
        | {"block_out_channels": 32, "num_res_blocks": 1, "block_num_heads": 4, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "intermediate_size": 128, "sample_size": 8},
    ),
    diffusion(
        "dc_decoder",
        "AutoencoderDC",
        0,
        {"hidden_states": "float batch 8 4 4"},
        {"latent_channels": 8, "attention_head_dim": 8}
        | {"encoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (16, 32)}
        | {"decoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_out_channels": (16, 32)}
        | {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
        | {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))},
        part="decoder",
        attns=SDPA,
        note="linear attention",
    ),
)

RECIPES = (*NEWER, *DIFFUSION)
