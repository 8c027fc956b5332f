# SPDX-License-Identifier: Apache-2.0
"""Requests and responses of OpenAI's protocol, as far as they are supported.

A request may have no other fields than these: one that is unknown is refused, not ignored. Names
and defaults are the protocol's; fields that OpenAI does not have are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_ITEMS = 16384
"""Of a list that is no prompt, and of logit_bias: each costs time for everybody who is served."""
_MOST_FIELDS = 64
"""Of one object: more than there are, so that not each of a million is named as unknown."""

# One error of a list is enough: a body may hold a million of items that are all wrong.
Ids = Annotated[list[int], Field(fail_fast=True)]
FewIds = Annotated[list[int], Field(fail_fast=True, max_length=MOST_ITEMS)]
Strings = Annotated[list[str], Field(fail_fast=True, max_length=MOST_ITEMS)]
ManyIds = Annotated[list[Ids], Field(fail_fast=True, max_length=MOST_ITEMS)]
Empty = Annotated[list[Any], Field(max_length=0)]

WITHOUT_EFFECT = frozenset(
    {
        "audio",
        "best_of",
        "function_call",
        "functions",
        "modalities",
        "prediction",
        "reasoning_effort",
        "response_format",
        "suffix",
        "tool_choice",
        "tools",
        "verbosity",
        "web_search_options",
    }
)
"""Fields of the protocol that are not supported: only values that change nothing are allowed."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:
            raise ValueError(f"{len(value)} fields; allowed: {_MOST_FIELDS}")
        return value

    @field_validator("logit_bias", mode="before", check_fields=False)
    @classmethod
    def _has_few_items(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_ITEMS:
            raise ValueError(f"{len(value)} tokens; allowed: {MOST_ITEMS}")
        return value


class StreamOptions(_Asked):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Send one more chunk at the end, which says how many tokens there were."""
    include_obfuscation: bool | None = None
    """Nothing is added to chunks, whatever this says."""


class SamplingFields(_Asked):
    """What completions and chats have in common."""

    model: str
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | Strings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    # vLLM's.
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: FewIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None


class CompletionRequest(SamplingFields):
    """Body of ``POST /v1/completions``."""

    prompt: str | Ids | Strings | ManyIds
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class Message(_Asked):
    """One message of a conversation; the model's chat template makes of it what it does."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[str | dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


Messages = Annotated[list[Message], Field(fail_fast=True, max_length=MOST_ITEMS)]


class ResponseFormat(_Asked):
    """Text and nothing else."""

    type: Literal["text"]


class ChatRequest(SamplingFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    # Without effect on the text.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    # Not supported.
    audio: None = None
    function_call: Literal["none", "auto"] | None = None
    functions: Empty | None = None
    modalities: list[Literal["text"]] | None = None
    prediction: None = None
    reasoning_effort: None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Empty | None = None
    verbosity: None = None
    web_search_options: None = None


class TokenizeRequest(_Asked):
    """Body of ``POST /tokenize``: ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None


class TokenizeResponse(BaseModel):
    """The token ids that a prompt would have."""

    count: int
    max_model_len: int
    tokens: list[int]


class Usage(BaseModel):
    """How many tokens a request had; those of a prompt count once, however many texts it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Natural logarithms, of the model's own distribution; an item for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text, or in a stream a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """Answer of ``/v1/completions``, and each event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token that could have been in a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """As of completions, in the form of chats."""

    content: list[TokenLogprob]
    refusal: None


class Answer(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What is new of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(BaseModel):
    """Each event of a stream of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Answer of ``/health``."""

    status: Literal["ok"]


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorFields
