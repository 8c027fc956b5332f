# SPDX-License-Identifier: Apache-2.0
"""``KVConfig(disk=...)`` end to end: the same text, counted bytes, a trace lane, no file left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}
SAMPLING = hg.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=1)
PROMPTS = [[(seed * 31 + 7 * i + i * i % 89) % 100 for i in range(1800)] for seed in (1, 2)]


def load(folder: Path, shape: dict[str, Any] = SHAPE, **kv: Any) -> hg.LLM:
    """Load a shape with dummy weights."""
    (folder / "config.json").write_text(json.dumps(shape))
    return hg.LLM(
        str(folder),
        load_format="dummy",
        tokenizer=None,
        method=hg.methods.HybridGen(k=32),
        kv=hg.KVConfig(device_tokens=16, **kv),
        max_num_batched_tokens=128,
        cpu=hg.CpuConfig(threads=1, device_threads=1),
    )


def tokens_of(llm: hg.LLM, prompts: list[list[int]] = PROMPTS) -> list[Any]:
    """Return what every prompt gets, to the last bit of its log-probabilities."""
    outputs = [output.outputs[0] for output in llm.generate(prompts, SAMPLING)]
    return [(output.token_ids, output.logprobs) for output in outputs]


def test_text_is_the_same_and_the_disk_is_counted_and_traced(tmp_path: Path) -> None:
    model, disk = tmp_path / "model", tmp_path / "disk"
    model.mkdir()
    disk.mkdir()
    with load(model) as llm:
        expected = tokens_of(llm)
        assert llm.stats.disk_bytes_read == llm.stats.disk_bytes_written == 0
        assert "disk" not in llm.stats.summary()
    # Keys and values of a prompt take 1 KiB a token: 1.75 MiB.
    with load(model, dram="2.5MiB", disk=hg.Disk(disk, "16MiB")) as llm:
        with llm.tracing(tmp_path / "trace.json"):
            assert tokens_of(llm) == expected
        stats = llm.stats
        assert not list(disk.iterdir())
    assert stats.disk_bytes_written > 0
    assert stats.disk_bytes_read > 0
    assert 0.0 <= stats.disk_hidden_share <= 1.0
    assert stats.disk_read_s > 0.0
    assert "disk" in stats.summary()
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {e["name"] for e in events if e.get("cat") == "disk"} == {"read", "write"}


def test_coded_keys_and_values_give_the_same_text_from_a_disk(tmp_path: Path) -> None:
    # Blocks of codes hold up to 1,024 tokens, and the open ones of both sides stay in memory: only
    # a long prompt has more.
    shape = SHAPE | {
        "num_hidden_layers": 6,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 60,
        "max_position_embeddings": 16384,
    }
    coded = {"keys": "int4", "values": "int4"}
    prompt = [(7 * i + i * i % 89) % 100 for i in range(14000)]
    with load(tmp_path, shape, **coded) as llm:
        expected = tokens_of(llm, [prompt])
        plan = hg.plan(
            llm, prompt_tokens=len(prompt), new_tokens=4, kv=hg.KVConfig(device_tokens=16, **coded)
        )
    memory = plan.tiers["dram"]
    dram = memory["staging"] + (memory["keys"] + memory["values"]) * 96 // 100
    with load(tmp_path, shape, **coded, dram=dram, disk=hg.Disk(tmp_path, "16MiB")) as llm:
        assert tokens_of(llm, [prompt]) == expected
        assert llm.stats.disk_bytes_written > 0
        assert llm.stats.disk_bytes_read > 0


def test_a_disk_larger_than_its_file_system_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(hg.ConfigError, match=r"\[disk tier\] size is .* has free"):
        load(tmp_path, disk=hg.Disk(tmp_path, "1000000TiB"))


def test_a_method_without_use_for_a_disk_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    with pytest.raises(hg.ConfigError, match="disk"):
        hg.LLM(
            str(tmp_path),
            load_format="dummy",
            tokenizer=None,
            method="full",
            kv=hg.KVConfig(disk=hg.Disk(tmp_path, "1MiB")),
        )
