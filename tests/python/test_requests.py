# SPDX-License-Identifier: Apache-2.0
"""add_request and step, with vLLM's names and meaning, beside all other calls of one engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridgen import LLM, ConfigError, CpuConfig, RequestOutput, SamplingParams
from tokenizer_kinds import FailingTokenizer

Checkpoint = Callable[..., Path]

CPU = CpuConfig(threads=1, device_threads=1)
PROMPTS = [[5, 60, 7, 99, 4, 33, 250, 12, 77, 3, 18, 200], [9, 9, 31], [100 + i for i in range(40)]]
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    with LLM(checkpoint("llama"), method="full", cpu=CPU) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.has_unfinished_requests()
    assert llm.step() == []
    assert [tier["used"] for tier in llm.memory.values()] == [0, 0]


def finish(llm: LLM) -> dict[Any, RequestOutput]:
    """Step until every request has ended; return the last output of each."""
    last = {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            assert output.request_id not in last, "the last output of a request comes once"
            if output.finished:
                last[output.request_id] = output
    return last


def test_steps_come_to_what_generate_returns(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, GREEDY)
    for name, prompt in zip("abc", PROMPTS, strict=True):
        llm.add_request(name, prompt, GREEDY)
    assert llm.get_num_unfinished_requests() == 3
    found = finish(llm)
    assert set(found) == {"a", "b", "c"}
    for name, whole in zip("abc", expected, strict=True):
        assert found[name].outputs == whole.outputs
        assert found[name].prompt_token_ids == whole.prompt_token_ids
        assert found[name].metrics.generated_tokens == 8
        assert found[name].error is None


def test_each_step_gives_the_whole_of_what_there_is_so_far(llm: LLM) -> None:
    whole = llm.generate("The quick", GREEDY)[0]
    llm.add_request("q", "The quick", GREEDY)
    seen = []
    while llm.has_unfinished_requests():
        seen += llm.step()
    assert [output.token_ids for output in seen] == [whole.token_ids[: i + 1] for i in range(8)]
    assert [output.finished for output in seen] == [False] * 7 + [True]
    assert [output.finish_reason for output in seen] == [None] * 7 + ["length"]
    assert seen[-1].text == whole.text
    assert all(whole.text.startswith(output.text) for output in seen)
    assert seen[0].prompt == "The quick"


def test_other_calls_on_the_engine_bring_their_news_to_the_next_step(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, GREEDY)
    llm.add_request(1, PROMPTS[0], GREEDY)
    assert llm.step()[0].token_ids == expected[0].token_ids[:1]
    assert llm.generate(PROMPTS[1], GREEDY)[0].outputs == expected[1].outputs
    assert [chunk.token_id for chunk in llm.stream(PROMPTS[2], GREEDY)] == expected[2].token_ids
    (output,) = llm.step()
    assert (output.request_id, output.finished) == (1, True)
    assert output.outputs == expected[0].outputs


def test_a_stream_goes_on_while_requests_are_stepped(llm: LLM) -> None:
    expected = llm.generate_ids(PROMPTS, GREEDY)
    stream = llm.stream(PROMPTS[0], GREEDY)
    tokens = [next(stream).token_id]
    llm.add_request("x", PROMPTS[1], GREEDY)
    assert finish(llm)["x"].token_ids == expected[1]
    assert [*tokens, *(chunk.token_id for chunk in stream)] == expected[0]


def test_requests_may_come_at_any_step(llm: LLM) -> None:
    expected = llm.generate_ids(PROMPTS, GREEDY)
    llm.add_request("early", PROMPTS[0], GREEDY)
    for _ in range(4):
        llm.step()
    llm.add_request("late", PROMPTS[2], GREEDY)
    found = finish(llm)
    assert (found["early"].token_ids, found["late"].token_ids) == (expected[0], expected[2])


def test_a_request_may_have_several_texts(llm: LLM) -> None:
    params = GREEDY.replace(n=3, temperature=1.5, seed=3)
    whole = llm.generate(PROMPTS[0], params)[0]
    llm.add_request("n", PROMPTS[0], params)
    outputs = []
    while llm.has_unfinished_requests():
        outputs += llm.step()
    assert [len(output.outputs) for output in outputs] == [3] * len(outputs)
    assert outputs[-1].outputs == whole.outputs
    assert [output.finished for output in outputs].index(True) == len(outputs) - 1


def test_what_a_step_returned_does_not_change_afterwards(llm: LLM) -> None:
    llm.add_request("a", PROMPTS[0], GREEDY.replace(logprobs=1))
    first = llm.step()[0]
    before = json.dumps(first.to_dict(), default=str)
    assert len(first.token_ids) == len(first.outputs[0].logprobs or []) == 1
    finish(llm)
    assert json.dumps(first.to_dict(), default=str) == before


def test_aborted_requests_return_nothing_more(llm: LLM) -> None:
    expected = llm.generate_ids([PROMPTS[1]], GREEDY)[0]
    for name in ("a", "b", "c"):
        llm.add_request(name, PROMPTS[1], GREEDY)
    llm.step()
    llm.abort_request(["a", "c", "nobody"])
    assert llm.get_num_unfinished_requests() == 1
    found = finish(llm)
    assert list(found) == ["b"]
    assert found["b"].token_ids == expected
    llm.add_request("a", PROMPTS[1], GREEDY)  # its name is free again
    llm.abort_request("a")


def test_a_request_that_is_refused_is_not_queued(llm: LLM) -> None:
    llm.add_request("a", PROMPTS[0], GREEDY)
    for arguments, message in (
        (("a", PROMPTS[1]), "request_id is 'a', which is the name of a request that has not ended"),
        ((None, PROMPTS[1]), r"\[add_request\] request_id is None; allowed: a string or an int"),
        (("b", []), "got 0 prompts|prompt is empty"),
        (("b", [[1], [2]]), "got 2 prompts; allowed: 1"),
        (("b", [9] * 300), "the prompt has 300 tokens"),
        (("b", PROMPTS[1], 5), r"\[add_request\] sampling_params is 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            llm.add_request(*arguments)
        assert llm.get_num_unfinished_requests() == 1
    with pytest.raises(ConfigError, match=r"\[abort_request\] request_ids is None"):
        llm.abort_request(None)  # type: ignore[arg-type]
    finish(llm)


def test_a_request_that_fails_ends_with_its_error_and_the_others_go_on(
    checkpoint: Checkpoint, llm: LLM
) -> None:
    expected = llm.generate_ids(PROMPTS, GREEDY)
    bad = next(i for i in expected[0] if i not in expected[1])
    with LLM(llm, tokenizer=FailingTokenizer(bad)) as engine:
        engine.add_request("good", PROMPTS[1], GREEDY)
        engine.add_request("bad", PROMPTS[0], GREEDY)
        found = finish(engine)
        assert (found["bad"].finished, found["bad"].finish_reason) == (True, "error")
        assert "no such letter" in str(found["bad"].error)
        assert "no such letter" in json.dumps(found["bad"].to_dict())
        assert found["good"].token_ids == expected[1]
        assert found["good"].error is None


def test_an_interrupt_in_a_step_loses_no_news(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate_ids(PROMPTS[:2], GREEDY)
    llm.add_request(0, PROMPTS[0], GREEDY)
    llm.add_request(1, PROMPTS[1], GREEDY)
    step, left = llm._loop.step, [3]

    def interrupted() -> None:
        step()
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    found = {}
    with monkeypatch.context() as patch:
        patch.setattr(llm._loop, "step", interrupted)
        for _ in range(2):
            llm.step()
        with pytest.raises(KeyboardInterrupt):
            llm.step()
    lengths = [sum(len(output.token_ids) for output in llm.step())]
    assert lengths[0] > 0  # at once: the step whose return was interrupted
    found = finish(llm)
    assert [found[i].token_ids for i in range(2)] == expected


def test_closing_beside_open_requests_says_so(checkpoint: Checkpoint, llm: LLM) -> None:
    with LLM(llm) as engine:
        engine.add_request("a", PROMPTS[0], GREEDY)
        engine.step()
    for use in (engine.step, engine.has_unfinished_requests):
        with pytest.raises(ConfigError, match="the engine is closed"):
            use()


def test_a_closed_engine_is_not_stepped_for_ever(checkpoint: Checkpoint) -> None:
    engine = LLM(checkpoint("llama"), method="full", cpu=CPU)
    engine.close()
    for call in (engine.step, engine.has_unfinished_requests, engine.get_num_unfinished_requests):
        with pytest.raises(ConfigError, match="the engine is closed"):
            call()
