# SPDX-License-Identifier: Apache-2.0
"""Offline profiling of K_min: how few offloaded tokens a model needs to stay accurate.

The paper (§4.3.1, Figure 14) finds for each model the number of tokens above which its accuracy
stays flat, and lets the feedback scheduler never go below it. Here a data set runs through decode
at several K, with exact queries so that nothing but K is measured, and

    K_min = the smallest K from which on every measured accuracy is at least
            (1 - tolerance) of the accuracy with all tokens.

The result lies in ``k_min.json`` beside the checkpoint, with the curve and where it comes from. By
default it is K; where K is steered, ``SchedulerConfig(k_min="auto")`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import _core
from ._checks import as_bool, as_float, as_int, as_path, brief, items_of, one_of
from .config import HybridGen, KVConfig
from .errors import ConfigError
from .k_min_profile import KMinProfile, fingerprint
from .llm import LLM
from .sampling import SamplingParams

DEFAULT_TOKENS = (4, 8, 16, 32, 64, 128, 256, 512)
METRICS = ("auto", "agreement", "exact_match")


def find_k_min(
    curve: Sequence[tuple[int, float]], all_tokens: float, tolerance: float
) -> int | None:
    """Return the smallest K from which on no accuracy is below the bar; None if the last one is.

    Parameters
    ----------
    curve : sequence of (int, float)
        K and its accuracy, ascending.
    all_tokens : float
        Accuracy with every token.
    tolerance : float
        Loss that is accepted, as a share of ``all_tokens``.
    """
    found = None
    for k, accuracy in reversed(curve):
        if accuracy < (1.0 - tolerance) * all_tokens:
            break
        found = k
    return found


def calibrate(
    llm: LLM,
    dataset: Iterable[Any],
    *,
    metric: str = "auto",
    k_values: Sequence[int] = DEFAULT_TOKENS,
    tolerance: float = 0.02,
    max_tokens: int = 16,
    device_tokens: int | float = 0.1,
    progress: bool = False,
) -> KMinProfile:
    """Measure a model's accuracy at several K and find K_min.

    Parameters
    ----------
    llm : LLM
        The model; its own options play no part.
    dataset : iterable
        Prompts: text, token ids, or dicts with ``prompt`` (either) and maybe ``answer``.
    metric : str
        "exact_match" compares with the answers, "agreement" with full attention's own greedy
        continuation; "auto" takes the former if every prompt has an answer.
    k_values : sequence of int
        Which K to measure.
    tolerance : float
        Loss that K_min may have, from 0 to 1.
    max_tokens : int
        Tokens generated for each prompt.
    device_tokens : int or float
        Tokens that stay on the device, as in `KVConfig`: those that K does not count.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ConfigError
        For an argument that is none of these, a data set that is empty or has an item of another
        kind, a prompt of which nothing is offloaded, or if no measured K suffices.
    GenerationError, NumericError, OutOfMemoryError
        As `LLM.generate`.
    """
    if not isinstance(llm, LLM):
        raise ConfigError(f"[calibrate] llm is {brief(llm)}; allowed: an LLM")
    one_of("calibrate", "metric", metric, METRICS)
    tolerance = as_float("calibrate", "tolerance", tolerance, 0.0, 1.0)
    max_tokens = as_int("calibrate", "max_tokens", max_tokens, 1)
    progress = as_bool("calibrate", "progress", progress)
    ks = _read_k_values(k_values)
    llm.open_model._require_results("calibrate")
    kv = KVConfig(device_tokens=device_tokens)
    prompts, answers = _read_dataset(dataset)
    metric = _chosen_metric(metric, answers)
    if metric == "exact_match":
        answers = _read_answers(llm, answers)
    _refuse_short(llm, prompts, kv.device_tokens)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    reference: list[Any] = []

    def accuracy(variant: LLM) -> float:
        # The whole tail passes through decode, so that the first new token counts as well.
        outputs = variant.generate(prompts, params, progress=progress, decode_prompt_tokens=1)
        if metric == "exact_match":
            hits = [
                _begins_with(output.outputs[0], answer)
                for output, answer in zip(outputs, answers, strict=True)
            ]
            return sum(hits) / len(hits)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        if not reference:
            reference.extend(ids)
        return sum(_agreement(a, b) for a, b in zip(ids, reference, strict=True)) / len(ids)

    with LLM(llm, method="full", cpu=llm._cpu) as full:
        all_tokens = accuracy(full)
    curve = []
    for k in ks:
        with LLM(llm, method=HybridGen(k=k, query="exact"), kv=kv, cpu=llm._cpu) as variant:
            curve.append((k, accuracy(variant)))
    return _profile(llm, metric, tolerance, curve, all_tokens, len(prompts), kv.device_tokens)


def _profile(
    llm: LLM,
    metric: str,
    tolerance: float,
    curve: list[tuple[int, float]],
    all_tokens: float,
    num_prompts: int,
    device_tokens: Any,
) -> KMinProfile:
    """Return what was measured with the K_min that follows; ConfigError if none does."""
    k_min = find_k_min(curve, all_tokens, tolerance)
    if k_min is None:
        raise ConfigError(
            f"[calibrate] even K = {curve[-1][0]} reaches {curve[-1][1]:.3f} of {all_tokens:.3f} "
            f"({metric}); allowed loss: {tolerance}; pass larger k_values or a larger tolerance"
        )
    path = llm.path
    return KMinProfile(
        k_min=k_min,
        metric=metric,
        tolerance=tolerance,
        curve=tuple(curve),
        all_tokens=all_tokens,
        num_prompts=num_prompts,
        device_tokens=device_tokens,
        model="" if path is None else path.name,
        fingerprint="" if path is None else fingerprint(path),
    )


def read_dataset(path: str | Path) -> list[Any]:
    """Read prompts from a jsonl file: one text, list of ids or dict a line.

    Raises
    ------
    ConfigError
        If the file cannot be read or a line is no JSON.
    """
    items = []
    path = as_path("calibrate", "the data set", path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"[calibrate] cannot read {path}: {error}; allowed: a file of one JSON value a line"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"[calibrate] line {number} of {path} is no JSON: {error}; allowed: one prompt a "
                'line, such as {"prompt": "...", "answer": "..."}'
            ) from error
    return items


def _refuse_short(llm: LLM, prompts: list[Any], device_tokens: str | int | float) -> None:
    """Refuse prompts of which nothing would be offloaded: no K can be told from another by them."""
    if isinstance(device_tokens, str):
        raise ConfigError(
            f"[calibrate] device_tokens is {device_tokens!r}; allowed: an int (tokens) or a share "
            "of the prompt; with as many as fit, nothing may be offloaded"
        )
    for index, (_, ids) in enumerate(llm.model._reader("calibrate").read(prompts)):
        window = _core.device_window(device_tokens, len(ids)) or 0
        if len(ids) <= max(1, window):
            raise ConfigError(
                f"[calibrate] prompt {index} has {len(ids)} tokens, and device_tokens="
                f"{device_tokens!r} keeps up to {window} on the device; allowed: longer prompts, "
                "of which some are offloaded; pass longer ones, or fewer device_tokens as an int"
            )


def _read_k_values(k_values: object) -> list[int]:
    """Return the K to measure, ascending, each once."""
    found = items_of(k_values)
    if not found:
        raise ConfigError(
            f"[calibrate] k_values is {brief(k_values)}, so there is nothing to run; allowed: a "
            "list of at least one K"
        )
    return sorted({as_int("calibrate", "k_values", k, 1) for k in found})


def _read_dataset(dataset: object) -> tuple[list[Any], list[Any]]:
    """Return the prompts, and the answer of each or None."""
    items = items_of(dataset)
    if not items:
        raise ConfigError(
            f"[calibrate] dataset is {brief(dataset)}, so there is nothing to run; allowed: a list "
            "of at least one prompt; read_dataset reads a file"
        )
    prompts, answers = [], []
    for item in items:
        if isinstance(item, Mapping):
            if "prompt" not in item:
                raise ConfigError(
                    f"[calibrate] a prompt has the keys {brief(list(item))}; allowed: prompt, "
                    "answer"
                )
            prompts.append(item["prompt"])
            answers.append(item.get("answer"))
        else:
            prompts.append(item)
            answers.append(None)
    return prompts, answers


def _chosen_metric(metric: str, answers: list[Any]) -> str:
    has_answers = all(answer is not None for answer in answers)
    if metric == "auto":
        return "exact_match" if has_answers else "agreement"
    if metric == "exact_match" and not has_answers:
        raise ConfigError(
            "[calibrate] exact_match needs an answer for every prompt; pass dicts with prompt and "
            "answer, or metric='agreement'"
        )
    return metric


def _read_answers(llm: LLM, answers: list[Any]) -> list[str | list[int]]:
    """Return answers that continuations can be compared with."""
    found: list[str | list[int]] = []
    for index, answer in enumerate(answers):
        if isinstance(answer, str) and llm.tokenizer is not None:
            found.append(answer)
            continue
        ids = items_of(answer)
        if not ids:
            raise ConfigError(
                f"[calibrate] answer {index} is {brief(answer)}; allowed: token ids, or a string "
                "where the model has a tokenizer; leave answers out, or metric='agreement'"
            )
        found.append([as_int("calibrate", f"a token id of answer {index}", i, 0) for i in ids])
    return found


def _begins_with(completion: Any, answer: str | list[int]) -> bool:
    if isinstance(answer, str):
        return bool(completion.text.strip().startswith(answer.strip()))
    return list(completion.token_ids[: len(answer)]) == answer


def _agreement(ids: list[int], reference: list[int]) -> float:
    # After the first difference the texts are different ones: what follows says nothing.
    same = 0
    for a, b in zip(ids, reference, strict=False):
        if a != b:
            break
        same += 1
    return same / max(1, len(reference))
