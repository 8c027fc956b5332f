# SPDX-License-Identifier: Apache-2.0
"""Text from tokens as they come: whole characters only."""

from __future__ import annotations

import codecs
from collections import deque
from itertools import islice
from typing import Any, NamedTuple

from .codec import Codec

_REPLACEMENT = "\ufffd"
_PROMPT_TOKENS = 6
_CONTEXT_TOKENS = 2
_MAX_HELD_TOKENS = 8


class Piece(NamedTuple):
    """What one more token adds to a text."""

    seen: str
    """All that it spells, special tokens and the rest of the prompt's last character too."""
    shown: str
    """The end of this that belongs to the text."""


class Detokenizer:
    """Turns tokens into pieces of text whose concatenation is the decoded text.

    A piece never ends within a character: bytes are held back until they form one, and those that
    cannot become U+FFFD as in ``bytes.decode(errors="replace")``. A character that the prompt began
    is not part of the text. The work for a token does not depend on how many there were before.

    Tokens are decoded together with a few before them, because many tokenizers drop or add a space
    at the start of what they decode.

    Parameters
    ----------
    tokenizer : object or Codec
        With ``encode`` and ``decode`` as in transformers.
    prompt_ids : list of int
        Tokens before the text; the last few give the first piece its context.
    skip_special_tokens : bool
        Leave special tokens out.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: list[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._codec = Codec.of(tokenizer)
        self._skip_special_tokens = skip_special_tokens
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        # The last tokens whose text is out, divided between characters; and those whose text is
        # held back.
        self._context = deque([self._end_of(prompt_ids)])
        self._held: list[int] = []
        self._before = "" if self._codec.is_byte_level else self._decode(self._context[0])
        for token_id in self._context[0]:
            data = self._codec.spelling(token_id).data
            # Bytes find their place in a character again after three at most.
            self._bytes.reset() if data is None else self._bytes.decode(data)
        self._owes_character = False
        self.begin()

    def _end_of(self, prompt_ids: list[int]) -> list[int]:
        """Return the last tokens that have text, from the beginning of a character on."""
        kept = (i for i in reversed(prompt_ids) if not self._is_left_out(i))
        ids = list(islice(kept, _PROMPT_TOKENS + 3))[::-1]
        if not self._codec.may_split_characters:
            return ids[-_PROMPT_TOKENS:]
        ends = [ids[start:] for start in range(min(len(ids), 4))] or [ids]
        return min(ends, key=lambda end: self._decode(end).count(_REPLACEMENT))

    def begin(self) -> None:
        """Let the text begin here: a character that was begun belongs to the prompt."""
        self._owes_character = bool(self._bytes.getstate()[0])

    @property
    def is_within_character(self) -> bool:
        """Whether the last token ended within a character."""
        return bool(self._held or self._bytes.getstate()[0])

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is now complete, perhaps empty."""
        return self.piece(token_id).shown

    def piece(self, token_id: int) -> Piece:
        """Take one token; return what is now complete."""
        spelling = self._codec.spelling(token_id)
        if self._is_left_out(token_id):
            return Piece(spelling.text, "")
        if spelling.data is None:
            return self._piece_of(self._end_bytes() + self._text_of(token_id))
        return self._piece_of(self._text_of_bytes(token_id, spelling.data))

    def flush(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        text = self._end_bytes()
        if self._held:
            text += self._release(self._held)
        return self._piece_of(text).shown

    def _is_left_out(self, token_id: int) -> bool:
        spelling = self._codec.spelling(token_id)
        return spelling.is_special and (self._skip_special_tokens or not spelling.text)

    def _piece_of(self, text: str) -> Piece:
        if not text or not self._owes_character:
            return Piece(text, text)
        self._owes_character = False
        return Piece(text, text[1:])

    def _text_of(self, token_id: int) -> str:
        """Return the text of a token that only the tokenizer can spell."""
        ids = [*self._held, token_id]
        if self._codec.may_split_characters and len(ids) < _MAX_HELD_TOKENS:
            if self._decode([*self._context_ids, *ids])[len(self._before) :].endswith(_REPLACEMENT):
                self._held = ids
                return ""
        return self._release(ids)

    def _text_of_bytes(self, token_id: int, data: bytes) -> str:
        """Return the characters that some more bytes complete."""
        text = self._bytes.decode(data)
        if self._codec.is_byte_level:
            return text
        self._held.append(token_id)
        if not text:
            return ""
        is_begun = bool(self._bytes.getstate()[0])
        done = self._held[:-1] if is_begun else self._held
        held = [token_id] if is_begun else []
        # The tokenizer may drop a space at the start; but one byte that is no text makes it give up
        # all bytes around, which may be out already.
        decoded = self._release(done)
        self._held = held
        is_own = self._owes_character or _REPLACEMENT in text or _REPLACEMENT in decoded
        return text if is_own else decoded

    def _end_bytes(self) -> str:
        """Return U+FFFD if a character was begun that nothing can complete any more."""
        text = self._bytes.decode(b"", True)
        self._bytes.reset()
        if text:
            self._let_go(self._held)
        return text

    def _release(self, ids: list[int]) -> str:
        """Return the text of tokens, which are context from now on."""
        decoded = self._decode([*self._context_ids, *ids])
        text = decoded[len(self._before) :]
        self._let_go(ids, decoded)
        return text

    def _let_go(self, ids: list[int], decoded: str | None = None) -> None:
        """Make tokens context; `decoded` is what the whole context then decodes to, if known."""
        self._context.append(ids)
        self._held = []
        if sum(map(len, self._context)) > 2 * _CONTEXT_TOKENS:
            while sum(map(len, self._context)) - len(self._context[0]) >= _CONTEXT_TOKENS:
                self._context.popleft()
            decoded = None
        self._before = self._decode(self._context_ids) if decoded is None else decoded

    @property
    def _context_ids(self) -> list[int]:
        return [i for part in self._context for i in part]

    def _decode(self, ids: list[int]) -> str:
        return self._codec.decode(ids, skip_special_tokens=self._skip_special_tokens)
