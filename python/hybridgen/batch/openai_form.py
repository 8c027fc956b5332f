# SPDX-License-Identifier: Apache-2.0
"""OpenAI's batch format: a request of its API in every line, and the API's response in the answer.

Requests: https://platform.openai.com/docs/api-reference/batch/request-input; answers: the same
page, request-output.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._checks import as_bool, as_int, brief, listed
from ..codec import Codec
from ..errors import ConfigError
from ..openai_tokens import finite, likeliest, token_bytes, token_name, with_chosen
from ..outputs import CompletionOutput, RequestOutput
from .asked import Asked, as_name, name_or_none, with_token_ids
from .line import Line

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"

_SAME_NAMES = frozenset(
    {
        "n",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        # Not OpenAI's, but what its clients send as extra_body to engines of one's own.
        "top_k",
        "min_p",
        "min_tokens",
        "repetition_penalty",
        "stop_token_ids",
        "ignore_eos",
        "skip_special_tokens",
        "include_stop_str_in_output",
    }
)
"""Fields of a body that `SamplingParams` has under the same name."""

_CHANGE_NO_TEXT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    }
)

_USUAL: dict[str, dict[str, Any]] = {
    _CHAT: {"temperature": 1.0, "max_tokens": None},
    _COMPLETIONS: {"temperature": 1.0, "max_tokens": 16},
}
"""The protocol's defaults; without max_tokens a text may be as long as the context allows."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "echo": (False,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none",),
}
"""Fields that are taken where they ask for what is done anyway."""


@dataclass(frozen=True)
class OpenAiForm:
    """``{"custom_id": ..., "url": ..., "body": {...}}`` to ``{"custom_id": ..., "response": ...}``.

    Parameters
    ----------
    model_name : str
        What bodies may call the model.
    """

    model_name: str

    def read(self, content: Mapping[str, Any]) -> Asked:
        """Return what a line asks for; a field of the body that is not known is refused by name."""
        as_name(content.get("custom_id"))
        url, body = _parts(content)
        given = {key: value for key, value in body.items() if value is not None}
        model = given.pop("model", self.model_name)
        if model != self.model_name:
            raise ConfigError(
                f"[batch] model is {brief(model)}; allowed: {brief(self.model_name, 200)}, as "
                "--model-name says, or none"
            )
        key = "messages" if url == _CHAT else "prompt"
        if key not in given:
            raise ConfigError(f"[batch] the body for {url} has no {key}; allowed: one with it")
        asked = given.pop(key)
        options = _options(given, url)
        if url == _CHAT:
            return Asked(messages=asked, options=options, usual=_USUAL[url])
        if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], str | list):
            asked = asked[0]
        return Asked(asked, options=options, usual=_USUAL[url])

    def answered(self, line: Line, output: RequestOutput, codec: Codec | None) -> dict[str, Any]:
        """Return what is written of a line that has its text."""
        asked: Mapping[str, Any] = line.content or {}
        is_chat = asked.get("url") == _CHAT
        shown = asked["body"].get("top_logprobs" if is_chat else "logprobs") or 0
        choice = _chat_choice if is_chat else _completion_choice
        new_tokens = sum(len(text.token_ids) for text in output.outputs)
        prompt_tokens = len(output.prompt_token_ids)
        body = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{line.index}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": self.model_name,
            "choices": [choice(text, codec, shown) for text in output.outputs],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": new_tokens,
                "total_tokens": prompt_tokens + new_tokens,
            },
        }
        return _response(line, 200, body, None)

    def failed(self, line: Line, kind: str, message: str) -> dict[str, Any]:
        """Return what is written of a line without one: the API's own form of an error."""
        is_callers = kind in ("ConfigError", "OutOfMemoryError")
        error = {
            "message": message,
            "type": "invalid_request_error" if is_callers else "server_error",
            "param": None,
            "code": kind,
        }
        told = {"code": kind, "message": message}
        return _response(line, 400 if is_callers else 500, {"error": error}, told)


def _response(line: Line, status: int, body: Any, error: Any) -> dict[str, Any]:
    return {
        "id": f"batch_req_{line.index}",
        "custom_id": name_or_none((line.content or {}).get("custom_id")),
        "response": {"status_code": status, "request_id": f"req_{line.index}", "body": body},
        "error": error,
    }


