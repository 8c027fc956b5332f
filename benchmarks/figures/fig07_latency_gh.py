# SPDX-License-Identifier: Apache-2.0
"""Figure 7: the same estimate on a superchip like Grace Hopper, and where AoG runs out of memory.

python benchmarks/figures/fig07_latency_gh.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys

from estimates import CAVEAT, draw_figure, latency_rows, of
from hybridgen.sim import SHAPES, formulas
from output import Check, Result, Script, main

MODEL = SHAPES["opt-30b"]
LENGTHS = [512, 1024, 2048, 3072, 3490]
RATES = formulas.GH100_RATES
READING = (
    "the paper names neither model nor rates: OPT-30B on 80 GB with its output head stored apart "
    "is the only reading found in which all its statements come close"
)


def make(quick: bool) -> Result:
    """Return latencies and memory limits."""
    rows = latency_rows(RATES, MODEL, LENGTHS[::2] if quick else LENGTHS, 1.0, "consistent")
    limits = {}
    for name, memory, apart in (
        ("opt-30b", 80, True),
        ("opt-30b", 80, False),
        ("opt-30b", 96, False),
        ("opt-13b", 80, False),
        ("opt-13b", 96, False),
    ):
        limit = formulas.capacity(SHAPES[name], memory * 1e9, 4, separate_head=apart)
        limits[name, memory, apart] = limit
        rows.append(
            {
                "mode": "analytic",
                "model": name,
                "gpu_gb": memory,
                "head_apart": apart,
                "batch": 4,
                "aog_fits_tokens": limit,
            }
        )
    longer = formulas.crossover(RATES, MODEL)
    most = limits["opt-30b", 80, True]
    latencies = [r for r in rows if "total_ms" in r]
    totals = zip(*(of(latencies, s, "total_ms") for s in formulas.STRATEGIES), strict=True)
    assert longer is not None
    return Result(
        rows,
        [
            Check(
                "AoG cannot run 3,490 tokens at batch 4",
                most < 3490,
                f"AoG fits up to {most:,} tokens at batch 4",
                "0.6 % off, and only if weights and the whole cache must fit the GPU, which is not "
                "how section 3 defines AoG",
            ),
            Check(
                "AoC is the slowest",
                all(c > max(a, h) for a, c, h in totals),
                "at every length",
            ),
            Check(
                "HybridGen is faster than AoG, and AoG overtakes at longer lengths",
                512 < longer < most,
                f"AoG overtakes at {longer:,.0f} tokens",
            ),
        ],
        [CAVEAT, READING, "rates by the recipe of Figure 6; link: 375 GB/s, measured over C2C"],
    )


SCRIPT = Script(
    "fig07_latency_gh",
    "Figure 7",
    "estimated latency, OPT-30B on a Grace-Hopper-like superchip",
    make,
    draw_figure,
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
