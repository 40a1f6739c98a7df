"""More models of transformers for `export_models.py`: whole ones that no table before it has, and their parts."""

from __future__ import annotations

from typing import Any

from export_configs_media import SWIN
from export_configs_parts import FOUR, MIXED, ROPE, STAGES, WORDS, heard, images
from export_configs_rest import rest
from export_configs_vlm import seeing
from export_configs_whole import HGNET

BOXES = "logits pred_boxes"
HG = HGNET | {"model_type": "hgnet_v2", "embedding_size": 16, "stem_channels": [3, 16, 16]}
HG |= {"hidden_sizes": [16, 32, 32, 32], "out_features": STAGES[1:]}
DETR: dict[str, Any] = {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 32, 32], "num_queries": 6}
DETR |= {"decoder_in_channels": [32, 32, 32], "num_denoising": 0, "encoder_layers": 1, "backbone_config": HG}
DETR |= {"anchor_image_size": None}
CODER = {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 2]}
VOICE = {
    f"{part}_config": CODER
    for part in ("audio", "semantic_model", "acoustic_tokenizer_encoder", "semantic_tokenizer_encoder")
}
MEL = {"input_features": "float batch time 16"}
SPEECH: dict[str, Any] = {"subsampling_conv_channels": 16, "num_mel_bins": 16, "max_position_embeddings": 256}
SAMPLES = {"input_values": "float batch 1 time"}

IMAGES = (
    rest(
        "superpoint",
        "SuperPointForKeypointDetection",
        "vision",
        0,
        inputs={"pixel_values": "float 1 3 64 64"},
        outputs=("scores", "descriptors"),
        sets=(("one", {}), ("again", {})),
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=8,
        descriptor_decoder_dim=32,
        max_keypoints=8,
        note="no attention",
    ),
    rest(
        "lightglue",
        "LightGlueForKeypointMatching",
        "vision",
        4,
        inputs={"pixel_values": "float 1 2 3 64 64"},
        outputs=("matching_scores",),
        sets=(("one", {}), ("again", {})),
        keypoint_detector_config={"model_type": "superpoint", "encoder_hidden_sizes": [8, 8, 8, 8]}
        | {"decoder_hidden_size": 8, "descriptor_decoder_dim": 32, "max_keypoints": 8},
        descriptor_dim=32,
        depth_confidence=-1.0,
        width_confidence=-1.0,
    ),
    rest(
        "efficientloftr",
        "EfficientLoFTRModel",
        "vision",
        0,
        inputs={"pixel_values": "float batch 2 3 64 64"},
        outputs=("feature_maps",),
        stage_num_blocks=[1, 1, 1, 1],
        out_features=[8, 8, 16, 32],
        stage_stride=[2, 1, 2, 2],
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_attention_layers=1,
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 2.0, "rope_type": "default"},
        note="self and cross, of both images",
    ),
    images("deimv2", "Deimv2ForObjectDetection", 3, "64 64", BOXES, **DETR, hidden_expansion=1.0),
    images("pp_doclayout_v2", "pp_doclayout_v2.PPDocLayoutV2Model", 3, "64 64", **DETR),
    images(
        "pp_doclayout_v3",
        "PPDocLayoutV3ForObjectDetection",
        3,
        "64 64",
        BOXES,
        **DETR | {"backbone_config": HG | {"out_features": STAGES}},
        x4_feat_dim=16,
        mask_feature_channels=[16, 16],
        num_prototypes=8,
        global_pointer_head_size=8,
    ),
    images(
        "mm_grounding_dino",
        "mm_grounding_dino.MMGroundingDinoModel",
        16,
        "128 128",
        more=WORDS,
        backbone_config=SWIN,
        num_queries=6,
        text_config={"vocab_size": 1100},
    ),
    images(
        "tipsv2_dpt",
        "Tipsv2DptForDepthEstimation",
        4,
        out="predicted_depth",
        backbone_config=FOUR,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        num_depth_bins=8,
    ),
    rest(
        "videomt",
        "VideomtForUniversalSegmentation",
        "vision",
        3,
        inputs={"pixel_values_videos": "float 1 2 3 32 32"},
        outputs=("class_queries_logits", "masks_queries_logits"),
        sets=(("one", {}), ("again", {})),
        num_blocks=1,
    ),
)

