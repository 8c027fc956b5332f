# SPDX-License-Identifier: Apache-2.0
"""Figure 18: keys in DRAM and values in CXL memory, against pages of both by turns.

python benchmarks/figures/fig18_kv_mapping.py [--quick] [--out DIR]
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from agreement import agreement, pairs_of, strip
from drawing import grouped_bars
from hybridgen import sim
from hybridgen.sim import HybridSetting
from output import Check, Result, Row, Script, main
from simulations import CALIBRATIONS, machine, profiles
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows
from slowed_tiers import label_of, tier_rows

MODELS = ("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b")
TOKENS, K = 2048, 128
BATCHES = (1, 4, 8)
CASES = [
    Case(letter="C", times=300, model=model, method="hybridgen")
    for model in ("opt-1.3b", "opt-2.7b")
]
SLOWED_TEXT = (
    "emulated placements: CXL memory is a channel, slowed like GPU and link, that all host jobs "
    "of the engine share; the engine's host gathers values for the device, and so does the "
    "simulated one beside it, where the other simulated points let the GPU read them"
)

WHY_APART = (
    "a host job that waits for the emulated channel holds its thread, and on a busy machine gets "
    "it back late, once for every KV head"
)


def seconds_of(calibration: str, model: str, batch: int, strategy: str, mapping: str) -> float:
    """Simulate one step on machine C."""
    setting = HybridSetting(k=K, strategy=strategy, mapping=mapping)
    where = machine("C", calibration)
    step = sim.simulate_step(where, model, "hybridgen", tokens=TOKENS, batch=batch, setting=setting)
    return step.seconds


def make(quick: bool) -> Result:
    """Return steps with both mappings."""
    rows: list[Row] = []
    cases = itertools.product(
        CALIBRATIONS, ("post", "pre"), BATCHES[:2] if quick else BATCHES, MODELS
    )
    for calibration, strategy, batch, model in cases:
        interleaved, semantic = (
            seconds_of(calibration, model, batch, strategy, mapping)
            for mapping in ("interleaved", "semantic")
        )
        rows.append(
            {
                "mode": "simulated",
                "machine": "C",
                "calibration": calibration,
                "model": model,
                "batch": batch,
                "strategy": strategy,
                "interleaved_ms": 1e3 * interleaved,
                "semantic_ms": 1e3 * semantic,
                "speedup": interleaved / semantic,
            }
        )
    tiers = tier_rows(CASES, quick=quick)
    slowed = tiers + slowed_rows([], quick=quick)
    post = [r for r in rows if r["strategy"] == "post"]
    pre = [r["speedup"] for r in rows if r["strategy"] == "pre"]
    lists: dict[tuple[str, int], list[float]] = {}
    for row in post:
        lists.setdefault((row["calibration"], row["batch"]), []).append(row["speedup"])
    listed = "; ".join(
        f"{c}, batch {b}: " + ", ".join(f"{v:.2f}" for v in values)
        for (c, b), values in lists.items()
    )
    return Result(
        rows + slowed,
        [
            Check(
                "semantic placement is faster than interleaving",
                all(r["speedup"] > 1 for r in rows),
                f"choosing after the logits {min(r['speedup'] for r in post):.2f} to "
                f"{max(r['speedup'] for r in post):.2f}x, before them {min(pre):.2f} to "
                f"{max(pre):.2f}x",
                "choosing before the logits reads so few keys that values from one CXL channel "
                "instead of two kinds of memory decide",
                "no gain where tokens are chosen before their logits",
            ),
            Check(
                "the larger the model, the larger the speed-up",
                all(values == sorted(values) for values in lists.values()),
                f"choosing after the logits, by model size: {listed}",
                "larger models also take longer on the GPU, which hides more of the scan; the "
                "paper names neither models, length nor batch",
                "the speed-up does not grow with the model",
            ),
            *emulated_checks(tiers),
            *agreement(slowed, WHY_APART),
        ],
        [
            "placement is forced: these caches never come near machine C's 128 GB of DRAM",
            f"{TOKENS:,} tokens, K = {K}; one channel of DDR4-3200 behind CXL, 20 GB/s (estimate)",
            SLOWED_NOTE,
            SLOWED_TEXT,
        ],
        [*profiles("C"), *slowed_profiles(CASES)],
        weights="none, and dummy",
    )


def emulated_checks(rows: list[Row]) -> list[Check]:
    """Return what emulated steps say of the first claim; nothing in the quick form."""
    step = {(p.row["model"], p.row["method"]): p.emulated for p in pairs_of(rows)}
    found = {
        model: step[model, label_of("interleaved", "post")]
        / step[model, label_of("semantic", "post")]
        for model in dict.fromkeys(model for model, _ in step)
    }
    if not found:
        return []
    return [
        Check(
            "emulated, too: semantic placement is faster where all keys are scanned",
            all(value > 1 for value in found.values()),
            ", ".join(f"{model} {value:.2f}x" for model, value in found.items()),
            "other work on this machine delays host jobs",
            "emulated placements do not differ",
        )
    ]


def draw(figure: Any, result: Result) -> None:
    """A panel per calibration and strategy, a group per model, a bar per batch."""
    figure, result = strip(figure, result, lambda row: f"{row['model']}, {row['machine']}", 0.28)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for i, calibration in enumerate(CALIBRATIONS):
        for j, strategy in enumerate(("post", "pre")):
            axes = panels[i][j]
            rows = [
                r
                for r in result.rows
                if (r["calibration"], r["strategy"]) == (calibration, strategy)
            ]
            series = {
                f"batch {b}": [r["speedup"] for r in rows if r["batch"] == b]
                for b in dict.fromkeys(r["batch"] for r in rows)
            }
            grouped_bars(axes, MODELS, series, mode="simulated")
            axes.axhline(1.0, color="black", linewidth=0.6)
            when = "after" if strategy == "post" else "before"
            title = f"{calibration} calibration, tokens chosen {when} their logits"
            axes.set_title(title, fontsize=8)
        panels[i][0].set_ylabel("interleaved / semantic")
    panels[0][0].legend(loc="lower right", ncols=3)


SCRIPT = Script(
    "fig18_kv_mapping",
    "Figure 18",
    "keys in DRAM, values in CXL memory, over interleaved pages, machine C (higher is better)",
    make,
    draw,
    (7.5, 7.5),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
