# SPDX-License-Identifier: Apache-2.0
"""What ``--debug-mode breakdown`` prints: where the time of a layer and batch goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .timer import timers


def stages_between(
    before: Mapping[str, Any], prompt_done: Mapping[str, Any], done: Mapping[str, Any]
) -> dict[str, float]:
    """Return seconds per stage from three readings of the engine's sums.

    Copies and computation overlap, so that stages of a phase may add up to more than its time.
    """

    def spent(name: str, begin: Mapping[str, Any], end: Mapping[str, Any]) -> float:
        return float(end.get(name, 0.0) - begin.get(name, 0.0))

    return {
        "load_weight": spent("weight_read_s", before, done) + spent("weight_copy_s", before, done),
        # A prompt reads no cache of before, and stores its own while it computes.
        "load_cache_prefill": 0.0,
        "store_cache_prefill": spent("disk_write_wait_s", before, prompt_done),
        "compute_layer_prefill": spent("prefill_s", before, prompt_done),
        "load_cache_decoding": spent("t_link_s", prompt_done, done)
        + spent("disk_read_s", prompt_done, done),
        "store_cache_decoding": spent("tier_move_s", prompt_done, done),
        "compute_layer_decoding": spent("t_device_s", prompt_done, done)
        + spent("t_cpu_s", prompt_done, done),
    }


def breakdown_lines(
    stages: Mapping[str, float], layers: int, batches: int, decode_steps: int
) -> list[str]:
    """Return FlexGen's table, and put the same numbers into its timers.

    Parameters
    ----------
    stages : mapping
        From `stages_between`.
    layers : int
        As FlexGen counts them.
    batches : int
        Of the block.
    decode_steps : int
        Steps that were run.
    """
    lines = [
        f"#layers: {layers}",
        f"#batches prefill:  {layers * batches}",
        f"#batches decoding: {layers * batches * decode_steps}",
    ]
    passes = {
        "load_weight": layers * (1 + decode_steps),
        "prefill": layers * batches,
        "decoding": layers * batches * decode_steps,
    }
    for name, seconds in stages.items():
        unit = "layer" if name == "load_weight" else "batch"
        count = passes[name if name in passes else name.rsplit("_", 1)[1]]
        mean = seconds / count if count else 0.0
        timers(name).reset()
        timers(name).costs.append(mean)
        lines.append(f"{name:22s} (per-{unit}): {mean:.6f} s")
    return lines
