"""The last of the table in `export_configs.py`: models of transformers that no table before it has."""

from __future__ import annotations

from typing import Any

from export_configs import TEXT
from export_configs_parts import FOUR, MIXED, ROPE, heard, images
from export_configs_rest import rest
from export_configs_vlm import seeing

LATENT: dict[str, Any] = {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "num_experts_per_tok": 2}
ACROSS = {"encoder_hidden_states": "float batch seq+2 32"}
FLATTENED = {"flattened_patches": "unit batch 16 34", "attention_mask": "mask batch 16"}
PADDED = (("rightpad", {"batch": 2}), ("full", {"batch": 1}), ("rightpad", {"batch": 3}))
CODEC: dict[str, Any] = {"upsample_groups": 32, "num_filters": 4, "sliding_window": 4}
ALONE: dict[str, Any] = {"note": "text alone"}
LINEAR = {"linear_head_dim": 8, "linear_num_heads": 4}

TEXTS = (
    rest("axk1", "AXK1ForCausalLM", "decoder", head_dim=4, num_key_value_heads=4, note="latent attention, experts"),
    rest("bailing_hybrid", "BailingHybridForCausalLM", "decoder", 1, **MIXED, **LATENT, head_dim=4),
    rest("kimi_linear", "KimiLinearForCausalLM", "decoder", 1, **MIXED, **LATENT, **LINEAR, num_local_experts=4),
    rest("cpmant", "CpmAntModel", "text", note="buckets of positions as a bias"),
    rest(
        "zamba",
        "ZambaForCausalLM",
        "decoder",
        2,
        num_hidden_layers=3,
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        attention_hidden_size=64,
        attention_head_dim=16,
        num_key_value_heads=4,
        use_associative_scan=False,
        note="state spaces, attention",
    ),
    rest("dia_encoder", "dia.DiaEncoder", "text"),
    rest(
        "dia_decoder",
        "dia.DiaDecoder",
        "text",
        4,
        inputs={"input_ids": "ids batch seq 3", "attention_mask": "mask batch seq"} | ACROSS,
        cross_hidden_size=32,
        cross_num_attention_heads=4,
        cross_num_key_value_heads=4,
        cross_head_dim=8,
    ),
    rest("kosmos2_5_text", "kosmos2_5.Kosmos2_5TextForCausalLM", "decoder", layers=2),
    rest(
        "pix2struct_text",
        "Pix2StructTextModel",
        "decoder",
        4,
        inputs=TEXT | ACROSS,
        initializer_range=0.02,
        note="relative positions, unscaled",
        finite=True,
    ),
    rest("pp_formulanet_text", "pp_formulanet.PPFormulaNetTextModel", "text", 4, inputs=TEXT | ACROSS),
    rest("cohere_asr_decoder", "cohere_asr.CohereAsrDecoder", "text", 4, inputs=TEXT | ACROSS, num_key_value_heads=4),
    rest("instructblipvideo_qformer", "instructblipvideo.InstructBlipVideoQFormerModel", "text"),
    rest("sam3_lite_text_text", "sam3_lite_text.Sam3LiteTextTextModel", "text", num_hidden_layers=4),
    rest(
        "pp_doclayout_v2_order",
        "pp_doclayout_v2.PPDocLayoutV2ReadingOrder",
        "text",
        inputs={"boxes": "int900 batch seq 4", "labels": "int3 batch seq", "mask": "ones batch seq"},
    ),
    rest(
        "vits_text",
        "VitsModel",
        "text",
        inputs={"input_ids": "ids batch seq", "padding_mask": "mask batch seq 1", "attention_mask": "mask batch seq"},
        part="text_encoder",
        vocab_size=128,
        note="relative keys and values",
    ),
    rest(
        "kyutai_stt",
        "KyutaiSpeechToTextForConditionalGeneration",
        "decoder",
        inputs={"input_ids": "ids batch seq 3", "attention_mask": "mask batch seq"},
        codec_config=CODEC,
        num_codebooks=2,
        codebook_vocab_size=128,
        audio_pad_token_id=130,
    ),
    rest(
        "mimi_transformer",
        "MimiModel",
        "text",
        inputs={"hidden_states": "float batch seq 32", "attention_mask": "mask batch seq"},
        part="encoder_transformer",
        **CODEC,
    ),
    rest(
        "pocket_tts",
        "PocketTTSModel",
        "text",
        flow_head_config={"condition_dim": 32, "latent_dim": 32},
    ),
    rest("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration", "decoder", **ALONE),
    rest(
        "fun_asr_nano",
        "FunAsrNanoForConditionalGeneration",
        "decoder",
        adaptor_config={"intermediate_size": 8},
        **ALONE,
    ),
    rest("glm46v", "Glm46VForConditionalGeneration", "decoder", text_config=ROPE, **ALONE),
    rest("got_ocr2", "GotOcr2ForConditionalGeneration", "decoder", **ALONE),
    rest("lighton_ocr", "LightOnOcrForConditionalGeneration", "decoder", **ALONE),
    rest("llava_next", "LlavaNextForConditionalGeneration", "decoder", **ALONE),
    rest("llava_onevision", "LlavaOnevisionForConditionalGeneration", "decoder", **ALONE),
    rest("omniasr", "OmniASRForConditionalGeneration", "decoder", **ALONE),
    rest("qwen3_asr", "Qwen3ASRForConditionalGeneration", "decoder", **ALONE),
    rest("video_llava", "VideoLlavaForConditionalGeneration", "decoder", **ALONE),
    seeing("got_ocr2_image", "GotOcr2ForConditionalGeneration", 1),
)

