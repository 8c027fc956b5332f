# SPDX-License-Identifier: Apache-2.0
"""Every family and rotary scaling against transformers: odd shapes, beyond the original limit.

A model of transformers with a KV cache is the oracle: dynamic and longrope scaling turn a token by
the length of the pass that it comes with, so prompts and steps that cross the limit differ from one
pass over everything. Its dynamic scaling also remembers earlier texts; here each text meets it new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import conftest
import hybridgen as hg
from hybridgen import LLM, CpuConfig, KVConfig, SamplingParams, SchedulerConfig
from test_equivalence import ids_of, worst
from test_methods import EXACT
from trained import variant

CPU = CpuConfig(threads=1, device_threads=1)
LIMIT = 20
"""Positions before scaling."""
VOCABULARY = 80
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

SHAPES: dict[str, dict[str, Any]] = {
    "three heads share one": {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "tie_word_embeddings": True,
    },
    "five heads": {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 12,
        "num_hidden_layers": 2,
        "intermediate_size": 28,
    },
    "one layer of wide heads": {
        "hidden_size": 36,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 66,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
    },
    "narrow heads": {
        "hidden_size": 28,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "num_hidden_layers": 3,
        "intermediate_size": 33,
    },
}
OPT_SHAPES: dict[str, dict[str, Any]] = {
    "three heads": {"hidden_size": 30, "num_attention_heads": 3},
    "five heads, narrow embedding": {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "word_embed_proj_dim": 12,
    },
    "norm behind": {
        "hidden_size": 36,
        "num_attention_heads": 4,
        "do_layer_norm_before": False,
    },
    "no bias": {"hidden_size": 14, "num_attention_heads": 7, "enable_bias": False},
}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


def rope_of(kind: str, head_dim: int) -> dict[str, Any]:
    """Return rope_parameters of a kind."""
    half = head_dim // 2
    original = {"original_max_position_embeddings": LIMIT}
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 5.0},
        "dynamic": {"factor": 5.0},
        "yarn": {"factor": 4.0, "beta_fast": 4.0, **original},
        "longrope": {
            "short_factor": [1.0 + 0.1 * i for i in range(half)],
            "long_factor": [1.5 + 0.7 * i for i in range(half)],
            **original,
        },
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **original},
    }
    return {"rope_type": kind, "rope_theta": 5000.0} | kinds[kind]


KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def cases() -> Iterator[tuple[str, str, str]]:
    """Return family, shape and scaling: each pair of two once, or with HYBRIDGEN_LONG all three."""
    families = list(CONFIGS)
    for s, shape in enumerate(SHAPES):
        for k, kind in enumerate(KINDS):
            chosen = (
                families if "HYBRIDGEN_LONG" in os.environ else [families[(s + k) % len(families)]]
            )
            for family in chosen:
                yield family, shape, kind
    for shape in OPT_SHAPES:
        yield "opt", shape, "default"


def model_of(family: str, shape: str, kind: str) -> Any:
    """Return a random model whose every tensor matters."""
    if family == "opt":
        sizes = {"ffn_dim": 22, "num_hidden_layers": 2, "max_position_embeddings": 128}
        sizes |= {"word_embed_proj_dim": OPT_SHAPES[shape]["hidden_size"]} | OPT_SHAPES[shape]
        return conftest.random_model(transformers.OPTConfig(**COMMON, **sizes), seed=len(shape))
    # What dynamic scaling calls original is the number of positions.
    positions = LIMIT if kind in ("linear", "dynamic") else 128
    sizes = SHAPES[shape] | {"max_position_embeddings": positions, "sliding_window": None}
    rope = rope_of(kind, sizes["head_dim"])
    config = CONFIGS[family](**COMMON, **sizes, rope_parameters=rope)
    return conftest.random_model(config, seed=len(family + shape + kind))


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], Any]:
    """Return what a prompt's pass and steps with its cache give: tokens, and logits of each row.

    Logits [tokens, vocabulary] follow each token of the prompt and each generated one but the last.
    """
    body = model.model
    if hasattr(body, "rotary_emb"):
        body.rotary_emb = type(body.rotary_emb)(body.config)  # remembers nothing
    tokens: list[int] = []
    rows: list[Any] = []
    fed, cache = prompt, None
    while len(tokens) < count:
        out = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0])
        tokens.append(int(out.logits[0, -1].argmax()))
        fed, cache = tokens[-1:], out.past_key_values
    return tokens, torch.cat(rows)


# Steps that cross the limit, and a prompt beyond it.
PROMPTS = [ids_of(LIMIT - 8, VOCABULARY, seed=1), ids_of(LIMIT + 7, VOCABULARY, seed=2)]
COUNTS = [64, 10]


def generated(llm: LLM) -> list[tuple[list[int], Any]]:
    """Return the same from the engine, with log-probabilities in place of logits."""
    params = [
        SamplingParams(
            max_tokens=count, ignore_eos=True, logprobs=VOCABULARY, prompt_logprobs=VOCABULARY
        )
        for count in COUNTS
    ]
    found = []
    for output in llm.generate(PROMPTS, params):
        sequence = output.outputs[0]
        assert output.prompt_logprobs is not None
        assert sequence.logprobs is not None
        rows = [*output.prompt_logprobs[1:], *sequence.logprobs]
        logprobs = [[(row or {})[token] for token in range(VOCABULARY)] for row in rows]
        found.append((list(sequence.token_ids), torch.tensor(logprobs)))
    return found


HYBRID: dict[str, Any] = {"kv": KVConfig(device_tokens=7), "scheduler": SchedulerConfig(k="all")}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "exact": {"query": "exact", "max_num_batched_tokens": 10, **HYBRID},
    "rescore": {"query": "rescore", **HYBRID},
}


@pytest.mark.parametrize(("family", "shape", "kind"), list(cases()))
def test_logits_and_tokens_are_those_of_transformers_with_a_cache(
    tmp_path: Path, family: str, shape: str, kind: str
) -> None:
    model = model_of(family, shape, kind)
    model.save_pretrained(tmp_path)
    expected = [greedy(model, text, count) for text, count in zip(PROMPTS, COUNTS, strict=True)]
    for options in SETTINGS.values():
        with LLM(tmp_path, dtype="float32", device="cpu", cpu=CPU, **options) as llm:
            both = zip(generated(llm), expected, strict=True)
            for (tokens, logprobs), (their_tokens, logits) in both:
                assert tokens == their_tokens
                assert worst(logprobs, logits) < 1e-4
            assert (llm.stats.evicted_bytes > 0) == (options.get("method") != "full")


def exact_settings() -> list[Any]:
    """Return settings of every method with which it is exact, on models with rotary positions."""
    chosen = []
    for name, options in EXACT.items():
        settings = {key: value for key, value in options.items() if key != "pre"}
        if "pre" in options:
            settings["scheduler"] = SchedulerConfig(k="all", strategy="pre")
        if name != "streaming_llm-clamp":
            chosen.append(pytest.param(settings, id=name))
    return chosen


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Normed queries and keys, and cosines and sines that are multiplied by a factor."""
    folder = tmp_path_factory.mktemp("qwen3")
    sizes = SHAPES["three heads share one"] | {"max_position_embeddings": 1024}
    rope = rope_of("yarn", sizes["head_dim"])
    config = transformers.Qwen3Config(**COMMON, **sizes, rope_parameters=rope)
    conftest.random_model(config, seed=3).save_pretrained(folder)
    with LLM(folder, dtype="float32", device="cpu", cpu=CPU, method="full") as llm:
        yield llm


