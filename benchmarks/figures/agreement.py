# SPDX-License-Identifier: Apache-2.0
"""Whether emulated steps of a slowed machine agree with simulated ones: numbers, a check, bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drawing import COLORS, METHOD_LABELS
from output import HATCHES, Check, Result, Row
from simulations import NEAR

WHY_APART = (
    "the timed device counts launches, of which small ones reach a smaller share of the memory's "
    "rate, the simulator stages; and the engine's threads get their cores late on a busy machine, "
    "once in every layer that waits for the host"
)
FIELDS = ("machine", "model", "method", "tokens", "batch")


@dataclass(frozen=True)
class Pair:
    """A step in both modes, in milliseconds."""

    row: Row
    simulated: float
    emulated: float

    @property
    def place(self) -> tuple[Any, ...]:
        """Everything but the method."""
        return tuple(self.row.get(name) for name in FIELDS if name != "method")

    @property
    def ratio(self) -> float:
        """Emulated over simulated."""
        return self.emulated / self.simulated


def is_slowed(row: Row) -> bool:
    """Say whether a row is of a slowed machine."""
    return " / " in str(row.get("machine", ""))


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    """Return the steps of slowed machines that both modes have, in the order of the rows."""
    steps: dict[str, dict[tuple[Any, ...], Row]] = {"simulated": {}, "emulated": {}}
    for row in rows:
        if is_slowed(row) and "step_ms" in row:
            steps[row["mode"]][tuple(row.get(name) for name in FIELDS)] = row
    return [
        Pair(row, row["step_ms"], steps["emulated"][key]["step_ms"])
        for key, row in steps["simulated"].items()
        if key in steps["emulated"]
    ]


def reversed_pairs(found: Sequence[Pair]) -> list[str]:
    """Return pairs of methods that simulated steps tell apart and emulated ones order otherwise."""
    return [
        f"{one.row['method']} before {other.row['method']} ({where_of(one)})"
        for one in found
        for other in found
        if one.place == other.place
        and other.simulated > NEAR * one.simulated
        and other.emulated < one.emulated
    ]


def where_of(pair: Pair) -> str:
    """Name a pair's machine, model and tokens and, where it is not one, its batch."""
    batch = f", batch {pair.row['batch']}" if pair.row["batch"] > 1 else ""
    return f"{pair.row['model']} at {pair.row['tokens']:,} tokens{batch} on {pair.row['machine']}"


def agreement(rows: Sequence[Row], why: str = WHY_APART) -> list[Check]:
    """Compare emulated with simulated steps: time, and order of methods.

    ``why``: what is known of steps that differ by more than 15 %.
    """
    found = pairs_of(rows)
    far = [pair for pair in found if not 1 / NEAR <= pair.ratio <= NEAR]
    wrong = reversed_pairs(found)
    steps = "nothing is compared in the quick form"
    if found:
        least, most = min(p.ratio for p in found), max(p.ratio for p in found)
        steps = (
            f"{least:.2f} to {most:.2f}, within 15 % for {len(found) - len(far)} of {len(found)}"
        )
    if far:
        steps += "; beyond: " + ", ".join(
            f"{p.row['method']}, {where_of(p)}: {p.ratio:.2f}" for p in far
        )
    return [
        Check(
            "(ours) an emulated step takes as long as a simulated one of the same profile, "
            "within 15 %",
            not far,
            f"emulated over simulated {steps}",
            why,
            f"{len(far)} of {len(found)} emulated steps differ from simulated ones by more than "
            "15 %",
        ),
        Check(
            "(ours) emulated steps order the methods as simulated ones do, where those differ by "
            "more than 15 %",
            not wrong,
            f"otherwise ordered: {', '.join(wrong) or 'none'}",
            why,
            f"emulated points order {len(wrong)} pair{'s' if len(wrong) != 1 else ''} of methods "
            "otherwise",
        ),
    ]


def draw_pairs(
    axes: Any,
    rows: Sequence[Row],
    label: Callable[[Row], str],
    names: Mapping[str, str] = METHOD_LABELS,
) -> None:
    """Draw both modes' steps: a group for each ``label(row)``, two bars per method.

    ``names``: of methods, which have their colours; others go by their own.
    """
    found = pairs_of(rows)
    groups = list(dict.fromkeys(label(pair.row) for pair in found))
    methods = list(dict.fromkeys(pair.row["method"] for pair in found))
    width = 0.84 / max(1, 2 * len(methods))
    for i, method in enumerate(methods):
        mine = [pair for pair in found if pair.row["method"] == method]
        for j, mode in enumerate(("simulated", "emulated")):
            shift = -0.42 + width * (2 * i + j + 0.5)
            axes.bar(
                [groups.index(label(pair.row)) + shift for pair in mine],
                [getattr(pair, mode) for pair in mine],
                width,
                color=COLORS[method] if method in names else f"C{i}",
                hatch=HATCHES[mode],
                edgecolor="black",
                linewidth=0.3,
                alpha=1.0 if mode == "emulated" else 0.5,
                label=f"{names.get(method, method)}, {mode}",
            )
    axes.set_xticks(range(len(groups)), groups, fontsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ms per step")
    axes.set_title(
        "GPU and link slowed by the number shown, this machine's CPU; dummy weights", fontsize=8
    )


def strip(
    figure: Any,
    result: Result,
    label: Callable[[Row], str],
    share: float = 0.25,
    names: Mapping[str, str] = METHOD_LABELS,
) -> tuple[Any, Result]:
    """Draw a slowed machine's steps below; return the place and the rows for everything else."""
    slowed = [row for row in result.rows if is_slowed(row)]
    others = [row for row in result.rows if not is_slowed(row)]
    if not pairs_of(slowed):
        return figure, replace(result, rows=others)
    above, below = figure.subfigures(2, 1, height_ratios=(1 - share, share))
    axes = below.subplots()
    draw_pairs(axes, slowed, label, names)
    handles, labels = axes.get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6)
    return above, replace(result, rows=others)
