# SPDX-License-Identifier: Apache-2.0
"""Documents of our tasks as lm-evaluation-harness takes them, and how answers to them are scored.

The YAML files beside this one name these functions; they need the packages datasets and pyarrow,
which come with the harness.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import datasets
import pyarrow

from hybridgen.evaluation import text_tasks
from hybridgen.evaluation.recall_tasks import TASKS, Vocabulary, make_samples, vocabulary_words


def recall(
    *, task: str, count: int = 50, seed: int = 1, tokens: int = 1100, **_: Any
) -> dict[str, Any]:
    """Return prompts in the words of the trained tiny models; the next word is the answer.

    It lies in the first half of the prompt; that of ``local`` a few words back.

    Parameters
    ----------
    task : str
        A key of ``recall_tasks.TASKS``.
    count, seed, tokens : int
        How many, drawn by what, and tokens of each prompt.
    """
    words = vocabulary_words()
    names = list(words)
    vocabulary = Vocabulary.from_words(words)
    distance = TASKS[task].buckets[0] if task == "local" else (tokens // 2, tokens - 40)
    samples = make_samples(task, vocabulary, distance, count, seed, length=tokens)
    return dataset(
        {
            "prompt": " ".join(names[token] for token in sample.prompt_ids),
            "answer": " ".join(names[token] for token in sample.answer_ids),
            "chance": 1 / len(vocabulary.values),
        }
        for sample in samples
    )


def recall_score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Say whether the first word is the answer."""
    return {"acc": float(results[0].split()[:1] == [doc["answer"]])}


def text(
    *, task: str, count: int = 50, seed: int = 1, words: int = 800, **_: Any
) -> dict[str, Any]:
    """Return documents of `text_tasks`.

    Parameters
    ----------
    task : str
        A key of ``text_tasks.TASKS``.
    count, seed, words : int
        How many, drawn by what, and words of each prompt, about.
    """
    found = text_tasks.make_documents(task, count=count, words=words, seed=seed)
    return dataset(
        {
            "task": task,
            "prompt": document.prompt,
            "answer": document.answer,
            "parts": list(document.parts),
            "chance": document.chance,
        }
        for document in found
    )


def text_score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return how much of the answer is right."""
    return {"score": text_tasks.score(doc["task"], results[0], doc["parts"])}


def dataset(rows: Any) -> dict[str, Any]:
    """Return rows as a data set with the split "test"."""
    listed = list(rows)
    # A name of its own: datasets would else pickle its state, which newer pyarrow does not allow.
    name = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    return {"test": datasets.Dataset(pyarrow.Table.from_pylist(listed), fingerprint=name)}
