"""The end of the table in `export_configs.py`: images beside text, layouts, time series, diffusion."""

from __future__ import annotations

from typing import Any

from export_configs import NO_CACHE, SMALL, TEXT, TEXT_SETS, Recipe, Sets, merged
from export_configs_media import VIT, custom

CLIP_TEXT = SMALL | {"projection_dim": 32}
CLIP_IMAGE = VIT | {"projection_dim": 32}
BOTH_CLIP = {"text_config": CLIP_TEXT, "vision_config": CLIP_IMAGE, "projection_dim": 32}
PAIR = {
    "input_ids": "ids batch seq",
    "pixel_values": "float images 3 32 32",
    "attention_mask": "mask batch seq",
}
PAIR_SETS: Sets = (
    ("rightpad", {"batch": 2, "seq": 7, "images": 3}),
    ("full", {"batch": 1, "seq": 10, "images": 2}),
)
PAIRED = {**TEXT, "pixel_values": "float batch 3 32 32"}
SCORES = "logits_per_image text_embeds"
BOXES = {**TEXT, "bbox": "int60 batch seq 4"}
SERIES = {"past_values": "float batch 32 2"}

MIXED = (
    custom("clip_full", "CLIPModel", 4, "pair", PAIR, SCORES, PAIR_SETS, **BOTH_CLIP),
    custom("clip_text", "CLIPTextModel", 2, "encoder", TEXT, sets=TEXT_SETS, **CLIP_TEXT),
    custom("siglip_text", "SiglipTextModel", 2, "encoder", TEXT, sets=TEXT_SETS, **SMALL),
    custom("siglip_full", "SiglipModel", 5, "pair", PAIR, SCORES, PAIR_SETS, text_config=SMALL, vision_config=VIT),
    custom("chinese_clip", "ChineseCLIPModel", 4, "pair", PAIR, SCORES, PAIR_SETS, **BOTH_CLIP),
    custom("altclip", "AltCLIPModel", 4, "pair", PAIR, SCORES, PAIR_SETS, **BOTH_CLIP),
    custom("owlvit_text", "OwlViTTextModel", 2, "encoder", TEXT, sets=TEXT_SETS, **SMALL),
    custom("vilt", "ViltModel", 2, "pair", PAIRED, sets=PAIR_SETS, **{**SMALL, **VIT}),
    custom("git", "GitModel", 4, "pair", PAIRED, sets=PAIR_SETS, **SMALL, vision_config=VIT, fixed=NO_CACHE),
    custom(
        "visual_bert",
        "VisualBertModel",
        2,
        "pair",
        {**TEXT, "visual_embeds": "float batch 3 16", "visual_attention_mask": "ones batch 3"},
        sets=TEXT_SETS,
        **SMALL,
        visual_embedding_dim=16,
    ),
    custom(
        "lxmert",
        "LxmertModel",
        11,
        "pair",
        {**TEXT, "visual_feats": "float batch 3 16", "visual_pos": "unit batch 3 4"},
        "language_output vision_output",
        TEXT_SETS,
        **merged(SMALL, {"num_hidden_layers": ...}),
        l_layers=2,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=16,
        note="2 text, 1 image, 2 x (2 cross + 2 self)",
    ),
    custom(
        "bros",
        "BrosModel",
        2,
        "encoder",
        {**TEXT, "bbox": "unit batch seq 8"},
        sets=TEXT_SETS,
        **SMALL,
        note="2d bias",
    ),
    custom(
        "layoutlmv3",
        "LayoutLMv3Model",
        2,
        "pair",
        {**BOXES, "pixel_values": "float batch 3 32 32"},
        sets=TEXT_SETS,
        **{**SMALL, "input_size": 32, "patch_size": 8, "coordinate_size": 8, "shape_size": 16},
        note="1d and 2d relative bias",
    ),
    custom(
        "patchtst",
        "PatchTSTModel",
        2,
        "series",
        SERIES,
        num_input_channels=2,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=128,
    ),
    custom(
        "decision_transformer",
        "DecisionTransformerModel",
        2,
        "series",
        {
            "states": "float batch seq 5",
            "actions": "float batch seq 3",
            "rewards": "float batch seq 1",
            "returns_to_go": "float batch seq 1",
            "timesteps": "int30 batch seq",
            "attention_mask": "mask batch seq",
        },
        "action_preds",
        TEXT_SETS,
        state_dim=5,
        act_dim=3,
        hidden_size=64,
        max_ep_len=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
    ),
    custom(
        "perceiver",
        "PerceiverModel",
        3,
        "encoder",
        {"inputs": "float batch seq 32", "attention_mask": "mask batch seq"},
        sets=TEXT_SETS,
        d_model=32,
        d_latents=64,
        num_latents=6,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=1,
        note="latents attend to the inputs, then to themselves",
    ),
    custom(
        "blip2_qformer",
        "Blip2QFormerModel",
        3,
        "pair",
        {"query_embeds": "float batch 6 64", "encoder_hidden_states": "float batch seq 32"},
        sets=TEXT_SETS,
        **SMALL,
        encoder_hidden_size=32,
        cross_attention_frequency=2,
        note="2 self + 1 cross",
    ),
)

