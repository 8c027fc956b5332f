# SPDX-License-Identifier: Apache-2.0
"""The CPU's part of a step against the memory limit, and whole steps against other libraries.

First the C++ benchmarks: kernels and layers by turns with a plain read of memory. Then prefill and
decode steps of SmolLM2 (real weights) and of a 1B shape by turns with other libraries (`peers.py`)
on as many threads, and with the floors: reading weights and KV once, FLOPs at the rate of a matrix
product. Every bar is in `BARS` and `STEP_BARS`; a figure without one is only reported.

    python benchmarks/cpu.py [--quick] [--long] [--json results/cpu.json]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from decode import Case, prompt, smollm2  # noqa: E402
from hybridgen import _core  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from peers import (  # noqa: E402
    CONFIGS,
    PEERS,
    SETTINGS,
    SHAPE_1B,
    SMOLLM2,
    VOCABULARY,
    Runner,
    open_hybridgen,
)
from report import Report  # noqa: E402

EXECUTABLE = ROOT / "build" / "benchmarks" / "cpp" / "cpu_benchmarks"
TORCH_EXECUTABLE = "torch_benchmarks"
"""Beside the other; built with the engine."""

BARS: dict[tuple[str, str], float] = {
    ("linear/int8/*/m1", "share"): 0.85,
    ("linear/int4/*/m1", "share"): 0.75,
    ("linear/*/2048x*/m1", "share"): 0.9,
    ("linear/*/8192x*/m1", "share"): 0.9,
    ("linear/*/m1", "share"): 0.85,
    **{
        (f"logits/{dtype}/d{dim}/g{group}", "share"): 0.93 if group == 1 else 0.85
        for dtype in ("float16", "bfloat16")
        for dim in (64, 128)
        for group in (1, 2, 3, 4, 8)
    },
    ("shadow/int8/to_float16/g4", "ratio"): 1.7,
    ("shadow/int4/to_float16/g4", "ratio"): 3.0,
    ("selection/131072/k128/warm", "ratio"): 40.0,
    ("selection/131072/k6553/warm", "ratio"): 15.0,
    ("stage/32768_tokens/8_kv_heads/1_percent", "ratio"): 0.8,
    ("stage/131072_tokens/*", "ratio"): 0.8,
    ("stage_to_torch/*", "ratio"): 3.0,
    ("hand_off/normal/gap*us", "median_us"): 10.0,
}
"""By pattern of a C++ benchmark's name and counter, the first that fits; times are upper bounds,
others are lower.

`ratio` of a stage is the time of its scan alone over that of the whole stage; of `stage_to_torch`
the time of LibTorch's matmul, topk and index_select over it."""

COUNTERS = {"share": "share", "ratio": "x", "median_us": "us"}
"""Counters that are reported, with their units."""


@dataclass(frozen=True)
class Comparison:
    """Prefill and steps of one setting against those of other libraries, and against floors."""

    model: str
    dtype: str
    setting: str
    tokens: int
    decode_bars: dict[str, float] = field(default_factory=dict)
    prefill_bars: dict[str, float] = field(default_factory=dict)
    decode_floor: float | None = None
    """Bar of the floor's share: the time to read weights and KV once, over a step's."""
    prefill_floor: float | None = None
    """The same of the prefill: the time that its FLOPs take in a matrix product."""
    long: bool = False
    """Measured with --long only."""

    @property
    def label(self) -> str:
        """Return what the names of its figures begin with."""
        return f"{self.model} {self.dtype}, {self.tokens} tokens, {self.setting}"


FULL_ROWS = "hybridgen, full rows"
QUANTISED_ROWS = "hybridgen, rows in 8 and 4 bits"

STEP_BARS = (
    Comparison(
        SMOLLM2,
        "bfloat16",
        "full",
        6000,
        prefill_bars={"transformers": 1.5, "OpenVINO": 1.1},
        decode_floor=0.75,
        prefill_floor=0.4,
    ),
    Comparison(
        SMOLLM2, "bfloat16", "full", 2048, prefill_bars={"transformers": 1.5, "OpenVINO": 1.1}
    ),
    Comparison(SHAPE_1B, "bfloat16", "full", 16, prefill_bars={"OpenVINO": 1.0}),
    Comparison(SHAPE_1B, "bfloat16", "full", 2048, prefill_floor=0.6),
    Comparison(SHAPE_1B, "bfloat16", "full", 6000, prefill_floor=0.6, long=True),
    Comparison(
        SMOLLM2, "bfloat16", "hybridgen", 6000, decode_bars={"transformers": 5.0, "llama.cpp": 1.2}
    ),
    Comparison(SMOLLM2, "bfloat16", QUANTISED_ROWS, 6000, decode_bars={FULL_ROWS: 1.0}),
    Comparison(SMOLLM2, "float32", "hybridgen", 6000, decode_bars={"transformers": 2.5}),
    Comparison(SMOLLM2, "float32", "full", 1000, decode_bars={"CTranslate2": 1.0}),
)


