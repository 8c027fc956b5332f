# SPDX-License-Identifier: Apache-2.0
"""Which GGUF file of a folder or hub id is the model: found in a local cache, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type

import hybridgen as hg
from gguf_models import write_gguf
from hybridgen import LLM, CheckpointError, ConfigError, Model
from hybridgen.cli import main
from trained import CPU

REPO = "somebody/tiny-GGUF"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}
PARAMS = hg.SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, reference: Callable[[str], Any], tokenizer: Any
) -> Path:
    """A folder with one model in two types, and split in a folder of its own."""
    folder, model = tmp_path_factory.mktemp("models"), reference("llama")
    write_gguf(folder / "tiny-F16.gguf", model, tokenizer, Type.F16)
    write_gguf(folder / "tiny-F32.gguf", model, tokenizer)
    (folder / "split").mkdir()
    write_gguf(folder / "split" / "tiny.gguf", model, tokenizer, split_max_tensors=20)
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put files of a folder into a hub cache under REPO; returns their snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, *names: str, revision: str = "main") -> Path:
        own = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
        snapshot = own / "snapshots" / COMMITS[revision]
        for name in names:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, snapshot / name)
        (own / "refs").mkdir(parents=True, exist_ok=True)
        (own / "refs" / revision).write_text(COMMITS[revision], encoding="utf-8")
        return snapshot

    return put


def said(model: str | Path, **options: Any) -> list[int]:
    """Tokens of a model and the tokenizer that it comes with."""
    with LLM(model, device="cpu", method="full", cpu=CPU, **options) as llm:
        return list(llm.generate("Once upon a time", PARAMS)[0].outputs[0].token_ids)


def refusal(model: Any, error: type[Exception] = CheckpointError, **options: Any) -> str:
    with pytest.raises(error) as raised:
        LLM(model, device="cpu", **options)
    return str(raised.value)


@pytest.mark.parametrize("name", ["tiny-F16.gguf", "tiny-F32.gguf"])
def test_a_file_of_a_hub_id_is_the_model_with_its_tokenizer(
    name: str, models: Path, cached: Callable[..., Path]
) -> None:
    snapshot = cached(models, "tiny-F16.gguf", "tiny-F32.gguf")
    with Model(REPO, gguf_file=name, device="cpu") as model:
        assert model.path == snapshot / name
    assert said(REPO, gguf_file=name) == said(models / name)


def test_a_split_model_may_lie_in_a_subfolder_of_the_repository(
    models: Path, cached: Callable[..., Path]
) -> None:
    parts = [f"split/{file.name}" for file in sorted((models / "split").iterdir())]
    assert len(parts) > 1
    cached(models, *parts, "tiny-F16.gguf")
    assert said(REPO, gguf_file=parts[1]) == said(models / parts[0])


def test_a_revision_says_in_which_snapshot(models: Path, cached: Callable[..., Path]) -> None:
    cached(models, "tiny-F16.gguf")
    snapshot = cached(models, "tiny-F32.gguf", revision="v2")
    with Model(REPO, gguf_file="tiny-F32.gguf", revision="v2", device="cpu") as model:
        assert model.path == snapshot / "tiny-F32.gguf"
    assert "tiny-F16.gguf" in refusal(REPO, gguf_file="tiny-F32.gguf")


def test_the_only_file_of_a_hub_id_needs_no_name(models: Path, cached: Callable[..., Path]) -> None:
    snapshot = cached(models, "tiny-F16.gguf")
    (snapshot / "config.json").write_text("{}", encoding="utf-8")  # some repositories have one
    assert said(REPO) == said(REPO, load_format="gguf") == said(models / "tiny-F16.gguf")


def test_of_several_files_one_is_to_be_named(models: Path, cached: Callable[..., Path]) -> None:
    names = ["tiny-F16.gguf", "tiny-F32.gguf"]
    cached(models, *names)
    for model in (REPO, models):
        message = refusal(model)
        assert "2 GGUF models: tiny-F16.gguf, tiny-F32.gguf; pass the name of one" in message
        assert "gguf_file" in message
    assert said(models, gguf_file=names[1]) == said(models / names[1])


def test_a_name_that_is_not_there_is_answered_with_those_that_are(
    models: Path, cached: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(models, "tiny-F16.gguf")
    message = refusal(REPO, gguf_file="tiny-Q4_0.gguf")
    assert "gguf_file is 'tiny-Q4_0.gguf'" in message
    assert (
        "in the local hub cache, and the hub cannot be reached; allowed: tiny-F16.gguf" in message
    )
    message = refusal(models, gguf_file="tiny-Q4_0.gguf")
    assert "allowed: split/tiny-00001-of-" in message
    assert "tiny-F16.gguf, tiny-F32.gguf" in message
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files",
        lambda _self, repo, revision: ["README.md", f"{repo.split('/')[1]}-{revision}.gguf"],
    )
    message = refusal(REPO, gguf_file="tiny-Q4_0.gguf")
    assert message.endswith("has no 'tiny-Q4_0.gguf'; allowed: tiny-GGUF-None.gguf")


def test_a_hub_id_that_is_not_cached_says_so_when_offline(cached: Callable[..., Path]) -> None:
    cached(Path(), revision="v2")
    assert "HF_HUB_OFFLINE" in refusal(REPO, gguf_file="tiny.gguf")


@pytest.mark.parametrize(
    "name", ["../tiny.gguf", "/tiny.gguf", "tiny.safetensors", 3, "a/../b.gguf"]
)
def test_a_name_is_a_gguf_file_inside(name: Any, models: Path) -> None:
    for model in (REPO, models):
        message = refusal(model, ConfigError, gguf_file=name)
        assert f"gguf_file is {name!r}; allowed: the path of a .gguf file in the folder" in message


def test_a_name_goes_with_a_folder_or_a_hub_id_only(models: Path) -> None:
    name = "tiny-F16.gguf"
    assert "is a file already" in refusal(models / name, ConfigError, gguf_file=name)
    assert "is a dict" in refusal({}, ConfigError, gguf_file=name, load_format="dummy")
    assert "load_format is 'bin'" in refusal(models, ConfigError, gguf_file=name, load_format="bin")
    with Model(models, gguf_file=name, device="cpu") as model:
        assert "loaded already" in refusal(model, ConfigError, gguf_file=name)


def test_a_plan_counts_the_file_that_is_meant(
    models: Path, cached: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cached(models, "tiny-F16.gguf", "tiny-F32.gguf")
    weights = {}
    for name in ("tiny-F16.gguf", "tiny-F32.gguf"):
        plan = hg.plan(REPO, gguf_file=name, prompt_tokens=8, device="cpu")
        with LLM(REPO, gguf_file=name, device="cpu", cpu=CPU) as llm:
            assert plan.tiers["device"]["weights"] == llm.model.weights.weight_bytes
        weights[name] = plan.tiers["device"]["weights"]
    assert weights["tiny-F16.gguf"] < weights["tiny-F32.gguf"]
    cached(models, "tiny-F16.gguf", revision="v2")
    only = hg.plan(REPO, revision="v2", prompt_tokens=8, device="cpu")
    assert only.tiers["device"]["weights"] == weights["tiny-F16.gguf"]
    run = ["plan", REPO, "--gguf-file", "tiny-F16.gguf", "--device", "cpu", "--prompt-tokens", "8"]
    assert main(run) == 0
    assert "tiny-F16.gguf" in capsys.readouterr().out
