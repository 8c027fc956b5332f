# SPDX-License-Identifier: Apache-2.0
"""Figure 12: HybridGen's workflow, as traces of a decode step: this CPU, a timed GPU, simulated.

python benchmarks/figures/fig12_workflow_trace.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

import hybridgen as hg
from agreement import agreement, is_slowed, strip
from engine_runs import EMULATED, MEASURED, SMALL, base_of, mode_of
from output import Check, Result, Row, Script, main, of_mode
from slowed_machine import SLOWED_NOTE, Case, simulated_step, slowed_profiles, slowed_rows
from traces import draw_lanes, simulated_spans, trace_of

NEW = 4
CASES = [Case(times=300, model=model, method="hybridgen") for model in ("opt-1.3b", "llama-3.2-1b")]
LAYERS = range(8, 12)
"""Of the simulated step that are drawn."""
STEPS = (
    "1 the CPU scores layer i+1 while the device runs layer i; 2, 3 logits and values cross the "
    "link; 4 the device scores its own tokens; 5 one softmax over both, values, FFN; 6 the output "
    "is the next guess's input"
)
NUMBERS = {
    "score, select, gather": "1",
    "score": "1",
    "select, gather": "1",
    "payload": "2, 3",
    "resident logits": "4",
    "merge, output, FFN": "5",
    "norm, q k v": "6",
}


def overlap(rows: list[Row]) -> int:
    """Count the layers whose host stage begins before they do on the device."""
    begins = {r["layer"]: r["begin_us"] for r in rows if r["task"] == "norm, q k v"}
    host = [r for r in rows if r["lane"] == "cpu"]
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
    slowed = slowed_rows(CASES, quick=quick)
    lanes = simulated_spans(simulated_step(CASES[0]), LAYERS, **CASES[0].row)
    early = overlap([row for row in lanes if row["layer"] > LAYERS[0]])
    guessed = SMALL.layers - 2
    return Result(
        rows + slowed + lanes,
        [
            Check(
                "the CPU works on layer i+1 while the device runs layer i",
                all(count == guessed for count in ahead.values()),
                f"layers whose host stage began before them: {ahead['measured']} measured and "
                f"{ahead['emulated']} emulated, of the {guessed} whose query is guessed",
                "on a busy machine the host's thread gets its core late",
                "host stages did not all begin before their layer on this busy machine",
            ),
            Check(
                "simulated, too: the CPU works on layer i+1 while the device runs layer i",
                early == len(LAYERS) - 1,
                f"{early} of {len(LAYERS) - 1} layers of {CASES[0].model}",
            ),
            *agreement(slowed),
        ],
        [
            STEPS,
            f"a step at {tokens:,} tokens of the small Llama shape, dummy weights",
            "spans of the emulated device begin when an operation is queued, not when the modelled "
            "GPU runs it; so a modelled step is compared by its time, not span by span",
            SLOWED_NOTE,
        ],
        profiles=[hg.MachineProfile.load("h100-nvl"), *slowed_profiles(CASES)],
        weights="dummy",
        files=files,
    )


def draw(figure: Any, result: Result) -> None:
    """A panel per device and one simulated, the steps' numbers on the bars."""
    simulated = [r for r in result.rows if is_slowed(r) and "lane" in r]
    figure, result = strip(figure, result, lambda row: f"{row['model']}, {row['machine']}", 0.28)
    panels = figure.subplots(3, 1)
    titles = {
        "measured": "measured: CPU device, one thread a side",
        "emulated": "emulated: h100-nvl's GPU and link, this machine's CPU",
    }
    titles["simulated"] = (
        f"simulated: {CASES[0].model} on {CASES[0].row['machine']}, layers 8 to 11"
    )
    for axes, (mode, title) in zip(panels, titles.items(), strict=True):
        rows = simulated if mode == "simulated" else of_mode(result, mode)
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
    (7.5, 8.0),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
