# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of every kind that spells text in a way of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
CORPUS = [
    "the cat sat on the mat and the dog ran to the house. ",
    "user: hi\nassistant: hello, world! stop here. ",
    "日本語と中文 Żółć 🙂👩‍👩‍👧 naïve café ",
]


def _wrapped(raw: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_end|>"],
        **options,
    )


def byte_level() -> PreTrainedTokenizerFast:
    """Every token is bytes, as in GPT-2, Llama 3 and Qwen; merges cross the borders of words."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 3, trainer)
    return _wrapped(raw)


def _sentencepiece(decoder: Any, *, prepend: bool = True) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(["<unk>", *SPECIAL])}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    pairs = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("▁", "▁"),
        ("a", "t"),
        ("c", "at"),
        ("▁", "cat"),
    ]
    for token in ["▁", *"abcdehilmnorstuw.!", "\n", *("".join(pair) for pair in pairs)]:
        vocab.setdefault(token, len(vocab))
    raw = Tokenizer(models.BPE(vocab, pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    raw.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    )
    raw.decoder = decoder
    return raw


def byte_fallback() -> PreTrainedTokenizerFast:
    """As in Llama 2: a space before every text, bytes for what has no token."""
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw = _sentencepiece(decoders.Sequence([*decoder, decoders.Strip(" ", 1, 0)]))
    return _wrapped(raw, unk_token="<unk>")


def byte_fallback_as_it_is() -> PreTrainedTokenizerFast:
    """As in Gemma: no space is added and none dropped."""
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _wrapped(_sentencepiece(decoders.Sequence(decoder), prepend=False), unk_token="<unk>")


def metaspace(scheme: str = "always") -> PreTrainedTokenizerFast:
    """As in T5: a unigram model, spaces belong to the words behind them."""
    pieces = [
        "▁",
        "▁the",
        "▁cat",
        "▁dog",
        "cat",
        "dog",
        *"abcdefghilmnorstuwy.!,:",
        "🙂",
        "日",
        "本",
    ]
    vocab = [("<unk>", -20.0), *((token, -5.0) for token in SPECIAL)]
    vocab += [(piece, -1.0 - 1 / len(piece)) for piece in pieces]
    raw = Tokenizer(models.Unigram(vocab, unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _wrapped(raw, unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    """As in BERT: words are joined by spaces, and some spaces are cleaned away."""
    words = ["the", "cat", "sat", "dog", "##s", "##ing", ".", ",", "n't", "'s", "do", "not", "a"]
    vocab = {word: i for i, word in enumerate(["<unk>", *SPECIAL, *words])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=True)
    return _wrapped(raw, unk_token="<unk>", clean_up_tokenization_spaces=False)


def words_with_suffix() -> PreTrainedTokenizerFast:
    """As in CLIP: the end of a word is marked, and only the last one's is dropped."""
    vocab = {word: i for i, word in enumerate(["<unk>", *SPECIAL, "the</w>", "cat</w>", "c", "a"])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.BPEDecoder(suffix="</w>")
    return _wrapped(raw, unk_token="<unk>")


def panicking() -> PreTrainedTokenizerFast:
    """A decoder that the tokenizers library cannot apply to every text: it panics at a space."""
    decoder = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 1)]
    return _wrapped(_sentencepiece(decoders.Sequence(decoder)), unk_token="<unk>")


def greedy_special_tokens() -> PreTrainedTokenizerFast:
    """Byte-level, with added tokens that swallow the spaces beside them."""
    made = byte_level()
    made.add_tokens(
        [
            AddedToken("<left>", lstrip=True, special=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        ]
    )
    return made


def split_digits() -> PreTrainedTokenizerFast:
    """Byte-level with words split as in recent models."""
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 3, trainer)
    return _wrapped(raw)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "split_digits": split_digits,
    "greedy_special_tokens": greedy_special_tokens,
    "byte_fallback": byte_fallback,
    "byte_fallback_as_it_is": byte_fallback_as_it_is,
    "metaspace_always": functools.partial(metaspace, "always"),
    "metaspace_first": functools.partial(metaspace, "first"),
    "metaspace_never": functools.partial(metaspace, "never"),
    "word_pieces": word_pieces,
    "words_with_suffix": words_with_suffix,
}
BYTE_KINDS = list(KINDS)[:5]


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Return the one tokenizer of a kind."""
    return KINDS[kind]()


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """Return a copy that puts special tokens around texts, such as ``<s> $A </s>``."""
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(token, raw.token_to_id(token)) for token in SPECIAL],
    )
    return _wrapped(raw)


# ------------------------------------------------------------------------ text by other means

_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(b): b for b in _PLAIN} | {
    chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PLAIN)
}


def spelled(kind: str, ids: list[int], *, skip_special_tokens: bool = True) -> str:
    """Return the text of ids, bytes that are no text as in ``bytes.decode(errors="replace")``.

    Where a tokenizer spells no bytes, this is what it decodes.
    """
    tokenizer = tokenizer_of(kind)
    if kind not in BYTE_KINDS:
        text: str = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text
    added = tokenizer.added_tokens_decoder
    data = b""
    for i in ids:
        name = tokenizer.convert_ids_to_tokens(i)
        if name is None or (skip_special_tokens and i in added and added[i].special):
            continue
        if kind in BYTE_KINDS[:3]:
            is_bytes = all(letter in _BYTE_OF for letter in name)
            data += bytes(_BYTE_OF[letter] for letter in name) if is_bytes else name.encode()
        elif name.startswith("<0x"):
            data += bytes.fromhex(name[3:5])
        else:
            data += name.replace("▁", " ").encode()
    text = data.decode(errors="replace")
    return text.removeprefix(" ") if kind == "byte_fallback" else text


class FailingTokenizer:
    """A tokenizer that cannot make text of one token."""

    def __init__(self, bad: int) -> None:
        self._bad = bad

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(340)}  # as that of the checkpoint

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 300 for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        if self._bad in ids:
            raise ArithmeticError("no such letter")
        return "".join(chr(97 + i % 26) for i in ids)
