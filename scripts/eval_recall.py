# SPDX-License-Identifier: Apache-2.0
"""Measure how often a model recalls a value that it read long ago, under any cache setting.

Answers are scored through decode: the last prompt token always passes through a decode step, so
that already the first answer token is computed with hybrid attention.

    python scripts/eval_recall.py --model tiny-recall --task kv --distance 512 1024 \
        --seed 1 --n 100 --device-tokens 100 --k 0.05 --query exact
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen._files import write_whole
from hybridgen.cli import run_command
from hybridgen.cli_options import add_engine_arguments, engine_from
from hybridgen.evaluation.recall_tasks import TASKS, Sample, Vocabulary, exact_match, make_samples


def evaluate(
    llm: hg.LLM, samples: list[Sample], *, decode_prompt_tokens: int, batch: int
) -> dict[str, Any]:
    """Answer all samples greedily and compare.

    Parameters
    ----------
    llm : hybridgen.LLM
        With the cache setting under test.
    samples : list of Sample
        Prompts with their answers.
    decode_prompt_tokens : int
        At least 1; see `LLM.generate`.
    batch : int
        Prompts per call.

    Returns
    -------
    dict
        exact_match (share), standard_error, n, correct, and where the tokens were.
    """
    correct = 0
    offloaded = total = 0
    attended: list[float] = []
    for begin in range(0, len(samples), batch):
        part = samples[begin : begin + batch]
        params = [
            hg.SamplingParams(max_tokens=len(sample.answer_ids), ignore_eos=True) for sample in part
        ]
        results = llm.generate(
            [list(sample.prompt_ids) for sample in part],
            params,
            decode_prompt_tokens=decode_prompt_tokens,
        )
        for sample, result in zip(part, results, strict=True):
            correct += exact_match(result.token_ids, sample.answer_ids)
            metrics = result.metrics
            offloaded += metrics.offloaded_tokens
            total += metrics.offloaded_tokens + metrics.resident_tokens
            if metrics.offloaded_tokens:
                attended.append(metrics.attended_offloaded_share)
    share = correct / len(samples)
    return {
        "exact_match": share,
        "standard_error": math.sqrt(share * (1 - share) / len(samples)),
        "n": len(samples),
        "correct": correct,
        "offloaded_share": offloaded / max(total, 1),
        "attended_offloaded_share": sum(attended) / len(attended) if attended else 1.0,
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_engine_arguments(parser)
    parser.add_argument("--task", required=True, choices=sorted(TASKS))
    parser.add_argument(
        "--distance",
        type=int,
        nargs=2,
        action="append",
        metavar=("LOW", "HIGH"),
        help="in tokens; may be given several times; by default the usual ones of the task",
    )
    parser.add_argument("--n", type=int, default=100, help="prompts per distance")
    parser.add_argument("--length", type=int, help="tokens of every prompt")
    parser.add_argument("--batch", type=int, default=32, help="prompts per call")
    parser.add_argument(
        "--decode-prompt-tokens",
        type=int,
        default=1,
        help="this many last prompt tokens pass through decode steps",
    )
    parser.add_argument("--json", help="write results here; - is standard output")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate every distance, print a table, write JSON."""
    for name in ("n", "batch", "decode_prompt_tokens"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise hg.ConfigError(
                f"[eval_recall] --{option} is {getattr(arguments, name)}; allowed: >= 1"
            )
    try:
        vocabulary = Vocabulary.from_model_dir(arguments.model)
        distances = [tuple(pair) for pair in arguments.distance or TASKS[arguments.task].buckets]
        samples = {
            (low, high): make_samples(
                arguments.task,
                vocabulary,
                (low, high),
                arguments.n,
                arguments.seed,
                length=arguments.length,
            )
            for low, high in distances
        }
    except ValueError as error:
        raise hg.ConfigError(f"[eval_recall] {error}") from error

    options = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("json", "distance", "model")
    }
    rows = []
    table = sys.stderr if arguments.json == "-" else sys.stdout
    header = f"{'task':8} {'distance':>12} {'n':>5} {'exact match':>12} {'offloaded':>10}"
    with engine_from(arguments) as llm:
        print(f"{header} {'attended':>9}", file=table)
        for distance, drawn in samples.items():
            result = evaluate(
                llm,
                drawn,
                decode_prompt_tokens=arguments.decode_prompt_tokens,
                batch=arguments.batch,
            )
            rows.append({"task": arguments.task, "distance": list(distance)} | result)
            print(
                f"{arguments.task:8} {distance[0]:>6}-{distance[1]:<5} {result['n']:>5} "
                f"{result['exact_match']:>6.3f} ±{result['standard_error']:.3f} "
                f"{result['offloaded_share']:>9.1%} {result['attended_offloaded_share']:>9.1%}",
                file=table,
            )
    if arguments.json:
        content = {
            "model": Path(arguments.model).name,
            "options": options,
            "exact_match": sum(row["exact_match"] for row in rows) / len(rows),
            "results": rows,
        }
        text = json.dumps(content | {"version": hg.__version__}, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            write_whole(arguments.json, f"{text}\n", "eval_recall")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
