# SPDX-License-Identifier: Apache-2.0
"""Rotary tables are built as far as requests need them, and growing changes nothing."""

from __future__ import annotations

from typing import Any

from hybridgen import LLM, CpuConfig, KVConfig, SamplingParams, SchedulerConfig

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CPU = CpuConfig(threads=1, device_threads=1)
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)
SHORT = [5, 6, 7]
LONG = [(7 * i * i + 3 * i) % 64 for i in range(4500)]


def dummy(max_positions: int, **options: Any) -> LLM:
    content = CONFIG | {"max_position_embeddings": max_positions}
    return LLM(content, load_format="dummy", device="cpu", cpu=CPU, **options)


def test_a_model_of_two_thousand_million_positions_needs_no_table_of_them() -> None:
    with dummy(2**31 - 1) as vast, dummy(64) as small:
        assert vast.generate_ids([SHORT], PARAMS) == small.generate_ids([SHORT], PARAMS)


def test_a_request_longer_than_all_before_gets_the_text_it_gets_alone() -> None:
    options = {"kv": KVConfig(device_tokens=64), "scheduler": SchedulerConfig(k=32)}
    with dummy(8000, **options) as used, dummy(8000, **options) as fresh:
        first = used.generate_ids([SHORT], PARAMS)
        assert used.generate_ids([LONG], PARAMS) == fresh.generate_ids([LONG], PARAMS)
        assert used.generate_ids([SHORT], PARAMS) == first


def test_engines_that_share_a_model_share_its_positions() -> None:
    with dummy(8000, method="full", max_model_len=100) as short:
        first = short.generate_ids([SHORT], PARAMS)
        with LLM(short, method="full", cpu=CPU) as longer, dummy(8000, method="full") as alone:
            assert longer.generate_ids([LONG], PARAMS) == alone.generate_ids([LONG], PARAMS)
            assert short.generate_ids([SHORT], PARAMS) == first
