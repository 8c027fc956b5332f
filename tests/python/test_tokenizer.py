# SPDX-License-Identifier: Apache-2.0
"""Streaming text: pieces add up to the whole, characters stay whole, stop strings cut."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import TEXTS
from hybridgen import CheckpointError
from hybridgen.detokenizer import Detokenizer
from hybridgen.stop_strings import StopMatcher
from hybridgen.tokenizer import load_codec
from tokenizer_kinds import panicking, tokenizer_of

REPLACE_ALL = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": " "}


def pieces_of(tokenizer: Any, prompt: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Like sentencepiece: a space belongs to the word after it, and decoding drops the first."""
    words = ["<unk>", "▁one", "▁two", "▁three", "s", "!"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@given(text=st.text(max_size=40))
@example(text="<s>")
@example(text="a</<s>s>b")
def test_pieces_add_up_to_the_decoded_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    # A special token that the text spells out is that token, and left out.
    special = "|".join(re.escape(token) for token in tokenizer.all_special_tokens)
    assert "".join(pieces_of(tokenizer, [], ids)) == re.sub(special, "", text)


@given(data=st.data())
def test_text_split_into_single_bytes_comes_in_whole_characters(
    tokenizer: Any, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet="añ東🙂 ", min_size=1, max_size=12))
    alphabet = tokenizer.get_vocab()
    # The byte-level alphabet writes each byte as one character of its own.
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = [alphabet[c] for c, _ in _bytes_of(letters, text)]
    pieces = pieces_of(tokenizer, [], ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def _bytes_of(letters: Any, text: str) -> list[tuple[str, Any]]:
    return [(c, None) for word, _ in letters.pre_tokenize_str(text) for c in word]


@given(ids=st.lists(st.integers(3, 258), max_size=24))
def test_bytes_that_are_no_text_end_as_replacement_characters(
    tokenizer: Any, ids: list[int]
) -> None:
    assert "".join(pieces_of(tokenizer, [], ids)) == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_back_until_the_end(tokenizer: Any) -> None:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = tokenizer.get_vocab()
    ids = [alphabet[c] for c, _ in _bytes_of(letters, "🙂")]
    assert pieces_of(tokenizer, [], ids) == ["", "", "", "🙂", ""]
    assert pieces_of(tokenizer, [], ids[:3]) == ["", "", "", "\ufffd"]


def test_the_space_before_the_first_new_word_is_kept(spaced_tokenizer: Any) -> None:
    ids = [1, 2, 4, 5, 3]
    assert spaced_tokenizer.decode([2]) == "two"
    for cut in range(1, len(ids)):
        pieces = pieces_of(spaced_tokenizer, ids[:cut], ids[cut:])
        whole, prompt = spaced_tokenizer.decode(ids), spaced_tokenizer.decode(ids[:cut])
        assert "".join(pieces) == whole[len(prompt) :]


def test_special_tokens_are_left_out_unless_wanted(tokenizer: Any) -> None:
    ids = [*tokenizer.encode("fox"), tokenizer.eos_token_id]
    assert "".join(pieces_of(tokenizer, [], ids)) == "fox"
    kept = Detokenizer(tokenizer, [], skip_special_tokens=False)
    assert "".join([*(kept.push(i) for i in ids), kept.flush()]) == "fox</s>"


def cut_at_once(text: str, stops: tuple[str, ...]) -> str:
    """Return the text before the first stop string: what any streaming must add up to."""
    hits = [text.find(stop) for stop in stops if stop in text]
    return text[: min(hits)] if hits else text


@given(
    text=st.text(alphabet="ab\n", max_size=24),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_a_stream_is_cut_where_the_whole_text_would_be(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher = StopMatcher(tuple(stops))
    out, ended = "", False
    rest = text
    while rest and not ended:
        size = data.draw(st.integers(1, len(rest)))
        piece, stop = matcher.push(rest[:size])
        rest = rest[size:]
        out += piece
        ended = stop is not None
        assert cut_at_once(text, tuple(stops)).startswith(out) or ended
    out += matcher.flush()
    first = min((text.find(s) + len(s) for s in stops if s in text), default=None)
    assert ended == (first is not None)
    if not ended:
        assert out == text
    else:
        # With several stop strings in one piece the earliest counts; piece by piece, the first
        # that is complete.
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(("###",))
    assert matcher.push("text #") == ("text ", None)
    assert matcher.push("#") == ("", None)
    assert matcher.push("1") == ("##1", None)
    assert matcher.push("##") == ("", None)
    assert matcher.push("#") == ("", "###")


def test_the_held_text_comes_out_at_the_end() -> None:
    matcher = StopMatcher(("###",))
    matcher.push("a##")
    assert matcher.flush() == "##"


def test_an_unarmed_matcher_lets_stop_strings_pass() -> None:
    matcher = StopMatcher(("stop",))
    assert matcher.push("stop", armed=False) == ("stop", None)
    assert matcher.push(" stop") == (" ", "stop")


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_codec(tmp_path) is None


def test_a_broken_tokenizer_is_an_error_not_an_absence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        load_codec(tmp_path)


def test_a_saved_tokenizer_is_loaded(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_codec(tmp_path)
    assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert loaded.vocabulary_size == len(tokenizer)


def test_a_declared_plain_tokenizer_is_used_as_it_stands() -> None:
    folder = Path(__file__).resolve().parents[1] / "models" / "tiny-qwen2"
    tokenizer = load_codec(folder).tokenizer
    assert tokenizer.decode(tokenizer("<s> w12 k17 v3 Q k17").input_ids) == "<s> w12 k17 v3 Q k17"


def edited(folder: Path, **fields: Any) -> Path:
    """Change fields of a folder's tokenizer_config.json; None removes one."""
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | fields
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


@pytest.mark.parametrize("own", [{"AutoTokenizer": ["other.Other", None]}, ["other.Other", None]])
@pytest.mark.parametrize("whole", [True, False])
def test_code_of_a_checkpoint_is_refused_by_the_files_name(
    tokenizer: Any, tmp_path: Path, own: Any, whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "other.py").write_text(f"open({str(ran)!r}, 'w')\nclass Other: pass\n")
    edited(tmp_path, tokenizer_class="Other", auto_map=own)
    if not whole:
        (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json asks for .*other\.Other"):
        load_codec(tmp_path)
    assert not ran.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast", None])
def test_the_librarys_own_class_is_used_instead_of_the_checkpoints(
    tokenizer: Any, tmp_path: Path, name: str | None
) -> None:
    tokenizer.save_pretrained(tmp_path)
    edited(tmp_path, tokenizer_class=name, auto_map={"AutoTokenizer": [None, "other.Other"]})
    assert load_codec(tmp_path).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "LlamaForCausalLM", None]
)
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "opt"])
def test_a_tokenizer_json_is_used_whatever_stands_beside_it(
    tmp_path: Path, name: str | None, model_type: str
) -> None:
    made = tokenizer_of("split_digits")
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    edited(tmp_path, tokenizer_class=name)
    text = "items in 2023: 650841823"
    right = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert load_codec(tmp_path).encode(text) == right


def test_a_model_class_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text(json.dumps({"tokenizer_class": "LlamaForCausalLM"}))
        with pytest.raises(CheckpointError, match="'LlamaForCausalLM', which is no tokenizer"):
            load_codec(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_max_length": "x"},
        {"model_max_length": [1]},
        {"padding_side": 3},
        {"bos_token": 5},
        {"added_tokens_decoder": {"x": 1}},
    ],
)
def test_a_tokenizer_whose_files_cannot_work_is_refused_at_load(
    tokenizer: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    tokenizer.save_pretrained(tmp_path)
    edited(tmp_path, **fields)
    with pytest.raises(CheckpointError, match="load_tokenizer"):
        load_codec(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", "{'a': 1}", "\ud800", "9" * 6000])
def test_a_damaged_tokenizer_config_is_an_error_of_ours(
    tokenizer: Any, tmp_path: Path, content: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_codec(tmp_path)


def test_a_panic_while_loading_is_an_error_of_ours(tmp_path: Path) -> None:
    panicking().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    # Every token is a space, which this decoder cannot strip on both sides.
    content["decoder"]["decoders"].insert(0, REPLACE_ALL)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="PanicException"):
        load_codec(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-by-this-name/x", "a\0b"])
def test_a_name_that_can_be_no_folder_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*; pass one that there is"):
        load_codec(name)
