# SPDX-License-Identifier: Apache-2.0
"""What a line asks for, whatever its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .._checks import brief
from ..codec import Codec
from ..errors import ConfigError
from ..outputs import RequestOutput
from .line import Line


@dataclass(frozen=True)
class Asked:
    """What a line asks for.

    Parameters
    ----------
    prompt : str, list or dict, optional
        As `LLM.generate` reads one; None if there are messages.
    messages : list of dict, optional
        As `LLM.chat` reads one conversation.
    options : mapping
        Fields of `SamplingParams` that the line gives.
    usual : mapping
        Those that its form has where neither the line nor the batch gives them.
    """

    prompt: Any = None
    messages: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)


class Form(Protocol):
    """One way to ask and to answer."""

    def read(self, content: Mapping[str, Any]) -> Asked:
        """Return what a line asks for; ConfigError for what is not allowed."""

    def answered(self, line: Line, output: RequestOutput, codec: Codec | None) -> dict[str, Any]:
        """Return what is written of a line that has its text."""

    def failed(self, line: Line, kind: str, message: str) -> dict[str, Any]:
        """Return what is written of a line without one; `kind` is the error's class."""


def as_name(name: object) -> str | int | float | None:
    """Return what a line calls itself; ConfigError for what an answer cannot carry."""
    if name is None or isinstance(name, str | int | float):
        return name
    raise ConfigError(f"[batch] a line's name is {brief(name)}; allowed: a string or a number")


def name_or_none(name: object) -> str | int | float | None:
    """Return it where it can be carried."""
    return name if isinstance(name, str | int | float) else None


def with_token_ids(bias: object) -> object:
    """Return a logit_bias as `SamplingParams` has it: JSON's keys are strings."""
    if not isinstance(bias, Mapping):
        return bias
    return {int(key) if _is_number(key) else key: value for key, value in bias.items()}


def _is_number(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
