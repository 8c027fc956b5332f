# SPDX-License-Identifier: Apache-2.0
"""What Figures 6, 7 and 9 share: rows and bars of the paper's ball-park latencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drawing import short
from hybridgen.sim import ModelShape, formulas
from output import Result, Row

LABELS = {"aog": "AoG", "aoc": "AoC", "hybrid": "HybridGen"}
COLORS = {"aog": "tab:blue", "aoc": "tab:cyan", "hybrid": "tab:red"}
CAVEAT = (
    "rates as the paper takes them: CPU and GPU are charged per operation, so that grouped heads "
    "look worse on the CPU than they are, and a batch pays weights on the GPU once per text"
)


def latency_rows(
    rates: formulas.Rates, shape: ModelShape, lengths: Sequence[int], used: float, units: str
) -> list[Row]:
    """Return milliseconds of a layer for the three strategies."""
    rows: list[Row] = []
    for strategy in formulas.STRATEGIES:
        for tokens in lengths:
            found = formulas.latency(rates, shape, strategy, tokens, used=used)
            rows.append(
                {
                    "mode": "analytic",
                    "model": shape.name,
                    "units": units,
                    "strategy": strategy,
                    "tokens": tokens,
                    "used_share": used,
                    "transfer_ms": 1e3 * found.link_s,
                    "cpu_ms": 1e3 * found.cpu_s,
                    "gpu_ms": 1e3 * found.gpu_s,
                    "compute_ms": 1e3 * found.compute_s,
                    "total_ms": 1e3 * found.total_s,
                }
            )
    return rows


def of(rows: Sequence[Row], strategy: str, field: str) -> list[float]:
    """Return a column of a strategy."""
    return [row[field] for row in rows if row["strategy"] == strategy]


def draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Draw compute (solid) and transfer (pale) bars beside each other per strategy and length."""
    lengths = sorted({row["tokens"] for row in rows})
    for i, (strategy, label) in enumerate(LABELS.items()):
        for j, (field, alpha) in enumerate((("transfer_ms", 0.4), ("compute_ms", 1.0))):
            places = [k + 0.14 * (2 * i + j - 2.5) for k in range(len(lengths))]
            name = f"{label}, {'transfer' if j == 0 else 'compute'}"
            axes.bar(
                places,
                of(rows, strategy, field),
                0.13,
                color=COLORS[strategy],
                alpha=alpha,
                label=name,
            )
    axes.set_xticks(range(len(lengths)), [short(n) for n in lengths])
    axes.set(yscale="log", xlabel="sequence length (tokens)", ylabel="ms per layer and step")
    axes.grid(visible=False, axis="x")


def draw_figure(figure: Any, result: Result) -> None:
    """Draw the rows in consistent units."""
    axes = figure.subplots()
    draw_bars(axes, [r for r in result.rows if r.get("units") == "consistent"])
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
