# SPDX-License-Identifier: Apache-2.0
"""Compare the default options with the paper's mode: same tokens as full attention, and how fast?

Each row feeds a model the text that full attention writes and counts how often it would have chosen
the same token; then it generates freely, for the speed. "paper" is what ran before by default:
guessed logits and a steered K. Both pass the first new token through a decode step.

    python scripts/compare_defaults.py [--quick] [--out docs/results/defaults.md]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hybridgen as hg
from get_smollm2 import ensure_smollm2
from hybridgen._files import write_whole
from methods_accuracy import TEXTS, agreement, describe_machine

ROOT = Path(__file__).resolve().parents[1]
CONTINUATION = 64
MODES: dict[str, dict[str, Any]] = {
    "paper": {"query": "speculative", "scheduler": hg.SchedulerConfig(k=None)},
    "default": {},
}


@dataclass(frozen=True)
class Case:
    """Prompts of one length, and what stays on the device of them.

    Parameters
    ----------
    title : str
        First column.
    tokens, prompts : int
        Their length and number.
    windows : dict
        By mode: ``KVConfig.device_tokens``.
    """

    title: str
    tokens: int
    prompts: int
    windows: dict[str, int | float]


def cases(quick: bool) -> list[Case]:
    """Return what is measured."""
    found = [
        # A share of a short prompt: 3 tokens before, 256 and hence all of them now.
        Case("30 tokens, device_tokens=0.1", 30, 8, {"paper": 3, "default": 0.1}),
        Case(
            "992 tokens, 10 % on the device", 992, 1 if quick else 3, {"paper": 99, "default": 99}
        ),
    ]
    if not quick:
        found.append(
            Case("3,000 tokens, 10 % on the device", 3000, 1, {"paper": 300, "default": 300})
        )
    return found


def measure(base: hg.LLM, case: Case, ids: list[int]) -> list[str]:
    """Return the table's cells of one case: agreement, K and speed of every mode."""
    prompts = [ids[i * case.tokens : (i + 1) * case.tokens] for i in range(case.prompts)]
    params = hg.SamplingParams(max_tokens=CONTINUATION, ignore_eos=True)
    texts = base.generate_ids(prompts, params, decode_prompt_tokens=1)
    full = base.stats.decode_tps
    cells = []
    for mode, options in MODES.items():
        kv = hg.KVConfig(device_tokens=case.windows[mode])
        with hg.LLM(base, kv=kv, **options) as llm:
            hits, metrics = agreement(llm, prompts, texts, 1)
            llm.generate_ids(prompts, params, decode_prompt_tokens=1)
            speed = llm.stats.decode_tps
        offloaded = max(m.offloaded_tokens for m in metrics)
        k = sum(m.k for m in metrics) / len(metrics)
        share = sum(hits) / len(hits)
        cells += [f"{share:.3f}", f"{k:.0f} of {offloaded}", f"{speed / full:.2f}"]
        print(f"{case.title}, {mode}: {cells[-3:]}, full {full:.1f} tokens/s", flush=True)
    return cells


def table(name: str, base: hg.LLM, chosen: list[Case], ids: list[int]) -> list[str]:
    """Return the lines about one model."""
    lines = [
        f"## {name}",
        "",
        "| prompts | paper: agreement | K | speed / full | default: agreement | K | speed / full |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in chosen:
        if case.tokens * case.prompts > len(ids):
            continue
        lines.append(f"| {case.title} | {' | '.join(measure(base, case, ids))} |")
    return [*lines, ""]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no long prompt, no tiny models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "defaults.md")
    arguments = parser.parse_args(given)
    machine = describe_machine(given) | {
        "command": " ".join(["python", "scripts/compare_defaults.py", *given])
    }
    text = "\n\n".join(file.read_text(encoding="utf-8").strip() for file in TEXTS)
    lines = [
        "# Defaults: agreement with full attention, before and now",
        "",
        f"Measured. {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch "
        f"{machine['torch']}, {machine['build_type']} build, {machine['date']}. Command: "
        f"`{machine['command']}`. float32 on the CPU device, greedy, {CONTINUATION} new tokens.",
        "",
        "* *Agreement*: share of the tokens that full attention writes which the mode, fed the "
        "same text, would choose. *K*: at the end, of the offloaded tokens.",
        '* *paper*: `query="speculative"`, `SchedulerConfig(k=None)`, the default before; its K '
        "depends on the machine's speed. *default*: `LLM(path)`, rescored, the larger of 256 and "
        "an eighth.",
        "* Speed: decode tokens per second over those of `full` on the same prompts; it was taken "
        "beside other work on the machine, so that only its order of magnitude says something.",
        "",
    ]
    models = [("SmolLM2-135M-Instruct", Path(ensure_smollm2()))]
    if not arguments.quick:
        models += [
            (name, ROOT / "tests" / "models" / name)
            for name in ("tiny-llama", "tiny-opt", "tiny-qwen2")
        ]
    for name, folder in models:
        with hg.LLM(folder, dtype="float32", method="full") as base:
            ids = base.tokenizer.encode(text)
            limit = base.engine_options.max_model_len - CONTINUATION
            chosen = [case for case in cases(arguments.quick) if case.tokens <= limit]
            lines += table(name, base, chosen, ids)
    write_whole(arguments.out, "\n".join(lines).rstrip() + "\n", "compare_defaults")
    print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
