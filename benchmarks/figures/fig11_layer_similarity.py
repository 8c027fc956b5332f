# SPDX-License-Identifier: Apache-2.0
"""Figure 11: cosine similarity of the inputs of consecutive layers while decoding.

python benchmarks/figures/fig11_layer_similarity.py [--quick] [--out DIR]

A full run adds SmolLM2-135M where scripts/get_smollm2.py has put it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from accuracy import MODELS, SEED, TOY, folder_of, samples_of
from demo import DOCUMENT
from get_smollm2 import default_folder
from output import LINES, Check, Result, Row, Script, main

PROMPTS, NEWEST = 4, 64
"""Prompts of each model, and positions at the end of each that count as decode steps."""


@torch.no_grad()
def similarities(folder: Path, prompts: list[list[int]]) -> list[list[float]]:
    """Return for each pair of layers the cosines of all counted positions."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    layers = model.config.num_hidden_layers
    found: list[list[float]] = [[] for _ in range(layers - 1)]
    for ids in prompts:
        states = model(
            torch.tensor([ids]), output_hidden_states=True, logits_to_keep=1
        ).hidden_states
        for i in range(layers - 1):
            this, following = (states[j][0, -NEWEST:] for j in (i, i + 1))
            found[i] += torch.cosine_similarity(this, following, dim=-1).tolist()
    return found


def texts_for(folder: Path) -> list[list[int]]:
    """Return pieces of the demonstration's text, for a language model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "\n\n".join(file.read_text(encoding="utf-8").strip() for file in DOCUMENT)
    ids = tokenizer(text)["input_ids"]
    size = min(512, len(ids) // PROMPTS)
    return [ids[i * size : (i + 1) * size] for i in range(PROMPTS)]


def make(quick: bool) -> Result:
    """Return mean and standard error per pair of layers."""
    count = 1 if quick else PROMPTS
    sources = {
        name: (folder_of(name), [list(s.prompt_ids) for s in samples_of("kv", count)])
        for name in MODELS
    }
    large = default_folder()
    if not quick and large.is_dir():
        sources[large.name] = (large, texts_for(large))
    rows: list[Row] = []
    for name, (folder, prompts) in sources.items():
        for layer, values in enumerate(similarities(folder, prompts)):
            mean = sum(values) / len(values)
            spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            rows.append(
                {
                    "mode": "measured",
                    "model": name,
                    "layer": layer,
                    "cosine": mean,
                    "standard_error": math.sqrt(spread / len(values)),
                    "n": len(values),
                }
            )
    curves = {name: [r["cosine"] for r in rows if r["model"] == name] for name in sources}
    first_is_least = {name: curve[0] == min(curve) for name, curve in curves.items()}
    high = {name: min(curve[1:]) for name, curve in curves.items()}
    listed = "; ".join(
        f"{name} {curve[0]:.2f}, then {min(curve[1:]):.2f} or more"
        for name, curve in curves.items()
    )
    return Result(
        rows,
        [
            Check(
                "the similarity rises after the first layer",
                all(first_is_least.values()),
                listed,
                "a model of four layers has three pairs, and its layers are its whole depth",
                "not for every toy model does it rise after the first layer",
            ),
            Check(
                "it then stays high",
                all(value > 0.8 for value in high.values()),
                ", ".join(f"{name} at least {value:.2f}" for name, value in high.items()),
                "few layers change the residual stream a lot each; real models have many",
                "toy models stay lower",
            ),
        ],
        [TOY, f"the newest {NEWEST} positions of each prompt; SmolLM2 is a real, small model"],
        seeds={"prompts": SEED},
        weights=", ".join(sources),
    )


def draw(figure: Any, result: Result) -> None:
    """A line per model over relative depth."""
    axes = figure.subplots()
    for name in dict.fromkeys(r["model"] for r in result.rows):
        rows = [r for r in result.rows if r["model"] == name]
        depth = [(r["layer"] + 1) / len(rows) for r in rows]
        axes.errorbar(
            depth,
            [r["cosine"] for r in rows],
            [r["standard_error"] for r in rows],
            label=f"{name} ({len(rows) + 1} layers)",
            capsize=2,
            markersize=3,
            **LINES["measured"],
        )
    axes.set(xlabel="depth (layer pair / pairs)", ylabel="cosine similarity", ylim=(0, 1.02))
    axes.legend()


SCRIPT = Script(
    "fig11_layer_similarity",
    "Figure 11",
    "inputs of consecutive layers, toy models and SmolLM2, not the paper's models",
    make,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
