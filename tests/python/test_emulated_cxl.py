# SPDX-License-Identifier: Apache-2.0
"""The CXL memory that benchmarks emulate: `LLM.memory` shows what lies there, too."""

from __future__ import annotations

import pytest

import hybridgen as hg
from emulated_cxl import emulated_cxl
from trained import CPU, folder_of, prompts_of

DRAM = {"semantic": "1MiB", "interleave": "4MiB", "first_touch": "1MiB"}


def most_by_tier(**kv: object) -> dict[str, dict[str, int]]:
    """Return of each tier the largest bytes, and their sum over nodes, of a generation's steps."""
    most: dict[str, dict[str, int]] = {}
    sampling = hg.SamplingParams(max_tokens=3, ignore_eos=True)
    with hg.LLM(
        folder_of("tiny-llama"),
        tokenizer=None,
        dtype="float32",
        cpu=CPU,
        kv=hg.KVConfig(device_tokens=16, **kv),  # type: ignore[arg-type]
    ) as llm:
        llm.add_request(0, {"prompt_token_ids": prompts_of(1500)[0]}, sampling)
        while llm.has_unfinished_requests():
            llm.step()
            for tier, memory in llm.memory.items():
                most_of = most.setdefault(tier, {"bytes": 0, "nodes": 0})
                most_of["bytes"] = max(most_of["bytes"], memory["bytes"])
                most_of["nodes"] = max(most_of["nodes"], sum(memory["nodes"].values()))
    return most


@pytest.mark.parametrize("placement", DRAM)
def test_what_lies_in_it_is_reported_apart(placement: str) -> None:
    alone = most_by_tier()
    with emulated_cxl(1e12):
        most = most_by_tier(dram=DRAM[placement], cxl="64MiB", placement=placement)
    assert alone["dram"]["bytes"] > 0
    assert min(most["dram"]["bytes"], most["cxl"]["bytes"]) > 0
    assert most["dram"]["bytes"] + most["cxl"]["bytes"] >= alone["dram"]["bytes"]
    assert most["cxl"]["bytes"] < alone["dram"]["bytes"]
    for tier in ("dram", "cxl"):
        assert most[tier]["nodes"] == most[tier]["bytes"]
