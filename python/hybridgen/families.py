# SPDX-License-Identifier: Apache-2.0
"""The model families as data: how each writes its config.json and names its tensors.

To add a family, write a reader that returns the fields of ``_core.ModelConfig`` and a table from
the engine's names of modules to the checkpoint's; there is no second transformer to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._checks import did_you_mean
from .errors import CheckpointError, UnsupportedModelError
from .model_config import (
    ConfigReader,
    read_heads,
    read_rope,
    reject_sliding_window,
    require_activation,
)


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


def _read_opt(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(fields)
    if not reader.flag("layer_norm_elementwise_affine", True):
        raise UnsupportedModelError(
            "[config.json] layer_norm_elementwise_affine is false; allowed: true"
        )
    require_activation(reader, "activation_function", "relu", "relu")
    heads = read_heads(reader)
    bias = reader.flag("enable_bias", True)
    pre_norm = reader.flag("do_layer_norm_before", True)
    return heads | {
        "architecture": "opt",
        "num_layers": reader.integer("num_hidden_layers"),
        "ffn_size": reader.integer("ffn_dim"),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": reader.integer("max_position_embeddings"),
        "embedding_size": reader.integer("word_embed_proj_dim", heads["hidden_size"]),
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
        "qkv_bias": bias,
        "output_bias": bias,
        "ffn_bias": bias,
        "tie_embeddings": reader.flag("tie_word_embeddings", True),
    }


def _read_rotary(reader: ConfigReader) -> dict[str, Any]:
    """Return what Llama and Qwen2 have in common."""
    require_activation(reader, "hidden_act", "silu", "silu")
    heads = read_heads(reader)
    theta, scaling = read_rope(reader)
    return heads | {
        "num_layers": reader.integer("num_hidden_layers"),
        "ffn_size": reader.integer("intermediate_size"),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": reader.integer("max_position_embeddings"),
        "embedding_size": heads["hidden_size"],
        "norm": "rms",
        "norm_eps": reader.real("rms_norm_eps", 1e-6),
        "pre_norm": True,
        "final_norm": True,
        "activation": "silu_gate",
        "position": "rotary",
        "position_offset": 0,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": reader.flag("tie_word_embeddings", False),
    }


def _read_llama(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(fields)
    common = _read_rotary(reader)
    window = reader.get("sliding_window") is not None
    reject_sliding_window(reader, common["num_layers"], window)
    attention_bias = reader.flag("attention_bias", False)
    return common | {
        "architecture": "llama",
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "ffn_bias": reader.flag("mlp_bias", False),
    }


def _read_qwen2(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(fields)
    common = _read_rotary(reader)
    window = reader.flag("use_sliding_window", False)
    reject_sliding_window(reader, common["num_layers"], window)
    return common | {
        "architecture": "qwen2",
        "qkv_bias": True,
        "output_bias": False,
        "ffn_bias": False,
    }


_ATTENTION = {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"}

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
    layer_modules=_ATTENTION
    | {
        "o_proj": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "ffn_norm": "final_layer_norm",
        "up_proj": "fc1",
        "down_proj": "fc2",
    },
)

LLAMA = Family(
    name="Llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    read=_read_llama,
    modules={
        "embed_tokens": "model.embed_tokens",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
    },
    layer_prefix="model.layers.",
    layer_modules=_ATTENTION
    | {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
    },
)

QWEN2 = Family(
    name="Qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    read=_read_qwen2,
    modules=LLAMA.modules,
    layer_prefix=LLAMA.layer_prefix,
    layer_modules=LLAMA.layer_modules,
)

FAMILIES = (OPT, LLAMA, QWEN2)

IGNORED_TENSORS = (r"(.*\.)?rotary_emb\.inv_freq", r"(model\.)?decoder\.version")
"""Patterns of tensors that old files hold and that nothing needs: they follow from the config."""


def family_of(hf_config: dict[str, Any]) -> Family:
    """Return the family of a model.

    Raises
    ------
    UnsupportedModelError
        Naming the supported architectures and the nearest one.
    """
    listed = hf_config.get("architectures")
    if listed is not None and not (
        isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    ):
        raise CheckpointError(
            f"[config.json] architectures is {listed!r}; allowed: a list of strings"
        )
    model_type = hf_config.get("model_type")
    supported = [family.architecture for family in FAMILIES]
    for family in FAMILIES:
        by_type = not listed and model_type == family.model_type
        if by_type or family.architecture in (listed or ()):
            if hf_config.get("quantization_config") is not None:
                raise UnsupportedModelError(
                    "[config.json] quantization_config is set; allowed: weights in float32, "
                    "bfloat16 or float16; take the unquantised checkpoint"
                )
            return family
    what = ", ".join(listed) if listed else f"model_type {model_type!r}"
    hint = did_you_mean(listed[0], supported) if listed else ""
    raise UnsupportedModelError(
        f"[config.json] architecture is {what}; allowed: {', '.join(supported)}{hint}"
    )


def read_model_config(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``_core.ModelConfig`` for a parsed config.json.

    Raises
    ------
    UnsupportedModelError
        If the engine has no code for something the model needs.
    CheckpointError
        If a field is missing or malformed.
    """
    return family_of(hf_config).read(hf_config)
