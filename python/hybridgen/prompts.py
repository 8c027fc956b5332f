# SPDX-License-Identifier: Apache-2.0
"""Every accepted form of a prompt, as text and token ids."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ._checks import as_int, brief, items_of
from .codec import Codec
from .detokenizer import Detokenizer
from .errors import ConfigError

Prompt = str | list[int] | dict[str, Any]
Encoded = tuple[str | None, list[int]]
"""A prompt that was read: its text, if it came as one, and its token ids."""


@dataclass(frozen=True)
class PromptReader:
    """Brings prompts into token ids; a ConfigError says what is allowed instead.

    Parameters
    ----------
    codec : Codec or None
        Of the tokenizer; None if there are token ids only.
    last_id : int
        The largest token id that the model knows.
    operation : str
        Who asks, for messages.
    """

    codec: Codec | None
    last_id: int
    operation: str = "generate"

    def read(self, prompts: Any) -> list[Encoded]:
        """Return (text or None, token ids) of one prompt or of each of several."""
        if hasattr(prompts, "tolist"):
            prompts = prompts.tolist()
        if isinstance(prompts, str | Mapping) or _begins_with_id(prompts):
            return [self.read_one(prompts)]
        if isinstance(prompts, list | tuple):
            return [self.read_one(prompt) for prompt in prompts]
        raise ConfigError(
            f"[{self.operation}] prompts is {type(prompts).__name__}; allowed: a string, a list of "
            "token ids, a dict with prompt or prompt_token_ids, or a list of these"
        )

    def read_ids(self, token_ids: Any) -> list[int]:
        """Return token ids of a text that need not be a prompt."""
        found = items_of(token_ids)
        if found is None:
            raise ConfigError(
                f"[{self.operation}] token_ids is {brief(token_ids)}; allowed: a list of token ids"
            )
        return [as_int(self.operation, "a token id", i, 0) for i in found]

    def read_one(self, prompt: Any) -> Encoded:
        """Return (text or None, token ids) of one prompt."""
        text, ids = self._parts(prompt)
        if ids is None:
            assert text is not None
            ids = self._known(self.require_codec().closed(text))
        return text, ids

    def _parts(self, prompt: Any) -> tuple[str | None, list[int] | None]:
        """Return text and ids of a prompt as they were given; one of them may be None."""
        if isinstance(prompt, Mapping):
            keys = {"prompt", "prompt_token_ids"}
            if not prompt or not set(prompt) <= keys:
                raise ConfigError(
                    f"[{self.operation}] a prompt has the keys "
                    f"{', '.join(map(str, prompt)) or 'none'}; allowed: prompt, prompt_token_ids"
                )
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if not isinstance(text, str) and (text is not None or ids is None):
                raise ConfigError(
                    f"[{self.operation}] prompt is {brief(text)}; allowed: a string; pass token "
                    "ids as prompt_token_ids"
                )
            return text, None if ids is None else self._ids(ids)
        return (prompt, None) if isinstance(prompt, str) else (None, self._ids(prompt))

    def _ids(self, prompt: Any) -> list[int]:
        if hasattr(prompt, "tolist"):
            prompt = prompt.tolist()
        if isinstance(prompt, list | tuple) and (not prompt or _begins_with_id(prompt)):
            return [as_int(self.operation, "a token id", i, 0, self.last_id) for i in prompt]
        raise ConfigError(
            f"[{self.operation}] a prompt is {brief(prompt)}; allowed: a string, a list of token "
            "ids, or a dict with prompt or prompt_token_ids"
        )

    def _known(self, ids: list[int]) -> list[int]:
        largest = max(ids, default=0)
        if largest > self.last_id:
            raise ConfigError(
                f"[{self.operation}] the tokenizer gives the token id {largest}, but the model "
                f"knows ids up to {self.last_id}; pass the tokenizer= that belongs to the model"
            )
        return ids

    def read_pairs(self, pairs: Any) -> list[tuple[list[int], list[int]]]:
        """Return the ids of every (context, continuation)."""
        found = items_of(pairs)
        if found is None or not all(isinstance(p, list | tuple) and len(p) == 2 for p in found):
            raise ConfigError(
                f"[{self.operation}] pairs is {brief(pairs)}; allowed: a list of (context, "
                "continuation), each a string or token ids"
            )
        return [self.read_pair(*pair) for pair in found]

    def read_pair(self, context: Any, continuation: Any) -> tuple[list[int], list[int]]:
        """Return the ids of both, neither empty; see `LLM.score` for where they are divided."""
        text, ids = self._parts(context)
        next_text, next_ids = self._parts(continuation)
        if ids is None and next_ids is None:
            assert text is not None
            assert next_text is not None
            pair = self._divide(text, next_text)
        else:
            if ids is None:
                assert text is not None
                ids = self.require_codec().opened(text) or [self._prefix_token()]
            if next_ids is None:
                assert next_text is not None
                next_ids = self._continue(ids, next_text)
            pair = ids, next_ids
        if not pair[0] or not pair[1]:
            which = "context" if not pair[0] else "continuation"
            raise ConfigError(
                f"[{self.operation}] the {which} has no tokens; allowed: at least one token in "
                "each of context and continuation"
            )
        return self._known(pair[0]), self._known(pair[1])

    def _divide(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode two texts as one; a token that holds some of the second belongs to it."""
        codec = self.require_codec()
        kept = context.rstrip()
        whole = codec.opened(context + continuation)
        start = codec.opened(kept) if kept else codec.frame[0]
        if whole[: len(start)] != start:
            start = whole[: _tokens_within(codec, whole, start, kept)]
        if not start:
            start = [self._prefix_token()]
            return start, whole[1:] if whole[:1] == start else whole
        return start, whole[len(start) :]

    def _continue(self, ids: list[int], text: str) -> list[int]:
        """Encode a text that follows ids, with no space before it that it does not have."""
        codec = self.require_codec()
        alone = codec.encode(text, special=False)
        # Some tokenizers put a space before every text, but none before the second line of one.
        line, both = codec.encode("\n", special=False), codec.encode("\n" + text, special=False)
        for found in (alone, both[len(line) :]):
            detokenizer = Detokenizer(codec, ids, skip_special_tokens=False)
            pieces = [detokenizer.push(token_id) for token_id in found]
            if "".join(pieces) + detokenizer.flush() == text:
                return found
        return alone

    def _prefix_token(self) -> int:
        codec = self.require_codec()
        for name in ("bos_token_id", "eos_token_id"):
            token = codec.special_id(name)
            if token is not None:
                return token
        raise ConfigError(
            f"[{self.operation}] the context is empty and the tokenizer has neither a BOS nor an "
            "EOS token to stand for it; pass a context"
        )

    def require_codec(self, wanted: str = "") -> Codec:
        """Return the codec; ConfigError, with what needs it if given, without a tokenizer."""
        if self.codec is None:
            need = f"{wanted} need a tokenizer: " if wanted else ""
            raise ConfigError(
                f"[{self.operation}] {need}there is no tokenizer in the model's folder; pass token "
                "ids, or tokenizer= to LLM"
            )
        return self.codec


def _tokens_within(codec: Codec, whole: list[int], start: list[int], text: str) -> int:
    """Return how many of the first tokens spell no more than `text`, with which all begin.

    `start` are the tokens of this text alone. Where the tokenizer changes texts, so that lengths
    say nothing, the tokens count that both begin with.
    """
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, start, strict=False))
    )
    begin = len(codec.frame[0])
    detokenizer = Detokenizer(codec, whole[:begin], skip_special_tokens=False)
    spelled, count = 0, begin
    for token_id in whole[begin:]:
        piece = detokenizer.push(token_id)
        spelled += len(piece)
        is_beyond = spelled == len(text) and detokenizer.is_within_character
        if is_beyond or not text.startswith(piece, spelled - len(piece)):
            break
        count += 1
    return max(common, count)


def _begins_with_id(value: object) -> bool:
    """Say whether it is a list whose first item is an integer: then all have to be token ids."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and isinstance(value[0], numbers.Integral)
        and not isinstance(value[0], bool)
    )
