# SPDX-License-Identifier: Apache-2.0
"""Figure 12: HybridGen's workflow, as traces of a decode step: on this CPU and on a timed GPU.

python benchmarks/figures/fig12_workflow_trace.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

import hybridgen as hg
from engine_runs import EMULATED, MEASURED, SMALL, base_of, mode_of
from output import Check, Result, Row, Script, main, of_mode
from traces import draw_lanes, trace_of

NEW = 4
STEPS = (
    "1 the CPU scores layer i+1 while the device runs layer i; 2, 3 logits and values cross the "
    "link; 4 the device scores its own tokens; 5 one softmax over both, values, FFN; 6 the output "
    "is the next guess's input"
)
NUMBERS = {
    "score, select, gather": "1",
    "payload": "2, 3",
    "resident logits": "4",
    "merge, output, FFN": "5",
    "norm, q k v": "6",
}


def overlap(rows: list[Row]) -> int:
    """Count the layers whose host stage begins before they do on the device."""
    begins = {r["layer"]: r["begin_us"] for r in rows if r["task"] == "norm, q k v"}
    host = [r for r in rows if r["task"] == "score, select, gather"]
    return len({r["layer"] for r in host if r["begin_us"] < begins[r["layer"]]})


def make(quick: bool) -> Result:
    """Trace the last step of a short run on both devices."""
    rows: list[Row] = []
    files = {}
    tokens = 800 if quick else 4000
    for device in (MEASURED, EMULATED):
        with base_of(device) as model:
            found, text = trace_of(
                model,
                [i % 2000 + 3 for i in range(tokens)],
                NEW,
                mode=mode_of(device),
                method=hg.methods.HybridGen(k=tokens // 20, query="speculative"),
                kv=hg.KVConfig(device_tokens=64),
                cpu=hg.CpuConfig(threads=1, device_threads=1),
            )
        last = [r | {"number": NUMBERS.get(r["task"], "")} for r in found if r["step"] == NEW - 2]
        rows += last
        files[f"fig12_trace_{mode_of(device)}.json"] = text
    ahead = {m: overlap(of_mode(Result(rows), m)) for m in ("measured", "emulated")}
    guessed = SMALL.layers - 2
    return Result(
        rows,
        [
            Check(
                "the CPU works on layer i+1 while the device runs layer i",
                all(count == guessed for count in ahead.values()),
                f"layers whose host stage began before them: {ahead['measured']} measured and "
                f"{ahead['emulated']} emulated, of the {guessed} whose query is guessed",
                "on a busy machine the host's thread gets its core late",
                "host stages did not all begin before their layer on this busy machine",
            )
        ],
        [STEPS, f"a step at {tokens:,} tokens of the small Llama shape, dummy weights"],
        profiles=[hg.MachineProfile.load("h100-nvl")],
        weights="dummy",
        files=files,
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per device, the steps' numbers on the bars."""
    panels = figure.subplots(2, 1)
    titles = {
        "measured": "measured: CPU device, one thread a side",
        "emulated": "emulated: h100-nvl's GPU and link, this machine's CPU",
    }
    for axes, (mode, title) in zip(panels, titles.items(), strict=True):
        rows = of_mode(result, mode)
        draw_lanes(axes, rows, mode=mode)
        axes.set(title=title, xlabel="us")
    handles, labels = panels[0].get_legend_handles_labels()
    labels = [f"{NUMBERS[name]}: {name}" if name in NUMBERS else name for name in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


SCRIPT = Script(
    "fig12_workflow_trace",
    "Figure 12",
    "one decode step, numbered as in the paper",
    make,
    draw,
    (7.5, 4.6),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
