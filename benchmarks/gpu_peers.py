# SPDX-License-Identifier: Apache-2.0
"""Rows of `gpu.py` by transformers' own caches, `static` on the GPU and `offloaded` in host memory.

`offloaded` keeps one layer's keys and values on the GPU and copies the next one's beside it.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import hybridgen as hg
from decode import Case, load_transformers
from engine_runs import config_of
from gpu_cases import DTYPE, Point, lacks_positions
from gpu_rows import WARMUP, Row, new_tokens_of, prompts_of
from hybridgen.sim import ModelShape

COMPILED, OFFLOADED = "transformers static, compiled", "transformers offloaded"
CACHES: dict[str, dict[str, Any]] = {
    "transformers static": {"cache_implementation": "static", "disable_compile": True},
    COMPILED: {"cache_implementation": "static"},
    OFFLOADED: {"cache_implementation": "offloaded"},
}
"""Options of `generate`; it compiles the model's step for a static cache by itself on a GPU."""
HOST_SHARE = 0.9
"""Of free host memory that a cache may take."""


def why_no_peer(point: Point, method: str, new_tokens: int) -> str:
    """Return why a row cannot be run; that the GPU's memory does not hold it is torch's to say."""
    reason = lacks_positions(point, new_tokens)
    needed = point.batch * (point.tokens + new_tokens) * point.shape.kv_bytes_per_token
    free = hg.info().cpu["available_host_bytes"]
    if not reason and OFFLOADED == method and needed > HOST_SHARE * free:
        reason = f"{needed / 2**30:.1f} GiB of keys and values, {free / 2**30:.1f} GiB are free"
    return reason


class Stamps:
    """A streamer that notes when tokens are on the host."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def put(self, _tokens: Any) -> None:
        """Note the time; the first call brings the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing."""


@contextmanager
def transformers_model(shape: ModelShape, device: str) -> Iterator[Any]:
    """Make transformers' model of a shape with random weights, on the device."""
    with torch.device(device):
        model = load_transformers(Case(shape.name, config_of(shape), DTYPE, 0))
    try:
        yield model
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_transformers(model: Any, point: Point, method: str, steps: int) -> Row:
    """Return what a decode step of a cache costs, seen from the host that waits for its token."""
    ids = torch.tensor(prompts_of(point), device=model.device)
    count = new_tokens_of(steps)
    stamps = Stamps()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        streamer=stamps,
        **CACHES[method],
    )
    _, prefill, *times = [after - before for before, after in itertools.pairwise(stamps.times)]
    counted = times[WARMUP:-1]
    step = statistics.median(counted)
    return {
        "steps": len(counted),
        "step_ms": 1e3 * step,
        "tokens_per_s": point.batch / step,
        "seconds": stamps.times[-1] - stamps.times[0],
        "weights": "dummy",
        "prefill_s": prefill,
        "resident_tokens": 0 if method == OFFLOADED else point.batch * point.tokens,
        "mass": 1.0,
        "mass_kind": "exact",
    }
