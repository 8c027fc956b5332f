# SPDX-License-Identifier: Apache-2.0
"""Figure 15: end-to-end latency of eleven models over FlexGen's, for every method.

python benchmarks/figures/fig15_end_to_end.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from agreement import agreement, strip
from drawing import COLORS, METHOD_LABELS, grouped_bars
from engine_runs import NOTE, bytes_note, draw_small, is_small, small_rows, split
from hybridgen import MachineProfile, sim
from output import Check, Result, Script, main
from simulations import (
    CALIBRATIONS,
    METHODS,
    PLAUSIBLE,
    best_everywhere,
    faster_text,
    mean_ratio,
    profiles,
    ratio_check,
    ratios,
    run_row,
    seconds,
)
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows

LENGTH = 2048
SLOWED = {"opt-1.3b": 300, "llama-3.2-1b": 300, "qwen2.5-7b": 100, "llama-3.1-8b": 100}
"""By how much: a step then takes half a second or several."""
CASES = [
    Case(times=times, model=model, method=method)
    for model, times in SLOWED.items()
    for method in ("flexgen", "h2o", "infinigen", "hybridgen")
]
WHY = (
    "budgets, overlap and K of the paper's runs are not given; InfiniGen's distance is almost all "
    "its critical path, the host's gathering and the read-back, whose rate is an estimate"
)


def make(quick: bool) -> Result:
    """Return the runs of all models and methods."""
    models = sim.PAPER_MODELS[::10] if quick else sim.PAPER_MODELS
    rows = [
        run_row("A", calibration, model, method, LENGTH)
        for calibration in CALIBRATIONS
        for model in models
        for method in METHODS
    ]
    small = small_rows(
        [{"method": method, "tokens": 256 if quick else 2048} for method in METHODS],
        2 if quick else 12,
    )
    slowed = slowed_rows(CASES, quick=quick)
    found = {
        method: {c: mean_ratio(rows, method, "model", calibration=c) for c in CALIBRATIONS}
        for method in METHODS
    }
    most = {
        c: max(
            max(ratios(rows, method, "model", calibration=c).values())
            for method in ("flexgen", "moe_lightning")
        )
        for c in CALIBRATIONS
    }
    faster = {c: best_everywhere(rows, "model", calibration=c) for c in CALIBRATIONS}
    return Result(
        rows + small + slowed,
        [
            Check(
                "HybridGen is the fastest for every model",
                not any(faster.values()),
                f"faster than HybridGen somewhere: {faster_text(faster)}",
                "a fifth of the tokens costs H2O as little as K_min costs HybridGen; where the "
                "copy of a small cache hides behind large weights, nothing is left to gain over a "
                "FlexGen that overlaps ideally",
                "not the fastest for every model",
            ),
            ratio_check("over InfiniGen on average", 1.41, found["infinigen"], WHY),
            ratio_check("over Keyformer on average", 1.86, found["keyformer"], WHY),
            ratio_check("over FlexGen and MoE-Lightning at most", 3.2, most, WHY, kind="largest"),
            *agreement(slowed),
        ],
        [
            PLAUSIBLE,
            NOTE,
            bytes_note(small),
            SLOWED_NOTE,
            f"{LENGTH - 128:,} + 128 tokens, batch 1, machine A; geomean over FlexGen "
            f"{found['flexgen']['paper']:.2f} (paper) and {found['flexgen']['engine']:.2f} "
            f"(engine), over MoE-Lightning {found['moe_lightning']['paper']:.2f} and "
            f"{found['moe_lightning']['engine']:.2f}",
        ],
        [
            *profiles("A"),
            MachineProfile.load("h100-nvl"),
            *slowed_profiles(CASES),
        ],
        weights="none, and dummy",
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration, a group per model."""
    figure, result = strip(figure, result, lambda row: f"{row['model']}\n{row['machine']}", 0.23)
    figure, below = split(figure, result)
    draw_small(below, result.rows, lambda row: METHOD_LABELS[row["method"]].split(" (")[0])
    panels = figure.subplots(len(CALIBRATIONS), 1, sharex=True)
    models = list(dict.fromkeys(r["model"] for r in result.rows if not is_small(r)))
    for axes, calibration in zip(panels, CALIBRATIONS, strict=True):
        series = {
            method: [
                seconds(result.rows, calibration=calibration, model=m, method=method)
                / seconds(result.rows, calibration=calibration, model=m, method="flexgen")
                for m in models
            ]
            for method in METHODS
        }
        grouped_bars(axes, models, series, mode="simulated", colors=COLORS, labels=METHOD_LABELS)
        axes.axhline(1.0, color="black", linewidth=0.6)
        axes.set_ylabel("latency / FlexGen's")
        axes.set_title(f"{calibration} calibration", fontsize=8)
    panels[-1].tick_params(axis="x", labelrotation=25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


SCRIPT = Script(
    "fig15_end_to_end",
    "Figure 15",
    "end-to-end latency, 2K tokens, batch 1, machine A (lower is better)",
    make,
    draw,
    (7.5, 9.5),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
