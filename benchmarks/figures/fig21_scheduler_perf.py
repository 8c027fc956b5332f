# SPDX-License-Identifier: Apache-2.0
"""Figure 21: speed-up over FlexGen under six configurations of the scheduler, by length.

python benchmarks/figures/fig21_scheduler_perf.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from drawing import grouped_bars, short
from engine_runs import NOTE, draw_small, small_rows, split
from hybridgen import MachineProfile, SchedulerConfig
from hybridgen.sim import PRESETS, SchedulerRules
from output import Check, Result, Row, Script, main
from simulations import CALIBRATIONS, profiles, run

K_MIN = 128
FIRST_STEPS = (
    "a run starts with Post, and its first decision comes after five steps; of 128 steps with a "
    "long text these are the slowest by far. It says nothing of a longer answer"
)
CASES = (("opt-13b", 2048), ("llama-3.1-8b", 8192), ("llama-3.1-8b", 32768))


def make(quick: bool) -> Result:
    """Return decode times under each configuration."""
    rows: list[Row] = []
    for calibration in CALIBRATIONS:
        for model, length in CASES[:1] if quick else CASES:
            base = run("A", calibration, model, "flexgen", length).decode_s
            for preset in PRESETS:
                rules = SchedulerRules.preset(preset, k_min=K_MIN)
                found = run("A", calibration, model, "hybridgen", length, rules=rules)
                last = found.steps[-1]
                rows.append(
                    {
                        "mode": "simulated",
                        "machine": "A",
                        "calibration": calibration,
                        "model": model,
                        "tokens": length,
                        "configuration": preset,
                        "decode_s": found.decode_s,
                        "speedup": base / found.decode_s,
                        "k_at_end": last.k,
                        "strategy_at_end": last.strategy,
                    }
                )
    small = small_rows(
        [
            {
                "method": "hybridgen",
                "tokens": 256 if quick else 2048,
                "label": preset,
                "scheduler": SchedulerConfig.preset(preset, k_min=25),
                "k": None,
            }
            for preset in (list(PRESETS)[::5] if quick else PRESETS)
        ],
        8 if quick else 40,
    )
    cases = dict.fromkeys((r["calibration"], r["model"], r["tokens"]) for r in rows)
    speed = {
        case: {
            r["configuration"]: r["speedup"]
            for r in rows
            if (r["calibration"], r["model"], r["tokens"]) == case
        }
        for case in cases
    }
    at_2k = speed["paper", "opt-13b", 2048]
    listed = ", ".join(f"{name} {value:.2f}" for name, value in at_2k.items())
    return Result(
        rows + small,
        [
            Check(
                "of fixed K, Pre is the fastest and Post the slowest",
                all(
                    s["fixed_post"] <= s["fixed_adaptive"] * 1.001
                    and s["fixed_adaptive"] <= s["fixed_pre"] * 1.001
                    for s in speed.values()
                ),
                f"paper calibration, OPT-13B at 2K: {listed}",
            ),
            Check(
                "Fixed-K Adaptive comes close to Pre",
                all(s["fixed_adaptive"] > 0.9 * s["fixed_pre"] for s in speed.values()),
                f"{min(s['fixed_adaptive'] / s['fixed_pre'] for s in speed.values()):.2f} of its "
                "speed-up at least",
                FIRST_STEPS,
                "the first five steps, before a decision, weigh on long texts",
            ),
            Check(
                "the full scheduler costs little against Pre",
                all(s["full"] > 0.9 * s["fixed_pre"] for s in speed.values()),
                f"{min(s['full'] / s['fixed_pre'] for s in speed.values()):.2f} of its speed-up at "
                "least",
                FIRST_STEPS,
                "and on the full scheduler's",
            ),
        ],
        [
            NOTE,
            f"K_min = {K_MIN}, the paper's of OPT-13B, for both calibrations; OPT ends at 2,048 "
            "positions, so longer points are Llama-3.1-8B's",
        ],
        [*profiles("A"), MachineProfile.load("h100-nvl")],
        weights="none, and dummy",
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration, a group per length, a bar per configuration."""
    figure, below = split(figure, result, 0.36)
    draw_small(below, result.rows, lambda row: str(row["method"]))
    panels = figure.subplots(1, len(CALIBRATIONS))
    for axes, calibration in zip(panels, CALIBRATIONS, strict=True):
        rows = [r for r in result.rows if r.get("calibration") == calibration]
        cases = list(dict.fromkeys((r["model"], r["tokens"]) for r in rows))
        series = {
            preset: [r["speedup"] for r in rows if r["configuration"] == preset]
            for preset in PRESETS
        }
        names = [f"{model}\n{short(tokens)}" for model, tokens in cases]
        grouped_bars(axes, names, series, mode="simulated")
        axes.set_ylabel("decode speed-up over FlexGen")
        axes.set_title(f"{calibration} calibration", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=7)


SCRIPT = Script(
    "fig21_scheduler_perf",
    "Figure 21",
    "the scheduler's configurations, batch 1, machine A",
    make,
    draw,
    (7.5, 6.0),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
