"""The rest of the table in `export_configs.py`: default configurations made small, part for part of larger models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export_configs import NO_CACHE, SEQ, SEQ_SETS, SMALL, TEXT, TEXT_SETS, Recipe, Sets
from export_configs_media import MEL, PIXELS, TWO, VIT

KINDS: dict[str, tuple[dict[str, str], str, Sets]] = {
    "text": (TEXT, "last_hidden_state", TEXT_SETS),
    "decoder": (TEXT, "logits", TEXT_SETS),
    "vision": (PIXELS, "last_hidden_state", TWO),
    "encdec": (SEQ, "logits", SEQ_SETS),
    "mel": ({"input_features": "float batch 16 time"}, "last_hidden_state", MEL),
}


def rest(name: str, model: str, kind: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    """A model of transformers by its class, or by its folder and class where that is not exported."""
    folder, _, cls = model.rpartition(".")
    path = f"transformers.models.{folder}.modeling_{folder}.{cls}" if folder else model
    inputs, out, sets = KINDS[kind]
    changes = {
        key: options.pop(key) for key in ("inputs", "sets", "fixed", "part", "outputs", "finite") if key in options
    }
    recipe = Recipe(name, path, truth, kind, inputs, tuple(out.split()), sets, options, note, shrunk=True)
    if kind in ("decoder", "encdec"):
        recipe = replace(recipe, fixed=NO_CACHE)
    return replace(recipe, **changes)


TEXTS = (
    rest("align_text", "AlignTextModel", "text"),
    rest("apertus1p5_text", "apertus1p5.Apertus1p5TextModel", "text"),
    rest("bridgetower_text", "bridgetower.BridgeTowerTextModel", "text"),
    rest("clipseg_text", "CLIPSegTextModel", "text"),
    rest("flava_text", "FlavaTextModel", "text"),
    rest("groupvit_text", "GroupViTTextModel", "text"),
    rest("metaclip2_text", "MetaClip2TextModel", "text"),
    rest("owlv2_text", "Owlv2TextModel", "text"),
    rest("x_clip_text", "XCLIPTextModel", "text"),
    rest("videoprism_text", "videoprism.VideoPrismTextModel", "text"),
    rest("evolla_protein", "evolla.EvollaSaProtProteinEncoder", "text"),
    rest("mra", "MraModel", "text", 0, "blocks chosen by their scores"),
    rest("ultravbert", "UltraVBertModel", "text"),
    rest("modernvbert", "ModernVBertModel", "text"),
    rest("openai_privacy_filter", "OpenAIPrivacyFilterModel", "text", note="sinks, experts"),
    rest("granite4_text", "granite4_vision.Granite4VisionTextModel", "text"),
    rest("granite_docling_text", "granite_docling.GraniteDoclingTextModel", "text"),
    rest("molmo2_text", "molmo2.Molmo2TextModel", "text"),
    rest("muse_glimmer_text", "muse_glimmer.MuseGlimmerTextModel", "text"),
    rest("muse_spark_text", "muse_spark.MuseSparkTextModel", "text"),
    rest("qwen3_vl_text", "qwen3_vl.Qwen3VLTextModel", "text"),
    rest("qwen3_vl_moe_text", "qwen3_vl_moe.Qwen3VLMoeTextModel", "text"),
    rest("qwen3_omni_text", "qwen3_omni_moe.Qwen3OmniMoeThinkerTextModel", "text"),
    rest("seamless_encoder", "seamless_m4t.SeamlessM4TEncoder", "text"),
    rest("seamless_v2_encoder", "seamless_m4t_v2.SeamlessM4Tv2Encoder", "text"),
    rest("seamless_decoder", "seamless_m4t.SeamlessM4TDecoder", "text"),
    rest("clvp_decoder", "ClvpDecoder", "text"),
    rest("canary_decoder", "canary.CanaryDecoder", "text"),
    rest("flava", "FlavaModel", "text", outputs=("text_embeddings",)),
    rest("mamba", "MambaModel", "text", 0, "no attention", inputs={"input_ids": "ids batch seq"}),
    rest("rwkv", "RwkvModel", "text", 0, "no attention", inputs={"input_ids": "ids batch seq"}),
)

DECODERS = (
    rest("bark", "BarkSemanticModel", "decoder", input_vocab_size=128, output_vocab_size=128, block_size=64),
    rest("clvp", "ClvpForCausalLM", "decoder"),
    rest("cohere2_moe", "Cohere2MoeForCausalLM", "decoder"),
    rest("csm_depth", "CsmDepthDecoderForCausalLM", "decoder", inputs={"input_ids": "ids batch seq"}),
    rest("fuyu", "FuyuForCausalLM", "decoder"),
    rest("gemma4_text", "Gemma4ForCausalLM", "decoder"),
    rest("granitemoe_swa", "granitemoe_swa.GraniteMoeSWAForCausalLM", "decoder"),
    rest("inkling2", "Inkling2ForCausalLM", "decoder", 6, "sinks for each token, attention over the layers"),
    rest("inkling2_loop", "Inkling2LoopForCausalLM", "decoder", 6, "the same"),
    rest("kosmos2_text", "kosmos2.Kosmos2TextForCausalLM", "decoder", layers=2, finite=True),
    rest("minimax_m3", "minimax_m3_vl.MiniMaxM3VLForCausalLM", "decoder"),
    rest("nemotron_h", "NemotronHForCausalLM", "decoder", 1, "state spaces, attention"),
    rest("phi4_multimodal", "Phi4MultimodalForCausalLM", "decoder"),
    rest("cosmos3_omni", "Cosmos3OmniForConditionalGeneration", "decoder"),
    rest("higgs_audio", "HiggsAudioV2ForConditionalGeneration", "decoder"),
    rest("llava", "LlavaForConditionalGeneration", "decoder", note="text alone"),
    rest("aya_vision", "AyaVisionForConditionalGeneration", "decoder", note="text alone"),
    rest("idefics2", "Idefics2ForConditionalGeneration", "decoder", note="text alone"),
    rest("evolla", "EvollaForProteinText2Text", "decoder", note="text alone"),
    rest("exaone4_5", "Exaone4_5_ForConditionalGeneration", "decoder", note="text alone"),
    rest("deepseek_vl", "DeepseekVLForConditionalGeneration", "decoder", note="text alone"),
    rest("lfm2_vl", "Lfm2VlForConditionalGeneration", "decoder", note="text alone"),
    rest("paligemma", "PaliGemmaForConditionalGeneration", "decoder", note="text alone"),
    rest("falcon_mamba", "FalconMambaForCausalLM", "decoder", 0, "no attention"),
)

BERT = SMALL | {"model_type": "bert"}
CROSS = {"is_decoder": True, "add_cross_attention": True}

PAIRS = (
    rest("encoder_decoder", "EncoderDecoderModel", "encdec", 6, encoder=BERT, decoder=BERT | CROSS),
    rest("pop2piano", "Pop2PianoForConditionalGeneration", "encdec", 6),
    rest("seamless_text", "SeamlessM4TForTextToText", "encdec", 6),
    rest("seamless_v2_text", "SeamlessM4Tv2ForTextToText", "encdec", 6),
    rest("t5gemma", "T5GemmaForConditionalGeneration", "encdec", 6),
    rest("t5gemma2", "T5Gemma2ForConditionalGeneration", "encdec", 4, "self and cross in one softmax"),
    rest(
        "speecht5_text",
        "SpeechT5ForSpeechToText",
        "encdec",
        6,
        inputs={"input_values": "float batch time", "decoder_input_ids": "ids batch target"},
        sets=(("full", {"batch": 2, "time": 400, "target": 5}), ("full", {"batch": 1, "time": 800, "target": 4})),
        conv_dim=[32, 32],
        conv_kernel=[10, 3],
        conv_stride=[5, 2],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    rest(
        "vision_encoder_decoder",
        "VisionEncoderDecoderModel",
        "encdec",
        6,
        inputs=PIXELS | {"decoder_input_ids": "ids batch target"},
        sets=(("full", {"batch": 2, "target": 5}), ("full", {"batch": 1, "target": 4})),
        encoder=VIT | {"model_type": "vit"},
        decoder=BERT | CROSS,
    ),
)

GROUPS: dict[str, Any] = {"depths": [2, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}

VISIONS = (
    rest("clipseg_vision", "CLIPSegVisionModel", "vision"),
    rest("deepseek_ocr2_sam", "deepseek_ocr2.DeepseekOcr2SamVisionEncoder", "vision", note="relative positions"),
    rest("flava_image", "FlavaImageModel", "vision"),
    rest("focalnet", "FocalNetModel", "vision", 0, "no attention", depths=[1, 1, 1, 1]),
    rest("granite_docling_vision", "granite_docling.GraniteDoclingVisionModel", "vision"),
    rest("groupvit_vision", "GroupViTVisionModel", "vision", 6, **GROUPS),
    rest("idefics2_vision", "idefics2.Idefics2VisionTransformer", "vision"),
    rest("instructblip_vision", "InstructBlipVisionModel", "vision"),
    rest("janus_vision", "JanusVisionModel", "vision"),
    rest("kosmos2_vision", "kosmos2.Kosmos2VisionModel", "vision"),
    rest("metaclip2_vision", "MetaClip2VisionModel", "vision"),
    rest("ovis2_vision", "ovis2.Ovis2VisionModel", "vision"),
    rest("owlv2_vision", "Owlv2VisionModel", "vision"),
    rest("phi4_vision", "phi4_multimodal.Phi4MultimodalVisionModel", "vision", 3, outputs=("pooler_output",)),
    rest("poolformer", "PoolFormerModel", "vision", 0, "no attention", depths=[1, 1, 1, 1]),
    rest("qianfan_vision", "qianfan_ocr.QianfanOCRVisionModel", "vision"),
    rest("radio", "RadioModel", "vision", outputs=("summary", "features")),
    rest("regnet", "RegNetModel", "vision", 0, "no attention", depths=[1, 1, 1, 1]),
    rest("rf_detr", "RfDetrForObjectDetection", "vision", 4, outputs=("logits", "pred_boxes")),
    rest("sam_hq_vision", "SamHQVisionModel", "vision", note="relative positions"),
    rest("slanext_vision", "slanext.SLANeXtVisionEncoder", "vision", note="relative positions"),
    rest("smolvlm_vision", "smolvlm.SmolVLMVisionTransformer", "vision"),
    rest("step3p7_vision", "step3p7.Step3p7VisionModel", "vision"),
    rest("swiftformer", "SwiftFormerModel", "vision", 0, "additive attention"),
    rest("unlimited_ocr_sam", "unlimited_ocr.UnlimitedOcrSamVisionEncoder", "vision", note="relative positions"),
    rest(
        "owlv2",
        "Owlv2ForObjectDetection",
        "vision",
        4,
        inputs=PIXELS | {"input_ids": "ids batch 7", "attention_mask": "ones batch 7"},
        outputs=("logits", "pred_boxes"),
    ),
)

SOUNDS = (
    rest("glmasr_encoder", "GlmAsrEncoder", "mel"),
    rest("voxtral_realtime_encoder", "voxtral_realtime.VoxtralRealtimeEncoder", "mel"),
    rest(
        "moonshine_streaming",
        "moonshine_streaming.MoonshineStreamingEncoder",
        "mel",
        inputs={"input_values": "float batch time"},
        sets=(("full", {"batch": 2, "time": 400}), ("full", {"batch": 1, "time": 800})),
    ),
)

RECIPES = (*TEXTS, *DECODERS, *PAIRS, *VISIONS, *SOUNDS)
