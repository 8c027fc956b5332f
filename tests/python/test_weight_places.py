# SPDX-License-Identifier: Apache-2.0
"""Weights that lie on disk: what users ask for, what they get, and the same text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig, WeightConfig, methods
from trained import CPU, folder_of, prompts_of

PARAMS = hg.SamplingParams(max_tokens=8, ignore_eos=True)


def texts(folder: Path, weights: WeightConfig | None, **options: Any) -> list[list[int]]:
    with LLM(folder, weights=weights, cpu=CPU, **options) as llm:
        return [output.token_ids for output in llm.generate(prompts_of(60, 25, 90), PARAMS)]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_split_gives_the_text_of_weights_in_memory(name: str, dtype: str) -> None:
    folder = folder_of(name)
    options: dict[str, Any] = {"dtype": dtype, "method": methods.HybridGen(k=8)}
    options["kv"] = KVConfig(device_tokens=16)
    expected = texts(folder, None, **options)
    for weights in (
        WeightConfig(host=0.0),
        WeightConfig(device=0.25, host=0.25),
        WeightConfig(host=0.5, direct=True),
        WeightConfig(host=0.5, direct=False),
        WeightConfig(host="20KB", format="auto"),
        WeightConfig(device="auto"),
    ):
        assert texts(folder, weights, **options) == expected, weights


@pytest.mark.parametrize("direct", [False, True])
def test_statistics_and_plan_say_what_lies_where(direct: bool) -> None:
    folder = folder_of("tiny-llama")
    weights = WeightConfig(device=0.0, host=0.5, direct=direct)
    planned = hg.plan(
        folder, weights=weights, prompt_tokens=20, new_tokens=8, cpu=CPU, method="full"
    )
    whole = hg.plan(folder, prompt_tokens=20, new_tokens=8, cpu=CPU, method="full")
    with LLM(folder, weights=weights, cpu=CPU, method="full") as llm:
        llm.generate(prompts_of(20), PARAMS)
        stats = llm.stats
    assert stats.weight_disk_bytes == planned.tiers["disk"]["weights"] > 0
    assert stats.weight_device_bytes == planned.tiers["device"]["weights"]
    assert stats.weight_device_bytes + stats.weight_disk_bytes == whole.tiers["device"]["weights"]
    # In the page cache layers take no memory of the engine's.
    more = planned.tiers["device"]["engine"] - whole.tiers["device"]["engine"]
    assert (more > 0) == direct
    # A prompt and seven steps, each of all layers.
    assert stats.weight_bytes_read >= 8 * stats.weight_disk_bytes
    assert 0.0 <= stats.weight_hidden_share <= 1.0
    assert "from disk" in stats.summary()


@pytest.mark.parametrize("host", [1.0, 0.5])
def test_statistics_say_how_long_a_device_waited_for_copies(host: float) -> None:
    weights = WeightConfig(device=0.0, host=host)
    with LLM(folder_of("tiny-llama"), device="emulated", weights=weights, cpu=CPU) as llm:
        llm.generate(prompts_of(20), PARAMS)
        stats = llm.stats
    assert stats.weight_bytes_copied > 0
    assert (stats.weight_bytes_read > 0) == (host < 1.0)
    assert stats.weight_copy_s > 0.0
    assert stats.weight_copy_wait_s >= 0.0
    came_s = stats.weight_read_s + stats.weight_copy_s
    waited_s = stats.weight_wait_s + stats.weight_copy_wait_s
    assert stats.weight_hidden_share == pytest.approx(max(0.0, 1.0 - waited_s / came_s))
    assert "s for copies" in stats.summary()


def test_tensors_are_read_where_the_checkpoint_has_them(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    empty = tmp_path / "no folder"
    nothing = WeightConfig(host=0.0, folder=str(empty))
    with LLM(folder, weights=nothing, cpu=CPU, dtype="float32") as llm:
        assert llm.stats.weight_device_bytes > 0
    # Of another dtype they have to be packed, for which there is no folder.
    with pytest.raises(ConfigError, match="folder"):
        LLM(folder, weights=nothing, cpu=CPU, dtype="bfloat16")


def test_a_file_that_is_cut_off_ends_requests_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("tiny-llama"), folder)
    file = folder / "model.safetensors"
    # More layers than are there at a time.
    with LLM(folder, weights=WeightConfig(host=0.0), cpu=CPU, method="full") as llm:
        llm.generate([[1, 2, 3]], PARAMS)
        whole = file.read_bytes()
        os.truncate(file, len(whole) // 4)
        with pytest.raises(hg.HybridGenError, match=r"\[stream weights\] .*model.safetensors"):
            llm.generate([[1, 2, 3]], PARAMS)
        with file.open("r+b") as stream:
            stream.write(whole)
        assert len(llm.generate([[1, 2, 3]], PARAMS)[0].token_ids) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": 1.5}, "device is 1.5; allowed: None, 'auto', a share from 0.0 to 1.0"),
        ({"host": "many"}, "host is 'many'; allowed: None, 'auto'"),
        ({"folder": ""}, "folder is ''; allowed: None or the path of a folder"),
        ({"direct": 1}, "direct is 1; allowed: None, True or False"),
        ({"shared": "yes"}, "shared is 'yes'; allowed: True or False"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        WeightConfig(**options)
    assert message in str(refused.value)


def test_shares_of_more_than_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="together they are more than all"):
        LLM(folder_of("tiny-llama"), weights=WeightConfig(device=0.7, host=0.7), cpu=CPU)


# ----------------------------------------------------------------------------------------- shared

SHARED = WeightConfig(shared=True)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt"])
def test_shared_weights_give_the_text_of_ones_own(name: str) -> None:
    options: dict[str, Any] = {"method": methods.HybridGen(k=8)}
    options["kv"] = KVConfig(device_tokens=16)
    assert texts(folder_of(name), SHARED, **options) == texts(folder_of(name), None, **options)


def test_shared_weights_are_planned_and_counted_as_memory() -> None:
    folder = folder_of("tiny-llama")
    # Of sizes that are said: what is free differs from one moment to the next.
    sizes: dict[str, Any] = {"device_bytes": 1 << 30, "kv": KVConfig(dram="1GiB")}
    planned, whole = (
        hg.plan(folder, weights=weights, prompt_tokens=20, cpu=CPU, **sizes).tiers
        for weights in (SHARED, None)
    )
    assert planned == whole
    with LLM(folder, weights=SHARED, cpu=CPU) as llm:
        assert llm.stats.weight_device_bytes == whole["device"]["weights"]
        assert llm.stats.weight_disk_bytes == 0


_RESIDENT = """
import sys
from pathlib import Path
import hybridgen as hg

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) * 1024

