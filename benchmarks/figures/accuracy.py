# SPDX-License-Identifier: Apache-2.0
"""Accuracy on the trained tiny models: recall tasks, scored through decode, with n and errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen.evaluation.recall_tasks import TASKS, Sample, Vocabulary, exact_match, make_samples
from output import ROOT, Row

MODELS = ("tiny-llama", "tiny-opt", "tiny-qwen2")
DISTANCE = (512, 1024)
TOKENS = 1100
SEED = 20262
COUNT = 12
"""Prompts of each task in a full run."""
ONE_THREAD = hg.CpuConfig(threads=1, device_threads=1)
TOY = "toy models (4 layers, trained for recall), not the paper's models or benchmarks"
DECODE = (
    "scored through decode: the query's key passes through a decode step, so that the method acts "
    "on the answer; greedy, float32, CPU device"
)


def folder_of(model: str) -> Path:
    """Return a trained model's folder."""
    return ROOT / "tests/models" / model


def samples_of(task: str, count: int) -> list[Sample]:
    """Return prompts of ``TOKENS`` tokens; the answer lies 512 to 1,024 back (local: 2 to 16)."""
    vocabulary = Vocabulary.from_model_dir(folder_of(MODELS[0]))
    distance = TASKS[task].buckets[0] if task == "local" else DISTANCE
    return make_samples(task, vocabulary, distance, count, SEED, length=TOKENS)


@contextmanager
def loaded(model: str) -> Iterator[hg.LLM]:
    """Load a trained model with full attention; others share its weights."""
    with hg.LLM(
        folder_of(model), dtype="float32", device="cpu", method="full", cpu=ONE_THREAD
    ) as llm:
        yield llm


def recall(
    base: hg.LLM, samples: Sequence[Sample], *, decode_prompt_tokens: int = 1, **options: Any
) -> Row:
    """Return how often the answer is found, with its standard error, and where tokens were.

    ``fetched_bytes`` are those of values that the host read; ``lost_mass`` is None where no decode
    step tells it.
    """
    with hg.LLM(base, cpu=ONE_THREAD, **options) as llm:
        results = llm.generate(
            [list(sample.prompt_ids) for sample in samples],
            hg.SamplingParams(max_tokens=1, ignore_eos=True),
            decode_prompt_tokens=decode_prompt_tokens,
        )
        fetched = llm.stats.host_value_bytes_read
    hits = [
        exact_match(result.token_ids, sample.answer_ids)
        for result, sample in zip(results, samples, strict=True)
    ]
    share, count = sum(hits) / len(hits), len(hits)
    metrics = [result.metrics for result in results]
    tokens = sum(m.prompt_tokens for m in metrics)
    lost = [m.lost_mass for m in metrics if m.lost_mass is not None]
    return {
        "mode": "measured",
        "n": count,
        "accuracy": share,
        "standard_error": math.sqrt(share * (1 - share) / count),
        "offloaded_share": sum(m.offloaded_tokens for m in metrics) / tokens,
        "attended_offloaded_share": sum(m.attended_offloaded_share for m in metrics) / count,
        "k": sum(m.k for m in metrics) / count,
        "pre_share": sum(m.strategy == "pre" for m in metrics) / count,
        "fetched_bytes": fetched,
        "lost_mass": sum(lost) / len(lost) if lost else None,
        "lost_mass_kind": next((m.lost_mass_kind for m in metrics if m.lost_mass_kind), None),
    }


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def mean_error(errors: Sequence[float]) -> float:
    """Return the standard error of a mean of independent values."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)
