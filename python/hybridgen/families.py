# SPDX-License-Identifier: Apache-2.0
"""The model families as data: how each writes its config.json and names its tensors.

To add a family, write a reader that returns the fields of ``_core.ModelConfig`` and a table from
the engine's names of modules to the checkpoint's; there is no second transformer to write.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._checks import brief, did_you_mean
from .errors import CheckpointError, UnsupportedModelError
from .model_config import (
    ConfigReader,
    read_heads,
    read_rope,
    reject_windows,
    require_activation,
    require_whole_heads,
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


# What an absent field means, as in transformers.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "opt": {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "activation_function": "relu",
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
    "qwen2": {
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
    },
}


def _read_opt(fields: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(_DEFAULTS["opt"] | fields)
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
        "qkv_bias": bias,
        "output_bias": bias,
        "ffn_bias": bias,
        "tie_embeddings": reader.flag("tie_word_embeddings", True),
    }


def _read_rotary(reader: ConfigReader) -> dict[str, Any]:
    """Return what Llama and Qwen2 have in common."""
    require_activation(reader, "hidden_act", ("silu", "swish"))
    heads = read_heads(reader)
    max_positions = reader.integer("max_position_embeddings")
    theta, scaling = read_rope(reader, max_positions)
    return heads | {
        "num_layers": reader.integer("num_hidden_layers"),
        "ffn_size": reader.integer("intermediate_size"),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": max_positions,
        "embedding_size": heads["hidden_size"],
        "norm": "rms",
        "norm_eps": reader.real("rms_norm_eps"),
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
    reader = ConfigReader(_DEFAULTS["llama"] | fields)
    common = _read_rotary(reader)
    if reader.get("head_dim") is None:
        require_whole_heads(common["hidden_size"], common["num_heads"])
    reject_windows(reader, common["num_layers"], first_layer=0, sliding=True)
    attention_bias = reader.flag("attention_bias", False)
    return common | {
        "architecture": "llama",
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "ffn_bias": reader.flag("mlp_bias", False),
    }


def _read_qwen2(fields: dict[str, Any]) -> dict[str, Any]:
    # A head_dim of 0 counts as none.
    reader = ConfigReader(
        _DEFAULTS["qwen2"] | fields | {"head_dim": fields.get("head_dim") or None}
    )
    common = _read_rotary(reader)
    sliding = reader.flag("use_sliding_window", False)
    first = reader.integer("max_window_layers", low=0) if sliding else 0
    reject_windows(reader, common["num_layers"], first_layer=first, sliding=sliding)
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

_QUANTIZED = (
    "weights are quantized; allowed: weights in float32, bfloat16 or float16; take the "
    "unquantized checkpoint that this one was made from"
)
_REFUSED = {
    "quantization": _QUANTIZED,
    "per_layer_config": "layers differ from each other; allowed: one configuration for all layers",
    "attention_chunk_size": "attention is cut into chunks; allowed: full attention",
}

IGNORED_TENSORS = (
    r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)",
    r"(model\.)?decoder\.version",
)
"""Patterns of tensors that old files hold and that nothing needs: they follow from the config."""


def family_of(hf_config: dict[str, Any]) -> Family:
    """Return the family of a model: that of its ``model_type``, as in transformers.

    ``architectures`` decides in files without a ``model_type``.

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
            f"[config.json] architectures is {brief(listed)}; allowed: a list of strings"
        )
    for name, meaning in _REFUSED.items():
        if hf_config.get(name) is not None and hf_config[name] != {}:
            raise UnsupportedModelError(f"[config.json] {name} is set: {meaning}")
    model_type = hf_config.get("model_type")
    for family in FAMILIES:
        if model_type == family.model_type if model_type else family.architecture in (listed or ()):
            _warn_of_another_architecture(family, listed)
            return family
    supported = [family.architecture for family in FAMILIES]
    what = ", ".join(listed) if listed else ""
    of_type = f" of model_type {brief(model_type)}" if model_type else ""
    raise UnsupportedModelError(
        f"[config.json] architecture is {what or 'missing'}{of_type}; allowed: "
        f"{', '.join(f'{f.architecture} ({f.model_type})' for f in FAMILIES)}"
        f"{did_you_mean(listed[0] if listed else model_type, supported)}"
    )


def _warn_of_another_architecture(family: Family, listed: list[str] | None) -> None:
    if listed and not any(name.lower().startswith(family.model_type) for name in listed):
        warnings.warn(
            f"[config.json] architectures is {brief(listed)} with model_type "
            f"{family.model_type!r}; model_type decides, as in transformers: it is read as "
            f"{family.architecture}",
            stacklevel=2,
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
