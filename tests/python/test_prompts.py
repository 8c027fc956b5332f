# SPDX-License-Identifier: Apache-2.0
"""Prompts and pairs as token ids: special tokens once, joins where a token decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridgen import LLM, CheckpointError, ConfigError, HybridGenError, SamplingParams
from hybridgen.codec import Codec
from hybridgen.detokenizer import Detokenizer
from hybridgen.k_min import calibrate
from hybridgen.prompts import PromptReader
from tokenizer_kinds import KINDS, panicking, tokenizer_of, with_template

drawn = settings(derandomize=True, deadline=None, database=None, max_examples=60)

TEXTS = st.text(alphabet="the cat. 日é🙂\n", min_size=2, max_size=12)
TEMPLATES = ["$A", "<s> $A", "$A </s>", "<s> $A </s>"]


def reader_of(tokenizer: Any) -> PromptReader:
    return PromptReader(Codec(tokenizer), 10_000)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace_first"])
def test_the_ids_scored_spell_the_text_wherever_it_is_divided(kind: str, template: str) -> None:
    tokenizer = with_template(tokenizer_of(kind), template)
    reader = reader_of(tokenizer)
    begin = [tokenizer.bos_token_id] if template.startswith("<s>") else []

    @drawn
    @given(text=TEXTS)
    def check(text: str) -> None:
        whole = tokenizer.encode(text, add_special_tokens=False)
        for cut in range(1, len(text)):
            context, continuation = reader.read_pair(text[:cut], text[cut:])
            if not begin and context == [tokenizer.bos_token_id] and continuation == whole:
                continue  # no token ends before the join, so BOS stands for the context
            assert context + continuation == begin + whole

    check()


def test_a_token_across_the_join_belongs_to_the_continuation() -> None:
    tokenizer = tokenizer_of("byte_level")
    reader = reader_of(tokenizer)

    @drawn
    @given(text=TEXTS, data=st.data())
    def check(text: str, data: st.DataObject) -> None:
        cut = data.draw(st.integers(1, len(text)))
        kept = text[:cut].rstrip()
        whole = tokenizer.encode(text)
        sizes, size = [], 0
        for i in whole:
            size += len(tokenizer.convert_ids_to_tokens(i))  # one letter for each byte
            sizes.append(size)
        within = sum(size <= len(kept.encode()) for size in sizes)
        if cut < len(text):
            context, continuation = reader.read_pair(text[:cut], text[cut:])
            assert context == (whole[:within] or [tokenizer.bos_token_id])
            assert continuation == whole[within:]

    check()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "word" not in kind])
def test_text_behind_ids_is_spelled_as_it_is(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    reader = reader_of(tokenizer)
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    for text in ("the", " the", "cat", " cat"):
        context, continuation = reader.read_pair(ids, text)
        assert context == ids
        detokenizer = Detokenizer(tokenizer, ids)
        if kind == "metaspace_always":
            continue  # this one cannot spell a word without a space before it
        assert "".join(map(detokenizer.push, continuation)) == text


def test_ids_behind_text_follow_its_tokens_without_eos() -> None:
    tokenizer = with_template(tokenizer_of("byte_level"), "<s> $A </s>")
    ids = tokenizer.encode("the", add_special_tokens=False)
    bos = tokenizer.bos_token_id
    assert reader_of(tokenizer).read_pair("the", [7]) == ([bos, *ids], [7])
    assert reader_of(tokenizer).read_pair("", [7]) == ([bos], [7])
    assert reader_of(tokenizer).read_pair({"prompt": "the"}, {"prompt_token_ids": [7]}) == (
        [bos, *ids],
        [7],
    )


def test_text_that_begins_with_bos_has_one() -> None:
    tokenizer = with_template(tokenizer_of("byte_level"), "<s> $A")
    reader, bos = reader_of(tokenizer), tokenizer.bos_token_id
    ids = tokenizer.encode("[user]hi", add_special_tokens=False)
    assert reader.read_one("[user]hi")[1] == [bos, *ids]
    assert reader.read_one("<s>[user]hi")[1] == [bos, *ids]
    assert reader.read_pair("<s>[user]hi", "!")[0] == [bos, *ids]
    assert reader.read_pair("", "<s>[user]hi") == ([bos], ids)
    assert reader.read_one("<s><s>")[1] == [bos, bos]
    plain = reader_of(tokenizer_of("byte_level"))
    assert plain.read_one("<s><s>")[1] == [bos, bos]


def test_a_prompt_is_what_the_tokenizer_makes_of_it() -> None:
    tokenizer = with_template(tokenizer_of("byte_level"), "<s> $A </s>")
    assert reader_of(tokenizer).read_one("the cat")[1] == tokenizer("the cat").input_ids


def test_nothing_to_score_is_refused() -> None:
    reader = reader_of(tokenizer_of("byte_level"))
    for pair in (("the", ""), ("", ""), ([5], ""), ([5], []), ("the", [])):
        with pytest.raises(ConfigError, match="continuation has no tokens"):
            reader.read_pair(*pair)
    with pytest.raises(ConfigError, match="context has no tokens"):
        reader.read_pair([], "the")


def test_ids_that_the_model_does_not_know_are_named() -> None:
    reader = PromptReader(Codec(tokenizer_of("byte_level")), 10)
    with pytest.raises(ConfigError, match=r"gives the token id \d+, but the model knows .* 10"):
        reader.read_one("the cat")
    with pytest.raises(ConfigError, match="lone surrogate at 1"):
        reader.read_one("a\ud800")


class Odd:
    """A tokenizer of a user's own that does one thing wrong."""

    bos_token_id = eos_token_id = None

    def __init__(self, **methods: Any) -> None:
        self.__dict__.update(methods)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("of my own")


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"encode": fail}, "encode failed on 'Hello.*ZeroDivisionError: of my own"),
        ({"decode": fail}, "decode failed .*ZeroDivisionError: of my own"),
        ({"encode": lambda text, **_: "abc"}, "encode gives 'abc'"),
        ({"encode": lambda text, **_: [1.5]}, r"encode gives \[1.5\]"),
        ({"encode": lambda text, **_: [-1]}, r"encode gives \[-1\]"),
        ({"encode": lambda text: [1]}, "encode failed .*add_special_tokens"),
        ({"decode": lambda ids, **_: b"x"}, "decode gives b'x'"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"get_vocab": fail}, "get_vocab failed: ZeroDivisionError"),
        ({"get_vocab": lambda: [1]}, "get_vocab failed: AttributeError"),
        ({"encode": None}, "cannot encode"),
    ],
)
def test_a_tokenizer_that_cannot_work_is_refused_before_anything_is_loaded(
    methods: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        LLM("no/such/folder", tokenizer=Odd(**methods))
    with pytest.raises(CheckpointError, match="no folder"):
        LLM("/no/such/folder", tokenizer=Odd())


def test_a_tokenizer_is_tried_once_for_all_that_share_a_model(
    trained: Callable[[str], LLM],
) -> None:
    calls: list[str] = []

    def get_vocab() -> dict[str, int]:
        calls.append("get_vocab")
        return {"a": 9}

    base = trained("tiny-llama")
    with LLM(base, tokenizer=Odd(get_vocab=get_vocab)) as first, LLM(first) as second:
        assert calls == ["get_vocab"]
        assert second.tokenizer is first.tokenizer
        assert second.model.codec is first.model.codec
        assert second.model.valid_vocab == 10
    assert base.model.codec is not first.model.codec


def test_a_panic_of_the_tokenizers_library_is_an_error_of_ours() -> None:
    codec = Codec(panicking())
    with pytest.raises(ConfigError, match=r"decode failed on .*PanicException"):
        codec.decode(codec.tokenizer.convert_tokens_to_ids(["▁"]), skip_special_tokens=True)


@pytest.mark.parametrize(
    "pairs", [5, "ab", {"a": "b"}, ["ab"], [("a", "b", "c")], [("a",)], ("a", "b"), None]
)
def test_pairs_are_a_list_of_pairs(pairs: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[score\] pairs is .*\(context, continuation\)"):
        PromptReader(Codec(tokenizer_of("byte_level")), 10_000, "score").read_pairs(pairs)


@pytest.mark.parametrize("prompt", [{"prompt": 5}, {"prompt": None}, {"prompt": {"prompt": "a"}}])
def test_the_prompt_in_a_dict_is_a_string(prompt: Any) -> None:
    with pytest.raises(ConfigError, match=r"prompt is .*; allowed: a string"):
        reader_of(tokenizer_of("byte_level")).read(prompt)


def test_a_prompt_that_cannot_be_decoded_fails_alone(trained: Callable[[str], LLM]) -> None:
    def decode(ids: list[int], **_: Any) -> str:
        if 5 in ids:
            raise ArithmeticError("no five")
        return "x" * len(ids)

    params = SamplingParams(max_tokens=3, ignore_eos=True)
    with LLM(trained("tiny-llama"), tokenizer=Odd(decode=decode)) as llm:
        with pytest.raises(HybridGenError, match="ArithmeticError: no five") as caught:
            llm.generate([[7, 8], [6, 5]], params)
        fine, failed = caught.value.outputs  # type: ignore[attr-defined]
    assert (fine.text, fine.finish_reason) == ("xxx", "length")
    assert failed.finish_reason == "error"


def test_a_refusal_names_the_call_that_was_made(tmp_path: Path) -> None:
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50}
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "ffn_dim": 16}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    stop = SamplingParams(stop="a")
    with LLM(config | sizes, load_format="dummy", device="cpu") as llm:
        for prompt in ("the cat", [60], [5, None], {"prompts": "a"}):
            for name in ("generate", "generate_ids", "stream"):
                with pytest.raises(ConfigError, match=rf"^\[{name}\] "):
                    getattr(llm, name)(prompt)
            with pytest.raises(ConfigError, match=r"^\[score\] "):
                llm.score([([5], prompt)])
        for name in ("generate", "generate_ids", "stream"):
            with pytest.raises(ConfigError, match=rf"^\[{name}\] sampling_params is 5; "):
                getattr(llm, name)([5], 5)
            with pytest.raises(ConfigError, match=rf"^\[{name}\] stop strings need a tokenizer: "):
                getattr(llm, name)([5], stop)
        with pytest.raises(ConfigError, match=r"^\[calibrate\] a token id is 60; "):
            calibrate(llm, [[60] * 20], device_tokens=2)
        with pytest.raises(ConfigError, match=r"^\[LLM\] tokenizer is .*; allowed: a folder"):
            LLM(llm, tokenizer=tmp_path)


def test_of_a_list_of_ids_the_wrong_one_is_named() -> None:
    reader = PromptReader(None, 10)
    assert reader.read([np.int64(5), 6]) == [(None, [5, 6])]
    for ids, wrong in (([5, True], "True"), ([5, "a"], "'a'"), ([5, 11], "11"), ([5, -1], "-1")):
        with pytest.raises(ConfigError, match=f"a token id is {wrong}; allowed: an int in"):
            reader.read(ids)
