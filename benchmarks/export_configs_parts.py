"""More of `export_configs_rest.py`: towers for images of any size, detectors, videos, and what needs more arguments."""

from __future__ import annotations

from typing import Any

from export_configs import TEXT, Recipe, Sets
from export_configs_media import TWO
from export_configs_rest import rest

ONE: Sets = (("one", {}), ("again", {}))
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}


def tower(
    name: str,
    model: str,
    truth: int = 2,
    width: int = 384,
    key: str = "hidden_states",
    grid: str = "1 3",
    sizes: str = "1,4,4",
    patches: int = 16,
    **options: Any,
) -> Recipe:
    """A vision tower that is given patches in a row, and how many there are in each direction."""
    inputs = {key: f"float {patches} {width}", "grid_thw": f"={sizes} {grid}"}
    return rest(name, model, "vision", truth, inputs=inputs, sets=ONE, **options)


def images(name: str, model: str, truth: int = 2, size: str = "32 32", out: str = "", **options: Any) -> Recipe:
    """A model of images of one size; inputs beside them under `more`."""
    inputs = {"pixel_values": f"float batch 3 {size}"} | options.pop("more", {})
    outputs = tuple((out or "last_hidden_state").split())
    return rest(name, model, "vision", truth, inputs=inputs, outputs=outputs, **options)


def videos(name: str, model: str, truth: int, **options: Any) -> Recipe:
    inputs = {"pixel_values_videos": "float batch 4 3 32 32"}
    return rest(name, model, "vision", truth, inputs=inputs, **options)


def heard(name: str, model: str, truth: int, inputs: dict[str, str], times: tuple[int, int], **options: Any) -> Recipe:
    sets = tuple(("full", {"batch": batch, "time": time}) for batch, time in zip((2, 1), times, strict=True))
    return rest(name, model, "mel", truth, inputs=inputs, sets=sets, **options)


WINDOWS: dict[str, Any] = {"fullatt_block_indexes": [1], "window_size": 16}
TOWERS = (
    tower("qwen2_vl_vision", "qwen2_vl.Qwen2VisionTransformerPretrainedModel"),
    tower(
        "qwen2_vl_images",
        "qwen2_vl.Qwen2VisionTransformerPretrainedModel",
        4,
        grid="2 3",
        sizes="1,4,3",
        patches=24,
        spatial_merge_size=1,
        note="two images in one row",
    ),
    tower("qwen2_5_vl_vision", "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel", 5, **WINDOWS, note="windows"),
    tower(
        "qwen3_vl_vision",
        "qwen3_vl.Qwen3VLVisionModel",
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    ),
    tower("qwen3_5_moe_vision", "qwen3_5_moe.Qwen3_5MoeVisionModel", num_position_embeddings=16),
    tower("glm4v_vision", "glm4v.Glm4vVisionModel"),
    tower("glm_ocr_vision", "glm_ocr.GlmOcrVisionModel"),
    tower("glm5_next_vision", "glm5_next.Glm5NextVisionModel"),
    tower("exaone4_5_vision", "exaone4_5.Exaone4_5_VisionModel", 5, **WINDOWS, note="windows"),
    tower("ernie4_5_vl_vision", "ernie4_5_vl_moe.Ernie4_5_VLMoeVisionTransformerPretrainedModel", width=192),
    tower("hunyuan_vl_vision", "hunyuan_vl.HunYuanVLVisionTransformer", key="pixel_values", width=192),
    tower("minimax_m3_vision", "minimax_m3_vl.MiniMaxM3VLVisionModel", key="pixel_values"),
    tower("muse_glimmer_vision", "muse_glimmer.MuseGlimmerVisionModel", key="pixel_values"),
    tower("muse_spark_vision", "muse_spark.MuseSparkVisionModel", key="pixel_values"),
    tower(
        "lfm3_vl_vision",
        "lfm3_vl.Lfm3VlVisionModel",
        1,
        key="pixel_values",
        layer_types=["conv", "full_attention"],
    ),
    tower("cohere_compass_vision", "cohere_compass.CohereCompassVisionModel"),
    rest(
        "video_llama3_vision",
        "video_llama_3.VideoLlama3VisionModel",
        "vision",
        inputs={"pixel_values": "float 16 192", "grid_thw": "=1,4,4 1 3", "merge_sizes": "=2 1"},
        sets=ONE,
    ),
)

