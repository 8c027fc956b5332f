# SPDX-License-Identifier: Apache-2.0
"""Names of formats that this package does not read, and the way out of each.

Only file names and tensor names are looked at; nothing is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_TO_TRANSFORMERS = "save it with transformers' save_pretrained and pass that folder"

_FORMATS: tuple[tuple[str, str, str], ...] = (
    (
        "model_index.json",
        "a diffusers pipeline",
        "pass the folder of its text model, if that is an OPT, Llama or Qwen2",
    ),
    ("consolidated.*.pth", "Meta's original Llama", "take the version converted to safetensors"),
    ("consolidated*.safetensors", "Mistral's original", "take the version for transformers"),
    (
        "tf_model*.h5",
        "TensorFlow",
        f"load it with transformers 4 (from_tf=True), {_TO_TRANSFORMERS}",
    ),
    (
        "flax_model*.msgpack",
        "Flax",
        f"load it with transformers 4 (from_flax=True), {_TO_TRANSFORMERS}",
    ),
    ("*.onnx", "ONNX", "take the safetensors checkpoint that it was exported from"),
    ("onnx/*.onnx", "ONNX", "take the safetensors checkpoint that it was exported from"),
    ("openvino_model.*", "OpenVINO", "take the safetensors checkpoint that it was exported from"),
    ("rust_model.ot", "rust-bert", "take the safetensors checkpoint that it was made from"),
    ("*.nemo", "NeMo", "convert it to a transformers checkpoint first"),
    ("*.ckpt", "a training checkpoint", _TO_TRANSFORMERS),
    ("*.pth", "a training checkpoint", _TO_TRANSFORMERS),
    ("*.pt", "a training checkpoint", _TO_TRANSFORMERS),
    (
        "*.safetensors",
        "safetensors under names that no index lists",
        "name a single file model.safetensors, or add model.safetensors.index.json",
    ),
)

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

_QUANTIZED_TENSOR = (
    r".*\.(qweight|qzeros|g_idx|absmax|quant_map|quant_state\..*|SCB|weight_format|weight_packed|"
    r"weight_scale|weight_scale_inv|weight_zero_point|input_scale|scales|biases|qscale)"
)


def adapter_file(folder: Path) -> str | None:
    """Return the name of a file that shows that a folder holds a LoRA or another adapter."""
    return next((name for name in _ADAPTER_FILES if (folder / name).is_file()), None)


def describe_file(file: Path) -> str:
    """Say what format a file has, and the way out; empty where its name does not tell."""
    for pattern, name, way_out in _FORMATS:
        if "/" not in pattern and file.match(pattern):
            return f"it is {name}, which this package does not read: {way_out}"
    return ""


def describe_folder(folder: Path) -> str:
    """Say which foreign format a folder holds, and the way out; empty where there is none."""
    for pattern, name, way_out in _FORMATS:
        found = next(iter(sorted(folder.glob(pattern))), None)
        if found is not None:
            return f"{found.name} is {name}, which this package does not read: {way_out}"
    return ""


def quantized_tensors(names: Iterable[str]) -> list[str]:
    """Return those tensors that belong to quantized weights (GPTQ, AWQ, bitsandbytes, FP8, MLX)."""
    return sorted(name for name in names if re.fullmatch(_QUANTIZED_TENSOR, name))
