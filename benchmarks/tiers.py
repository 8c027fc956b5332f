# SPDX-License-Identifier: Apache-2.0
"""Tiers of host memory: what they cost, and what it brings to place keys and values by their use.

Scan of keys in tier blocks against a plain buffer, cost of a token that leaves the device, rate of
moves between memory nodes (where there are two), keys that come back from a disk layer by layer
against the disk's own rate (HYBRIDGEN_DISK_FOLDER says where; else the folder for temporary
files), memory of short requests under a long max_model_len. Then decode steps with semantic and
with interleaved placement. Slower memory that this machine does not have is *emulated*: a channel
of a given rate that all host jobs share, so that a task which reads n bytes of the cxl tier takes
at least n / rate (TestSwitches).

    python benchmarks/tiers.py [--quick] [--json results/tiers.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks/figures")]

import hybridgen as hg  # noqa: E402
from emulated_cxl import emulated_cxl  # noqa: E402
from report import Report  # noqa: E402

EXECUTABLE = ROOT / "build" / "benchmarks" / "cpp" / "cpu_benchmarks"
SCAN_BAR = 0.98
DISK_BAR = 0.8
SHORT_REQUESTS_BAR = 1.3
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}
ROW_BYTES = 8 * 8 * 64 * 4
"""Bytes of a token's keys, and of its values, over all layers and heads."""


