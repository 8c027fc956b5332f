# SPDX-License-Identifier: Apache-2.0
"""Figure 14: accuracy and lost mass by the share of old tokens that is kept, and K_min.

python benchmarks/figures/fig14_kmin_profile.py [--quick] [--out DIR]
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import hybridgen as hg
from accuracy import COUNT, DECODE, MODELS, SEED, TOKENS, TOY, loaded, mean, recall, samples_of
from hybridgen.evaluation.recall_tasks import Sample
from hybridgen.k_min import find_k_min
from output import LINES, Check, Result, Row, Script, main

TASKS = ("kv", "updated")
KEPT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
MASSES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
TOLERANCE, WINDOW, FLOOR, LARGE = 0.05, 16, 0.5, 0.9


def make(quick: bool) -> Result:
    """Return accuracy and lost mass, tokens taken by number and by mass, and K_min."""
    models = MODELS[:1] if quick else MODELS[:2]
    rows: list[Row] = []
    for name in models:
        with loaded(name) as base:
            for task in TASKS[:1] if quick else TASKS:
                samples = samples_of(task, 4 if quick else COUNT)
                rows += [
                    {"model": name, "task": task} | row for row in choices(base, samples, quick)
                ]
    curves = {case: of_case(rows, case, "k") for case in dict.fromkeys(map(case_of, rows))}
    # A task that the model fails at with all tokens says nothing about K.
    weak = [
        f"{' '.join(case)} ({curve[-1]['accuracy']:.2f} with all tokens)"
        for case, curve in curves.items()
        if curve[-1]["accuracy"] < FLOOR
    ]
    k_min = {
        case: find_k_min(
            [(r["asked_k"], r["accuracy"]) for r in curve], curve[-1]["accuracy"], TOLERANCE
        )
        for case, curve in curves.items()
    }
    sound = {case: k for case, k in k_min.items() if curves[case][-1]["accuracy"] >= FLOOR}
    return Result(
        rows,
        [inflection(sound, curves), equal_rows(rows)],
        [
            TOY,
            DECODE,
            f"exact queries, {WINDOW} tokens on the device; K_min: the smallest K from which on no "
            f"accuracy is more than {TOLERANCE:.0%} below that with all tokens",
            f"left out, below {FLOOR} even with all tokens: {', '.join(weak) or 'none'}",
            "lost mass: of the softmax over all tokens, exact (docs/evaluation.md); rows fetched: "
            "value rows that cross for any query head of a KV head, of all old tokens'",
            "a mass asks the same of every head: a small one spends rows on heads that look "
            "everywhere, and then loses more on average than the same number for all",
        ],
        seeds={"prompts": SEED},
        weights=", ".join(models),
        files={
            "fig14_kmin.json": json.dumps(
                {"tokens": TOKENS, "tolerance": TOLERANCE}
                | {" ".join(case): k for case, k in sound.items()},
                indent=1,
            )
            + "\n"
        },
    )


def choices(base: hg.LLM, samples: Sequence[Sample], quick: bool) -> list[Row]:
    """Return a row for every number of tokens and for every mass, all old tokens the last of K."""
    kv = hg.KVConfig(device_tokens=WINDOW)
    rows: list[Row] = []
    for share in KEPT[2::3] if quick else KEPT:
        k = max(1, round(share * TOKENS))
        method = hg.methods.HybridGen(k=k, query="exact")
        found = recall(base, samples, method=method, kv=kv)
        rows.append({"choice": "k", "asked_k": k, "kept_share": share} | found)
    of_all = rows[-1]["fetched_bytes"]
    for mass in MASSES[::3] if quick else MASSES:
        method = hg.methods.HybridGen(mass=mass, query="exact")
        found = recall(base, samples, method=method, kv=kv)
        kept = {"kept_share": found["attended_offloaded_share"]}
        rows.append({"choice": "mass", "asked_mass": mass} | kept | found)
    return [row | {"fetched_share": row["fetched_bytes"] / of_all} for row in rows]


def case_of(row: Row) -> tuple[str, str]:
    """Return model and task."""
    return row["model"], row["task"]


def of_case(rows: Sequence[Row], case: tuple[str, str], choice: str) -> list[Row]:
    """Return the rows of a model and task, chosen one way."""
    return [r for r in rows if case_of(r) == case and r["choice"] == choice]


def inflection(
    k_min: Mapping[tuple[str, str], int | None], curves: Mapping[tuple[str, str], list[Row]]
) -> Check:
    """Return whether accuracy falls somewhere above the smallest K."""
    least = min(curve[0]["asked_k"] for curve in curves.values())
    listed = ", ".join(f"{' '.join(case)} {k}" for case, k in k_min.items())
    return Check(
        "accuracy has an inflection point, the same across data sets",
        all(k is not None and k > least for k in k_min.values()),
        f"K_min of {TOKENS:,} tokens: {listed}; the smallest K measured is {least}",
        "a recalled answer hangs on one record, which a model finds among very few tokens: "
        "the curve is flat down to the smallest K, so that these tasks show no inflection "
        "for a model that is good at them",
        f"no inflection for every model: {least} old tokens may suffice",
    )


def equal_rows(rows: Sequence[Row]) -> Check:
    """Return whether a large mass loses less than a number that fetches as many rows."""
    ratios: dict[float, list[float]] = {}
    for case in dict.fromkeys(map(case_of, rows)):
        curve = of_case(rows, case, "k")
        for row in of_case(rows, case, "mass"):
            by_k = lost_at(curve, row["fetched_share"])
            if by_k is not None:
                ratios.setdefault(row["asked_mass"], []).append(row["lost_mass"] / by_k)
    listed = ", ".join(f"mass {mass:g} {mean(found):.2f}" for mass, found in ratios.items())
    return Check(
        f"(ours) from a mass of {LARGE} on, tokens taken by it lose less than as many fetched rows "
        "taken by number",
        all(ratio < 1 for mass, found in ratios.items() if mass >= LARGE for ratio in found),
        f"lost mass by mass over by number, at equal rows fetched, mean of the tasks: {listed}",
        "where all heads look equally far, a number fits all of them",
        f"a mass of {LARGE} does not lose less than a number",
    )


def lost_at(curve: Sequence[Row], share: float) -> float | None:
    """Return the lost mass at a share of rows between two measured ones; None outside of them."""
    points = [(math.log(r["fetched_share"]), r["lost_mass"]) for r in curve]
    at = math.log(share)
    for (low, lost_low), (high, lost_high) in itertools.pairwise(points):
        if low <= at < high and lost_low > 0:
            return float(lost_low + (lost_high - lost_low) * (at - low) / (high - low))
    return None


def draw(figure: Any, result: Result) -> None:
    """A column per model; accuracy by tokens above, lost mass by fetched rows below."""
    models = list(dict.fromkeys(r["model"] for r in result.rows))
    tasks = list(dict.fromkeys(r["task"] for r in result.rows))
    panels = figure.subplots(2, len(models), sharey="row", squeeze=False)
    for column, name in enumerate(models):
        above, below = panels[0][column], panels[1][column]
        for task, color in zip(tasks, ("tab:blue", "tab:orange"), strict=False):
            by_k = of_case(result.rows, (name, task), "k")
            above.errorbar(
                [100 * r["kept_share"] for r in by_k],
                [r["accuracy"] for r in by_k],
                [r["standard_error"] for r in by_k],
                label=f"{task}, n = {by_k[0]['n']}",
                color=color,
                capsize=2,
                markersize=3,
                **LINES["measured"],
            )
            for choice, label in (("k", "by number"), ("mass", "by mass (ours)")):
                rows = [r for r in of_case(result.rows, (name, task), choice) if r["lost_mass"] > 0]
                below.plot(
                    [100 * r["fetched_share"] for r in rows],
                    [100 * r["lost_mass"] for r in rows],
                    label=f"{task}, {label}",
                    color=color,
                    markersize=4,
                    alpha=1.0 if choice == "mass" else 0.5,
                    **LINES["measured"] | ({} if choice == "k" else {"marker": "^"}),
                )
        above.set(xscale="log", xlabel="old tokens kept (%)", title=name, ylim=(0, 1.05))
        below.set(xscale="log", yscale="log", xlabel="rows of old tokens fetched (%)")
        for axes in (above, below):
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.legend(fontsize=7)
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0][0].set_ylabel("recall (exact match)")
    panels[1][0].set_ylabel("lost mass (%)")


SCRIPT = Script(
    "fig14_kmin_profile",
    "Figure 14",
    "accuracy and lost mass by tokens kept, toy models, not the paper's benchmarks",
    make,
    draw,
    (7.0, 5.6),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
