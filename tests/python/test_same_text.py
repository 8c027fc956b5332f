# SPDX-License-Identifier: Apache-2.0
"""The same call gives the same text: alone, in a batch, beside a stream and short of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hybridgen import LLM, KVConfig, SchedulerConfig, _core
from trained import CPU, assert_offloaded, new_tokens, prompts_of

Trained = Callable[[str], LLM]

PROMPTS = prompts_of(150, 60, 120, 90)
COUNT = 10


def small_device(base: LLM, rows: int) -> Any:
    """Return an engine whose device holds about ``rows`` tokens, with automatic windows."""
    config = base.model_config
    row = 2 * config["num_layers"] * config["num_kv_heads"] * config["head_dim"] * 4
    options = _core.EngineOptions(k=2, device_bytes=rows * row, threads=1, device_threads=1)
    return _core.Engine(base.model.weights, options)


def run(engine: Any, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Return tokens and log-probabilities of prompts; whatever else the engine does is left out."""
    ids = [engine.add(p, _core.SamplingOptions(max_tokens=COUNT)) for p in prompts]
    tokens: dict[int, list[tuple[int, float]]] = {i: [] for i in ids}
    while any(len(tokens[i]) < COUNT for i in ids):
        for event in engine.step():
            if event.request_id in tokens:
                tokens[event.request_id].append((event.token_id, event.logprob))
    offloaded = [engine.request_stats(i)["offloaded_tokens"] for i in ids]
    assert max(offloaded) > 0
    return list(tokens.values())


def test_an_automatic_window_does_not_depend_on_what_others_hold(trained: Trained) -> None:
    base = trained("tiny-llama")
    alone = [run(small_device(base, 110), [prompt])[0] for prompt in PROMPTS[:1]]
    engine = small_device(base, 110)
    assert run(engine, PROMPTS)[:1] == alone
    # Half of the device is taken, and stays taken for a while: the request waits.
    engine.add(PROMPTS[1][:20], _core.SamplingOptions(max_tokens=40))
    engine.step()
    memory = engine.memory()["device"]
    assert 0.4 * memory["capacity"] < memory["used"]
    assert run(engine, PROMPTS[:1]) == alone
    # The control: a device of another size gives another window, which shows.
    assert run(small_device(base, 75), PROMPTS[:1]) != alone


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv": KVConfig(device_tokens=9)},
        {"kv": KVConfig(device_tokens=9), "scheduler": SchedulerConfig(k=6)},
        {"method": "keyformer", "method_config": {"kv_cache": 14}},
        {"method": "hgca", "method_config": {"block": 4, "blocks": 3}},
    ],
    ids=["default", "few-resident", "few-chosen", "keyformer", "hgca"],
)
def test_a_call_repeats_alone_in_a_batch_and_beside_a_stream(
    trained: Trained, options: dict[str, Any]
) -> None:
    with LLM(trained("tiny-llama"), cpu=CPU, **options) as llm:
        alone = [llm.generate_ids([prompt], new_tokens(COUNT))[0] for prompt in PROMPTS]
        if "kv" in options:
            assert_offloaded(llm)
        assert llm.generate_ids(PROMPTS, new_tokens(COUNT)) == alone
        assert llm.generate_ids(PROMPTS[::-1], new_tokens(COUNT)) == alone[::-1]
        stream = llm.stream(PROMPTS[0], new_tokens(COUNT))
        first = next(stream).token_id
        assert llm.generate_ids(PROMPTS, new_tokens(COUNT)) == alone
        assert [first, *(chunk.token_id for chunk in stream)] == alone[0]


def test_sampling_without_a_seed_still_differs_and_with_one_repeats(trained: Trained) -> None:
    with LLM(trained("tiny-llama"), cpu=CPU) as llm:
        free = new_tokens(COUNT).replace(temperature=2.0)
        texts = llm.generate_ids([PROMPTS[0]] * 3, free) + llm.generate_ids([PROMPTS[0]], free)
        several = llm.generate(PROMPTS[0], free.replace(n=3))[0].outputs
        texts += [list(output.token_ids) for output in several]
        assert len({tuple(ids) for ids in texts}) == 7
        seeded = free.replace(seed=5)
        assert llm.generate_ids([PROMPTS[0]], seeded) == llm.generate_ids([PROMPTS[0]], seeded)
