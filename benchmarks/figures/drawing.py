# SPDX-License-Identifier: Apache-2.0
"""Axes and bars that several figures draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from output import HATCHES

METHOD_LABELS = {
    "oracle": "all on the GPU",
    "flexgen": "FlexGen",
    "moe_lightning": "MoE-Lightning",
    "keyformer": "Keyformer",
    "h2o": "H2O",
    "streaming_llm": "StreamingLLM",
    "infinigen": "InfiniGen",
    "hgca": "HGCA (not in the paper)",
    "hybridgen": "HybridGen",
    "full": "full attention",
}
COLORS = {
    "oracle": "tab:gray",
    "full": "tab:gray",
    "flexgen": "tab:blue",
    "moe_lightning": "tab:cyan",
    "keyformer": "tab:purple",
    "h2o": "tab:pink",
    "streaming_llm": "tab:olive",
    "infinigen": "tab:orange",
    "hgca": "tab:brown",
    "hybridgen": "tab:red",
}


def short(tokens: float) -> str:
    """Return 512, 2K, 64K."""
    return f"{tokens / 1024:g}K" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:g}"


def length_axis(
    axes: Any, lengths: Sequence[float], label: str = "sequence length (tokens)"
) -> None:
    """Make x a logarithmic axis of lengths."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [short(n) for n in lengths], minor=False)
    axes.set_xlabel(label)


def grouped_bars(
    axes: Any,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    mode: str,
    colors: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draw a bar of each series in every group; NaN is left out."""
    width = 0.84 / max(1, len(series))
    for i, (name, values) in enumerate(series.items()):
        places = [j - 0.42 + width * (i + 0.5) for j in range(len(values))]
        axes.bar(
            places,
            values,
            width,
            label=(labels or {}).get(name, name),
            color=(colors or {}).get(name),
            hatch=HATCHES[mode],
            edgecolor="black",
            linewidth=0.3,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")


def geometric_mean(values: Sequence[float]) -> float:
    """Return it."""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product
