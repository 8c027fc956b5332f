# SPDX-License-Identifier: Apache-2.0
"""Whether the emulated machine's generations would be noticed if they were wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from numa_generation import generation_complaints

PLANNED = {"keys": 800, "values": 800, "total": 2400}
Report = dict[str, Any]


def run_of(dram: int, cxl: int, keys_read: int, values_read: int) -> Report:
    return {
        "ids": [[1, 2], [3, 4]],
        "logprobs": [[-1.0, -2.0], [-0.5, -0.25]],
        "most_bytes": {"device": {}, "dram": {"0": dram}, "cxl": {"1": cxl}},
        "overwritten_bytes": 0,
        "read_bytes": {"cxl_key_bytes_read": keys_read, "cxl_value_bytes_read": values_read},
    }


def host() -> Report:
    return {"planned": PLANNED, "alone": run_of(1600, 0, 0, 0)}


def guest() -> Report:
    changed = {
        "ids": [[1, 7], [3, 8]],
        "logprobs": [[-1.0, -3.0], [-0.5, -2.25]],
        "overwritten_bytes": 600,
    }
    return {
        "planned": PLANNED,
        "tiers": {"0": "dram", "1": "cxl"},
        "values": run_of(1000, 600, 0, 50),
        "overwritten": run_of(1000, 600, 0, 50) | changed,
        "keys": run_of(400, 1300, 70, 50),
    }


def test_what_is_as_asked_leaves_nothing_to_say() -> None:
    assert generation_complaints(host(), guest()) == []


def moved(case: str, dram: int, cxl: int) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report[case]["most_bytes"] |= {"dram": {"0": dram}, "cxl": {"1": cxl}}

    return change


def put(case: str, key: str, value: Any) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report[case][key] = value

    return change


def counted(case: str, name: str, value: int) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report[case]["read_bytes"][name] = value

    return change


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (put("tiers", "1", "faster"), "calls the nodes"),
        (put("planned", "keys", 801), "the plan there"),
        (put("values", "ids", [[1, 2], [3, 5]]), "values: other ids than on the host"),
        (put("values", "logprobs", [[-1, -2], [-0.5, -0.26]]), "values: other logprobs"),
        (put("keys", "ids", [[1, 2], []]), "keys: other ids than on the host"),
        (moved("values", 1300, 300), "values: .* have no room in DRAM"),
        (moved("values", 700, 900), "more in CXL memory than all values"),
        (moved("values", 2100, 600), "values: .* lay in DRAM, of"),
        (moved("values", 900, 600), "no more than"),
        (moved("keys", 600, 1100), "keys: .* have no room in DRAM"),
        (put("values", "most_bytes", {"dram": {"0": 1600}}), "lay on nodes"),
        (put("values", "most_bytes", {"dram": {"0": 1000, "2": 9}, "cxl": {"1": 600}}), "on nodes"),
        (counted("values", "cxl_key_bytes_read", 1), "keys were read from CXL memory"),
        (counted("values", "cxl_value_bytes_read", 0), "none were read from CXL memory"),
        (counted("keys", "cxl_key_bytes_read", 0), "cxl_key_bytes_read is 0"),
        (put("overwritten", "overwritten_bytes", 0), "is not all that overflowed"),
        (put("overwritten", "ids", [[1, 2], [3, 8]]), "prompt 0 says the same"),
        (put("overwritten", "logprobs", [[-1, -3], [-0.5, -0.25]]), "prompt 1 says the same"),
    ],
)
def test_each_fault_is_named(fault: Callable[[Report], None], said: str) -> None:
    report = guest()
    report["planned"] = dict(PLANNED)
    fault(report)
    assert re.search(said, "\n".join(generation_complaints(host(), report)))
