# SPDX-License-Identifier: Apache-2.0
"""OPT: learned positions, layer norms, biases."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError
from ..model_config import ConfigReader, require_activation, require_whole_heads
from .base import ATTENTION, Family

# What an absent field means, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "activation_function": "relu",
}


def _read_opt(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(_DEFAULTS | fields)
    if not reader.flag("layer_norm_elementwise_affine", True):
        raise UnsupportedModelError(
            "[config.json] layer_norm_elementwise_affine is false; allowed: true"
        )
    require_activation(reader, "activation_function", ("relu",))
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    require_whole_heads(hidden, heads)
    bias = reader.flag("enable_bias", True)
    pre_norm = reader.flag("do_layer_norm_before", True)
    return {
        "architecture": "opt",
        "num_layers": reader.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn_size": reader.integer("ffn_dim"),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": reader.integer("max_position_embeddings"),
        "embedding_size": reader.integer("word_embed_proj_dim", hidden),
        "norm": "layer",
        "norm_eps": 1e-5,
        "pre_norm": pre_norm,
        "final_norm": pre_norm and not reader.flag("_remove_final_layer_norm", False),
        "activation": "relu",
        "position": "learned",
        # The first two rows of the table stand for padding.
        "position_offset": 2,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "qk_norm": False,
        "qkv_bias": bias,
        "output_bias": bias,
        "ffn_bias": bias,
        "tie_embeddings": reader.flag("tie_word_embeddings", True),
    }


OPT = Family(
    name="OPT",
    architecture="OPTForCausalLM",
    model_type="opt",
    read=_read_opt,
    modules={
        "embed_tokens": "model.decoder.embed_tokens",
        "embed_positions": "model.decoder.embed_positions",
        "project_in": "model.decoder.project_in",
        "project_out": "model.decoder.project_out",
        "final_norm": "model.decoder.final_layer_norm",
        "lm_head": "lm_head",
    },
    layer_prefix="model.decoder.layers.",
    layer_modules=ATTENTION
    | {
        "o_proj": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "ffn_norm": "final_layer_norm",
        "up_proj": "fc1",
        "down_proj": "fc2",
    },
)
