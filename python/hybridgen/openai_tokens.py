# SPDX-License-Identifier: Apache-2.0
"""Tokens and their log-probabilities as OpenAI's protocol has them."""

from __future__ import annotations

from collections.abc import Mapping

from .codec import Codec

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


def token_bytes(codec: Codec, token_id: int) -> bytes:
    """Return the bytes that a token stands for."""
    spelling = codec.spelling(token_id)
    return spelling.text.encode() if spelling.data is None else spelling.data


def token_name(codec: Codec, token_id: int) -> str:
    """Return how a token is written; one that is no whole character shows its bytes."""
    data = token_bytes(codec, token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def likeliest(logprobs: Mapping[int, float], count: int) -> list[tuple[int, float]]:
    """Return the likeliest tokens; the chosen one only if it is among them."""
    return sorted(logprobs.items(), key=lambda pair: -pair[1])[:count]


def with_chosen(logprobs: Mapping[int, float], token_id: int, count: int) -> dict[int, float]:
    """Return the chosen token and the likeliest ones, as completions list them."""
    return {token_id: logprobs[token_id]} | dict(likeliest(logprobs, count))


def finite(logprob: float) -> float:
    """Return a number that JSON has."""
    return max(logprob, _LEAST_LOGPROB)