TEXTS = [ids_of(90, VOCABULARY, seed=4), ids_of(31, VOCABULARY, seed=5)]
FEW = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def tokens_of_full(qwen3: LLM) -> list[list[int]]:
    """What full attention says."""
    return qwen3.generate_ids(TEXTS, FEW)


@pytest.mark.parametrize("options", exact_settings())
def test_exact_settings_of_every_method_are_exact_on_qwen3_with_yarn(
    qwen3: LLM, tokens_of_full: list[list[int]], options: dict[str, Any]
) -> None:
    with variant(qwen3, **options) as llm:
        assert llm.generate_ids(TEXTS, FEW) == tokens_of_full


@pytest.mark.parametrize("method", hg.methods.names()[:9])
def test_every_method_runs_on_qwen3_with_yarn(qwen3: LLM, method: str) -> None:
    with variant(qwen3, method=method) as llm:
        assert [len(tokens) for tokens in llm.generate_ids(TEXTS, FEW)] == [12, 12]


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_an_emulated_device_turns_tokens_as_the_cpu_does(tmp_path: Path, kind: str) -> None:
    model_of("qwen3", "three heads share one", kind).save_pretrained(tmp_path)
    texts = [ids_of(50, VOCABULARY, seed=6), ids_of(12, VOCABULARY, seed=7)]
    shift = hg.methods.StreamingLLM(sinks=4, window=20, positions="shift")
    for options in (HYBRID, {"method": "full"}, {"method": shift}):
        tokens = []
        for device in ("cpu", "emulated"):
            with LLM(tmp_path, dtype="float32", device=device, cpu=CPU, **options) as llm:
                tokens.append(llm.generate_ids(texts, FEW))
        assert tokens[0] == tokens[1]
