# SPDX-License-Identifier: Apache-2.0
"""Text from tokens, for every kind of tokenizer: what streams is what the whole decodes to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridgen.codec import Codec
from hybridgen.detokenizer import Detokenizer
from tokenizer_kinds import BYTE_KINDS, KINDS, spelled, tokenizer_of

drawn = settings(derandomize=True, deadline=None, database=None, max_examples=60)

TEXTS = st.text(alphabet="the cat. 日本é🙂\u200d👩👧\ufffd\n", max_size=8)


def streamed(tokenizer: Any, prompt: list[int], new: list[int], **options: Any) -> str:
    """Return the text of new tokens as a stream gives it."""
    detokenizer = Detokenizer(tokenizer, prompt, **options)
    return "".join([*(detokenizer.push(i) for i in new), detokenizer.flush()])


@st.composite
def token_runs(draw: st.DrawFn, kind: str) -> tuple[list[int], list[int]]:
    """Draw a prompt and new tokens: any ids, text, and whole characters in single bytes."""
    tokenizer = tokenizer_of(kind)
    vocab = tokenizer.get_vocab()
    parts: list[st.SearchStrategy[list[int]]] = [
        st.lists(st.integers(0, len(vocab) + 2), min_size=1, max_size=4),
        TEXTS.map(lambda text: tokenizer.encode(text, add_special_tokens=False)),
        st.lists(st.sampled_from([tokenizer.bos_token_id, tokenizer.eos_token_id]), max_size=9),
    ]
    if kind in BYTE_KINDS[3:]:
        single = TEXTS.map(lambda text: [vocab[f"<0x{byte:02X}>"] for byte in text.encode()])
        parts += [single, single]
    ids = [i for part in draw(st.lists(st.one_of(parts), max_size=6)) for i in part]
    cut = draw(st.integers(0, len(ids)))
    return ids[:cut], ids[cut:]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_end_of_the_whole_text(kind: str, skip: bool) -> None:
    tokenizer = tokenizer_of(kind)

    @drawn
    @given(runs=token_runs(kind))
    def check(runs: tuple[list[int], list[int]]) -> None:
        prompt, new = runs
        whole = spelled(kind, prompt + new, skip_special_tokens=skip)
        before = spelled(kind, prompt, skip_special_tokens=skip)
        text = streamed(tokenizer, prompt, new, skip_special_tokens=skip)
        assert text == whole[len(before) :]

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_characters_stream_as_the_tokenizer_itself_decodes_them(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @drawn
    @given(before=TEXTS, text=TEXTS)
    def check(before: str, text: str) -> None:
        prompt = tokenizer.encode(before, add_special_tokens=False)
        new = tokenizer.encode(text, add_special_tokens=False)
        text = streamed(tokenizer, prompt, new, skip_special_tokens=False)
        assert text == tokenizer.decode(prompt + new)[len(tokenizer.decode(prompt)) :]

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_ends_within_a_character(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = "the 日本 cat 👩\u200d👩\u200d👧 é"
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [detokenizer.push(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    assert "\ufffd" not in "".join(pieces)


def test_a_character_that_the_prompt_began_is_not_part_of_the_text() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    vocab = tokenizer.get_vocab()
    e4, bd, a0 = (vocab[f"<0x{byte:02X}>"] for byte in "你".encode())
    the = vocab["▁the"]
    assert streamed(tokenizer, [the, e4, bd], [a0, the]) == " the"
    assert streamed(tokenizer, [the, e4, bd], [the]) == " the"
    assert streamed(tokenizer, [the, e4], [e4, bd, a0, the]) == "你 the"


class Counting:
    """A tokenizer that counts the ids it has decoded."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids = tokenizer, 0

    def encode(self, text: str, **options: Any) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, **options)
        return ids

    def decode(self, ids: list[int], **options: Any) -> str:
        self.ids += len(ids)
        text: str = self.tokenizer.decode(ids, **options)
        return text


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace_always"])
@pytest.mark.parametrize("opaque", [False, True])
def test_the_work_for_a_token_does_not_grow(kind: str, opaque: bool) -> None:
    tokenizer = tokenizer_of(kind)
    vocab = tokenizer.get_vocab()
    byte = vocab.get("<0xFF>", vocab.get("\u00ff", vocab["▁the"] if "▁the" in vocab else 0))
    for token in (tokenizer.eos_token_id, byte):
        counting = Counting(tokenizer)
        codec = Codec(counting if opaque else tokenizer)
        codec._decode = counting.decode
        streamed(codec, [], [token])
        counting.ids = 0
        streamed(codec, [], [token] * 100)
        few, counting.ids = counting.ids, 0
        streamed(codec, [], [token] * 1000)
        assert counting.ids <= 11 * few + 200


def test_a_tokenizer_of_which_nothing_is_known_streams_whole_characters() -> None:
    for kind in ("byte_level", "byte_fallback_as_it_is"):
        tokenizer = tokenizer_of(kind)
        text = "the 日本 cat 👩\u200d👩\u200d👧 é"
        ids = tokenizer.encode(text, add_special_tokens=False)
        for cut in range(len(ids)):
            whole = tokenizer.decode(ids)
            before = spelled(kind, ids[:cut])
            if kind != "byte_level" and before.endswith("\ufffd"):
                continue  # this one gives up a whole run of bytes for a part of a character
            assert streamed(Counting(tokenizer), ids[:cut], ids[cut:]) == whole[len(before) :]
