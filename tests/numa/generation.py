# SPDX-License-Identifier: Apache-2.0
"""Generate with a small model, here and on the emulated machine: the tokens must be the same.

python tests/numa/generation.py RESULTS.json [--on-host]

On the host everything lies in DRAM. On the machine with two kinds of memory DRAM is made too small
for the values, and then for the keys; a look at every step says on which node what lies. Once more
what lies on the slow node is overwritten in every step, which must show in what is said. Nothing is
judged here: numa_generation.py does that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

begin = time.monotonic()
import hybridgen as hg  # noqa: E402
from hybridgen.evaluation.recall_tasks import Vocabulary, make_samples  # noqa: E402

IMPORT_SECONDS = time.monotonic() - begin
MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny-llama"
PROMPT_TOKENS = 800
NEW_TOKENS = 12
# What they ask for was said in their first 256 tokens, which are the first to leave DRAM.
DISTANCE = (PROMPT_TOKENS - 256, PROMPT_TOKENS - 10)
NUM_PROMPTS = 2
SLOW_NODE = 1
PAGE = 4096
# Drawn, so that small differences of logits are seen.
SAMPLING = hg.SamplingParams(
    max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, temperature=1.0, seed=11, logprobs=0
)
DEVICE_TOKENS = 64
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": PROMPT_TOKENS + NEW_TOKENS,
    "cpu": hg.CpuConfig(threads=1, device_threads=1),
}


def recall_prompts() -> list[list[int]]:
    samples = make_samples(
        "mqar", Vocabulary.from_model_dir(MODEL), DISTANCE, NUM_PROMPTS, 3, length=PROMPT_TOKENS
    )
    return [list(sample.prompt_ids) for sample in samples]


def without_tokenizer(model: Path, folder: Path) -> Path:
    """Return a folder of the model that needs no tokenizer, whose import takes a minute there."""
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    return folder


def planned_dram(model: Path) -> dict[str, int]:
    """Return the planned bytes of DRAM where it holds everything."""
    plan = hg.plan(
        model,
        batch_size=NUM_PROMPTS,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        kv=hg.KVConfig(device_tokens=DEVICE_TOKENS, dram="256MiB", cxl=0),
        **OPTIONS,
    )
    return plan.tiers["dram"]


def writable_ranges_of(node: int) -> list[tuple[int, int]]:
    """Return (address, end) of mappings that may be written and have pages on a node."""
    ends = {}
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, access = line.split()[:2]
        first, _, end = addresses.partition("-")
        if access.startswith("rw"):
            ends[int(first, 16)] = int(end, 16)
    ranges = []
    for line in Path("/proc/self/numa_maps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        address = int(words[0], 16)
        if address in ends and any(word.startswith(f"N{node}=") for word in words):
            ranges.append((address, ends[address]))
    return ranges


def overwrite_slow_node() -> int:
    """Overwrite every page of this process that the kernel has on the slow node; return bytes."""
    libnuma = ctypes.CDLL("libnuma.so.1", use_errno=True)
    overwritten = 0
    for first, end in writable_ranges_of(SLOW_NODE):
        count = (end - first) // PAGE
        pages = (ctypes.c_void_p * count)(*range(first, end, PAGE))
        nodes = (ctypes.c_int * count)()
        if libnuma.numa_move_pages(0, ctypes.c_ulong(count), pages, None, nodes, 0) != 0:
            raise OSError(ctypes.get_errno(), "numa_move_pages")
        for page, node in zip(pages, nodes, strict=True):
            if node == SLOW_NODE:
                ctypes.memset(page, 0, PAGE)
                overwritten += PAGE
    return overwritten


def generate(model: Path, before_step: Callable[[], int] = lambda: 0, **kv: Any) -> dict[str, Any]:
    """Return what is said to every prompt, and the most that lay on each node by tier."""
    most: dict[str, dict[int, int]] = {}
    ids: dict[int, list[int]] = {}
    logprobs: dict[int, list[float]] = {}
    overwritten = 0
    with hg.LLM(model, kv=hg.KVConfig(device_tokens=DEVICE_TOKENS, **kv), **OPTIONS) as llm:
        for number, prompt in enumerate(recall_prompts()):
            llm.add_request(number, {"prompt_token_ids": prompt}, SAMPLING)
        while llm.has_unfinished_requests():
            overwritten = max(overwritten, before_step())
            for output in llm.step():
                if output.finished:
                    said = output.outputs[0]
                    ids[int(output.request_id)] = list(said.token_ids)
                    logprobs[int(output.request_id)] = [
                        each[token]
                        for token, each in zip(said.token_ids, said.logprobs or [], strict=True)
                    ]
            for tier, memory in llm.memory.items():
                nodes = most.setdefault(tier, {})
                for node, size in memory.get("nodes", {}).items():
                    nodes[node] = max(nodes.get(node, 0), size)
        counted = llm.stats.to_dict()
    return {
        "ids": [ids[number] for number in range(NUM_PROMPTS)],
        "logprobs": [logprobs[number] for number in range(NUM_PROMPTS)],
        "most_bytes": most,
        "overwritten_bytes": overwritten,
        "read_bytes": {name: size for name, size in counted.items() if name.startswith("cxl_")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate, and say where keys and values lay.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--on-host", action="store_true", help="with DRAM alone")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"isa": hg.info().cpu["isa"], "import_seconds": IMPORT_SECONDS}
    found["tiers"] = {tier["node"]: tier["tier"] for tier in hg.info().tiers}
    with tempfile.TemporaryDirectory() as folder:
        model = without_tokenizer(MODEL, Path(folder))
        dram = planned_dram(model)
        found["planned"] = dram
        if arguments.on_host:
            found["alone"] = generate(model, dram="256MiB", cxl=0)
        else:
            too_little = dram["total"] - dram["values"] // 2
            found["values"] = generate(model, dram=too_little)
            found["overwritten"] = generate(model, overwrite_slow_node, dram=too_little)
            less = dram["total"] - dram["values"] - dram["keys"] // 2
            found["keys"] = generate(model, dram=less)
    arguments.results.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