BATCH = "SmolLM2 bfloat16, 8 x 1000 tokens, full"
BESIDE = "SmolLM2 float32, 128 tokens, full, beside two busy processes"


def bar_of(name: str, counter: str) -> float | None:
    """Return the bar of a C++ benchmark's counter, if it has one."""
    for (pattern, of), bar in BARS.items():
        if of == counter and fnmatchcase(name, pattern):
            return bar
    return None


def run_kernels(report: Report, executable: Path, match: str, *, quick: bool) -> None:
    """Run the C++ benchmarks and add their counters; with `quick` only those with a bar."""
    if not executable.exists():
        print(f"# C++ benchmarks not measured: build {executable.name} (docs/development.md)")
        return
    listed = subprocess.run(
        [executable, "--benchmark_list_tests"], capture_output=True, text=True, check=True
    ).stdout.split()
    # Google Benchmark appends how it takes the time.
    plain = {name: re.sub(r"(/iterations:\d+)?/manual_time$", "", name) for name in listed}
    chosen = [
        name
        for name in listed
        if match in name and (not quick or any(bar_of(plain[name], c) for c in COUNTERS))
    ]
    for name in chosen:
        command = [str(executable), f"--benchmark_filter=^{name}$", "--benchmark_format=json"]
        command.append(f"--benchmark_min_time={0.2 if quick else 0.5}")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for result in json.loads(done.stdout)["benchmarks"]:
            for counter, unit in COUNTERS.items():
                if counter in result:
                    bar = bar_of(plain[name], counter)
                    report.add(f"{plain[name]}: {counter}", result[counter], unit, bar)


@dataclass(frozen=True)
class Shape:
    """What the floors depend on."""

    linear: int
    """Weights of the layers' products."""
    head: int
    """Weights of the product that gives logits, for the last token alone."""
    kv_per_token: int
    """Numbers that are stored per token."""
    flops_per_pair: int
    """Of attention, per query and key."""

    @classmethod
    def of(cls, model: str) -> Shape:
        """Read it from the model's configuration."""
        values = CONFIGS[model]
        if values is None:
            values = json.loads((smollm2() / "config.json").read_text())
        hidden, layers = values["hidden_size"], values["num_hidden_layers"]
        heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
        head_dim = values.get("head_dim") or hidden // heads
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        return cls(
            linear=layers * (attention + 3 * hidden * values["intermediate_size"]),
            head=values["vocab_size"] * hidden,
            kv_per_token=2 * layers * kv_heads * head_dim,
            flops_per_pair=4 * layers * heads * head_dim,
        )

    def prefill_flops(self, tokens: int) -> float:
        """Return the FLOPs of a causal prefill."""
        pairs = tokens * (tokens + 1) / 2
        return 2.0 * (self.linear * tokens + self.head) + self.flops_per_pair * pairs

    def step_bytes(self, tokens: int, element: int, requests: int = 1) -> float:
        """Return what a step reads: the weights once, and each request's keys and values."""
        return float(element * (self.linear + self.head + requests * tokens * self.kv_per_token))


def product_rate() -> float:
    """Return the FLOP/s of LibTorch's matrix product, in the faster of bfloat16 and float32."""
    rows, columns = 1024, 2048
    best = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.randn(rows, columns).to(dtype), torch.randn(columns, columns).to(dtype)
        for _ in range(3):
            begin = time.perf_counter()
            left @ right
            best = max(best, 2.0 * rows * columns**2 / (time.perf_counter() - begin))
    return best


def opened(case: Comparison, stack: ExitStack) -> dict[str, Runner]:
    """Open ours and the peers that are there; the others are named."""
    runners = {"ours": stack.enter_context(open_hybridgen(case.model, case.dtype, case.setting))}
    for peer in dict.fromkeys([*case.decode_bars, *case.prefill_bars]):
        if peer in SETTINGS:
            runners[peer] = stack.enter_context(open_hybridgen(case.model, case.dtype, peer))
            continue
        module, open_peer = PEERS[peer]
        if importlib.util.find_spec(module) is None:
            print(
                f"# {case.label} / {peer}: not measured: install {module} "
                "(scripts/requirements-bench.txt)"
            )
            continue
        runners[peer] = stack.enter_context(open_peer(case.model, case.dtype))
    return runners


