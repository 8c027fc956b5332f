# SPDX-License-Identifier: Apache-2.0
"""The trained tiny models, prompts that they need their far context for, and runs of them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hybridgen import LLM, CpuConfig, SamplingParams, SchedulerConfig, methods
from hybridgen.evaluation.recall_tasks import Sample, Vocabulary, make_samples

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("tiny-llama", "tiny-opt", "tiny-qwen2")

CPU = CpuConfig(threads=1, device_threads=1)
ALL = SchedulerConfig(k="all")


def folder_of(model: str) -> Path:
    return ROOT / "tests" / "models" / model


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the word list, which the three models share."""
    return Vocabulary.from_model_dir(folder_of(MODELS[0]))


def samples(task: str, length: int, count: int = 1, seed: int = 0) -> list[Sample]:
    """Return recall prompts of ``length`` tokens with the answer in their older half."""
    return make_samples(task, vocabulary(), (length // 2, length), count, seed, length=length)


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return one kv-recall prompt of each length; lengths below 40 are pieces of a longer one."""
    return [
        list(samples("kv", max(n, 40), seed=seed + i)[0].prompt_ids)[-n:]
        for i, n in enumerate(lengths)
    ]


def variant(base: LLM, **options: Any) -> LLM:
    """Return an engine of its own with the weights of ``base``; all tokens count by default."""
    settings: dict[str, Any] = {"cpu": CPU} | options
    named = settings.get("method") or settings.get("method_config")
    method = getattr(named, "method", named if isinstance(named, str) else "hybridgen")
    if method in methods.names() and "k" in methods.reads(method):
        settings.setdefault("scheduler", ALL)
    return LLM(base, **settings)


def assert_offloaded(llm: LLM) -> None:
    """Check that tokens left the device since the last call began, else all attention was full."""
    assert llm.stats.evicted_bytes > 0


def new_tokens(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, ignore_eos=True)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which may crash without taking the tests with it."""
    paths = [str(ROOT / "python"), str(ROOT / "scripts"), str(Path(__file__).parent)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "PYTHONFAULTHANDLER": "",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
