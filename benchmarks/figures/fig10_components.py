# SPDX-License-Identifier: Apache-2.0
"""Figure 10: the paper's components, and that each of them worked in a run just now.

python benchmarks/figures/fig10_components.py [--quick] [--check] [--out DIR]

With --check it exits with 1 if one did not.
"""

from __future__ import annotations

import sys
from typing import Any

import hybridgen as hg
from engine_runs import MEASURED, base_of, decode
from output import Check, Result, Row, Script, main

TOKENS, STEPS = 200, 6
PLACES: dict[str, tuple[str, str, float, float]] = {
    "Logits Calculator": ("CPU", "src/pipeline/cpu_stage.cpp", 0.06, 0.55),
    "Token Selector": ("CPU", "src/selection", 0.06, 0.25),
    "Semantic-aware Data Mapper": ("CPU", "src/memory, src/kvcache", 0.38, 0.02),
    "Feedback Scheduler": ("CPU", "src/scheduling/feedback_scheduler.cpp", 0.38, 0.42),
    "Token Concatenator": ("device", "src/device (merge)", 0.70, 0.60),
    "Token Mapper": ("device", "src/kvcache", 0.70, 0.36),
    "Eviction Engine": ("device", "src/pipeline/new_token.cpp", 0.70, 0.12),
}


def evidence() -> dict[str, tuple[bool, str]]:
    """Run a steered request, and say of each component what shows that it worked."""
    rules = hg.SchedulerConfig.preset("full", k_min=8)
    steered = hg.methods.HybridGen(scheduler=rules, query="speculative")
    whole = hg.methods.HybridGen(k="all", query="exact")
    kv = hg.KVConfig(device_tokens=32)
    with base_of(MEASURED) as model:
        stats, _ = decode(model, TOKENS, STEPS, method=steered, kv=kv)
        prompt = [list(range(3, 3 + TOKENS))]
        params = hg.SamplingParams(max_tokens=4, ignore_eos=True)
        texts = []
        for options in ({"method": "full"}, {"method": whole, "kv": kv}):
            with hg.LLM(model, **options) as llm:
                texts.append(llm.generate_ids(prompt, params))
        with hg.LLM(model, method=steered, kv=kv) as llm:
            (output,) = llm.generate(prompt, params)
            tiers = llm.memory
    metrics = output.metrics
    selectors = hg.selectors.names("post") + hg.selectors.names("pre")
    return {
        "Logits Calculator": (
            stats.host_key_bytes_read > 0,
            f"the host read {stats.host_key_bytes_read:,} bytes of keys",
        ),
        "Token Selector": (len(selectors) > 1, ", ".join(selectors)),
        "Semantic-aware Data Mapper": (
            "placement" in dir(hg.KVConfig()),
            f"an option of KVConfig; tiers of memory here: {', '.join(tiers)}",
        ),
        "Feedback Scheduler": (
            metrics.k >= 1 and metrics.strategy in ("post", "pre"),
            f"K {metrics.k}, {metrics.strategy} at the end of a steered request",
        ),
        "Token Concatenator": (
            texts[0] == texts[1],
            "one softmax over host and device gives full attention's tokens",
        ),
        "Token Mapper": (
            metrics.offloaded_tokens + metrics.resident_tokens == TOKENS + 3,
            f"{metrics.offloaded_tokens} offloaded and {metrics.resident_tokens} resident tokens",
        ),
        "Eviction Engine": (stats.evicted_bytes > 0, f"{stats.evicted_bytes:,} bytes left"),
    }


def make(quick: bool) -> Result:
    """Return a row per component."""
    found = evidence()
    rows: list[Row] = [
        {
            "mode": "measured",
            "component": name,
            "side": side,
            "code": code,
            "works": found[name][0],
            "evidence": found[name][1],
        }
        for name, (side, code, _, _) in PLACES.items()
    ]
    missing = [row["component"] for row in rows if not row["works"]]
    return Result(
        rows,
        [
            Check(
                "every component of the architecture is there and works",
                not missing,
                f"missing: {', '.join(missing) or 'none'} of {len(rows)}",
            )
        ],
        ["a small shape with dummy weights on the CPU device"],
        weights="dummy",
    )


def draw(figure: Any, result: Result) -> None:
    """Boxes by side, each with its evidence."""
    from output import wrapped

    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for x, width, label in ((0.02, 0.62, "CPU and host memory"), (0.66, 0.33, "device")):
        axes.add_patch(_box(x, -0.02, width, 1.0, "whitesmoke"))
        axes.text(x + 0.01, 0.93, label, fontsize=9, weight="bold")
    for row in result.rows:
        _, _, x, y = PLACES[row["component"]]
        axes.add_patch(_box(x - 0.02, y, 0.27, 0.22, "honeydew" if row["works"] else "mistyrose"))
        axes.text(x - 0.01, y + 0.17, row["component"], fontsize=7.5, weight="bold")
        words = wrapped(f"{row['code']}\n{row['evidence']}", 38)
        axes.text(x - 0.01, y + 0.155, words, fontsize=5.8, va="top")
    for begin, end in (
        ((0.17, 0.47), (0.17, 0.55)),
        ((0.31, 0.66), (0.68, 0.71)),
        ((0.36, 0.53), (0.31, 0.60)),
        ((0.36, 0.48), (0.31, 0.36)),
        ((0.68, 0.20), (0.63, 0.14)),
    ):
        axes.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": "gray"})


def _box(x: float, y: float, width: float, height: float, color: str) -> Any:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0.0,rounding_size=0.01"
    return FancyBboxPatch((x, y), width, height, style, facecolor=color, edgecolor="black", lw=0.5)


SCRIPT = Script(
    "fig10_components",
    "Figure 10",
    "the paper's components, each seen at work in this build",
    make,
    draw,
    (7.5, 4.0),
)

if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if all(works for works, _ in evidence().values()) else 1)
    sys.exit(main(SCRIPT))
