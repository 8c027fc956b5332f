# SPDX-License-Identifier: Apache-2.0
"""Plans of memory: what they say before anything is loaded, and what a run then takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig, _core, methods
from hybridgen.cli import main
from trained import CPU, folder_of, prompts_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


def used(llm: LLM, prompts: list[list[int]], params: hg.SamplingParams) -> dict[str, int]:
    """The most that requests hold of each tier at a time."""
    most: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        llm.add_request(str(i), prompt, params)
    while llm.has_unfinished_requests():
        llm.step()
        for name, tier in llm.memory.items():
            most[name] = max(most.get(name, 0), tier["used"])
    return most


@pytest.mark.parametrize(
    "options",
    [
        {"kv": KVConfig(device_tokens=40)},
        {"kv": KVConfig(device_tokens=40, keys="int8", values="int4")},
        {"method": "full"},
        {"method": methods.FlexGen()},
        {"method": "infinigen"},
    ],
    ids=str,
)
def test_a_run_takes_what_its_plan_says(options: dict[str, Any]) -> None:
    folder = folder_of("tiny-llama")
    plan = hg.plan(folder, batch_size=3, prompt_tokens=200, new_tokens=6, cpu=CPU, **options)
    assert (plan.together, plan.problem, plan.nearest) == (3, "", {})
    params = hg.SamplingParams(max_tokens=6, ignore_eos=True)
    with LLM(folder, cpu=CPU, **options) as llm:
        assert plan.tiers["device"]["weights"] == llm.model.weights.weight_bytes
        taken = used(llm, prompts_of(200, 200, 200), params)
    for name, tier in plan.tiers.items():
        expected = sum(tier[part] for part in ("keys", "values", "staging", "workspaces"))
        assert taken[name] == pytest.approx(expected, rel=0.05), name


def test_a_plan_is_the_same_for_a_model_that_is_loaded() -> None:
    folder = folder_of("tiny-llama")
    run: dict[str, Any] = {"batch_size": 2, "prompt_tokens": 100, "kv": KVConfig(device_tokens=9)}
    before = hg.plan(folder, **run).to_dict()
    with LLM(folder, cpu=CPU) as llm:
        assert hg.plan(llm, **run).to_dict().keys() == before.keys()
        after = hg.plan(llm.model, **run).to_dict()
        with pytest.raises(ConfigError, match=r"\[plan\] dtype is 'bfloat16' for a model that is"):
            hg.plan(llm, dtype="bfloat16", **run)
    for plan in (before, after):
        for tier in plan["tiers"].values():
            del tier["capacity"]  # a share of what is free
    assert after == before


def test_a_plan_reads_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    plan = hg.plan(tmp_path, prompt_tokens=100, load_format="dummy")
    assert plan == hg.plan(CONFIG, prompt_tokens=100) or plan.tiers
    large = CONFIG | {"num_hidden_layers": 4000}  # 200 GB
    found = hg.plan(large, prompt_tokens=100)
    assert found.tiers["device"]["weights"] > 100e9
    assert not found.fits
    assert "the weights" in found.problem


def test_the_nearest_setting_does_what_it_says() -> None:
    folder = folder_of("tiny-llama")
    run: dict[str, Any] = {"batch_size": 4, "prompt_tokens": 300, "new_tokens": 8}
    kv = KVConfig(device_tokens=20, dram="300KB")
    plan = hg.plan(folder, kv=kv, **run)
    assert plan.together < 4
    assert set(plan.nearest) == {"batch_size", "prompt_tokens", "dram"}
    better = hg.plan(folder, kv=KVConfig(device_tokens=20, dram=plan.nearest["dram"]), **run)
    assert (better.together, better.nearest) == (4, {})


def test_what_llm_refuses_a_plan_refuses_too() -> None:
    folder = folder_of("tiny-llama")
    for options, message in (
        ({"batch": 3}, r"\[plan\] unknown option 'batch'.*options: batch_size, prompt_tokens"),
        ({"method": "h3o"}, "method is 'h3o'"),
        ({"batch_size": 0}, r"\[plan\] batch_size is 0"),
        ({"method": "full", "kv": KVConfig(device_tokens=3)}, "full does not read it"),
        ({"device": "tpu"}, "tpu"),
        ({"max_model_len": 50}, "the prompt has 100 tokens and needs one more"),
    ):
        with pytest.raises(ConfigError, match=message):
            hg.plan(folder, **({"prompt_tokens": 100} | options))


def test_the_command_line_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folder_of("tiny-llama"))
    arguments = ["plan", folder, "--batch-size", "3", "--prompt-tokens", "100"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "3 of 3 run at the same time" in text
    assert main([*arguments, "--device-tokens", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["window"], found["together"], found["fits"]) == (20, 3, True)
    assert main([*arguments, "--device-tokens", "20", "--dram", "1KB"]) == 1
    output = capsys.readouterr()
    assert "does not fit: [add request]" in output.out
    assert "does not fit" in output.err


RESIDENT = """
import gc, json, sys, threading, time
import hybridgen as hg
def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
run = json.loads(sys.argv[1])
config, kv, method = run["config"], hg.KVConfig(**run["kv"]), run["method"]
cpu = hg.CpuConfig(threads=1, device_threads=1)
# What libraries take for themselves once: a run of a model that is nearly nothing.
small = dict(config, hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=50)
params = hg.SamplingParams(max_tokens=run["new"], ignore_eos=True)
prompt = [i % 40 for i in range(run["prompt"])]
with hg.LLM(small, load_format="dummy", method=method, kv=kv, cpu=cpu, seed=1) as llm:
    llm.generate_ids([prompt[:300]], params)
