# SPDX-License-Identifier: Apache-2.0
"""Figure 1: memory of OPT-13B's KV cache by length and batch, beside its weights.

python benchmarks/figures/fig01_kv_memory.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from hybridgen.sim import SHAPES
from output import LINES, Check, Result, Row, Script, main

MODEL = SHAPES["opt-13b"]
LENGTHS = [512 << i for i in range(8)]
BATCHES = (1, 4, 16, 64)


def make(quick: bool) -> Result:
    """Return sizes by the closed formula."""
    rows: list[Row] = [
        {
            "mode": "analytic",
            "model": MODEL.name,
            "batch": batch,
            "tokens": tokens,
            "kv_gb": MODEL.kv_bytes(batch, tokens) / 1e9,
            "weights_gb": MODEL.weight_bytes / 1e9,
        }
        for batch in BATCHES
        for tokens in (LENGTHS[::2] if quick else LENGTHS)
    ]
    equal = MODEL.weight_bytes / MODEL.kv_bytes_per_token
    large = SHAPES["llama-3.1-70b"]
    return Result(
        rows,
        [
            Check(
                "the cache grows in proportion to length and batch, weights stay",
                all(r["kv_gb"] == r["batch"] * r["tokens"] * 819200 / 1e9 for r in rows),
                f"819,200 bytes per token; it passes the weights at {equal:,.0f} tokens of a batch",
            ),
            Check(
                "a 70B model with a million tokens needs hundreds of GB",
                100e9 < large.kv_bytes(1, 10**6) < 1e12,
                f"{large.kv_bytes(1, 10**6) / 1e9:.0f} GB for Llama-3.1-70B's grouped heads",
            ),
        ],
        ["16-bit numbers; 1 GB is 1e9 bytes; OPT itself ends at 2,048 positions"],
    )


def draw(figure: Any, result: Result) -> None:
    """One line per batch, the weights dashed."""
    axes = figure.subplots()
    for batch in BATCHES:
        points = [(r["tokens"], r["kv_gb"]) for r in result.rows if r["batch"] == batch]
        axes.plot(*zip(*points, strict=True), label=f"KV cache, batch {batch}", **LINES["analytic"])
    weights = result.rows[0]["weights_gb"]
    axes.axhline(weights, color="black", linestyle="--", label=f"weights, {weights:.1f} GB")
    axes.set(xscale="log", yscale="log", xlabel="sequence length (tokens)", ylabel="memory (GB)")
    axes.set_xscale("log", base=2)
    axes.legend()


SCRIPT = Script("fig01_kv_memory", "Figure 1", "KV cache of OPT-13B", make, draw)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
