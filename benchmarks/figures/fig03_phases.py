# SPDX-License-Identifier: Apache-2.0
"""Figure 3: a prompt is read once (prefill), then tokens follow one by one (decode): a real trace.

python benchmarks/figures/fig03_phases.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

import hybridgen as hg
from output import Check, Result, Script, main
from traces import TINY, draw_lanes, trace_of

PROMPT, NEW = 600, 4


def make(quick: bool) -> Result:
    """Trace a prompt and its new tokens on a trained tiny model."""
    rows, text = trace_of(
        TINY,
        range(3, 3 + PROMPT),
        NEW,
        mode="measured",
        dtype="float32",
        device="cpu",
        method=hg.methods.HybridGen(k=32, query="speculative"),
        kv=hg.KVConfig(device_tokens=64),
        cpu=hg.CpuConfig(threads=1, device_threads=1),
    )
    prefill = [r for r in rows if r["step"] < 0]
    steps = {r["step"] for r in rows if r["step"] >= 0}
    return Result(
        rows,
        [
            Check(
                "prefill reads the whole prompt and gives the first token; each further token is a "
                "step over the cached keys and values",
                len(prefill) >= 1 and len(steps) == NEW - 1,
                f"{len(prefill)} prefill chunk of {PROMPT} tokens, then {len(steps)} decode steps "
                f"for {NEW} new tokens",
            )
        ],
        ["tiny-llama (trained, 4 layers), float32, CPU device, one thread a side"],
        weights="tests/models/tiny-llama",
        files={"fig03_trace.json": text},
    )


def draw(figure: Any, result: Result) -> None:
    """The whole run above, the decode steps below."""
    above, below = figure.subplots(2, 1)
    draw_lanes(above, result.rows, mode="measured", scale=1000)
    above.set(title="prefill, and all decode steps at its end", xlabel="ms")
    draw_lanes(below, [r for r in result.rows if r["step"] >= 0], mode="measured")
    below.set(title="the decode steps", xlabel="us")
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


SCRIPT = Script("fig03_phases", "Figure 3", "prefill and decode of tiny-llama", make, draw)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
