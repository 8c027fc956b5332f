# SPDX-License-Identifier: Apache-2.0
"""Fields of config.json that no family reads: those that change results, and those that do not."""

from __future__ import annotations

from typing import Any

from ._checks import brief
from .errors import UnsupportedModelError

_QUANTIZED = (
    "weights are quantized; allowed: weights in float32, bfloat16 or float16; take the "
    "unquantized checkpoint that this one was made from"
)
REFUSED = {
    "quantization": _QUANTIZED,
    "per_layer_config": "layers differ from each other; allowed: one configuration for all layers",
    "attention_chunk_size": "attention is cut into chunks; allowed: full attention",
}
"""Fields that no model may have, and what they mean."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # Factors: Granite, Falcon-H1, Cohere, MiniCPM.
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "lm_head_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    # Limits of logits and activations: Gemma, OLMo, Grok.
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "clip_qkv": (),
    # Other norms, residuals and positions: Cohere, Phi, Persimmon, GPT-NeoX, Falcon, SmolLM3.
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "alibi": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "attn_temperature_tuning": (False, 0),
    # Experts and latent attention.
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "kv_lora_rank": (0,),
    "q_lora_rank": (0,),
}
"""Fields that change results: with these values, and null, they change nothing."""

_READ = frozenset(
    """
    model_type architectures vocab_size hidden_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim intermediate_size max_position_embeddings hidden_act rms_norm_eps
    tie_word_embeddings attention_bias mlp_bias rope_theta rope_scaling rope_parameters
    partial_rotary_factor original_max_position_embeddings sliding_window use_sliding_window
    max_window_layers layer_types ffn_dim word_embed_proj_dim activation_function enable_bias
    do_layer_norm_before _remove_final_layer_norm layer_norm_elementwise_affine dtype torch_dtype
    eos_token_id quantization_config compression_config
    """.split()
)
_CHANGE_NOTHING = frozenset(
    """
    _name_or_path _attn_implementation_autoset _commit_hash attention_dropout auto_map bad_words_ids
    bos_token_id chunk_size_feed_forward dropout activation_dropout embd_pdrop resid_pdrop
    finetuning_task hidden_dropout id2label init_std initializer_range is_decoder
    is_encoder_decoder label2id layerdrop output_attentions output_hidden_states pad_token_id prefix
    pretraining_tp problem_type return_dict sep_token_id task_specific_params tokenizer_class
    torchscript transformers_version unsloth_fixed unsloth_version use_cache
    """.split()
)
_NAMED_FIELDS = 8  # in a message


def refuse_fields(hf_config: dict[str, Any]) -> None:
    """Raise UnsupportedModelError for the first field that changes results as nothing here does."""
    for name, meaning in REFUSED.items():
        if hf_config.get(name) is not None and hf_config[name] != {}:
            raise UnsupportedModelError(f"[config.json] {name} is set: {meaning}")
    for name, neutral in NEUTRAL.items():
        value = hf_config.get(name)
        if value is not None and value not in neutral:
            allowed = ", ".join(["absent", "null", *map(brief, neutral)])
            raise UnsupportedModelError(
                f"[config.json] {name} is {brief(value)}, which changes results in a way that the "
                f"engine has no code for; allowed: {allowed}"
            )


def unknown_fields(hf_config: dict[str, Any]) -> str:
    """Name the fields that no known family has, for the message about an unknown one."""
    known = _READ | _CHANGE_NOTHING
    odd = sorted(name for name in map(str, hf_config) if name not in known)
    if not odd:
        return ""
    more = f" and {len(odd) - _NAMED_FIELDS} more" if len(odd) > _NAMED_FIELDS else ""
    named = ", ".join(map(brief, odd[:_NAMED_FIELDS]))
    return f"; in its config no known family has {named}{more}"
