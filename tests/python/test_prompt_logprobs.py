# SPDX-License-Identifier: Apache-2.0
"""prompt_logprobs: what the model gives each prompt token, as vLLM reports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridgen import LLM, ConfigError, CpuConfig, KVConfig, SamplingParams

Checkpoint = Callable[..., Path]
Reference = Callable[[str], Any]

CPU = CpuConfig(threads=1, device_threads=1)
PROMPTS = [[5, 60, 7, 99, 4, 33, 250, 12, 77, 3, 18, 200], [9], [100 + i for i in range(90)]]
PARAMS = SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=2)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    with LLM(checkpoint("llama"), method="full", cpu=CPU) as engine:
        yield engine


@torch.no_grad()
def table_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] of what follows each token."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


# The last chunk of 90 tokens ends in the middle of the rows whose logits are there at a time.
@pytest.mark.parametrize("chunk", [1024, 40, 7])
@pytest.mark.parametrize("decoded", [0, 1, 5, 1000])
def test_they_are_those_of_transformers(
    llm: LLM, reference: Reference, chunk: int, decoded: int
) -> None:
    with LLM(llm, method="full", max_num_batched_tokens=chunk, cpu=CPU) as engine:
        outputs = engine.generate(PROMPTS, PARAMS, decode_prompt_tokens=decoded)
    valid = len(llm.tokenizer)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        found = output.prompt_logprobs
        assert found is not None
        assert len(found) == len(prompt)
        assert found[0] is None
        table = table_of(reference("llama"), prompt)
        for token, row, entry in zip(prompt[1:], table, found[1:], strict=False):
            assert entry is not None
            best = row[:valid].topk(2).indices.tolist()
            assert set(entry) == {token, *best}
            for other, logprob in entry.items():
                assert logprob == pytest.approx(float(row[other]), abs=1e-3)


def test_they_add_up_to_the_score_and_change_no_token(llm: LLM) -> None:
    free = llm.generate_ids(PROMPTS, PARAMS.replace(prompt_logprobs=None))
    outputs = llm.generate(PROMPTS, PARAMS.replace(prompt_logprobs=0))
    assert [output.token_ids for output in outputs] == free
    prompt = PROMPTS[0]
    found = outputs[0].prompt_logprobs
    assert found is not None
    assert [len(entry) for entry in found if entry] == [1] * 11
    total = sum(entry[token] for token, entry in zip(prompt, found, strict=True) if entry)
    assert total == pytest.approx(llm.score([(prompt[:1], prompt[1:])])[0][0], abs=1e-3)


def test_with_few_tokens_on_the_device_they_are_still_those_of_full_attention(
    llm: LLM, checkpoint: Checkpoint
) -> None:
    expected = llm.generate(PROMPTS[2], PARAMS)[0].prompt_logprobs
    kv = KVConfig(device_tokens=4)  # the prefill is exact whatever the window
    with LLM(llm, kv=kv, max_num_batched_tokens=16, cpu=CPU) as engine:
        found = engine.generate(PROMPTS[2], PARAMS)[0].prompt_logprobs
    assert expected is not None
    assert found is not None
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_they_come_only_when_asked_for_and_with_the_first_token(llm: LLM) -> None:
    assert llm.generate(PROMPTS[0])[0].prompt_logprobs is None
    llm.add_request("a", PROMPTS[0], PARAMS)
    outputs = []
    while llm.has_unfinished_requests():
        outputs += llm.step()
    assert [len(output.prompt_logprobs or []) for output in outputs] == [12] * 3
    several = llm.generate(PROMPTS[0], PARAMS.replace(n=2, temperature=1.0, seed=1))[0]
    assert several.prompt_logprobs == outputs[0].prompt_logprobs


def test_a_number_that_is_not_allowed_is_named() -> None:
    for value in (-1, 1.5, True):
        allowed = "None or an integer >= 0"
        with pytest.raises(ConfigError, match=rf"prompt_logprobs is {value}; allowed: {allowed}"):
            SamplingParams(prompt_logprobs=value)  # type: ignore[arg-type]
