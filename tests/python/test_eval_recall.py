# SPDX-License-Identifier: Apache-2.0
"""The recall evaluation tells a cache that keeps far tokens from one that does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import eval_recall  # noqa: E402

MODEL = REPOSITORY / "tests" / "models" / "tiny-llama"


def evaluate(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    base = ["--model", str(MODEL), "--task", "kv", "--distance", "64", "256", "--n", "16"]
    assert eval_recall.main([*base, "--seed", "7", "--json", "-", *options]) == 0
    printed = capsys.readouterr()
    assert "exact match" in printed.err
    content = json.loads(printed.out)
    assert content["options"]["task"] == "kv"
    result: dict[str, Any] = content["results"][0]
    assert result["distance"] == [64, 256]
    assert result["n"] == 16
    return result


def test_full_attention_recalls(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(capsys, "--method", "full")
    assert result["exact_match"] >= 0.9
    assert result["offloaded_share"] == 0.0


@pytest.mark.parametrize("query", ["exact", "speculative", "rescore"])
def test_hybrid_attention_recalls_with_a_twentieth_of_the_tokens(
    capsys: pytest.CaptureFixture[str], query: str
) -> None:
    result = evaluate(capsys, "--device-tokens", "30", "--k", "0.05", "--query", query)
    assert result["exact_match"] >= 0.9
    assert result["offloaded_share"] > 0.8
    assert result["attended_offloaded_share"] < 0.1


def test_a_window_with_sinks_does_not_recall(capsys: pytest.CaptureFixture[str]) -> None:
    window = ["--strategy", "pre", "--pre-selector", "sinks_recent"]
    result = evaluate(capsys, "--device-tokens", "30", "--k", "0.05", *window)
    assert result["exact_match"] <= 0.3


@pytest.mark.parametrize(
    ("option", "value"),
    [("--n", "0"), ("--decode-prompt-tokens", "0"), ("--k", "0"), ("--length", "20")],
)
def test_a_wrong_option_is_one_line_and_code_two(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    arguments = ["--model", str(MODEL), "--task", "kv", "--distance", "64", "256", option, value]
    assert eval_recall.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
