# SPDX-License-Identifier: Apache-2.0
"""FlexGen's command line: its flags, types, defaults and published abbreviations."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from hybridgen.flexgen.flags import COMPLETION, FLEX_OPT, add_parser_arguments, make_parser
from hybridgen.flexgen.flex_opt import parse_arguments
from hybridgen.flexgen.utils import str2bool

DEFAULTS: dict[str, Any] = {
    "model": "facebook/opt-6.7b",
    "path": "~/opt_weights",
    "offload_dir": "~/flexgen_offload_dir",
    "prompt_len": 512,
    "gen_len": 32,
    "cut_gen_len": None,
    "debug_mode": None,
    "gpu_batch_size": 4,
    "num_gpu_batches": 1,
    "percent": [100, 0, 100, 0, 100, 0],
    "sep_layer": True,
    "pin_weight": True,
    "cpu_cache_compute": False,
    "attn_sparsity": 1.0,
    "compress_weight": False,
    "compress_cache": False,
    "log_file": "auto",
    "no_log": False,
    "verbose": 2,
    "overlap": True,
}


def test_there_are_flexgens_twenty_flags_with_its_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_parser_arguments(parser)
    assert vars(parser.parse_args([])) == DEFAULTS
    assert len(FLEX_OPT) == 20


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--m opt-1.3b", "model", "opt-1.3b"),
        ("--pa p", "path", "p"),
        ("--of o", "offload_dir", "o"),
        ("--pr 7", "prompt_len", 7),
        ("--prompt 7", "prompt_len", 7),
        ("--ge 7", "gen_len", 7),
        ("--cu 7", "cut_gen_len", 7),
        ("--d breakdown", "debug_mode", "breakdown"),
        ("--debug fewer_batch", "debug_mode", "fewer_batch"),
        ("--gp 7", "gpu_batch_size", 7),
        ("--nu 7", "num_gpu_batches", 7),
        ("--pe 1 2 3 4 5 6", "percent", [1, 2, 3, 4, 5, 6]),
        ("--s 0", "sep_layer", False),
        ("--pi 0", "pin_weight", False),
        ("--pin-weight", "pin_weight", True),
        ("--cp", "cpu_cache_compute", True),
        ("--cpu", "cpu_cache_compute", True),
        ("--a 0.5", "attn_sparsity", 0.5),
        ("--compress-w", "compress_weight", True),
        ("--compress-c", "compress_cache", True),
        ("--l x.log", "log_file", "x.log"),
        ("--no", "no_log", True),
        ("--v 1", "verbose", 1),
        ("--ov False", "overlap", False),
    ],
)
def test_the_shortest_published_abbreviations_mean_what_they_mean_there(
    words: str, name: str, value: object
) -> None:
    found = vars(parse_arguments(words.split()))
    assert found[name] == value
    others = {other: v for other, v in DEFAULTS.items() if other != name}
    assert {other: found[other] for other in others} == others


def test_completion_has_eight_of_them() -> None:
    names = {flag.name for flag in COMPLETION}
    assert names == {
        "--model",
        "--path",
        "--offload-dir",
        "--percent",
        "--pin-weight",
        "--cpu-cache-compute",
        "--compress-weight",
        "--compress-cache",
    }


@pytest.mark.parametrize("words", [[], ["--hh-ratio", "0.1"], ["--alpha", "4"]])
def test_every_flag_of_ours_begins_with_one_prefix(words: list[str]) -> None:
    parser = make_parser("p", FLEX_OPT, None, words)
    forks = {"--alpha", "--partial-weight-ratio", "--max-num-kv"}
    forks |= {"--warmup-input-path", "--test-input-path"}
    forks |= {"--hh-ratio", "--hh-all", "--hh-long-seq"}
    own = set(parser._option_string_actions) - {flag.name for flag in FLEX_OPT}
    own -= {"-h", "--h", "--help"} | (forks if words else set())
    assert own
    assert all(name.startswith("--hg-") for name in own)


def test_flags_of_forks_exist_only_where_one_of_them_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse_arguments(["--test-input-path", "f", "--alpha=5"]).alpha == 5
    assert parse_arguments(["--test-input-path", "f"]).alpha is None
    assert parse_arguments(["--hh-ratio", "0.2", "--hh-all"]).hh_all is True
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--warmup", "f"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --warmup" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["yes", "True", "t", "Y", "1"])
def test_a_switch_says_yes(text: str) -> None:
    assert str2bool(text) is True


@pytest.mark.parametrize("text", ["no", "FALSE", "f", "n", "0"])
def test_a_switch_says_no(text: str) -> None:
    assert str2bool(text) is False


@pytest.mark.parametrize(
    "words", ["--overlap maybe", "--percent 1.5", "--debug-mode x", "--gen-len x", "--what"]
)
def test_what_a_flag_does_not_take_ends_with_exit_code_2(words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(words.split())
    assert ended.value.code == 2
