# SPDX-License-Identifier: Apache-2.0
"""Whether the run on the emulated machine would notice that something is missing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import numa_machine
from numa_report import Outcome, complaints, listed_tests, read_report

LISTING = """Running main() from gtest_main.cc
Discovery.
  FindsTheNode
Kinds/Placement.  # TypeParam = int
  OnANode/0  # GetParam() = 1
  OnANode/1  # GetParam() = 2
"""
NAMES = ["Discovery.FindsTheNode", "Kinds/Placement.OnANode/0", "Kinds/Placement.OnANode/1"]


def report(*outcomes: Outcome) -> list[Outcome]:
    return list(outcomes)


def gtest_json(**changes: Any) -> dict[str, Any]:
    test = {"name": "FindsTheNode", "status": "RUN", "result": "COMPLETED"} | changes
    return {"testsuites": [{"name": "Discovery", "testsuite": [test]}]}


def test_tests_are_listed_by_their_full_names() -> None:
    assert listed_tests(LISTING) == NAMES


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, "passed"),
        ({"failures": [{"failure": "1 is not 2"}]}, "failed"),
        ({"result": "SKIPPED", "skipped": [{"message": "no such node"}]}, "skipped"),
        ({"status": "NOTRUN", "result": "SUPPRESSED"}, "skipped"),
    ],
)
def test_outcomes_are_read_from_a_report(
    changes: dict[str, Any], result: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(gtest_json(**changes)), encoding="utf-8")
    found = read_report(file)
    assert found is not None
    assert [(one.name, one.result) for one in found] == [("Discovery.FindsTheNode", result)]


@pytest.mark.parametrize("text", [None, "", '{"testsuites": [', "[]", '{"testsuites": 3}'])
def test_a_report_that_is_not_whole_is_none(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert read_report(file) is None


def test_every_test_that_passed_leaves_nothing_to_say() -> None:
    assert complaints("p", ["a"], report(Outcome("a", "passed")), may_skip=False) == []


def test_silence_is_a_failure() -> None:
    assert complaints("p", ["a"], None, may_skip=True) == ["p never reported"]
    assert complaints("p", [], [], may_skip=True) == ["p has no tests"]
    assert complaints("p", ["a"], [], may_skip=True) == ["p: a is not in the report"]


def test_a_test_that_failed_or_skipped_is_named_with_its_reason() -> None:
    skipped, failed = Outcome("a", "skipped", "no node"), Outcome("a", "failed", "1 is not 2")
    assert complaints("p", ["a"], [skipped], may_skip=False) == ["p: a skipped: no node"]
    assert complaints("p", ["a"], [skipped], may_skip=True) == []
    assert complaints("p", ["a"], [failed], may_skip=True) == ["p: a failed: 1 is not 2"]


def test_each_package_is_pinned_by_its_hash() -> None:
    packages = numa_machine.packages()
    assert len({package.file_name for package in packages}) == len(packages)
    for package in packages:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.path.startswith("pool/main/")
        assert package.file_name.endswith((".deb",))


def test_a_package_with_another_hash_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "pool").mkdir(parents=True)
    (mirror / "pool/a.deb").write_bytes(b"something else")
    monkeypatch.setattr(numa_machine, "MIRRORS", (mirror.as_uri(),))
    package = numa_machine.Package("0" * 64, "pool/a.deb")
    with pytest.raises(numa_machine.CannotRun, match=r"a\.deb cannot be fetched: .*SHA-256 is"):
        numa_machine._fetch(package, tmp_path)
    assert not (tmp_path / "a.deb").exists()


def test_a_machine_of_another_kind_says_why_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(numa_machine.CannotRun, match="for x86_64, this is aarch64"):
        numa_machine.NumaMachine(tmp_path)
