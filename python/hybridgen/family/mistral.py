# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama without biases, and with a window that all layers have unless it is null."""

from __future__ import annotations

from typing import Any

from ..model_config import ConfigReader, require_no_window
from .base import Family, read_rotary_decoder
from .llama import LLAMA

# What an absent field means, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "sliding_window": 4096,
}


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(_DEFAULTS | fields)
    common = read_rotary_decoder(reader)
    # Whatever layer_types says, as in transformers.
    require_no_window(reader, common["max_positions"])
    return common | {"architecture": "mistral"}


MISTRAL = Family(
    name="Mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    read=_read,
    modules=LLAMA.modules,
    layer_prefix=LLAMA.layer_prefix,
    layer_modules=LLAMA.layer_modules,
)
