# SPDX-License-Identifier: Apache-2.0
"""Figure 21: speed-up over FlexGen under six configurations of the scheduler, by length.

python benchmarks/figures/fig21_scheduler_perf.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from agreement import agreement, pairs_of, strip
from drawing import grouped_bars, short
from engine_runs import NOTE, draw_small, small_rows, split
from hybridgen import MachineProfile, SchedulerConfig
from hybridgen.sim import PRESETS, SchedulerRules
from output import Check, Result, Row, Script, main
from simulations import CALIBRATIONS, NEAR, profiles, run
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows
from slowed_runs import preset_rows

K_MIN = 128
SLOWED = Case(times=50, link_times=300, model="qwen2.5-7b", method="hybridgen")
SLOWED_K_MIN, SLOWED_STEPS = 1024, 24
SLOWED_TEXT = (
    "emulated configurations: Qwen2.5-7B, whose query heads share KV heads, so that each chooses "
    "its own tokens after the logits and all the same before; the link is slowed more than the GPU "
    f"and K_min is {SLOWED_K_MIN:,}, so that rows over the link decide between Post and Pre. The "
    "paper's reason, a CPU that scans too slowly, would need a GPU that is hardly slowed; medians "
    f"of the later half of {SLOWED_STEPS} steps"
)
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
    presets = preset_rows(SLOWED, SLOWED_K_MIN, SLOWED_STEPS, quick=quick)
    slowed = presets + slowed_rows([], quick=quick)
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
        rows + small + slowed,
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
            *agreement(slowed),
            *order_checks(presets),
        ],
        [
            NOTE,
            SLOWED_NOTE,
            SLOWED_TEXT,
            f"K_min = {K_MIN}, the paper's of OPT-13B, for both calibrations; OPT ends at 2,048 "
            "positions, so longer points are Llama-3.1-8B's",
        ],
        [*profiles("A"), MachineProfile.load("h100-nvl"), *slowed_profiles([SLOWED])],
        weights="none, and dummy",
    )


def order_checks(rows: list[Row]) -> list[Check]:
    """Return the paper's order of configurations among emulated ones; none in the quick form."""
    step = {pair.row["method"]: pair.emulated for pair in pairs_of(rows)}
    if not step:
        return []
    listed = ", ".join(f"{name} {value:.0f}" for name, value in step.items())
    quick_ones = [step[name] for name in ("fixed_adaptive", "adaptive_pre", "full")]
    return [
        Check(
            "emulated, too: Pre is the fastest, Post the slowest, and what adapts comes close to "
            "Pre",
            step["fixed_post"] > NEAR * step["fixed_pre"]
            and all(value < NEAR * step["fixed_pre"] for value in quick_ones),
            f"ms per settled step: {listed}",
            "emulated steps of one configuration differ by this machine's other work",
            "emulated configurations are ordered otherwise",
        )
    ]


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration, a group per length, a bar per configuration."""
    figure, result = strip(
        figure, result, lambda row: f"{row['model']}, {row['machine']}", 0.28, names={}
    )
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
    (7.5, 8.0),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
