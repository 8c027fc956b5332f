# SPDX-License-Identifier: Apache-2.0
"""What methods_accuracy.py measures, and the tables, findings and plot that it writes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridgen._files import replacing, write_whole

TINY_MODELS = ("tiny-llama", "tiny-opt", "tiny-qwen2")
DISTANCE = (512, 1024)
PRESETS = ("fixed_pre", "fixed_post", "fixed_adaptive", "adaptive_pre", "adaptive_post", "full")
GUESSES: dict[str, dict[str, Any]] = {
    "from layer 1 on": {"first_layer": 1},
    "from layer 3 on": {"first_layer": 3},
    "norm of the layer before": {"norm": "current"},
    "query of the layer before": {"source": "previous_query"},
}
"""Other ways to guess than the default."""
BLOCK = 16
"""Tokens that leave HGCA's window at once: its window must be small enough for small budgets."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    budgets: tuple[float, ...]
    samples: int
    recall_tokens: int
    prompts: int
    prompt_tokens: int
    continuation: int


@dataclass
class Row:
    """What one variant reached."""

    model: str
    family: str
    budget: float
    value: float = math.nan
    standard_error: float = math.nan
    attended_share: float = math.nan
    offloaded_share: float = math.nan
    dropped_share: float = math.nan
    k: float = 0.0
    strategies: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Held:
    """Share of the attention weights on the tokens that `hybridgen exact, topk` attends to.

    Parameters
    ----------
    budget : float
        As of the variants.
    mean, least : float
        Over layers, of the mean over heads and prompts.
    layer : int
        The one with the least.
    """

    budget: float
    mean: float
    least: float
    layer: int


@dataclass
class Report:
    """Everything that is measured, as written to JSON."""

    machine: dict[str, Any]
    size: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    similarity: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)

    def of(self, model: str, family: str) -> list[Row]:
        """Return a family's rows of a model by budget, without those that failed."""
        found = [r for r in self.rows if (r.model, r.family) == (model, family) and not r.error]
        return sorted(found, key=lambda row: row.budget)

    def best(self, model: str, family: str) -> float:
        """Return a family's largest value, NaN without any."""
        return max((row.value for row in self.of(model, family)), default=math.nan)


def table_of(report: Report, model: str, budgets: Sequence[float]) -> list[str]:
    """Return one model's table as lines of markdown."""
    lines = [
        "| variant | " + " | ".join(f"budget {budget:.0%}" for budget in budgets) + " |",
        "| --- |" + " --- |" * len(budgets),
    ]
    families = dict.fromkeys(row.family for row in report.rows if row.model == model)
    steered: list[str] = []
    for family in families:
        cells = {}
        for row in (r for r in report.rows if (r.model, r.family) == (model, family)):
            cells[row.budget] = (
                "failed"
                if row.error
                else f"{row.value:.2f} ±{row.standard_error:.2f} "
                f"({row.attended_share:.1%} / {row.offloaded_share:.0%})"
            )
            if family.startswith("preset") and not row.error:
                steered.append(
                    f"{family.removeprefix('preset ')} ends with K {row.k:.0f}, {row.strategies}"
                )
        if 1.0 in cells:
            shown = [cells[1.0], *[""] * (len(budgets) - 1)]
        else:
            shown = [cells.get(budget, "") for budget in budgets]
        lines.append(f"| {family} | " + " | ".join(shown) + " |")
    if steered:
        lines += ["", "Steered requests (strategy and number of requests): " + "; ".join(steered)]
        lines[-1] += "."
    return lines


def mean_loss(report: Report, model: str, family: str, reference: str) -> float:
    """Return by how much a family is below another, averaged over budgets."""
    pairs = {row.budget: row.value for row in report.of(model, reference)}
    losses = [pairs[r.budget] - r.value for r in report.of(model, family) if r.budget in pairs]
    return sum(losses) / len(losses) if losses else math.nan


def verdict(holds: bool) -> str:
    """Say whether an expectation came out."""
    return "came out" if holds else "**did not come out**"


def explain_loss(report: Report, model: str, rows: Sequence[Row], full: float) -> list[str]:
    """Return how much a model's attention weighs on the best K tokens, which nothing can exceed."""
    enough = [row for row in rows if row.value >= 0.95 * full]
    share = f"{enough[0].attended_share:.1%} of the tokens" if enough else "none of these budgets"
    values = ", ".join(
        f"{held.budget:.0%}: {held.mean:.2f} (layer {held.layer}: {held.least:.2f})"
        for held in report.held.get(model, [])
    )
    return [
        f"  * 95 % is reached with {share}.",
        "  * Its attention is spread wider: no choice of tokens holds more of the weights than "
        f"window and best K do, and of 1 these hold, per budget, on average over layers {values}.",
    ]