before = memory()
weights = hg.WeightConfig(shared=sys.argv[2] == "shared")
kv = hg.KVConfig(dram="1MiB")
with hg.LLM(sys.argv[1], weights=weights, method="full", device_bytes="1MiB", kv=kv) as llm:
    llm.generate([[1, 2, 3]], hg.SamplingParams(max_tokens=4, ignore_eos=True))
    print(memory() - before, hg.plan(sys.argv[1], prompt_tokens=4).tiers["device"]["weights"])
"""


def test_shared_weights_are_no_memory_of_the_process(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
        dtype="bfloat16",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    held = {}
    for how in ("own", "shared"):
        done = subprocess.run(
            [sys.executable, "-c", _RESIDENT, str(tmp_path), how],
            capture_output=True,
            text=True,
            check=True,
        )
        held[how], weights = (int(number) for number in done.stdout.split())
    assert weights > 100 << 20
    assert held["own"] - held["shared"] > 0.9 * weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "no file has them as they are used"),
        ({"load_format": "dummy"}, "no file has them as they are used"),
        ({"device": "emulated"}, "only a CPU reads weights in the page cache"),
        ({"weights": WeightConfig(shared=True, host=0.5)}, "leave device and host out"),
        ({"weights": WeightConfig(shared=True, direct=True)}, "direct reads past the page cache"),
        ({"weights": WeightConfig(shared=True, format="int8")}, "no file has them as they are"),
    ],
)
def test_weights_that_cannot_be_shared_are_refused(options: dict[str, Any], message: str) -> None:
    options = {"weights": SHARED, "cpu": CPU} | options
    with pytest.raises(hg.HybridGenError, match=message):
        LLM(folder_of("tiny-llama"), **options)
