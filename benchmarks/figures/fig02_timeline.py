# SPDX-License-Identifier: Apache-2.0
"""Figure 2: three layers of five ways to keep a KV cache as simulated lanes, and emulated steps.

python benchmarks/figures/fig02_timeline.py [--quick] [--out DIR]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from agreement import agreement, strip
from hybridgen import sim
from hybridgen.sim import HybridSetting, StepResult
from output import Check, Result, Row, Script, main
from simulations import CALIBRATIONS, machine
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows

MODEL, TOKENS = "opt-13b", 2048
FIRST, LAST = 20, 22
LANES = {"gpu": "GPU", "cpu": "CPU", "h2d": "link, to the GPU", "d2h": "link, to the CPU"}
COLORS = {"gpu": "tab:green", "cpu": "tab:orange", "h2d": "tab:blue", "d2h": "tab:cyan"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "1 all on the GPU": ("oracle", {}),
    "2 stream": ("flexgen", {"overlap": "none"}),
    "3 prefetch (FlexGen)": ("flexgen", {"overlap": "ideal"}),
    "4 selective (InfiniGen)": ("infinigen", {}),
    "5 HybridGen": ("hybridgen", {"setting": None}),
}

CASES = [
    Case(times=40, model=MODEL, method=method)
    for method in ("full", "flexgen", "infinigen", "hybridgen")
]
NOT_EMULATED = (
    "of scheme 2 there is no emulated step: the engine always copies ahead. Nor are there emulated "
    "lanes: spans of the emulated device begin when an operation is queued, not when the modelled "
    "GPU runs it"
)


def step_of(scheme: str, calibration: str) -> StepResult:
    """Simulate one step; HybridGen has settled: before the logits in the paper calibration."""
    method, options = SCHEMES[scheme]
    where = machine("A", calibration)
    if method == "hybridgen":
        strategy = "pre" if calibration == "paper" else "post"
        setting = HybridSetting(k=where.calibration.k_min, strategy=strategy)
        options = {"setting": setting}
    return sim.simulate_step(where, MODEL, method, tokens=TOKENS, **options)


def make(quick: bool) -> Result:
    """Return the spans of three layers, and the steps' times."""
    rows: list[Row] = []
    totals: dict[tuple[str, str], float] = {}
    files: dict[str, str] = {}
    for calibration in CALIBRATIONS:
        for scheme in SCHEMES:
            step = step_of(scheme, calibration)
            totals[calibration, scheme] = step.seconds
            shared = {"mode": "simulated", "calibration": calibration, "scheme": scheme}
            rows.append(shared | {"step_ms": 1e3 * step.seconds})
            for span in step.spans:
                if FIRST <= span.task.layer <= LAST:
                    rows.append(
                        shared
                        | {
                            "lane": span.task.lane,
                            "task": span.task.name,
                            "layer": span.task.layer,
                            "begin_ms": 1e3 * span.begin_s,
                            "end_ms": 1e3 * span.end_s,
                            "bytes": span.task.bytes,
                        }
                    )
            if scheme == "5 HybridGen" and calibration == "paper":
                files["fig02_trace.json"] = json.dumps(step.chrome_trace(f"{scheme}, machine A"))
    slowed = slowed_rows(CASES, quick=quick)
    ordered = {}
    for name in CALIBRATIONS:
        of = {scheme: totals[name, scheme] for scheme in SCHEMES}
        ordered[name] = sorted(of, key=of.__getitem__)
    wanted = [*list(SCHEMES)[:1], "5 HybridGen", *list(SCHEMES)[3:0:-1]]
    times = ", ".join(f"{s[2:]} {1e3 * totals['paper', s]:.1f}" for s in wanted)
    return Result(
        rows + slowed,
        [
            Check(
                "HybridGen is the shortest of those that are feasible",
                all(order == wanted for order in ordered.values()),
                f"ms per step: {times}; the same order in both calibrations",
            ),
            *agreement(slowed),
        ],
        [
            f"{MODEL}, {TOKENS} tokens, batch 1, machine A; layers {FIRST} to {LAST} of 40",
            SLOWED_NOTE,
            NOT_EMULATED,
        ],
        [*(machine("A", name).profile for name in CALIBRATIONS), *slowed_profiles(CASES)],
        weights="none, and dummy",
        files=files,
    )


def draw(figure: Any, result: Result) -> None:
    """One row of lanes per scheme, all on one scale."""
    figure, result = strip(figure, result, lambda row: f"{row['model']}, {row['machine']}", 0.24)
    panels = figure.subplots(len(SCHEMES), 1, sharex=True)
    rows = [r for r in result.rows if r["calibration"] == "paper"]
    for axes, scheme in zip(panels, SCHEMES, strict=True):
        spans = [r for r in rows if r["scheme"] == scheme and "lane" in r]
        total = next(r["step_ms"] for r in rows if r["scheme"] == scheme and "step_ms" in r)
        begin = min(r["begin_ms"] for r in spans if r["lane"] == "gpu")
        lanes = [lane for lane in LANES if any(r["lane"] == lane for r in spans)]
        for i, lane in enumerate(lanes):
            for row in (r for r in spans if r["lane"] == lane):
                shade = 0.45 + 0.25 * (row["layer"] - FIRST)
                width = row["end_ms"] - row["begin_ms"]
                axes.barh(
                    i,
                    width,
                    left=row["begin_ms"] - begin,
                    height=0.8,
                    color=COLORS[lane],
                    alpha=shade,
                    edgecolor="black",
                    linewidth=0.3,
                )
        axes.set_yticks(range(len(lanes)), [LANES[lane] for lane in lanes], fontsize=6)
        axes.invert_yaxis()
        axes.set_title(f"{scheme}: {total:.1f} ms per step", fontsize=7, loc="left", pad=2)
    panels[-1].set_xlabel(f"ms from the start of layer {FIRST} on the GPU; darker: later layers")


SCRIPT = Script(
    "fig02_timeline",
    "Figure 2",
    "three layers of OPT-13B, 2,048 tokens, machine A, paper calibration",
    make,
    draw,
    (7.0, 8.0),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
