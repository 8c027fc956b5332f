# SPDX-License-Identifier: Apache-2.0
"""Where a FlexGen run keeps what, and how it is scheduled: values without behaviour."""

from __future__ import annotations

import dataclasses
from typing import Any

from .compression import CompressionConfig


@dataclasses.dataclass(frozen=True)
class Policy:
    """A run's policy, with FlexGen's fields in FlexGen's order.

    Percentages are from 0 to 100; what a pair leaves to 100 is on the disk.

    Parameters
    ----------
    gpu_batch_size, num_gpu_batches : int
        Rows of a batch, and batches of the block that passes through the layers together.
    w_gpu_percent, w_cpu_percent, cache_gpu_percent, cache_cpu_percent : float
        Of weights, and of keys and values.
    act_gpu_percent, act_cpu_percent : float
        Of activations; all of them in one place.
    overlap, sep_layer, pin_weight : bool
        Of FlexGen's schedule; see docs/flexgen.md.
    cpu_cache_compute : bool
        Whether the CPU attends to what is not on the GPU.
    attn_sparsity : float
        Share of the tokens whose values count.
    compress_weight, comp_weight_config, compress_cache, comp_cache_config
        Whether weights and cache are in 4 bits, and how.
    hh_ratio, hh_all, hh_long_seq
        H2O's fork: heavy hitters as a share of the prompt.
    """

    gpu_batch_size: int
    num_gpu_batches: int
    w_gpu_percent: float
    w_cpu_percent: float
    cache_gpu_percent: float
    cache_cpu_percent: float
    act_gpu_percent: float
    act_cpu_percent: float
    overlap: bool
    sep_layer: bool
    pin_weight: bool
    cpu_cache_compute: bool
    attn_sparsity: float
    compress_weight: bool
    comp_weight_config: CompressionConfig
    compress_cache: bool
    comp_cache_config: CompressionConfig
    hh_ratio: float = 1
    hh_all: bool = False
    hh_long_seq: bool = False

    @property
    def w_disk_percent(self) -> float:
        """What is left of the weights."""
        return 100 - self.w_gpu_percent - self.w_cpu_percent

    @property
    def cache_disk_percent(self) -> float:
        """What is left of the cache."""
        return 100 - self.cache_gpu_percent - self.cache_cpu_percent

    @property
    def act_disk_percent(self) -> float:
        """What is left of the activations."""
        return 100 - self.act_gpu_percent - self.act_cpu_percent


@dataclasses.dataclass(frozen=True)
class Task:
    """One call of `OptLM.generate`."""

    inputs: Any
    prompt_len: int
    gen_len: int
    cut_gen_len: int | None
    do_sample: bool
    temperature: float
    stop: Any
