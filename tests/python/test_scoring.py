# SPDX-License-Identifier: Apache-2.0
"""Choosing tokens by an 8-bit or 4-bit copy of the keys, on trained and pretrained models."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hybridgen as hg
from hybridgen import _core
from trained import MODELS, folder_of, new_tokens, prompts_of, variant

PRECISIONS = ("int8", "int4")
CANDIDATES = {"int8": 2, "int4": 4}
"""The default of ``candidates_per_k``."""


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest) -> Iterator[hg.LLM]:
    with hg.LLM(str(folder_of(request.param)), dtype="float32") as llm:
        yield llm


def generated(base: hg.LLM, scoring: str, **options: Any) -> tuple[list[list[int]], int]:
    """Return the tokens after some prompts, and the key bytes that the host read."""
    candidates = options.pop("candidates_per_k", None)
    kv = hg.KVConfig(device_tokens=40, scoring=scoring, candidates_per_k=candidates)
    with variant(base, kv=kv, query="exact", **options) as llm:
        results = llm.generate(prompts_of(600, 900, 1100), new_tokens(16))
        return [list(r.outputs[0].token_ids) for r in results], llm.stats.host_key_bytes_read


@pytest.mark.parametrize("scoring", PRECISIONS)
def test_exact_settings_equal_full_attention(base: hg.LLM, scoring: str) -> None:
    with variant(base, method="full") as llm:
        full = [
            list(r.outputs[0].token_ids)
            for r in llm.generate(prompts_of(600, 900, 1100), new_tokens(16))
        ]
    assert generated(base, scoring)[0] == full


@pytest.mark.parametrize("scoring", PRECISIONS)
def test_the_text_is_that_of_full_scoring_and_fewer_bytes_are_read(
    base: hg.LLM, scoring: str
) -> None:
    k = hg.SchedulerConfig(k=40)
    text, read = generated(base, scoring, scheduler=k)
    expected, all_keys = generated(base, "full", scheduler=k)
    assert text == expected
    assert read < 0.6 * all_keys


@functools.cache
def queries_and_keys(folder: Path, ids: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rotated queries [H, 16 last rows, D] and keys [G, n, D] of every layer."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        seen.append((query[0, :, -16:].float().numpy(), key[0].float().numpy()))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **options)

    ALL_ATTENTION_FUNCTIONS.register("noting", attend)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="noting"
    ).eval()
    with torch.inference_mode():
        model(torch.tensor([list(ids)]))
    return seen


def recall_of_top_k(
    layers: list[tuple[np.ndarray, np.ndarray]], precision: str, share: float
) -> float:
    """Return the part of the exact top K that is among the shadow's candidates."""
    hits = total = 0
    for queries, keys in layers:
        groups, count, dim = keys.shape
        k = max(1, round(share * count))
        rows = queries.reshape(groups, -1, dim) / math.sqrt(dim)
        for g in range(groups):
            scores = _core.shadow_scores(keys[g], rows[g], precision)
            for row, approximate in zip(rows[g] @ keys[g].T, scores, strict=True):
                exact = set(np.argpartition(-row, k - 1)[:k].tolist())
                most = min(count - 1, CANDIDATES[precision] * k)
                found = np.argpartition(-approximate, most - 1)[:most].tolist()
                hits += len(exact.intersection(found))
                total += k
    return hits / total


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_trained_models_lose_less_than_one_percent_of_the_top_k(
    model: str, precision: str, share: float
) -> None:
    layers = queries_and_keys(folder_of(model), tuple(prompts_of(1000)[0]))
    assert recall_of_top_k(layers, precision, share) >= 0.99


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_smollm2_loses_less_than_one_percent_of_the_top_k(
    smollm2: Path, precision: str, share: float
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    layers = queries_and_keys(smollm2, tuple(tokenizer(text)["input_ids"][:1500]))
    assert recall_of_top_k(layers, precision, share) >= 0.99


def test_bad_values_are_refused_with_a_way_out(base: hg.LLM) -> None:
    with pytest.raises(hg.ConfigError, match=r"scoring is 'int2'"):
        hg.KVConfig(scoring="int2")
    with pytest.raises(hg.ConfigError, match=r"candidates_per_k is 0\.5"):
        hg.KVConfig(scoring="int8", candidates_per_k=0.5)
    with pytest.raises(hg.ConfigError, match="scoring 'full'"):
        hg.KVConfig(candidates_per_k=2)
    kv = hg.KVConfig(device_tokens=40, scoring="int8")
    with pytest.raises(hg.ConfigError, match=r"selector is 'h2o'.*topk"):
        hg.LLM(base, kv=kv, selector="h2o")
    with pytest.raises(hg.ConfigError, match=r"flexgen.*scoring is 'int8'"):
        hg.LLM(base, kv=kv, method="flexgen")
    with pytest.raises(hg.ConfigError, match="shadow_scores"):
        _core.shadow_scores(np.zeros((3, 8)), np.zeros((1, 7)), "int8")
