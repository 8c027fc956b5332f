# SPDX-License-Identifier: Apache-2.0
"""FlexGen's weight folders: read in place, written whole or not at all, never unpickled."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hybridgen as hg
from hybridgen.errors import CheckpointError, ConfigError, DeviceError
from hybridgen.flexgen import opt_config
from hybridgen.flexgen.opt_config import convert, download_opt_weights
from hybridgen.np_weights import made_folder, new_np_folder, write_tensor
from trained import folder_of, new_tokens, prompts_of

OPT = folder_of("tiny-opt")
FC1 = "decoder.layers.2.fc1.weight"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("weights") / "tiny-opt-np"
    convert(OPT, target)
    return target


@pytest.fixture
def damaged(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "tiny-opt-np"))


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        found.update(str(file.relative_to(folder)).encode())
        found.update(file.read_bytes() if file.is_file() else b"")
    return found.hexdigest()


def test_a_folder_holds_what_flexgen_reads_under_its_names(converted: Path) -> None:
    names = {file.name for file in converted.iterdir()}
    tensors = {name for name in names if name.startswith(("decoder.", "lm_head."))}
    per_layer = [
        *(f"self_attn.{n}_proj.{p}" for n in ("q", "k", "v", "out") for p in ("weight", "bias")),
        *(f"{n}.{p}" for n in ("fc1", "fc2") for p in ("weight", "bias")),
        *(f"{n}_layer_norm.{p}" for n in ("self_attn", "final") for p in ("weight", "bias")),
    ]
    assert tensors == {
        "decoder.embed_tokens.weight",
        "decoder.embed_positions.weight",
        "decoder.layer_norm.weight",
        "decoder.layer_norm.bias",
        "lm_head.weight",
        *(f"decoder.layers.{i}.{name}" for i in range(4) for name in per_layer),
    }
    array = np.load(converted / FC1, allow_pickle=False)
    assert (array.shape, array.dtype) == ((256, 128), np.float16)
    assert {"config.json", "tokenizer.json"} <= names


def test_the_same_weights_from_a_checkpoint_and_from_its_numpy_files_say_the_same(
    converted: Path,
) -> None:
    prompts, params = prompts_of(60, 45), new_tokens(6)
    before = digest(converted)
    with hg.LLM(OPT, dtype="float32", method="full") as llm:
        expected = llm.generate_ids(prompts, params)
    with hg.LLM(converted, dtype="float32", method="full") as llm:
        assert llm.generate_ids(prompts, params) == expected
    assert digest(converted) == before


def test_a_model_that_shares_its_token_table_gets_a_copy_as_lm_head(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    convert(checkpoint("opt"), tmp_path / "opt-np")
    table = np.load(tmp_path / "opt-np" / "decoder.embed_tokens.weight")
    assert np.array_equal(np.load(tmp_path / "opt-np" / "lm_head.weight"), table)
    with hg.LLM(tmp_path / "opt-np", tokenizer=None) as llm:
        assert llm.model_config["tie_embeddings"]


def test_a_published_name_stands_for_the_config_that_flexgen_does_not_write(
    tmp_path: Path,
) -> None:
    with new_np_folder(tmp_path / "opt-125m-np") as folder:
        write_tensor(folder, "model.decoder.embed_positions.weight", torch.zeros(2050, 768))
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.0\.fc1"):
        hg.Model(tmp_path / "opt-125m-np")
    plan = hg.plan(tmp_path / "opt-125m-np", prompt_tokens=8)
    # Positions and token table, and of each of 12 layers 12 squares of 768 and 13 rows of 768.
    numbers = 2050 * 768 + 50272 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert plan.tiers["device"]["weights"] == 4 * numbers


@pytest.mark.parametrize("name", ["mine-np", "galactica-30b-np"])
def test_a_folder_whose_name_says_no_opt_shape_needs_a_config(tmp_path: Path, name: str) -> None:
    with new_np_folder(tmp_path / name):
        pass
    with pytest.raises(CheckpointError, match=r"has no config\.json.*put the model's config"):
        hg.Model(tmp_path / name)


# ----------------------------------------------------------------------------------------- damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def vanish(file: Path) -> None:
    file.unlink()


def unpickle(file: Path) -> None:
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, np.array([{}], object), allow_pickle=True)


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}))


def enormous(file: Path) -> None:
    with file.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": (1 << 60, 1 << 60)}
        np.lib.format.write_array_header_1_0(stream, header)


def integers(file: Path) -> None:
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, np.zeros((256, 128), np.int16))


def transposed(file: Path) -> None:
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, np.zeros((128, 256), np.float16))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "the folder was written half"),
        (vanish, r"missing: .*fc1\.weight"),
        (unpickle, "has dtype .*object"),
        (pickled, "cannot read"),
        (enormous, "the folder was written half"),
        (integers, "has dtype 'int16'"),
        (transposed, r"has shape \[128, 256\]"),
        (empty, "cannot read"),
    ],
)
def test_damage_is_named_and_the_folder_stays_as_it_was(
    damaged: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(damaged / FC1)
    before = digest(damaged)
    with pytest.raises(CheckpointError, match=words):
        hg.Model(damaged)
    assert digest(damaged) == before


# ---------------------------------------------------------------------------------------- writing


def test_a_failed_conversion_leaves_nothing_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "weights" / "opt-13b-np"
    old.mkdir(parents=True)
    (old / "mine").write_text("here before")
    before = digest(tmp_path)
    count = iter(range(5))

    def fill_the_disk(folder: Path, name: str, tensor: torch.Tensor) -> None:
        write_tensor(folder, name, tensor)
        if next(count) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(opt_config, "write_tensor", fill_the_disk)
    with pytest.raises(DeviceError, match=r"No space left on device.*free space there"):
        convert(OPT, tmp_path / "weights" / "tiny-opt-np")
    assert digest(tmp_path) == before


def test_what_is_there_already_is_never_written_over(damaged: Path) -> None:
    before = digest(damaged)
    with pytest.raises(CheckpointError, match="is there already"):
        convert(OPT, damaged)
    assert digest(damaged) == before


def test_only_opt_has_flexgens_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a Llama model; allowed: OPT"):
        convert(folder_of("tiny-llama"), tmp_path / "tiny-llama-np")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_nowhere_are_named_and_no_folder_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"facebook/opt-13b is neither a folder nor"):
        download_opt_weights("opt-13b", str(tmp_path / "weights"))
    assert not list(tmp_path.iterdir())


def test_folders_that_a_failed_run_made_go_with_it_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for place in ("there", "a/b/c"):
        with pytest.raises(ZeroDivisionError), made_folder(tmp_path / place):
            raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["there"]
