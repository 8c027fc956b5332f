# SPDX-License-Identifier: Apache-2.0
"""Compare the accuracy of all methods on trained models, as a function of the tokens attended.

On the tiny recall models: how often is a value found that was read 512 to 1,024 tokens ago? On
SmolLM2: how often does a method, fed the text that full attention writes, choose the same token?
Both pass through decode steps. The third measurement is the paper's Figure 11: how much do the
inputs of consecutive layers resemble each other, on which speculation rests?

    python scripts/methods_accuracy.py [--quick] [--json FILE] [--out FILE.md] [--plot FILE.png]

Without other paths a full run writes docs/results/methods_accuracy.md and .png, a quick one
results/methods_accuracy.md and .png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import hybridgen as hg
from demo import DOCUMENT
from get_smollm2 import ensure_smollm2
from hybridgen._files import unwound_by_sigterm, write_whole
from hybridgen.config import MethodOptions
from hybridgen.evaluation.recall_tasks import Sample, Vocabulary, exact_match, make_samples
from methods_accuracy_report import (
    BLOCK,
    DISTANCE,
    GUESSES,
    PRESETS,
    TINY_MODELS,
    Held,
    Report,
    Row,
    Size,
    draw,
    write_markdown,
)

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (*DOCUMENT, ROOT / "LICENSE")
ELEMENT_BYTES = 4
"""Of a key or value: all models run in float32, so that only methods differ."""


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
            Variant(name, budget, {"method": name, "method_config": config})
            for name, config in of_methods.items()
        ]
        found += [
            Variant(f"hybridgen {query}, topk", budget, hybrid(budget, tokens, query=query))
            for query in ("exact", "speculative", "rescore")
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
    requests = [
        llm._maker.make(
            "agreement",
            (None, ids),
            hg.SamplingParams(max_tokens=len(text), ignore_eos=True),
            makes_text=False,
            forced=text,
            decode_prompt_tokens=decode_prompt_tokens,
        )
        for ids, text in zip(prompts, texts, strict=True)
    ]
    # LLM.score does the same, but says only whether all tokens are equal.
    llm._run("agreement", requests, lambda: requests)
    sequences = [request.sequences[0] for request in requests]
    return [float(same) for s in sequences for same in s.greedy], [s.metrics for s in sequences]


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
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    ).eval()
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
        model, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
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


# ---------------------------------------------------------------------------------- command line


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
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="tables and findings")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="needs matplotlib")
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
    folder = ROOT / ("results" if arguments.quick else "docs/results")
    out = arguments.out or folder / "methods_accuracy.md"
    plot = arguments.plot or out.with_suffix(".png")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.json, json.dumps(asdict(report), indent=1) + "\n")
    write_markdown(report, size, out, plot if draw(report, plot) else None)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    with unwound_by_sigterm():
        sys.exit(main())
