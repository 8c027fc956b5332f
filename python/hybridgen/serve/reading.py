# SPDX-License-Identifier: Apache-2.0
"""From requests of the protocol to prompts and sampling parameters; nothing is run here."""

from __future__ import annotations

from typing import Any

from ..chat import chat_prompts
from ..llm import LLM
from ..prompts import Encoded
from ..request import Request
from ..sampling import SamplingParams
from .problems import Problem
from .protocol import ChatRequest, CompletionRequest, Message, SamplingFields, TokenizeRequest

_SAME_NAMES = (
    "n",
    "top_p",
    "top_k",
    "min_p",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "skip_special_tokens",
    "include_stop_str_in_output",
)
_USUAL_TEMPERATURE = 1.0
"""The protocol's; in Python it is 0.0."""
_USUAL_TOKENS = 16


def texts_of(body: CompletionRequest | ChatRequest) -> int:
    """Return how many texts a request asks for."""
    n = body.n or 1
    if isinstance(body, ChatRequest) or not _is_list_of_prompts(body.prompt):
        return n
    return n * len(body.prompt)


def check_combination(body: CompletionRequest | ChatRequest) -> None:
    """Raise Problem for fields that do not go together."""
    if body.stream_options is not None and not body.stream:
        raise _refusal("stream_options", "given without stream", "only with stream: true")
    if isinstance(body, ChatRequest):
        if body.top_logprobs is not None and not body.logprobs:
            raise _refusal("top_logprobs", "given without logprobs", "only with logprobs: true")
        if None not in (body.max_tokens, body.max_completion_tokens) and (
            body.max_tokens != body.max_completion_tokens
        ):
            raise _refusal(
                "max_tokens", "not max_completion_tokens", "one of both, which mean the same"
            )
        return
    if body.max_tokens == 0 and not body.echo:
        raise _refusal("max_tokens", "0 without echo", "1 and more, or 0 with echo: true")
    if body.echo and body.stream and body.logprobs is not None:
        raise _refusal("echo", "asked for with stream and logprobs", "two of these three")


def completion_params(body: CompletionRequest) -> SamplingParams:
    """Return what a completion asks of the sampler; ConfigError for what is not allowed."""
    most = _USUAL_TOKENS if body.max_tokens is None else body.max_tokens
    return SamplingParams(
        **_common(body),
        max_tokens=max(most, 1),  # with 0 the prompt is scored all the same
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )


def chat_params(body: ChatRequest) -> SamplingParams:
    """Return what a chat asks of the sampler; ConfigError for what is not allowed."""
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return SamplingParams(
        **_common(body),
        max_tokens=most,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def completion_requests(llm: LLM, body: CompletionRequest) -> list[Request]:
    """Return a request of the engine for each prompt; ConfigError for what is not allowed."""
    params = completion_params(body)
    prompts = llm.model._reader("completions").read(body.prompt)
    if not prompts:
        raise _refusal("prompt", "an empty list", "at least one prompt")
    return llm._maker.make_all("completions", prompts, params)


def chat_requests(llm: LLM, body: ChatRequest) -> list[Request]:
    """Return the request of the engine for a conversation; ConfigError for what is not allowed."""
    params = chat_params(body)
    prompts: list[Encoded] = [(None, ids) for ids in _chat_ids(llm, body.messages)]
    return llm._maker.make_all("chat", prompts, params)


def token_ids(llm: LLM, body: TokenizeRequest) -> list[int]:
    """Return the ids of a prompt or a conversation."""
    if (body.prompt is None) == (body.messages is None):
        raise _refusal("prompt", "not in place of messages", "either prompt or messages")
    if body.messages is not None:
        (ids,) = _chat_ids(llm, body.messages)
        return ids
    return llm.model._reader("tokenize").read_one(body.prompt)[1]


def prompt_text(llm: LLM, request: Request) -> str:
    """Return a prompt as text, also if it came as token ids."""
    if request.prompt is not None:
        return request.prompt
    codec = llm.model._reader("completions").require_codec()
    return codec.decode(request.prompt_ids, skip_special_tokens=False)


def _chat_ids(llm: LLM, messages: list[Message]) -> list[list[int]]:
    codec = llm.model._reader("chat").require_codec()
    return chat_prompts(codec, [message.model_dump(exclude_none=True) for message in messages])


def _common(body: SamplingFields) -> dict[str, Any]:
    found = {name: getattr(body, name) for name in _SAME_NAMES}
    found = {name: value for name, value in found.items() if value is not None}
    found["temperature"] = _USUAL_TEMPERATURE if body.temperature is None else body.temperature
    if body.logit_bias is not None:
        found["logit_bias"] = {_token(name): bias for name, bias in body.logit_bias.items()}
    return found


def _token(name: str) -> int:
    if name.isascii() and name.isdecimal() and len(name) < 20:
        return int(name)
    raise _refusal("logit_bias", f"for the token {name[:60]!r}", "token ids as decimal numbers")


def _is_list_of_prompts(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)


def _refusal(param: str, value: str, allowed: str) -> Problem:
    return Problem(400, f"[serve] {param} is {value}; allowed: {allowed}", param=param)
