# SPDX-License-Identifier: Apache-2.0
"""Text from tokens as they come: whole characters only, cut at stop strings."""

from __future__ import annotations

import codecs
import functools
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ._checks import brief
from .checkpoint import read_json, resolve_folder
from .codec import Codec, is_foreign, words_of
from .errors import CheckpointError, ConfigError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_REPLACEMENT = "\ufffd"
_PROMPT_TOKENS = 6
_CONTEXT_TOKENS = 2
_MAX_HELD_TOKENS = 8


def load_tokenizer(path_or_id: str | Path, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or hub id; None for a folder that holds none.

    A ``tokenizer.json`` is used as it stands, whatever class the folder names beside it. A local
    folder never touches the network, and code from a checkpoint is never run.

    Raises
    ------
    CheckpointError
        If there is one but it cannot be loaded, cannot work, or needs code of the checkpoint's own.
    """
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir():
        folder = resolve_folder(path_or_id, revision, "dummy")
    if not any((folder / name).exists() for name in _FILES):
        return None
    _refuse_foreign_code(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer splits text in the model family's own way for some families (Qwen2), whatever
    # the tokenizer.json says.
    is_whole = (folder / "tokenizer.json").exists()
    kind = PreTrainedTokenizerFast if is_whole else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        check_tokenizer(tokenizer)
    # The tokenizer classes raise whatever their file formats make them stumble over.
    except BaseException as error:
        if not isinstance(error, ConfigError) and not is_foreign(error):
            raise
        words = str(error) if isinstance(error, ConfigError) else words_of(error)
        raise CheckpointError(
            f"[load_tokenizer] cannot load the tokenizer of {folder}: {words}; pass tokenizer= or "
            "remove its files to work with token ids only"
        ) from error
    return tokenizer


def _refuse_foreign_code(folder: Path) -> None:
    """Raise unless transformers itself has the class that the folder asks for."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.exists() else {}
    declared, auto_map = config.get("tokenizer_class"), config.get("auto_map")
    own = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    is_whole = (folder / "tokenizer.json").exists()
    if own and not (_is_library_class(declared) or (declared is None and is_whole)):
        raise CheckpointError(
            f"[load_tokenizer] {file} asks for a tokenizer class of the checkpoint's own "
            f"({brief(own)}), and code from a checkpoint is never run; pass tokenizer= with a "
            "tokenizer of the same vocabulary, or save it as tokenizer.json with transformers"
        )
    if is_whole:
        return
    if declared is None and (folder / "config.json").exists():
        declared = read_json(folder / "config.json").get("tokenizer_class")
    # transformers takes any class of its own by that name, a model's too, and loads it.
    if declared is not None and _is_library_class(declared) is False:
        raise CheckpointError(
            f"[load_tokenizer] {folder} names the tokenizer class {brief(declared)}, which is no "
            "tokenizer; name a tokenizer class of transformers in tokenizer_config.json"
        )


def _is_library_class(name: object) -> bool | None:
    """Say whether a name is that of a tokenizer class of transformers; None if it has none such."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    # To look for the class of a model would import the model's code.
    if not isinstance(name, str) or not ("Tokenizer" in name or name.endswith("Backend")):
        return False
    found = tokenizer_class_from_name(name)
    if found is None:
        return None
    return (
        isinstance(found, type)
        and issubclass(found, PreTrainedTokenizerBase)
        and found.__module__.startswith("transformers.")
    )


def check_tokenizer(tokenizer: Any) -> None:
    """Try what will be asked of a tokenizer; raise ConfigError if it cannot do it."""
    needed = ("encode", "decode")
    missing = [name for name in needed if not callable(getattr(tokenizer, name, None))]
    if missing:
        raise ConfigError(
            f"[LLM] tokenizer is {brief(tokenizer)}, which cannot {' or '.join(missing)}; allowed: "
            "a folder, a hub id, or an object with encode and decode as in transformers"
        )
    Codec(tokenizer).check()
    vocabulary_size(tokenizer)


def vocabulary_size(tokenizer: Any) -> int:
    """Return one more than the largest token id that the tokenizer knows; 0 if it does not tell."""
    read = getattr(tokenizer, "get_vocab", None)
    if read is None:
        return 0
    try:
        return max(map(int, read().values()), default=-1) + 1
    except BaseException as error:
        if is_foreign(error):
            raise ConfigError(f"[tokenizer] its get_vocab failed: {words_of(error)}") from error
        raise


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


class StopStrings:
    """Some strings, to be found in a text that comes letter by letter (Aho and Corasick, 1975).

    A state stands for the longest end of the text that is the beginning of one of the strings.

    Parameters
    ----------
    strings : tuple of str
        None of them empty.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]
        self.found: list[str] = [""]
        """Per state, the longest of the strings that ends here, if any."""
        self.held: list[int] = [0]
        """Per state, how many last letters may yet be the beginning of one of the strings."""
        for string in strings:
            state = 0
            for letter in string:
                state = self._next[state].setdefault(letter, len(self._next))
                if state == len(self._next):
                    self._next.append({})
                    self._shorter.append(0)
                    self.found.append("")
                    self.held.append(self.held[0])
            self.found[state] = string
        self._link()

    def _link(self) -> None:
        """Find for each state the next shorter end of the text that is a beginning too."""
        states = deque((state, 1) for state in self._next[0].values())
        while states:
            state, depth = states.popleft()
            shorter = self._shorter[state]
            self.found[state] = self.found[state] or self.found[shorter]
            self.held[state] = depth if self._next[state] else self.held[shorter]
            for letter, longer in self._next[state].items():
                self._shorter[longer] = self.after(shorter, letter)
                states.append((longer, depth + 1))

    def after(self, state: int, letter: str) -> int:
        """Return the state after one more letter."""
        while state and letter not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(letter, 0)


@functools.lru_cache(maxsize=64)
def _compiled(strings: tuple[str, ...]) -> StopStrings:
    return StopStrings(strings)


class StopMatcher:
    """Finds the first stop string that a stream of text completes, and cuts the text before it.

    Text that could be the beginning of a stop string is held back until what follows decides. How
    the text is divided into pieces does not matter, nor how many stop strings there are.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = _compiled(tuple(stops)) if stops else None
        self._state = 0
        # What is shown of each letter that is held back: itself, or nothing.
        self._held: deque[str] = deque()

    def push(
        self, shown: str, *, seen: str | None = None, armed: bool = True
    ) -> tuple[str, str | None]:
        """Take a piece; return the text that is certain, and the stop string if one is complete.

        Parameters
        ----------
        shown : str
            The next text.
        seen : str, optional
            What ends in this text and is looked at: special tokens that are left out, for example.
        armed : bool
            False lets stop strings that end in this piece pass.
        """
        if self._stops is None:
            return shown, None
        seen = shown if seen is None else seen
        out: list[str] = []
        first = len(seen) - len(shown)
        for i, letter in enumerate(seen):
            self._held.append(letter if i >= first else "")
            self._state = self._stops.after(self._state, letter)
            stop = self._stops.found[self._state]
            if armed and stop:
                out += islice(self._held, len(self._held) - len(stop))
                self._held.clear()
                self._state = 0
                return "".join(out), stop
            while len(self._held) > self._stops.held[self._state]:
                out.append(self._held.popleft())
        return "".join(out), None

    def flush(self) -> str:
        """Return the text that was held back and led to no stop string."""
        text = "".join(self._held)
        self._held.clear()
        self._state = 0
        return text
