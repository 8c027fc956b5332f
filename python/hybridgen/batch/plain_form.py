# SPDX-License-Identifier: Apache-2.0
"""This project's own form of a line: a prompt, and options by the names of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._checks import plain
from ..codec import Codec
from ..errors import ConfigError
from ..outputs import CompletionOutput, RequestOutput
from .asked import Asked, as_name, name_or_none, with_token_ids
from .line import Line

_USUAL = {"max_tokens": 128}
"""As `python -m hybridgen generate` has it."""
_PROMPTS = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True)
class PlainForm:
    """``{"prompt": ..., "max_tokens": ...}`` to ``{"index": ..., "outputs": [...]}``.

    Parameters
    ----------
    has_token_ids : bool
        Whether answers have token ids where they have text.
    """

    has_token_ids: bool = False

    def read(self, content: Mapping[str, Any]) -> Asked:
        """Return what a line asks for; what is no prompt and no name is an option."""
        rest = {key: value for key, value in content.items() if value is not None}
        as_name(rest.pop("id", None))
        found = {key: rest.pop(key) for key in _PROMPTS if key in rest}
        if len(found) != 1:
            raise ConfigError(
                f"[batch] a line has the keys {', '.join(map(plain, content)) or 'none'}; allowed: "
                f"one of {', '.join(_PROMPTS)}, and beside it id and the options of SamplingParams"
            )
        if "logit_bias" in rest:
            rest["logit_bias"] = with_token_ids(rest["logit_bias"])
        if "messages" in found:
            return Asked(messages=found["messages"], options=rest, usual=_USUAL)
        ((key, prompt),) = found.items()
        asked = prompt if key == "prompt" else {key: prompt}
        return Asked(asked, options=rest, usual=_USUAL)

    def answered(self, line: Line, output: RequestOutput, codec: Codec | None) -> dict[str, Any]:
        """Return what is written of a line that has its text."""
        is_without_text = codec is None
        return self._content(
            line,
            outputs=[
                self._text(text, self.has_token_ids or is_without_text) for text in output.outputs
            ],
            prompt_tokens=len(output.prompt_token_ids),
            prompt_logprobs=output.prompt_logprobs,
        )

    def failed(self, line: Line, kind: str, message: str) -> dict[str, Any]:
        """Return what is written of a line without one."""
        return self._content(line, error={"type": kind, "message": message})

    def _content(self, line: Line, **said: Any) -> dict[str, Any]:
        names = line.content or {}
        content = {
            "index": line.index,
            "id": name_or_none(names.get("id", names.get("custom_id"))),
            "outputs": [],
            "prompt_tokens": 0,
            "error": None,
        } | said
        if content.get("prompt_logprobs") is None:
            content.pop("prompt_logprobs", None)
        return content

    def _text(self, text: CompletionOutput, has_token_ids: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "text": text.text,
            "finish_reason": text.finish_reason,
            "stop_reason": text.stop_reason,
            "cumulative_logprob": text.cumulative_logprob,
            "generated_tokens": len(text.token_ids),
        }
        if has_token_ids:
            found["token_ids"] = text.token_ids
        if text.logprobs is not None:
            found["logprobs"] = text.logprobs
        return found
