# SPDX-License-Identifier: Apache-2.0
"""Penalties and biases as vLLM defines them, worked out anew from the model's own logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridgen import LLM, ConfigError, CpuConfig, SamplingParams

Checkpoint = Callable[..., Path]
Reference = Callable[[str], Any]

PROMPT = [5, 60, 7, 99, 4, 33, 250, 12, 77, 3, 18, 200]
COUNT = 24
GREEDY = SamplingParams(max_tokens=COUNT, ignore_eos=True)
NAMES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    cpu = CpuConfig(threads=1, device_threads=1)
    with LLM(checkpoint("llama"), method="full", cpu=cpu) as engine:
        yield engine


def adjusted(logits: torch.Tensor, generated: list[int], params: SamplingParams) -> torch.Tensor:
    """Return logits as vLLM changes them: bias, repetition, frequency, presence."""
    logits = logits.clone()
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    seen = torch.tensor(sorted({*PROMPT, *generated}))
    factor = params.repetition_penalty
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
    for token, count in Counter(generated).items():
        logits[token] -= params.frequency_penalty * count
        logits[token] -= params.presence_penalty
    return logits


@torch.no_grad()
def expected(model: Any, params: SamplingParams, valid: int) -> list[int]:
    generated: list[int] = []
    for _ in range(COUNT):
        logits = model(torch.tensor([PROMPT + generated])).logits[0, -1, :valid]
        generated.append(int(adjusted(logits, generated, params).argmax()))
    return generated


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 2.0},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 2.0},
        {"frequency_penalty": -0.5},
        {"logit_bias": {7: 3.0, 8: -100.0}},
        {
            "presence_penalty": 0.7,
            "frequency_penalty": 0.9,
            "repetition_penalty": 1.3,
            "logit_bias": {5: 2.5, 60: -4.0, 250: 1.0},
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_greedy_tokens_are_those_of_the_definition(
    llm: LLM, reference: Reference, options: dict[str, Any]
) -> None:
    params = GREEDY.replace(**options)
    wanted = expected(reference("llama"), params, len(llm.tokenizer))
    output = llm.generate(PROMPT, params.replace(logprobs=0))[0]
    assert output.token_ids == wanted
    # The log-probability is of the model's own distribution still.
    free = llm.score([(PROMPT, wanted)])[0][0]
    assert output.outputs[0].cumulative_logprob == pytest.approx(free, abs=1e-3)
    # The control: they do change something.
    assert wanted != llm.generate_ids([PROMPT], GREEDY)[0]


def test_a_token_is_forbidden_or_forced_by_a_bias(llm: LLM) -> None:
    free = llm.generate_ids([PROMPT], GREEDY)[0]
    without = llm.generate_ids([PROMPT], GREEDY.replace(logit_bias=dict.fromkeys(free, -100)))[0]
    assert not set(free) & set(without)
    assert llm.generate_ids([PROMPT], GREEDY.replace(logit_bias={9: 100}))[0] == [9] * COUNT


def test_requests_of_one_batch_keep_their_own_penalties(llm: LLM) -> None:
    params = [GREEDY.replace(presence_penalty=p, logit_bias={7: p}) for p in (-2.0, 0.0, 2.0)]
    together = llm.generate_ids([PROMPT] * 3, params)
    assert together == [llm.generate_ids([PROMPT], own)[0] for own in params]
    assert len({tuple(ids) for ids in together}) > 1


def test_what_changes_nothing_changes_nothing(llm: LLM) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    assert llm.generate_ids([PROMPT], GREEDY.replace(**neutral)) == llm.generate_ids(
        [PROMPT], GREEDY
    )
    assert SamplingParams(logit_bias=None).logit_bias is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence_penalty": 2.1}, r"presence_penalty is 2.1; allowed: a number in \[-2, 2\]"),
        ({"frequency_penalty": -3}, r"frequency_penalty is -3; allowed: a number in \[-2, 2\]"),
        ({"frequency_penalty": None}, "frequency_penalty is None"),
        ({"logit_bias": [1.0]}, "logit_bias is .*allowed: a dict from token ids to numbers"),
        ({"logit_bias": {"a": 1.0}}, "a token id of logit_bias is 'a'"),
        ({"logit_bias": {-1: 1.0}}, "a token id of logit_bias is -1"),
        ({"logit_bias": {5: 101}}, r"logit_bias of token 5 is 101; .*\[-100, 100\]"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias of token 5 is nan"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output is 1; allowed: True"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[SamplingParams\] {message}"):
        SamplingParams(**options)


def test_a_bias_of_a_token_that_the_model_does_not_have_is_refused(llm: LLM) -> None:
    for call in (llm.generate, llm.generate_ids, llm.stream):
        with pytest.raises(ConfigError, match=r"logit_bias names the token id 352; .*0 to 351"):
            call([PROMPT], GREEDY.replace(logit_bias={352: 1.0}))  # type: ignore[operator]


def test_a_text_may_end_with_the_stop_string_that_ended_it(llm: LLM) -> None:
    free = llm.generate("The quick", GREEDY)[0]
    stop = free.text[2:4]
    end = free.text.index(stop) + len(stop)
    params = GREEDY.replace(stop=[stop, "\x7f"], include_stop_str_in_output=True)
    cut = llm.generate("The quick", params.replace(include_stop_str_in_output=False))[0]
    output = llm.generate("The quick", params)[0]
    assert output.text == free.text[:end] == cut.text + stop
    assert output.token_ids == cut.token_ids
    assert output.outputs[0].stop_reason == stop
    assert "".join(chunk.text for chunk in llm.stream("The quick", params)) == output.text


def test_parameters_with_a_bias_can_be_keys() -> None:
    biased = {GREEDY.replace(logit_bias={7: bias}): bias for bias in (1.0, 2.0)}
    assert [biased[GREEDY.replace(logit_bias={7: bias})] for bias in (1, 2)] == [1.0, 2.0]


def test_numpys_minus_one_restricts_no_more_than_pythons() -> None:
    assert GREEDY.replace(top_k=np.int64(-1)) == GREEDY.replace(top_k=-1) == GREEDY


def test_a_text_may_end_with_the_token_that_ended_it_as_in_vllm(llm: LLM) -> None:
    free = llm.generate("The quick", GREEDY)[0]
    number = next(i for i, t in enumerate(free.token_ids) if t not in free.token_ids[:i] and i > 1)
    cut = GREEDY.replace(stop_token_ids=[free.token_ids[number]])
    kept = cut.replace(include_stop_str_in_output=True)
    without, whole = (llm.generate("The quick", params)[0] for params in (cut, kept))
    assert whole.token_ids == without.token_ids == free.token_ids[: number + 1]
    assert whole.outputs[0].stop_reason == without.outputs[0].stop_reason == free.token_ids[number]
    assert whole.text == llm.generate("The quick", GREEDY.replace(max_tokens=number + 1))[0].text
    assert without.text == llm.generate("The quick", GREEDY.replace(max_tokens=number))[0].text
    assert whole.text != without.text
    assert "".join(chunk.text for chunk in llm.stream("The quick", kept)) == whole.text
