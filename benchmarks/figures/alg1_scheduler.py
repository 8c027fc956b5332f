# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1: how K, strategy and step time move over the steps of a run.

python benchmarks/figures/alg1_scheduler.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from agreement import is_slowed
from drawing import short
from hybridgen.sim import SchedulerRules
from output import LINES, Check, Result, Row, Script, main
from simulations import CALIBRATIONS, profiles, run
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles
from slowed_runs import columns_of, paired_runs, run_checks

MODEL, K_MIN = "llama-3.1-8b", 128
LENGTHS = (2048, 8192, 32768)
COLORS = ("tab:green", "tab:orange", "tab:red")
SLOWED = Case(times=50, link_times=200, model="qwen2.5-7b", method="hybridgen")
SLOWED_RUNS = {128: 48, 1280: 20}
"""Steps by K_min: one that the link has room for, and one that it has not."""


def make(quick: bool) -> Result:
    """Return every step of the full scheduler."""
    rows: list[Row] = []
    for calibration in CALIBRATIONS:
        for length in LENGTHS[::2] if quick else LENGTHS:
            rules = SchedulerRules(k_min=K_MIN)
            found = run("A", calibration, MODEL, "hybridgen", length, rules=rules)
            for number, step in enumerate(found.steps):
                rows.append(
                    {
                        "mode": "simulated",
                        "machine": "A",
                        "calibration": calibration,
                        "model": MODEL,
                        "tokens": length,
                        "step": number,
                        **columns_of(step),
                    }
                )
    slowed = paired_runs(SLOWED, SLOWED_RUNS, quick=quick)
    ends = {(r["calibration"], r["tokens"]): r for r in rows if r["step"] == 127}
    settled = {key: (r["host_ms"] + r["link_ms"]) / r["device_ms"] for key, r in ends.items()}
    longest = ends["paper", LENGTHS[-1]]
    return Result(
        rows + slowed,
        [
            Check(
                "K never falls below K_min",
                all(r["k"] >= K_MIN for r in rows),
                f"least {min(r['k'] for r in rows)}",
            ),
            Check(
                "where the host cannot keep up at K_min, selection moves before the logits",
                longest["strategy"] == "pre",
                f"paper calibration at 32K: after {_switch(rows)} steps",
            ),
            Check(
                "the host's stage ends no longer than a rise of K beyond the device's",
                all(share < 1.25 or ends[key]["k"] == K_MIN for key, share in settled.items()),
                "host and link over device at the end: "
                + ", ".join(f"{c} {short(n)} {v:.2f}" for (c, n), v in settled.items()),
                "a decision is made every four steps",
            ),
            *run_checks(slowed),
        ],
        [
            f"{MODEL}, batch 1, machine A, K_min = {K_MIN}; the engine's defaults: K rises and "
            "falls by a fifth, one decision in four steps, nothing returns to Post",
            f"{SLOWED_NOTE}. Runs of {SLOWED.model} with {SLOWED.tokens:,} tokens; K is bounded by "
            "the link there, which is slowed more than the GPU; the CPU is not",
        ],
        [*profiles("A"), *slowed_profiles([SLOWED])],
        weights="none, and dummy",
    )


def _switch(rows: list[dict[str, Any]]) -> int:
    """Return the first step of the longest paper-calibrated run that chooses before."""
    return min(
        r["step"]
        for r in rows
        if (r["calibration"], r["tokens"], r["strategy"]) == ("paper", LENGTHS[-1], "pre")
    )


def draw(figure: Any, result: Result) -> None:
    """K above, step time below; a column per calibration, and one for emulated runs."""
    figure, right = figure.subfigures(1, 2, width_ratios=(0.64, 0.36))
    draw_slowed(right, [r for r in result.rows if is_slowed(r)])
    shown = [r for r in result.rows if not is_slowed(r)]
    panels = figure.subplots(2, len(CALIBRATIONS), sharex=True)
    for j, calibration in enumerate(CALIBRATIONS):
        lengths = sorted({r["tokens"] for r in shown})
        for length, color, width in zip(lengths, COLORS, (3.0, 2.0, 1.0), strict=False):
            rows = [r for r in shown if (r["calibration"], r["tokens"]) == (calibration, length)]
            for i, field in enumerate(("k", "step_ms")):
                for strategy, style in (("post", "-"), ("pre", "--")):
                    values = [r[field] if r["strategy"] == strategy else None for r in rows]
                    if any(v is not None for v in values):
                        points = [float("nan") if v is None else v for v in values]
                        panels[i][j].plot(
                            points,
                            style,
                            color=color,
                            drawstyle="steps-mid",
                            linewidth=width,
                            label=f"{short(length)}, {strategy}",
                        )
        panels[0][j].set_yscale("log", base=2)
        panels[0][j].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[0][j].set_title(f"{calibration} calibration", fontsize=8)
        panels[0][j].legend(fontsize=7)
        panels[1][j].set_xlabel("decode step")
        panels[1][j].set_ylim(bottom=0)
    panels[0][0].set_ylabel("K (tokens per head)")
    panels[1][0].set_ylabel("step (ms)")


def draw_slowed(figure: Any, rows: list[Row]) -> None:
    """K above, step time below, of runs in both modes."""
    panels = figure.subplots(2, 1, sharex=True)
    for i, k_min in enumerate(dict.fromkeys(r["k_min"] for r in rows)):
        for mode in ("simulated", "emulated"):
            steps = [r for r in rows if (r["k_min"], r["mode"]) == (k_min, mode)]
            for axes, field in zip(panels, ("k", "step_ms"), strict=True):
                axes.plot(
                    [r["step"] for r in steps],
                    [r[field] for r in steps],
                    color=COLORS[i],
                    markersize=3,
                    label=f"K_min {k_min}, {mode}",
                    **LINES[mode],
                )
    panels[0].set_title(f"{rows[0]['model']} on {rows[0]['machine']}", fontsize=8)
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=6)
    panels[1].set_ylim(bottom=0)
    panels[1].set_xlabel("decode step")


SCRIPT = Script(
    "alg1_scheduler",
    "Algorithm 1",
    "the feedback scheduler over a run, Llama-3.1-8B",
    make,
    draw,
    (9.5, 5.0),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
