# SPDX-License-Identifier: Apache-2.0
"""Figure 19: HybridGen's speed-up over FlexGen, and its tokens per second, on several machines.

python benchmarks/figures/fig19_gpus.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from agreement import agreement, strip
from drawing import METHOD_LABELS, grouped_bars
from engine_runs import NOTE, draw_small, is_small, small_rows, split
from hybridgen import MachineProfile, sim
from output import Check, Result, Row, Script, main
from simulations import CALIBRATIONS, profiles, run_row, seconds
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows

MACHINES = {"A": "A100 (A)", "B": "H100 NVL (B)", "gh200": "GH200", "H200": "H200, B's CPU"}
LENGTH = 2048
CASES = [
    Case(letter=letter, times=times, model=model, method=method)
    for letter, times in (("A", 200), ("B", 400))
    for model in ("opt-1.3b", "llama-3.2-1b")
    for method in ("flexgen", "hybridgen")
]


def make(quick: bool) -> Result:
    """Return the runs of HybridGen and the baseline."""
    models = sim.PAPER_MODELS[::10] if quick else sim.PAPER_MODELS
    machines = ("A", "B") if quick else tuple(MACHINES)
    rows = [
        run_row(letter, calibration, model, method, LENGTH)
        for calibration in CALIBRATIONS
        for letter in machines
        for model in models
        for method in ("flexgen", "hybridgen")
    ]
    for row in rows:
        row["tokens_per_s"] = 128 / row["decode_s"]
    emulated = ("a100", "h100-nvl") if quick else ("a100", "h100-nvl", "gh200", "h200")
    small: list[Row] = []
    for name in emulated:
        cases = [{"method": m, "tokens": 256 if quick else 2048} for m in ("flexgen", "hybridgen")]
        small += small_rows(cases, 2 if quick else 12, (f"emulated:{name}",))
    slowed = slowed_rows(CASES, quick=quick)
    links = ", ".join(
        f"{r['method']} on {r['machine'].partition(':')[2]} {r['link_ms']:.2f} ms" for r in small
    )
    above, rates = {}, {}
    for c in CALIBRATIONS:
        above[c] = {
            f"{m} on {x}": seconds(rows, calibration=c, machine=x, model=m, method="flexgen")
            / seconds(rows, calibration=c, machine=x, model=m, method="hybridgen")
            for m in models
            for x in ("A", "B")
        }
        rates[c] = {
            x: [
                r["tokens_per_s"]
                for r in rows
                if (r["calibration"], r["machine"], r["method"]) == (c, x, "hybridgen")
            ]
            for x in ("A", "B")
        }
    below = {c: [name for name, v in found.items() if v <= 1] for c, found in above.items()}
    large = [f"{x}: {above['paper'][f'{models[-1]} on {x}']:.2f}x" for x in ("A", "B")]
    return Result(
        rows + small + slowed,
        [
            Check(
                "HybridGen is faster than the baseline on A and B for every model",
                not any(below.values()),
                "slower than FlexGen for "
                + ("; ".join(f"{c}: {', '.join(n)}" for c, n in below.items() if n) or "none"),
                "with ideal overlap FlexGen's copy of a small cache hides behind large weights",
                "no gain for Qwen2.5 over a FlexGen that overlaps ideally",
            ),
            Check(
                "throughput is higher on the H100",
                all(b > a for r in rates.values() for a, b in zip(r["A"], r["B"], strict=True)),
                "for every model, in both calibrations",
            ),
            Check(
                "the trend is stable across GPUs",
                all(
                    0.5 < above["paper"][f"{m} on A"] / above["paper"][f"{m} on B"] < 2
                    for m in models
                ),
                f"paper calibration, {models[-1]}: {', '.join(large)}",
            ),
            *agreement(slowed),
        ],
        [
            NOTE,
            SLOWED_NOTE,
            f"emulated link time per step: {links}",
            "the H200's own profile has no CPU: machine B's is assumed",
            "2K tokens, batch 1",
        ],
        [
            *profiles(*machines),
            *(MachineProfile.load(name) for name in emulated),
            *slowed_profiles(CASES),
        ],
        weights="none, and dummy",
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration, a group per model, a bar per machine."""
    figure, result = strip(figure, result, lambda row: f"{row['model']}\n{row['machine']}")
    figure, below = split(figure, result)
    draw_small(
        below,
        result.rows,
        lambda row: f"{METHOD_LABELS[row['method']]}\n{row['machine'].partition(':')[2]}",
    )
    panels = figure.subplots(len(CALIBRATIONS), 1, sharex=True)
    models = list(dict.fromkeys(r["model"] for r in result.rows if not is_small(r)))
    for axes, calibration in zip(panels, CALIBRATIONS, strict=True):
        series = {}
        for letter in dict.fromkeys(r["machine"] for r in result.rows if not is_small(r)):
            where = {"calibration": calibration, "machine": letter}
            series[MACHINES[letter]] = [
                seconds(result.rows, model=m, method="flexgen", **where)
                / seconds(result.rows, model=m, method="hybridgen", **where)
                for m in models
            ]
        grouped_bars(axes, models, series, mode="simulated")
        axes.axhline(1.0, color="black", linewidth=0.6)
        axes.set_ylabel("speed-up over FlexGen")
        axes.set_title(f"{calibration} calibration", fontsize=8)
    panels[-1].tick_params(axis="x", labelrotation=25)
    panels[0].legend(ncols=4)


SCRIPT = Script("fig19_gpus", "Figure 19", "HybridGen on several machines", make, draw, (7.5, 9.0))

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
