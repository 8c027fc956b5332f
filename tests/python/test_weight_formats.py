# SPDX-License-Identifier: Apache-2.0
"""Weights that are held as codes of 8 or 4 bits: options, bytes, accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hybridgen as hg
from eval_recall import evaluate
from hybridgen import LLM, ConfigError, WeightConfig
from trained import CPU, MODELS, folder_of, new_tokens, samples

INT8 = WeightConfig(format="int8")
INT4 = WeightConfig(format="int4")
EVERYTHING = WeightConfig(format="int4", group=32, min_max=True, head="int4", embeddings="int4")


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int5"}, "[WeightConfig] format is 'int5'; allowed: 'auto', 'int8' or 'int4'"),
        ({"group": 48}, "[WeightConfig] group is 48; allowed: 32, 64 or 128"),
        ({"min_max": 1}, "[WeightConfig] min_max is 1; allowed: True or False"),
        ({"head": None}, "[WeightConfig] head is None; allowed: 'auto', 'int8' or 'int4'"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        WeightConfig(**options)
    assert message in str(refused.value)


def test_options_are_written_by_name_only() -> None:
    with pytest.raises(TypeError):
        WeightConfig("int8")  # type: ignore[misc]


def test_weights_have_to_be_a_weight_config() -> None:
    with pytest.raises(ConfigError, match=r"weights is 'int8'; allowed: a WeightConfig"):
        LLM("anywhere", weights="int8")  # type: ignore[arg-type]


def test_a_model_that_is_loaded_keeps_its_format(checkpoint: Callable[..., Path]) -> None:
    with LLM(checkpoint("llama"), weights=INT8, cpu=CPU) as llm:
        assert llm.model.weight_config == INT8
        with pytest.raises(ConfigError, match="loaded already"):
            LLM(llm, weights=INT4)


def test_one_table_for_both_ends_needs_one_format(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="head is its token table"):
        LLM(checkpoint("llama-tied"), weights=WeightConfig(head="int8"), cpu=CPU)
    both = WeightConfig(head="int8", embeddings="int8")
    with LLM(checkpoint("llama-tied"), weights=both, cpu=CPU) as llm:
        assert len(llm.generate_ids([[5, 6, 7]], new_tokens(4))[0]) == 4


# -------------------------------------------------------------------------------------------- bytes


def test_a_plan_counts_codes_as_an_engine_holds_them() -> None:
    folder = folder_of("tiny-llama")
    weights = {}
    for name, config in {"own": None, "int8": INT8, "int4": INT4, "all": EVERYTHING}.items():
        plan = hg.plan(folder, prompt_tokens=16, dtype="bfloat16", weights=config)
        with LLM(folder, dtype="bfloat16", weights=config, cpu=CPU) as llm:
            assert plan.tiers["device"]["weights"] == llm.model.weights.weight_bytes
            assert (
                hg.plan(llm, prompt_tokens=16).tiers["device"]["weights"]
                == (plan.tiers["device"]["weights"])
            )
        weights[name] = plan.tiers["device"]["weights"]
    assert weights["all"] < weights["int4"] < weights["int8"] < weights["own"]


# ------------------------------------------------------------------------------------------ results


@pytest.mark.parametrize("name", ["llama-biased", "llama-tied", "qwen2", "opt", "opt-350m"])
@pytest.mark.parametrize("weights", [INT8, EVERYTHING], ids=["int8", "everything int4"])
def test_results_are_those_of_the_values_that_the_codes_stand_for(
    checkpoint: Callable[..., Path], tmp_path: Path, name: str, weights: WeightConfig
) -> None:
    """Restored by hand, row by row in float32, and run as a dense model."""
    source = checkpoint(name)
    tensors = load_file(source / "model.safetensors")
    with LLM(source, dtype="float32", cpu=CPU) as llm:
        config = llm.model.weights.config
    formats = hg._core.weight_formats(config, hg._options.fields_of(weights))
    family = hg.families.family_of(hg.model_folder.read_json(source / "config.json"))
    for engine_name, found in formats.items():
        spelling = next(n for n in family.spellings(engine_name) if n in tensors)
        tensors[spelling] = restored(tensors[spelling], found)
    folder = tmp_path / "restored"
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")
    prompts = [[3 + (7 * i) % 300 for i in range(length)] for length in (5, 90)]
    params = hg.SamplingParams(max_tokens=6, ignore_eos=True, logprobs=3)
    with (
        LLM(source, dtype="float32", weights=weights, cpu=CPU) as coded,
        LLM(folder, dtype="float32", cpu=CPU) as dense,
    ):
        for ours, theirs in zip(
            coded.generate(prompts, params), dense.generate(prompts, params), strict=True
        ):
            assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
            assert ours.outputs[0].cumulative_logprob == pytest.approx(
                theirs.outputs[0].cumulative_logprob, abs=2e-3
            )


def restored(tensor: torch.Tensor, found: dict[str, Any]) -> torch.Tensor:
    """Return what the codes of a matrix stand for, from their definition."""
    rows = tensor.float()
    group = min(found["group"], rows.shape[1])
    pieces = []
    for piece in rows.split(group, dim=1):
        if found["bits"] == 8:
            scale = piece.abs().amax(1, keepdim=True) / 127
            pieces.append(torch.round(piece / scale) * scale)
        elif found["minima"]:
            least, most = piece.amin(1, keepdim=True), piece.amax(1, keepdim=True)
            scale = ((most / 15) - (least / 15)).half().float()
            least = least.half().float()
            pieces.append(torch.round((piece - least) / scale).clamp(0, 15) * scale + least)
        else:
            place = piece.abs().argmax(1, keepdim=True)
            scale = (piece.gather(1, place) / -8).half().float()
            pieces.append(torch.round(piece / scale).clamp(-8, 7) * scale)
    return torch.cat(pieces, dim=1)


# ----------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("model", MODELS)
def test_trained_models_recall_what_they_recall_in_float32(model: str) -> None:
    found = {}
    tasks = samples("kv", 700, count=24)
    for name, weights in {"own": None, "int8": INT8, "int4": INT4, "all": EVERYTHING}.items():
        with LLM(folder_of(model), dtype="float32", method="full", weights=weights) as llm:
            found[name] = evaluate(llm, tasks, decode_prompt_tokens=1, batch=8)["exact_match"]
    assert found["own"] >= 0.9
    assert found["int8"] >= found["own"] - 0.02
    assert found["int4"] >= found["own"] - 0.05
    assert found["all"] >= found["own"] - 0.05
