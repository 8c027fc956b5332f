# SPDX-License-Identifier: Apache-2.0
"""The check that a refactoring left all methods' results as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compare_outputs
import hybridgen as hg

ALL_SETTINGS: dict[str, dict[str, Any]] = dict(compare_outputs.SETTINGS)
FEW = ["full", "hybridgen, int8", "streaming_llm, clamp"]


@pytest.fixture(autouse=True)
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: compare_outputs.SETTINGS[name] for name in FEW}
    monkeypatch.setattr(compare_outputs, "SETTINGS", settings)
    monkeypatch.setattr(compare_outputs, "MODELS", ("tiny-llama",))


def test_the_settings_cover_every_method() -> None:
    names = {options.get("method", "hybridgen") for options in ALL_SETTINGS.values()}
    assert names == {row["name"] for row in hg.methods.table()}


def test_the_same_tree_gives_the_same_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "before.json"
    assert compare_outputs.main(["record", str(file)]) == 0
    assert compare_outputs.main(["compare", str(file)]) == 0
    assert "3 settings, 0 differ" in capsys.readouterr().out


def test_a_last_bit_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = compare_outputs.record()
    logprobs = record["tiny-llama: hybridgen, int8"]["requests"][0]["logprobs"]
    token, value = next(iter(logprobs[3].items()))
    digit = value.index("p") - 7  # the last of a float32's
    logprobs[3][token] = value[:digit] + ("8" if value[digit] != "8" else "0") + value[digit + 1 :]
    del record["tiny-llama: full"]
    file = tmp_path / "before.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    assert compare_outputs.main(["compare", str(file)]) == 1
    said = capsys.readouterr().out
    assert "tiny-llama: hybridgen, int8: requests" in said
    assert "tiny-llama: full: only after the change" in said
