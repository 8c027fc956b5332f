# SPDX-License-Identifier: Apache-2.0
"""generation_config.json: every field that transformers knows is translated, harmless or named."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from hybridgen import CheckpointError, ConfigError, HybridGenError, SamplingParams


def _generation_config(folder: Path, **content: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_generation_config_gives_the_model_authors_defaults(tmp_path: Path) -> None:
    folder = _generation_config(
        tmp_path, do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
    params = SamplingParams.from_pretrained(folder, max_tokens=9)
    assert (params.temperature, params.top_p, params.top_k) == (0.7, 0.8, 20)
    assert (params.repetition_penalty, params.max_tokens) == (1.05, 9)


def test_a_generation_config_without_do_sample_is_greedy(tmp_path: Path) -> None:
    params = SamplingParams.from_pretrained(_generation_config(tmp_path, temperature=0.7))
    assert params == SamplingParams()


def test_overrides_may_use_either_name(tmp_path: Path) -> None:
    folder = _generation_config(tmp_path, do_sample=True, temperature=0.7, max_new_tokens=50)
    assert SamplingParams.from_pretrained(folder, max_new_tokens=4).max_tokens == 4
    assert SamplingParams.from_pretrained(folder, do_sample=False).temperature == 0.0


def test_what_a_generation_config_asks_for_in_vain_is_named_in_one_warning(tmp_path: Path) -> None:
    folder = _generation_config(
        tmp_path,
        do_sample=True,
        temperature=0.5,
        num_beams=4,
        length_penalty=2.0,
        typical_p=0.9,
        max_length=64,
        chat_format="chatml",
    )
    with pytest.warns(UserWarning, match="no counterpart") as caught:
        params = SamplingParams.from_pretrained(folder)
    assert params.temperature == 0.5
    assert len(caught) == 1
    text = str(caught[0].message)
    for name in ("num_beams=4", "length_penalty", "typical_p", "max_length=64", "chat_format"):
        assert name in text
    assert "pass fields of SamplingParams" in text


# Of every field of transformers' GenerationConfig: a value that asks for something, and what
# becomes of it here.
_COUNTERPARTS = {
    "max_new_tokens": (9, "max_tokens", 9),
    "min_new_tokens": (3, "min_tokens", 3),
    "stop_strings": (["."], "stop", (".",)),
    "temperature": (0.5, "temperature", 0.5),
    "top_k": (7, "top_k", 7),
    "top_p": (0.5, "top_p", 0.5),
    "min_p": (0.1, "min_p", 0.1),
    "repetition_penalty": (1.5, "repetition_penalty", 1.5),
    "num_return_sequences": (2, "n", 2),
}
_LEFT_OUT = {
    "max_length": 99,
    "min_length": 5,
    "max_time": 1.0,
    "num_beams": 4,
    "cache_implementation": "quantized",
    "top_h": 0.4,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "encoder_repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": [4, 1.1],
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "sequence_bias": [[[5], 1.0]],
    "token_healing": True,
    "guidance_scale": 2.0,
    "watermarking_config": {"bias": 2.0},
    "encoder_no_repeat_ngram_size": 2,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "constraints": [{}],
    "force_words_ids": [[5]],
}
_ONLY_WITH_BEAMS = {
    "early_stopping": True,
    "length_penalty": 2.0,
    "diversity_penalty": 1.0,
    "num_beam_groups": 2,
}
_KEEP_THE_TEXT = (
    "do_sample use_mtp use_cache cache_config max_cache_len renormalize_logits "
    "remove_invalid_values output_attentions output_hidden_states output_scores output_logits "
    "return_dict_in_generate pad_token_id bos_token_id eos_token_id decoder_start_token_id "
    "is_assistant num_assistant_tokens num_assistant_tokens_schedule "
    "assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size "
    "assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight "
    "speculation_type compile_config disable_compile continuous_batching_config low_memory "
    "prefill_chunk_size transformers_version _from_model_config"
).split()


def test_every_field_of_transformers_generation_config_is_accounted_for() -> None:
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    ours = {*_COUNTERPARTS, *_LEFT_OUT, *_ONLY_WITH_BEAMS, *_KEEP_THE_TEXT}
    assert known <= ours


@pytest.mark.parametrize("name", sorted(_COUNTERPARTS))
def test_a_field_with_a_counterpart_is_translated(name: str) -> None:
    value, ours, expected = _COUNTERPARTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = SamplingParams.from_generation_config({"do_sample": True, name: value})
    assert getattr(params, ours) == expected


@pytest.mark.parametrize("name", sorted(_LEFT_OUT))
def test_a_field_that_changes_the_text_without_a_counterpart_is_named(name: str) -> None:
    content = {"do_sample": True, name: _LEFT_OUT[name]}
    with pytest.warns(UserWarning, match=rf"sets {name}=") as caught:
        params = SamplingParams.from_generation_config(content)
    assert len(caught) == 1
    assert params == SamplingParams.from_generation_config({"do_sample": True})


@pytest.mark.parametrize("name", sorted(_ONLY_WITH_BEAMS))
def test_a_field_of_beam_search_is_named_beside_beams_only(name: str) -> None:
    content = {name: _ONLY_WITH_BEAMS[name]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplingParams.from_generation_config(content)
    with pytest.warns(UserWarning, match=name):
        SamplingParams.from_generation_config(content | {"num_beams": 2})


def test_values_that_ask_for_nothing_are_not_worth_a_warning() -> None:
    content = GenerationConfig._get_default_generation_params() | {
        "max_length": None,
        "bad_words_ids": [],
        "suppress_tokens": [],
        "forced_bos_token_id": -1,
        "sequence_bias": {},
        "guidance_scale": 1.0,
        "temperature": None,
        "_commit_hash": "x",
        "transformers_version": "4.40.0",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SamplingParams.from_generation_config(content) == SamplingParams()


def test_sampling_without_a_top_k_takes_transformers_50() -> None:
    assert SamplingParams.from_generation_config({"do_sample": True}).top_k == 50
    assert SamplingParams.from_generation_config({"do_sample": True, "top_k": 0}).top_k == 0


def test_what_transformers_clips_is_clipped_here() -> None:
    read = SamplingParams.from_generation_config
    assert read({"min_new_tokens": 9, "max_new_tokens": 5}).min_tokens == 5
    assert read({"min_new_tokens": 9}, max_tokens=5).min_tokens == 5
    assert read({"do_sample": True, "top_p": 1.5}).top_p == 1.0
    assert read({"do_sample": True, "top_p": 0.0}).temperature == 0.0


def test_sampling_by_an_override_takes_the_files_temperature() -> None:
    content = {"do_sample": False, "temperature": 0.3, "top_p": 0.4}
    params = SamplingParams.from_generation_config(content, do_sample=True)
    assert (params.temperature, params.top_p) == (0.3, 0.4)


@pytest.mark.parametrize("text", ["[]", "{", "\xff", '{"top_k": ' + "9" * 6000 + "}"])
def test_a_damaged_generation_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        SamplingParams.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"top_k": 2**70, "do_sample": True},
        {"max_new_tokens": 10**400},
        {"repetition_penalty": 10**400},
        {"do_sample": "yes"},
        {"stop_strings": 5},
        {"temperature": "hot", "do_sample": True},
    ],
)
def test_a_generation_config_with_impossible_values_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(HybridGenError, match="allowed"):
        SamplingParams.from_generation_config(content)


def test_a_missing_generation_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        SamplingParams.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "overrides"),
    [
        ({"max_length": 20, "min_length": 3}, {"max_tokens": 64, "min_tokens": 0}),
        ({"max_length": 20}, {"max_new_tokens": 64}),
        ({"max_length": 20, "max_new_tokens": 9}, {"max_tokens": 64}),
    ],
)
def test_what_an_override_takes_the_place_of_is_not_named(
    content: dict[str, Any], overrides: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = SamplingParams.from_generation_config(content, **overrides)
    assert params == SamplingParams(**overrides)
    with pytest.warns(UserWarning, match="sets num_beams=2, which"):
        SamplingParams.from_generation_config(content | {"num_beams": 2}, **overrides)


def test_of_a_files_limits_the_larger_one_gives_way() -> None:
    read = SamplingParams.from_generation_config
    assert read({"max_new_tokens": 4, "min_new_tokens": 9}).min_tokens == 4
    assert read({"min_new_tokens": 9}, max_new_tokens=3).min_tokens == 3
    assert read({"max_new_tokens": 4, "min_new_tokens": 9}, max_tokens=None).min_tokens == 9
    with pytest.raises(ConfigError, match="min_tokens is 9; allowed: at most max_tokens"):
        read({"max_new_tokens": 4}, min_tokens=9)


@pytest.mark.parametrize("content", [None, 5, "auto", [1], [("a", 1)], {1: 2}])
def test_a_generation_config_is_a_mapping_of_names(content: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\[SamplingParams\] the generation config is "):
        SamplingParams.from_generation_config(content)


@pytest.mark.parametrize("path", [5, None, b"x", "x" * 5000, "~nobody-by-this-name/x", "a\0b"])
def test_what_can_be_no_path_is_refused_by_name(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\[SamplingParams\] path is .*; allowed: the path of"):
        SamplingParams.from_pretrained(path)


def test_a_pipe_in_the_place_of_a_generation_config_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        SamplingParams.from_pretrained(tmp_path)
