# SPDX-License-Identifier: Apache-2.0
"""A model of which one token's numbers overflow, and a tokenizer that may break on a letter."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hybridgen import LLM, CpuConfig, KVConfig, SamplingParams, SchedulerConfig

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
BROKEN = 63
"""A token whose numbers overflow."""
HYBRID: dict[str, Any] = {
    "kv": KVConfig(device_tokens=4),
    "scheduler": SchedulerConfig(k=4),
    "cpu": CpuConfig(threads=1, device_threads=1),
}
FULL: dict[str, Any] = {"method": "full", "cpu": CpuConfig(device_threads=1)}
NUM_TOKENS = 6
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
HEALTHY = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30] * 17]
EARLY = [3, BROKEN, 4, 5]
"""Fails with the first logits."""


class ToyTokenizer:
    """A letter or sign per token; breaks on one of them, if told to."""

    eos_token_id = 0
    bos_token_id = 1
    all_special_ids: tuple[int, ...] = ()
    broken_on = -1

    def __len__(self) -> int:
        return 64

    def get_vocab(self) -> dict[str, int]:
        return {chr(32 + i): i for i in range(64)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [(ord(c) - 32) % 64 for c in text]

    def decode(self, ids: Any, **_: Any) -> str:
        if self.broken_on in ids:
            raise ArithmeticError("this tokenizer cannot say that")
        return "".join(chr(32 + i) for i in ids)


@functools.cache
def folder() -> Path:
    """Return a checkpoint of which one token's numbers overflow.

    That token alone has a part in the first dimension, which nothing else is ever written to, and
    which makes its query, key and value infinite.
    """
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    shapes = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 32),
        "self_attn.v_proj": (32, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (32, 32),
        "mlp.up_proj": (32, 32),
        "mlp.down_proj": (32, 32),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, shape in shapes.items():
            weight = 0.3 * torch.randn(shape, generator=generator)
            if name in ("self_attn.o_proj", "mlp.down_proj"):
                weight[0] = 0
            if name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                weight[:, 0] = 3e38
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(32)
    for name in ("model.embed_tokens", "lm_head"):
        table = torch.randn((64, 32), generator=generator)
        table[:, 0] = 0
        tensors[f"{name}.weight"] = table
    tensors["model.embed_tokens.weight"][BROKEN, 0] = 1.0
    tensors["model.norm.weight"] = torch.ones(32)
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file(tensors, path / "model.safetensors")
    return path


def broken(**options: Any) -> LLM:
    """Return a model of which one token's numbers overflow."""
    return LLM(folder(), **options)


def sequence_of(llm: LLM, ids: list[int]) -> Any:
    """Return one text that was not queued yet."""
    return llm._maker.make("generate", (None, ids), GREEDY, makes_text=False).sequences[0]


def is_idle(llm: LLM) -> bool:
    engine = llm._loop.engine
    used = [tier["used"] for tier in llm.memory.values()]
    return llm._loop.idle and not engine.has_work() and used == [0] * len(used)
