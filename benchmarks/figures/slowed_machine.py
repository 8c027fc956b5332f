# SPDX-License-Identifier: Apache-2.0
"""Shapes of the paper on a timed device that is slowed, and in the simulator: the same profile.

A step of the engine on the timed device cannot be shorter than what the emulator needs for its own
work per operation on this machine, some hundred milliseconds where the modelled GPU needs a few.
So all rates of machine A's GPU and link are divided by one number per shape. CPU, bytes, scheduler
and the order of operations are the engine's; weights are dummies that nobody reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hybridgen as hg
from drawing import COLORS, METHOD_LABELS
from engine_runs import config_of, decode, options_of, step_figures
from hybridgen import MachineProfile, sim
from hybridgen.sim import HybridSetting, Machine
from output import HATCHES, Check, Row
from simulations import NEAR

SLOWED = {"opt-1.3b": 500, "llama-3.2-1b": 500, "qwen2.5-7b": 160, "llama-3.1-8b": 180}
"""By how much: a step then takes a second or several."""
METHODS = ("flexgen", "h2o", "infinigen", "hybridgen")
SLOWED_NOTE = (
    "emulated beside simulated steps: machine A with all rates of its GPU and link divided "
    "(by the number in the picture), so that the emulator's own work hides behind them, and "
    "this machine's CPU (in the simulator A's: either is hardly waited for); dummy weights "
    "that nobody reads, 1,920 tokens, batch 1. They show whether engine and simulator agree "
    "on a profile, not how fast machine A is"
)
RATES = ("gpu.tflops", "gpu.tflops_fp32", "gpu.hbm_gbs", "link.h2d_gbs", "link.d2h_gbs")
TOKENS = 1920
STEPS = 3


def slowed_profile(times: float) -> MachineProfile:
    """Return machine A with all rates of its GPU and link divided."""
    base = MachineProfile.load("a100")
    values = base.values()
    return base.with_values(
        {name: values[name] / times for name in RATES},
        source=f"machine A's over {times:g}",
        confidence="e",
        name=f"a100-slowed-{times:g}",
    )


def simulated_seconds(profile: MachineProfile, model: str, method: str, tokens: int) -> float:
    """Return a simulated step of a method with the engine's budgets."""
    machine = Machine.load(profile)
    options: dict[str, Any] = {}
    if method == "hybridgen":
        engine = options_of(method, TOKENS)
        options["setting"] = HybridSetting(
            k=engine["method"].k, window=engine["kv"].device_tokens, gather="host"
        )
    return sim.simulate_step(machine, model, method, tokens=tokens, **options).seconds


def emulated_row(model: hg.Model, row: Row, method: str, tokens: int, steps: int) -> Row:
    """Run a prompt; return a step as the engine had it, with what ``row`` says of it."""
    stats, times = decode(model, tokens, steps, **options_of(method, tokens))
    named = {"mode": "emulated", "method": method, "tokens": tokens}
    return row | named | step_figures(stats, times)


def slowed_rows(quick: bool) -> list[Row]:
    """Return a simulated step of each method on each shape, and an emulated one.

    In the quick form only two short prompts are emulated.
    """
    rows: list[Row] = []
    for name, times in SLOWED.items():
        row = {"machine": f"A / {times}", "model": name, "batch": 1}
        profile = slowed_profile(times)
        for method in METHODS:
            step = simulated_seconds(profile, name, method, TOKENS)
            shared = {"mode": "simulated", "method": method, "tokens": TOKENS}
            rows.append(row | shared | {"step_ms": 1e3 * step})
    if quick:
        return rows + emulated_rows("llama-3.2-1b", 10, METHODS[::3], 128)
    # A process for each shape: all of them wait, nearly all the time.
    with ProcessPoolExecutor(len(SLOWED), get_context("spawn")) as pool:
        runs = [
            pool.submit(emulated_rows, name, times, METHODS, TOKENS)
            for name, times in SLOWED.items()
        ]
        return rows + [row for run in runs for row in run.result()]


