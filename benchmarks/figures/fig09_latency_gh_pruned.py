# SPDX-License-Identifier: Apache-2.0
"""Figure 9: Figure 7 with 40 % of the tokens, a fifth on the CPU and a fifth on the GPU.

python benchmarks/figures/fig09_latency_gh_pruned.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys

from estimates import CAVEAT, draw_figure, latency_rows, of
from fig07_latency_gh import LENGTHS, MODEL, RATES, READING
from hybridgen.sim import formulas
from output import Check, Result, Script, main

USED = 0.4


def make(quick: bool) -> Result:
    """Return latencies."""
    rows = latency_rows(RATES, MODEL, LENGTHS[::2] if quick else LENGTHS, USED, "consistent")
    totals = [of(rows, s, "total_ms") for s in formulas.STRATEGIES]
    growth = totals[1][-1] / totals[1][0]
    longer = formulas.crossover(RATES, MODEL, used=USED)
    return Result(
        rows,
        [
            Check(
                "HybridGen is faster than both",
                all(h < a < c for a, c, h in zip(*totals, strict=True)),
                f"up to {longer:,.0f} tokens, beyond what AoG's memory holds",
            ),
            Check(
                "AoC still scales poorly",
                growth > 2 * totals[0][-1] / totals[0][0],
                f"AoC's latency grows {growth:.1f}-fold, AoG's "
                f"{totals[0][-1] / totals[0][0]:.1f}-fold from 512 to 3,490 tokens",
            ),
        ],
        [
            CAVEAT,
            READING,
            "the cost of predicting which tokens matter is left out, as in the paper",
        ],
    )


SCRIPT = Script(
    "fig09_latency_gh_pruned",
    "Figure 9",
    "as Figure 7, with 40 % of the tokens used",
    make,
    draw_figure,
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
