# SPDX-License-Identifier: Apache-2.0
"""A tokenizer behind one door: its answers are checked, and its failures are our own errors."""

from __future__ import annotations

import functools
import json
import numbers
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from ._checks import brief, one_line
from .errors import ConfigError, HybridGenError

_RAW_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_PROBES = ("Hello, world!", "Żółć 東京 🙂\n 1 + 2 = 3")


class Spelling(NamedTuple):
    """What one token spells."""

    data: bytes | None
    """Its bytes; None where only the tokenizer's decoder can tell the text."""
    text: str
    """What it decodes to alone, special tokens shown; empty for an unknown id."""
    is_special: bool
    """Whether ``skip_special_tokens`` leaves it out; true for an unknown id too."""


class Codec:
    """Text to ids and back through a tokenizer.

    Parameters
    ----------
    tokenizer : object
        With ``encode(text, add_special_tokens=...)`` and ``decode(ids, skip_special_tokens=...)``
        as in transformers.

    Raises
    ------
    ConfigError
        From every method, if the tokenizer raises or answers with something else than ids or text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._spellings: dict[int, Spelling] = {}
        self._decode, kinds = _decoder_of(tokenizer)
        self.is_byte_level: bool = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        """Whether every token is bytes, and the text is nothing but these."""
        self.has_raw_bytes: bool = "ByteFallback" in kinds and "ByteLevel" not in kinds
        """Whether characters without a token of their own are spelled in tokens like <0xE2>."""
        self.may_split_characters: bool = not kinds or (
            "ByteLevel" in kinds and not self.is_byte_level
        )
        """Whether a token may end within a character in a way that only its text shows."""

    @classmethod
    def of(cls, tokenizer: Any) -> Codec:
        """Return the codec of a tokenizer; a codec itself as it is."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text.

        Parameters
        ----------
        text : str
            Without lone surrogates, which no tokenizer can spell.
        special : bool
            Let the tokenizer add the special tokens that it puts around every text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"[tokenize] the text has a lone surrogate at {error.start}; allowed: Unicode "
                "text; decode bytes with errors='replace'"
            ) from error
        ids = self._call("encode", self.tokenizer.encode, text, add_special_tokens=special)
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if not isinstance(ids, list | tuple) or not all(map(_is_id, ids)):
            raise ConfigError(
                f"[tokenize] the tokenizer's encode gives {brief(ids)}; allowed: a list of token "
                "ids, as transformers' tokenizers give; one of the tokenizers library needs "
                "PreTrainedTokenizerFast(tokenizer_object=...) around it"
            )
        return [int(i) for i in ids]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of ids; of none, the empty text."""
        if not ids:
            return ""
        text = self._call("decode", self._decode, ids, skip_special_tokens=skip_special_tokens)
        if not isinstance(text, str):
            raise ConfigError(
                f"[detokenize] the tokenizer's decode gives {brief(text)}; allowed: a string"
            )
        return text

    def closed(self, text: str) -> list[int]:
        """Return a text's ids with all special tokens around it.

        Text that begins with these already, as chat templates write it, does not get them twice.
        """
        ids, begin = self.encode(text), self.frame[0]
        is_double = bool(begin) and ids[: 2 * len(begin)] == begin * 2
        return ids[len(begin) :] if is_double else ids

    def opened(self, text: str) -> list[int]:
        """Do as `closed` does, without the special tokens behind the text."""
        ids, begin = self.encode(text, special=False), self.frame[0]
        return ids if begin and ids[: len(begin)] == begin else begin + ids

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and behind a text."""
        framed, bare = self.encode("a"), self.encode("a", special=False)
        for start in range(len(framed) - len(bare) + 1) if bare else ():
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []

    @functools.cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id that the tokenizer knows; 0 if it does not tell."""
        read = getattr(self.tokenizer, "get_vocab", None)
        if read is None:
            return 0
        try:
            return max(map(int, read().values()), default=-1) + 1
        except BaseException as error:
            if is_foreign(error):
                raise ConfigError(f"[tokenizer] its get_vocab failed: {words_of(error)}") from error
            raise

    def special_id(self, name: str) -> int | None:
        """Return the tokenizer's attribute such as ``bos_token_id``; None if it has none."""
        found = getattr(self.tokenizer, name, None)
        if found is None or _is_id(found):
            return None if found is None else int(found)
        raise ConfigError(f"[LLM] the tokenizer's {name} is {brief(found)}; allowed: an int, None")

    def spelling(self, token_id: int) -> Spelling:
        """Return what one token spells; found once for each."""
        found = self._spellings.get(token_id)
        if found is None:
            found = self._spellings[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> Spelling:
        name = ""
        if find := getattr(self.tokenizer, "convert_ids_to_tokens", None):
            name = self._call("convert_ids_to_tokens", find, token_id)
            if name is None:
                return Spelling(None, "", True)
        text = self.decode([token_id], skip_special_tokens=False)
        is_special = bool(text) and not self.decode([token_id], skip_special_tokens=True)
        data = None
        if self.is_byte_level:
            data = _bytes_of(name)
        elif self.has_raw_bytes and (raw := _RAW_BYTE.fullmatch(name)):
            data = bytes.fromhex(raw[1])
        return Spelling(data, text, is_special)

    def check(self) -> None:
        """Try everything that will be asked of the tokenizer."""
        for text in _PROBES:
            for special in (True, False):
                ids = self.encode(text, special=special)
                for skip in (True, False):
                    self.decode(ids, skip_special_tokens=skip)
                for token_id in ids:
                    self.spelling(token_id)
        _ = self.frame, self.vocabulary_size  # found once, and now
        for name in ("bos_token_id", "eos_token_id"):
            self.special_id(name)

    def _call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if is_foreign(error):
                raise ConfigError(
                    f"[tokenizer] its {name} failed on {brief(args[0])}: {words_of(error)}"
                ) from error
            raise


def is_foreign(error: BaseException) -> bool:
    """Say whether an exception needs to be replaced by one of ours.

    The tokenizers library panics with an exception that is no Exception.
    """
    if isinstance(error, HybridGenError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def words_of(error: BaseException) -> str:
    """Return an exception's kind and words, cut to a length that fits a message."""
    words = one_line(str(error))
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _is_id(value: object) -> bool:
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_int and int(cast("int", value)) >= 0


def _decoder_of(tokenizer: Any) -> tuple[Callable[..., Any], set[str]]:
    """Return what decodes, and the kinds of decoders of the tokenizers library that it applies.

    The kinds are empty where they cannot be known: other objects may do anything in decode.
    """
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer.decode, set()
    # Streaming cannot take back a space that has been given out.
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    kind = type(tokenizer)
    is_plain = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerBase.decode
        and kind._decode is PreTrainedTokenizerFast._decode
    )
    if not is_plain:
        return decode, set()
    backend = tokenizer.backend_tokenizer
    if backend.decoder is None:
        return backend.decode, {"none"}
    try:
        state = json.loads(backend.decoder.__getstate__())
    except (AttributeError, TypeError, ValueError):
        return decode, set()
    return backend.decode, set(_kinds_in(state))


def _kinds_in(decoder: dict[str, Any]) -> Iterator[str]:
    if decoder["type"] != "Sequence":
        yield decoder["type"]
    for part in decoder.get("decoders", []):
        yield from _kinds_in(part)


@functools.cache
def _byte_letters() -> dict[str, int]:
    """Return the letter of each byte in byte-level vocabularies, as GPT-2 defined them."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_of(name: str) -> bytes:
    """Return the bytes of a byte-level token; one with other letters stands for itself."""
    letters = _byte_letters()
    if all(letter in letters for letter in name):
        return bytes(letters[letter] for letter in name)
    return name.encode()