def emulated_rows(name: str, times: float, methods: Sequence[str], tokens: int) -> list[Row]:
    """Return an emulated step of each method on a shape."""
    row = {"machine": f"A / {times:g}", "model": name, "batch": 1}
    with loaded(name, slowed_profile(times)) as model:
        return [emulated_row(model, row, method, tokens, STEPS) for method in methods]


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


def is_slowed(row: Row) -> bool:
    """Say whether a row is of a slowed machine."""
    return str(row["machine"]).startswith("A / ")


def step_of(rows: Sequence[Row], mode: str, model: str, method: str) -> float | None:
    """Return the milliseconds of a step at the length that both modes have."""
    where = {"mode": mode, "model": model, "method": method, "tokens": TOKENS}
    found = [r["step_ms"] for r in rows if is_slowed(r) and where.items() <= r.items()]
    return found[0] if found else None


def compared(rows: Sequence[Row]) -> list[tuple[str, str, float, float]]:
    """Return model, method, simulated and emulated milliseconds of what both modes have."""
    found = []
    for model in SLOWED:
        for method in METHODS:
            a = step_of(rows, "simulated", model, method)
            b = step_of(rows, "emulated", model, method)
            if a is not None and b is not None:
                found.append((model, method, a, b))
    return found


def reversed_pairs(found: Sequence[tuple[str, str, float, float]]) -> list[str]:
    """Return pairs of methods that simulated steps tell apart and emulated ones order otherwise."""
    pairs = []
    for model, fast, a, b in found:
        for other, slow, c, d in found:
            if model == other and c > NEAR * a and d < b:
                pairs.append(f"{fast} before {slow} ({model})")
    return pairs


def order_check(rows: Sequence[Row]) -> Check:
    """Compare emulated with simulated steps: time, and order of methods."""
    found = compared(rows)
    wrong = reversed_pairs(found)
    ratios = [d / c for _, _, c, d in found]
    near = sum(1 / NEAR <= ratio <= NEAR for ratio in ratios)
    steps = (
        f"emulated over simulated step {min(ratios):.2f} to {max(ratios):.2f}, within 15 % for "
        f"{near} of {len(ratios)}"
        if ratios
        else "nothing is compared in the quick form"
    )
    return Check(
        "(ours) emulated steps order the methods as simulated ones of the same profile do, where "
        "those differ by more than 15 %",
        not wrong,
        f"{steps}; otherwise ordered: {', '.join(wrong) or 'none'}",
        "the engine issues three to four times as many operations as the simulator counts, most of "
        "all for InfiniGen's guess and choice on the device, and the emulator's own work for each "
        "delays a step on this machine",
        f"emulated points order {len(wrong)} pair{'s' if len(wrong) != 1 else ''} of methods "
        "otherwise",
    )


def draw_slowed(axes: Any, rows: Sequence[Row]) -> None:
    """Draw both modes' steps: a group per shape, two bars per method."""
    found = compared(rows)
    models = list(dict.fromkeys(model for model, *_ in found))
    width = 0.84 / (2 * len(METHODS))
    for i, method in enumerate(METHODS):
        for j, mode in enumerate(("simulated", "emulated")):
            values = [(models.index(r[0]), r[2 + j]) for r in found if r[1] == method]
            places = [place - 0.42 + width * (2 * i + j + 0.5) for place, _ in values]
            axes.bar(
                places,
                [value for _, value in values],
                width,
                color=COLORS[method],
                hatch=HATCHES[mode],
                edgecolor="black",
                linewidth=0.3,
                alpha=1.0 if mode == "emulated" else 0.5,
                label=f"{METHOD_LABELS[method]}, {mode}",
            )
    names = [f"{model}\nA / {SLOWED[model]}" for model in models]
    axes.set_xticks(range(len(models)), names, fontsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ms per step")
    axes.set_title(
        "the paper's shapes, machine A's GPU and link slowed, this machine's CPU; dummy weights",
        fontsize=8,
    )
    if models:
        axes.legend(fontsize=6, ncols=4)
