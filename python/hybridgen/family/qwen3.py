# SPDX-License-Identifier: Apache-2.0
"""Qwen3, dense: query and key heads are normed before their rotation, and have their own width."""

from __future__ import annotations

from typing import Any

from ..model_config import ConfigReader
from .base import Family, read_rotary_decoder
from .llama import LLAMA
from .qwen2 import reject_qwen_windows

# What an absent field means, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(_DEFAULTS | fields)
    common = read_rotary_decoder(reader)
    reject_qwen_windows(reader, common)
    attention_bias = reader.flag("attention_bias", False)
    return common | {
        "architecture": "qwen3",
        "qk_norm": True,
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
    }


QWEN3 = Family(
    name="Qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    read=_read,
    modules=LLAMA.modules,
    layer_prefix=LLAMA.layer_prefix,
    layer_modules={
        **LLAMA.layer_modules,
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
)
