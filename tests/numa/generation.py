# SPDX-License-Identifier: Apache-2.0
"""Generate with a small model, here and on the emulated machine: the text must be the same.

python tests/numa/generation.py RESULTS.json [--on-host]

On the machine with two kinds of memory it also looks at where tokens lie.
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
PROMPTS = [[3 + (7 * i + 13 * j) % 700 for i in range(400)] for j in range(2)]
# Drawn, so that small differences of logits are seen.
SAMPLING = hg.SamplingParams(max_tokens=16, min_tokens=16, temperature=1.0, seed=11)


def without_tokenizer(model: Path, folder: Path) -> Path:
    """Return a folder of the model that needs no tokenizer, whose import takes a minute there."""
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    return folder


def generate(model: Path, **options: Any) -> tuple[list[list[int]], dict[str, Any]]:
    """Return the tokens of every prompt, and the statistics."""
    cpu = hg.CpuConfig(threads=1, device_threads=1)
    with hg.LLM(model, kv=hg.KVConfig(device_tokens=256, **options), cpu=cpu) as llm:
        return llm.generate_ids(PROMPTS, SAMPLING), llm.stats.to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--on-host", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"ids": {}, "facts": {}, "wrong": []}
    found["facts"]["isa"] = hg.info().cpu["isa"]
    found["facts"]["import_seconds"] = round(IMPORT_SECONDS, 1)
    with tempfile.TemporaryDirectory() as folder:
        model = without_tokenizer(MODEL, Path(folder))
        found["ids"]["DRAM alone"], _ = generate(model)
    if not arguments.on_host:
        tiers = {tier["node"]: tier["tier"] for tier in hg.info().tiers}
        found["facts"]["tiers"] = tiers
        if tiers != {0: "dram", 1: "cxl"}:
            found["wrong"].append(f"hybridgen.info() calls the nodes {tiers}")
    arguments.results.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
