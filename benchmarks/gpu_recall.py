# SPDX-License-Identifier: Apache-2.0
"""How often a small trained model recalls a value with a row's setting, in shares of the prompt.

Dummy weights attend nearly evenly, and a timed device has no values at all: what a setting loses is
therefore measured on `tests/models/tiny-llama`, with the same shares of the prompt as window, K and
kept tokens. `scripts/methods_accuracy.py` measures more of it.
"""

from __future__ import annotations

from pathlib import Path

import hybridgen as hg
from gpu_cases import settings, window_of
from hybridgen.evaluation.recall_tasks import Vocabulary, exact_match, make_samples

MODEL = Path(__file__).resolve().parents[1] / "tests" / "models" / "tiny-llama"
LENGTH = 1100
DISTANCE = (512, 1024)
"""Tokens between a record and its query."""
COUNT = 16
"""Prompts."""


def recall(model: hg.Model, method: str, tokens: int) -> float:
    """Return the share of right answers of a method with its setting for `tokens`."""
    window = max(8, round(LENGTH * window_of(tokens) / tokens))
    vocabulary = Vocabulary.from_model_dir(MODEL)
    samples = make_samples("kv", vocabulary, DISTANCE, COUNT, 1, length=LENGTH)
    params = [hg.SamplingParams(max_tokens=len(s.answer_ids), ignore_eos=True) for s in samples]
    with hg.LLM(model, **settings(LENGTH, window)[method]) as llm:
        # The last prompt token is a decode step, too: else the answer is the prefill's.
        outputs = llm.generate(
            [list(sample.prompt_ids) for sample in samples], params, decode_prompt_tokens=1
        )
    right = [
        exact_match(output.token_ids, sample.answer_ids)
        for output, sample in zip(outputs, samples, strict=True)
    ]
    return sum(right) / len(right)
