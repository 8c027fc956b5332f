# SPDX-License-Identifier: Apache-2.0
"""Decode steps on a timed device that is slowed, and in the simulator: one mixed profile for both.

A layer of the engine on the timed device cannot be shorter than what its threads need here to hand
it from one to the other, up to a millisecond where the modelled GPU needs a tenth of that.
So all rates of a GPU and its link are divided by one number per case; the CPU is this machine's.
CPU, bytes, scheduler and the order of operations are the engine's; weights are dummies that nobody
reads.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hybridgen as hg
from engine_runs import config_of, decode, options_of, step_figures
from hybridgen import MachineProfile, sim
from hybridgen.sim import HybridSetting, Machine
from output import Row

LETTERS = {"A": "a100", "B": "h100-nvl", "C": "rtx5090"}
RATES = ("gpu.tflops", "gpu.tflops_fp32", "gpu.hbm_gbs", "link.h2d_gbs", "link.d2h_gbs")
CXL_RATES = ("cxl.gbs",)
CPU_FILE = Path(__file__).with_name("slowed_machine_cpu.json")
"""Of the machine that made the committed points, one thread: `python -m hybridgen profile`."""
TOKENS = 1920
STEPS = 3
SLOWED_NOTE = (
    "emulated beside simulated steps: one mixed profile, a GPU and its link with all rates divided "
    "by the number that is shown, so that this machine's own work per layer hides behind them, and "
    "this machine's CPU (link.duplex_factor, which the simulator does not read, is left out); "
    "dummy weights that nobody reads. They show whether engine and simulator agree on a profile, "
    "not how fast the machine is"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A decode step that both modes run.

    Parameters
    ----------
    letter : str
        Of the paper's machine whose GPU and link are slowed.
    times : float
        By how much the GPU is slowed, and the link with it.
    link_times : float
        By how much the link is, if that is more.
    model, method : str
        What runs.
    tokens, batch : int
        Length of each prompt, and how many there are.
    """

    letter: str = "A"
    times: float
    link_times: float = 0.0
    model: str
    method: str
    tokens: int = TOKENS
    batch: int = 1

    @property
    def machine(self) -> Machine:
        """Return the slowed one."""
        return slowed_machine(self.letter, self.times, max(self.times, self.link_times))

    @property
    def row(self) -> Row:
        """Return what both modes' rows say of it."""
        link = f", link / {self.link_times:g}" if self.link_times > self.times else ""
        return {
            "machine": f"{self.letter} / {self.times:g}{link}",
            "model": self.model,
            "method": self.method,
            "tokens": self.tokens,
            "batch": self.batch,
        }

    @property
    def options(self) -> dict[str, Any]:
        """Return LLM's options."""
        return options_of(self.method, self.tokens)


QUICK = tuple(
    Case(times=50, model="llama-3.2-1b", method=method, tokens=128)
    for method in ("full", "hybridgen")
)
"""What a quick form emulates: two steps of a tenth of a second."""


@functools.cache
def slowed_machine(letter: str, times: float, link_times: float) -> Machine:
    """Return a machine with all rates of its GPU and link divided, and this machine's CPU."""
    base, cpu = MachineProfile.load(LETTERS[letter]), MachineProfile.load(CPU_FILE)
    values = base.values()
    content = base.with_values(
        {
            name: values[name] / (link_times if name.startswith("link.") else times)
            for name in (*RATES, *CXL_RATES)
            if name in values
        },
        source=f"machine {letter}'s, divided",
        confidence="e",
        name=f"{base.name}-slowed-{times:g}-{link_times:g}",
        description="",
    ).to_dict()
    measured = cpu.to_dict()
    content["cpu"] = measured["cpu"]
    content["link"].pop("duplex_factor", None)  # the simulator does not read it
    left_out = ("cpu.", "link.duplex_factor")
    for topic in ("source", "confidence"):
        kept = {n: text for n, text in content[topic].items() if not n.startswith(left_out)}
        content[topic] = kept | {n: t for n, t in measured[topic].items() if n.startswith("cpu.")}
    return Machine.load(MachineProfile.from_dict(content))


def slowed_profiles(cases: Sequence[Case]) -> list[MachineProfile]:
    """Return the profiles that cases run on."""
    return list({case.machine.profile.name: case.machine.profile for case in cases}.values())


# -------------------------------------------------------------------------------------- simulated


def setting_of(case: Case, k: int, strategy: str) -> HybridSetting:
    """Return the simulator's setting of the engine's HybridGen.

    Scores are random on the timed device: query heads that share a KV head choose independently.
    """
    shape, window = sim.shape_of(case.model), case.options["kv"].device_tokens
    share = min(1.0, k / max(1, case.tokens - window))
    union = (1 - (1 - share) ** (shape.heads // shape.kv_heads)) / share
    return HybridSetting(k=k, strategy=strategy, window=window, union=union, gather="host")


def simulated_step(case: Case, setting: HybridSetting | None = None) -> sim.StepResult:
    """Simulate a step with the engine's budgets."""
    options: dict[str, Any] = {}
    if case.method == "hybridgen":
        options["setting"] = setting or setting_of(case, case.options["method"].k, "post")
    elif case.method == "keyformer":
        options["form"] = "evict"
    method = "oracle" if case.method == "full" else case.method
    return sim.simulate_step(
        case.machine, case.model, method, tokens=case.tokens, batch=case.batch, **options
    )


def simulated_row(case: Case) -> Row:
    """Return a simulated step."""
    step = simulated_step(case)
    return {
        "mode": "simulated",
        **case.row,
        "step_ms": 1e3 * step.seconds,
        "host_ms": 1e3 * step.stages.host_s,
        "link_ms": 1e3 * step.stages.link_s,
        "device_ms": 1e3 * step.busy["gpu"],
    }


# --------------------------------------------------------------------------------------- emulated


@contextmanager
def loaded(name: str, profile: MachineProfile) -> Iterator[hg.Model]:
    """Load a shape of the paper on the timed device; nothing of its weights is read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{profile.name}.json"
        profile.save(file)
        with hg.Model(
            config_of(sim.shape_of(name)),
            load_format="dummy",
            dtype="float16",
            device=f"emulated:{file}",
        ) as model:
            yield model


def emulated_rows(cases: Sequence[Case], steps: int = STEPS) -> list[Row]:
    """Return an emulated step of each case; all are of one model on one machine."""
    first = cases[0]
    rows = []
    with loaded(first.model, first.machine.profile) as model:
        for case in cases:
            stats, times = decode(model, case.tokens, steps, batch=case.batch, **case.options)
            rows.append({"mode": "emulated", **case.row, **step_figures(stats, times)})
    return rows


@functools.cache
def quick_rows() -> tuple[Row, ...]:
    """Emulate `QUICK`, once per process for all figures."""
    return tuple(emulated_rows(QUICK))


def slowed_rows(cases: Sequence[Case], *, quick: bool, processes: int = 2) -> list[Row]:
    """Return a simulated step of each case and of `QUICK`, and emulated ones.

    In the quick form only `QUICK` is emulated, else all are.
    """
    rows = [simulated_row(case) for case in (*QUICK, *cases)]
    if quick:
        return rows + [dict(row) for row in quick_rows()]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.row["machine"], case.model), []).append(case)
    if len(groups) < 2:
        return rows + [row for group in groups.values() for row in emulated_rows(group)]
    # A process for each: all of them wait, nearly all the time.
    with ProcessPoolExecutor(min(processes, len(groups)), get_context("spawn")) as pool:
        return rows + [row for found in pool.map(emulated_rows, groups.values()) for row in found]