STEPS: dict[str, Any] = {"embed_dim": [16, 16, 32, 32], "num_heads": [2, 2, 4, 4], "num_groups": [2, 2, 4, 4]}
STEPS |= {"depths": [1, 1, 1, 1], "window_size": 4, "projection_dim": 32}
DEPTH: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
HIERA = {"embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 2, 4], "hidden_size": 8}
HIERA |= {"blocks_per_stage": [1, 1, 2, 1], "window_size_per_stage": [4, 4, 4, 2], "image_size": [64, 64]}
HIERA |= {"global_attention_blocks": [3]}
BOXES = "logits pred_boxes"
WINDOWED = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
WINDOWED |= {"num_windows": 4, "window_block_indices": [0], "out_indices": [1, 2], "pretrain_image_size": 32}

VISIONS = (
    images(
        "chmv2",
        "CHMv2ForDepthEstimation",
        4,
        out="predicted_depth",
        backbone_config=FOUR | {"reshape_hidden_states": True, "return_class_token": True, "num_register_tokens": 4},
        post_process_channels=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        number_output_channels=16,
    ),
    images("eomt", "EomtForUniversalSegmentation", out="class_queries_logits masks_queries_logits", num_blocks=1),
    images(
        "eomt_dinov3",
        "EomtDinov3ForUniversalSegmentation",
        out="class_queries_logits masks_queries_logits",
        num_blocks=1,
    ),
    rest(
        "florence2_vision",
        "florence2.Florence2VisionBackbone",
        "vision",
        8,
        inputs={"hidden_states": "float batch 3 64 64"},
        note="windows, and attention among the channels",
        **STEPS,
    ),
    rest("florence2", "Florence2ForConditionalGeneration", "encdec", 6, vision_config=STEPS, **ALONE),
    rest("got_ocr2_vision", "got_ocr2.GotOcr2VisionEncoder", "vision", note="relative positions"),
    rest("instructblipvideo_vision", "instructblipvideo.InstructBlipVideoVisionModel", "vision"),
    images(
        "lw_detr",
        "LwDetrForObjectDetection",
        4,
        out=BOXES,
        backbone_config=WINDOWED,
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
        projector_scale_factors=[1.0],
        group_detr=1,
        num_queries=6,
    ),
    images("pp_formulanet_vision", "pp_formulanet.PPFormulaNetVisionModel", output_channels=256),
    images("pp_ocrv5_server_rec", "pp_ocrv5_server_rec.PPOCRV5ServerRecForTextRecognition", 2, "96 160"),
    images(
        "prompt_depth",
        "PromptDepthAnythingForDepthEstimation",
        4,
        out="predicted_depth",
        more={"prompt_depth": "unit batch 1 16 16"},
        backbone_config=FOUR,
        head_hidden_size=8,
        reassemble_hidden_size=32,
        **DEPTH,
    ),
    images(
        "sam2_vision",
        "Sam2VisionModel",
        5,
        "64 64",
        backbone_config=HIERA,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    ),
    rest(
        "vitmatte",
        "VitMatteForImageMatting",
        "vision",
        inputs={"pixel_values": "float batch 4 32 32"},
        outputs=("alphas",),
        backbone_config={"num_channels": 4, "patch_size": 16, "out_features": ["stage2"]},
        fusion_hidden_sizes=[16, 8, 8, 4],
        convstream_hidden_sizes=[8, 8, 8],
    ),
    images(
        "depth_pro",
        "DepthProForDepthEstimation",
        4,
        "128 128",
        "predicted_depth",
        patch_size=32,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[16, 16],
        scaled_images_feature_dims=[16, 16, 16],
        fusion_hidden_size=16,
        use_fov_model=False,
    ),
    rest(
        "pix2struct_vision",
        "Pix2StructVisionModel",
        "vision",
        inputs=FLATTENED,
        sets=PADDED,
        patch_embed_hidden_size=32,
    ),
    rest(
        "kosmos2_5_vision",
        "kosmos2_5.Kosmos2_5VisionModel",
        "vision",
        inputs=FLATTENED,
        sets=PADDED,
        patch_embed_hidden_size=32,
    ),
)

SAMPLES = {"input_values": "float batch 1 time"}
STRIDES: dict[str, Any] = {"conv_dim": [32, 32], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
STRIDES |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}

SOUNDS = (
    rest(
        "fun_asr_nano_encoder",
        "fun_asr_nano.FunAsrNanoEncoder",
        "text",
        inputs={"input_features": "float batch seq 112", "input_features_mask": "mask batch seq"},
        num_timestamp_prediction_layers=1,
    ),
    heard("omniasr_audio", "omniasr.OmniASRAudioModel", 2, SAMPLES, (240, 400), **STRIDES),
    heard(
        "omniasr_ctc", "omniasr_ctc.OmniASRForCTC", 2, SAMPLES, (240, 400), outputs=("logits",), audio_config=STRIDES
    ),
)

RECIPES = (*TEXTS, *VISIONS, *SOUNDS)
