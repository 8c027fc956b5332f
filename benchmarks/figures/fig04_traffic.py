# SPDX-License-Identifier: Apache-2.0
"""Figure 4: bytes that cross the link for one layer's attention, by length.

python benchmarks/figures/fig04_traffic.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

from drawing import length_axis
from hybridgen.sim import SHAPES, formulas
from output import LINES, Check, Result, Row, Script, main

MODEL = SHAPES["opt-13b"]
LENGTHS = [512 << i for i in range(8)]
K, PHI = 128, 0.5
AOG, AOC, HYBRID = (
    "on the GPU (AoG)",
    "on the CPU (AoC), output alone",
    "HybridGen, half on the CPU",
)
SERIES = {
    AOG: lambda n: formulas.aog_bytes(MODEL, n),
    AOC: lambda n: formulas.aoc_bytes(MODEL),
    HYBRID: lambda n: formulas.hybrid_bytes(MODEL, PHI * n),
    "AoC with query, key and value": lambda n: formulas.aoc_bytes(MODEL, with_inputs=True),
    "HybridGen, K = 128 of the old": lambda n: formulas.hybrid_bytes(MODEL, min(K, n)),
    "merge by log-sum-exp (HGCA)": lambda n: formulas.merge_bytes(MODEL),
}
OF_THE_PAPER = (AOG, AOC, HYBRID)


def make(quick: bool) -> Result:
    """Return bytes by the closed formulas."""
    rows: list[Row] = [
        {
            "mode": "analytic",
            "model": MODEL.name,
            "strategy": name,
            "in_the_paper": name in OF_THE_PAPER,
            "tokens": tokens,
            "bytes_per_layer": float(count(tokens)),
        }
        for name, count in SERIES.items()
        for tokens in (LENGTHS[::2] if quick else LENGTHS)
    ]
    of = {name: [r["bytes_per_layer"] for r in rows if r["strategy"] == name] for name in SERIES}
    ratio = of[AOG][0] / of[HYBRID][0]
    return Result(
        rows,
        [
            Check(
                "AoG's traffic grows linearly, AoC's is constant",
                len(set(of[AOC])) == 1 and of[AOG][-1] / of[AOG][0] == rows[-1]["tokens"] / 512,
                f"AoG {of[AOG][0] / 1e6:.1f} MB at 512 tokens, AoC {of[AOC][0] / 1e3:.1f} kB",
            ),
            Check(
                "HybridGen moves less than AoG",
                all(a > b for a, b in zip(of[AOG], of[HYBRID], strict=True)),
                f"{ratio:.2f} times less at every length, if the CPU scores half of the tokens",
            ),
        ],
        ["the paper gives formulas for AoG and AoC alone; thin lines are not in the paper"],
    )


def draw(figure: Any, result: Result) -> None:
    """One line per strategy; what the paper does not have is thin."""
    axes = figure.subplots()
    for name in SERIES:
        points = [
            (r["tokens"], r["bytes_per_layer"] / 1e6) for r in result.rows if r["strategy"] == name
        ]
        width = 2.0 if name in OF_THE_PAPER else 0.8
        axes.plot(*zip(*points, strict=True), label=name, linewidth=width, **LINES["analytic"])
    axes.set(yscale="log", ylabel="MB per layer and step")
    length_axis(axes, LENGTHS)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)


SCRIPT = Script("fig04_traffic", "Figure 4", "traffic of attention, OPT-13B, batch 1", make, draw)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
