# SPDX-License-Identifier: Apache-2.0
"""GPTQ, AWQ and fp8 checkpoints run with the numbers that their own libraries restore.

No library that writes GPTQ or AWQ installs beside the pinned torch (gptqmodel asks for another
torch, autoawq for an older transformers), so these are packed here from the formats' description;
the restoring that they are compared with is written in the libraries' own way, on whole tensors.
fp8 in blocks is restored by transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import MODEL_FOLDERS
from hybridgen import LLM, CheckpointError, CpuConfig, SamplingParams, UnsupportedModelError, _core
from planned_weights import assert_planned_as_held

CPU = CpuConfig(threads=1, device_threads=1)
PROMPT = [1, 40, 7, 300, 12, 99, 5, 230, 17, 3]
GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed_words(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Put ``32 / bits`` neighbours along a dimension into one int32, the first into lowest bits."""
    per = 32 // bits
    pieces = codes.long().unflatten(dim, (-1, per)).unbind(dim + 1)
    words = sum(piece << (bits * i) for i, piece in enumerate(pieces))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def quantised(
    weight: torch.Tensor, bits: int, group_of_input: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes [inputs, outputs], zero points and float16 scales [groups, outputs]."""
    columns, most = weight.t().float(), 2**bits - 1
    groups = int(group_of_input.max()) + 1
    zeros = torch.zeros(groups, weight.shape[0], dtype=torch.int32)
    scales = torch.zeros(groups, weight.shape[0], dtype=torch.float16)
    for group in range(groups):
        rows = columns[group_of_input == group]
        low, high = rows.min(0).values.clamp(max=-1e-3), rows.max(0).values.clamp(min=1e-3)
        scales[group] = ((high - low) / most).half()
        zeros[group] = (-low / scales[group].float()).round().clamp(1, most).int()
    of_row = group_of_input.long()
    codes = (columns / scales[of_row].float() + zeros[of_row]).round().clamp(0, most).int()
    return codes, zeros, scales


def restored(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of_input: torch.Tensor
) -> torch.Tensor:
    """Return the matrix [outputs, inputs] as AutoGPTQ and AutoAWQ compute it, in float16."""
    of_row = group_of_input.long()
    return (scales[of_row] * (codes - zeros[of_row])).t().contiguous()


def gptq_layer(weight: torch.Tensor, **how: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a layer's tensors, and the matrix that they mean."""
    bits, size, stored_less = how["bits"], how["group_size"], how["stored_less"]
    inputs = weight.shape[1]
    size = inputs if size == -1 else size
    group_of_input = (torch.arange(inputs) // size).int()
    if how.get("act_order"):
        generator = torch.Generator().manual_seed(inputs)
        group_of_input = group_of_input[torch.randperm(inputs, generator=generator)]
    codes, zeros, scales = quantised(weight, bits, group_of_input)
    parts = {
        "qweight": packed_words(codes, bits, 0),
        "qzeros": packed_words((zeros - stored_less) % 2**bits, bits, 1),
        "scales": scales,
        "g_idx": group_of_input,
    }
    return parts, restored(codes, zeros, scales, group_of_input)


def awq_layer(weight: torch.Tensor, **how: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a layer's tensors, and the matrix that they mean."""
    group_of_input = (torch.arange(weight.shape[1]) // how["group_size"]).int()
    codes, zeros, scales = quantised(weight, 4, group_of_input)

    def interleaved(numbers: torch.Tensor) -> torch.Tensor:
        return packed_words(numbers.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1), 4, 1)

    parts = {"qweight": interleaved(codes), "qzeros": interleaved(zeros), "scales": scales}
    return parts, restored(codes, zeros, scales, group_of_input)


def fp8_layer(weight: torch.Tensor, **how: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a layer's tensors, and the matrix that they mean."""
    kind, block = how["kind"], how.get("block", (128, 128))
    rows, columns = {
        "tensor": weight.shape,
        "channel": (1, weight.shape[1]),
        "block": block,
    }[kind]
    tall, wide = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    padded = torch.zeros(tall * rows, wide * columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(tall, rows, wide, columns)
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-6) / 448.0
    numbers = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    means = (numbers.float() * scale[:, None, :, None]).reshape(padded.shape)
    cut = (slice(weight.shape[0]), slice(weight.shape[1]))
    stored = numbers.view(torch.uint8).reshape(padded.shape)[cut].contiguous()
    name = "weight_scale_inv" if kind == "block" else "weight_scale"
    scale = scale.reshape(()) if kind == "tensor" and how.get("scalar") else scale
    parts = {"weight": stored.view(torch.float8_e4m3fn), name: scale.contiguous()}
    if how.get("activations"):
        parts["input_scale"] = torch.tensor([0.5])
    return parts, means[cut].contiguous()


LAYERS = {"gptq": gptq_layer, "awq": awq_layer, "fp8": fp8_layer}


def write(
    folder: Path, method: str, settings: dict[str, Any], source: str = "tiny-llama", **how: Any
) -> dict[str, torch.Tensor]:
    """Write a checkpoint with quantised layers; returns what its numbers are."""
    shutil.copytree(MODEL_FOLDERS / source, folder, dirs_exist_ok=True)
    tensors, means = load_file(folder / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        means[name] = tensor.float()
        if not name.endswith("_proj.weight"):
            continue
        del tensors[name]
        parts, means[name] = LAYERS[method](tensor.float(), **how)
        tensors |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"quantization_config": settings, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return means


def tokens_of(means: dict[str, torch.Tensor], source: str = "tiny-llama") -> list[int]:
    """Greedy tokens of transformers with such weights, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL_FOLDERS / source, dtype=torch.float32
    ).eval()
    model.load_state_dict({name: numbers.float() for name, numbers in means.items()})
    made = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=64, min_new_tokens=64, do_sample=False
    )
    return list(map(int, made[0, len(PROMPT) :]))


def our_tokens(folder: Path) -> list[int]:
    with LLM(folder, dtype="float32", device="cpu", method="full", cpu=CPU) as llm:
        return llm.generate_ids([PROMPT], GREEDY)[0]


# ----------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group_size", "act_order"), [(32, False), (32, True), (-1, False)])
def test_gptq_is_restored_bit_for_bit(bits: int, group_size: int, act_order: bool) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(bits))
    for stored_less in (0, 1):
        parts, means = gptq_layer(
            weight, bits=bits, group_size=group_size, act_order=act_order, stored_less=stored_less
        )
        numbers = {
            dtype: _core.restore_packed(
                "gptq",
                bits=bits,
                zero_offset=stored_less,
                codes=parts["qweight"],
                zeros=parts["qzeros"],
                scales=parts["scales"],
                group_of_input=parts["g_idx"],
                dtype=dtype,
            )
            for dtype in ("float16", "float32")
        }
        torch.testing.assert_close(numbers["float16"], means, rtol=0, atol=0)
        # In float32 the product is exact; float16 is that, rounded once.
        torch.testing.assert_close(numbers["float32"].half(), means, rtol=0, atol=0)


def test_awq_is_restored_bit_for_bit() -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    parts, means = awq_layer(weight, group_size=32)
    numbers = _core.restore_packed(
        "awq",
        bits=4,
        zero_offset=0,
        codes=parts["qweight"],
        zeros=parts["qzeros"],
        scales=parts["scales"],
        group_of_input=(torch.arange(96) // 32).int(),
        dtype="float16",
    )
    torch.testing.assert_close(numbers, means, rtol=0, atol=0)


@pytest.mark.parametrize(("layout", "bits"), [("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_codes_scales_and_minima_mean_the_restored_numbers(layout: str, bits: int) -> None:
    from test_gguf import numbers_of

    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    how = {"bits": bits, "group_size": 32, "stored_less": 0}
    parts, _ = LAYERS[layout](weight, **how)
    given = {
        "bits": bits,
        "zero_offset": 0,
        "codes": parts["qweight"],
        "zeros": parts["qzeros"],
        "scales": parts["scales"],
        "group_of_input": (torch.arange(96) // 32).int(),
    }
    coded = _core.split_packed(layout, **given, group=32)
    exact = _core.restore_packed(layout, **given, dtype="float32")
    torch.testing.assert_close(torch.from_numpy(numbers_of(coded, 96)), exact, rtol=0, atol=0)
    scattered = given | {"group_of_input": (torch.arange(96) % 3).int()}
    with pytest.raises(CheckpointError, match="groups of 32 that stand together"):
        _core.split_packed(layout, **scattered, group=32)


def test_fp8_blocks_are_restored_as_transformers_restores_them() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from hybridgen.packed_weights import Float8

    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    parts, _ = fp8_layer(weight, kind="block")
    scale = parts.pop("weight_scale_inv")
    for dtype in ("float32", "bfloat16"):
        theirs = Fp8Dequantize(None)._dequantize_one(
            parts["weight"], scale, output_dtype=getattr(torch, dtype)
        )
        ours = Float8((128, 128)).restore({"weight": parts["weight"], "scale": scale}, dtype)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ------------------------------------------------------------------------------------- checkpoints

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
COMPRESSED_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}


def compressed(strategy: str) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": COMPRESSED_WEIGHTS | {"strategy": strategy},
                "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "sparsity_config": {},
    }


CHECKPOINTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("gptq", GPTQ, {"stored_less": 1}),
    "gptq-v2": ("gptq", GPTQ | {"checkpoint_format": "gptq_v2"}, {"stored_less": 0}),
    "gptq-8-act-order": (
        "gptq",
        GPTQ | {"bits": 8, "desc_act": True},
        {"stored_less": 1, "act_order": True},
    ),
    "gptq-all-inputs": ("gptq", GPTQ | {"group_size": -1}, {"stored_less": 1}),
    "awq": ("awq", AWQ, {}),
    "fp8-blocks": (
        "fp8",
        FP8 | {"weight_block_size": [48, 64]},
        {"kind": "block", "block": (48, 64)},
    ),
    "fp8-tensor": ("fp8", FP8, {"kind": "tensor", "scalar": True}),
    "fbgemm": (
        "fp8",
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        {"kind": "channel"},
    ),
    "compressed-tensor": ("fp8", compressed("tensor"), {"kind": "tensor", "activations": True}),
    "compressed-channel": ("fp8", compressed("channel"), {"kind": "channel"}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_quantised_checkpoint_gives_the_tokens_of_the_numbers_it_means(
    name: str, tmp_path: Path
) -> None:
    method, settings, how = CHECKPOINTS[name]
    sizes = {key: settings[key] for key in ("bits", "group_size") if key in settings}
    source = "tiny-qwen2" if name in ("gptq", "awq") else "tiny-llama"
    means = write(tmp_path, method, settings, source, **sizes, **how)
    assert our_tokens(tmp_path) == tokens_of(means, source)


def test_layers_are_held_as_codes_where_groups_stand_together(tmp_path: Path) -> None:
    def weight_bytes(name: str) -> int:
        method, settings, how = CHECKPOINTS[name]
        folder = tmp_path / name
        write(folder, method, settings, bits=settings["bits"], group_size=32, **how)
        with LLM(folder, device="cpu", dtype="float32", cpu=CPU) as llm:
            return int(llm.model.weights.weight_bytes)

    plain = 744 * 128 * 2 * 4  # embeddings and head, in float32
    matrices = 4 * (128 * 128 * 2 + 32 * 128 * 2 + 3 * 256 * 128)
    assert plain < weight_bytes("gptq") < plain + matrices
    assert plain < weight_bytes("awq") < plain + matrices
    assert weight_bytes("gptq-8-act-order") > plain + 4 * matrices


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_plan_counts_a_quantised_checkpoint_as_it_is_held(name: str, tmp_path: Path) -> None:
    method, settings, how = CHECKPOINTS[name]
    sizes = {key: settings[key] for key in ("bits", "group_size") if key in settings}
    write(tmp_path, method, settings, **sizes, **how)
    assert_planned_as_held(tmp_path, device="cpu")


def test_a_layer_may_be_cut_off_by_the_end_of_a_shard(tmp_path: Path) -> None:
    write(tmp_path, "gptq", GPTQ, bits=4, group_size=32, stored_less=1)
    expected = our_tokens(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == part}, tmp_path / part)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    assert our_tokens(tmp_path) == expected


def test_biases_of_zeros_that_the_model_has_no_place_for_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, "gptq", GPTQ, bits=4, group_size=32, stored_less=1)
    expected, file = our_tokens(tmp_path), tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {Q + "bias": torch.zeros(128)}, file)
    assert our_tokens(tmp_path) == expected
    save_file(tensors | {Q + "bias": torch.ones(128)}, file)
    with pytest.raises(CheckpointError, match=r"unexpected: .*q_proj\.bias"):
        LLM(tmp_path, device="cpu", cpu=CPU)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'; allowed: gptq, awq, fp8"),
        ({"bits": 4}, "quant_method None"),
        (GPTQ | {"bits": 3}, "bits 3; allowed: 4, 8"),
        (GPTQ | {"bits": True}, "bits True"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; allowed: gptq, gp"),
        (GPTQ | {"dynamic": {"+:x": {"bits": 8}}}, "dynamic {"),
        (GPTQ | {"new_thing": 7}, "new_thing 7; allowed: a checkpoint without it"),
        (AWQ | {"version": "gemv"}, "version 'gemv'; allowed: gemm"),
        (AWQ | {"zero_point": False}, "zero_point False; allowed: True"),
        (FP8 | {"fmt": "e5m2"}, "fmt 'e5m2'; allowed: e4m3"),
        (FP8 | {"weight_block_size": [0, 128]}, r"blocks of \[0, 128\]"),
        (compressed("tensor") | {"format": "pack-quantized"}, "format 'pack-quantized'; allowed:"),
        (compressed("group"), "by tensor, channel or block"),
        (compressed("tensor") | {"transform_config": {"a": 1}}, "transform_config"),
    ],
)
def test_settings_that_are_not_read_are_refused_by_name(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    shutil.copytree(MODEL_FOLDERS / "tiny-llama", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = settings
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=words):
        LLM(tmp_path)


Q = "model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("qweight", lambda t: t[:-1], "do not make|does not fill|contradict"),
        ("qweight", lambda t: t[:, :-1], "contradict"),
        ("qweight", lambda t: t.float(), "contradict"),
        ("qweight", lambda t: t.flatten(), "allowed: matrices"),
        ("qzeros", lambda t: t[:, :-1].clone(), "contradict"),
        ("qzeros", lambda t: t[:-1].clone(), "contradict"),
        ("scales", lambda t: t[:-1].clone(), "3 groups of 32 inputs do not make 128"),
        ("scales", lambda t: t.int(), "contradict"),
        ("scales", lambda t: t * float("nan"), "NaN or infinite"),
        ("g_idx", lambda t: t + 1, r"g_idx is 4 for input 96; allowed: 0 to 3"),
        ("g_idx", lambda t: -t, r"g_idx is -1 for input 32"),
        ("g_idx", lambda t: t[:64].clone(), "contradict|does not fill"),
        ("g_idx", lambda t: t.long(), "dtype I64|contradict"),
        ("qzeros", None, "qzeros is missing beside"),
    ],
)
def test_damaged_layers_are_refused_by_name(
    part: str, change: Any, words: str, tmp_path: Path
) -> None:
    write(tmp_path, "gptq", GPTQ, bits=4, group_size=32, stored_less=1)
    tensors = load_file(tmp_path / "model.safetensors")
    if change is None:
        del tensors[Q + part]
    else:
        tensors[Q + part] = change(tensors[Q + part]).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        LLM(tmp_path, device="cpu", cpu=CPU)


def test_damaged_fp8_scales_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "fp8", FP8, kind="channel")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)

    def refused(change: dict[str, torch.Tensor | None]) -> str:
        new = {name: value for name, value in (tensors | change).items() if value is not None}
        save_file(new, file)
        with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
            LLM(tmp_path, device="cpu", cpu=CPU)
        return str(caught.value)

    scale = tensors[Q + "weight_scale"]
    assert "does not fit a weight of shape" in refused({Q + "weight_scale": scale[:-1].clone()})
    assert "NaN or infinity" in refused({Q + "weight_scale": scale * float("nan")})
    assert "is a scale of no weight" in refused({Q + "weight": None})
    assert "allowed: a matrix of float8_e4m3fn" in refused({Q + "weight": torch.ones(128, 128)})
    assert "dtype F8_E4M3" in refused({Q + "weight_scale": None})
