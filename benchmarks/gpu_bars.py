# SPDX-License-Identifier: Apache-2.0
"""The machine's rates and the bars of `gpu.py`, which only a GPU can meet or miss."""

from __future__ import annotations

from collections.abc import Sequence

import hybridgen as hg
from gpu_cases import BAR_SHAPE, BAR_TOKENS, POST, PRE, RESIDENT
from gpu_rows import Row, origin_of
from hybridgen.machine_measurement import measure_machine
from hybridgen.machine_rates import field_table
from report import Report

RIVALS = {"flexgen": 5.0, "infinigen": 1.5}
"""How many times as fast hybridgen has to be, at no less recall."""
RESIDENT_BAR = 0.95
"""Of the speed of `full`, where nothing is offloaded."""
HAND_OFF_BAR = 10.0
HAND_OFF = "hand-off of a layer: event to the host, then workers that wait"


def measure_profile(report: Report, *, has_gpu: bool) -> hg.MachineProfile:
    """Report what `python -m hybridgen profile --quick` measures here."""
    profile = measure_machine(quick=True)
    values = profile.values()
    for row in field_table():
        name, unit = row["name"], row["unit"]
        value = values.get(name)
        if isinstance(value, list | tuple):
            of = "MB" if name == "gpu.hbm_eff" else "bytes"
            for size, share in value:
                report.add(f"measured: {name} at {size:g} {of}", share, "share")
        elif value is not None:
            report.add(f"measured: {name}", float(value), str(unit))
    needed = ("overhead.sync_us", "cpu.fork_us")
    if has_gpu and all(name in values for name in needed):
        hand_off = sum(float(values[name]) for name in needed)
        report.add(f"measured: {HAND_OFF}", hand_off, "us", HAND_OFF_BAR)
    else:
        report.leave_out(f"measured: {HAND_OFF}", "us", HAND_OFF_BAR, "needs a GPU")
    return profile


def names_of(rival: str) -> tuple[str, str]:
    """Return what the two bars against a method are called."""
    return at_point(f"{rival} / hybridgen"), at_point(f"recall, hybridgen - {rival}")


def at_point(what: str) -> str:
    """Return a figure's name where the bars are."""
    return f"{BAR_SHAPE}, 1 x {BAR_TOKENS}: {what}"


def leave_out_bars(report: Report, why: str) -> None:
    """Say of every bar of decode steps that it was not measured."""
    for rival, bar in RIVALS.items():
        speed, kept = names_of(rival)
        report.leave_out(f"measured, cuda:0: {speed}", "x", bar, why)
        report.leave_out(f"measured, cuda:0: {kept}", "share", 0.0, why)
    name = at_point(f"full / {RESIDENT}")
    report.leave_out(f"measured, cuda:0: {name}", "x", RESIDENT_BAR, why)


def compare_rows(
    report: Report, rows: Sequence[Row], recalled: dict[str, float], device: str
) -> None:
    """Report hybridgen against its rivals where the bars are; emulated ratios have no bar."""
    found = {
        row["method"]: row
        for row in rows
        if (row["device"], row["shape"], row["tokens"], row["batch"])
        == (device, BAR_SHAPE, BAR_TOKENS, 1)
    }
    is_measured = not device.startswith("emulated:")
    prefix = origin_of(device)

    def add(name: str, value: float | None, unit: str, bar: float, why: str) -> None:
        if value is not None:
            report.add(f"{prefix}: {name}", value, unit, bar if is_measured else None)
        elif is_measured:
            report.leave_out(f"{prefix}: {name}", unit, bar, why)

    for rival, bar in RIVALS.items():
        speed, kept = names_of(rival)
        ours = fastest(found, recalled, rival)
        ratio = difference = None
        if rival in found and ours is not None:
            ratio = found[rival]["step_ms"] / found[ours]["step_ms"]
            speed = f"{speed.removesuffix('hybridgen')}{ours}"
            if rival in recalled and ours in recalled:
                difference = recalled[ours] - recalled[rival]
        add(speed, ratio, "x", bar, "not both rows are there")
        if is_measured:
            add(kept, difference, "share", 0.0, "no recall of both")
    ratio = None
    if "full" in found and RESIDENT in found:
        ratio = found["full"]["step_ms"] / found[RESIDENT]["step_ms"]
    add(at_point(f"full / {RESIDENT}"), ratio, "x", RESIDENT_BAR, "not both rows are there")


def fastest(found: dict[str, Row], recalled: dict[str, float], rival: str) -> str | None:
    """Return the fastest setting of hybridgen that recalls no less; of all where none does."""
    ours = [name for name in found if name.startswith((POST, PRE))]
    as_good = [name for name in ours if recalled.get(name, 0.0) >= recalled.get(rival, 1.0)]
    return min(as_good or ours, key=lambda name: float(found[name]["step_ms"]), default=None)
