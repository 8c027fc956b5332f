# SPDX-License-Identifier: Apache-2.0
"""What a test program says of itself in GoogleTest's JSON, and whether that is what was asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Of one test: "passed", "failed" or "skipped", and what it says of that."""

    name: str
    result: str
    message: str = ""


def listed_tests(text: str) -> list[str]:
    """Return the tests that ``--gtest_list_tests`` lists, by their full names."""
    names: list[str] = []
    suite = ""
    for line in text.splitlines():
        name = line.partition("#")[0].rstrip()
        if name.endswith(".") and not name.startswith(" "):
            suite = name
        elif name.startswith("  "):
            names.append(suite + name.strip())
    return names


def _outcome(suite: str, test: dict[str, Any]) -> Outcome:
    name = f"{suite}.{test['name']}"
    messages = [entry.get("failure", "") for entry in test.get("failures", [])]
    messages += [entry.get("message", "") for entry in test.get("skipped", [])]
    if test.get("failures"):
        return Outcome(name, "failed", "\n".join(messages))
    ran = test.get("status") == "RUN" and test.get("result") == "COMPLETED"
    return Outcome(name, "passed" if ran else "skipped", "\n".join(messages))


def read_report(file: Path) -> list[Outcome] | None:
    """Return what a report says of each test; None if there is no whole report."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [
            _outcome(suite["name"], test)
            for suite in content["testsuites"]
            for test in suite["testsuite"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def complaints(
    program: str, expected: list[str], report: list[Outcome] | None, *, may_skip: bool
) -> list[str]:
    """Return what is wrong with a program's report; nothing: every expected test passed.

    Parameters
    ----------
    program : str
        Its name, for messages.
    expected : list of str
        Full names of the tests that it has.
    report : list of Outcome or None
        What came back; None: nothing did.
    may_skip : bool
        Whether a test may say that it has nothing to do there.
    """
    if report is None:
        return [f"{program} never reported"]
    if not expected:
        return [f"{program} has no tests"]
    found = {outcome.name: outcome for outcome in report}
    wrong = [f"{program}: {name} is not in the report" for name in expected if name not in found]
    for outcome in report:
        if outcome.result == "failed" or (outcome.result == "skipped" and not may_skip):
            wrong.append(f"{program}: {outcome.name} {outcome.result}: {outcome.message}")
    return wrong
