# SPDX-License-Identifier: Apache-2.0
"""Compare the accuracy of all methods on trained models, as a function of the tokens attended.

On the tiny recall models: how often is a value found that was read 512 to 1,024 tokens ago? On
SmolLM2: how often does a method, fed the text that full attention writes, choose the same token?
Both pass through decode steps. The third measurement is the paper's Figure 11: how much do the
inputs of consecutive layers resemble each other, on which speculation rests?

    python scripts/methods_accuracy.py [--quick] [--json FILE] [--out FILE.md] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import hybridgen as hg
from demo import DOCUMENT
from get_smollm2 import ensure_smollm2
from hybridgen import generation
from hybridgen.config import QUERY_MODES
from hybridgen.method_options import MethodOptions
from recall_tasks import Sample, Vocabulary, exact_match, make_samples

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (*DOCUMENT, ROOT / "LICENSE")
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
ELEMENT_BYTES = 4
"""Of a key or value: all models run in float32, so that only methods differ."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    budgets: tuple[float, ...]
    samples: int
    recall_tokens: int
    prompts: int
    prompt_tokens: int
    continuation: int


FULL_SIZE = Size((0.02, 0.05, 0.1, 0.25), 32, 1100, 3, 992, 64)
QUICK_SIZE = Size((0.05, 0.2), 6, 1100, 1, 352, 32)


@dataclass(frozen=True)
class Variant:
    """A method at one budget.

    Parameters
    ----------
    family : str
        Row of the table.
    budget : float
        Share of the prompt's tokens that it is given; 1 for methods that attend to all.
    options : dict
        Of ``hybridgen.LLM``.
    decode_prompt_tokens : int
        See `LLM.generate`.
    """

    family: str
    budget: float
    options: dict[str, Any]
    decode_prompt_tokens: int = 1


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


# ------------------------------------------------------------------------------------- variants


def hybrid(budget: float, tokens: int, **options: Any) -> dict[str, Any]:
    """Return hybridgen with half of a budget as the window and half as K."""
    half = max(1, round(budget * tokens / 2))
    scheduler = hg.SchedulerConfig(k=half, strategy=options.pop("strategy", "post"))
    return {"kv": hg.KVConfig(device_tokens=half), "scheduler": scheduler, **options}


