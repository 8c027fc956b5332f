# SPDX-License-Identifier: Apache-2.0
"""What a run is reported as: FlexGen's record and log name, and a sixth line of ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .utils import GB, benchmark_record, project_decode_latency


@dataclass(frozen=True)
class Sizes:
    """Bytes of a run: analytic, by FlexGen's formulas."""

    model: float
    cache: float
    hidden: float


@dataclass(frozen=True)
class Shape:
    """Rows, and tokens of each."""

    rows: int
    prompt_len: int
    gen_len: int


def log_name(arguments: argparse.Namespace) -> str:
    """Return the name that FlexGen gives a run's log file."""
    size = Path(arguments.model).name.split("-")[-1]
    percent = "".join(f"{share}-" for share in arguments.percent)
    cache = "cpu-cache" if arguments.cpu_cache_compute else "gpu-cache"
    ends = (
        "-compw" if arguments.compress_weight else "",
        "-compc" if arguments.compress_cache else "",
    )
    return (
        f"fo-{size}-gbs{arguments.gpu_batch_size}-ngbs{arguments.num_gpu_batches}-"
        f"prompt{arguments.prompt_len}-gen{arguments.gen_len}-percent-{percent}{cache}"
        f"{''.join(ends)}.log"
    )


def latencies(costs: Sequence[float], shape: Shape, *, is_cut: bool) -> tuple[float, float]:
    """Return seconds until the first token of all rows, and of all other tokens.

    Parameters
    ----------
    costs : sequence of float
        Of `OptLM.generate`.
    is_cut : bool
        Whether only the first tokens were run.
    """
    if is_cut:
        return costs[0], project_decode_latency(costs, shape.prompt_len, shape.gen_len)
    return costs[0], sum(costs[1:])


def record(
    costs: Sequence[float],
    sizes: Sizes,
    shape: Shape,
    *,
    peak_bytes: float,
    is_cut: bool,
    is_projected: bool,
) -> str:
    """Return the five lines; pads count as prompt tokens, as they do in FlexGen."""
    prefill, decode = latencies(costs, shape, is_cut=is_cut)
    total = prefill + decode
    return benchmark_record(
        sizes.model,
        sizes.cache,
        sizes.hidden,
        peak_bytes,
        is_projected,
        prefill,
        shape.rows * shape.prompt_len / prefill,
        decode,
        shape.rows * (shape.gen_len - 1) / max(decode, 1e-10),
        total,
        shape.rows * shape.gen_len / total,
    )


def sixth_line(stats: Mapping[str, Any], real_prompt_tokens: int, *, emulated: str | None) -> str:
    """Return what crossed which link, how much of it was hidden, and how long prompts were.

    Parameters
    ----------
    stats : mapping
        `RunStats` of the measured call.
    real_prompt_tokens : int
        Tokens of the shortest row without its pads, which are not computed.
    emulated : str or None
        What is to be said of a device that is none.
    """
    links = {
        "to device": stats.get("h2d_bytes", 0) + stats.get("prefill_h2d_bytes", 0),
        "to host": stats.get("d2h_bytes", 0) + stats.get("evicted_bytes", 0),
        "weights": stats.get("weight_bytes_copied", 0),
        "from disk": stats.get("disk_bytes_read", 0) + stats.get("weight_bytes_read", 0),
        "to disk": stats.get("disk_bytes_written", 0),
    }
    fields = [f"{name}: {count / GB:.3f} GB" for name, count in links.items()]
    fields.append(f"hidden: {100 * stats.get('hidden_share', 1.0):.1f} %")
    fields.append(f"prompt tokens without pads: {real_prompt_tokens}")
    return "\t".join(fields + ([] if emulated is None else [emulated]))
