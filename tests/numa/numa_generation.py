# SPDX-License-Identifier: Apache-2.0
"""What generation.py found on the emulated machine, held against the host and what was asked."""

from __future__ import annotations

from typing import Any

# Of log probabilities, where old values are gone: far beyond rounding, which there is none of.
VISIBLE_CHANGE = 0.1
TIERS = {"0": "dram", "1": "cxl"}


def _differing(name: str, run: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    """Return where a run is not bit by bit what DRAM alone gives on the host."""
    return [
        f"{name}: other {what} than on the host: {run[what]} instead of {alone[what]}"
        for what in ("ids", "logprobs")
        if run[what] != alone[what]
    ]


def _misplaced(name: str, run: dict[str, Any], overflow: int, planned: dict[str, int]) -> list[str]:
    """Return what the kernel's nodes have against a plan with `overflow` bytes beyond DRAM."""
    both = planned["keys"] + planned["values"]
    dram, cxl = (run["most_bytes"].get(tier, {}) for tier in ("dram", "cxl"))
    wrong = []
    if set(dram) != {"0"} or set(cxl) != {"1"}:
        wrong.append(f"{name}: the tiers' bytes lay on nodes {sorted(dram)} and {sorted(cxl)}")
    if sum(cxl.values()) < overflow:
        wrong.append(f"{name}: {cxl} lay in CXL memory, {overflow} bytes have no room in DRAM")
    if sum(dram.values()) > planned["total"] - overflow:
        wrong.append(f"{name}: {dram} lay in DRAM, of KVConfig(dram={planned['total'] - overflow})")
    if sum(dram.values()) + sum(cxl.values()) < both:
        wrong.append(f"{name}: of {both} bytes no more than {dram} and {cxl} were seen")
    return wrong


def _of_values(run: dict[str, Any], planned: dict[str, int]) -> list[str]:
    wrong = _misplaced("values", run, planned["values"] // 2, planned)
    if sum(run["most_bytes"].get("cxl", {}).values()) > planned["values"]:
        wrong.append(f"values: {run['most_bytes']} is more in CXL memory than all values")
    read = run["read_bytes"]
    if read["cxl_key_bytes_read"] != 0:
        wrong.append(f"values: keys were read from CXL memory while DRAM has room: {read}")
    if read["cxl_value_bytes_read"] <= 0:
        wrong.append("values: none were read from CXL memory")
    return wrong


def _of_keys(run: dict[str, Any], planned: dict[str, int]) -> list[str]:
    wrong = _misplaced("keys", run, planned["values"] + planned["keys"] // 2, planned)
    for name, size in run["read_bytes"].items():
        if size <= 0:
            wrong.append(f"keys: {name} is {size}, though keys alone exceed DRAM")
    return wrong


def _unnoticed(run: dict[str, Any], alone: dict[str, Any], planned: dict[str, int]) -> list[str]:
    """Return prompts whose text does not depend on what lay on the slow node."""
    wrong = []
    if run["overwritten_bytes"] < planned["values"] // 2:
        wrong.append(f"overwritten: {run['overwritten_bytes']} bytes is not all that overflowed")
    for number, (ids, logprobs) in enumerate(zip(run["ids"], run["logprobs"], strict=True)):
        pairs = zip(logprobs, alone["logprobs"][number], strict=True)
        change = max(abs(one - other) for one, other in pairs)
        if ids == alone["ids"][number] or change < VISIBLE_CHANGE:
            wrong.append(
                f"overwritten: prompt {number} says the same without the values on the slow node, "
                f"so that it proves nothing (log probabilities change by {change:.3g})"
            )
    return wrong


def generation_complaints(host: dict[str, Any], guest: dict[str, Any]) -> list[str]:
    """Return what is wrong with the guest's generations; nothing: all is as on the host.

    Parameters
    ----------
    host, guest : dict
        What generation.py wrote with ``--on-host`` and without.
    """
    alone, planned = host["alone"], host["planned"]
    wrong = []
    if guest["tiers"] != TIERS:
        wrong.append(f"hybridgen.info() calls the nodes {guest['tiers']}")
    if guest["planned"] != planned:
        wrong.append(f"the plan there is {guest['planned']}, here {planned}")
    for name in ("values", "keys"):
        wrong += _differing(name, guest[name], alone)
    wrong += _of_values(guest["values"], planned)
    wrong += _of_keys(guest["keys"], planned)
    wrong += _unnoticed(guest["overwritten"], alone, planned)
    return [f"generation: {text}" for text in wrong]


def generation_log(guest: dict[str, Any]) -> list[str]:
    """Return what was asserted of the guest's generations, one line each."""

    def of(name: str) -> str:
        return f"nodes {guest[name]['most_bytes']}, {guest[name]['read_bytes']}"

    count = sum(map(len, guest["values"]["ids"]))
    return [
        f"generation: {guest['isa']}, import {guest['import_seconds']:.0f} s there",
        f"generation: values overflow: {count} tokens and their log probabilities are those of the "
        f"host, bit by bit; no keys in CXL memory; {of('values')}",
        f"generation: keys overflow: the same tokens; {of('keys')}",
        f"generation: {guest['overwritten']['overwritten_bytes']} bytes on the slow node "
        "overwritten: every prompt is told otherwise",
    ]
