# SPDX-License-Identifier: Apache-2.0
"""The published OPT models as shapes: what a name says where no config.json does."""

from __future__ import annotations

from typing import Any, NamedTuple


class OptShape(NamedTuple):
    """Sizes of one model; its FFN is four times as wide as its hidden state."""

    layers: int
    heads: int
    hidden: int
    vocabulary: int = 50272


SHAPES: dict[str, OptShape] = {
    "opt-125m": OptShape(12, 12, 768),
    "opt-1.3b": OptShape(24, 32, 2048),
    "opt-2.7b": OptShape(32, 32, 2560),
    "opt-6.7b": OptShape(32, 32, 4096),
    "opt-13b": OptShape(40, 40, 5120),
    "opt-30b": OptShape(48, 56, 7168),
    "galactica-30b": OptShape(48, 56, 7168, vocabulary=50000),
    "opt-66b": OptShape(64, 72, 9216),
    "opt-175b": OptShape(96, 96, 12288),
    "opt-175b-stage": OptShape(24, 96, 12288),
}
"""By the names that FlexGen knows; opt-350m has another architecture and is not among them."""


def shape_name(name: str) -> str:
    """Return the name of a model's shape: without organisation and instruction tuning, lower case.

    Examples
    --------
    >>> shape_name("facebook/opt-iml-max-30B")
    'opt-30b'
    """
    base = name.split("/")[1] if "/" in name else name
    return base.lower().replace("-iml-max", "").replace("-iml", "")


def hf_config(shape: OptShape) -> dict[str, Any]:
    """Return what a config.json says of an OPT model of this shape."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "hidden_size": shape.hidden,
        "word_embed_proj_dim": shape.hidden,
        "ffn_dim": 4 * shape.hidden,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