def _parts(content: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return where a request goes and its body."""
    known = {"custom_id", "method", "url", "body"}
    if content.keys() - known:
        raise ConfigError(
            f"[batch] a request of OpenAI's format has the keys {listed(content.keys() - known)}; "
            f"allowed: {', '.join(sorted(known))}"
        )
    method, url, body = content.get("method", "POST"), content.get("url"), content.get("body")
    if method != "POST":
        raise ConfigError(f"[batch] method is {brief(method)}; allowed: POST")
    if url not in (_CHAT, _COMPLETIONS):
        raise ConfigError(f"[batch] url is {brief(url)}; allowed: {_CHAT}, {_COMPLETIONS}")
    if not isinstance(body, Mapping):
        raise ConfigError(f"[batch] body is {brief(body)}; allowed: an object of JSON")
    return url, body


def _options(given: dict[str, Any], url: str) -> dict[str, Any]:
    """Return fields of `SamplingParams`; what stays of `given` is refused."""
    for key, allowed in _ONLY.items():
        if key in given and given[key] not in allowed:
            raise ConfigError(
                f"[batch] {key} is {brief(given[key])}; allowed: {brief(allowed[0])}, or none"
            )
        given.pop(key, None)
    options = {key: given.pop(key) for key in _SAME_NAMES & given.keys()}
    if "logit_bias" in given:
        options["logit_bias"] = with_token_ids(given.pop("logit_bias"))
    if url == _CHAT:
        if "max_completion_tokens" in given:
            most = given.pop("max_completion_tokens")
            if options.setdefault("max_tokens", most) != most:
                raise ConfigError(
                    "[batch] max_tokens is not max_completion_tokens; allowed: one of both, which "
                    "mean the same"
                )
        has_top = "top_logprobs" in given
        top = as_int("batch", "top_logprobs", given.pop("top_logprobs", 0), 0, 20)
        if as_bool("batch", "logprobs", given.pop("logprobs", False)):
            options["logprobs"] = top
        elif has_top:
            raise ConfigError(
                "[batch] top_logprobs is given without logprobs; allowed: only with logprobs: true"
            )
    elif "logprobs" in given:
        options["logprobs"] = given.pop("logprobs")
    for key in _CHANGE_NO_TEXT:
        given.pop(key, None)
    if given:
        raise ConfigError(
            f"[batch] the body has {listed(given)}, which this engine does not know; allowed: "
            f"model, messages or prompt, logprobs, logit_bias, {', '.join(sorted(_SAME_NAMES))}"
        )
    return options


# ------------------------------------------------------------------------------------------ answers


def _chat_choice(text: CompletionOutput, codec: Codec | None, shown: int) -> dict[str, Any]:
    return {
        "index": text.index,
        "message": {"role": "assistant", "content": text.text, "refusal": None},
        "logprobs": _chat_logprobs(text, codec, shown),
        "finish_reason": text.finish_reason,
    }


def _completion_choice(text: CompletionOutput, codec: Codec | None, shown: int) -> dict[str, Any]:
    return {
        "index": text.index,
        "text": text.text,
        "logprobs": _completion_logprobs(text, codec, shown),
        "finish_reason": text.finish_reason,
    }


def _chat_logprobs(
    text: CompletionOutput, codec: Codec | None, shown: int
) -> dict[str, Any] | None:
    if text.logprobs is None or codec is None:
        return None
    content = []
    for token_id, found in zip(text.token_ids, text.logprobs, strict=True):
        entry = _token_entry(token_id, found[token_id], codec)
        entry["top_logprobs"] = [_token_entry(*pair, codec) for pair in likeliest(found, shown)]
        content.append(entry)
    return {"content": content, "refusal": None}


def _token_entry(token_id: int, logprob: float, codec: Codec) -> dict[str, Any]:
    return {
        "token": token_name(codec, token_id),
        "logprob": finite(logprob),
        "bytes": list(token_bytes(codec, token_id)),
    }


def _completion_logprobs(
    text: CompletionOutput, codec: Codec | None, shown: int
) -> dict[str, Any] | None:
    if text.logprobs is None or codec is None:
        return None
    offsets, end = [], 0
    for token_id in text.token_ids:
        offsets.append(end)
        end += len(codec.spelling(token_id).text)
    chosen = list(zip(text.token_ids, text.logprobs, strict=True))
    return {
        "tokens": [token_name(codec, token_id) for token_id in text.token_ids],
        "token_logprobs": [finite(found[token_id]) for token_id, found in chosen],
        "top_logprobs": [
            {
                token_name(codec, other): finite(logprob)
                for other, logprob in with_chosen(found, token_id, shown).items()
            }
            for token_id, found in chosen
        ],
        "text_offset": offsets,
    }
