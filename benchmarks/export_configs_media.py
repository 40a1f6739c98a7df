"""More of the table in `export_configs.py`: images and sound."""

from __future__ import annotations

from typing import Any

from export_configs import BOTH, NO_CACHE, SMALL, TEXT, TEXT_SETS, Recipe, Sets, merged

TWO: Sets = (("full", {"batch": 2}), ("one", {"batch": 1}), ("three", {"batch": 3}))
HIDDEN = ("last_hidden_state",)
VIT = {n: SMALL[n] for n in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
VIT |= {"image_size": 32, "patch_size": 8, "num_channels": 3}
PIXELS = {"pixel_values": "float batch 3 32 32"}


def vision(
    name: str,
    model: str,
    truth: int = 2,
    note: str = "",
    size: str = "32 32",
    out: tuple[str, ...] = HIDDEN,
    **options: Any,
) -> Recipe:
    inputs = {"pixel_values": f"float batch 3 {size}"}
    part = options.pop("part", "")
    return Recipe(name, model, truth, "vision", inputs, out, TWO, merged(VIT, options), note, part=part)


def pyramid(name: str, model: str, truth: int, note: str = "", **options: Any) -> Recipe:
    """A vision model that has no width for all its stages; any image size that is a multiple of 32."""
    inputs = {"pixel_values": "float batch 3 height width"}
    sets = tuple(("full", {"batch": b, "height": h, "width": w}) for b, h, w in ((2, 64, 96), (1, 96, 64), (3, 64, 64)))
    return Recipe(name, model, truth, "vision", inputs, HIDDEN, sets, options, note)


def square(name: str, model: str, truth: int, note: str = "", size: int = 32, **options: Any) -> Recipe:
    """The same, for one size of images."""
    inputs = {"pixel_values": f"float batch 3 {size} {size}"}
    return Recipe(name, model, truth, "vision", inputs, HIDDEN, TWO, options, note)


def detector(name: str, model: str, truth: int = 6, note: str = "", **options: Any) -> Recipe:
    inputs = {"pixel_values": "float batch 3 64 96", "pixel_mask": "ones batch 64 96"}
    base = {"d_model": 64, "num_queries": 6, "num_labels": 2, "encoder_layers": 2, "decoder_layers": 2}
    base |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    base |= {f"{side}_ffn_dim": 128 for side in ("encoder", "decoder")}
    backbone = {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
    }
    base["backbone_config"] = backbone | {"out_features": options.pop("stages", ["stage4"]), "layer_type": "basic"}
    out = ("logits", "pred_boxes")
    return Recipe(name, model, truth, "vision", inputs, out, TWO, base | options, note)


def sound(name: str, model: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    """A model of raw samples."""
    base = merged(SMALL, {"max_position_embeddings": ...}) | {"conv_dim": (32, 32), "conv_kernel": (10, 3)}
    base |= {"conv_stride": (5, 2), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    sets = tuple(("full", {"batch": b, "time": t}) for b, t in ((2, 240), (1, 400), (3, 170)))
    inputs = {"input_values": "float batch time"}
    return Recipe(name, model, truth, "audio", inputs, HIDDEN, sets, base | options, note)


def custom(
    name: str,
    model: str,
    truth: int,
    family: str,
    inputs: dict[str, str],
    out: str = "last_hidden_state",
    sets: Sets = TWO,
    note: str = "",
    **options: Any,
) -> Recipe:
    more = {key: options.pop(key) for key in ("part", "fixed", "attns") if key in options}
    return Recipe(name, model, truth, family, inputs, tuple(out.split()), sets, options, note, **more)


SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 4]}

VISION = (
    vision("vit", "ViTModel"),
    vision("deit", "DeiTModel"),
    vision("beit", "BeitModel", use_relative_position_bias=True, note="relative position bias"),
    vision("beit_shared", "BeitModel", use_shared_relative_position_bias=True, note="one bias for all layers"),
    vision("data2vec_vision", "Data2VecVisionModel", use_relative_position_bias=True),
    vision("dinov2", "Dinov2Model"),
    vision("dinov2_registers", "Dinov2WithRegistersModel"),
    vision("dinov3_vit", "DINOv3ViTModel", num_register_tokens=2, note="rotary on the patches"),
    custom("vit_mae", "ViTMAEModel", 2, "vision", PIXELS | {"noise": "unit batch 16"}, **VIT, mask_ratio=0.0),
    vision("vit_msn", "ViTMSNModel"),
    vision("ijepa", "IJepaModel"),
    vision("yolos", "YolosModel", image_size=[32, 32], num_detection_tokens=4),
    vision(
        "vitdet",
        "VitDetModel",
        use_relative_position_embeddings=True,
        window_size=2,
        window_block_indices=[0],
    ),
    vision("clip_vision", "CLIPVisionModel"),
    vision("siglip_vision", "SiglipVisionModel", 3, "2 layers and a pooling head", out=(*HIDDEN, "pooler_output")),
    vision("blip_vision", "BlipVisionModel", note="packed qkv"),
    vision("aimv2_vision", "Aimv2VisionModel", 3, "2 layers and a pooling head", out=(*HIDDEN, "pooler_output")),
    vision("pixtral_vision", "PixtralVisionModel", head_dim=16),
    vision("dpt", "DPTModel", backbone_out_indices=[0, 0, 1, 1]),
    vision(
        "sam_vision",
        "SamVisionModel",
        global_attn_indexes=[1],
        window_size=2,
        output_channels=32,
        note="relpos",
    ),
    square("swin", "SwinModel", 4, "shifted windows", **SWIN),
    square("swinv2", "Swinv2Model", 4, "cosine attention", **SWIN),
    square("donut_swin", "DonutSwinModel", 4, "shifted windows", **SWIN),
    square(
        "swin2sr",
        "Swin2SRModel",
        4,
        **{**SWIN, "patch_size": 1, "image_size": 8, "num_heads": [2, 2]},
        size=8,
    ),
    square(
        "levit",
        "LevitModel",
        5,
        "three stages, two of them shrink",
        image_size=64,
        size=64,
        depths=[1, 1, 1],
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        key_dim=[8, 8, 8],
    ),
    square(
        "pvt",
        "PvtModel",
        4,
        "keys of a shrunk image",
        size=64,
        image_size=64,
        mlp_ratios=[2, 2, 2, 2],
        **STAGES,
    ),
    square(
        "hiera",
        "HieraModel",
        4,
        size=64,
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
    ),
    square(
        "mobilevit",
        "MobileViTModel",
        9,
        size=64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=4,
    ),
    square(
        "mobilevitv2",
        "MobileViTV2Model",
        0,
        "linear attention",
        size=64,
        image_size=64,
        width_multiplier=0.25,
    ),
    pyramid("segformer", "SegformerModel", 4, "keys of a shrunk image", **STAGES),
    pyramid("glpn", "GLPNModel", 4, **STAGES),
    pyramid("pvt_v2", "PvtV2Model", 4, **STAGES),
    pyramid("cvt", "CvtModel", 6, embed_dim=[16, 32, 32], num_heads=[1, 2, 2], depth=[1, 2, 3]),
    detector("detr", "DetrForObjectDetection", note="2 enc + 2 self + 2 cross"),
    detector("table_transformer", "TableTransformerForObjectDetection"),
    detector("conditional_detr", "ConditionalDetrForObjectDetection"),
    detector(
        "deformable_detr",
        "DeformableDetrForObjectDetection",
        2,
        "only the decoder's self attention is dense",
        stages=["stage3"],
        num_feature_levels=2,  # no level of one row: TorchScript's linspace divides by zero there
    ),
)

MEL: Sets = tuple(("full", {"batch": b, "time": t}) for b, t in ((2, 24), (1, 40), (3, 16)))
WHISPER = BOTH | {"num_mel_bins": 16, "max_source_positions": 12, "max_target_positions": 32}
WHISPER |= {"begin_suppress_tokens": None, "max_position_embeddings": ...}
WHISPER = merged(WHISPER, {})
HEARD: Sets = tuple(("full", {"batch": b, "target": t}) for b, t in ((2, 5), (1, 4), (3, 6)))
SPEECH = {"input_features": "float batch 16 24", "decoder_input_ids": "ids batch target"}

AUDIO = (
    sound("wav2vec2", "Wav2Vec2Model"),
    sound("hubert", "HubertModel"),
    sound("wavlm", "WavLMModel", num_buckets=16, max_bucket_distance=20, note="gated relative position bias"),
    sound("sew", "SEWModel", squeeze_factor=2),
    sound("sew_d", "SEWDModel", position_buckets=8, max_position_embeddings=64, note="c2p + p2c"),
    sound("unispeech", "UniSpeechModel"),
    sound("unispeech_sat", "UniSpeechSatModel"),
    sound("data2vec_audio", "Data2VecAudioModel", conv_pos_kernel_size=5),
    sound(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerModel",
        conv_depthwise_kernel_size=5,
        note="u + v relative scores",
    ),
    sound(
        "wav2vec2_conformer_rotary",
        "Wav2Vec2ConformerModel",
        conv_depthwise_kernel_size=5,
        position_embeddings_type="rotary",
    ),
    custom(
        "ast",
        "ASTModel",
        2,
        "audio",
        {"input_values": "float batch 40 16"},
        **VIT,
        num_mel_bins=16,
        max_length=40,
    ),
    custom(
        "wav2vec2_bert",
        "Wav2Vec2BertModel",
        2,
        "audio",
        {"input_features": "float batch time 16", "attention_mask": "mask batch time"},
        sets=(("rightpad", {"batch": 2, "time": 24}), ("full", {"batch": 1, "time": 40})),
        **{**SMALL, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 5},
        note="relative keys by einsum",
    ),
    custom(
        "whisper",
        "WhisperForConditionalGeneration",
        6,
        "audio",
        SPEECH,
        "logits",
        HEARD,
        **WHISPER,
        fixed=NO_CACHE,
    ),
    custom(
        "whisper_encoder",
        "WhisperModel",
        2,
        "audio",
        {"input_features": "float batch 16 24"},
        **WHISPER,
        part="encoder",
    ),
    custom(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        6,
        "audio",
        {
            "input_features": "float batch time 16",
            "attention_mask": "mask batch time",
            "decoder_input_ids": "ids batch target",
        },
        "logits",
        (
            ("rightpad", {"batch": 2, "time": 24, "target": 5}),
            ("full", {"batch": 1, "time": 40, "target": 4}),
        ),
        **merged(BOTH, {"max_position_embeddings": ...}),
        max_source_positions=64,
        max_target_positions=32,
        conv_channels=32,
        input_feat_per_channel=16,
        fixed=NO_CACHE,
    ),
    custom(
        "moonshine",
        "MoonshineForConditionalGeneration",
        6,
        "audio",
        {"input_values": "float batch time", "decoder_input_ids": "ids batch target"},
        "logits",
        (
            ("full", {"batch": 2, "time": 1600, "target": 5}),
            ("full", {"batch": 1, "time": 2400, "target": 4}),
        ),
        **{k: v for k, v in SMALL.items() if "num_" not in k},
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        fixed=NO_CACHE,
    ),
    custom(
        "musicgen_decoder",
        "MusicgenForCausalLM",
        4,
        "audio",
        {"input_ids": "ids rows seq", "encoder_hidden_states": "float batch text 64"},
        "logits",
        (
            ("full", {"rows": 4, "batch": 2, "seq": 7, "text": 5}),
            ("full", {"rows": 2, "batch": 1, "seq": 9, "text": 4}),
        ),
        **SMALL,
        ffn_dim=128,
        num_codebooks=2,
        note="self and cross",
        fixed=NO_CACHE,
    ),
    custom(
        "clap_audio",
        "ClapAudioModel",
        4,
        "audio",
        {"input_features": "float batch 1 64 16"},
        spec_size=32,
        num_mel_bins=16,
        window_size=4,
        depths=[2, 2],
        num_attention_heads=[2, 4],
        patch_embeds_hidden_size=16,
        hidden_size=32,
        fixed={"is_longer": None},
    ),
    custom("clap_text", "ClapTextModel", 2, "encoder", TEXT, sets=TEXT_SETS, **{**SMALL, "pad_token_id": 1}),
    custom(
        "parakeet_encoder",
        "ParakeetEncoder",
        2,
        "audio",
        {"input_features": "float batch time 16", "attention_mask": "mask batch time"},
        sets=(("rightpad", {"batch": 2, "time": 64}), ("full", {"batch": 1, "time": 96})),
        **merged(SMALL, {"vocab_size": ..., "max_position_embeddings": 256}),
        num_mel_bins=16,
        subsampling_conv_channels=16,
    ),
)

RECIPES = (*VISION, *AUDIO)
