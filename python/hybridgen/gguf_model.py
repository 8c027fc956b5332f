# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file says of its model, as a config.json and under the names of transformers.

The rest of the package then reads it like any other checkpoint.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import _core
from ._checks import brief, plain
from .errors import CheckpointError, UnsupportedModelError
from .gguf_file import GgufFile, GgufTensor
from .packed_weights import CodedFormat

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Of these alone the rotation works on neighbours, so that rows of q and k are stored in its order.
_ROTATES_NEIGHBOURS = ("llama",)

_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Of an architecture; what is in neither and not neutral is refused by name.
_READ = (
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
_WITHOUT_EFFECT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal")


def hf_config_of(gguf: GgufFile) -> dict[str, Any]:
    """Return the config.json that a GGUF model would have.

    Raises
    ------
    CheckpointError
        If a field that it needs is missing or no number.
    UnsupportedModelError
        For an architecture that is not read, and fields that change results and are not.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"[load_model] general.architecture is {brief(architecture)} in {gguf.path}; allowed: "
            f"{', '.join(_ARCHITECTURES)}"
        )
    fields = _Fields(gguf, architecture)
    fields.refuse_others()
    heads = fields.integer("attention.head_count")
    hidden = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        fields.require(name, head_dim, "the dimensions of a head, which is attention.key_length")
    context = fields.integer("context_length")
    table = gguf.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"[load_model] {gguf.path} has no token_embd.weight, or no matrix")
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(fields, context, head_dim),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": _dtype(gguf),
        "bos_token_id": gguf.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ending_tokens(gguf.metadata),
    }
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors
    if (window := fields.get("attention.sliding_window")) is not None:
        config |= {"sliding_window": window, "use_sliding_window": True}
    return config


class _Fields:
    """Reads metadata of one architecture."""

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self._gguf, self._prefix, self.path = gguf, f"{architecture}.", gguf.path

    def get(self, name: str) -> Any:
        """Return a value; one of an array whose entries are all the same; None if absent."""
        value = self._gguf.metadata.get(self._prefix + name)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            return value[0].item()
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a size, at least 1."""
        value = default if (found := self.get(name)) is None else found
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._refusal(name, value, "a whole number from 1 on")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = default if (found := self.get(name)) is None else found
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self._refusal(name, value, "a number above 0")
        return float(value)

    def require(self, name: str, expected: int, meaning: str) -> None:
        """Refuse any other value than one that the engine can do."""
        if self.integer(name, expected) != expected:
            raise UnsupportedModelError(
                f"[load_model] {self._prefix}{name} is {self.get(name)} in {self._gguf.path}; "
                f"allowed: {expected}, {meaning}"
            )

    def require_one(self, name: str, value: float, reason: str) -> None:
        """Refuse a factor that nothing here multiplies by."""
        if value != 1.0:
            raise UnsupportedModelError(
                f"[load_model] {self._prefix}{name} is {value:g} in {self.path}, which is not "
                f"computed there; allowed: 1, as {reason}"
            )

    def refuse_others(self) -> None:
        """Refuse what nothing here reads, unless it says that something is off."""
        for key, value in self._gguf.metadata.items():
            name = key.removeprefix(self._prefix)
            is_neutral = not isinstance(value, np.ndarray | list) and value in (
                0,
                False,
                "none",
                "",
            )
            if name == key or name in _READ or name in _WITHOUT_EFFECT or is_neutral:
                continue
            raise UnsupportedModelError(
                f"[load_model] {plain(key)} is {brief(value)} in {self._gguf.path}, which this "
                "package does not compute; allowed: a model without it"
            )

    def factors(self, name: str, head_dim: int) -> list[float] | None:
        """Return a tensor of one factor for every pair of dimensions, if there is one."""
        tensor = self._gguf.tensors.get(name)
        if tensor is None:
            return None
        if tensor.type.bits or tensor.shape != (head_dim // 2,):
            raise CheckpointError(
                f"[load_model] {name} in {self._gguf.path} is {tensor.type.name} "
                f"{list(tensor.shape)}; allowed: plain numbers [{head_dim // 2}]"
            )
        return [float(number) for number in restore(tensor, "float32").tolist()]

    def _refusal(self, name: str, value: object, allowed: str) -> CheckpointError:
        return CheckpointError(
            f"[load_model] {self._prefix}{name} is {'missing' if value is None else brief(value)} "
            f"in {self._gguf.path}; allowed: {allowed}"
        )


def _rope(fields: _Fields, context: int, head_dim: int) -> dict[str, Any]:
    """Return rope_parameters as config.json has them."""
    rope: dict[str, Any] = {"rope_theta": fields.real("rope.freq_base", 10000.0)}
    has_old_name = fields.get("rope.scaling.factor") is None
    name_of_factor = "rope.scale_linear" if has_old_name else "rope.scaling.factor"
    factor = fields.real(name_of_factor, 1.0)
    kind = fields.get("rope.scaling.type") or "linear"
    original = fields.integer("rope.scaling.original_context_length", context)
    attention = fields.real("rope.scaling.attn_factor", 1.0)
    stretched = fields.factors("rope_freqs.weight", head_dim)
    long = fields.factors("rope_factors_long.weight", head_dim)
    short = fields.factors("rope_factors_short.weight", head_dim)
    is_by_pair = stretched is not None or long is not None or short is not None
    if is_by_pair and kind != "none":
        fields.require_one(name_of_factor, factor, "of every pair there is one already")
    if long is not None and short is not None and stretched is None:
        return rope | _longrope(short, long, original, attention)
    if kind == "yarn" and factor != 1.0:
        return rope | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": fields.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": fields.real("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": attention * (0.1 * math.log(factor) + 1.0),
        }
    fields.require_one("rope.scaling.attn_factor", attention, "yarn and longrope alone have it")
    if long is not None or short is not None:
        raise CheckpointError(
            f"[load_model] {fields.path} has some of {', '.join(_ROPE_FACTORS)} that do not go "
            "together; allowed: the first alone, or both others; convert the model again"
        )
    if stretched is not None:
        # llama.cpp's form of "llama3": the factor of every pair, computed already.
        return rope | _longrope(stretched, stretched, context, 1.0) | {"factor": 1.0}
    if kind == "linear" and factor != 1.0:
        return rope | {"rope_type": "linear", "factor": factor}
    # Known, but without the numbers that it needs; or unknown, which config.json's reader names.
    is_off = kind in ("none", "linear", "yarn")
    return rope | {"rope_type": "default" if is_off else plain(kind)}


def _longrope(
    short: list[float], long: list[float], original: int, attention: float
) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _dtype(gguf: GgufFile) -> str:
    """Return the dtype to run in: that of most weights; bfloat16 where these are quantised."""
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.type.name] += math.prod(tensor.shape)
    most = sizes.most_common(1)[0][0]
    return {"F32": "float32", "F16": "float16"}.get(most, "bfloat16")


def _ending_tokens(metadata: Mapping[str, Any]) -> list[Any]:
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [metadata.get(f"tokenizer.ggml.{name}") for name in names]
    return [token for token in found if token is not None]


# ------------------------------------------------------------------------------------------ weights


@dataclass(frozen=True)
class GgufWeight:
    """A tensor of a GGUF model under its name in transformers.

    Parameters
    ----------
    tensor : GgufTensor
        Where it lies.
    heads : int
        Whose rows have to be put back into transformers' order; 0 if they are in it.
    """

    tensor: GgufTensor
    heads: int = 0

    @property
    def coded_format(self) -> CodedFormat | None:
        """How it is held as codes; None for plain numbers."""
        kind = self.tensor.type
        if not kind.bits or len(self.tensor.shape) != 2:
            return None
        # A block of several scales has these in few bits, over a common one.
        scales = "float16" if kind.group == kind.block_values else "float32"
        return CodedFormat(kind.bits, kind.group, kind.has_minima, scales)

    def coded(self) -> dict[str, Any]:
        """Return its codes, scales and minima, as ``_core.Model.load_coded`` takes them."""
        parts = _core.split_gguf(self.tensor.type.id, self.tensor.rows())
        ordered = ("codes", "scales", "minima")
        return parts | {p: self._ordered(parts[p]) for p in ordered if parts[p] is not None}

    def restored(self, dtype: str) -> torch.Tensor:
        """Return its numbers."""
        return self._ordered(restore(self.tensor, dtype))

    def _ordered(self, rows: torch.Tensor) -> torch.Tensor:
        """Put both halves of every head behind each other; the file has them in pairs."""
        if not self.heads:
            return rows
        count = rows.shape[0]
        if count % (2 * self.heads):
            raise CheckpointError(
                f"[load_model] a projection in {self.tensor.file} has {count} rows for "
                f"{self.heads} heads of pairs"
            )
        pairs = rows.view(self.heads, count // self.heads // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)


def restore(tensor: GgufTensor, dtype: str) -> torch.Tensor:
    """Return the numbers of a tensor: those of ggml bit for bit, rounded to dtype."""
    return _core.restore_gguf(tensor.type.id, tensor.rows(), dtype).view(tensor.shape)


def weights_of(gguf: GgufFile) -> dict[str, GgufWeight]:
    """Return all weights under transformers' names; tensors without such a name keep their own."""
    architecture = gguf.metadata.get("general.architecture")
    heads: dict[str, int] = {}
    if architecture in _ROTATES_NEIGHBOURS:
        fields = _Fields(gguf, architecture)
        count = fields.integer("attention.head_count")
        heads = {"attn_q": count, "attn_k": fields.integer("attention.head_count_kv", count)}
    weights: dict[str, GgufWeight] = {}
    for name, tensor in gguf.tensors.items():
        if name in _ROPE_FACTORS:
            continue
        source = source_name(name)
        if source in weights:
            raise CheckpointError(f"[load_model] {gguf.path} has {plain(source)} twice")
        module = name.split(".")[2] if name.startswith("blk.") and name.count(".") > 2 else ""
        weights[source] = GgufWeight(tensor, heads.get(module, 0))
    return weights


def source_name(name: str) -> str:
    """Return transformers' name of a tensor; its own if transformers has none.

    Examples
    --------
    >>> source_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, module, parameter = match.groups()
    table = _MODULES if layer is None else _LAYER_MODULES
    if module not in table:
        return name
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{table[module]}.{parameter}"
