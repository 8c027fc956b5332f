# SPDX-License-Identifier: Apache-2.0
"""Figure 16: end-to-end latency of two models from 2K to 32K tokens, for every method.

python benchmarks/figures/fig16_seqlen.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

import hybridgen as hg
from accuracy import COUNT, SEED, TOKENS, loaded, recall, samples_of
from agreement import agreement, strip
from drawing import COLORS, METHOD_LABELS, length_axis, short
from engine_runs import NOTE, draw_small, small_rows, split
from hybridgen import MachineProfile
from hybridgen.sim import HybridSetting, simulate_step
from hybridgen.sim.methods import BUDGET, HGCA_WINDOW, SINKS, WINDOW
from output import LINES, Check, Result, Row, Script, main
from simulations import (
    CALIBRATIONS,
    METHODS,
    PLAUSIBLE,
    best_everywhere,
    faster_text,
    machine,
    profiles,
    ratio_check,
    ratios,
    run_row,
)
from slowed_machine import SLOWED_NOTE, Case, slowed_profiles, slowed_rows

MODELS = ("qwen2.5-7b", "llama-3.1-8b")
ENDS = (2048, 131072)
RECALL_MODEL, RECALL_WINDOW = "tiny-llama", 16
LENGTHS = (2048, 4096, 8192, 16384, 32768)
PAPER = {("infinigen", MODELS[0]): 1.82, ("infinigen", MODELS[1]): 2.34}
PAPER |= {("keyformer", MODELS[0]): 2.66, ("keyformer", MODELS[1]): 3.18}
CASES = [
    Case(times=40, model=model, method=method, tokens=tokens)
    for model in MODELS
    for tokens in (1920, 3968)
    for method in ("flexgen", "infinigen", "hybridgen")
]
WHY = "the form and budget of the paper's Keyformer are not given; here a fifth of the tokens"


def make(quick: bool) -> Result:
    """Return the runs of all lengths."""
    lengths = LENGTHS[::4] if quick else LENGTHS
    rows = [
        run_row("A", calibration, model, method, length)
        for calibration in CALIBRATIONS
        for model in MODELS
        for length in lengths
        for method in METHODS
    ]
    growth = growth_rows()
    recalled = recall_rows(growth, quick=quick)
    small = small_rows(
        [
            {"method": method, "tokens": length}
            for method in (("hybridgen",) if quick else ("flexgen", "infinigen", "hybridgen"))
            for length in ((256, 512) if quick else (1024, 2048, 4096))
        ],
        2 if quick else 12,
    )
    slowed = slowed_rows(CASES, quick=quick)
    checks = []
    for (method, model), paper in PAPER.items():
        found = {
            c: max(ratios(rows, method, "tokens", calibration=c, model=model).values())
            for c in CALIBRATIONS
        }
        claim = f"over {METHOD_LABELS[method]} at most ({model})"
        checks.append(ratio_check(claim, paper, found, WHY, kind="largest"))
    growing = [
        list(ratios(rows, method, "tokens", calibration=c, model=model).values())
        for method in ("flexgen", "keyformer", "infinigen")
        for c in CALIBRATIONS
        for model in MODELS
    ]
    checks.append(
        Check(
            "the gain grows with the length",
            all(values == sorted(values) for values in growing),
            "over FlexGen, Keyformer and InfiniGen, both models, both calibrations",
        )
    )
    faster = {
        f"{c}, {m}": best_everywhere(rows, "tokens", calibration=c, model=m)
        for c in CALIBRATIONS
        for m in MODELS
    }
    checks.append(
        Check(
            "HybridGen is the fastest at every length",
            not any(faster.values()),
            f"faster than HybridGen somewhere: {faster_text(faster)}",
            "StreamingLLM reads 1,028 tokens at any length; with ideal overlap a short copy hides",
            "not the fastest at every length",
        )
    )
    checks += agreement(slowed)
    notes = [
        PLAUSIBLE,
        NOTE,
        "length - 128 prompt tokens and 128 new ones",
        growth_text(growth, recalled),
    ]
    return Result(
        rows + growth + recalled + small + slowed,
        checks,
        [*notes, SLOWED_NOTE],
        [*profiles("A"), MachineProfile.load("h100-nvl"), *slowed_profiles(CASES)],
        weights=f"none, dummy, and {RECALL_MODEL}",
        seeds={"prompts": SEED},
    )


def growth_rows() -> list[Row]:
    """Return a step at 2K and at 128K tokens, and how many tokens it attends to."""
    rows: list[Row] = []
    for calibration in CALIBRATIONS:
        where = machine("A", calibration)
        for method in METHODS:
            options: dict[str, Any] = {}
            if method == "hybridgen":
                options["setting"] = HybridSetting(k=where.calibration.k_min, strategy="pre")
            for tokens in ENDS:
                step = simulate_step(where, MODELS[1], method, tokens=tokens, **options)
                rows.append(
                    {
                        "mode": "simulated",
                        "machine": "A",
                        "calibration": calibration,
                        "model": MODELS[1],
                        "method": method,
                        "cached_tokens": tokens,
                        "step_ms": 1e3 * step.seconds,
                        "attended_share": attended(method, tokens, where.calibration.k_min),
                    }
                )
    return rows


def attended(method: str, tokens: int, k: int) -> float:
    """Return the share of the tokens that a head attends to."""
    return {
        "flexgen": 1.0,
        "moe_lightning": 1.0,
        "streaming_llm": min(1.0, (SINKS + WINDOW) / tokens),
        "hgca": (HGCA_WINDOW + BUDGET * (tokens - HGCA_WINDOW)) / tokens,
        "hybridgen": min(1.0, k / tokens),
    }.get(method, BUDGET)


def recall_rows(growth: list[Row], *, quick: bool) -> list[Row]:
    """Return what a toy model recalls with the shares of tokens that steps at 128K attend to."""
    samples = samples_of("kv", 2 if quick else COUNT)
    rows: list[Row] = []
    with loaded(RECALL_MODEL) as base:
        for row in growth:
            is_last = row["calibration"] == "engine" and row["cached_tokens"] == ENDS[-1]
            if not is_last or (quick and row["method"] != "hybridgen"):
                continue
            kept = max(1, round(row["attended_share"] * TOKENS))
            found = recall(base, samples, **options_of(row["method"], kept))
            share = {"attended_share": row["attended_share"]}
            rows.append({"model": RECALL_MODEL, "method": row["method"]} | share | found)
    return rows


def options_of(method: str, kept: int) -> dict[str, Any]:
    """Return LLM's options of a method that attends to so many tokens."""
    methods: dict[str, Any] = {
        "flexgen": hg.methods.FlexGen(),
        "moe_lightning": hg.methods.MoELightning(),
        "streaming_llm": hg.methods.StreamingLLM(sinks=min(4, kept - 1), window=max(1, kept - 4)),
        "infinigen": hg.methods.InfiniGen(max_fetch=kept),
        "keyformer": hg.methods.Keyformer(kv_cache=kept),
        "h2o": hg.methods.H2O(heavy=kept // 2, recent=kept - kept // 2),
        "hgca": hg.methods.HGCA(block=16, blocks=max(1, kept // 32), keep_min=1),
        "hybridgen": hg.methods.HybridGen(k=kept, strategy="pre", query="speculative"),
    }
    options: dict[str, Any] = {"method": methods[method]}
    if method == "hybridgen":
        options["kv"] = hg.KVConfig(device_tokens=RECALL_WINDOW)
    return options


def growth_text(rows: list[Row], recalled: list[Row]) -> str:
    """Say how a step grows from 2K to 128K tokens, what it then attends to, and recalls by that."""
    recall_of = {row["method"]: row["accuracy"] for row in recalled}
    parts = []
    for method in METHODS:
        first, last = (r for r in rows if (r["method"], r["calibration"]) == (method, "engine"))
        times = last["step_ms"] / first["step_ms"]
        said = f", {recall_of[method]:.2f}" if method in recall_of else ""
        parts.append(f"{METHOD_LABELS[method]} {times:.1f}x ({last['attended_share']:.1%}{said})")
    return (
        f"a step of {MODELS[1]} from 2K to 128K tokens, engine calibration, the share of tokens "
        f"that it then attends to, and the recall of {RECALL_MODEL} with that share of {TOKENS:,} "
        "tokens (measured): " + ", ".join(parts)
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per model and calibration, a line per method."""
    figure, result = strip(
        figure,
        result,
        lambda row: f"{row['model']}, {short(row['tokens'] + 128)}\n{row['machine']}",
    )
    figure, below = split(figure, result)
    draw_small(
        below, result.rows, lambda row: f"{METHOD_LABELS[row['method']]}\n{short(row['tokens'])}"
    )
    panels = figure.subplots(len(CALIBRATIONS), len(MODELS), sharex=True, sharey="col")
    runs = [r for r in result.rows if "seconds" in r]
    lengths = sorted({r["tokens"] for r in runs})
    for i, calibration in enumerate(CALIBRATIONS):
        for j, model in enumerate(MODELS):
            axes = panels[i][j]
            for method in METHODS:
                found = [
                    (r["tokens"], r["seconds"])
                    for r in runs
                    if (r["calibration"], r["model"], r["method"]) == (calibration, model, method)
                ]
                axes.plot(
                    *zip(*found, strict=True),
                    color=COLORS[method],
                    markersize=3.5,
                    label=METHOD_LABELS[method],
                    **LINES["simulated"],
                )
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_title(f"{model}, {calibration} calibration", fontsize=8)
            length_axis(axes, lengths, "sequence length (tokens)" if i else "")
            axes.set_ylabel("seconds" if j == 0 else "")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


SCRIPT = Script(
    "fig16_seqlen",
    "Figure 16",
    "end-to-end latency by length, batch 1, machine A",
    make,
    draw,
    (7.5, 9.5),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
