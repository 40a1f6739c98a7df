"""More of the table in `export_configs.py`: decoders, without a cache and with one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export_configs import NO_CACHE, SMALL, TEXT, TEXT_SETS, Recipe, Sets, merged, variant

GROUPED = SMALL | {"num_attention_heads": 8, "num_key_value_heads": 2}
PAST_SETS: Sets = (
    ("leftpad", {"batch": 2, "seq": 3, "past": 5}),
    ("decode", {"batch": 1, "seq": 1, "past": 8}),
    ("chunk", {"batch": 3, "seq": 4, "past": 3}),
    ("leftpad1", {"batch": 1, "seq": 2, "past": 6}),
)


def decoder(name: str, model: str, truth: int = 2, note: str = "", **options: Any) -> Recipe:
    options = merged(GROUPED, options)
    return Recipe(name, model, truth, "decoder", TEXT, ("logits",), TEXT_SETS, options, note, fixed=NO_CACHE)


def past(name: str, model: str, heads: int = 2, size: int = 8, new: str = "seq", **options: Any) -> Recipe:
    """A decoder that is given a cache; `new` says how many tokens are new."""
    layers, truth = range(2), 2
    inputs = {"input_ids": f"ids batch {new}", "attention_mask": f"mask batch past+{new}"}
    kinds = [f"{kind}_{layer}" for layer in layers for kind in ("key", "value")]
    inputs |= {f"past_{kind}": f"float batch {heads} past {size}" for kind in kinds}
    outputs = ("logits", *(f"present_{kind}" for kind in kinds))
    sets = tuple((label, {n: v for n, v in dims.items() if n in ("batch", "past", new)}) for label, dims in PAST_SETS)
    note = "cache, one new token" if new == "1" else "cache, any number of new tokens"
    return Recipe(name, model, truth, "decoder_past", inputs, outputs, sets, merged(GROUPED, options), note)


PLAIN = {"num_attention_heads": 4, "num_key_value_heads": ...}  # every head has its own keys
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "num_key_value_heads": 8,
}
DEEPSEEK = EXPERTS | LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
LAYERS = ["sliding_attention", "full_attention"]

DECODERS = (
    decoder("gpt2", "GPT2LMHeadModel", **PLAIN),
    decoder("gpt2_scale_layer", "GPT2LMHeadModel", **PLAIN, scale_attn_by_inverse_layer_idx=True),
    decoder("gpt2_reorder_upcast", "GPT2LMHeadModel", **PLAIN, reorder_and_upcast_attn=True),
    decoder("gpt_neo", "GPTNeoForCausalLM", **PLAIN, attention_types=[[["global", "local"], 1]], window_size=4),
    decoder("gptj", "GPTJForCausalLM", **PLAIN, rotary_dim=8),
    decoder("codegen", "CodeGenForCausalLM", **PLAIN, rotary_dim=8),
    decoder("gpt_neox", "GPTNeoXForCausalLM", **PLAIN),
    decoder("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM", **PLAIN),
    decoder("gpt_bigcode", "GPTBigCodeForCausalLM", **PLAIN, multi_query=True, note="multi-query"),
    decoder("bloom", "BloomForCausalLM", **PLAIN, note="alibi"),
    decoder("mpt", "MptForCausalLM", **PLAIN, max_seq_len=64, note="alibi"),
    decoder("opt", "OPTForCausalLM", **PLAIN, ffn_dim=128, word_embed_proj_dim=64),
    decoder("xglm", "XGLMForCausalLM", **PLAIN, ffn_dim=128, d_model=64, num_layers=2, attention_heads=4),
    decoder("biogpt", "BioGptForCausalLM", **PLAIN),
    decoder("ctrl", "CTRLLMHeadModel", **PLAIN, dff=128),
    decoder("falcon", "FalconForCausalLM", **PLAIN, multi_query=True, note="multi-query, rotary"),
    decoder("falcon_new", "FalconForCausalLM", num_kv_heads=2, new_decoder_architecture=True),
    decoder("falcon_alibi", "FalconForCausalLM", **PLAIN, alibi=True, multi_query=False),
    decoder("bert_decoder", "BertLMHeadModel", **PLAIN, is_decoder=True),
    decoder("llama", "LlamaForCausalLM", note="GQA 8/2"),
    decoder("llama_mha", "LlamaForCausalLM", num_key_value_heads=8),
    decoder("llama_mqa", "LlamaForCausalLM", num_key_value_heads=1),
    decoder("mistral", "MistralForCausalLM", sliding_window=4, note="window 4"),
    decoder("mixtral", "MixtralForCausalLM", **EXPERTS),
    decoder("qwen2", "Qwen2ForCausalLM"),
    decoder("qwen2_moe", "Qwen2MoeForCausalLM", **EXPERTS, shared_expert_intermediate_size=32),
    decoder("qwen3", "Qwen3ForCausalLM", head_dim=16),
    decoder("qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS, head_dim=16),
    decoder("gemma", "GemmaForCausalLM", head_dim=8),
    decoder("gemma2", "Gemma2ForCausalLM", **GEMMA, note="softcap; window, full"),
    decoder("gemma3", "Gemma3ForCausalLM", **GEMMA, layer_types=LAYERS, note="window, full"),
    decoder("vaultgemma", "VaultGemmaForCausalLM", **GEMMA, layer_types=LAYERS),
    decoder("phi", "PhiForCausalLM", num_key_value_heads=8),
    decoder("phi3", "Phi3ForCausalLM"),
    decoder("phimoe", "PhimoeForCausalLM", **EXPERTS),
    decoder("cohere", "CohereForCausalLM"),
    decoder("cohere2", "Cohere2ForCausalLM", sliding_window=4, layer_types=LAYERS),
    decoder("glm", "GlmForCausalLM", head_dim=8),
    decoder("glm4", "Glm4ForCausalLM", head_dim=8),
    decoder("granite", "GraniteForCausalLM", attention_multiplier=0.25),
    decoder("granitemoe", "GraniteMoeForCausalLM", **EXPERTS, attention_multiplier=0.25),
    decoder("nemotron", "NemotronForCausalLM"),
    decoder("olmo", "OlmoForCausalLM", clip_qkv=2.0),
    decoder("olmo2", "Olmo2ForCausalLM"),
    decoder("olmo3", "Olmo3ForCausalLM", sliding_window=4, layer_types=LAYERS),
    decoder("olmoe", "OlmoeForCausalLM", **EXPERTS),
    decoder("stablelm", "StableLmForCausalLM", qk_layernorm=True),
    decoder("starcoder2", "Starcoder2ForCausalLM", sliding_window=4),
    decoder("persimmon", "PersimmonForCausalLM", num_key_value_heads=...),
    decoder("helium", "HeliumForCausalLM", head_dim=8),
    decoder("smollm3", "SmolLM3ForCausalLM"),
    decoder("ernie4_5", "Ernie4_5ForCausalLM", head_dim=8),
    decoder("exaone4", "Exaone4ForCausalLM", sliding_window=4, layer_types=LAYERS),
    decoder("arcee", "ArceeForCausalLM"),
    decoder("apertus", "ApertusForCausalLM"),
    decoder("seed_oss", "SeedOssForCausalLM", head_dim=8),
    decoder("hunyuan_dense", "HunYuanDenseV1ForCausalLM", head_dim=8),
    decoder("bitnet", "BitNetForCausalLM"),
    decoder("gpt_oss", "GptOssForCausalLM", **EXPERTS, head_dim=8, sliding_window=4, note="sinks; window, full"),
    decoder("deepseek_v2", "DeepseekV2ForCausalLM", **DEEPSEEK, v_head_dim=12, note="MLA"),
    decoder("deepseek_v3", "DeepseekV3ForCausalLM", **DEEPSEEK, v_head_dim=12, note="MLA: qk 12, v 12"),
    decoder("deepseek_v3_dv", "DeepseekV3ForCausalLM", **DEEPSEEK, v_head_dim=8, note="MLA: qk 12, v 8"),
    decoder("minicpm3", "MiniCPM3ForCausalLM", **LATENT, v_head_dim=8, note="MLA"),
    decoder("dots1", "Dots1ForCausalLM", **DEEPSEEK, n_shared_experts=1, head_dim=8),
    decoder(
        "diffllama",
        "DiffLlamaForCausalLM",
        truth=4,
        note="two halves of the values; dynamo shares their softmax",
    ),
    replace(
        decoder("doge", "DogeForCausalLM", note="dynamic mask from the values", keep_window_size=64),
        finite=True,
    ),
    decoder("moshi", "MoshiForCausalLM", head_dim=8, ffn_dim=128),
    decoder("modernbert_decoder", "ModernBertDecoderForCausalLM", **PLAIN, local_attention=4, layer_types=LAYERS),
    decoder(
        "lfm2",
        "Lfm2ForCausalLM",
        truth=1,
        layer_types=["conv", "full_attention"],
        note="convolution, attention",
    ),
    decoder("recurrent_gemma", "RecurrentGemmaForCausalLM", truth=1, block_types=["recurrent", "attention"]),
    decoder("nanochat", "NanoChatForCausalLM"),
    decoder("flex_olmo", "FlexOlmoForCausalLM", **EXPERTS),
    decoder("jetmoe", "JetMoeForCausalLM", **EXPERTS, kv_channels=8),
    decoder("trocr", "TrOCRForCausalLM", **PLAIN, d_model=64, decoder_layers=2, decoder_attention_heads=4),
    decoder("minimax_m2", "MiniMaxM2ForCausalLM", **EXPERTS, head_dim=8),
    decoder("bart_decoder", "BartForCausalLM", **PLAIN, d_model=64, decoder_layers=2, decoder_attention_heads=4),
    past("llama_past", "LlamaForCausalLM"),
    past("llama_decode1", "LlamaForCausalLM", new="1"),
    past("gpt2_past", "GPT2LMHeadModel", 4, 16, **PLAIN),
    past("mistral_past", "MistralForCausalLM", sliding_window=4),
    past("gemma2_past", "Gemma2ForCausalLM", **GEMMA),
    past("gemma3_past", "Gemma3ForCausalLM", **GEMMA, layer_types=LAYERS),
    past("qwen3_decode1", "Qwen3ForCausalLM", 2, 16, new="1", head_dim=16),
    past("phi3_past", "Phi3ForCausalLM"),
    past("gpt_neox_past", "GPTNeoXForCausalLM", 4, 16, **PLAIN),
    past("falcon_past", "FalconForCausalLM", 1, 16, **PLAIN, multi_query=True),
    past("opt_past", "OPTForCausalLM", 4, 16, **PLAIN, ffn_dim=128, word_embed_proj_dim=64),
    past("bloom_past", "BloomForCausalLM", 4, 16, **PLAIN),
    past("gpt_oss_past", "GptOssForCausalLM", **EXPERTS, head_dim=8, sliding_window=4),
    past("gpt_bigcode_past", "GPTBigCodeForCausalLM", 1, 16, **PLAIN, multi_query=True),
)

HYBRID = ["linear_attention", "full_attention"]

MORE = (
    decoder("afmoe", "AfmoeForCausalLM", **EXPERTS, note="gated output"),
    decoder("aria_text", "AriaTextForCausalLM", **EXPERTS),
    decoder("axk2", "AXK2ForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("beam", "BeamForCausalLM"),
    decoder("cwm", "CwmForCausalLM"),
    decoder("deepseek_v32", "DeepseekV32ForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("deepseek_v4", "DeepseekV4ForCausalLM", **EXPERTS, head_dim=8),
    decoder("dory", "DoryForCausalLM", truth=4),
    decoder("emu3", "Emu3ForCausalLM"),
    decoder("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", **EXPERTS),
    decoder("exaone_moe", "ExaoneMoeForCausalLM", **EXPERTS),
    decoder("flint", "FlintForCausalLM"),
    decoder("gemma4", "Gemma4UnifiedForCausalLM"),
    decoder("glm4_moe", "Glm4MoeForCausalLM", **EXPERTS),
    decoder("glm4_moe_lite", "Glm4MoeLiteForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("glm_moe_dsa", "GlmMoeDsaForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("granite_swa", "GraniteSWAForCausalLM"),
    decoder("granitemoeshared", "GraniteMoeSharedForCausalLM", **EXPERTS),
    decoder("hrm_text", "HrmTextForCausalLM", truth=16, note="layers that run several times"),
    decoder("hunyuan_moe", "HunYuanMoEV1ForCausalLM", head_dim=8),
    decoder("hy_v3", "HYV3ForCausalLM", **EXPERTS),
    decoder("hy_v4", "HYV4ForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("hyperclovax", "HyperCLOVAXForCausalLM"),
    replace(decoder("inkling", "InklingForCausalLM", **EXPERTS), finite=True),
    decoder("jais2", "Jais2ForCausalLM"),
    decoder("kolibri1", "Kolibri1ForCausalLM", **EXPERTS),
    decoder("laguna", "LagunaForCausalLM", **EXPERTS),
    decoder("lara_mini", "LaraMiniForCausalLM", truth=1, **EXPERTS),
    decoder("lfm3", "Lfm3ForCausalLM", truth=1, layer_types=["conv", "full_attention"]),
    decoder("llama4", "Llama4ForCausalLM", **EXPERTS),
    decoder("mellum", "MellumForCausalLM", **EXPERTS),
    decoder("mimo_v2_flash", "MiMoV2FlashForCausalLM", **EXPERTS),
    decoder("minimax", "MiniMaxForCausalLM", truth=1, **EXPERTS, note="linear attention, attention"),
    decoder("ministral", "MinistralForCausalLM", head_dim=8),
    decoder("ministral3", "Ministral3ForCausalLM"),
    decoder("mllama_text", "MllamaForCausalLM"),
    decoder("olmo_hybrid", "OlmoHybridForCausalLM", truth=1, note="linear attention, attention"),
    decoder("qwen3_next", "Qwen3NextForCausalLM", truth=1, **EXPERTS, layer_types=HYBRID),
    decoder("qwen3_5", "Qwen3_5ForCausalLM", truth=1, layer_types=HYBRID),
    decoder("solar_open", "SolarOpenForCausalLM", **EXPERTS),
    decoder("youtu", "YoutuForCausalLM", **DEEPSEEK, v_head_dim=8),
    decoder("big_bird_decoder", "BigBirdForCausalLM", attention_type="original_full", is_decoder=True, **PLAIN),
    decoder("jamba", "JambaForCausalLM", truth=1, **EXPERTS, attn_layer_offset=1, attn_layer_period=2),
    decoder("bamba", "BambaForCausalLM", truth=1, attn_layer_indices=[1]),
    decoder("falcon_h1", "FalconH1ForCausalLM"),
)

NAMED = {recipe.name: recipe for recipe in (*DECODERS, *MORE)}
NOMASK = ("gpt2", "llama", "mistral", "opt", "gemma2", "gemma3", "falcon", "gpt_oss", "bloom")

RECIPES = (*NAMED.values(), *(variant(NAMED[name], f"{name}_nomask", "attention_mask") for name in NOMASK))
