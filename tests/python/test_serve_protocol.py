# SPDX-License-Identifier: Apache-2.0
"""The official OpenAI client, unchanged, gets what the same call in Python gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from hybridgen import LLM, SamplingParams
from serving import MODEL, Served, engine_of, served

Trained = Callable[[str], LLM]

PROMPT = "w12 k17 v3 w5 w90 k2 v77 w31 Q k17"
USER: Any = {"role": "user", "content": "w12 k17 v3 w5 w90"}
SAMPLED = {"temperature": 1.0, "seed": 7}


@pytest.fixture(scope="module")
def llm(trained: Trained) -> Iterator[LLM]:
    with engine_of(trained("tiny-llama")) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Served]:
    with served(llm) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.openai() as found:
        yield found


def params(**options: Any) -> SamplingParams:
    return SamplingParams(**(SAMPLED | {"max_tokens": 12} | options))


@pytest.mark.parametrize(
    "prompt",
    [PROMPT, [12, 40, 3], [PROMPT, "w1 w2"], [[12, 40, 3], [5, 6]]],
    ids=["text", "ids", "texts", "lists of ids"],
)
def test_a_completion_is_what_generate_gives_for_the_same_seed(
    client: openai.OpenAI, llm: LLM, prompt: Any
) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=12, n=2, temperature=1.0, seed=7
    )
    outputs = llm.generate(prompt, params(n=2))
    expected = [text for output in outputs for text in output.outputs]
    assert [choice.text for choice in answer.choices] == [text.text for text in expected]
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert [c.finish_reason for c in answer.choices] == [text.finish_reason for text in expected]
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(o.prompt_token_ids) for o in outputs)
    assert answer.usage.completion_tokens == sum(len(text.token_ids) for text in expected)


def test_a_stream_of_completions_says_the_same_in_pieces(client: openai.OpenAI, llm: LLM) -> None:
    stream = client.completions.create(
        model=MODEL,
        prompt=[PROMPT, "w1 w2"],
        max_tokens=40,
        n=2,
        temperature=1.0,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts: dict[int, str] = dict.fromkeys(range(4), "")
    reasons: dict[int, str | None] = {}
    chunks = list(stream)
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        assert choice.index not in reasons  # nothing comes behind the end
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:
            reasons[choice.index] = choice.finish_reason
    outputs = llm.generate([PROMPT, "w1 w2"], params(n=2, max_tokens=40))
    expected = [text for output in outputs for text in output.outputs]
    assert list(texts.values()) == [text.text for text in expected]
    assert [reasons[i] for i in range(4)] == [text.finish_reason for text in expected]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == sum(len(t.token_ids) for t in expected)


def test_a_chat_is_what_chat_gives_for_the_same_seed(client: openai.OpenAI, llm: LLM) -> None:
    messages: Any = [{"role": "system", "content": "w1"}, USER]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=12, n=2, temperature=1.0, seed=7
    )
    (output,) = llm.chat(messages, params(n=2))
    assert [choice.message.content for choice in answer.choices] == [
        text.text for text in output.outputs
    ]
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(output.prompt_token_ids)


def test_content_may_come_in_parts(client: openai.OpenAI, llm: LLM) -> None:
    parts: Any = [{"type": "text", "text": "w12 k17"}, {"type": "text", "text": " v3"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=4, temperature=0
    )
    (output,) = llm.chat([{"role": "user", "content": "w12 k17 v3"}], SamplingParams(max_tokens=4))
    assert answer.choices[0].message.content == output.text


def test_a_stream_of_a_chat_says_the_same_in_pieces(client: openai.OpenAI, llm: LLM) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=30, temperature=1.0, seed=7, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[0].delta.role == "assistant"
    assert (
        "".join(chunk.delta.content or "" for chunk in chunks)
        == llm.chat([USER], params(max_tokens=30))[0].text
    )
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"


def test_a_chat_without_a_limit_goes_on_to_the_end_of_the_context(trained: Trained) -> None:
    with (
        engine_of(trained("tiny-llama"), max_model_len=24) as engine,
        served(engine) as short,
        short.openai() as client,
    ):
        answer = client.chat.completions.create(
            model=MODEL, messages=[USER], extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == 24


# -------------------------------------------------------------------------------- log-probabilities


def test_log_probabilities_of_a_completion_are_the_engines(client: openai.OpenAI, llm: LLM) -> None:
    fields: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "logprobs": 3} | SAMPLED
    found = client.completions.create(**fields).choices[0]
    assert found.logprobs is not None
    expected = llm.generate(PROMPT, params(max_tokens=8, logprobs=3))[0].outputs[0]
    assert expected.logprobs is not None
    chosen = [row[i] for row, i in zip(expected.logprobs, expected.token_ids, strict=True)]
    assert found.logprobs.token_logprobs == chosen
    names = [llm.tokenizer.decode([i]) for i in expected.token_ids]
    assert found.logprobs.tokens == names
    assert [sorted(row.values()) for row in found.logprobs.top_logprobs or []] == [
        sorted(row.values()) for row in expected.logprobs
    ]
    assert found.logprobs.text_offset == sorted(found.logprobs.text_offset or [])

    streamed = list(client.completions.create(**fields, stream=True))
    rows = [chunk.choices[0].logprobs for chunk in streamed]
    assert [value for row in rows for value in row.token_logprobs] == chosen
    assert [value for row in rows for value in row.text_offset] == found.logprobs.text_offset


def test_log_probabilities_of_a_chat_are_the_engines(client: openai.OpenAI, llm: LLM) -> None:
    fields: Any = {"model": MODEL, "messages": [USER], "max_tokens": 8} | SAMPLED
    fields |= {"logprobs": True, "top_logprobs": 2}
    logprobs = client.chat.completions.create(**fields).choices[0].logprobs
    assert logprobs is not None
    rows = logprobs.content
    assert rows is not None
    expected = llm.chat([USER], params(max_tokens=8, logprobs=2))[0].outputs[0]
    assert expected.logprobs is not None
    for row, token_id, own in zip(rows, expected.token_ids, expected.logprobs, strict=True):
        assert row.token == llm.tokenizer.decode([token_id])
        assert bytes(row.bytes or []).decode() == row.token
        assert row.logprob == own[token_id]
        likeliest = sorted(own.values(), reverse=True)[:2]
        assert [top.logprob for top in row.top_logprobs] == likeliest
    streamed = client.chat.completions.create(**fields, stream=True)
    found = [row for chunk in streamed for row in chunk.choices[0].logprobs.content]
    assert found == rows


def test_echo_gives_the_prompt_and_scores_it(client: openai.OpenAI, llm: LLM) -> None:
    for prompt in (PROMPT, [12, 40, 3]):
        for most in (0, 2):
            answer = client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=most, echo=True, logprobs=1, temperature=0
            )
            choice = answer.choices[0]
            options = SamplingParams(max_tokens=max(most, 1), logprobs=1, prompt_logprobs=1)
            output = llm.generate(prompt, options)[0]
            ids = output.prompt_token_ids
            text = prompt if isinstance(prompt, str) else llm.tokenizer.decode(ids)
            assert choice.text == text + (output.text if most else "")
            assert choice.logprobs is not None
            values = choice.logprobs.token_logprobs
            assert values is not None
            assert len(values) == len(ids) + most
            assert values[0] is None
            assert output.prompt_logprobs is not None
            assert values[1 : len(ids)] == [
                row[i] for row, i in zip(output.prompt_logprobs[1:], ids[1:], strict=True) if row
            ]
            assert answer.usage is not None
            assert answer.usage.completion_tokens == most


def test_echo_may_be_streamed(client: openai.OpenAI, llm: LLM) -> None:
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=5, temperature=0, echo=True, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == PROMPT + llm.generate(PROMPT, SamplingParams(max_tokens=5))[0].text


# ---------------------------------------------------------------------------------- other options


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"stop": "v3"}, {"stop": "v3"}),
        ({"stop": ["v9", "v3 v3"]}, {"stop": ["v9", "v3 v3"]}),
        ({"logit_bias": {"0": -100, "7": 3.5}}, {"logit_bias": {0: -100, 7: 3.5}}),
        ({"top_p": 0.5, "presence_penalty": 1.5}, {"top_p": 0.5, "presence_penalty": 1.5}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
    ],
)
def test_options_mean_what_they_mean_in_python(
    client: openai.OpenAI, llm: LLM, fields: Any, options: Any
) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, **SAMPLED, **fields
    )
    (expected,) = llm.generate(PROMPT, params(**options))[0].outputs
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason


def test_vllms_options_come_as_extra_fields(client: openai.OpenAI, llm: LLM) -> None:
    options: Any = {
        "top_k": 3,
        "min_p": 0.01,
        "min_tokens": 2,
        "repetition_penalty": 1.2,
        "stop_token_ids": [40],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, extra_body=options, **SAMPLED
    )
    assert answer.choices[0].text == llm.generate(PROMPT, params(**options))[0].text


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == MODEL
    assert client.models.retrieve(MODEL) == card
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        client.models.retrieve("other")


def test_tokenize_gives_the_ids_that_a_prompt_has(server: Served, llm: LLM) -> None:
    with server.http() as http:
        found = http.post("/tokenize", json={"prompt": PROMPT}).json()
        ids = llm.generate(PROMPT, SamplingParams(max_tokens=1))[0].prompt_token_ids
        assert found == {"count": len(ids), "max_model_len": 2048, "tokens": ids}
        chat = http.post("/tokenize", json={"messages": [USER]}).json()
        assert chat["tokens"] == llm.chat([USER], SamplingParams(max_tokens=1))[0].prompt_token_ids
        both = http.post("/tokenize", json={"messages": [USER], "prompt": "w1"})
        assert (both.status_code, both.json()["error"]["param"]) == (400, "prompt")


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -1.0}, "temperature", "temperature is -1.0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 100000}, "n", "asks for 100000 texts"),
        ({"max_tokens": 0}, "max_tokens", "0 without echo"),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"best_of": 3}, "best_of", "best_of is not supported"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as decimal numbers"),
        ({"logit_bias": {"99999": 1}}, None, "logit_bias names the token id 99999"),
        ({"stop": ""}, None, "stop contains ''"),
        ({"prompt": []}, "prompt", "at least one prompt"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": [99999]}, None, "a token id is 99999"),
        ({"prompt": [["x"]]}, "prompt", "none of the forms"),
        ({"extra_body": {"beam_width": 2}}, "beam_width", "beam_width is unknown"),
        ({"extra_body": {"max_tokens": "5"}}, "max_tokens", "valid integer"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"echo": True, "stream": True, "logprobs": 1}, "echo", "two of these three"),
    ],
)
def test_what_is_not_allowed_is_a_bad_request_that_names_the_field(
    client: openai.OpenAI, fields: Any, param: str | None, words: str
) -> None:
    asked: Any = {"model": MODEL, "prompt": PROMPT} | fields
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"messages": [{"role": "nobody", "content": "w1"}]}, "messages.0.role"),
        ({"messages": [USER | {"colour": "red"}]}, "messages.0.colour"),
    ],
)
def test_what_a_chat_cannot_have_is_named(client: openai.OpenAI, fields: Any, param: str) -> None:
    asked: Any = {"model": MODEL, "messages": [USER], "max_tokens": 1} | fields
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == param


def test_values_that_change_nothing_are_allowed(client: openai.OpenAI) -> None:
    neutral: Any = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    answer = client.chat.completions.create(model=MODEL, messages=[USER], max_tokens=1, **neutral)
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_before_any_answer(
    client: openai.OpenAI, server: Served, stream: bool
) -> None:
    refused = server.ended()["refused"]
    with pytest.raises(openai.BadRequestError, match="5000 tokens") as caught:
        client.completions.create(model=MODEL, prompt=[5] * 5000, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert server.ended()["refused"] == refused + 1


def test_images_are_refused_in_words(client: openai.OpenAI) -> None:
    image: Any = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="the model reads nothing but text"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": image}])


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served") as caught:
        client.completions.create(model="gpt", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
