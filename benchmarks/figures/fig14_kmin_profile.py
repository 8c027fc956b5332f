# SPDX-License-Identifier: Apache-2.0
"""Figure 14: accuracy by the share of old tokens that is kept, and the K_min that follows.

python benchmarks/figures/fig14_kmin_profile.py [--quick] [--out DIR]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import hybridgen as hg
from accuracy import COUNT, DECODE, MODELS, SEED, TOKENS, TOY, loaded, recall, samples_of
from hybridgen.k_min import find_k_min
from output import LINES, Check, Result, Row, Script, main

TASKS = ("kv", "updated")
KEPT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
TOLERANCE, WINDOW, FLOOR = 0.05, 16, 0.5


def make(quick: bool) -> Result:
    """Return accuracy with an exact query at every share, and K_min by the engine's own rule."""
    models = MODELS[:1] if quick else MODELS[:2]
    shares = KEPT[1::3] if quick else KEPT
    rows: list[Row] = []
    found: dict[tuple[str, str], int | None] = {}
    for name in models:
        with loaded(name) as base:
            for task in TASKS[:1] if quick else TASKS:
                samples = samples_of(task, 4 if quick else COUNT)
                curve = []
                for share in shares:
                    k = max(1, round(share * TOKENS))
                    method = hg.methods.HybridGen(k=k, query="exact")
                    kv = hg.KVConfig(device_tokens=WINDOW)
                    row = recall(base, samples, method=method, kv=kv)
                    rows.append({"model": name, "task": task, "kept_share": share} | row)
                    curve.append((k, row["accuracy"]))
                found[name, task] = find_k_min(curve, curve[-1][1], TOLERANCE)
    # A task that the model fails at with all tokens says nothing about K.
    weak = [
        f"{r['model']} {r['task']} ({r['accuracy']:.2f} with all tokens)"
        for r in rows
        if r["kept_share"] == 1.0 and r["accuracy"] < FLOOR
    ]
    k_min = {case: k for case, k in found.items() if not any(" ".join(case) in w for w in weak)}
    listed = ", ".join(f"{name} {task} {k}" for (name, task), k in k_min.items())
    least = max(1, round(shares[0] * TOKENS))
    return Result(
        rows,
        [
            Check(
                "accuracy has an inflection point, the same across data sets",
                all(k is not None and k > least for k in k_min.values()),
                f"K_min of {TOKENS:,} tokens: {listed}; the smallest K measured is {least}",
                "a recalled answer hangs on one record, which a model finds among very few tokens: "
                "the curve is flat down to the smallest K, so that these tasks show no inflection "
                "for a model that is good at them",
                f"no inflection for every model: {least} old tokens may suffice",
            )
        ],
        [
            TOY,
            DECODE,
            f"exact queries, {WINDOW} tokens on the device; K_min: the smallest K from which on no "
            f"accuracy is more than {TOLERANCE:.0%} below that with all tokens",
            f"left out, below {FLOOR} even with all tokens: {', '.join(weak) or 'none'}",
            "mass of attention that is left out is not measured here",
        ],
        seeds={"prompts": SEED},
        weights=", ".join(models),
        files={
            "fig14_kmin.json": json.dumps(
                {"tokens": TOKENS, "tolerance": TOLERANCE}
                | {" ".join(case): k for case, k in k_min.items()},
                indent=1,
            )
            + "\n"
        },
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per model, a line per task with standard errors."""
    models = list(dict.fromkeys(r["model"] for r in result.rows))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, models, strict=True):
        for task in dict.fromkeys(r["task"] for r in result.rows):
            rows = [r for r in result.rows if (r["model"], r["task"]) == (name, task)]
            axes.errorbar(
                [100 * r["kept_share"] for r in rows],
                [r["accuracy"] for r in rows],
                [r["standard_error"] for r in rows],
                label=f"{task}, n = {rows[0]['n']}",
                capsize=2,
                markersize=3,
                **LINES["measured"],
            )
        axes.set(xscale="log", xlabel="old tokens kept (%)", title=name, ylim=(0, 1.05))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend()
    panels[0].set_ylabel("recall (exact match)")


SCRIPT = Script(
    "fig14_kmin_profile",
    "Figure 14",
    "accuracy by tokens kept, toy models, not the paper's benchmarks",
    make,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
