# SPDX-License-Identifier: Apache-2.0
"""Measure what offloaded keys and values in 8 or 4 bits cost and bring.

On the tiny recall models: how often is a value found that was read 512 to 1,024 tokens ago? On
SmolLM2: how often is the token that full attention writes the likeliest, fed the same text? There
also decode steps of every pair of formats by turns with those over full rows, in one process.

    python scripts/kv_precision.py [--quick] [--out docs/results/kv_precision.md] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from eval_recall import evaluate  # noqa: E402
from get_smollm2 import ensure_smollm2  # noqa: E402
from hybridgen._files import unwound_by_sigterm, write_whole  # noqa: E402
from hybridgen.evaluation.recall_tasks import Vocabulary, make_samples  # noqa: E402
from methods_accuracy import TEXTS, agreement  # noqa: E402
from methods_accuracy_report import DISTANCE, TINY_MODELS  # noqa: E402
from report import Report  # noqa: E402

Pair = tuple[str, str]
PRECISIONS = ("full", "int8", "int4")
PAIRS: tuple[Pair, ...] = tuple(itertools.product(PRECISIONS, PRECISIONS))
FULL: Pair = ("full", "full")
SMALL: Pair = ("int8", "int4")
"""The pair that has bars."""

K = 0.05
LOSSES = {("int8", "full"): 0.01, ("int8", "int8"): 0.01, SMALL: 0.03}
"""Of recall against full rows, at most."""
BYTES_BAR, SPEED_BAR = 0.42, 1.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    samples: int = 100
    texts: int = 3
    prompt: int = 992
    new_tokens: int = 64
    context: int = 6000
    turns: int = 15


QUICK = Size(samples=16, texts=1, context=2000, turns=7)
STEPS = 4
"""Of a turn, so that what the other engine left in the caches plays no great part."""


@dataclass
class Figures:
    """What one pair of formats came to."""

    recall: dict[str, float] = field(default_factory=dict)
    agreement: float = 0.0
    bytes_per_token: float = 0.0
    step_s: float = 0.0
    ratios: list[float] = field(default_factory=list)
    """Of full rows' step time, turn by turn."""


def engine(base: hg.LLM, pair: Pair, device_tokens: int, query: str = "rescore") -> hg.LLM:
    """Return an engine whose offloaded rows lie in these formats."""
    kv = hg.KVConfig(device_tokens=device_tokens, keys=pair[0], values=pair[1])
    return hg.LLM(base, method=hg.methods.HybridGen(k=K, query=query), kv=kv)


def measure_recall(found: dict[Pair, Figures], size: Size) -> None:
    """Add the recall of the trained models."""
    for name in TINY_MODELS:
        folder = ROOT / "tests" / "models" / name
        samples = make_samples(
            "kv", Vocabulary.from_model_dir(folder), DISTANCE, size.samples, 0, length=1100
        )
        with hg.LLM(folder, dtype="float32", method="full") as base:
            for pair in PAIRS:
                with engine(base, pair, 100) as llm:
                    result = evaluate(llm, samples, decode_prompt_tokens=1, batch=16)
                found[pair].recall[name] = result["exact_match"]


def prompts_of(base: hg.LLM, count: int, tokens: int) -> list[list[int]]:
    """Return pieces of this project's texts, again from the beginning where there are no more."""
    text = "\n\n".join(file.read_text(encoding="utf-8").strip() for file in TEXTS)
    ids = base.get_tokenizer().encode(text)
    ids = list(itertools.islice(itertools.cycle(ids), count * tokens))
    return [ids[i * tokens : (i + 1) * tokens] for i in range(count)]


