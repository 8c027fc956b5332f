# SPDX-License-Identifier: Apache-2.0
"""Figure 8: attention scores of two layers over decode iterations, of a trained toy model.

python benchmarks/figures/fig08_attention_heatmap.py [--quick] [--out DIR]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers

from accuracy import MODELS, SEED, TOY, folder_of
from hybridgen.evaluation.recall_tasks import Vocabulary, make_samples
from output import Check, Result, Row, Script, main

MODEL, LAYERS = MODELS[0], (1, 3)
LENGTH, ITERATIONS = 120, 24
EARLY, RECENT, TOP = 4, 16, 5


@torch.no_grad()
def attention() -> torch.Tensor:
    """Return scores [layer, iteration, position], averaged over heads.

    A row of a causal model's attention over the whole text is what a decode step of that token
    computes.
    """
    vocabulary = Vocabulary.from_model_dir(folder_of(MODEL))
    (sample,) = make_samples("mqar", vocabulary, (64, 256), 1, SEED, length=LENGTH)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder_of(MODEL), attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
    ).eval()
    weights = model(torch.tensor([sample.prompt_ids]), output_attentions=True).attentions
    return torch.stack([weights[layer][0].mean(0)[-ITERATIONS:] for layer in LAYERS])


def make(quick: bool) -> Result:
    """Return every score, and how much the important positions change."""
    scores = attention()
    rows: list[Row] = []
    kept, far = [], []
    for i, layer in enumerate(LAYERS):
        before: set[int] = set()
        for iteration in range(ITERATIONS):
            row = scores[i, iteration]
            last = LENGTH - ITERATIONS + iteration
            middle = row[EARLY : last - RECENT]
            best = set((middle.topk(TOP).indices + EARLY).tolist())
            if before:
                kept.append(len(best & before) / TOP)
            before = best
            far.append(float(middle.sum()))
            rows += [
                {
                    "mode": "measured",
                    "model": MODEL,
                    "layer": layer,
                    "iteration": iteration,
                    "position": position,
                    "score": float(row[position]),
                }
                for position in range(last + 1)
                if not quick or iteration % 4 == 0
            ]
    stays, middle_share = sum(kept) / len(kept), sum(far) / len(far)
    return Result(
        rows,
        [
            Check(
                "important tokens change from one iteration to the next",
                stays < 0.5,
                f"of the {TOP} most important tokens between the first {EARLY} and the newest "
                f"{RECENT}, {stays:.0%} are so again in the next iteration (n = {len(kept)})",
            ),
            Check(
                "middle tokens can matter as well",
                middle_share > 0.1,
                f"they hold {middle_share:.0%} of the attention (n = {len(far)})",
            ),
        ],
        [TOY, "the paper's prompt and OPT-13B's checkpoint are not at hand"],
        seeds={"prompt": SEED},
        weights=f"tests/models/{MODEL}",
    )


def draw(figure: Any, result: Result) -> None:
    """A heat map per layer."""
    panels = figure.subplots(len(LAYERS), 1, sharex=True)
    for axes, layer in zip(panels, LAYERS, strict=True):
        rows = [r for r in result.rows if r["layer"] == layer]
        iterations = sorted({r["iteration"] for r in rows})
        grid = [[float("nan")] * LENGTH for _ in iterations]
        for row in rows:
            grid[iterations.index(row["iteration"])][row["position"]] = max(row["score"], 1e-4)
        axes.grid(visible=False)
        picture = axes.imshow(
            grid, aspect="auto", norm="log", cmap="viridis", interpolation="nearest"
        )
        step = max(1, len(iterations) // 6)
        axes.set_yticks(range(0, len(iterations), step), iterations[::step])
        axes.set(ylabel="iteration", title=f"layer {layer} of 4")
    panels[-1].set_xlabel("token position")
    figure.colorbar(picture, ax=panels, label="attention score, mean of heads")


SCRIPT = Script(
    "fig08_attention_heatmap",
    "Figure 8",
    f"attention of {MODEL}, a toy model, not the paper's",
    make,
    draw,
    (7.0, 4.6),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
