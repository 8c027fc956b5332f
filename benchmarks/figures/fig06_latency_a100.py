# SPDX-License-Identifier: Apache-2.0
"""Figure 6: ball-park latency of a layer on machine A, transfer and compute apart.

python benchmarks/figures/fig06_latency_a100.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from dataclasses import replace

from estimates import CAVEAT, draw_figure, latency_rows, of
from hybridgen.sim import SHAPES, formulas
from output import Check, Result, Script, main

MODEL = SHAPES["opt-13b"]
LENGTHS = [512 << i for i in range(8)]
RATES = formulas.A100_RATES
FOOTNOTE = replace(RATES, gpu_per_mac=1.0)


def make(quick: bool) -> Result:
    """Return latencies in consistent units and in the footnote's."""
    lengths = LENGTHS[::2] if quick else LENGTHS
    rows = latency_rows(RATES, MODEL, lengths, 1.0, "consistent")
    footnote = latency_rows(FOOTNOTE, MODEL, lengths, 1.0, "footnote: the GPU's rate is FMA/s")
    least = formulas.compute_threshold(RATES, MODEL)
    least_footnote = formulas.compute_threshold(FOOTNOTE, MODEL)
    totals = [of(rows, s, "total_ms") for s in formulas.STRATEGIES]
    totals_footnote = [of(footnote, s, "total_ms") for s in formulas.STRATEGIES]
    return Result(
        rows + footnote,
        [
            Check(
                "AoG spends more time on transfers",
                all(
                    a > b
                    for a, b in zip(
                        *(of(rows, s, "transfer_ms") for s in ("aog", "aoc")), strict=True
                    )
                ),
                "at every length",
            ),
            Check(
                "AoC takes at least four times as long as AoG",
                all(c >= 4 * a for a, c, _ in zip(*totals, strict=True)),
                f"AoC's compute is 4x AoG's only from {least:,.0f} tokens on, its total never",
                f"of compute alone it holds from {least:,.0f} tokens on, or {least_footnote:,.0f} "
                "where the GPU's rate counts multiply-adds as the paper's footnote has it; in "
                "totals AoC is faster than AoG at every length",
            ),
            Check(
                "the hybrid is the fastest of the three",
                all(
                    h < min(a, c)
                    for t in (totals, totals_footnote)
                    for a, c, h in zip(*t, strict=True)
                ),
                "at every length, in both readings of the rates",
            ),
        ],
        [CAVEAT, "link: 24.8 GB/s, nvbandwidth on PCIe 4.0; the paper does not give its own"],
    )


SCRIPT = Script(
    "fig06_latency_a100", "Figure 6", "estimated latency, OPT-13B on machine A", make, draw_figure
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
