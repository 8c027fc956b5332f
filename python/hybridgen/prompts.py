# SPDX-License-Identifier: Apache-2.0
"""Every accepted form of a prompt, as text and token ids."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._checks import as_int, brief
from .errors import ConfigError

Prompt = str | list[int] | dict[str, Any]


@dataclass(frozen=True)
class PromptReader:
    """Brings prompts into token ids; a ConfigError says what is allowed instead.

    Parameters
    ----------
    tokenizer : object or None
        With ``encode`` as in transformers; None if there are token ids only.
    last_id : int
        The largest token id that the model knows.
    """

    tokenizer: Any
    last_id: int

    def read(self, prompts: Any) -> list[tuple[str | None, list[int]]]:
        """Return (text or None, token ids) of one prompt or of each of several."""
        if hasattr(prompts, "tolist"):
            prompts = prompts.tolist()
        if isinstance(prompts, str | Mapping) or is_token_ids(prompts):
            return [self.read_one(prompts)]
        if isinstance(prompts, list | tuple):
            return [self.read_one(prompt) for prompt in prompts]
        raise ConfigError(
            f"[generate] prompts is {type(prompts).__name__}; allowed: a string, a list of token "
            "ids, a dict with prompt or prompt_token_ids, or a list of these"
        )

    def read_one(self, prompt: Any) -> tuple[str | None, list[int]]:
        """Return (text or None, token ids) of one prompt."""
        if isinstance(prompt, Mapping):
            keys = {"prompt", "prompt_token_ids"}
            if not prompt or not set(prompt) <= keys:
                raise ConfigError(
                    f"[generate] a prompt has the keys {', '.join(map(str, prompt)) or 'none'}; "
                    "allowed: prompt, prompt_token_ids"
                )
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if ids is None:
                return self.read_one(text)
            return text, self.read_one(ids)[1]
        if isinstance(prompt, str):
            return prompt, self._encode(prompt)
        if hasattr(prompt, "tolist"):
            prompt = prompt.tolist()
        if isinstance(prompt, list | tuple) and (not prompt or is_token_ids(prompt)):
            return None, [as_int("generate", "a token id", i, 0, self.last_id) for i in prompt]
        raise ConfigError(
            f"[generate] a prompt is {brief(prompt)}; allowed: a string, a list of token ids, or "
            "a dict with prompt or prompt_token_ids"
        )

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        tokenizer = self.require_tokenizer("generate")
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def read_pair(self, context: Any, continuation: Any) -> tuple[list[int], list[int]]:
        """Return the ids of both, neither empty; see `LLM.score` for spaces between them."""
        if not isinstance(context, str) or not isinstance(continuation, str):
            pair = self.read_one(context)[1], self.read_one(continuation)[1]
        else:
            kept = context.rstrip()
            continuation = context[len(kept) :] + continuation
            if kept:
                whole, start = self._encode(kept + continuation), self._encode(kept)
                pair = start, whole[len(start) :]
            else:
                tokens = self._encode(continuation, add_special_tokens=False)
                pair = [self._prefix_token()], tokens
        if not pair[0] or not pair[1]:
            which = "context" if not pair[0] else "continuation"
            raise ConfigError(
                f"[score] the {which} has no tokens; allowed: at least one token in each of "
                "context and continuation"
            )
        return pair

    def _prefix_token(self) -> int:
        tokenizer = self.require_tokenizer("score")
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ConfigError(
            "[score] the context is empty and the tokenizer has neither a BOS nor an EOS token to "
            "stand for it; pass a context"
        )

    def require_tokenizer(self, operation: str) -> Any:
        """Return the tokenizer; ConfigError in the name of `operation` if there is none."""
        if self.tokenizer is None:
            raise ConfigError(
                f"[{operation}] there is no tokenizer in the model's folder; pass token ids, or "
                "tokenizer= to LLM"
            )
        return self.tokenizer


def is_token_ids(value: object) -> bool:
    """Say whether it is a list of at least one integer."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in value)
    )
