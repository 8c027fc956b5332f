# SPDX-License-Identifier: Apache-2.0
"""Runs as FlexGen's users write them, on the tiny OPT with prompts that differ in every row."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hybridgen import CpuConfig
from hybridgen.flexgen.compression import CompressionConfig
from hybridgen.flexgen.engine_choices import EngineChoices
from hybridgen.flexgen.opt_config import convert
from hybridgen.flexgen.opt_lm import OptLM
from hybridgen.flexgen.policy import Policy
from hybridgen.flexgen.pytorch_backend import ExecutionEnv
from trained import folder_of

CPU = CpuConfig(threads=1, device_threads=1)
PAD = 0
"""Of the tiny OPT."""
ALL_GPU = (100, 0, 100, 0, 100, 0)


def policy(*percent: float, **fields: Any) -> Policy:
    """Return a policy of two batches of two rows, with these percentages and fields."""
    compression = CompressionConfig(4, group_size=64, group_dim=0, symmetric=False)
    base = Policy(
        2,
        2,
        *(percent or ALL_GPU),
        overlap=True,
        sep_layer=True,
        pin_weight=True,
        cpu_cache_compute=False,
        attn_sparsity=1.0,
        compress_weight=False,
        comp_weight_config=compression,
        compress_cache=False,
        comp_cache_config=dataclasses.replace(compression, group_dim=2),
    )
    return dataclasses.replace(base, **fields)


def different_rows(count: int = 4, length: int = 40, seed: int = 0) -> Any:
    """Return rows of which no two are equal, of different lengths, with pads before them."""
    draw = random.Random(seed)
    rows = []
    for row in range(count):
        real = length - (row * 7) % (length // 2)
        rows.append([PAD] * (length - real) + [draw.randrange(5, 740) for _ in range(real)])
    return np.array(rows)


def converted(folder: Path) -> Path:
    """Write the tiny OPT's NumPy files into a folder, and return it."""
    convert(folder_of("tiny-opt"), folder / "tiny-opt-np")
    return folder


def continued_by_transformers(new_tokens: int) -> Callable[[Any], Any]:
    """Return what continues rows as transformers does, by so many tokens whatever they are."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder_of("tiny-opt"), dtype=torch.float32
    )

    def continued(rows: Any) -> Any:
        ids = torch.tensor(rows)
        mask = (ids != PAD).long()
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, **options
        ).numpy()

    return continued


def opt_lm(
    weights: Path, offload: Path, wanted: Policy, *, device: str = "cpu", **choices: Any
) -> OptLM:
    """Return the tiny OPT in float32 from the folder that its NumPy files lie in."""
    engine = EngineChoices(**({"dtype": "float32", "cpu": CPU} | choices))
    env = ExecutionEnv.create(str(offload), device)
    return OptLM("tiny-opt", env, str(weights), wanted, engine=engine)


def step_after_writes(model: OptLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks that go to the disk be there before the next step, which then reads them back.

    Until they have been written they are read where they still are.
    """
    step = model.llm._loop.step

    def late() -> object:
        time.sleep(0.1)
        return step()

    monkeypatch.setattr(model.llm._loop, "step", late)