del llm
gc.collect()
before, peak, done = rss(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], rss())
        time.sleep(0.005)
watcher = threading.Thread(target=watch)
watcher.start()
with hg.LLM(config, load_format="dummy", method=method, kv=kv, cpu=cpu, seed=1) as llm:
    llm.generate_ids([prompt] * run["batch"], params)
    peak[0] = max(peak[0], rss())
done.set()
watcher.join()
print(peak[0] - before)
"""


@pytest.mark.parametrize(
    ("method", "window", "batch", "prompt"),
    [
        ("hybridgen", 256, 2, 700),
        ("h2o", "auto", 2, 1500),
        ("keyformer", "auto", 2, 1500),
    ],
)
def test_resident_memory_grows_by_what_the_plan_says(
    method: str, window: int | str, batch: int, prompt: int
) -> None:
    run = {"config": CONFIG, "batch": batch, "prompt": prompt, "new": 2}
    options = {"kv": {"device_tokens": window}, "method": method}
    plan = hg.plan(
        CONFIG,
        batch_size=batch,
        prompt_tokens=prompt,
        new_tokens=2,
        kv=KVConfig(device_tokens=window),
        method=method,
        cpu=CPU,
    )
    assert plan.together == batch
    planned = sum(tier["total"] for tier in plan.tiers.values())
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, json.dumps(run | options)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == pytest.approx(planned, rel=0.10), plan


def test_closing_an_engine_and_a_model_gives_all_back(trained: Callable[[str], LLM]) -> None:
    before = _core.process_memory()
    llm = LLM(folder_of("tiny-opt"), cpu=CPU, kv=KVConfig(device_tokens=20))
    during = _core.process_memory()
    assert during["weights"] - before["weights"] == llm.model.weights.weight_bytes
    stream = llm.stream(prompts_of(200)[0], hg.SamplingParams(max_tokens=9, ignore_eos=True))
    next(iter(stream))
    assert _core.process_memory()["dram"] > before["dram"]
    llm.close()
    after = _core.process_memory()
    assert [after[name] for name in before if name != "free"] == [
        before[name] for name in before if name != "free"
    ]


def test_a_device_has_as_many_bytes_as_it_is_given(trained: Callable[[str], LLM]) -> None:
    with LLM(trained("tiny-llama"), method="full", device_bytes="1MiB") as llm:
        assert llm.engine_options.device_bytes == 1 << 20
        with pytest.raises(hg.OutOfMemoryError, match=r"1\.0 MiB"):
            llm.generate([[5] * 500], hg.SamplingParams(max_tokens=500))
        run = {"prompt_tokens": 500, "new_tokens": 500}
        found = hg.plan(llm, **run, method="full", device_bytes=1 << 20)
    assert found.tiers["device"]["capacity"] == 1 << 20
    assert not found.fits
    with pytest.raises(ConfigError, match="device_bytes is 0; allowed: 'auto' or a number"):
        LLM({}, device_bytes=0)
