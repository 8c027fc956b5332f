# SPDX-License-Identifier: Apache-2.0
"""Traces of real runs as rows and lanes: what Figures 3 and 12 draw."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen.sim import StepResult
from output import HATCHES, ROOT, Row

TINY = ROOT / "tests/models/tiny-llama"
LANES = {"device": "device", "link": "link to the device", "cpu": "CPU worker"}
COLORS = {
    "prefill chunk": "tab:purple",
    "norm, q k v": "tab:olive",
    "resident logits": "tab:green",
    "wait for payload": "lightgray",
    "merge, output, FFN": "tab:blue",
    "head": "tab:brown",
    "score, select, gather": "tab:orange",
    "score": "tab:orange",
    "select, gather": "gold",
    "payload": "tab:cyan",
}


def trace_of(
    model: Any, prompt: Sequence[int], new_tokens: int, *, mode: str, **options: Any
) -> tuple[list[Row], str]:
    """Run a prompt with tracing; return a row per span, in microseconds, and the trace's text."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the timed device withholds text
        file = Path(folder) / "trace.json"
        with hg.LLM(model, **options) as llm, llm.tracing(file):
            params = hg.SamplingParams(max_tokens=new_tokens, ignore_eos=True)
            llm.generate([list(prompt)], params)
        text = file.read_text(encoding="utf-8")
    rows = [
        {
            "mode": mode,
            "lane": event["cat"],
            "task": event["name"],
            "step": event["args"]["step"],
            "layer": event["args"]["layer"],
            "begin_us": float(event["ts"]),
            "end_us": float(event["ts"] + event["dur"]),
            "bytes": event["args"]["bytes"],
        }
        for event in json.loads(text)["traceEvents"]
        if event["ph"] == "X" and event["cat"] in LANES
    ]
    return rows, text


TASKS = {
    "projections": ("device", "norm, q k v"),
    "resident logits": ("device", "resident logits"),
    "merge": ("device", "merge, output, FFN"),
    "FFN": ("device", "merge, output, FFN"),
    "logits": ("cpu", "score"),
    "gather rows": ("cpu", "select, gather"),
    "logits and values": ("link", "payload"),
}
"""The simulator's names of HybridGen's tasks as the engine's lanes and names."""


def simulated_spans(step: StepResult, layers: Sequence[int], **shared: Any) -> list[Row]:
    """Return a simulated HybridGen step's spans of some layers, named as the engine names them."""
    return [
        {
            "mode": "simulated",
            **shared,
            "lane": TASKS[span.task.name][0],
            "task": TASKS[span.task.name][1],
            "layer": span.task.layer,
            "begin_us": 1e6 * span.begin_s,
            "end_us": 1e6 * span.end_s,
            "bytes": span.task.bytes,
        }
        for span in step.spans
        if span.task.layer in layers and span.task.name in TASKS
    ]


def draw_lanes(axes: Any, rows: Sequence[Row], *, mode: str, scale: float = 1.0) -> None:
    """Draw spans as bars, a lane each; ``scale``: microseconds of a unit of the axis."""
    lanes = [lane for lane in LANES if any(row["lane"] == lane for row in rows)]
    origin = min(row["begin_us"] for row in rows)
    named: set[str] = set()
    for row in rows:
        width = max(row["end_us"] - row["begin_us"], 1e-3) / scale
        axes.barh(
            lanes.index(row["lane"]),
            width,
            left=(row["begin_us"] - origin) / scale,
            height=0.8,
            color=COLORS.get(row["task"], "tab:red"),
            hatch=HATCHES[mode] if row["task"] != "wait for payload" else "",
            edgecolor="black",
            linewidth=0.3,
            label=row["task"] if row["task"] not in named else None,
        )
        named.add(row["task"])
    axes.set_yticks(range(len(lanes)), [LANES[lane] for lane in lanes])
    axes.invert_yaxis()
