"""The table of architectures that `export_models.py` exports: tiny configurations, inputs, attentions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

Sets = tuple[tuple[str, dict[str, int]], ...]


@dataclass(frozen=True)
class Recipe:
    """One model, how it is fed, and how many attentions one run of it executes."""

    name: str
    model: str  # a class of transformers, of one of its modules, or `diffusers.Class`
    truth: int  # counted by hand in the architecture's source
    family: str
    inputs: dict[str, str]  # name -> "kind size size ..."; a size is a number, a dimension's name or their sum
    outputs: tuple[str, ...]
    sets: Sets  # (label, dimension -> size); the first is the exporter's example
    options: dict[str, Any]
    note: str = ""
    part: str = ""  # the attribute that is called, if not the model itself
    fixed: dict[str, Any] = field(default_factory=dict)  # more arguments of the call
    attns: tuple[str, ...] = ("eager", "sdpa")
    half: bool = False  # weights and inputs in float16
    shrunk: bool = False  # the options go over the default configuration, made small by `export_tiny.py`
    listed: tuple[str, ...] = ()  # inputs that the model takes as a list, one for each item of the first axis
    finite: bool = False  # masks are added as float32's smallest number, also to scaled_dot_product_attention


SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BOTH = SMALL | {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "hidden_size": ...,
    "num_hidden_layers": ...,
    "num_attention_heads": ...,
    "intermediate_size": ...,
}
NO_CACHE = {"use_cache": False}
TEXT = {"input_ids": "ids batch seq", "attention_mask": "mask batch seq"}
TEXT_SETS: Sets = (
    ("rightpad", {"batch": 2, "seq": 7}),
    ("full", {"batch": 1, "seq": 10}),
    ("leftpad", {"batch": 3, "seq": 6}),
    ("leftpad1", {"batch": 1, "seq": 8}),  # ONNX Runtime's RotaryEmbedding wants a batch of one
)
SEQ = TEXT | {"decoder_input_ids": "ids batch target"}
SEQ_SETS: Sets = (
    ("rightpad", {"batch": 2, "seq": 7, "target": 5}),
    ("full", {"batch": 1, "seq": 10, "target": 4}),
    ("leftpad", {"batch": 3, "seq": 6, "target": 6}),
    ("leftpad1", {"batch": 1, "seq": 8, "target": 3}),
)


def merged(base: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options over the usual ones; `...` takes a usual one out."""
    return {name: value for name, value in (base | options).items() if value is not ...}


