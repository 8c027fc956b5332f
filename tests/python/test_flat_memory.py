# SPDX-License-Identifier: Apache-2.0
"""Requests that have ended leave nothing behind: resident memory stays flat over thousands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trained import ROOT, run_python

MIB = 1 << 20
# Of a process that answers ROUNDS times PER_ROUND requests: the size after each round.
ROUNDS_CODE = """
import contextlib, json, sys
import hybridgen as hg

run = json.loads(sys.argv[1])
sys.path.insert(0, run["emulation"])
from emulated_cxl import emulated_cxl

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

def prompt(number):
    length = run["long"] if number % 100 == 0 else 12 + number % 9
    return {"prompt_token_ids": [(7 * i + 13 * number) % 64 for i in range(length)]}

kv = dict(run["kv"])
disk = {"disk": hg.Disk(*kv.pop("disk"))} if "disk" in kv else {}
tiers = emulated_cxl(1e12) if "cxl" in kv else contextlib.nullcontext()
sizes, kept = [], []
sampling = hg.SamplingParams(max_tokens=2, ignore_eos=True)
with tiers, hg.LLM(
    run["config"],
    load_format="dummy",
    kv=hg.KVConfig(device_tokens=8, **kv, **disk),
    cpu=hg.CpuConfig(threads=1, device_threads=1),
) as llm:
    for first in range(0, run["rounds"] * run["per_round"], run["per_round"]):
        llm.generate([prompt(first + i) for i in range(run["per_round"])], sampling)
        kept += [bytearray(run["leak"]) for _ in range(run["per_round"])]
        sizes.append(resident())
    used = {tier: memory["used"] for tier, memory in llm.memory.items()}
    print(json.dumps({"sizes": sizes, "used": used, "stats": llm.stats.to_dict()}))
"""
PER_ROUND = 500
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}


def after(requests: int, kv: dict[str, Any], long: int, leak: int = 0) -> dict[str, Any]:
    run = {
        "config": CONFIG,
        "kv": kv,
        "long": long,
        "rounds": requests // PER_ROUND,
        "per_round": PER_ROUND,
        "leak": leak,
        "emulation": str(ROOT / "benchmarks" / "figures"),
    }
    ended = run_python(ROUNDS_CODE, json.dumps(run))
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def growth(found: dict[str, Any], warm_up: int) -> int:
    """Return by how many bytes a process grew after `warm_up` requests."""
    sizes: list[int] = found["sizes"]
    return max(sizes) - sizes[warm_up // PER_ROUND - 1]


def test_ten_thousand_short_requests_leave_resident_memory_flat() -> None:
    found = after(10_000, kv={}, long=20)
    assert found["stats"]["evicted_bytes"] > 0
    assert not any(found["used"].values())
    assert growth(found, warm_up=2_000) < 2 * MIB  # 256 bytes a request


def test_requests_in_every_tier_leave_resident_memory_flat(tmp_path: Path) -> None:
    # One in a hundred is so long that its blocks overflow into CXL memory and from there.
    kv = {"dram": "1536KiB", "cxl": "256KiB", "disk": [str(tmp_path), "16MiB"]}
    found = after(2_000, kv, long=900)
    assert min(found["stats"][name] for name in ("cxl_value_bytes_read", "disk_bytes_read")) > 0
    assert not any(found["used"].values())
    assert growth(found, warm_up=1_000) < MIB  # 1 KiB a request


def test_half_a_kilobyte_that_each_request_left_behind_would_show() -> None:
    assert growth(after(10_000, kv={}, long=20, leak=512), warm_up=2_000) > 2 * MIB
