# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from typing import Any

from ..model_config import ConfigReader, reject_windows
from .base import Family, read_rotary_decoder
from .llama import LLAMA

# What an absent field means, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def reject_qwen_windows(reader: ConfigReader, config: dict[str, Any]) -> None:
    """Refuse windows as Qwen2 and Qwen3 have them: from ``max_window_layers`` on, if at all."""
    sliding = reader.flag("use_sliding_window", False)
    first = reader.integer("max_window_layers", low=0) if sliding else 0
    reject_windows(
        reader, config["num_layers"], config["max_positions"], first_layer=first, sliding=sliding
    )


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    # A head_dim of 0 counts as none.
    reader = ConfigReader(_DEFAULTS | fields | {"head_dim": fields.get("head_dim") or None})
    common = read_rotary_decoder(reader)
    reject_qwen_windows(reader, common)
    return common | {"architecture": "qwen2", "qkv_bias": True}


QWEN2 = Family(
    name="Qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    read=_read,
    modules=LLAMA.modules,
    layer_prefix=LLAMA.layer_prefix,
    layer_modules=LLAMA.layer_modules,
)
