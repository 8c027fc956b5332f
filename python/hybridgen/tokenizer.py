# SPDX-License-Identifier: Apache-2.0
"""Text from tokens as they come: whole characters only, cut at stop strings."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6


def load_tokenizer(path_or_id: str | Path, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or hub id; None for a folder that holds none.

    Raises
    ------
    CheckpointError
        If there is one but it cannot be loaded.
    """
    folder = Path(path_or_id).expanduser()
    is_local = folder.is_dir()
    if is_local and not any((folder / name).exists() for name in _FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name = str(folder) if is_local else str(path_or_id)
    try:
        if is_local and _declares_plain_tokenizer(folder):
            return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=True)
        return AutoTokenizer.from_pretrained(name, revision=revision, local_files_only=is_local)
    # The tokenizer classes raise whatever their file formats make them stumble over.
    except Exception as error:
        raise CheckpointError(
            f"[load_tokenizer] cannot load the tokenizer of {name}: {error}; pass tokenizer= or "
            "remove its files to work with token ids only"
        ) from error


def _declares_plain_tokenizer(folder: Path) -> bool:
    """Say whether the folder asks for its tokenizer.json as it stands.

    AutoTokenizer overrules that for some model types (Qwen2) and splits text in the family's own
    way, whatever the file says.
    """
    config = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").exists() or not config.exists():
        return False
    declared = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
    return declared in ("TokenizersBackend", "PreTrainedTokenizerFast")


def vocabulary_size(tokenizer: Any) -> int:
    """Return one more than the largest token id that the tokenizer knows."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


class Detokenizer:
    """Turns tokens into pieces of text whose concatenation is the decoded text.

    A piece never ends within a character: bytes are held back until they form one. Tokens are
    decoded together with those before them, because many tokenizers drop or add a space at the
    start of what they decode.

    Parameters
    ----------
    tokenizer : object
        With a ``decode`` method as in transformers.
    prompt_ids : list of int
        Tokens before the text; the last few give the first piece its context.
    skip_special_tokens : bool
        Leave special tokens out.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: list[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        # Text of ids[:read] is out; ids[prefix:read] is the context of what follows.
        self._prefix = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is now complete, perhaps empty."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._prefix = self._read
        self._read = len(self._ids)
        return text

    def flush(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        text = self._new_text()
        self._prefix = self._read = len(self._ids)
        return text

    def _new_text(self) -> str:
        if self._read == len(self._ids):
            return ""
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        # They share a start; a prompt that ends inside of a character is where it may differ.
        if after.startswith(before):
            return after[len(before) :]
        pairs = zip(before, after, strict=False)
        return after[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(
            ids,
            skip_special_tokens=self._skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text


class StopMatcher:
    """Finds the first stop string in a stream of text and cuts the text before it.

    Text that could be the beginning of a stop string is held back until the next piece decides.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Take a piece; return the text that is certain, and the stop string if one is complete.

        Parameters
        ----------
        piece : str
            The next text.
        armed : bool
            False lets stop strings that end in this piece pass.
        """
        self._held += piece
        if armed:
            hits = [(self._held.find(stop), stop) for stop in self._stops]
            hits = [(at, stop) for at, stop in hits if at >= 0]
            if hits:
                # The earliest wins, and among those of one place the longest.
                at, stop = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
                text, self._held = self._held[:at], ""
                return text, stop
        keep = self._overlap() if armed else 0
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, None

    def flush(self) -> str:
        """Return the text that was held back and led to no stop string."""
        text, self._held = self._held, ""
        return text

    def _overlap(self) -> int:
        """Length of the longest end of the held text with which some stop string begins."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
