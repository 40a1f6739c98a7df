"""Makes the default configuration of any model of transformers small, by the usual names of its sizes.

Used by `export_models.py` for the architectures of `export_configs_rest.py`, whose configurations would otherwise be
forty lines each: sizes of text, vision and sound, one inside the other.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

NAMES = {
    1: "bos_token_id n_group topk_group first_k_dense_replace n_shared_experts",
    2: "num_hidden_layers num_layers n_layer n_layers depth encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers resampler_depth layers eos_token_id "
    "num_key_value_heads num_kv_heads n_kv_heads encoder_num_key_value_heads decoder_num_key_value_heads "
    "num_experts_per_tok top_k moe_topk moe_k",
    3: "num_channels in_channels",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads "
    "attention_heads resampler_n_heads qk_rope_head_dim num_experts num_local_experts n_routed_experts",
    8: "head_dim attention_head_dim resampler_head_dim patch_size d_kv key_dim v_head_dim qk_nope_head_dim kv_channels "
    "global_head_dim attention_head_size num_queries num_query_tokens sliding_window",
    16: "kv_lora_rank num_mel_bins input_feat_per_channel state_size",
    24: "q_lora_rank",
    32: "hidden_size d_model embed_dim embedding_size n_embd dim hidden_dim projection_dim text_hidden_size width "
    "vision_hidden_size input_hidden_size output_dim out_hidden_size mlp_dim attention_hidden_size emb_dim latent_dim "
    "output_channels decoder_hidden_size encoder_hidden_size text_embed_dim vision_embed_dim qformer_hidden_size "
    "proj_dim moe_intermediate_size shared_expert_intermediate_size image_size img_size",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner d_inner max_position_embeddings "
    "encoder_intermediate_size decoder_intermediate_size max_source_positions max_target_positions n_positions "
    "ffn_hidden_size max_seq_len",
    128: "vocab_size text_vocab_size src_vocab_size decoder_vocab_size vocab_size_per_layer_input audio_vocab_size",
}
SIZES = {name: size for size, names in NAMES.items() for name in names.split()} | {"pad_token_id": 0}


def tiny(config: PreTrainedConfig, more: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a small configuration of the kind of `config`; `more` goes over them, part by part."""
    made: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            inner = more.get(name, {})
            made[name] = {"model_type": value.model_type} | tiny(value, inner if isinstance(inner, dict) else {})
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            made[name] = SIZES[name]
    return made | {name: value for name, value in more.items() if name not in made or not isinstance(value, dict)}
