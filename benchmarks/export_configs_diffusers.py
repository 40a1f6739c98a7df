"""More of diffusers for `export_models.py`: the transformers of images and videos that no table before it has."""

from __future__ import annotations

from typing import Any

from export_configs import Recipe
from export_configs_mixed import JOINT, NOISY, SDPA, TOKENS, UNET, diffusion
from export_configs_more import CLIPS, HEADS, PLACES

UNIT = {"timestep": "unit batch"}
LATENTS = {"in_channels": 4, "out_channels": 4}
FOUR = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1}
AXES: dict[str, Any] = {"axes_dims_rope": (4, 6, 6)}
IDS = {"img_ids": "float 16 4", "txt_ids": "float text 4"}
WAN = HEADS | LATENTS | {"text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 32}
SIZED = {"original_size": "unit batch 2", "target_size": "unit batch 2", "crop_coords": "unit batch 2"}
COSMOS: dict[str, Any] = {"text_embed_dim": 32, "adaln_lora_dim": 8, "max_size": (4, 16, 16), "mlp_ratio": 2.0}


def joined(name: str, model: str, truth: int, inputs: dict[str, str], options: dict[str, Any], **more: Any) -> Recipe:
    """One of diffusers' models that know no other attention than torch's own."""
    return diffusion(name, model, truth, inputs, options, attns=SDPA, **more)


IMAGES = (
    joined(
        "flux2",
        "Flux2Transformer2DModel",
        2,
        TOKENS | UNIT | IDS | {"guidance": "unit batch"},
        JOINT | FOUR | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
    ),
    joined(
        "flux3",
        "Flux3Transformer2DModel",
        3,
        TOKENS | UNIT | IDS,
        JOINT | FOUR | {"axes_dims_rope": (4, 4, 4, 4), "timestep_channels": 16, "cond_in_channels": 16},
    ),
    joined(
        "bria_fibo",
        "BriaFiboTransformer2DModel",
        2,
        TOKENS | UNIT | PLACES | {"text_encoder_layers": "float 2 batch text 16"},
        JOINT | FOUR | AXES | {"text_encoder_dim": 16},
        listed=("text_encoder_layers",),
    ),
    joined(
        "cogview3plus",
        "CogView3PlusTransformer2DModel",
        2,
        NOISY | SIZED,
        HEADS
        | LATENTS
        | {"text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8},
    ),
    joined(
        "glm_image",
        "GlmImageTransformer2DModel",
        2,
        NOISY
        | {"prior_token_id": "int16 batch 16", "prior_token_drop": "true batch"}
        | {"target_size": "unit batch 2", "crop_coords": "unit batch 2"},
        HEADS
        | LATENTS
        | {"text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 16},
    ),
    joined(
        "ernie_image",
        "ErnieImageTransformer2DModel",
        2,
        {"hidden_states": "float batch 16 4 4", "text_bth": "float batch text 32", "text_lens": "ones batch"} | UNIT,
        {"hidden_size": 64, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 64, "in_channels": 16}
        | {"out_channels": 16, "text_in_dim": 32, "rope_axes_dim": (4, 6, 6)},
    ),
    joined(
        "hidream",
        "HiDreamImageTransformer2DModel",
        2,
        {"hidden_states": "float batch 4 8 8", "timesteps": "step batch", "pooled_embeds": "float batch 16"}
        | {"encoder_hidden_states_t5": "float batch text 32", "encoder_hidden_states_llama3": "float 2 batch text 32"},
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | {"attention_head_dim": 16, "num_attention_heads": 4, "caption_channels": [32, 32], "text_emb_dim": 16}
        | {"axes_dims_rope": (4, 6, 6), "max_resolution": (8, 8), "llama_layers": [0, 1]}
        | {"force_inference_output": True},
    ),
    joined(
        "hunyuan_image",
        "HunyuanImageTransformer2DModel",
        3,
        {"hidden_states": "float batch 16 4 4", "timestep": "step batch"}
        | {"encoder_hidden_states": "float batch text 32", "encoder_attention_mask": "true batch text"},
        HEADS | FOUR | {"out_channels": 16, "num_refiner_layers": 1, "text_embed_dim": 32, "rope_axes_dim": (8, 8)},
    ),
    joined(
        "ideogram4",
        "Ideogram4Transformer2DModel",
        2,
        {"hidden_states": "float batch 20 16", "timestep": "unit batch", "encoder_hidden_states": "float batch 20 32"}
        | {"position_ids": "arange batch 20 3", "segment_ids": "ones batch 20"}
        | {"indicator": "=3,3,3,3,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2 batch 20"},
        {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "adaln_dim": 16}
        | {"intermediate_size": 64, "llm_features_dim": 32, "mrope_section": (4, 2, 2)},
    ),
    joined(
        "krea2",
        "Krea2Transformer2DModel",
        6,
        TOKENS
        | {"encoder_hidden_states": "float batch text 2 32", "timestep": "unit batch"}
        | {"position_ids": "float text+16 3"},
        {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "intermediate_size": 64, "timestep_embed_dim": 16, "text_hidden_dim": 32}
        | {"num_text_layers": 2, "text_num_attention_heads": 4, "text_num_key_value_heads": 4}
        | {"text_intermediate_size": 64, "axes_dims_rope": (4, 6, 6)},
        note="GQA; attention over the text's layers",
    ),
    joined(
        "longcat_image",
        "LongCatImageTransformer2DModel",
        2,
        TOKENS | UNIT | PLACES,
        JOINT | FOUR | AXES | {"pooled_projection_dim": 16},
    ),
    joined(
        "ovis_image",
        "OvisImageTransformer2DModel",
        2,
        TOKENS | UNIT | PLACES,
        JOINT | FOUR | AXES | {"out_channels": 16},
    ),
    joined(
        "nucleus_moe",
        "NucleusMoEImageTransformer2DModel",
        2,
        TOKENS | UNIT,
        HEADS
        | AXES
        | {"in_channels": 16, "out_channels": 4, "num_key_value_heads": 2, "joint_attention_dim": 32}
        | {"moe_enabled": False},
        fixed={"img_shapes": [(1, 4, 4)]},
        note="GQA",
    ),
    joined(
        "omnigen",
        "OmniGenTransformer2DModel",
        2,
        {"hidden_states": "float batch 4 8 8", "timestep": "unit batch", "input_ids": "ids batch text"}
        | {"attention_mask": "ones batch text+17 text+17", "position_ids": "arange batch text+17"},
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64}
        | {"num_layers": 2, "pad_token_id": 0, "vocab_size": 128, "max_position_embeddings": 64}
        | {"original_max_position_embeddings": 64, "pos_embed_max_size": 8, "time_step_dim": 16}
        | {"rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}},
        fixed={"input_img_latents": [], "input_image_sizes": {}},
    ),
    joined(
        "qwen_image21",
        "QwenImage21Transformer2DModel",
        4,
        UNIT
        | {
            "hidden_states": "float batch 64 16",
            "encoder_hidden_states": "float batch 12 32",
            "img_mask": "true batch 16",
        },
        HEADS | AXES | {"in_channels": 16, "out_channels": 4, "context_in_dim": 32},
        fixed={"img_shapes": [[(1, 8, 6), (1, 4, 4)]]},
    ),
    joined(
        "z_image",
        "ZImageTransformer2DModel",
        6,
        {"x": "float 1 4 1 8 8", "t": "unit 1", "cap_feats": "float 1 7 32"},
        {"in_channels": 4, "dim": 64, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 4, "n_kv_heads": 4}
        | {"cap_feat_dim": 32, "axes_dims": [4, 6, 6], "axes_lens": [64, 32, 32]},
        listed=("x", "cap_feats"),
        note="two refiners",
    ),
    joined(
        "stable_cascade",
        "StableCascadeUNet",
        4,
        {"sample": "float batch 4 8 8", "timestep_ratio": "unit batch", "clip_text_pooled": "float batch 1 16"},
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 32}
        | {"block_out_channels": (32, 32), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1)}
        | {"up_num_layers_per_block": (1, 1), "clip_text_pooled_in_channels": 16, "clip_seq": 2},
    ),
    diffusion(
        "unidiffuser",
        "UniDiffuserModel",
        3,
        {"latent_image_embeds": "float batch 4 8 8", "image_embeds": "float batch 1 16"}
        | {"prompt_embeds": "float batch 6 32", "timestep_img": "step batch", "timestep_text": "step batch"},
        HEADS
        | LATENTS
        | {"text_dim": 32, "clip_img_dim": 16, "num_text_tokens": 6, "sample_size": 8, "patch_size": 2}
        | {"use_patch_pos_embed": True, "norm_type": "layer_norm", "block_type": "unidiffuser"},
        "img_out",
    ),
)

VIDEOS = (
    joined(
        "anyflow",
        "AnyFlowTransformer3DModel",
        4,
        CLIPS | {"hidden_states": "float batch 2 4 8 8", "timestep": "step batch 2", "r_timestep": "step batch 2"},
        WAN,
    ),
    joined("chronoedit", "ChronoEditTransformer3DModel", 4, CLIPS, WAN),
    joined("skyreels", "SkyReelsV2Transformer3DModel", 4, CLIPS, WAN),
    joined(
        "wan_vace",
        "WanVACETransformer3DModel",
        6,
        CLIPS | {"control_hidden_states": "float batch 6 2 8 8", "control_hidden_states_scale": "unit 1"},
        WAN | {"vace_layers": [0], "vace_in_channels": 6},
    ),
    joined(
        "helios",
        "HeliosTransformer3DModel",
        4,
        CLIPS,
        {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
        | {"rope_dim": (4, 6, 6), "has_multi_term_memory_patch": False, "guidance_cross_attn": False},
    ),
    joined(
        "allegro",
        "AllegroTransformer3DModel",
        4,
        CLIPS | {"attention_mask": "true batch 2 8 8", "encoder_attention_mask": "true batch 1 text"},
        HEADS
        | LATENTS
        | {"cross_attention_dim": 64, "caption_channels": 32, "sample_height": 8, "sample_width": 8}
        | {"sample_frames": 2},
    ),
    joined(
        "consisid",
        "ConsisIDTransformer3DModel",
        2,
        {"hidden_states": "float batch 2 4 8 8", "encoder_hidden_states": "float batch 6 32", "timestep": "step batch"},
        HEADS
        | LATENTS
        | {"text_embed_dim": 32, "time_embed_dim": 16, "sample_width": 8, "sample_height": 8, "sample_frames": 5}
        | {"max_text_seq_length": 6},
    ),
    joined(
        "cosmos",
        "CosmosTransformer3DModel",
        4,
        CLIPS,
        HEADS | LATENTS | COSMOS | {"concat_padding_mask": False},
    ),
    joined(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        2,
        CLIPS,
        HEADS
        | LATENTS
        | {"patch_size": 2, "sample_width": 8, "sample_height": 8, "mmdit_layers": 2, "time_embed_dim": 16}
        | {"text_embed_dim": 32},
    ),
    joined(
        "hunyuan_video15",
        "HunyuanVideo15Transformer3DModel",
        4,
        {"hidden_states": "float batch 9 2 4 4", "timestep": "step batch"}
        | {"encoder_hidden_states": "float batch 7 32", "encoder_attention_mask": "true batch 7"}
        | {"encoder_hidden_states_2": "float batch 5 24", "encoder_attention_mask_2": "true batch 5"}
        | {"image_embeds": "float batch 4 16"},
        HEADS
        | {"in_channels": 9, "out_channels": 4, "num_refiner_layers": 2, "text_embed_dim": 32}
        | {"text_embed_2_dim": 24, "image_embed_dim": 16, "rope_axes_dim": (4, 6, 6)},
    ),
    joined(
        "framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        3,
        CLIPS
        | {"encoder_attention_mask": "true batch text", "pooled_projections": "float batch 16"}
        | {"image_embeds": "float batch 3 16", "indices_latents": "arange 2", "latents_clean": "float batch 4 1 8 8"}
        | {"indices_latents_clean": "arange 1", "latents_history_2x": "float batch 4 2 8 8"}
        | {"indices_latents_history_2x": "arange 2", "latents_history_4x": "float batch 4 4 8 8"}
        | {"indices_latents_history_4x": "arange 4"},
        HEADS
        | LATENTS
        | {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "guidance_embeds": False}
        | {"text_embed_dim": 32, "pooled_projection_dim": 16, "rope_axes_dim": (4, 6, 6)}
        | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
    ),
    joined(
        "joyimage",
        "JoyImageEditTransformer3DModel",
        2,
        CLIPS,
        {"in_channels": 4, "hidden_size": 64, "num_attention_heads": 4, "text_dim": 32, "num_layers": 2}
        | {"rope_dim_list": [4, 6, 6]},
    ),
    joined(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        5,
        {"hidden_states": "float batch 2 8 8 4", "encoder_hidden_states": "float batch 7 32"}
        | {"timestep": "step batch", "pooled_projections": "float batch 16"}
        | {"text_rope_pos": "=0,1,2,3,4,5,6 7"},
        {"in_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 16, "time_dim": 16, "out_visual_dim": 4}
        | {"model_dim": 32, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6)},
        fixed={"visual_rope_pos": [range(2), range(4), range(4)]},
    ),
    joined(
        "mochi",
        "MochiTransformer3DModel",
        5,
        CLIPS | {"encoder_attention_mask": "true batch 6", "encoder_hidden_states": "float batch 6 32"},
        HEADS
        | LATENTS
        | {"pooled_projection_dim": 16, "qk_norm": "rms_norm", "text_embed_dim": 32, "time_embed_dim": 4}
        | {"max_sequence_length": 6},
        note="one attention for each of the batch",
    ),
    joined(
        "motif_video",
        "MotifVideoTransformer3DModel",
        2,
        CLIPS | {"encoder_attention_mask": "true batch text"},
        HEADS | LATENTS | {"num_layers": 1, "num_single_layers": 1, "text_embed_dim": 32, "rope_axes_dim": (4, 6, 6)},
    ),
    joined(
        "sana_video",
        "SanaVideoTransformer3DModel",
        2,
        CLIPS,
        HEADS
        | LATENTS
        | {"num_cross_attention_heads": 4, "cross_attention_head_dim": 16, "cross_attention_dim": 64}
        | {"caption_channels": 32, "sample_size": 8},
        note="linear self attention",
    ),
    joined(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        12,
        {"hidden_states": "float batch 16 16", "audio_hidden_states": "float batch 4 8"}
        | {"encoder_hidden_states": "float batch text 32", "audio_encoder_hidden_states": "float batch text 32"}
        | {"timestep": "step batch"},
        HEADS
        | {"in_channels": 16, "out_channels": 16, "cross_attention_dim": 64, "audio_in_channels": 8}
        | {"audio_out_channels": 8, "audio_num_attention_heads": 4, "audio_attention_head_dim": 8}
        | {"audio_cross_attention_dim": 32, "caption_channels": 32},
        fixed={"num_frames": 2, "height": 2, "width": 4, "audio_num_frames": 4},
        note="video, sound, and each to the other",
    ),
    diffusion(
        "i2vgen",
        "I2VGenXLUNet",
        19,
        {"sample": "float batch 4 2 8 8", "timestep": "step batch", "fps": "step batch"}
        | {"image_latents": "float batch 4 2 8 8", "image_embeddings": "float batch 32"}
        | {"encoder_hidden_states": "float batch text 32"},
        {key: value for key, value in UNET.items() if "types" not in key}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "num_attention_heads": 4},
    ),
    diffusion(
        "unet_motion",
        "UNetMotionModel",
        22,
        {"sample": "float batch 4 2 8 8", "timestep": "step batch"}
        | {"encoder_hidden_states": "float batch+batch text 32"},
        {key: value for key, value in UNET.items() if key != "attention_head_dim"}
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "num_attention_heads": 4}
        | {"up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "motion_num_attention_heads": 4},
    ),
    diffusion(
        "unet_svd",
        "UNetSpatioTemporalConditionModel",
        16,
        {"sample": "float batch 2 8 8 8", "timestep": "step batch", "encoder_hidden_states": "float batch 1 32"}
        | {"added_time_ids": "unit batch 3"},
        {"sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32}
        | {"down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")}
        | {"up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}
        | {"addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96, "num_attention_heads": (2, 4)},
    ),
)

RECIPES = (*IMAGES, *VIDEOS)