def findings(report: Report, models: Sequence[str]) -> list[str]:
    """Return what was expected and what came out, with the numbers that say so."""
    lines = []
    exact, guessed = "hybridgen exact, topk", "hybridgen speculative, topk"
    rescored, window = "hybridgen rescore, topk", "hybridgen exact, pre sinks_recent"
    recall_models = [model for model in models if model in TINY_MODELS]

    if recall_models:
        lines += [
            "**1. A static window loses what is far away.** Expected recall at every budget: that "
            "of guessing (0.01), up to chance hits.",
            "",
        ]
        for model in recall_models:
            best = max(report.best(model, "streaming_llm"), report.best(model, window))
            lines.append(f"* {model}: at most {best:.2f}; {verdict(best <= 0.1)}.")
        lines.append("")

    lines += [
        "**2. Post-QKT selection by this step's logits keeps it at a small K.** Expected: the "
        "smallest budget reaches 95 % of full attention.",
        "",
    ]
    for model in models:
        full, rows = report.best(model, "full"), report.of(model, exact)
        if not rows:
            continue
        first = rows[0]
        lines.append(
            f"* {model}: {first.value:.2f} of {full:.2f} with {first.attended_share:.1%} of the "
            f"tokens (K {first.k:.0f}); {verdict(first.value >= 0.95 * full)}."
        )
        if first.value < 0.95 * full:
            lines += explain_loss(report, model, rows, full)
    lines += [
        "",
        "**3. Speculation costs little, rescoring less.** Expected: at most 0.05 below the exact "
        "query on average over budgets, and rescoring not below speculation.",
        "",
    ]
    for model in models:
        loss = mean_loss(report, model, guessed, exact)
        rest = mean_loss(report, model, rescored, exact)
        verdict_of_loss = verdict(loss <= 0.05 and rest <= loss + 0.01)
        error = max((row.standard_error for row in report.of(model, guessed)), default=0.0)
        if 0.05 < loss <= 0.05 + error:
            verdict_of_loss = f"too close to tell (standard errors up to {error:.2f})"
        similar = report.similarity.get(model, [])
        later = similar[1:]
        lines.append(
            f"* {model}: speculation {loss:+.3f}, rescoring {rest:+.3f} below exact; "
            f"{verdict_of_loss}. Inputs of consecutive layers: {similar[0]:.2f} between the first "
            f"two, {min(later):.2f} to {max(later):.2f} after them."
            if similar and later
            else f"* {model}: speculation {loss:+.3f}, rescoring {rest:+.3f}; {verdict_of_loss}."
        )
        if loss > 0.05:
            lines += explain(report, model, guessed, loss, rest)
    lines += [
        "",
        "**4. A steered request keeps its accuracy.** Expected of `full` (K and strategy by stage "
        "times): at most 0.05 below `fixed_post` at the same K_min. Stage times are this "
        "machine's, so that this result, unlike the others, may differ from run to run.",
        "",
    ]
    for model in models:
        fixed = report.of(model, "preset fixed_post")
        steered = report.of(model, "preset full")
        static = report.of(model, "preset full, pre sinks_recent")
        if not fixed or not steered:
            continue
        holds = steered[0].value >= fixed[0].value - 0.05
        line = (
            f"* {model}: `full` {steered[0].value:.2f} ({steered[0].strategies}), `fixed_post` "
            f"{fixed[0].value:.2f}; {verdict(holds)}."
        )
        if static:
            line += (
                " With the static window `sinks_recent` as Pre-QKT selector: "
                f"{static[0].value:.2f} ({static[0].strategies})."
            )
        lines.append(line)
    return lines


def explain(report: Report, model: str, guessed: str, loss: float, rest: float) -> list[str]:
    """Return why speculation costs something, as far as the numbers say so."""
    lines = []
    if rest < loss / 2:
        lines.append(
            "  * Rescoring chooses with the same guess and loses less than half of that: the guess "
            "finds the tokens, but its logits are wrong as weights beside exact ones."
        )
    else:
        lines.append(
            "  * Rescoring does not recover it: the guess does not find the tokens, and exact "
            "logits for those it finds do not help."
        )
    at = {row.budget: row.value for row in report.of(model, guessed)}
    compared = []
    for text in GUESSES:
        for row in report.of(model, f"hybridgen speculative, {text}"):
            compared.append(f"{text} {row.value:.2f} (default {at.get(row.budget, math.nan):.2f})")
    if compared:
        lines.append(f"  * Other guesses at the same budget: {'; '.join(compared)}.")
    late = report.of(model, "hybridgen speculative, from layer 3 on")
    if model in TINY_MODELS and late and late[0].value <= at.get(late[0].budget, 1.0):
        lines.append(
            "  * With a guess in layer 3 alone, the last, it loses as much as with guesses in "
            "layers 2 and 3: the loss arises there."
        )
    others = {
        other: min(similar[1:])
        for other, similar in report.similarity.items()
        if other in TINY_MODELS and other != model
    }
    own = report.similarity.get(model, [])[1:]
    if model in TINY_MODELS and own and others:
        shown = ", ".join(f"{value:.2f} in {other}" for other, value in others.items())
        lines.append(f"  * The least similar inputs from layer 1 on: {min(own):.2f} here, {shown}.")
    return lines


