# SPDX-License-Identifier: Apache-2.0
"""What `gpu.py` runs: model shapes, the setting of every method, and whether a run fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hybridgen as hg
from engine_runs import config_of
from hybridgen import sim
from hybridgen.sim import ModelShape

QWEN3_8B = ModelShape(
    name="qwen3-8b",
    family="qwen3",
    layers=36,
    hidden_size=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn_size=12288,
    vocab_size=151936,
    positions=40960,
    tied=False,
)
SHAPES: dict[str, ModelShape] = {
    "llama-3.1-8b": sim.shape_of("llama-3.1-8b"),
    "qwen3-8b": QWEN3_8B,
    **{name: sim.shape_of(name) for name in ("qwen2.5-7b", "opt-6.7b", "opt-13b")},
}
BAR_SHAPE, BAR_TOKENS = "llama-3.1-8b", 32768
"""Where the bars are, with a batch of one."""
QUICK = ([BAR_SHAPE], [8192, BAR_TOKENS], [1, 4])
FULL = ([*SHAPES], [1920, 8192, BAR_TOKENS, 131000], [1, 4, 16, 64])
"""Shapes, lengths and batches; a text's new tokens need positions, too."""

WINDOW = 1024
"""Newest tokens on the device, of every method that has a window; an eighth of shorter prompts."""
K_SHARE = 0.05
KEPT_SHARE = 0.2
"""Of the prompt, where a method keeps a fixed number of tokens and gives up the others."""
DTYPE = "bfloat16"
RESIDENT = "hybridgen, nothing offloaded"
POST, PRE = "hybridgen post", "hybridgen pre"


@dataclass(frozen=True)
class Point:
    """A model shape with prompts of one length, so many at a time."""

    shape: ModelShape
    tokens: int
    batch: int

    @property
    def label(self) -> str:
        """Return how reports call it."""
        return f"{self.shape.name}, {self.batch} x {self.tokens} tokens"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads: of an input table only rows."""
        shape = self.shape
        return shape.layers * shape.layer_bytes + shape.head_params * sim.shapes.ELEMENT_BYTES


def window_of(tokens: int) -> int:
    """Return how many tokens stay on the device."""
    return min(WINDOW, max(8, tokens // 8))


def settings(tokens: int, window: int) -> dict[str, dict[str, Any]]:
    """Return LLM's options of every method, by the name of its rows, the important ones first."""
    methods = hg.methods
    kv = hg.KVConfig(device_tokens=window)
    k = max(8, round(K_SHARE * tokens))
    kept = max(8, round(KEPT_SHARE * tokens))
    found: dict[str, dict[str, Any]] = {
        "full": {"method": methods.Full()},
        POST: {"method": methods.HybridGen(k=k, strategy="post"), "kv": kv},
        "flexgen": {"method": methods.FlexGen(), "kv": kv},
        "infinigen": {"method": methods.InfiniGen(), "kv": kv},
        PRE: {"method": methods.HybridGen(k=k, strategy="pre"), "kv": kv},
        RESIDENT: {
            "method": methods.HybridGen(k=k),
            "kv": hg.KVConfig(device_tokens=2 * tokens),
        },
        f"{POST}, speculative": {
            "method": methods.HybridGen(k=k, strategy="post", query="speculative"),
            "kv": kv,
        },
        f"{POST}, int8 scan": {
            "method": methods.HybridGen(k=k, strategy="post", scoring="int8"),
            "kv": kv,
        },
        "moe_lightning": {"method": methods.MoELightning()},
        "hgca": {"method": methods.HGCA(block=max(1, window // 8)), "kv": kv},
        "streaming_llm": {"method": methods.StreamingLLM(sinks=4, window=kept - 4)},
        "h2o": {"method": methods.H2O(heavy=kept // 2, recent=kept - kept // 2)},
        "keyformer": {"method": methods.Keyformer(kv_cache=kept)},
    }
    return found


METHODS = tuple(settings(BAR_TOKENS, WINDOW))


def options_of(method: str, tokens: int) -> dict[str, Any]:
    """Return LLM's options of a method for prompts of `tokens`."""
    return settings(tokens, window_of(tokens))[method]


def lacks_positions(point: Point, new_tokens: int) -> str:
    """Say that a text is longer than the model knows positions; empty if it is not."""
    if point.tokens + new_tokens <= point.shape.positions:
        return ""
    return f"{point.tokens} + {new_tokens} tokens, the model has {point.shape.positions} positions"


def why_not(
    point: Point, method: str, new_tokens: int, device: str, model: hg.Model | None = None
) -> str:
    """Return why a row cannot be run there; empty if it can.

    Once the shape's weights lie on the device, `model` has to be given, lest they be counted twice.
    """
    reason = lacks_positions(point, new_tokens)
    if reason:
        return reason
    loading = {"device": device, "dtype": DTYPE, "load_format": "dummy"}
    plan = hg.plan(
        config_of(point.shape) if model is None else model,
        batch_size=point.batch,
        prompt_tokens=point.tokens,
        new_tokens=new_tokens,
        max_num_seqs=point.batch,
        **({} if model else loading),
        **options_of(method, point.tokens),
    )
    if plan.problem:
        return " ".join(plan.problem.split())
    if plan.together < point.batch:
        return f"{plan.together} of {point.batch} requests fit together"
    return ""
