# SPDX-License-Identifier: Apache-2.0
"""The paper's own setting: guessed queries, steered K, windows that shrink for who waits."""

from __future__ import annotations

import pytest

import hybridgen as hg

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}
PROMPTS = [[(7 * i + s) % 50 for i in range(700)] for s in (1, 2, 3)]
PARAMS = hg.SamplingParams(max_tokens=4, ignore_eos=True)


def test_it_says_what_the_paper_says_and_keeps_what_is_given() -> None:
    setting = hg.paper_setting(kv=hg.KVConfig(dram="1GiB"), k_min=9)
    assert setting["kv"] == hg.KVConfig(dram="1GiB", shrink_windows=True)
    steered = hg.SchedulerConfig(k=None, k_min=9)
    assert setting["method"] == hg.methods.HybridGen(query="speculative", scheduler=steered)
    with pytest.raises(hg.ConfigError, match=r"\[paper_setting\] k is 5; allowed: None"):
        hg.paper_setting(k=5)
    with pytest.raises(hg.ConfigError, match=r"\[paper_setting\] kv is .*; allowed: a KVConfig"):
        hg.paper_setting(kv={"dram": "1GiB"})  # type: ignore[arg-type]


def test_requests_that_would_wait_run_beside_others_whose_windows_shrink() -> None:
    """With room for three fifths of three whole windows three run together; by default one does."""
    setting = hg.paper_setting()
    shape = {"batch_size": 3, "prompt_tokens": 700, "new_tokens": 4, "load_format": "dummy"}
    device = hg.plan(CONFIG, **shape).tiers["device"]
    room = sum(device[part] for part in ("keys", "values", "workspaces")) * 3 // 5
    for options, together in (({}, 1), (setting, 3)):
        with hg.LLM(CONFIG, load_format="dummy", device_bytes=room, **options) as llm:
            for i, prompt in enumerate(PROMPTS):
                llm.add_request(str(i), {"prompt_token_ids": prompt}, PARAMS)
            most = finished = 0
            while llm.has_unfinished_requests():
                outputs = llm.step()
                most = max(most, len(outputs))
                finished += sum(output.finished and output.error is None for output in outputs)
            assert (most, finished) == (together, len(PROMPTS))
