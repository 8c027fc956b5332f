# SPDX-License-Identifier: Apache-2.0
"""Simulated runs that several figures share: both calibrations, the same rules for all methods."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from drawing import geometric_mean
from hybridgen import MachineProfile, sim
from hybridgen.sim import Machine, SchedulerRules
from output import Check, Row

CALIBRATIONS = tuple(sim.CALIBRATIONS)
METHODS = (
    *("flexgen", "moe_lightning", "keyformer", "h2o", "streaming_llm", "infinigen", "hgca"),
    "hybridgen",
)
PLAUSIBLE = (
    "the paper calibration was fitted to nine ratios of the paper: it shows that they are "
    "plausible and does not confirm them"
)
NEAR = 1.15
"""A ratio that is off by no more than this factor is called the paper's."""


@functools.cache
def machine(letter: str, calibration: str) -> Machine:
    """Return a calibrated machine; "H200" has machine B's CPU, which its own profile lacks."""
    if letter != "H200":
        return Machine.load(letter, calibration)
    host, gpu = MachineProfile.load("h100-nvl"), MachineProfile.load("h200")
    values = {f"cpu.{name}": host.values()[f"cpu.{name}"] for name in ("dram_gbs", "kq_gbs")}
    values["cpu.gather_gbs"] = host.values()["cpu.gather_gbs"]
    calibrated = sim.calibration_of(calibration)
    for name, value in calibrated.by_profile["h100-nvl"].items():
        values[name] = value
    mixed = gpu.with_values(
        values, source="assumed: the CPU of machine B", confidence="e", name="h200-cpu-of-B"
    )
    return Machine.load(mixed, calibration)


@functools.cache
def run(
    letter: str,
    calibration: str,
    model: str,
    method: str,
    length: int,
    batch: int = 1,
    rules: SchedulerRules | None = None,
) -> sim.RunResult:
    """Simulate a prompt and its 128 new tokens, once per process."""
    options: dict[str, Any] = {"rules": rules} if method == "hybridgen" else {}
    return sim.simulate_run(
        machine(letter, calibration), model, method, length=length, batch=batch, **options
    )


def run_row(
    letter: str, calibration: str, model: str, method: str, length: int, batch: int = 1
) -> Row:
    """Return a run as a row; K and strategy are those of hybridgen's last step."""
    found = run(letter, calibration, model, method, length, batch)
    last = found.steps[-1] if found.steps else None
    return {
        "mode": "simulated",
        "machine": letter,
        "calibration": calibration,
        "model": model,
        "method": method,
        "tokens": length,
        "batch": batch,
        "prefill_s": found.prefill_s,
        "decode_s": found.decode_s,
        "seconds": found.seconds,
        "k": last.k if last else "",
        "strategy": last.strategy if last else "",
    }


def seconds(rows: Sequence[Row], **where: Any) -> float:
    """Return the seconds of the one row that has these fields."""
    found = [r for r in rows if all(r.get(name) == value for name, value in where.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {where}")
    return float(found[0]["seconds"])


def ratios(rows: Sequence[Row], method: str, key: str, **where: Any) -> dict[Any, float]:
    """Return a method's time over HybridGen's by a field of the rows."""
    keys = dict.fromkeys(r[key] for r in rows if all(r.get(n) == v for n, v in where.items()))
    return {
        each: seconds(rows, method=method, **where, **{key: each})
        / seconds(rows, method="hybridgen", **where, **{key: each})
        for each in keys
    }


def ratio_check(
    claim: str, paper: float, found: dict[str, float], why: str, *, kind: str = "geomean"
) -> Check:
    """Compare ratios of both calibrations with the paper's; the paper calibration decides."""
    near = 1 / NEAR <= found["paper"] / paper <= NEAR
    both = ", ".join(f"{value:.2f}x ({name})" for name, value in found.items())
    return Check(
        f"{paper}x {claim}",
        near,
        f"{kind} {both}",
        "" if near else why,
        f"{found['paper']:.2f}x, not {paper}x, {claim}",
    )


def best_everywhere(rows: Sequence[Row], key: str, **where: Any) -> dict[str, float]:
    """Return methods that are faster than HybridGen anywhere, with the least ratio."""
    faster = {}
    for method in METHODS[:-1]:
        if method == "hgca":
            continue
        least = min(ratios(rows, method, key, **where).values())
        if least < 1:
            faster[method] = least
    return faster


def mean_ratio(rows: Sequence[Row], method: str, key: str, **where: Any) -> float:
    """Return the geometric mean of `ratios`."""
    return geometric_mean(list(ratios(rows, method, key, **where).values()))


def profiles(*letters: str) -> list[MachineProfile]:
    """Return the calibrated profiles of machines."""
    return [machine(letter, name).profile for letter in letters for name in CALIBRATIONS]


def faster_text(found: dict[str, dict[str, float]]) -> str:
    """Say who is faster than HybridGen somewhere, and by how much."""
    parts = []
    for calibration, methods in found.items():
        named = ", ".join(f"{name} (down to {least:.2f}x)" for name, least in methods.items())
        parts.append(f"{calibration}: {named or 'nobody is faster'}")
    return "; ".join(parts)
