# SPDX-License-Identifier: Apache-2.0
"""What software reaches on a machine: two calibrations, as changes of a machine profile.

A shipped profile says what hardware can do. How much of it a program gets differs: ``"paper"`` is
Python code on PyTorch, as the paper's artifact and its baselines are; ``"engine"`` is a C++ engine
with kernels of its own. A calibrated profile carries the source of every constant, and whatever is
simulated holds for all methods with the same one. Two more things that the paper leaves open go
with it: how FlexGen's prefetch overlaps, and K_min.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._checks import one_of
from ..machine_profile import MachineProfile

PAPER_MACHINES = {"A": "a100", "B": "h100-nvl", "C": "rtx5090"}
"""Profiles of the machines in the paper's Table 1."""

OVERLAPS = ("none", "sublayer", "ideal")
KEYFORMERS = ("k_only", "full", "evict")

_FITTED = (
    "fitted with six other choices against nine ratios of the paper (1,008 settings tried): it "
    "shows that the ratios are plausible and does not confirm them"
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a kind of software uses a machine.

    Parameters
    ----------
    name : str
        "paper" or "engine".
    description : str
        For titles.
    overlap : str
        Of FlexGen, H2O and StreamingLLM: "none" (a layer's copy starts when the layer before has
        ended), "sublayer" (it overlaps the FFN before), "ideal" (the link is never idle). Of
        InfiniGen: the FFN before hides its fetch, with "ideal" the whole layer before.
    keyformer : str
        "k_only" (keys cross, then values of chosen tokens), "full" (keys and values of all), or
        "evict" (the published method: a reduced cache).
    k_min : int
        Offloaded tokens that HybridGen's scheduler never goes below.
    sync_extra_us : float
        Added to the profile's ``overhead.sync_us``.
    values : dict
        Profile fields by full name, for every machine.
    by_profile : dict of dict
        Further fields by the profile's name; what is not here stays the profile's.
    source : dict of str
        Where each of these comes from.
    """

    name: str
    description: str
    overlap: str
    keyformer: str
    k_min: int
    sync_extra_us: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)
    by_profile: dict[str, dict[str, float]] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)

    def apply(self, profile: MachineProfile) -> MachineProfile:
        """Return a profile with this software's constants and their sources."""
        found = dict(self.values) | self.by_profile.get(profile.name, {})
        if self.sync_extra_us and profile.overhead.sync_us is not None:
            found["overhead.sync_us"] = profile.overhead.sync_us + self.sync_extra_us
        for name, value in found.items():
            note = f"calibration {self.name!r}: {self.source[name]}"
            profile = profile.with_values({name: value}, source=note, confidence="e")
        return profile.with_values(
            {}, source="", confidence="e", name=f"{profile.name}+{self.name}"
        )


CALIBRATIONS = {
    calibration.name: calibration
    for calibration in (
        Calibration(
            name="paper",
            description="Python on PyTorch",
            overlap="none",
            keyformer="k_only",
            k_min=820,
            sync_extra_us=25.0,
            by_profile={
                "a100": {"cpu.kq_gbs": 15.0, "cpu.gather_gbs": 20.0},
                "h100-nvl": {"cpu.kq_gbs": 25.0},
                "rtx5090": {"cpu.kq_gbs": 40.0},
                "gh200": {"cpu.kq_gbs": 65.0},
            },
            source={
                "overhead.sync_us": "the profile's wait and 25 us of Python between half layers, "
                "with which FlexGen's two closed forms of the prototype come out (88.86 and "
                "76.73 ms a step, OPT-13B, 2,048 tokens, A100)",
                "cpu.kq_gbs": "PyTorch's attention on the CPU, by estimate; of the A100 machine "
                f"{_FITTED}; FlexGen's own cost model has 12.3",
                "cpu.gather_gbs": f"rows gathered on the host: {_FITTED}",
            },
        ),
        Calibration(
            name="engine",
            description="C++ engine",
            overlap="ideal",
            keyformer="k_only",
            k_min=128,
            values={
                "overhead.launch_us": 2.5,
                "overhead.sync_us": 6.0,
                "overhead.sync_per_sublayer": False,
            },
            by_profile={
                "a100": {"cpu.kq_gbs": 100.0, "cpu.gather_gbs": 40.0},
                "h100-nvl": {"cpu.gather_gbs": 60.0},
                "rtx5090": {"cpu.gather_gbs": 120.0},
                "gh200": {"cpu.gather_gbs": 180.0},
            },
            source={
                "overhead.launch_us": "estimate for operations that C++ issues",
                "overhead.sync_us": "estimate for an event's wait in C++",
                "overhead.sync_per_sublayer": "the host waits once per step",
                "cpu.kq_gbs": "estimate for kernels with AVX-512: the upper end of 60 to 100",
                "cpu.gather_gbs": "estimate: twice the profile's upper end, for sorted rows on "
                "huge pages with prefetch",
            },
        ),
    )
}


def calibration_of(name: str) -> Calibration:
    """Return a calibration by its name; ConfigError if there is none."""
    one_of("simulate", "calibration", name, tuple(CALIBRATIONS))
    return CALIBRATIONS[name]
