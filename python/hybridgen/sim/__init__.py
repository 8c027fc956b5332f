# SPDX-License-Identifier: Apache-2.0
"""Simulated decode steps on machines that are not at hand, and the paper's closed formulas.

Pure Python over `MachineProfile` files, without randomness: the same call gives the same numbers.
docs/figures.md says what is modelled and what is not.

Examples
--------
>>> from hybridgen import sim
>>> machine = sim.Machine.load("A", "engine")
>>> step = sim.simulate_step(machine, "opt-13b", "flexgen", tokens=2048)
>>> round(step.seconds * 1e3)
69
"""

from __future__ import annotations

from . import formulas
from .calibration import CALIBRATIONS, PAPER_MACHINES, Calibration, calibration_of
from .machine import Machine
from .methods import METHODS, HybridSetting
from .runs import (
    RunResult,
    ScheduledStep,
    StepResult,
    prefill_seconds,
    schedule,
    simulate_run,
    simulate_step,
)
from .scheduler import PRESETS, SchedulerRules, SchedulerState, StageTimes
from .shapes import PAPER_MODELS, SHAPES, ModelShape, shape_of
from .tasks import Span, Task, Tasks, fair_rates, simulate

__all__ = [
    "CALIBRATIONS",
    "METHODS",
    "PAPER_MACHINES",
    "PAPER_MODELS",
    "PRESETS",
    "SHAPES",
    "Calibration",
    "HybridSetting",
    "Machine",
    "ModelShape",
    "RunResult",
    "ScheduledStep",
    "SchedulerRules",
    "SchedulerState",
    "Span",
    "StageTimes",
    "StepResult",
    "Task",
    "Tasks",
    "calibration_of",
    "fair_rates",
    "formulas",
    "prefill_seconds",
    "schedule",
    "shape_of",
    "simulate",
    "simulate_run",
    "simulate_step",
]
