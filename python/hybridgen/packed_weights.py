# SPDX-License-Identifier: Apache-2.0
"""Quantised layers of safetensors checkpoints: GPTQ, AWQ and fp8, told by ``quantization_config``.

Each layer lies in several tensors; together they are the one matrix that the model asks for. How
activations or caches were meant to be quantised changes no weight and is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from . import _core
from ._checks import brief, plain
from .errors import CheckpointError, UnsupportedModelError

_WAY_OUT = "take the unquantized checkpoint that this one was made from"
_ROWS_AT_ONCE = 256


class CodedFormat(NamedTuple):
    """How a matrix is held as codes; src/kernels/coded_rows.h says what that means."""

    bits: int
    group: int
    minima: bool
    scales: str
    """Dtype of scales and minima: "float16" or "float32"."""


class PackedWeights(Protocol):
    """How the layers of a checkpoint are quantised."""

    def coded_format(self, shapes: Mapping[str, tuple[int, ...]]) -> CodedFormat | None:
        """Return how a matrix with parts of such shapes is held as codes; None if restored."""

    def coded(self, parts: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return a matrix that has such a format as ``_core.Model.load_coded`` takes it."""

    def layers(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return, for the name of each matrix, its tensors by their part."""

    def is_idle(self, name: str) -> bool:
        """Say whether a tensor changes no weight."""

    def restore(self, parts: dict[str, torch.Tensor], dtype: str) -> torch.Tensor:
        """Return the matrix [outputs, inputs]; CheckpointError for parts that do not fit."""


@dataclass(frozen=True)
class PackedIntegers:
    """GPTQ and AWQ: integers of few bits in words of 32, a scale and a zero point per group.

    Parameters
    ----------
    layout : str
        "gptq" or "awq".
    bits : int
        Of an integer.
    group_size : int
        Inputs of a group; -1 for all.
    zero_offset : int
        Added to each stored zero point.
    is_in_order : bool
        Whether the inputs of a group stand together.
    """

    layout: str
    bits: int
    group_size: int
    zero_offset: int
    is_in_order: bool = True

    def coded_format(self, shapes: Mapping[str, tuple[int, ...]]) -> CodedFormat | None:
        """Codes with minima, where groups are whole blocks of codes that stand together."""
        inputs = self._inputs(shapes["qweight"][0]) if len(shapes["qweight"]) == 2 else 0
        size = inputs if self.group_size == -1 else self.group_size
        is_whole = size == inputs or size % (128 // self.bits) == 0
        if not (self.is_in_order and inputs and is_whole):
            return None
        return CodedFormat(self.bits, size, True, "float32")

    def coded(self, parts: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return codes, scales, and the minima that zero points make."""
        groups = self._groups(parts)
        parts_of_model: dict[str, Any] = _core.split_packed(
            self.layout,
            bits=self.bits,
            zero_offset=self.zero_offset,
            codes=parts["qweight"],
            zeros=parts["qzeros"],
            scales=parts["scales"],
            group_of_input=groups,
            group=len(groups) if self.group_size == -1 else self.group_size,
        )
        return parts_of_model

    def _inputs(self, rows: int) -> int:
        """Return the inputs that so many rows of words hold."""
        return rows * (32 // self.bits if self.layout == "gptq" else 1)

    def layers(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Find layers by their ``qweight``."""
        known = frozenset(names)
        found = {}
        for name in known:
            if not name.endswith(".qweight"):
                continue
            stem = name.removesuffix("qweight")
            parts = {part: stem + part for part in ("qweight", "qzeros", "scales")}
            missing = [part for part in parts.values() if part not in known]
            if missing:
                raise CheckpointError(
                    f"[load_model] {plain(missing[0], 150)} is missing beside {plain(name, 150)}; "
                    "the checkpoint is incomplete, download it again"
                )
            if self.layout == "gptq" and f"{stem}g_idx" in known:
                parts["g_idx"] = f"{stem}g_idx"
            found[f"{stem}weight"] = parts
        return found

    def is_idle(self, _name: str) -> bool:
        """Nothing is."""
        return False

    def restore(self, parts: dict[str, torch.Tensor], dtype: str) -> torch.Tensor:
        """Subtract zero points and multiply, once, in float32."""
        return _core.restore_packed(
            self.layout,
            bits=self.bits,
            zero_offset=self.zero_offset,
            codes=parts["qweight"],
            zeros=parts["qzeros"],
            scales=parts["scales"],
            group_of_input=self._groups(parts),
            dtype=dtype,
        )

    def _groups(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the group of every input, as said or in order."""
        if parts["qweight"].dim() != 2 or parts["scales"].dim() != 2:
            raise CheckpointError(
                f"[load_model] qweight and scales have the shapes {list(parts['qweight'].shape)} "
                f"and {list(parts['scales'].shape)}; allowed: matrices"
            )
        inputs = self._inputs(parts["qweight"].shape[0])
        size = inputs if self.group_size == -1 else self.group_size
        groups = parts["scales"].shape[0]
        if groups != -(-inputs // size):
            raise CheckpointError(
                f"[load_model] {groups} groups of {size} inputs do not make {inputs}; the "
                "checkpoint is damaged, or its quantization_config is not its own"
            )
        if "g_idx" in parts:
            return parts["g_idx"]
        return (torch.arange(inputs) // size).to(torch.int32)


@dataclass(frozen=True)
class Float8:
    """Numbers of 8 bits (e4m3) times a scale for all, for each row, or for each block.

    Parameters
    ----------
    block : tuple of int or None
        Rows and columns of a block.
    """

    block: tuple[int, int] | None

    def coded_format(self, _shapes: Mapping[str, tuple[int, ...]]) -> CodedFormat | None:
        """None: such numbers are no integers with a scale."""
        return None

    def coded(self, parts: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Refuse: nothing has such a format."""
        raise CheckpointError(f"[load_model] {', '.join(parts)} are numbers of 8 bits, no codes")

    def layers(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Find layers by the scales of their weights."""
        known = frozenset(names)
        found = {}
        for name in known:
            match = re.fullmatch(r"(.*\.)weight_scale(?:_inv)?", name)
            if match is None:
                continue
            weight = f"{match[1]}weight"
            if weight not in known or weight in found:
                raise CheckpointError(
                    f"[load_model] {plain(name, 150)} is a scale of no weight, or its second one; "
                    "the checkpoint is incomplete, download it again"
                )
            found[weight] = {"weight": weight, "scale": name}
        return found

    def is_idle(self, name: str) -> bool:
        """Scales of activations, queries, keys and values are."""
        return (
            re.fullmatch(r".*\.(input|output|q|k|v|activation)_scale(_ub|_inv)?", name) is not None
        )

    def restore(self, parts: dict[str, torch.Tensor], dtype: str) -> torch.Tensor:
        """Multiply once, in float32, in pieces."""
        weight, scale = parts["weight"], parts["scale"]
        if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2:
            raise CheckpointError(
                f"[load_model] a weight with a scale is {weight.dtype} {list(weight.shape)}; "
                "allowed: a matrix of float8_e4m3fn"
            )
        scales = self._scales(weight.shape, scale)
        restored = torch.empty(weight.shape, dtype=getattr(torch, dtype))
        columns = 1 if self.block is None else self.block[1]
        for first in range(0, weight.shape[0], _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            factors = scales[rows].repeat_interleave(columns, 1)[:, : weight.shape[1]]
            restored[rows] = weight[rows].float() * factors
        return restored

    def _scales(self, shape: torch.Size, scale: torch.Tensor) -> torch.Tensor:
        """Return float32 scales [outputs, 1], or [outputs, blocks of a row]."""
        scale = scale.float()
        if self.block is not None:
            grid = tuple(-(-size // block) for size, block in zip(shape, self.block, strict=True))
            if tuple(scale.shape) == grid:
                return scale.repeat_interleave(self.block[0], 0)[: shape[0]]
        elif scale.numel() == 1:
            return scale.reshape(1, 1).expand(shape[0], 1)
        elif tuple(scale.shape) in ((shape[0],), (shape[0], 1)):
            return scale.reshape(-1, 1)
        raise CheckpointError(
            f"[load_model] a scale of shape {list(scale.shape)} does not fit a weight of shape "
            f"{list(shape)}"
            + ("" if self.block is None else f" in blocks of {list(self.block)}")
            + "; the checkpoint is damaged, or its quantization_config is not its own"
        )


# ------------------------------------------------------------------------------------ config.json


def read_packing(hf_config: dict[str, Any]) -> PackedWeights | None:
    """Return how a checkpoint's layers are quantised; None if they are not.

    Raises
    ------
    UnsupportedModelError
        For methods and settings that are not read, by name.
    CheckpointError
        For settings that are no numbers or words.
    """
    field = "quantization_config" if hf_config.get("quantization_config") else "compression_config"
    settings = hf_config.get(field)
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise CheckpointError(f"[config.json] {field} is {brief(settings)}; allowed: an object")
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedModelError(
            f"[config.json] {field} has quant_method {brief(method)}; allowed: "
            f"{', '.join(_METHODS)}; {_WAY_OUT}"
        )
    return _METHODS[method](_Settings(method, settings))


class _Settings:
    """Reads settings, and refuses by name those that nothing here has read."""

    def __init__(self, method: str, settings: dict[str, Any]) -> None:
        self._method, self._settings = method, settings
        self._read = {"quant_method"}

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; null counts as absent."""
        self._read.add(name)
        value = self._settings.get(name)
        return default if value is None else value

    def one_of(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """Return one of some words or numbers."""
        value = self.get(name, default)
        value = value.lower() if isinstance(value, str) else value
        # 1 is no true, and 4.0 no number of bits.
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise self.refusal(name, self.get(name, default), ", ".join(map(str, allowed)))
        return value

    def group_size(self, default: int) -> int:
        """Return the inputs of a group."""
        value = self.get("group_size", default)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not (value == -1 or 1 <= value < 1 << 24):
            raise CheckpointError(
                f"[config.json] quantization_config has group_size {brief(value)}; allowed: a "
                "positive int, or -1 for all inputs"
            )
        return int(value)

    def ignore(self, *names: str) -> None:
        """Accept settings that do not change what the tensors mean."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuse what is left, unless it is off."""
        for name, value in self._settings.items():
            if name not in self._read and value not in (None, False, [], {}, ""):
                raise self.refusal(name, value, "a checkpoint without it")

    def refusal(self, name: str, value: object, allowed: str) -> UnsupportedModelError:
        """Return the error for a setting."""
        return UnsupportedModelError(
            f"[config.json] quantization_config ({self._method}) has {plain(name)} {brief(value)}; "
            f"allowed: {allowed}; {_WAY_OUT}"
        )


def _read_gptq(settings: _Settings) -> PackedWeights:
    bits = settings.one_of("bits", None, (4, 8))
    # Some files say it by one name, some by the other.
    formats = ("gptq", "gptq_v2")
    written = settings.one_of("format", "gptq", formats)
    written = settings.one_of("checkpoint_format", written, formats)
    settings.one_of("pack_dtype", "int32", ("int32",))
    settings.ignore(
        *("act_group_aware adapter backend batch_size block_name_to_quantize cache_block_outputs "
          "damp_auto_increment damp_percent dataset exllama_config hyb_act lm_head "
          "max_input_length meta method model_file_base_name model_name_or_path model_seqlen "
          "module_name_preceding_first_block modules_in_block_to_quantize mse offload_to_disk "
          "offload_to_disk_path pad_token_id quantizer static_groups sym tokenizer true_sequential "
          "use_cuda_fp16 use_exllama version").split()
    )  # fmt: skip
    in_order = not settings.one_of("desc_act", False, (True, False))
    size, offset = settings.group_size(-1), 0 if written == "gptq_v2" else 1
    made = PackedIntegers("gptq", bits, size, offset, in_order)
    settings.finish()
    return made


def _read_awq(settings: _Settings) -> PackedWeights:
    bits = settings.one_of("bits", settings.get("w_bit", 4), (4,))
    written = settings.one_of("version", "gemm", ("gemm",))
    settings.one_of("format", written, ("gemm",))
    settings.one_of("zero_point", True, (True,))
    settings.ignore(
        *("backend checkpoint_format dataset damp_percent desc_act do_fuse exllama_config "
          "fuse_max_seq_len lm_head meta method modules_to_fuse modules_to_not_convert pack_dtype "
          "q_group_size sym").split()
    )  # fmt: skip
    made = PackedIntegers("awq", bits, settings.group_size(settings.get("q_group_size", 128)), 0)
    settings.finish()
    return made


def _read_fp8(settings: _Settings) -> PackedWeights:
    settings.one_of("fmt", "e4m3", ("e4m3", "float8_e4m3fn"))
    settings.one_of("scale_fmt", "float", ("float", "ue8m0"))
    block = _read_block(settings, settings.get("weight_block_size"))
    settings.ignore(
        *("activation_scheme activation_scale_ub dequantize ignored_layers kv_cache_scheme "
          "modules_to_convert modules_to_not_convert").split()
    )  # fmt: skip
    settings.finish()
    return Float8(block)


def _read_block(settings: _Settings, block: Any) -> tuple[int, int] | None:
    if block is None:
        return None
    is_pair = isinstance(block, list) and len(block) == 2
    if not is_pair or not all(type(size) is int and 1 <= size < 1 << 24 for size in block):
        raise settings.refusal("blocks of", block, "two sizes, such as [128, 128]")
    return block[0], block[1]


def _read_compressed(settings: _Settings) -> PackedWeights:
    """compressed-tensors (LLM Compressor): of its formats the one that holds fp8."""
    settings.one_of("format", None, ("float-quantized",))
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise settings.refusal("config_groups", groups, "an object")
    blocks = {_block_of_group(settings, group) for group in groups.values()}
    if len(blocks) > 1:
        raise settings.refusal("config_groups", groups, "one strategy for all layers")
    sparsity = settings.get("sparsity_config", {})
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
        raise settings.refusal("sparsity_config", sparsity, "dense weights")
    settings.ignore(
        *("global_compression_ratio ignore kv_cache_scheme quantization_status version").split()
    )
    settings.finish()
    return Float8(blocks.pop())


def _block_of_group(settings: _Settings, group: Any) -> tuple[int, int] | None:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise settings.refusal("weights", weights, "an object")
    kind = weights.get("type"), weights.get("num_bits"), weights.get("symmetric", True)
    strategy = weights.get("strategy")
    if kind != ("float", 8, True) or strategy not in ("tensor", "channel", "block"):
        raise settings.refusal(
            "weights", weights, "symmetric float of 8 bits by tensor, channel or block"
        )
    return _read_block(settings, weights.get("block_structure")) if strategy == "block" else None


_METHODS: dict[str, Callable[[_Settings], PackedWeights]] = {
    "gptq": _read_gptq,
    "awq": _read_awq,
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fp8,
    "compressed-tensors": _read_compressed,
}