def measure_agreement(base: hg.LLM, found: dict[Pair, Figures], size: Size) -> None:
    """Add how often full attention's token is the likeliest; all tokens are chosen by 5 %."""
    prompts = prompts_of(base, size.texts, size.prompt)
    params = hg.SamplingParams(max_tokens=size.new_tokens, ignore_eos=True)
    texts = base.generate_ids(prompts, params, decode_prompt_tokens=1)
    for pair in PAIRS:
        with engine(base, pair, size.prompt // 10) as llm:
            hits, _ = agreement(llm, prompts, texts, 1)
        found[pair].agreement = sum(hits) / len(hits)


def bytes_at_rest(base: hg.LLM, pair: Pair) -> float:
    """Return what one more token takes of the host, where it holds all and stages none of them."""
    kv = hg.KVConfig(keys=pair[0], values=pair[1])
    used = []
    lengths = (512, 1024)
    with hg.LLM(base, method="moe_lightning", kv=kv) as llm:
        for tokens in lengths:
            stream = llm.stream(
                [3] * (tokens - 2), hg.SamplingParams(max_tokens=2, ignore_eos=True)
            )
            next(stream)
            used.append(llm.memory["dram"]["used"])
            for _ in stream:
                pass
    return float(used[1] - used[0]) / (lengths[1] - lengths[0])


def seconds_of(stream: Iterator[object]) -> float:
    """Return how long a decode step took, the mean of a turn's."""
    begin = time.perf_counter()
    for _ in range(STEPS):
        next(stream)
    return (time.perf_counter() - begin) / STEPS


def measure_speed(base: hg.LLM, found: dict[Pair, Figures], size: Size) -> None:
    """Add step times: every pair beside full rows, by turns."""
    prompt = prompts_of(base, 1, size.context)[0]
    params = hg.SamplingParams(max_tokens=(size.turns + 1) * STEPS + 1, ignore_eos=True)
    for pair in PAIRS:
        with ExitStack() as stack:
            streams = []
            for formats in (FULL, pair):
                llm = stack.enter_context(engine(base, formats, size.context // 10, "speculative"))
                stream = llm.stream(prompt, params)
                next(stream)
                streams.append(stream)
            turns = [[seconds_of(stream) for stream in streams] for _ in range(size.turns + 1)]
        found[pair].step_s = statistics.median(own for _, own in turns[1:])  # the first warms up
        found[pair].ratios = [full / own for full, own in turns[1:]]


def name_of(pair: Pair) -> str:
    """Return how a pair is called in tables."""
    return f"{pair[0]} keys, {pair[1]} values"


def add_bars(report: Report, found: dict[Pair, Figures]) -> None:
    """Report what there are bars for."""
    for pair, loss in LOSSES.items():
        for model, recall in found[pair].recall.items():
            lost = found[FULL].recall[model] - recall
            report.add(f"{name_of(pair)}: recall lost, {model}", lost, "share", loss, at_most=True)
    share = found[SMALL].bytes_per_token / found[FULL].bytes_per_token
    report.add(f"{name_of(SMALL)}: bytes at rest", share, "of full", BYTES_BAR, at_most=True)
    speed = statistics.median(found[SMALL].ratios)
    report.add(f"{name_of(SMALL)}: decode speed", speed, "x of full", SPEED_BAR)


def markdown(report: Report, found: dict[Pair, Figures], size: Size, command: str) -> str:
    """Return the document."""
    machine = report.machine
    lines = [
        "# Offloaded rows in 8 and 4 bits",
        "",
        f"Measured. {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch "
        f"{machine['torch']}, {machine['build_type']} build, {datetime.date.today().isoformat()}. "
        f"Command: `{command}`.",
        "",
        f"* *Recall*: `HybridGen(k={K})`, 100 tokens on the device, of {size.samples} prompts of "
        "1,100 tokens per trained model (float32) how many are answered by the value that was "
        f"read {DISTANCE[0]} to {DISTANCE[1]} tokens ago.",
        "* *Agreement*: SmolLM2-135M-Instruct, bfloat16, a tenth on the device, the same K: share "
        f"of {size.texts} x {size.new_tokens} tokens that full attention writes after "
        f"{size.prompt} tokens of text which are the likeliest here too, fed the same text.",
        "* *Bytes*: of one token's keys and values at rest, all layers of SmolLM2 in bfloat16.",
        f"* *Speed*: decode at {size.context:,} tokens, a tenth on the device, "
        f'`HybridGen(k={K}, query="speculative")`, over that with full rows, steps of both by '
        "turns in one process: median of the turns' ratios, lowest and highest quarter.",
        "",
        "| keys | values | " + " | ".join(TINY_MODELS) + " | agreement | bytes | of full | speed |",
        "| --- | --- | " + " | ".join("---" for _ in TINY_MODELS) + " | --- | --- | --- | --- |",
    ]
    for (keys, values), figures in found.items():
        recall = " | ".join(f"{figures.recall[name]:.2f}" for name in TINY_MODELS)
        low, middle, high = statistics.quantiles(figures.ratios, n=4)
        share = figures.bytes_per_token / found[FULL].bytes_per_token
        lines.append(
            f"| {keys} | {values} | {recall} | {figures.agreement:.3f} | "
            f"{figures.bytes_per_token:,.0f} | {share:.3f} | {middle:.2f} ({low:.2f} to "
            f"{high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few prompts, a short context")
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--json", help="write the bars' figures here")
    arguments = parser.parse_args(given)
    size = QUICK if arguments.quick else Size()
    report = Report()
    found = {pair: Figures() for pair in PAIRS}
    measure_recall(found, size)
    with hg.LLM(ensure_smollm2(), dtype="bfloat16", method="full") as base:
        measure_agreement(base, found, size)
        for pair in PAIRS:
            found[pair].bytes_per_token = bytes_at_rest(base, pair)
        measure_speed(base, found, size)
    add_bars(report, found)
    text = markdown(report, found, size, " ".join(["python scripts/kv_precision.py", *given]))
    print(text)
    if arguments.out is not None:
        write_whole(arguments.out, text, "kv_precision")
    report.write(arguments.json)
    return 0


if __name__ == "__main__":
    with unwound_by_sigterm():
        sys.exit(main())