SEEN = (
    seeing(
        "instructblipvideo",
        "InstructBlipVideoForConditionalGeneration",
        16,
        7,
        "float batch 2 3 32 32",
        {"qformer_input_ids": "ids batch 5"},
        video_token_index=100,
        num_query_tokens=8,
    ),
    rest("colpali", "ColPaliForRetrieval", "text", outputs=("embeddings",), note="text alone"),
    rest(
        "colqwen2",
        "ColQwen2ForRetrieval",
        "text",
        outputs=("embeddings",),
        vlm_config={"text_config": ROPE},
        note="text alone",
    ),
    rest("llava_next_video", "LlavaNextVideoForConditionalGeneration", "decoder", note="text alone"),
    rest("vibevoice", "VibeVoiceForConditionalGeneration", "decoder", **VOICE, note="text alone"),
    rest("vibevoice_asr", "VibeVoiceAsrForConditionalGeneration", "decoder", **VOICE, note="text alone"),
    rest("musicflamingo", "MusicFlamingoForConditionalGeneration", "decoder", note="text alone"),
    rest("granite_speech_plus", "GraniteSpeechPlusForConditionalGeneration", "decoder", note="text alone"),
    rest("hyperclovax_vision", "HyperCLOVAXVisionV2ForConditionalGeneration", "decoder", note="text alone"),
    rest("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration", "decoder", 1, text_config=MIXED, note="text alone"),
    rest("moss_transcribe", "MossTranscribeDiarizeForConditionalGeneration", "decoder", note="text alone"),
    rest("dots3_note", "Dots3NoteForCausalLM", "decoder", num_key_value_heads=4),
    rest(
        "diffusion_gemma_text",
        "diffusion_gemma.DiffusionGemmaEncoderTextModel",
        "text",
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
    ),
    rest(
        "mamba2",
        "Mamba2Model",
        "text",
        0,
        "no attention",
        inputs={"input_ids": "ids batch seq"},
        num_heads=8,
        head_dim=8,
    ),
    rest(
        "pi0",
        "PI0ForConditionalGeneration",
        "vision",
        5,
        inputs={"state": "float batch 8", "noise": "float batch 4 8", "timestep": "unit batch"}
        | {"input_ids": "=100,100,100,100,100,100,100,100,100,100,100,100,100,100,100,100,7,8,9,10 batch 20"}
        | {"pixel_values": "float batch 1 3 32 32", "pixel_attention_mask": "true batch 1"}
        | {"attention_mask": "ones batch 20"},
        outputs=("logits",),
        chunk_size=4,
        max_state_dim=8,
        max_action_dim=8,
        vlm_config={"image_token_index": 100, "vocab_size": 128, "text_config": {"num_image_tokens": 16}},
    ),
    rest(
        "blt",
        "BltForCausalLM",
        "decoder",
        9,
        inputs={"input_ids": "ids batch seq"},
        encoder_hash_byte_group_vocab=100,
        patching_mode="static",
        patch_size=4,
        vocab_size=260,
        **{
            f"{part}_config": {"vocab_size": 260, "num_key_value_heads": 4, "hidden_size_global": 32}
            for part in ("encoder", "decoder", "patcher")
        },
        global_config={"num_key_value_heads": 4},
    ),
)

SOUNDS = (
    rest(
        "cohere_asr",
        "CohereAsrForConditionalGeneration",
        "encdec",
        6,
        inputs=MEL | {"decoder_input_ids": "ids batch target"},
        sets=(("full", {"batch": 2, "time": 64, "target": 5}), ("full", {"batch": 1, "time": 96, "target": 4})),
        encoder_config=SPEECH,
        num_key_value_heads=4,
    ),
    heard(
        "granite_speech5",
        "GraniteSpeech5ForCTC",
        2,
        {"input_features": "float batch time 64"},
        (24, 40),
        outputs=("logits",),
        encoder_config={"context_size": 8, "num_key_value_heads": 4},
    ),
    heard(
        "encodec_encoder",
        "EncodecModel",
        0,
        {"hidden_states": "float batch 1 time"},
        (128, 192),
        outputs=("out",),
        part="encoder",
        num_filters=4,
        upsampling_ratios=[2, 2],
        codebook_size=16,
        codebook_dim=32,
        note="no attention, LSTM",
    ),
    heard(
        "encodec",
        "EncodecModel",
        0,
        SAMPLES,
        (128, 192),
        outputs=("audio_codes", "audio_values"),
        num_filters=4,
        upsampling_ratios=[2, 2],
        codebook_size=16,
        codebook_dim=32,
        sampling_rate=400,
        note="no attention, LSTM",
    ),
    heard(
        "vibevoice_tokenizer",
        "vibevoice_acoustic_tokenizer.VibeVoiceAcousticTokenizerEncoderModel",
        0,
        {"hidden_states": "float batch 1 time"},
        (64, 96),
        outputs=("latents",),
        num_filters=4,
        downsampling_ratios=[2, 2],
        depths=[1, 1, 1],
        note="no attention",
    ),
    rest(
        "fastspeech2_conformer",
        "FastSpeech2ConformerModel",
        "text",
        4,
        inputs={"input_ids": "ids 1 7"},
        outputs=("spectrogram",),
        sets=(("one", {}), ("again", {})),
    ),
)

RECIPES = (*IMAGES, *SEEN, *SOUNDS)