def cpp_benchmarks(name: str) -> list[dict[str, Any]]:
    """Return what the C++ benchmarks of that name say."""
    run = subprocess.run(
        [str(EXECUTABLE), f"--benchmark_filter={name}", "--benchmark_format=json"],
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[dict[str, Any]] = json.loads(run.stdout)["benchmarks"]
    return found


def measure_memory(report: Report) -> float:
    """Report what tier memory costs; returns the machine's read rate in bytes per second."""
    for figure in cpp_benchmarks("^tiers/"):
        name = figure["name"].split("/iterations")[0].removesuffix("/manual_time")
        if figure.get("error_occurred"):
            print(f"{name}: not measured, {figure['error_message']}")
        elif "ratio" in figure:
            report.add(f"{name}, to a plain buffer", figure["ratio"], "x", SCAN_BAR)
        elif "us" in figure:
            report.add(name, figure["us"], "us")
        else:
            report.add(name, figure["GB/s"], "GB/s")
            if "switch_us" in figure:
                report.add(f"{name}: switch of a block", figure["switch_us"], "us")
    (read,) = cpp_benchmarks("^logits/float32/d64/g1/manual_time$")
    report.add("read rate of this machine", read["ceiling_GBps"], "GB/s")
    return float(read["ceiling_GBps"]) * 1e9


def measure_disk(report: Report) -> None:
    """Report the rate at which keys come from the disk, as a share of the disk's own."""
    (disk,) = cpp_benchmarks("^disk/")
    if disk.get("error_occurred"):
        print(f"disk/read_keys: not measured, {disk['error_message']}")
        return
    report.add("disk alone, same blocks and calls at a time", disk["device_GBps"], "GB/s")
    report.add("keys read from the disk, a layer ahead", disk["GB/s"], "GB/s")
    report.add(
        "keys read from the disk: share of the disk's rate", disk["share"], "share", DISK_BAR
    )


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def peak_resident() -> Iterator[list[int]]:
    """Fill a list with the largest resident memory seen while in the block."""
    found = [resident_bytes()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            found[0] = max(found[0], resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def model_folder(folder: Path) -> Path:
    """Write the shape as a checkpoint without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def prompt_of(tokens: int, seed: int) -> list[int]:
    """Return token ids without a pattern."""
    return [(seed * 7919 + 31 * i + i * i % 97) % 1000 for i in range(tokens)]


def load(folder: Path, **options: Any) -> hg.LLM:
    """Load the shape with dummy weights."""
    return hg.LLM(str(folder), load_format="dummy", tokenizer=None, **options)


def measure_short_requests(report: Report, folder: Path) -> None:
    """Report the memory of short requests over what their offloaded tokens need."""
    tokens, count = 1000, 64
    sampling = hg.SamplingParams(max_tokens=2, temperature=0.0)
    with load(folder, kv=hg.KVConfig(device_tokens=16), max_model_len=131072) as llm:
        peaks = []
        for requests in (1, count):
            prompts = [prompt_of(tokens, seed) for seed in range(requests)]
            with peak_resident() as peak:
                llm.generate(prompts, sampling)
            peaks.append(peak[0])
    needed = (count - 1) * (tokens - 16) * 2 * ROW_BYTES
    report.add(
        f"{count} requests of {tokens} tokens under max_model_len 131072, to their tokens",
        (peaks[1] - peaks[0]) / needed,
        "x",
        SHORT_REQUESTS_BAR,
        at_most=True,
    )


def step_seconds(folder: Path, tokens: int, rate: float, placement: str) -> tuple[float, Any]:
    """Return a decode step's seconds and the run's statistics; keys fit DRAM, values do not."""
    method = hg.methods.HybridGen(k=128, strategy="post")
    kv: dict[str, Any] = {"device_tokens": 64}
    plan = hg.plan(
        str(folder),
        prompt_tokens=tokens,
        new_tokens=24,
        method=method,
        kv=hg.KVConfig(**kv),
        load_format="dummy",
    )
    dram = plan.to_dict()["tiers"]["dram"]
    size = dram["staging"] + int(1.25 * tokens * ROW_BYTES) + 2**20
    with (
        emulated_cxl(rate),
        load(
            folder,
            method=method,
            kv=hg.KVConfig(**kv, dram=size, cxl=8 * tokens * ROW_BYTES, placement=placement),
        ) as llm,
    ):
        best = float("inf")
        for _ in range(2):
            llm.generate([prompt_of(tokens, 1)], hg.SamplingParams(max_tokens=24, temperature=0.0))
            best = min(best, llm.stats.decode_s / llm.stats.decode_steps)
        return best, llm.stats.to_dict()


def measure_placement(report: Report, folder: Path, read_rate: float, quick: bool) -> None:
    """Report interleaved over semantic placement by rate and length, beside the closed form."""
    for tokens in (2048,) if quick else (2048, 8192):
        for part in (1 / 8, 1) if quick else (1 / 8, 1 / 4, 1 / 2, 1):
            rate = part * read_rate
            semantic, stats = step_seconds(folder, tokens, rate, "semantic")
            interleaved, _ = step_seconds(folder, tokens, rate, "interleave")
            label = f"{tokens} tokens, cxl at {part:g} of the read rate (emulated)"
            report.add(f"interleaved over semantic step, {label}", interleaved / semantic, "x")
            # Closed form: half of the keys then come through the slower channel, beside the rest.
            keys = (tokens - 64) * ROW_BYTES
            longer = max(0.0, 0.5 * keys / rate - keys / read_rate)
            report.add(
                f"interleaved over semantic step, {label}, closed form (analytic)",
                (semantic + longer) / semantic,
                "x",
            )
            report.add(
                f"keys read of cxl memory, semantic, {label}",
                stats["cxl_key_bytes_read"] / max(1, stats["host_key_bytes_read"]),
                "share",
            )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rates and lengths")
    parser.add_argument("--json", help="where the results go; - is standard output")
    arguments = parser.parse_args()
    report = Report()
    folder = model_folder(Path(f"/tmp/hybridgen_tiers_{time.time_ns()}"))
    try:
        read_rate = measure_memory(report)
        measure_disk(report)
        measure_short_requests(report, folder)
        measure_placement(report, folder, read_rate, arguments.quick)
    finally:
        (folder / "config.json").unlink()
        folder.rmdir()
    report.write(arguments.json)


if __name__ == "__main__":
    main()
