# SPDX-License-Identifier: Apache-2.0
"""A timeline of the stages in the Chrome trace format, for ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._files import write_whole

_PROCESS = 1
_LANES = {
    "device": "device",
    "link": "link (host to device)",
    "cpu": "cpu worker",
    "moves": "moves between tiers",
    "disk": "disk",
}
_LANES_OF_THREADS = {"cpu", "disk"}


def _row_of(span: Mapping[str, Any]) -> tuple[str, int]:
    """Return the lane of a span and, where threads have a row each, its thread."""
    lane = span["lane"]
    return lane, int(span["worker"]) if lane in _LANES_OF_THREADS else 0


def _counter(span: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the scheduler's lane says: a track per request and quantity.

    Its series are the kinds of the quantity, so that a switch changes colour.
    """
    quantity, _, kind = span["name"].rpartition(", ")
    if quantity:
        value, kinds = span["value"], ("exact", "estimated")
    else:
        value, kinds, quantity = span["bytes"], ("post", "pre"), "K"
    return {
        "ph": "C",
        "name": f"{quantity} of request {span['worker']}",
        "pid": _PROCESS,
        "args": {series: value if kind == series else 0 for series in kinds},
    }


def chrome_trace(spans: Iterable[Mapping[str, Any]], emulated: str | None = None) -> dict[str, Any]:
    """Return spans of the engine as a trace: one row per lane, one per thread of host and disk.

    Parameters
    ----------
    spans : iterable of mappings
        With name, lane, worker, layer, step, begin_ns, end_ns and bytes. On the lane "scheduler"
        the worker is a request and the name the strategy, where the bytes are K, or "lost mass,
        exact" or "lost mass, estimated", where the value is that of a step.
    emulated : str, optional
        Whose times these are, if they are not this machine's.
    """
    everything = list(spans)
    origin = min((span["begin_ns"] for span in everything), default=0)
    recorded = [span for span in everything if span["lane"] != "scheduler"]
    order = {lane: i for i, lane in enumerate(_LANES)}
    rows = sorted(
        {_row_of(span) for span in recorded},
        key=lambda row: (order.get(row[0], len(order)), row),
    )
    thread_of = {row: i + 1 for i, row in enumerate(rows)}
    title = "hybridgen" if emulated is None else f"hybridgen ({emulated})"
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": _PROCESS, "args": {"name": title}}
    ]
    for (lane, worker), tid in thread_of.items():
        title = _LANES.get(lane, lane) + (f" {worker}" if lane in _LANES_OF_THREADS else "")
        where = {"ph": "M", "pid": _PROCESS, "tid": tid}
        events.append(where | {"name": "thread_name", "args": {"name": title}})
        events.append(where | {"name": "thread_sort_index", "args": {"sort_index": tid}})
    for span in recorded:
        row = _row_of(span)
        events.append(
            {
                "ph": "X",
                "name": span["name"],
                "cat": span["lane"],
                "pid": _PROCESS,
                "tid": thread_of[row],
                "ts": (span["begin_ns"] - origin) / 1000,
                "dur": max(span["end_ns"] - span["begin_ns"], 0) / 1000,
                "args": {name: span[name] for name in ("layer", "step", "bytes")},
            }
        )
    for span in everything:
        if span["lane"] == "scheduler":
            events.append(_counter(span) | {"ts": (span["begin_ns"] - origin) / 1000})
    trace = {"traceEvents": events, "displayTimeUnit": "ms"}
    return trace if emulated is None else trace | {"otherData": {"emulated": emulated}}


def write_chrome_trace(
    path: str | Path, spans: Iterable[Mapping[str, Any]], emulated: str | None = None
) -> None:
    """Write spans of the engine to a JSON file; if that fails, one that was there stays."""
    write_whole(path, json.dumps(chrome_trace(spans, emulated)), "tracing")