def variants(tokens: int, budgets: Sequence[float], steered_tokens: int) -> list[Variant]:
    """Return all variants for prompts of ``tokens``.

    Parameters
    ----------
    tokens : int
        Of every prompt.
    budgets : sequence of float
        Shares of them.
    steered_tokens : int
        Prompt tokens that pass through decode steps where the scheduler steers, so that it has
        something to decide on.
    """
    methods = hg.methods
    found = [
        Variant("full", 1.0, {"method": "full"}),
        Variant("flexgen", 1.0, {"method": "flexgen"}),
        Variant("moe_lightning", 1.0, {"method": "moe_lightning"}),
    ]
    for budget in budgets:
        kept = max(8, round(budget * tokens))
        window = max(2, round(kept / 2 / BLOCK))
        of_methods: dict[str, MethodOptions] = {
            "streaming_llm": methods.StreamingLLM(sinks=4, window=kept - 4),
            "h2o": methods.H2O(heavy=kept // 2, recent=kept - kept // 2),
            "keyformer": methods.Keyformer(kv_cache=kept),
            "infinigen": methods.InfiniGen(max_fetch=kept),
            "hgca": methods.HGCA(block=BLOCK, blocks=window, beta=0.2 / budget, keep_min=1),
        }
        found += [
            # Nothing is steered here: the method knows its own number of tokens.
            Variant(
                name,
                budget,
                {
                    "method": name,
                    "method_config": config,
                    "scheduler": hg.SchedulerConfig(k="all"),
                },
            )
            for name, config in of_methods.items()
        ]
        found += [
            Variant(f"hybridgen {query}, topk", budget, hybrid(budget, tokens, query=query))
            for query in QUERY_MODES
        ]
        found += [
            Variant(
                f"hybridgen exact, {selector}",
                budget,
                hybrid(budget, tokens, query="exact", selector=selector),
            )
            for selector in ("h2o", "keyformer")
        ]
        found += [
            Variant(
                f"hybridgen exact, pre {selector}",
                budget,
                hybrid(budget, tokens, query="exact", strategy="pre", pre_selector=selector),
            )
            for selector in ("sinks_recent", "block_digests", "partial_keys")
        ]
    middle = budgets[len(budgets) // 2 - 1]
    found += [
        Variant(
            f"hybridgen speculative, {text}",
            middle,
            hybrid(middle, tokens, query=hg.QueryConfig(mode="speculative", **changes)),
        )
        for text, changes in GUESSES.items()
    ]
    half = max(1, round(middle * tokens / 2))
    found += [
        Variant(
            f"preset {name}",
            middle,
            {
                "kv": hg.KVConfig(device_tokens=half),
                "scheduler": hg.SchedulerConfig.preset(name, k_min=half),
            },
            decode_prompt_tokens=steered_tokens,
        )
        for name in PRESETS
    ]
    # What a switch to Pre-QKT costs depends on who chooses then.
    found += [
        replace(
            variant,
            family=f"{variant.family}, pre sinks_recent",
            options=variant.options | {"pre_selector": "sinks_recent"},
        )
        for variant in found
        if variant.family in ("preset fixed_adaptive", "preset full")
    ]
    return found


# ----------------------------------------------------------------------------------- measurement


class ForcedSequence(generation.Sequence):
    """Notes at which places of a given text the model would have chosen the same token."""

    def __init__(self, prompt_ids: list[int], params: hg.SamplingParams) -> None:
        super().__init__(prompt_ids, params, None)
        self.same: list[float] = []

    def accept(self, event: Any) -> None:
        """Take one token from the engine."""
        self.same.append(float(event.is_greedy))
        super().accept(event)


def recall(
    llm: hg.LLM, samples: list[Sample], decode_prompt_tokens: int
) -> tuple[list[float], list[hg.RequestMetrics]]:
    """Return 1 or 0 for each prompt, and the metrics."""
    results = llm.generate(
        [list(sample.prompt_ids) for sample in samples],
        hg.SamplingParams(max_tokens=1, ignore_eos=True),
        decode_prompt_tokens=decode_prompt_tokens,
    )
    hits = [
        float(exact_match(result.token_ids, sample.answer_ids))
        for result, sample in zip(results, samples, strict=True)
    ]
    return hits, [result.metrics for result in results]


def agreement(
    llm: hg.LLM, prompts: list[list[int]], texts: list[list[int]], decode_prompt_tokens: int
) -> tuple[list[float], list[hg.RequestMetrics]]:
    """Return 1 or 0 for each token of the texts, and the metrics of each prompt.

    The text after the prompt is given, so that one difference does not spoil what follows.
    """
    sequences = [
        ForcedSequence(ids, hg.SamplingParams(max_tokens=len(text), ignore_eos=True))
        for ids, text in zip(prompts, texts, strict=True)
    ]
    # LLM.score does the same, but says only whether all tokens are equal.
    llm._run(list(sequences), forced=texts, decode_prompt_tokens=decode_prompt_tokens)
    return [hit for s in sequences for hit in s.same], [s.metrics for s in sequences]


def attended_offloaded(llm: hg.LLM, method: str, metrics: list[hg.RequestMetrics]) -> float:
    """Return how many offloaded tokens a KV head attends to, averaged over layers and steps."""
    if method in ("infinigen", "hgca"):
        # These choose a different number in every layer: count the value rows that were read.
        config, stats = llm.model_config, llm.stats
        row_bytes = config["head_dim"] * ELEMENT_BYTES * config["num_kv_heads"]
        rows = stats.host_value_bytes_read / (row_bytes * config["num_layers"])
        # Tokens were added on the way: count as many of those that are there in the end.
        at_end = sum(m.offloaded_tokens for m in metrics) / len(metrics)
        added = sum(m.decode_steps - 1 for m in metrics) / len(metrics)
        return float(rows / max(1, stats.decode_tokens) * at_end / (at_end - added / 2))
    return sum(m.attended_offloaded_share * m.offloaded_tokens for m in metrics) / len(metrics)


def measure(base: hg.LLM, name: str, variant: Variant, task: Any) -> Row:
    """Run one variant; an error becomes part of the row."""
    row = Row(name, variant.family, variant.budget)
    begin = time.perf_counter()
    try:
        with hg.LLM(base, **variant.options) as llm:
            values, metrics = task(llm, variant.decode_prompt_tokens)
            chosen = attended_offloaded(llm, variant.options.get("method", "hybridgen"), metrics)
    except hg.HybridGenError as error:
        row.error = str(error)
        print(f"{name}: {variant.family} at {variant.budget:g}: {error}", file=sys.stderr)
        return row
    row.seconds = time.perf_counter() - begin
    row.value = sum(values) / len(values)
    row.standard_error = math.sqrt(row.value * (1 - row.value) / len(values))
    count = len(metrics)
    # The last token is never attended to: nothing follows it.
    tokens = sum(m.prompt_tokens + m.generated_tokens - 1 for m in metrics) / count
    resident = sum(m.resident_tokens for m in metrics) / count
    offloaded = sum(m.offloaded_tokens for m in metrics) / count
    row.attended_share = min(1.0, (resident + chosen) / tokens)
    row.offloaded_share = offloaded / tokens
    row.dropped_share = max(0.0, 1.0 - (resident + offloaded) / tokens)
    row.k = sum(m.k for m in metrics) / count
    used = [m.strategy for m in metrics]
    row.strategies = " ".join(f"{s} {used.count(s)}" for s in sorted(set(used)))
    print(
        f"{name:<11} {row.family:<50} {row.budget:>5.0%} {row.value:>6.3f} "
        f"±{row.standard_error:.3f} attended {row.attended_share:>6.1%} offloaded "
        f"{row.offloaded_share:>6.1%} K {row.k:>5.0f} {row.strategies:<8} {row.seconds:>6.1f} s",
        flush=True,
    )
    return row


@torch.no_grad()
def layer_similarity(model: Path, prompts: list[list[int]]) -> list[float]:
    """Return the mean cosine similarity of the inputs of layers i and i+1, for each i."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    layers = reference.config.num_hidden_layers
    total = torch.zeros(layers - 1, dtype=torch.float64)
    for ids in prompts:
        states = reference(
            torch.tensor([ids]), output_hidden_states=True, logits_to_keep=1
        ).hidden_states
        for i in range(layers - 1):
            similar = torch.cosine_similarity(states[i][0], states[i + 1][0], dim=-1)
            total[i] += similar.double().mean()
    return [float(x) for x in total / len(prompts)]


def held_weights(model: Path, prompts: list[list[int]], budgets: Sequence[float]) -> list[Held]:
    """Return what the window and the best K tokens hold of the last token's attention."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        model, attn_implementation="eager", dtype=torch.float32
    ).eval()
    sums = torch.zeros(len(budgets), reference.config.num_hidden_layers)
    for ids in prompts:
        with torch.no_grad():
            weights = reference(torch.tensor([ids]), output_attentions=True).attentions
        last = torch.stack([layer[0, :, -1] for layer in weights])
        for i, budget in enumerate(budgets):
            half = max(1, round(budget * len(ids) / 2))
            best = last[..., :-half].topk(half).values.sum(-1)
            sums[i] += (best + last[..., -half:].sum(-1)).mean(-1)
    shares = sums / len(prompts)
    return [
        Held(budget, float(share.mean()), float(share.min()), int(share.argmin()))
        for budget, share in zip(budgets, shares, strict=True)
    ]


def measure_tiny(report: Report, size: Size, seed: int) -> None:
    """Measure recall on the three tiny models."""
    for name in TINY_MODELS:
        folder = ROOT / "tests" / "models" / name
        vocabulary = Vocabulary.from_model_dir(folder)
        samples = make_samples(
            "kv", vocabulary, DISTANCE, size.samples, seed, length=size.recall_tokens
        )
        with hg.LLM(folder, dtype="float32", method="full") as base:
            for variant in variants(size.recall_tokens, size.budgets, steered_tokens=64):
                report.rows.append(
                    measure(base, name, variant, lambda llm, last, s=samples: recall(llm, s, last))
                )
        some = [list(sample.prompt_ids) for sample in samples[:4]]
        report.similarity[name] = layer_similarity(folder, some)
        report.held[name] = held_weights(folder, some, size.budgets)


def measure_smollm2(report: Report, size: Size) -> None:
    """Measure agreement with full attention on SmolLM2."""
    name, folder = "SmolLM2-135M", Path(ensure_smollm2())
    with hg.LLM(folder, dtype="float32", method="full") as base:
        text = "\n\n".join(file.read_text(encoding="utf-8").strip() for file in TEXTS)
        ids = base.tokenizer.encode(text)
        tokens = size.prompt_tokens
        if len(ids) < size.prompts * tokens:
            raise SystemExit(f"the text has {len(ids)} tokens; {size.prompts} x {tokens} are used")
        prompts = [ids[i * tokens : (i + 1) * tokens] for i in range(size.prompts)]
        params = hg.SamplingParams(max_tokens=size.continuation, ignore_eos=True)
        texts = base.generate_ids(prompts, params, decode_prompt_tokens=1)
        for variant in variants(tokens, size.budgets, steered_tokens=1):
            report.rows.append(
                measure(base, name, variant, lambda llm, last: agreement(llm, prompts, texts, last))
            )
    report.similarity[name] = layer_similarity(folder, prompts)
    report.held[name] = held_weights(folder, prompts, size.budgets)


# ---------------------------------------------------------------------------------------- report


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
    path.write_text("\n".join(lines), encoding="utf-8")


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
    figure.savefig(path, dpi=120, format="png")
    return True


def describe_machine(argv: Sequence[str]) -> dict[str, Any]:
    """Return what the figures depend on."""
    info = hg.info().to_dict()
    return {
        "cpu": info["cpu"]["model"],
        "cores": info["cpu"]["usable"],
        "isa": info["cpu"]["isa"],
        "torch": info["versions"]["torch"],
        "transformers": info["versions"]["transformers"],
        "hybridgen": info["versions"]["hybridgen"],
        "build_type": info["build"]["build_type"],
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "scripts/methods_accuracy.py", *argv]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two budgets, few short prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write tables and findings")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it; needs matplotlib")
    parser.add_argument("--only", choices=["recall", "agreement"], help="one of the two tasks")
    parser.add_argument("--seed", type=int, default=20261, help="of the recall prompts")
    arguments = parser.parse_args(given)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    size = QUICK_SIZE if arguments.quick else FULL_SIZE
    report = Report(describe_machine(given), asdict(size))
    if arguments.only != "agreement":
        measure_tiny(report, size, arguments.seed)
    if arguments.only != "recall":
        measure_smollm2(report, size)
    plot = arguments.plot if arguments.plot and draw(report, arguments.plot) else None
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    if arguments.out:
        write_markdown(report, size, arguments.out, plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
