# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose weights were coded once: what quantize writes, and damaged ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridgen as hg
from hybridgen import LLM, CheckpointError, ConfigError, HybridGenError, WeightConfig
from hybridgen.__main__ import main
from trained import CPU, folder_of

INT4 = WeightConfig(format="int4", group=32, min_max=True)
FORMATS = {
    "int8": WeightConfig(format="int8"),
    "int4, head": WeightConfig(format="int4", head="int8"),
    "table": WeightConfig(format="int4", group=128, head="int4", embeddings="int4"),
    "min-max": INT4,
}
PROMPTS = [[3 + (7 * i) % 300 for i in range(length)] for length in (4, 90)]


def results(model: Any, weights: WeightConfig | None = None) -> list[tuple[list[int], float]]:
    """Return tokens and log-probabilities, which are the same only if all bits are."""
    params = hg.SamplingParams(max_tokens=6, ignore_eos=True, logprobs=1)
    with LLM(model, dtype="float32", weights=weights, cpu=CPU) as llm:
        outputs = [output.outputs[0] for output in llm.generate(PROMPTS, params)]
    return [(list(output.token_ids), output.cumulative_logprob) for output in outputs]


@pytest.mark.parametrize(
    ("name", "weights"),
    [*(("llama", weights) for weights in FORMATS.values()), ("qwen2", INT4), ("opt-350m", INT4)],
)
def test_what_was_coded_once_has_the_bits_of_what_is_coded_at_load(
    checkpoint: Callable[..., Path], tmp_path: Path, name: str, weights: WeightConfig
) -> None:
    source = checkpoint(name)
    out = hg.quantize(source, tmp_path / "out", weights=weights)
    assert results(out) == results(source, weights)
    with LLM(out, cpu=CPU) as llm:
        assert llm.model.weight_config == weights
        assert llm.tokenizer is not None
        held = llm.model.weights.weight_bytes
    assert hg.plan(out, prompt_tokens=8).tiers["device"]["weights"] == held


def test_shards_have_an_index(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["hybridgen.quantize"], "_SHARD_BYTES", 20_000)
    out = hg.quantize(checkpoint("llama"), tmp_path / "out", weights=INT4)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert results(out) == results(checkpoint("llama"), INT4)


def test_the_command_line_writes_it_and_refuses_a_folder_that_is_there(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["quantize", str(checkpoint("llama")), str(out), "--format", "int4", "--group", "32"]
    assert main([*command, "--min-max", "true"]) == 0
    assert results(out) == results(checkpoint("llama"), INT4)
    assert main(command) == 2
    assert "which is there already" in capsys.readouterr().err
    assert main(["quantize", str(checkpoint("llama")), str(tmp_path / "b")]) == 2
    assert "names a format" in capsys.readouterr().err


def test_nothing_is_left_of_one_that_fails(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in checkpoint("llama").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN.*model\.layers\.2\.mlp\.down_proj"):
        hg.quantize(source, tmp_path / "out", weights=INT4)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_one_that_is_coded_is_neither_coded_again_nor_held_otherwise(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    out = hg.quantize(checkpoint("llama"), tmp_path / "out", weights=INT4)
    with pytest.raises(HybridGenError, match="quantized already"):
        hg.quantize(out, tmp_path / "again", weights=INT4)
    with pytest.raises(ConfigError, match="codes already"):
        LLM(out, weights=WeightConfig(format="int8"), cpu=CPU)


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def quantized(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hg.quantize(
        checkpoint("llama"), tmp_path_factory.mktemp("quantized") / "out", weights=INT4
    )


Q_PROJ = "model.layers.1.self_attn.q_proj"


def without(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def replaced(tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    tensors[name] = value.contiguous()


def changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return lambda tensors: replaced(
        tensors, f"{Q_PROJ}.{part}", change(tensors[f"{Q_PROJ}.{part}"])
    )


DAMAGE = {
    "missing scales": (lambda t: without(t, f"{Q_PROJ}.scales"), r"missing: .*q_proj\.scales"),
    "missing codes": (lambda t: without(t, f"{Q_PROJ}.codes"), r"missing: .*q_proj\.codes"),
    "missing minima": (lambda t: without(t, f"{Q_PROJ}.minima"), r"missing: .*q_proj\.minima"),
    "left over": (lambda t: replaced(t, "extra", torch.zeros(2)), "unexpected: extra"),
    "rows of codes": (changed("codes", lambda t: t[1:]), "codes of tensor"),
    "width of codes": (changed("codes", lambda t: t[:, 1:]), "codes of tensor"),
    "no matrix": (changed("codes", lambda t: t.reshape(-1)), "codes of tensor"),
    "codes of another dtype": (changed("codes", lambda t: t.to(torch.int8)), "codes of tensor"),
    "groups": (changed("scales", lambda t: t.repeat(1, 2)), "scales of tensor"),
    "float32 scales": (changed("scales", lambda t: t.float()), "scales of tensor"),
    "NaN scales": (changed("scales", lambda t: t * float("nan")), "scales of tensor.* NaN"),
    "infinite minima": (
        changed("minima", lambda t: t * 0 + float("inf")),
        "minima of tensor.* NaN",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_tensors_are_refused_by_name(
    quantized: Path, tmp_path: Path, damage: Callable[[Any], None], message: str
) -> None:
    folder = copy_of(quantized, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        LLM(folder, cpu=CPU)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", None),
        ("format", "int5"),
        ("group", 48),
        ("group", -1),
        ("group", 1e300),
        ("min_max", "yes"),
        ("head", ["int4"]),
        ("more", 1),
        ("group", 64),
        ("format", "int8"),
        ("min_max", False),
        ("head", "int4"),
    ],
)
def test_a_config_that_is_damaged_or_another_files_is_refused(
    quantized: Path, tmp_path: Path, field: str, value: object
) -> None:
    folder = copy_of(quantized, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        LLM(folder, cpu=CPU)


def test_files_that_are_cut_or_have_flipped_bytes_never_crash(
    quantized: Path, tmp_path: Path
) -> None:
    """Each ends in our own error, or loads: what changed was a code."""
    folder = copy_of(quantized, tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [0, 4, 7, 8, header // 3, header // 2, header - 2, header + 5, len(whole) - 9]
    damaged = [whole[: len(whole) * i // 7] for i in range(7)]
    for place in places:
        for flip in (0x01, 0x80, 0xFF):
            damaged.append(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
    for content in damaged:
        file.write_bytes(content)
        try:
            with LLM(folder, cpu=CPU) as llm:
                llm.generate_ids([[5, 6]], hg.SamplingParams(max_tokens=1))
        except HybridGenError:
            pass


def copy_of(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_places_are_no_matter_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights has host=0.5"):
        hg.quantize(
            folder_of("tiny-llama"),
            tmp_path / "new",
            weights=WeightConfig(format="int4", group=32, host=0.5),
        )
    assert not (tmp_path / "new").exists()
