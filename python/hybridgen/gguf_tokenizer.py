# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a GGUF file carries, built from its fields by the tokenizers library.

Texts become the tokens that llama.cpp makes of them: the file's own format decides, not what the
model's original repository may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._checks import brief
from .codec import is_foreign, words_of
from .errors import CheckpointError, HybridGenError
from .gguf_file import GgufFile

# Kinds of tokens, as the format numbers them.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# How words are cut before they are merged: expressions that apply one after the other.
_PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "command-r": (r"\p{N}", _GPT2),
    "codeshell": (r"\p{N}", _GPT2),
    "exaone": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "stablelm2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "megrez": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# A word that is a token stays one, whatever the merges would make of it.
_KEEPS_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "\u2581"
_MAX_PIECE = 1024  # characters; far above any vocabulary's, and all ways to cut it are tried


def gguf_tokenizer(gguf: GgufFile) -> Any:
    """Return the tokenizer of a GGUF file, as transformers has one; None if it carries none.

    Raises
    ------
    CheckpointError
        If it is damaged, or of a kind that is not read, by name.
    """
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "no_vocab":
        return None
    fields = _Fields(gguf)
    try:
        if kind == "gpt2":
            return _wrapped(_byte_level(fields), fields)
        if kind == "llama":
            return _wrapped(_sentence_piece(fields), fields)
    except HybridGenError:
        raise
    # The tokenizers library raises and panics over vocabularies that contradict themselves.
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise fields.refusal(f"makes no tokenizer: {words_of(error)}") from error
    raise fields.refusal(f"has tokenizer.ggml.model {brief(kind)}; allowed: gpt2, llama")


class _Fields:
    """The tokenizer's part of the metadata."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self.metadata: Mapping[str, Any] = gguf.metadata
        self.tokens = self.texts("tokens")
        kinds = self.get("token_type")
        if kinds is None:
            kinds = np.ones(len(self.tokens), np.int32)
        if not isinstance(kinds, np.ndarray) or len(kinds) != len(self.tokens):
            raise self.refusal("has token_type that is no array with a number for each token")
        self.kinds = kinds

    def get(self, name: str) -> Any:
        """Return a value of tokenizer.ggml; None if absent."""
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def texts(self, name: str, *, optional: bool = False) -> list[str]:
        """Return an array of strings; an empty one, which writers leave out, only if it may be."""
        found = self.get(name)
        if found is None and optional:
            return []
        if not isinstance(found, list) or not found:
            raise self.refusal(f"has {name} {brief(found)}; allowed: an array of strings")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        found = self.get(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise self.refusal(f"has {name} {brief(found)}; allowed: true or false")
        return found

    def token(self, name: str) -> str | None:
        """Return the text of the token that a field numbers; None without one."""
        found = self.get(f"{name}_token_id")
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int):
            raise self.refusal(f"has {name}_token_id {brief(found)}; allowed: a number")
        # Some files write -1 for "none".
        return self.tokens[found] if 0 <= found < len(self.tokens) else None

    def of_kind(self, *kinds: int) -> list[str]:
        """Return the tokens of some kinds."""
        return [self.tokens[i] for i in np.flatnonzero(np.isin(self.kinds, kinds))]

    def refusal(self, what: str) -> CheckpointError:
        """Return an error that begins with the file."""
        return CheckpointError(
            f"[load_tokenizer] the tokenizer of {self._gguf.path} {what}; pass tokenizer= to use "
            "another one"
        )


def _byte_level(fields: _Fields) -> Any:
    """Return a byte-level BPE tokenizer (GPT-2's kind)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = fields.get("pre") or "default"
    if name not in _PRE_TOKENIZERS:
        raise fields.refusal(
            f"has tokenizer.ggml.pre {brief(name)}; allowed: {', '.join(_PRE_TOKENIZERS)}"
        )
    merges = [
        (left, right)
        for left, _, right in (m.partition(" ") for m in fields.texts("merges", optional=True))
    ]
    if any(not right or " " in right for _, right in merges):
        raise fields.refusal("has merges that are not two tokens with a space between them")
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in _KEEPS_WORDS))
    splits = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in _PRE_TOKENIZERS[name]
    ]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(fields: _Fields) -> Any:
    """Return a SentencePiece BPE tokenizer (Llama 2's kind): pieces join by their scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = fields.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(fields.tokens):
        raise fields.refusal("has scores that are no array with a number for each token")
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    unknown = fields.token("unknown") or next(iter(fields.of_kind(_UNKNOWN)), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges_by_score(fields, vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bool(fields.of_kind(_BYTE)),
        )
    )
    prefix = fields.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return tokenizer


def _merges_by_score(
    fields: _Fields, vocabulary: dict[str, int], scores: np.ndarray[Any, Any]
) -> list[tuple[str, str]]:
    """Return which two tokens may join, the best result first: all ways to cut each token."""
    # Tokens that are not text join with nothing.
    texts = np.flatnonzero(~np.isin(fields.kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)))
    joined = []
    for i in texts:
        token = fields.tokens[i]
        if len(token) > _MAX_PIECE:
            raise fields.refusal(f"has a token of {len(token)} characters")
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                joined.append((-float(scores[i]), left, right))
    joined.sort()
    return [(fields.tokens[left], fields.tokens[right]) for _, left, right in joined]


def _wrapped(tokenizer: Any, fields: _Fields) -> Any:
    """Add special tokens, what stands around a text, and the chat template."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in fields.of_kind(_CONTROL) if t]
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in fields.of_kind(_USER_DEFINED) if t]
    )
    if tokenizer.get_vocab_size() > len(fields.tokens):
        raise fields.refusal("has tokens that its vocabulary does not hold")
    _frame(tokenizer, fields)
    named = {ours: fields.token(theirs) for ours, theirs in _SPECIAL.items()}
    template = fields.metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=template if isinstance(template, str) else None,
        **{name: token for name, token in named.items() if token},
    )


def _frame(tokenizer: Any, fields: _Fields) -> None:
    """Let the tokenizer put the beginning and ending token around a text where the file says so."""
    from tokenizers import processors

    is_sentence_piece = fields.get("model") == "llama"
    begins = is_sentence_piece or fields.get("pre") in _KEEPS_WORDS  # llama.cpp's defaults
    bos, eos = fields.token("bos"), fields.token("eos")
    before = [bos] if bos and fields.flag("add_bos_token", begins) else []
    behind = [eos] if eos and fields.flag("add_eos_token", False) else []
    if before or behind:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *behind],
            pair=[*before, "$A", *behind, *before, "$B", *behind],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *behind}],
        )
