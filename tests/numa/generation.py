# SPDX-License-Identifier: Apache-2.0
"""Generate with a small model, here and on the emulated machine: the tokens must be the same.

python tests/numa/generation.py RESULTS.json [--on-host]

On the host everything lies in DRAM. On the machine with two kinds of memory DRAM is made too small
for the values, and a look at every step says where keys and values lie.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

begin = time.monotonic()
import hybridgen as hg  # noqa: E402

IMPORT_SECONDS = time.monotonic() - begin
MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny-llama"
PROMPTS = [[3 + (7 * i + 13 * j) % 700 for i in range(600)] for j in range(2)]
NEW_TOKENS = 16
# Drawn, so that small differences of logits are seen.
SAMPLING = hg.SamplingParams(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, temperature=1.0, seed=11)
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": len(PROMPTS[0]) + NEW_TOKENS,
    "cpu": hg.CpuConfig(threads=1, device_threads=1),
}


def without_tokenizer(model: Path, folder: Path) -> Path:
    """Return a folder of the model that needs no tokenizer, whose import takes a minute there."""
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    return folder


def too_little_dram(model: Path) -> int:
    """Return bytes of DRAM that hold all that is planned but half of the values."""
    plan = hg.plan(
        model,
        batch_size=len(PROMPTS),
        prompt_tokens=len(PROMPTS[0]),
        new_tokens=NEW_TOKENS,
        kv=hg.KVConfig(device_tokens=256, dram="256MiB", cxl=0),
        **OPTIONS,
    )
    dram = plan.tiers["dram"]
    return dram["total"] - dram["values"] // 2


def generate(model: Path, **kv: Any) -> tuple[list[list[int]], dict[str, dict[int, int]], Any]:
    """Return the tokens of every prompt, the most that lay on each node by tier, and counters."""
    most: dict[str, dict[int, int]] = {}
    ids: dict[int, list[int]] = {}
    with hg.LLM(model, kv=hg.KVConfig(device_tokens=256, **kv), **OPTIONS) as llm:
        for number, prompt in enumerate(PROMPTS):
            llm.add_request(number, {"prompt_token_ids": prompt}, SAMPLING)
        while llm.has_unfinished_requests():
            for output in llm.step():
                if output.finished:
                    ids[int(output.request_id)] = list(output.outputs[0].token_ids)
            for tier, memory in llm.memory.items():
                nodes = most.setdefault(tier, {})
                for node, size in memory.get("nodes", {}).items():
                    nodes[node] = max(nodes.get(node, 0), size)
        return [ids[number] for number in range(len(PROMPTS))], most, llm.stats.to_dict()


def look_at_tiers(found: dict[str, Any], most: dict[str, dict[int, int]], stats: Any) -> None:
    """Note where keys and values lay, and what is wrong with that."""
    tiers = {tier["node"]: tier["tier"] for tier in hg.info().tiers}
    found["facts"] |= {"tiers": tiers, "most_bytes": most}
    found["facts"] |= {name: value for name, value in stats.items() if "cxl" in name}
    if tiers != {0: "dram", 1: "cxl"}:
        found["wrong"].append(f"hybridgen.info() calls the nodes {tiers}")
    if not most.get("cxl", {}).get(1):
        found["wrong"].append(f"nothing lay on the slow node: {most}")
    if set(most.get("cxl", {})) - {1} or set(most.get("dram", {})) - {0}:
        found["wrong"].append(f"a tier's bytes lay on another one's node: {most}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate, and say where keys and values lay.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--on-host", action="store_true", help="with DRAM alone")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"ids": {}, "facts": {}, "wrong": []}
    found["facts"] |= {"isa": hg.info().cpu["isa"], "import_seconds": round(IMPORT_SECONDS, 1)}
    with tempfile.TemporaryDirectory() as folder:
        model = without_tokenizer(MODEL, Path(folder))
        dram = 256 << 20 if arguments.on_host else too_little_dram(model)
        found["facts"]["dram"] = dram
        ids, most, stats = generate(model, dram=dram)
    found["ids"]["values overflow into slow memory"] = ids
    if not arguments.on_host:
        look_at_tiers(found, most, stats)
    arguments.results.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