def write_markdown(report: Report, size: Size, path: Path, plot: Path | None) -> None:
    """Write tables and findings."""
    models = list(dict.fromkeys(row.model for row in report.rows))
    machine = report.machine
    lines = [
        "# Accuracy of all methods against the tokens they attend to",
        "",
        f"Measured. {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch "
        f"{machine['torch']}, transformers {machine['transformers']}, {machine['build_type']} "
        f"build, {machine['date']}. Command: `{machine['command']}`. Everything in float32 on the "
        "CPU device; greedy.",
        "",
        f"* **Recall** (tiny models): {size.samples} unseen prompts of {size.recall_tokens} "
        f"tokens, a record {DISTANCE[0]} to {DISTANCE[1]} tokens before its query, exact match of "
        "the answer. The query's key passes through a decode step; with a preset the last 64 "
        "tokens do, so that the scheduler has about 15 decisions to make.",
        f"* **Agreement** (SmolLM2-135M-Instruct): {size.prompts} prompts of {size.prompt_tokens} "
        f"tokens of the demo's text, each continued by {size.continuation} tokens that full "
        "attention writes; share of these that a method, fed the same text, would choose.",
        "* A cell is `value ± standard error (attended / offloaded)`: share of all tokens that a "
        "KV head attends to, averaged over layers, and share that lies in host memory. The budget "
        "is what a method is given: `streaming_llm`, `h2o` and `keyformer` keep so many tokens and "
        "drop the others; `infinigen` fetches at most so many; `hybridgen` takes half of it as its "
        f"window and half as K; `hgca` takes half of it as its window (at least {2 * BLOCK} "
        "tokens) and finds the rest itself, with beta = 0.2 / budget.",
        "* `infinigen` loads every token in layers 0 and 1: half of a tiny model's layers, so that "
        "its share attended cannot be below a half there.",
        "",
    ]
    if plot is not None:
        lines += [f"![value against share of tokens attended]({plot.name})", ""]
    for model in models:
        what = "recall" if model in TINY_MODELS else "agreement with full attention"
        lines += [f"## {model}: {what}", "", *table_of(report, model, size.budgets), ""]
    lines += [
        "## Inputs of consecutive layers",
        "",
        "Cosine similarity of the residual stream entering layers i and i+1, averaged over all "
        "positions of the same prompts (the paper's Figure 11), computed with transformers.",
        "",
        "| model | 0-1 | 1-2 | 2-3 | mean from 1 on | smallest from 1 on |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model, similar in report.similarity.items():
        later = similar[1:]
        cells = [f"{x:.3f}" for x in similar[:3]]
        lines.append(
            f"| {model} | " + " | ".join(cells) + f" | {sum(later) / len(later):.3f} | "
            f"{min(later):.3f} |"
        )
    lines += ["", "## Expected and found", "", *findings(report, models), ""]
    failed = [row for row in report.rows if row.error]
    if failed:
        lines += ["## Failed", ""]
        lines += [f"* {r.model}, {r.family}, {r.budget:.0%}: {r.error}" for r in failed] + [""]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(lines))


def draw(report: Report, path: Path) -> bool:
    """Draw value against share attended, one panel a model; False without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return False
    models = list(dict.fromkeys(row.model for row in report.rows))
    figure = Figure(figsize=(5 * len(models), 6), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    families = [
        family
        for family in dict.fromkeys(row.family for row in report.rows)
        if family not in ("flexgen", "moe_lightning") and "layer" not in family
    ]
    for axes, model in zip(panels, models, strict=True):
        for number, family in enumerate(families):
            rows = report.of(model, family)
            axes.plot(
                [row.attended_share for row in rows],
                [row.value for row in rows],
                marker="osD^v<>pPX*hd"[number % 13],
                linestyle="-" if len(rows) > 1 else "none",
                color=matplotlib.colormaps["nipy_spectral"](number / len(families)),
                label=family,
            )
        axes.set_xscale("log")
        axes.set_xlabel("share of tokens attended")
        axes.set_title(model)
    panels[0].set_ylabel("recall, or agreement with full attention (measured)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True
