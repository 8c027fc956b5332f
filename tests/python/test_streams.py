# SPDX-License-Identifier: Apache-2.0
"""Streams of one prompt, of several at once, and of chats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridgen import (
    LLM,
    ConfigError,
    CpuConfig,
    GenerationError,
    KVConfig,
    SamplingParams,
    SchedulerConfig,
    StreamChunk,
)
from tokenizer_kinds import FailingTokenizer

Checkpoint = Callable[..., Path]

EXACT: dict[str, Any] = {
    "kv": KVConfig(device_tokens=4),
    "query": "exact",
    "scheduler": SchedulerConfig(k="all"),
    "cpu": CpuConfig(threads=1, device_threads=1),
}
PROMPTS = [[5, 60, 7, 99, 4, 33, 250, 12, 77, 3, 18, 200], [9, 9, 31], [100 + i for i in range(40)]]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    with LLM(checkpoint("llama"), **EXACT) as engine:
        yield engine


def is_idle(llm: LLM) -> bool:
    return [tier["used"] for tier in llm.memory.values()] == [0, 0]


def test_memory_says_on_which_nodes_the_pages_of_running_requests_lie(llm: LLM) -> None:
    for _ in llm.stream(PROMPTS[2], GREEDY):
        dram = llm.memory["dram"]
        assert 0 < dram["bytes"]
        assert sum(dram["nodes"].values()) == dram["bytes"]
        assert 0 <= dram["huge_page_share"] <= 1
        break
    assert llm.memory["dram"]["bytes"] == 0


def of_text(chunks: list[StreamChunk], prompt: int, output: int = 0) -> list[StreamChunk]:
    return [c for c in chunks if (c.prompt_index, c.output_index) == (prompt, output)]


def test_a_stream_gives_the_same_tokens_and_text(llm: LLM) -> None:
    whole = llm.generate("The quick", GREEDY)[0]
    chunks = list(llm.stream("The quick", GREEDY))
    assert [c.token_id for c in chunks] == whole.token_ids
    assert "".join(c.text for c in chunks) == whole.text
    assert [c.index for c in chunks] == list(range(12))
    assert [c.finish_reason for c in chunks] == [None] * 11 + ["length"]
    assert {(c.prompt_index, c.output_index) for c in chunks} == {(0, 0)}
    assert chunks[-1].peak_memory > 0
    assert chunks[-1].generation_tps > 0
    stopped = "".join(c.text for c in llm.stream("The quick", GREEDY.replace(stop=whole.text[2:4])))
    assert stopped == whole.text[: whole.text.index(whole.text[2:4])]


def test_leaving_a_stream_ends_its_requests(llm: LLM) -> None:
    for prompts in ("The quick", PROMPTS):
        for chunk in llm.stream(prompts, GREEDY):
            if chunk.index == 2:
                break
        assert is_idle(llm)


def test_other_calls_may_run_while_a_stream_pauses(llm: LLM) -> None:
    whole = llm.generate("The quick", GREEDY)[0]
    stream = llm.stream("The quick", GREEDY)
    tokens = [next(stream).token_id for _ in range(3)]
    assert llm.generate("The quick", GREEDY)[0].token_ids == whole.token_ids
    tokens += [chunk.token_id for chunk in stream]
    assert tokens == whole.token_ids


def test_several_prompts_stream_at_once_and_chunks_say_of_which(llm: LLM) -> None:
    params = [GREEDY.replace(max_tokens=count) for count in (3, 12, 5)]
    expected = llm.generate(PROMPTS, params)
    chunks = list(llm.stream(PROMPTS, params))
    for index, whole in enumerate(expected):
        own = of_text(chunks, index)
        assert [c.token_id for c in own] == whole.token_ids
        assert "".join(c.text for c in own) == whole.text
        assert [c.index for c in own] == list(range(len(whole.token_ids)))
        assert [c.finish_reason for c in own][-1] == "length"
    assert llm.stats.decode_steps == 11  # beside each other, not one after another
    order = [c.prompt_index for c in chunks]
    assert order != sorted(order)


def test_several_texts_of_a_prompt_stream_at_once(llm: LLM) -> None:
    params = GREEDY.replace(n=2, temperature=1.5, seed=3)
    whole = llm.generate(PROMPTS[0], params)[0]
    chunks = list(llm.stream(PROMPTS[0], params))
    for output in whole.outputs:
        assert [c.token_id for c in of_text(chunks, 0, output.index)] == output.token_ids
    assert llm.generate(PROMPTS[0], params)[0].outputs == whole.outputs


def test_no_prompts_stream_nothing(llm: LLM) -> None:
    assert list(llm.stream([], GREEDY)) == []


def test_a_prompt_that_cannot_run_is_refused_before_the_first_chunk(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"^\[stream\] a token id is -1"):
        llm.stream([PROMPTS[0], [-1]], GREEDY)
    stream = llm.stream([PROMPTS[0], [9] * 300], GREEDY)
    with pytest.raises(ConfigError, match=r"prompt 1 .*the prompt has 300 tokens"):
        next(stream)
    assert is_idle(llm)


def test_one_of_several_streams_that_fails_leaves_the_others_theirs(llm: LLM) -> None:
    expected = llm.generate_ids(PROMPTS[:2], GREEDY)
    bad = next(i for i in expected[0] if i not in expected[1])
    with LLM(llm, tokenizer=FailingTokenizer(bad), **EXACT) as engine:
        chunks = []
        with pytest.raises(GenerationError, match="1 of 2 prompts failed") as caught:
            chunks.extend(engine.stream(PROMPTS[:2], GREEDY))  # keeps those before it raises
        assert sorted(caught.value.errors) == [0]
        assert [o.finish_reason for o in caught.value.outputs] == ["error", "length"]
        assert caught.value.outputs[1].token_ids == expected[1]


def test_a_chat_streams_as_it_answers(
    checkpoint: Checkpoint, copy_of: Callable[[Path], Path], llm: LLM
) -> None:
    folder = copy_of(checkpoint("llama"))
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    one = [{"role": "user", "content": "fox"}]
    other = [{"role": "user", "content": "dog"}]
    with LLM(folder, **EXACT) as engine:
        answer = engine.chat(one, GREEDY)[0]
        chunks = list(engine.chat(one, GREEDY, stream=True))
        assert [c.token_id for c in chunks] == answer.token_ids
        assert "".join(c.text for c in chunks) == answer.text
        both = list(engine.chat([one, other], GREEDY, stream=True))
        assert [c.token_id for c in of_text(both, 0)] == answer.token_ids
        assert [c.token_id for c in of_text(both, 1)] == engine.chat(other, GREEDY)[0].token_ids
        with pytest.raises(ConfigError, match=r"\[chat\] stream is 1; allowed: True, False"):
            engine.chat(one, GREEDY, stream=1)  # type: ignore[call-overload]
        with pytest.raises(ConfigError, match="messages is empty"):
            engine.chat([], stream=True)
