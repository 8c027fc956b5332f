# SPDX-License-Identifier: Apache-2.0
"""Figure 17: end-to-end latency of OPT-13B by batch, for every method.

python benchmarks/figures/fig17_batch.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from agreement import agreement, strip
from drawing import COLORS, METHOD_LABELS, grouped_bars
from engine_runs import NOTE, draw_small, is_small, small_rows, split
from hybridgen import MachineProfile
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

MODEL, LENGTH = "opt-13b", 2048
BATCHES = (1, 2, 4, 8, 16)
CASES = [
    Case(times=40, model=MODEL, method=method, batch=batch)
    for batch in (1, 2)
    for method in ("flexgen", "infinigen", "hybridgen")
]
WHY = (
    "gains as small and flat as the paper's need a HybridGen whose own cost grows with the batch: "
    "a large K and a slow CPU path"
)


def make(quick: bool) -> Result:
    """Return the runs of all batches."""
    rows = [
        run_row("A", calibration, MODEL, method, LENGTH, batch)
        for calibration in CALIBRATIONS
        for batch in (BATCHES[::4] if quick else BATCHES)
        for method in METHODS
    ]
    small = small_rows(
        [
            {"method": method, "tokens": 256 if quick else 512, "batch": batch}
            for method in (("hybridgen",) if quick else ("flexgen", "infinigen", "hybridgen"))
            for batch in ((1, 2) if quick else (1, 2, 4))
        ],
        2 if quick else 12,
    )
    slowed = slowed_rows(CASES, quick=quick)
    found = {
        method: {c: mean_ratio(rows, method, "batch", calibration=c) for c in CALIBRATIONS}
        for method in ("infinigen", "keyformer")
    }
    faster = {c: best_everywhere(rows, "batch", calibration=c) for c in CALIBRATIONS}
    ends = {
        c: [list(ratios(rows, m, "batch", calibration=c).values()) for m in found]
        for c in CALIBRATIONS
    }
    return Result(
        rows + small + slowed,
        [
            ratio_check("over InfiniGen", 1.5, found["infinigen"], WHY),
            ratio_check("over Keyformer", 1.87, found["keyformer"], WHY),
            Check(
                "the advantage grows with the batch",
                all(v[-1] > v[0] for values in ends.values() for v in values),
                "from the smallest to the largest batch, over InfiniGen and Keyformer: "
                + "; ".join(
                    f"{c} {a[0]:.2f} to {a[-1]:.2f} and {b[0]:.2f} to {b[-1]:.2f}"
                    for c, (a, b) in ends.items()
                ),
                "with the fitted K of 820 tokens HybridGen's own payload grows with the batch, too",
                "the gain over Keyformer does not grow with the batch (paper calibration)",
            ),
            Check(
                "HybridGen is the fastest at every batch",
                not any(faster.values()),
                f"faster than HybridGen somewhere: {faster_text(faster)}",
                "H2O fetches 410 tokens where the fitted HybridGen works on 820",
                "H2O is faster at some batches",
            ),
            *agreement(slowed),
        ],
        [
            PLAUSIBLE,
            NOTE,
            f"{LENGTH - 128:,} + 128 tokens; the paper does not list its batches",
            SLOWED_NOTE,
        ],
        [*profiles("A"), MachineProfile.load("h100-nvl"), *slowed_profiles(CASES)],
        weights="none, and dummy",
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration, a group per batch."""
    figure, result = strip(
        figure, result, lambda row: f"{row['model']}, batch {row['batch']}, {row['machine']}"
    )
    figure, below = split(figure, result, 0.36)
    draw_small(
        below, result.rows, lambda row: f"{METHOD_LABELS[row['method']]}\nbatch {row['batch']}"
    )
    panels = figure.subplots(1, len(CALIBRATIONS))
    batches = list(dict.fromkeys(r["batch"] for r in result.rows if not is_small(r)))
    for axes, calibration in zip(panels, CALIBRATIONS, strict=True):
        series = {
            method: [
                seconds(result.rows, calibration=calibration, batch=b, method=method)
                for b in batches
            ]
            for method in METHODS
        }
        names = [str(b) for b in batches]
        grouped_bars(axes, names, series, mode="simulated", colors=COLORS, labels=METHOD_LABELS)
        axes.set(yscale="log", xlabel="batch", title=f"{calibration} calibration")
        axes.set_ylabel("seconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


SCRIPT = Script(
    "fig17_batch",
    "Figure 17",
    "end-to-end latency by batch, OPT-13B, 2K tokens, machine A",
    make,
    draw,
    (7.5, 8.2),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