LATENT: Sets = (("full", {"batch": 2, "text": 7}), ("one", {"batch": 1, "text": 5}))
UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "sample_size": 8,
}
VAE = {"block_out_channels": (32,), "norm_num_groups": 8, "sample_size": 8}
SAMPLE = {
    "sample": "float batch 4 8 8",
    "timestep": "step batch",
    "encoder_hidden_states": "float batch text 32",
}
DIT = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8, "patch_size": 2}
TOKENS = {"hidden_states": "float batch 16 16", "encoder_hidden_states": "float batch text 32"}
NOISY = {
    "hidden_states": "float batch 4 8 8",
    "encoder_hidden_states": "float batch text 32",
    "timestep": "step batch",
}
JOINT = {"joint_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 4}
SDPA = ("sdpa",)


def diffusion(
    name: str,
    model: str,
    truth: int,
    inputs: dict[str, str],
    options: dict[str, Any],
    out: str = "sample",
    **more: Any,
) -> Recipe:
    names = ("out_sample",) if out == "sample" else tuple(out.split())
    return Recipe(name, f"diffusers.{model}", truth, "diffusion", inputs, names, LATENT, options, **more)


DIFFUSION = (
    diffusion("unet2d_cond", "UNet2DConditionModel", 8, SAMPLE, UNET, note="self and cross"),
    diffusion(
        "unet2d_linear",
        "UNet2DConditionModel",
        8,
        SAMPLE,
        UNET | {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    ),
    diffusion(
        "unet2d",
        "UNet2DModel",
        4,
        {"sample": "float batch 3 8 8", "timestep": "step batch"},
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    diffusion("vae_encoder", "AutoencoderKL", 1, {"sample": "float batch 3 16 16"}, VAE, part="encoder"),
    diffusion("vae_decoder", "AutoencoderKL", 1, {"sample": "float batch 4 8 8"}, VAE, part="decoder"),
    diffusion("vq_decoder", "VQModel", 1, {"sample": "float batch 3 8 8"}, VAE, part="decoder"),
    diffusion(
        "dit",
        "DiTTransformer2DModel",
        2,
        {"hidden_states": "float batch 4 8 8", "timestep": "stepint64 batch", "class_labels": "int10 batch"},
        DIT | {"num_embeds_ada_norm": 10},
    ),
    diffusion(
        "pixart",
        "PixArtTransformer2DModel",
        4,
        NOISY | {"encoder_attention_mask": "ones batch text"},
        DIT | {"cross_attention_dim": 64, "caption_channels": 32, "use_additional_conditions": False},
        fixed={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    diffusion(
        "sd3_transformer",
        "SD3Transformer2DModel",
        2,
        NOISY | {"pooled_projections": "float batch 16"},
        DIT
        | JOINT
        | {
            "in_channels": 4,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
        attns=SDPA,
        note="text and image joined",
    ),
    diffusion(
        "flux_transformer",
        "FluxTransformer2DModel",
        2,
        TOKENS
        | {"pooled_projections": "float batch 16", "timestep": "unit batch"}
        | {"img_ids": "float 16 3", "txt_ids": "float text 3"},
        JOINT
        | {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 16}
        | {"axes_dims_rope": (4, 6, 6)},
        attns=SDPA,
        note="one double, one single block",
    ),
    diffusion(
        "auraflow",
        "AuraFlowTransformer2DModel",
        2,
        NOISY,
        JOINT
        | {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "caption_projection_dim": 64}
        | {"pos_embed_max_size": 16},
        attns=SDPA,
    ),
    diffusion(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        2,
        {
            "hidden_states": "float batch 2 4 8 8",
            "encoder_hidden_states": "float batch 6 32",
            "timestep": "step batch",
        },
        {
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
        }
        | {
            "text_embed_dim": 32,
            "time_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
        }
        | {"max_text_seq_length": 6},
        attns=SDPA,
    ),
    diffusion(
        "sana",
        "SanaTransformer2DModel",
        2,
        NOISY,
        DIT
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 16,
        }
        | {"cross_attention_dim": 64, "caption_channels": 32, "patch_size": 1},
        attns=SDPA,
        note="linear self attention, softmax only across",
    ),
    diffusion(
        "wan",
        "WanTransformer3DModel",
        4,
        {
            "hidden_states": "float batch 4 2 8 8",
            "timestep": "step batch",
            "encoder_hidden_states": "float batch text 32",
        },
        {
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
        }
        | {"text_dim": 32, "freq_dim": 32, "ffn_dim": 128, "rope_max_seq_len": 32},
        attns=SDPA,
        note="self and cross",
    ),
    diffusion(
        "ltx",
        "LTXVideoTransformer3DModel",
        4,
        TOKENS | {"timestep": "step batch", "encoder_attention_mask": "ones batch text"},
        {
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
        }
        | {"cross_attention_dim": 64, "caption_channels": 32},
        attns=SDPA,
        fixed={"num_frames": 2, "height": 2, "width": 4},
    ),
    diffusion(
        "stable_audio",
        "StableAudioDiTModel",
        4,
        {
            "hidden_states": "float batch 8 16",
            "timestep": "unit batch",
            "encoder_hidden_states": "float batch text 32",
            "global_hidden_states": "float batch 1 24",
        },
        {"sample_size": 16, "in_channels": 8, "out_channels": 8, "num_layers": 2, "attention_head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_attention_heads": 2, "cross_attention_dim": 32}
        | {"global_states_input_dim": 24, "cross_attention_input_dim": 32},
        attns=SDPA,
        note="GQA across",
    ),
    diffusion(
        "prior",
        "PriorTransformer",
        2,
        {
            "hidden_states": "float batch 32",
            "timestep": "step batch",
            "proj_embedding": "float batch 32",
            "encoder_hidden_states": "float batch 6 32",
            "attention_mask": "true batch 6",
        },
        {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": 32}
        | {"num_embeddings": 6},
        "predicted_image_embedding",
    ),
)

RECIPES = (*MIXED, *DIFFUSION)
HALF = "bert gpt2 llama llama_past gemma2 gpt_oss t5 whisper vit swin clip_text unet2d_cond distilbert mpt qwen3"