TEXTS = (
    rest("qwen2_vl_text", "qwen2_vl.Qwen2VLTextModel", "text", **ROPE),
    rest("qwen2_5_omni_text", "qwen2_5_omni.Qwen2_5OmniThinkerTextModel", "text", **ROPE),
    rest("glm4v_text", "glm4v.Glm4vTextModel", "text", **ROPE, head_dim=8),
    rest("glm_ocr_text", "glm_ocr.GlmOcrTextModel", "text", **ROPE, head_dim=8),
    rest("glm_image_text", "glm_image.GlmImageTextModel", "text", **ROPE, head_dim=8),
    rest("paddleocr_text", "paddleocr_vl.PaddleOCRTextModel", "text", **ROPE, head_dim=8),
    rest("ernie4_5_vl_text", "ernie4_5_vl_moe.Ernie4_5_VLMoeTextModel", "text", **ROPE),
    rest("lfm2_moe", "Lfm2MoeForCausalLM", "decoder", 1, layer_types=["conv", "full_attention"], num_dense_layers=1),
    rest("qwen3_5_moe", "Qwen3_5MoeForCausalLM", "decoder", 1, **MIXED),
    rest(
        "gemma3n",
        "Gemma3nForCausalLM",
        "decoder",
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    rest(
        "dbrx",
        "DbrxForCausalLM",
        "decoder",
        d_model=32,
        n_heads=4,
        attn_config={"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
    ),
    rest(
        "reformer",
        "ReformerModel",
        "text",
        sets=(("full", {"batch": 2, "seq": 8}), ("full", {"batch": 1, "seq": 12})),
        axial_pos_embds=False,
        attn_layers=["local", "local"],
        local_attn_chunk_length=4,
        note="chunks, logsumexp",
    ),
    rest("udop", "UdopEncoderModel", "text", inputs=TEXT | {"bbox": "unit batch seq 4"}, note="boxes as a bias"),
    rest(
        "speecht5_encoder",
        "speecht5.SpeechT5EncoderWithTextPrenet",
        "text",
        inputs={"input_values": "ids batch seq", "attention_mask": "mask batch seq"},
        note="relative keys",
    ),
)

WORDS = {"input_ids": "ids batch 7", "attention_mask": "ones batch 7"}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"model_type": "swin", "image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4]}
SWIN |= {"patch_size": 4, "window_size": 4, "out_features": STAGES}
CONVS = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
FOUR = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
FOUR |= {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
RT: dict[str, Any] = {
    "backbone_config": CONVS | {"model_type": "rt_detr_resnet", "out_features": STAGES[1:]},
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 32, 32],
    "decoder_in_channels": [32, 32, 32],
    "encoder_layers": 1,
    "num_queries": 6,
    "num_denoising": 0,
    "anchor_image_size": None,
}
QUERIES = "class_queries_logits masks_queries_logits"
HEADS: dict[str, Any] = {"hidden_dim": 32, "num_attention_heads": 4, "decoder_layers": 3, "encoder_layers": 1}
HEADS |= {"dim_feedforward": 32, "encoder_feedforward_dim": 32, "num_queries": 6, "backbone_config": SWIN}

IMAGES = (
    images("mgp_str", "MgpstrModel", size="32 128", image_size=[32, 128], patch_size=4, max_token_length=5),
    images(
        "depth_anything",
        "DepthAnythingForDepthEstimation",
        4,
        out="predicted_depth",
        backbone_config=FOUR | {"model_type": "dinov2"},
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        reassemble_hidden_size=32,
    ),
    images(
        "zoedepth",
        "ZoeDepthForDepthEstimation",
        4,
        out="predicted_depth",
        backbone_config=FOUR | {"model_type": "beit", "intermediate_size": 64, "use_relative_position_bias": True},
        backbone_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
    ),
    images(
        "upernet",
        "UperNetForSemanticSegmentation",
        4,
        "64 64",
        "logits",
        backbone_config=SWIN,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=64,
        auxiliary_channels=16,
        auxiliary_num_convs=1,
    ),
    images("rt_detr", "RTDetrForObjectDetection", 3, "64 64", "logits pred_boxes", **RT),
    images("rt_detr_v2", "RTDetrV2ForObjectDetection", 3, "64 64", "logits pred_boxes", **RT),
    images(
        "dab_detr",
        "DabDetrForObjectDetection",
        6,
        "64 64",
        "logits pred_boxes",
        backbone_config=CONVS | {"model_type": "resnet", "out_features": ["stage4"]},
        num_queries=6,
    ),
    images(
        "grounding_dino",
        "GroundingDinoForObjectDetection",
        16,
        "64 64",
        "logits pred_boxes",
        more=WORDS,
        backbone_config=SWIN,
        num_queries=6,
        text_config={"vocab_size": 1100},
    ),
    images(
        "maskformer",
        "MaskFormerForInstanceSegmentation",
        7,
        "64 64",
        QUERIES,
        backbone_config=SWIN,
        decoder_config={"model_type": "detr", "d_model": 32, "decoder_ffn_dim": 32, "num_queries": 6}
        | {"encoder_layers": 0, "decoder_layers": 2, "decoder_attention_heads": 4},
        fpn_feature_size=32,
        mask_feature_size=32,
        note="4, 2 in the decoder on the image and 1 among the queries: the first, over zeros, is constant",
    ),
    images(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        8,
        "64 64",
        QUERIES,
        **HEADS,
        feature_size=32,
        mask_feature_size=32,
    ),
    images("metaclip2", "MetaClip2Model", 4, out="logits_per_image", more=WORDS),
    images(
        "clipseg",
        "CLIPSegForImageSegmentation",
        7,
        out="logits",
        more=WORDS,
        extract_layers=[0, 1, 1],
        reduce_dim=16,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    ),
    images(
        "bridgetower",
        "BridgeTowerModel",
        12,
        out="text_features image_features",
        more=WORDS | {"pixel_mask": "ones batch 32 32"},
        text_config={"num_attention_heads": 4},
        vision_config={"hidden_size": 64},
    ),
    images(
        "seggpt",
        "SegGptModel",
        more={"prompt_pixel_values": "float batch 3 32 32", "prompt_masks": "float batch 3 32 32"},
        image_size=[64, 32],
        intermediate_hidden_state_indices=[0, 1],
        merge_index=0,
    ),
    rest(
        "x_clip",
        "XCLIPVisionModel",
        "vision",
        4,
        inputs={"pixel_values": "float 4 3 32 32"},
        sets=ONE,
        num_frames=4,
        mit_num_hidden_layers=1,
        mit_num_attention_heads=4,
    ),
    videos(
        "vjepa2",
        "VJEPA2Model",
        2,
        crop_size=32,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        pred_hidden_size=48,
        pred_num_attention_heads=4,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
    ),
    videos(
        "videoprism",
        "VideoPrismVideoModel",
        6,
        num_frames=4,
        num_spatial_layers=2,
        num_temporal_layers=2,
        tubelet_size=[1, 8, 8],
    ),
    rest(
        "idefics2_perceiver",
        "idefics2.Idefics2PerceiverResampler",
        "vision",
        inputs={"context": "float batch 16 32", "attention_mask": "ones batch 16"},
    ),
)

SPOKEN: dict[str, Any] = {"speech_encoder_layers": 2, "speech_encoder_attention_heads": 4}
SPOKEN |= {"speech_encoder_intermediate_size": 32}
SEAMLESS = {"input_features": "float batch time 160", "attention_mask": "mask batch time"}
FRAMES = {"input_features": "float batch time 16"}
MELS = {"input_features": "float batch 16 time"}

SOUNDS = (
    heard("qwen2_audio_encoder", "qwen2_audio.Qwen2AudioEncoder", 2, MELS, (24, 24), max_source_positions=12),
    heard("voxtral_encoder", "voxtral.VoxtralEncoder", 2, MELS, (24, 24), max_source_positions=12),
    heard("seamless_speech", "seamless_m4t.SeamlessM4TSpeechEncoder", 3, SEAMLESS, (24, 40), **SPOKEN),
    heard("seamless_v2_speech", "seamless_m4t_v2.SeamlessM4Tv2SpeechEncoder", 3, SEAMLESS, (24, 40), **SPOKEN),
    heard("lasr", "lasr.LasrEncoder", 2, FRAMES, (64, 96)),
    heard(
        "nemotron_asr",
        "nemotron_asr_streaming.NemotronAsrStreamingEncoder",
        2,
        FRAMES,
        (64, 96),
        subsampling_conv_channels=16,
    ),
    heard("pe_audio", "PeAudioEncoder", 2, {"input_values": "float batch 1 time"}, (4000, 6000)),
    heard("timesfm2_5", "TimesFm2_5Model", 2, {"past_values": "float batch time"}, (64, 64)),
    rest(
        "granite_speech_ctc",
        "granite_speech.GraniteSpeechCTCEncoder",
        "mel",
        inputs={"hidden_states": "float batch 16 32"},
        sets=TWO,
        input_dim=32,
        context_size=8,
        max_pos_emb=8,
    ),
    rest(
        "musicgen_melody",
        "MusicgenMelodyForCausalLM",
        "decoder",
        inputs={"input_ids": "ids rows seq"},
        sets=(("full", {"rows": 4, "seq": 7}), ("full", {"rows": 2, "seq": 9})),
        num_codebooks=2,
    ),
    rest(
        "patchtsmixer",
        "PatchTSMixerModel",
        "vision",
        0,
        inputs={"past_values": "float batch 32 2"},
        context_length=32,
        num_input_channels=2,
        d_model=8,
        note="gates, no attention",
    ),
)

RECIPES = (*TOWERS, *TEXTS, *IMAGES, *SOUNDS)
