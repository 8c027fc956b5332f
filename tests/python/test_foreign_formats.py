# SPDX-License-Identifier: Apache-2.0
"""Folders and files of other formats: the message says what was given and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridgen import CheckpointError, HybridGenError, UnsupportedModelError
from hybridgen.checkpoint import load_model

Checkpoint = Callable[..., Path]
Copy = Callable[[Path], Path]

FOREIGN = {
    "model_index.json": "diffusers",
    "consolidated.00.pth": "Meta's original Llama",
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "model.onnx": "ONNX",
    "openvino_model.bin": "OpenVINO",
    "part-1.safetensors": "no index lists",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_another_format_is_told_from_an_empty_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=rf"no config\.json in .*{FOREIGN[name]}"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "model_index.json"])
def test_weights_of_another_format_beside_a_config_are_named(
    checkpoint: Checkpoint, copy_of: Copy, name: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"no weights in .*{FOREIGN[name]}"):
        load_model(folder)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.nemo"
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is a file; it is NeMo.*convert it"):
        load_model(file)


def test_an_adapter_is_refused_with_and_without_its_base(
    checkpoint: Checkpoint, copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=r"adapter beside its base model.*merge"):
        load_model(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file({"a": torch.zeros(1)}, alone / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModelError, match="adapter without its base model"):
        load_model(alone)


QUANTIZED = {
    "gptq": ["qweight", "qzeros", "scales", "g_idx"],
    "awq": ["qweight", "qzeros", "scales"],
    "bitsandbytes": ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
    "mlx": ["scales", "biases"],
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_that_no_config_names_are_told_by_their_tensors(
    checkpoint: Checkpoint, copy_of: Copy, kind: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        del tensors[name]
        stem = name.removesuffix("weight")
        tensors |= {f"{stem}{part}": torch.zeros(4, dtype=torch.int32) for part in QUANTIZED[kind]}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"weights are quantized .*_proj") as caught:
        load_model(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("field", ["quantization_config", "compression_config", "quantization"])
def test_a_config_of_weights_that_are_quantized_in_an_unknown_way_is_refused(
    checkpoint: Checkpoint, copy_of: Copy, field: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {field: {"bits": 4}}
    file.write_text(json.dumps(content), encoding="utf-8")
    words = "is set: weights are quantized" if field == "quantization" else "has quant_method None"
    with pytest.raises(UnsupportedModelError, match=f"{field} {words}"):
        load_model(folder)


def test_float64_weights_are_refused_with_a_way_to_convert_them(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t.double() for name, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"F64; .*convert the checkpoint once"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["sparse", "csr", "csc", "nested", "meta", "quantized", "bool"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_without_dense_data_are_refused_by_name(
    checkpoint: Checkpoint, copy_of: Copy, kind: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.layers.1.mlp.up_proj.weight"
    dense = tensors[name]
    tensors[name] = {
        "sparse": dense.to_sparse,
        "csr": dense.to_sparse_csr,
        "csc": dense.to_sparse_csc,
        "nested": lambda: torch.nested.nested_tensor([dense[0], dense[1, :3]]),
        "meta": lambda: dense.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        "bool": dense.bool,
    }[kind]()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(HybridGenError, match=r"model\.layers\.1\.mlp\.up_proj\.weight|cannot read"):
        load_model(folder)


@pytest.mark.parametrize("where", ["in no file", "in another file"])
def test_an_index_may_list_tensors_that_follow_from_others(
    checkpoint: Checkpoint, copy_of: Copy, where: str
) -> None:
    folder = copy_of(checkpoint("qwen2-tied", max_shard_size="20KB"))
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    names = sorted(set(index["weight_map"].values()))
    assert "lm_head.weight" not in index["weight_map"]
    listed = names[0] if where == "in no file" else names[-1]
    index["weight_map"] |= {
        "lm_head.weight": listed,
        "model.layers.0.self_attn.rotary_emb.inv_freq": listed,
    }
    file.write_text(json.dumps(index), encoding="utf-8")
    load_model(folder)
    index["weight_map"]["model.norm.bias"] = listed
    file.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index names tensors .*model\.norm\.bias"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", ["safetensors", "bin", "index"])
def test_without_a_dtype_in_the_config_the_weights_keep_theirs(
    checkpoint: Checkpoint, copy_of: Copy, dtype: torch.dtype, form: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    (folder / "model.safetensors").unlink()
    if form == "bin":
        torch.save(
            tensors | {"model.rotary_emb.inv_freq": torch.arange(4)}, folder / "pytorch_model.bin"
        )
    else:
        name = "model.safetensors" if form == "safetensors" else "a.safetensors"
        save_file(tensors, folder / name)
    if form == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "a.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content = {k: v for k, v in content.items() if k not in ("dtype", "torch_dtype")}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert getattr(torch, load_model(folder).model.dtype) == dtype
