"""The last of `export_configs_rest.py`: whole models of several parts, and decoders that need more arguments."""

from __future__ import annotations

from typing import Any

from export_configs import Recipe
from export_configs_media import PIXELS, TWO
from export_configs_parts import CONVS, FOUR, HEADS, ONE, ROPE, STAGES, WORDS, heard, images, tower
from export_configs_rest import BERT, GROUPS, VIT, rest

EVERY = {"num_key_value_heads": 4}  # every head has its own keys


def decoder(name: str, model: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    return rest(name, model, "decoder", truth, note, **options)


def text(name: str, model: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    return rest(name, model, "text", truth, note, **options)


DECODERS = (
    decoder("mistral4", "Mistral4ForCausalLM", **EVERY, note="MLA"),
    decoder(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        4,
        "MLA, two in each layer",
        **EVERY,
        head_dim=4,
        ffn_hidden_size=64,
        expert_ffn_hidden_size=32,
        zero_expert_num=2,
    ),
    decoder(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        1,
        "state spaces, attention",
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    decoder("zaya", "ZayaForCausalLM", num_experts_per_tok=1),
    decoder(
        "zamba2",
        "Zamba2ForCausalLM",
        1,
        "state spaces, attention",
        layers_block_type=["mamba", "hybrid"],
        attention_hidden_size=64,
        attention_head_dim=16,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_d_state=8,
        mamba_ngroups=1,
        num_mem_blocks=1,
    ),
    text("mistral_large4_text", "mistral_large4.MistralLarge4TextModel", **EVERY, note="MLA"),
    text(
        "step3p7_text",
        "step3p7.Step3p7TextModel",
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=4,
    ),
    text(
        "deepseek_ocr2_text",
        "deepseek_ocr2.DeepseekOcr2TextModel",
        mlp_layer_types=["dense", "sparse"],
        num_experts_per_tok=2,
    ),
    text(
        "glm4v_moe_text",
        "glm4v_moe.Glm4vMoeTextModel",
        rope_parameters=ROPE["rope_parameters"] | {"partial_rotary_factor": 1.0},
        head_dim=8,
    ),
    text(
        "chameleon",
        "ChameleonModel",
        vocabulary_map={"<image>": 4},
        vq_config={"embed_dim": 8, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
        | {"latent_channels": 8, "resolution": 32},
    ),
)

TOWERS = (
    tower("cosmos3_edge_vision", "cosmos3_edge.Cosmos3EdgeVisionModel", key="pixel_values", width=192),
    tower("hy_v4_vision", "hy_v4_vl.HYV4VLVisionModel", key="pixel_values", width=192),
    tower("glm_image_vision", "glm_image.GlmImageVisionModel", key="pixel_values", width=192),
    rest(
        "kimi_k25_vision",
        "kimi_k25.Kimi_K25VisionModel",
        "vision",
        inputs={"pixel_values": "float 16 3 8 8", "grid_thw": "=1,4,4 1 3"},
        sets=ONE,
    ),
)

STAGE = {"in_channels": [16, 16, 32, 32], "mid_channels": [8, 8, 8, 8], "out_channels": [16, 32, 32, 32]}
HGNET = {f"stage_{name}": sizes for name, sizes in STAGE.items()}
HGNET |= {"stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1], "depths": [1, 1, 1, 1]}

IMAGES = (
    images("groupvit", "GroupViTModel", 8, out="logits_per_image", more=WORDS, vision_config=GROUPS),
    images(
        "vitpose",
        "VitPoseForPoseEstimation",
        out="heatmaps",
        backbone_config=FOUR
        | {"model_type": "vitpose_backbone", "image_size": [32, 32], "patch_size": [8, 8]}
        | {"num_hidden_layers": 2, "out_indices": [2], "num_experts": 1, "part_features": 0},
    ),
    images(
        "d_fine",
        "DFineForObjectDetection",
        3,
        "64 64",
        "logits pred_boxes",
        backbone_config=HGNET
        | {"model_type": "hgnet_v2", "embedding_size": 16, "stem_channels": [3, 16, 16]}
        | {"hidden_sizes": [16, 32, 32, 32], "out_features": STAGES[1:]},
        encoder_hidden_dim=32,
        encoder_in_channels=[32, 32, 32],
        decoder_in_channels=[32, 32, 32],
        num_queries=6,
        num_denoising=0,
        encoder_layers=1,
        anchor_image_size=None,
        hidden_expansion=1.0,
    ),
    rest(
        "superglue",
        "SuperGlueForKeypointMatching",
        "vision",
        2,
        inputs={"pixel_values": "float batch 2 1 64 64"},
        outputs=("matching_scores",),
        keypoint_detector_config={"encoder_hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8}
        | {"descriptor_decoder_dim": 32, "max_keypoints": 8},
        keypoint_encoder_sizes=[8, 16],
        gnn_layers_types=["self", "cross"],
    ),
    images(
        "oneformer",
        "OneFormerForUniversalSegmentation",
        10,
        "64 64",
        "class_queries_logits",
        more={"task_inputs": "int100 batch 7"},
        **HEADS,
        mask_dim=32,
        conv_dim=32,
        task_seq_len=7,
        max_seq_len=7,
        text_encoder_width=32,
        text_encoder_vocab_size=128,
        text_encoder_proj_layers=1,
        query_dec_layers=1,
        is_training=False,
    ),
    images(
        "kosmos2",
        "Kosmos2Model",
        5,
        more={
            "input_ids": "ids batch 8",
            "image_embeds_position_mask": "=1,1,1,1,0,0,0,0 batch 8",
        },
        latent_query_num=4,
        text_config={"layers": 2},
    ),
    rest(
        "idefics",
        "IdeficsModel",
        "vision",
        6,
        inputs=WORDS | {"pixel_values": "float batch 1 3 32 32", "image_attention_mask": "ones batch 7 1"},
        use_resampler=False,
        cross_layer_interval=1,
        vision_config=VIT | {"embed_dim": 32},
    ),
    rest(
        "tvp",
        "TvpModel",
        "vision",
        inputs={"pixel_values": "float 1 4 3 64 64", "input_ids": "ids 1 7", "attention_mask": "ones 1 7"},
        sets=ONE,
        backbone_config=CONVS | {"model_type": "resnet", "out_features": ["stage4"]},
        max_img_size=64,
        visual_prompt_size=4,
        num_frames=4,
    ),
    rest(
        "vision_text_dual",
        "VisionTextDualEncoderModel",
        "vision",
        4,
        inputs=PIXELS | WORDS,
        outputs=("logits_per_image",),
        vision_config=VIT | {"model_type": "vit"},
        text_config=BERT,
    ),
)

SERIES = {"past_values": "float batch 14", "past_time_features": "float batch 14 1"}
SERIES |= {"past_observed_mask": "ones batch 14", "future_values": "float batch 6"}
SERIES |= {"future_time_features": "float batch 6 1"}

SOUNDS = (
    rest(
        "audioflamingo3_encoder",
        "audioflamingo3.AudioFlamingo3Encoder",
        "mel",
        inputs={"input_features": "float batch 16 24", "input_features_mask": "ones batch 24"},
        sets=TWO,
        max_source_positions=12,
    ),
    heard(
        "canary",
        "CanaryForConditionalGeneration",
        6,
        {"input_features": "float batch time 16", "decoder_input_ids": "ids batch 5"},
        (64, 96),
        outputs=("logits",),
        encoder_config={"subsampling_conv_channels": 16},
        fixed={"use_cache": False},
    ),
    rest(
        "phi4_audio",
        "phi4_multimodal.Phi4MultimodalAudioModel",
        "mel",
        inputs={"hidden_states": "float batch 64 80", "mask": "true batch 64"},
        sets=TWO,
        num_blocks=2,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        nemo_conv_channels=32,
    ),
    rest(
        "autoformer",
        "AutoformerModel",
        "vision",
        0,
        "autocorrelation: its softmax is over delays, the best few of them",
        inputs=SERIES,
        prediction_length=6,
        context_length=12,
        lags_sequence=[1, 2],
        num_time_features=1,
        moving_average=3,
    ),
)

FEW: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32]}
NONE = (  # without attention: what is checked is that they run and agree
    images("convnext", "ConvNextModel", 0, "64 64", **FEW, patch_size=4),
    images("convnextv2", "ConvNextV2Model", 0, "64 64", **FEW, patch_size=4),
    images("dinov3_convnext", "DINOv3ConvNextModel", 0, **FEW),
    images("resnet", "ResNetModel", 0, **FEW, embedding_size=8),
    images("mobilenet_v1", "MobileNetV1Model", 0, depth_multiplier=0.25),
    images("mobilenet_v2", "MobileNetV2Model", 0, depth_multiplier=0.35),
    images("textnet", "TextNetModel", 0),
    images("pp_lcnet", "pp_lcnet.PPLCNetEncoder", 0),
    rest(
        "dac",
        "DacModel",
        "vision",
        0,
        inputs={"input_values": "float batch 1 400"},
        outputs=("audio_values",),
        encoder_hidden_size=8,
        decoder_hidden_size=32,
        downsampling_ratios=[2, 4],
        upsampling_ratios=[4, 2],
        hidden_size=16,
    ),
)

RECIPES = (*DECODERS, *TOWERS, *IMAGES, *SOUNDS, *NONE)
