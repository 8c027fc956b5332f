# SPDX-License-Identifier: Apache-2.0
"""GGUF files of every family and scaling that they can express, against transformers.

The library of llama.cpp writes them, with the metadata that its converters give. Of scalings
transformers reads none from these families' files, so the oracle is the model that a file was made
from; without a scaling it is what transformers loads from the file, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFWriter, RopeScalingType

import conftest
from gguf_models import write_gguf
from hybridgen import LLM, CheckpointError, UnsupportedModelError
from test_equivalence import worst
from test_family_oracle import (
    COMMON,
    CONFIGS,
    COUNTS,
    CPU,
    LIMIT,
    PROMPTS,
    SETTINGS,
    SHAPES,
    VOCABULARY,
    generated,
    greedy,
    model_of,
)

SHAPE = "one layer of wide heads"
Change = Callable[[GGUFWriter], None]


def scaling_of(config: Any) -> tuple[Change, dict[str, np.ndarray]]:
    """Return metadata and tensors that say a model's scaling."""
    rope = config.rope_parameters
    kind = rope["rope_type"]

    def write(writer: GGUFWriter) -> None:
        if kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(RopeScalingType[kind.upper()])
            writer.add_rope_scaling_factor(rope["factor"])
        if kind in ("yarn", "longrope"):
            writer.add_rope_scaling_orig_ctx_len(LIMIT)
        if kind == "yarn":
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if kind == "longrope":
            writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
            longer = config.max_position_embeddings / LIMIT
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(longer) / math.log(LIMIT)))

    if kind != "longrope":
        return write, {}
    names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
    return write, {name: np.array(rope[own], np.float32) for name, own in names.items()}


def written(file: Path, family: str, shape: str, kind: str) -> Any:
    """Write a random model; returns transformers' own."""
    model = model_of(family, shape, kind)
    change, factors = scaling_of(model.config)
    write_gguf(file, model, change=change, more=factors)
    return model


def assert_same(file: Path, model: Any, *settings: str) -> None:
    """Compare tokens, and logits at every position, with those of transformers."""
    expected = [greedy(model, text, count) for text, count in zip(PROMPTS, COUNTS, strict=True)]
    for name in settings:
        with LLM(file, dtype="float32", device="cpu", cpu=CPU, **SETTINGS[name]) as llm:
            both = zip(generated(llm), expected, strict=True)
            for (tokens, logprobs), (their_tokens, logits) in both:
                assert tokens == their_tokens
                assert worst(logprobs, logits) < 1e-4


CASES = [
    ("llama", "five heads", "default"),
    ("qwen2", "narrow heads", "default"),
    *(("qwen3", shape, "default") for shape in SHAPES),
    *((family, SHAPE, kind) for family in ("llama", "qwen3") for kind in ("linear", "yarn")),
    ("llama", "three heads share one", "yarn"),
    ("llama", SHAPE, "longrope"),
    ("llama", "five heads", "longrope"),
]


@pytest.mark.parametrize(("family", "shape", "kind"), CASES)
def test_logits_and_tokens_are_those_of_the_model_that_the_file_was_made_from(
    tmp_path: Path, family: str, shape: str, kind: str
) -> None:
    model = written(tmp_path / "model.gguf", family, shape, kind)
    assert_same(tmp_path / "model.gguf", model, "full", "exact")


@pytest.mark.parametrize(("family", "head_dim"), [("llama", 10), ("qwen2", 8), ("qwen3", 128)])
def test_what_transformers_loads_from_the_file_gives_the_same(
    tmp_path: Path, family: str, head_dim: int
) -> None:
    """Of the width of heads transformers reads llama's alone, and else takes the usual one."""
    sizes = SHAPES[SHAPE] | {"hidden_size": 32, "num_attention_heads": 4, "head_dim": head_dim}
    config = CONFIGS[family](**COMMON, **sizes, max_position_embeddings=128)
    write_gguf(
        tmp_path / "model.gguf",
        conftest.random_model(config, seed=head_dim),
        change=lambda writer: writer.add_vocab_size(VOCABULARY),
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    assert_same(tmp_path / "model.gguf", theirs, "full")


def of_scaling(kind: RopeScalingType, factor: float = 4.0) -> Change:
    def write(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)

    return write


def both(*changes: Change) -> Change:
    def write(writer: GGUFWriter) -> None:
        for change in changes:
            change(writer)

    return write


YARN, LINEAR = of_scaling(RopeScalingType.YARN), of_scaling(RopeScalingType.LINEAR)
ATTENTION: Change = lambda writer: writer.add_rope_scaling_attn_factors(1.5)  # noqa: E731
FACTORS = np.full(33, 2.0, np.float32)
REFUSED: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "yarn_log_multiplier": (
        both(YARN, lambda writer: writer.add_rope_scaling_yarn_log_mul(0.1)),
        (),
        r"llama\.rope\.scaling\.yarn_log_multiplier is 0\.1 in .*; allowed: a model without it",
    ),
    "yarn_ext_factor": (
        both(YARN, lambda writer: writer.add_rope_scaling_yarn_ext_factor(0.5)),
        (),
        r"llama\.rope\.scaling\.yarn_ext_factor is 0\.5 in",
    ),
    "attn_factor": (both(LINEAR, ATTENTION), (), r"llama\.rope\.scaling\.attn_factor is 1\.5 in"),
    "factor by pair": (
        LINEAR,
        ("rope_freqs.weight",),
        r"llama\.rope\.scaling\.factor is 4 in .*; allowed: 1, as of every pair there is one",
    ),
    "long alone": (
        of_scaling(RopeScalingType.LONGROPE, 1.0),
        ("rope_factors_long.weight",),
        r"has some of rope_freqs\.weight, rope_factors_long\.weight, .* that do not go together",
    ),
    "all three": (
        of_scaling(RopeScalingType.LONGROPE, 1.0),
        ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
        r"has some of rope_freqs\.weight, .* that do not go together",
    ),
    "no factors": (
        of_scaling(RopeScalingType.LONGROPE),
        (),
        r"short_factor is None; allowed: a list",
    ),
    "head scale": (
        lambda writer: writer.add_float32("llama.attention.scale", 0.25),
        (),
        r"llama\.attention\.scale is 0\.25 in",
    ),
    "logit scale": (
        lambda writer: writer.add_logit_scale(0.5),
        (),
        r"llama\.logit_scale is 0\.5 in",
    ),
}


@pytest.mark.parametrize(("change", "tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_what_changes_results_and_is_not_computed_is_refused_by_name(
    tmp_path: Path, change: Change, tensors: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "model.gguf"
    more = dict.fromkeys(tensors, FACTORS)
    write_gguf(file, model_of("llama", SHAPE, "default"), change=change, more=more)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        LLM(file, device="cpu")
