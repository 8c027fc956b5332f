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
from hybridgen import LLM, CpuConfig, KVConfig, SamplingParams, SchedulerConfig
from test_equivalence import ids_of, row_of, worst

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
        "num_hidden_layers": 3,
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
        "num_hidden_layers": 4,
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
        sizes = {"ffn_dim": 22, "num_hidden_layers": 3, "max_position_embeddings": 128}
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


def generated(llm: LLM, prompts: list[list[int]], count: int) -> list[tuple[list[int], Any]]:
    """Return the same from the engine, with log-probabilities in place of logits."""
    params = SamplingParams(
        max_tokens=count, ignore_eos=True, logprobs=VOCABULARY, prompt_logprobs=VOCABULARY
    )
    found = []
    for output in llm.generate(prompts, params):
        sequence = output.outputs[0]
        assert output.prompt_logprobs is not None
        assert sequence.logprobs is not None
        rows = [*output.prompt_logprobs[1:], *sequence.logprobs]
        found.append((list(sequence.token_ids), torch.stack([row_of(r, VOCABULARY) for r in rows])))
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
    # Steps that cross the limit, and a prompt beyond it.
    prompts = [ids_of(LIMIT - 8, VOCABULARY, seed=1), ids_of(LIMIT + 7, VOCABULARY, seed=2)]
    expected = [greedy(model, prompt, 64) for prompt in prompts]
    for options in SETTINGS.values():
        with LLM(tmp_path, dtype="float32", device="cpu", cpu=CPU, **options) as llm:
            found = generated(llm, prompts, 64)
            for (tokens, logprobs), (their_tokens, logits) in zip(found, expected, strict=True):
                assert tokens == their_tokens
                assert worst(logprobs, logits) < 1e-4
            assert (llm.stats.evicted_bytes > 0) == (options.get("method") != "full")
