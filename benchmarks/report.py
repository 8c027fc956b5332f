# SPDX-License-Identifier: Apache-2.0
"""The form all benchmarks share: a machine, a table, and one JSON document."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import hybridgen
from hybridgen._files import write_whole

KINDS = {
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_vnni": "AVX-512",
    "avx512_bf16": "BF16",
    "amx": "AMX",
}
"""The kind of machine, by the strongest instruction set that is used."""


@dataclass
class Result:
    """One figure; ``met`` is None where no bar is set, ``value`` where it could not be measured."""

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    met: bool | None = None


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, instruction set, cores, versions."""
    found = hybridgen.info()
    return {
        "cpu": found.cpu["model"],
        "isa": found.cpu["isa"],
        "kind": KINDS.get(found.cpu["isa"], found.cpu["isa"]),
        "isas": found.cpu["isas"],
        "cores": found.cpu["usable"],
        "memory_gib": round(found.cpu["available_host_bytes"] / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hybridgen": hybridgen.__version__,
        "build_type": found.build["build_type"],
        "command": " ".join(["python", *sys.argv]),
    }


@dataclass
class Report:
    """Collects results, prints them as they come, writes them at the end."""

    machine: dict[str, Any] = field(default_factory=describe_machine)
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, value in self.machine.items():
            print(f"# {key}: {value}")
        print(f"\n{'figure':<58} {'value':>10} {'unit':<12} {'bar':>7}  met")

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        bar: float | None = None,
        *,
        at_most: bool | None = None,
    ) -> None:
        """Add one figure; a bar is a lower bound, for times (units us, ms, s) an upper one.

        ``at_most`` says which of both if the unit does not.
        """
        met = None
        if bar is not None:
            is_upper = unit in ("us", "ms", "s") if at_most is None else at_most
            met = value <= bar if is_upper else value >= bar
        self.results.append(Result(name, round(value, 4), unit, bar, met))
        shown = "" if bar is None else f"{bar:g}"
        verdict = {None: "", True: "yes", False: "MISSED"}[met]
        print(f"{name:<58} {value:>10.3f} {unit:<12} {shown:>7}  {verdict}", flush=True)

    def leave_out(self, name: str, unit: str, bar: float | None, why: str) -> None:
        """Add a figure that this machine does not give: its bar is neither met nor missed."""
        self.results.append(Result(name, None, unit, bar))
        shown = "" if bar is None else f"{bar:g}"
        print(f"{name:<58} {'-':>10} {unit:<12} {shown:>7}  not measured here: {why}", flush=True)

    def write(self, path: str | None) -> None:
        """Write ``{"machine": ..., "results": [...]}``; "-" is standard output."""
        document = {"machine": self.machine, "results": [asdict(r) for r in self.results]}
        text = json.dumps(document, indent=2) + "\n"
        if path == "-":
            print(text, end="")
        elif path:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, text)
