# SPDX-License-Identifier: Apache-2.0
"""Where a text stops: at the token where transformers' stop_strings stops, cut before them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StopStringCriteria

from hybridgen import SamplingParams
from hybridgen.sequence import Sequence
from hybridgen.stop_strings import StopMatcher
from test_detokenizer import token_runs
from tokenizer_kinds import KINDS, tokenizer_of

drawn = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def accept(sequence: Sequence, token_id: int) -> None:
    event = SimpleNamespace(
        token_id=token_id, logprob=0.0, is_greedy=True, top_logprobs=(), finish_reason=""
    )
    sequence.accept(event)


def stopped(
    tokenizer: Any, prompt: list[int], new: list[int], stop: Any, **options: Any
) -> Sequence:
    """Return what becomes of a request whose model gives these tokens."""
    params = SamplingParams(max_tokens=None, stop=stop, **options)
    sequence = Sequence(prompt, params, tokenizer)
    for token_id in new:
        accept(sequence, token_id)
        if sequence.finished:
            return sequence
    sequence.end("length")
    return sequence


def tokens_of_transformers(tokenizer: Any, prompt: list[int], new: list[int], stop: Any) -> int:
    """Return after how many new tokens transformers stops; all of them if it does not."""
    criteria = StopStringCriteria(tokenizer, list(stop))
    for count in range(1, len(new) + 1):
        if bool(criteria(torch.tensor([prompt + new[:count]]), None)):
            return count
    return len(new)


# transformers can look for stop strings only where the vocabulary has the letters a to f.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "word" not in kind])
def test_every_stop_is_where_transformers_stops(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @drawn
    @given(runs=token_runs(kind), data=st.data())
    def check(runs: tuple[list[int], list[int]], data: st.DataObject) -> None:
        prompt, new = [tokenizer.bos_token_id, *runs[0]], runs[1]
        ids = [i for i in prompt + new if i < len(tokenizer)]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        at = st.integers(0, max(0, len(text) - 1))
        spans = st.tuples(at, st.integers(1, 6)).map(lambda s: text[s[0] : s[0] + s[1]])
        stop = data.draw(st.lists(spans | st.sampled_from(["the", "</s>", "|>"]), max_size=3))
        stop = [s for s in stop if s and "\ufffd" not in s] or ["cat"]
        expected = tokens_of_transformers(tokenizer, prompt, new, stop)
        sequence = stopped(tokenizer, prompt, new, stop)
        assert len(sequence.output.token_ids) == expected

    check()


def text_and_count(kind: str, prompt: str, text: str, **options: Any) -> tuple[str, int]:
    """Return the text that is left, and how many tokens there were, one for each letter."""
    tokenizer = tokenizer_of(kind)
    vocab = tokenizer.get_vocab()
    ids = [vocab[part] for part in re.findall(r"<[^<>]+>|.", text.replace(" ", "Ġ"))]
    sequence = stopped(tokenizer, tokenizer.encode(prompt), ids, **options)
    return sequence.output.text, len(sequence.output.token_ids)


def test_a_special_token_ends_the_text_as_a_stop_string_though_it_is_left_out() -> None:
    for skip in (True, False):
        options = {"stop": "<|im_end|>", "skip_special_tokens": skip}
        assert text_and_count("byte_level", "!", "Hi<|im_end|>xyz", **options) == ("Hi", 3)
    assert text_and_count("byte_level", "!", "Hi<|im_end|>xyz", stop="i<|im") == ("H", 3)
    assert text_and_count("byte_level", "!", "Hi<|im_end|>xyz", stop="end|>x") == ("Hi", 4)
    assert text_and_count("byte_level", "!", "Hi<|im_end|>xyz", stop="<|no|>") == ("Hixyz", 6)


def test_a_stop_string_may_begin_before_min_tokens_and_end_behind_them() -> None:
    assert text_and_count("byte_level", "!", "a stop b", stop="stop", min_tokens=4) == ("a ", 6)
    assert text_and_count("byte_level", "!", "a stop b", stop="stop", min_tokens=6) == ("a ", 6)
    assert text_and_count("byte_level", "!", "a stop b", stop="stop", min_tokens=7) == (
        "a stop b",
        8,
    )
    assert text_and_count("byte_level", "!", "stopstop", stop="stop", min_tokens=5) == ("stop", 8)


def test_a_stop_string_may_begin_in_the_prompt() -> None:
    assert text_and_count("byte_level", "a st", "op", stop="stop") == ("", 2)
    assert text_and_count("byte_level", "a stop", "opop", stop="stop") == ("opop", 4)


def test_the_stop_string_may_stay_as_far_as_it_is_text() -> None:
    def ended(prompt: str, text: str, **options: Any) -> str:
        found = text_and_count(
            "byte_level", prompt, text, include_stop_str_in_output=True, **options
        )
        return found[0]

    assert ended("!", "one stop two", stop="stop") == "one stop"
    assert ended("a st", "op", stop="stop") == "op"  # the rest is the prompt's
    assert ended("!", "Hi<|im_end|>xyz", stop="<|im_end|>") == "Hi"
    assert ended("!", "Hi<|im_end|>xyz", stop="<|im_end|>", skip_special_tokens=False) == (
        "Hi<|im_end|>"
    )
    assert ended("!", "Hi<|im_end|>xyz", stop="end|>x") == "Hix"


def test_pieces_with_stop_strings_add_up_to_the_text() -> None:
    tokenizer = tokenizer_of("byte_level")

    @drawn
    @given(text=st.text(alphabet="ab<|im_end>", max_size=20), stop=st.text("ab", min_size=1))
    def check(text: str, stop: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(max_tokens=None, stop=stop)
        sequence = Sequence([0], params, tokenizer)
        for token_id in ids:
            if not sequence.finished:
                accept(sequence, token_id)
        sequence.end("length")
        released = "".join(piece.text for piece in sequence.pieces)
        assert sequence.output.text.startswith(released)
        assert stop not in sequence.output.text
        if sequence.output.finish_reason == "stop":
            assert sequence.output.text == released

    check()


def test_what_is_found_does_not_depend_on_how_the_text_is_divided() -> None:
    stops = ("abc", "b", "ca")
    for text in ("abc", "xxcab", "acca", "aabbcc"):
        whole = StopMatcher(stops).push(text)
        matcher = StopMatcher(stops)
        parts: list[str] = []
        found = None
        for letter in text:
            if found is None:
                part, found = matcher.push(letter)
                parts.append(part)
        assert ("".join(parts), found) == whole


def test_many_and_long_stop_strings_cost_no_more_for_each_letter() -> None:
    stops = tuple("a" * size + "b" for size in range(1, 300))
    steps = 0

    class Counted(dict[str, int]):
        def __contains__(self, key: object) -> bool:
            nonlocal steps
            steps += 1
            return super().__contains__(key)

    matcher = StopMatcher(stops)
    assert matcher._stops is not None
    matcher._stops._next = [Counted(node) for node in matcher._stops._next]
    text = "a" * 2000 + "c" + "a" * 2000
    assert matcher.push(text)[1] is None
    assert steps < 5 * len(text)