def encoder(name: str, model: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    outputs = ("last_hidden_state",)
    return Recipe(name, model, truth, "encoder", TEXT, outputs, TEXT_SETS, merged(SMALL, options), note)


def unmasked(recipe: Recipe) -> Recipe:
    """Without the sets in which ONNX Runtime goes its own way on rows that are masked wholly."""
    return replace(recipe, sets=tuple(s for s in recipe.sets if not s[0].startswith("leftpad")))


def variant(recipe: Recipe, name: str, drop: str = "", **changes: Any) -> Recipe:
    """The same model used in another way: without some inputs, or only a part of it."""
    inputs = {key: spec for key, spec in recipe.inputs.items() if key not in drop.split()}
    kept = tuple((label, dims) for label, dims in recipe.sets if "attention_mask" in inputs or label == "full")
    if len(kept) == 1:
        kept = (("full", {key: size + 1 for key, size in kept[0][1].items()}), *kept)
    return replace(recipe, name=name, **{"inputs": inputs, "sets": kept} | changes)


def encdec(name: str, model: str, truth: int = 6, note: str = "", **options: Any) -> Recipe:
    options = merged(BOTH, options)
    return Recipe(name, model, truth, "encdec", SEQ, ("logits",), SEQ_SETS, options, note, fixed=NO_CACHE)


T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
T5 |= {"vocab_size": 128, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
SEGMENTS = {"num_landmarks": 16, "segment_means_seq_len": 16}
PROPHET = {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4}
PROPHET |= {"num_decoder_attention_heads": 4, "hidden_size": 64, "encoder_layers": ..., "decoder_layers": ...}

ENCODERS = (
    encoder("bert", "BertModel"),
    encoder("roberta", "RobertaModel", pad_token_id=1),
    encoder("xlm_roberta", "XLMRobertaModel", pad_token_id=1),
    encoder("xlm_roberta_xl", "XLMRobertaXLModel", pad_token_id=1),
    encoder("camembert", "CamembertModel", pad_token_id=1),
    encoder("roberta_prelayernorm", "RobertaPreLayerNormModel", pad_token_id=1),
    encoder("xmod", "XmodModel", pad_token_id=1, languages=["en_XX"], default_language="en_XX"),
    encoder("data2vec_text", "Data2VecTextModel", pad_token_id=1),
    encoder("albert", "AlbertModel", embedding_size=32),
    encoder("electra", "ElectraModel", embedding_size=32),
    encoder("distilbert", "DistilBertModel", hidden_dim=128),
    encoder("mpnet", "MPNetModel", note="relative position bias, shared"),
    encoder("mobilebert", "MobileBertModel", embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32),
    encoder("squeezebert", "SqueezeBertModel", embedding_size=64, note="transposed keys, BCHW layout"),
    encoder("roformer", "RoFormerModel", embedding_size=64, note="rotary"),
    encoder("esm", "EsmModel", position_embedding_type="rotary", mask_token_id=3, token_dropout=False),
    encoder("esm_absolute", "EsmModel", position_embedding_type="absolute", mask_token_id=3),
    encoder("modernbert", "ModernBertModel", global_attn_every_n_layers=2, local_attention=4, note="window, full"),
    encoder("deberta", "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"], note="c2p + p2c"),
    encoder("deberta_plain", "DebertaModel", relative_attention=False),
    encoder(
        "deberta_v2",
        "DebertaV2Model",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        note="c2p + p2c, buckets",
    ),
    encoder("xlm", "XLMModel", emb_dim=64, n_layers=2, n_heads=4),
    encoder("flaubert", "FlaubertModel", emb_dim=64, n_layers=2, n_heads=4),
    encoder("xlnet", "XLNetModel", d_model=64, n_layer=2, n_head=4, d_inner=128, max_position_embeddings=...),
    encoder("megatron_bert", "MegatronBertModel"),
    encoder("rembert", "RemBertModel", input_embedding_size=32, output_embedding_size=32),
    encoder("ernie", "ErnieModel"),
    encoder("ibert", "IBertModel", pad_token_id=1, quant_mode=False),
    encoder("nystromformer", "NystromformerModel", note="as many landmarks as tokens", **SEGMENTS),
    encoder("convbert", "ConvBertModel", head_ratio=2, conv_kernel_size=3, note="half the heads are convolutions"),
    encoder("layoutlm", "LayoutLMModel"),
    encoder("splinter", "SplinterModel"),
    encoder("bert_generation", "BertGenerationEncoder"),
    encoder("roc_bert", "RoCBertModel", enable_pronunciation=False, enable_shape=False),
    encoder("markuplm", "MarkupLMModel", pad_token_id=1),
    encoder("luke", "LukeModel", pad_token_id=1, entity_vocab_size=16, use_entity_aware_attention=False),
    encoder("big_bird", "BigBirdModel", attention_type="original_full"),
    encoder(
        "funnel",
        "FunnelModel",
        truth=4,
        block_sizes=[1, 1],
        num_hidden_layers=...,
        d_model=64,
        n_head=4,
        d_head=16,
        d_inner=128,
    ),
    encoder("longformer", "LongformerModel", attention_window=4, note="sliding chunks"),
    encoder("fnet", "FNetModel", truth=0, note="Fourier mixing, no attention"),
    encoder("nomic_bert", "NomicBertModel"),
    encoder("eurobert", "EuroBertModel", num_key_value_heads=2),
    encoder("jina_embeddings_v3", "JinaEmbeddingsV3Model"),
    encoder("openai_gpt", "OpenAIGPTModel", n_embd=64, n_layer=2, n_head=4, n_positions=64),
    encoder(
        "lilt",
        "LiltModel",
        truth=3,
        channel_shrink_ratio=2,
        hidden_size=96,
        note="text and layout scores are added; the last layer's layout is not used",
    ),
    encoder("canine", "CanineModel", truth=4, local_transformer_stride=8, downsampling_rate=2, num_hash_buckets=64),
    encoder("tapas", "TapasModel"),
    encoder("yoso", "YosoModel", truth=0, use_expectation=True, note="no softmax"),
)

ENCDECS = (
    encdec("bart", "BartForConditionalGeneration"),
    encdec("mbart", "MBartForConditionalGeneration"),
    encdec("pegasus", "PegasusForConditionalGeneration"),
    encdec(
        "pegasus_x",
        "PegasusXForConditionalGeneration",
        truth=7,
        block_size=4,
        num_global_tokens=2,
        note="blocks and globals; the last layer's globals are not used",
    ),
    encdec("marian", "MarianMTModel"),
    encdec("m2m100", "M2M100ForConditionalGeneration"),
    encdec("blenderbot", "BlenderbotForConditionalGeneration"),
    encdec("blenderbot_small", "BlenderbotSmallForConditionalGeneration"),
    encdec("plbart", "PLBartForConditionalGeneration"),
    encdec("fsmt", "FSMTForConditionalGeneration", src_vocab_size=128, tgt_vocab_size=128, langs=["en", "de"]),
    encdec("prophetnet", "ProphetNetForConditionalGeneration", 8, "main and n-gram stream", ngram=2, **PROPHET),
    encdec("led", "LEDForConditionalGeneration", attention_window=4, max_encoder_position_embeddings=64),
    encdec("bigbird_pegasus", "BigBirdPegasusForConditionalGeneration", attention_type="original_full"),
    encdec("nllb_moe", "NllbMoeForConditionalGeneration", num_experts=4, expert_capacity=8),
    encdec("t5", "T5ForConditionalGeneration", **T5, note="relative bias, no scale"),
    encdec("mt5_gated", "MT5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu"),
    encdec("umt5", "UMT5ForConditionalGeneration", **T5),
    encdec("longt5", "LongT5ForConditionalGeneration", **T5, local_radius=3, note="local blocks in the encoder"),
    encdec(
        "switch",
        "SwitchTransformersForConditionalGeneration",
        **T5,
        num_experts=4,
        num_sparse_encoder_layers=1,
    ),
)

NAMED = {recipe.name: recipe for recipe in (*ENCODERS, *ENCDECS)}
ENCODER: dict[str, Any] = {"family": "encoder", "truth": 2, "outputs": ("last_hidden_state",), "fixed": {}}
CROSS = {"decoder_input_ids": "ids batch target", "encoder_hidden_states": "float batch seq 64"}
CROSS |= {"attention_mask": "mask batch seq"}
CACHE = {f"past_{kind}_{layer}": "float batch 4 past 16" for layer in range(2) for kind in ("key", "value")}
STEP_SETS: Sets = (
    ("rightpad", {"batch": 2, "seq": 7, "target": 3, "past": 4}),
    ("full", {"batch": 1, "seq": 10, "target": 1, "past": 6}),
    ("leftpad", {"batch": 3, "seq": 6, "target": 2, "past": 3}),
)
STEP: dict[str, Any] = {
    "family": "encdec_past",
    "truth": 4,
    "inputs": CROSS | CACHE,
    "sets": STEP_SETS,
    "fixed": {},
}
STEP |= {"outputs": ("logits", *(name.replace("past_", "present_") for name in CACHE))}

VARIANTS = (
    variant(NAMED["bert"], "bert_nomask", "attention_mask"),
    variant(NAMED["t5"], "t5_nomask", "attention_mask"),
    *(
        variant(NAMED[name], f"{name}_encoder", "decoder_input_ids", part=part, **ENCODER)
        for name, part in (
            ("bart", "model.encoder"),
            ("t5", "encoder"),
            ("umt5", "encoder"),
            ("longt5", "encoder"),
        )
    ),
    *(variant(NAMED[name], f"{name}_past", **STEP) for name in ("bart", "marian", "pegasus", "t5", "mt5_gated")),
)

RECIPES = (*ENCODERS, *ENCDECS, *VARIANTS)
