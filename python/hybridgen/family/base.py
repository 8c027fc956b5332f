# SPDX-License-Identifier: Apache-2.0
"""What a family says of itself, and what those with rotary positions have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..model_config import ConfigReader, read_heads, require_activation
from ..rotary_config import read_rotary


@dataclass(frozen=True)
class Family:
    """One model family.

    Parameters
    ----------
    name : str
        As in messages.
    architecture : str
        The entry of ``architectures`` in config.json.
    model_type : str
        The older mark of the same, for files without ``architectures``.
    read : callable
        From the fields of config.json to those of ``_core.ModelConfig``.
    modules : Mapping[str, str]
        Engine's module name to the checkpoint's, outside of the layers.
    layer_prefix : str
        Before the number of a layer.
    layer_modules : Mapping[str, str]
        Engine's module name to the checkpoint's, inside of a layer.
    """

    name: str
    architecture: str
    model_type: str
    read: Callable[[dict[str, Any]], dict[str, Any]]
    modules: Mapping[str, str]
    layer_prefix: str
    layer_modules: Mapping[str, str]

    def source_name(self, name: str) -> str:
        """Return the checkpoint's name of a tensor that the engine calls ``name``.

        Examples
        --------
        >>> from hybridgen.family.llama import LLAMA
        >>> LLAMA.source_name("layers.3.o_proj.weight")
        'model.layers.3.self_attn.o_proj.weight'
        """
        module, parameter = name.rsplit(".", 1)
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", module)
        if match:
            inner = self.layer_modules[match[2]]
            return f"{self.layer_prefix}{match[1]}.{inner}.{parameter}"
        return f"{self.modules[module]}.{parameter}"

    def spellings(self, name: str) -> list[str]:
        """Return all names under which checkpoints hold this tensor, the usual one first."""
        source = self.source_name(name)
        # Files saved from the bare decoder lack the outer prefix.
        return [source, source.removeprefix("model.")] if source.startswith("model.") else [source]


ATTENTION: dict[str, str] = {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"}
"""Modules of attention as nearly all families call them."""


def read_rotary_decoder(reader: ConfigReader) -> dict[str, Any]:
    """Return what decoders with RMS norms, rotary positions and a gated FFN have in common.

    Biases, windows and the family's name are left to the caller.
    """
    require_activation(reader, "hidden_act", ("silu", "swish"))
    heads = read_heads(reader)
    rotary = read_rotary(reader, heads["head_dim"])
    return heads | {
        "num_layers": reader.integer("num_hidden_layers"),
        "ffn_size": reader.integer("intermediate_size"),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": rotary.max_positions,
        "embedding_size": heads["hidden_size"],
        "norm": "rms",
        "norm_eps": reader.real("rms_norm_eps"),
        "pre_norm": True,
        "final_norm": True,
        "activation": "silu_gate",
        "position": "rotary",
        "position_offset": 0,
        "rope_theta": rotary.theta,
        "rope_scaling": rotary.scaling,
        "qk_norm": False,
        "qkv_bias": False,
        "output_bias": False,
        "ffn_bias": False,
        "tie_embeddings": reader.flag("tie_word_embeddings", False),
    }