def compare(report: Report, case: Comparison, rounds: int, steps: int) -> None:
    """Measure one setting, its peers and its floors by turns."""
    label, tokens = case.label, case.tokens
    ids = prompt(Case("", None, case.dtype, tokens), VOCABULARY)
    rates: list[tuple[float, float]] = []
    with ExitStack() as stack:
        runners = opened(case, stack)
        for run in runners.values():
            run(ids[:64], 2)  # warm-up
        prefills: dict[str, list[float]] = {name: [] for name in runners}
        decodes: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            rates.append((_core.read_bandwidth(hg.info().cpu["usable"]), product_rate()))
            for name, run in runners.items():
                prefill, times = run(ids, steps)
                prefills[name].append(prefill)
                decodes[name].append(statistics.median(times))
    prefill_of = {name: statistics.median(values) for name, values in prefills.items()}
    decode_of = {name: statistics.median(values) for name, values in decodes.items()}
    for name in runners:
        report.add(f"{label}: {name} decode", 1 / decode_of[name], "tokens/s")
        report.add(f"{label}: {name} prefill", tokens / prefill_of[name], "tokens/s")
    for bars, of, what in (
        (case.decode_bars, decode_of, "decode"),
        (case.prefill_bars, prefill_of, "prefill"),
    ):
        for name, bar in bars.items():
            if name in runners:
                report.add(f"{label}: {what} / {name}", of[name] / of["ours"], "x", bar)
    shape = Shape.of(case.model)
    read, product = (statistics.median(values) for values in zip(*rates, strict=True))
    if case.decode_floor is not None:
        floor = shape.step_bytes(tokens, 2 if case.dtype == "bfloat16" else 4) / read
        report.add(f"{label}: decode floor", floor / decode_of["ours"], "share", case.decode_floor)
    if case.prefill_floor is not None:
        floor = shape.prefill_flops(tokens) / product
        share = floor / prefill_of["ours"]
        report.add(f"{label}: prefill floor", share, "share", case.prefill_floor)
    gc.collect()


def batch(report: Report, steps: int) -> None:
    """Measure decode of eight requests against their floor and against a single request."""
    label, tokens, requests = BATCH, 1000, 8
    ids = prompt(Case("", None, "bfloat16", tokens), VOCABULARY)
    read = _core.read_bandwidth(hg.info().cpu["usable"])
    rates = {}
    with hg.LLM(smollm2(), dtype="bfloat16", method="full", max_num_seqs=requests) as llm:
        for count in (1, requests):
            seconds = llm.stats.decode_s
            params = hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True)
            llm.generate_ids([ids] * count, params)
            rates[count] = count * steps / (llm.stats.decode_s - seconds)
    floor = Shape.of(SMOLLM2).step_bytes(tokens, 2, requests) / read
    report.add(f"{label}: decode", rates[requests], "tokens/s")
    report.add(f"{label}: decode floor", floor * rates[requests] / requests, "share", 0.6)
    report.add(f"{label}: decode / one request", rates[requests] / rates[1], "x")


@contextmanager
def two_busy_processes() -> Iterator[None]:
    """Keep two cores busy meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        time.sleep(0.2)
        yield


def beside_others(report: Report, rounds: int, steps: int) -> None:
    """Measure by how much decode falls beside two busy processes: ours and transformers'."""
    label = BESIDE
    ids = prompt(Case("", None, "float32", 128), VOCABULARY)
    slower: dict[str, list[float]] = {"ours": [], "transformers": []}
    with ExitStack() as stack:
        runners = {
            "ours": stack.enter_context(open_hybridgen(SMOLLM2, "float32", "full")),
            "transformers": stack.enter_context(PEERS["transformers"][1](SMOLLM2, "float32")),
        }
        for run in runners.values():
            run(ids, 2)  # warm-up
        for _ in range(rounds):
            alone = {name: statistics.fmean(run(ids, steps)[1]) for name, run in runners.items()}
            with two_busy_processes():
                for name, run in runners.items():
                    slower[name].append(statistics.fmean(run(ids, steps)[1]) / alone[name])
    times = {name: statistics.median(values) for name, values in slower.items()}
    for name, value in times.items():
        report.add(f"{label}: {name} slower", value, "x")
    ratio = times["transformers"] / times["ours"]
    report.add(f"{label}: transformers' fall / ours", ratio, "x", 1.0)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="figures with a bar, one short round")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument("--executable", type=Path, default=EXECUTABLE, help="of the C++ benchmarks")
    parser.add_argument("--only", choices=("kernels", "steps"), help="one half of it")
    parser.add_argument("--long", action="store_true", help="also the cases that take minutes")
    parser.add_argument("--match", default="", metavar="TEXT", help="figures whose name has this")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(hg.info().cpu["usable"])
    report = Report()
    if args.only != "steps":
        for executable in (args.executable, args.executable.with_name(TORCH_EXECUTABLE)):
            run_kernels(report, executable, args.match, quick=args.quick)
    if args.only != "kernels":
        rounds, steps = (1, 12) if args.quick else (3, 32)
        for case in STEP_BARS:
            if args.match not in case.label or (case.long and not args.long):
                continue
            compare(report, case, rounds, steps)
        if args.match in BATCH:
            batch(report, steps)
        if args.match in BESIDE:
            beside_others(report, rounds, steps)
    report.write(args.json)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
