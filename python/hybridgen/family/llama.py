# SPDX-License-Identifier: Apache-2.0
"""Llama: rotary positions, RMS norms, a gated FFN, grouped keys and values."""

from __future__ import annotations

from typing import Any

from ..model_config import ConfigReader, reject_windows, require_whole_heads
from .base import ATTENTION, Family, read_rotary_decoder

# What an absent field means, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(_DEFAULTS | fields)
    common = read_rotary_decoder(reader)
    if reader.get("head_dim") is None:
        require_whole_heads(common["hidden_size"], common["num_heads"])
    reject_windows(
        reader, common["num_layers"], common["max_positions"], first_layer=0, sliding=True
    )
    attention_bias = reader.flag("attention_bias", False)
    return common | {
        "architecture": "llama",
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "ffn_bias": reader.flag("mlp_bias", False),
    }


LLAMA = Family(
    name="Llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    read=_read,
    modules={
        "embed_tokens": "model.embed_tokens",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
    },
    layer_prefix="model.layers.",
    layer_modules=ATTENTION
    | {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
    },
)
