# SPDX-License-Identifier: Apache-2.0
"""A file of short prompts: what the batch door costs, and what two engines on one machine bring.

2,000 prompts of 8 to 24 tokens, 16 new tokens each, SmolLM2-135M, all exact (`full`). Start-up is
excluded: engines are there, and have answered some lines, before the clock runs.

* ``LLM.generate`` with all prompts in one call, by turns with the same prompts as a file through
  the engine into shards: reading twice, digest, bounded window, writing, syncing.
* the same file through two engines, actors of Ray with half of the cores each, against the one
  engine with all of them.

    python benchmarks/batch.py [--quick] [--no-ray] [--json results/batch.json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from decode import smollm2  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from hybridgen.batch.engine_spec import EngineSpec  # noqa: E402
from hybridgen.batch.engine_window import EngineWindow  # noqa: E402
from hybridgen.batch.input_file import open_input  # noqa: E402
from hybridgen.batch.line import Answerer  # noqa: E402
from hybridgen.batch.line_forms import LineForms  # noqa: E402
from hybridgen.batch.run import run_batch  # noqa: E402
from hybridgen.batch.shard_files import JsonlShards  # noqa: E402
from hybridgen.batch.shard_folder import ShardFolder  # noqa: E402
from report import Report  # noqa: E402

NEW_TOKENS = 16
LINES_PER_SHARD = 200
ENGINE: dict[str, Any] = {"method": "full"}
SAMPLING = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
FORMS = LineForms("SmolLM2")


def make_prompts(count: int) -> list[str]:
    """Return beginnings of sentences of a text that comes with the sources."""
    words = (ROOT / "scripts" / "demo_text.txt").read_text(encoding="utf-8").split()
    draw = random.Random(0)
    starts = [draw.randrange(len(words) - 24) for _ in range(count)]
    return [" ".join(words[start : start + draw.randint(6, 18)]) for start in starts]


def write_prompts(file: Path, prompts: list[str]) -> Path:
    """Write a line for each prompt."""
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return file


def through_batch(file: Path, answerer: Answerer) -> None:
    """Answer a file into a folder that is dropped."""
    with tempfile.TemporaryDirectory() as out:
        source = open_input(file)
        folder = ShardFolder(
            out, JsonlShards(), num_lines=source.num_lines, lines_per_shard=LINES_PER_SHARD
        )
        with folder:
            outcome = run_batch(
                source, folder, answerer, {}, lines_per_shard=LINES_PER_SHARD, progress=False
            )
        if outcome.num_failed:
            raise RuntimeError(outcome.first_problem)


def tokens_per_second(count: int, work: Callable[[], object]) -> float:
    """Return new tokens per second of some work with so many prompts."""
    begin = time.perf_counter()
    work()
    return count * NEW_TOKENS / (time.perf_counter() - begin)


def measure_one_engine(
    report: Report, model: Path, file: Path, prompts: list[str], turns: int
) -> float:
    """Report both doors of one engine, by turns; return the batch door's rate."""
    params = hg.SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    direct, batch, ratios = [], [], []
    with hg.LLM(model, **ENGINE) as llm:
        llm.generate(prompts[:64], params)
        window = EngineWindow(llm, FORMS, SAMPLING)
        for _ in range(turns):
            direct.append(tokens_per_second(len(prompts), lambda: llm.generate(prompts, params)))
            batch.append(tokens_per_second(len(prompts), lambda: through_batch(file, window)))
            ratios.append(batch[-1] / direct[-1])
    report.add("LLM.generate, one call", statistics.median(direct), "tokens/s")
    report.add("batch, one engine", statistics.median(batch), "tokens/s")
    report.add("batch against LLM.generate", statistics.median(ratios), "x", 0.95)
    return statistics.median(batch)


def measure_actors(
    report: Report, model: Path, file: Path, first: Path, count: int, one_engine: float
) -> None:
    """Report two actors of a Ray cluster of this machine, against one engine on all cores."""
    from hybridgen.ray.cluster import engines_of

    spec = EngineSpec(str(model), ENGINE, FORMS, SAMPLING)
    with engines_of(spec, "local", 2, quiet=True) as pool:
        pool.wait_for_all()
        for place in pool.places:
            print(f"# {place}")
        through_batch(first, pool)
        rate = tokens_per_second(count, lambda: through_batch(file, pool))
    report.add("batch, two actors of Ray", rate, "tokens/s")
    report.add("two actors against one engine", rate / one_engine, "x", 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 prompts and one turn: a try")
    parser.add_argument("--no-ray", action="store_true", help="without the actors")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    arguments = parser.parse_args()
    count, turns = (100, 1) if arguments.quick else (2000, 2)
    model = smollm2()
    report = Report()
    prompts = make_prompts(count)
    with unwound_by_sigterm(), tempfile.TemporaryDirectory() as name:
        file = write_prompts(Path(name) / "prompts.jsonl", prompts)
        rate = measure_one_engine(report, model, file, prompts, turns)
        if not arguments.no_ray:
            first = write_prompts(Path(name) / "first.jsonl", prompts[:128])
            measure_actors(report, model, file, first, count, rate)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
