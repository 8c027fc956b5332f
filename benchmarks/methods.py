# SPDX-License-Identifier: Apache-2.0
"""Step time and bytes of all methods on one model shape, and the cost of their selection state.

One small Llama-like shape with random weights (few layers and heads keep the prefill of 32K tokens
short), one process, the CPU device. Times are medians over decode steps. Methods that keep a fixed
number of tokens keep a fifth of the prompt; `hybridgen` keeps a tenth on the device and attends to
K = 1 % of the others. *Bound by* holds the bytes that a step reads (keys, values, weights) against
the rate at which this machine reads memory.

    python benchmarks/methods.py [--quick] [--json results/methods.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

import hybridgen as hg  # noqa: E402
from hybridgen import _core  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from hybridgen.config import MethodOptions  # noqa: E402
from report import Report  # noqa: E402

LAYERS, HIDDEN, FFN, VOCABULARY = 4, 256, 768, 1024
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 65536,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
ELEMENT_BYTES = 4
TOKEN_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * ELEMENT_BYTES
PROJECTIONS = (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * FFN
WEIGHT_BYTES = (LAYERS * PROJECTIONS + VOCABULARY) * HIDDEN * ELEMENT_BYTES
BLOCK, BLOCKS = 32, 8
"""Of hgca's window."""
STATE_BAR = 10.0
"""Percent of the stage it rides on that a selection state may cost."""
STATE_STEPS = 512
"""Of the selection state's measurement: shared machines change their speed within a second."""
WARMUP = 3
"""Steps that are not counted."""
STAGE, STATE = "merge, output, FFN", "selection state"
"""Spans of the trace; the second lies within the first."""
SPECULATIVE = "hybridgen speculative, post"


@dataclass(frozen=True)
class Case:
    """A method with its options for one prompt, and the tokens that it keeps on the device."""

    name: str
    options: dict[str, Any]
    resident: float = 1


@dataclass
class Figures:
    """What one decode step of a case costs."""

    step_s: float
    read_bytes: float
    link_bytes: float
    stored_bytes: float
    wait_share: float
    prefill_s: float

    def bound(self, rate: float) -> str:
        """Say what the step is limited by."""
        floor = self.read_bytes / rate / self.step_s
        text = f"{self.read_bytes / 1e6:.1f} MB at the read rate: {floor:.0%} of the step; "
        if floor >= 0.5:
            return text + "memory"
        if self.wait_share >= 0.3:
            return text + f"the host stage, {self.wait_share:.0%} waited for"
        return text + "work per step that no byte explains"


def hybrid(tokens: int, query: str, strategy: str = "post", **selector: str) -> dict[str, Any]:
    """Return hybridgen's options for a prompt of ``tokens``, a tenth of it on the device."""
    return {
        "query": query,
        "kv": hg.KVConfig(device_tokens=tokens // 10),
        "scheduler": hg.SchedulerConfig(k=0.01, strategy=strategy),
        **selector,
    }


def named(options: MethodOptions) -> dict[str, Any]:
    """Return what asks for a method by its options."""
    return {"method": options.method, "method_config": options}


def cases(tokens: int) -> list[Case]:
    """Return every method, and hybridgen in its forms, for a prompt of ``tokens``."""
    methods = hg.methods
    kept = tokens // 5
    found = [
        Case("full", named(methods.Full()), tokens),
        Case("flexgen", named(methods.FlexGen())),
        Case("moe_lightning", named(methods.MoELightning()), 0),
        Case("streaming_llm", named(methods.StreamingLLM(sinks=4, window=kept - 4)), kept),
        Case("h2o", named(methods.H2O(heavy=kept // 2, recent=kept - kept // 2)), kept),
        Case("keyformer", named(methods.Keyformer(kv_cache=kept)), kept),
        Case("infinigen", named(methods.InfiniGen())),
        Case("hgca", named(methods.HGCA(block=BLOCK, blocks=BLOCKS)), BLOCK * BLOCKS),
    ]
    found += [
        Case(f"hybridgen {query}, post", hybrid(tokens, query), tokens // 10)
        for query in ("exact", "speculative", "rescore")
    ]
    found += [
        Case(
            f"hybridgen speculative, pre {name}",
            hybrid(tokens, "speculative", "pre", pre_selector=name),
            tokens // 10,
        )
        for name in ("sinks_recent", "block_digests", "partial_keys")
    ]
    return found


def steps_of(llm: hg.LLM, tokens: int, steps: int) -> Iterator[float]:
    """Yield the seconds of the prefill, then those of each decode step."""
    ids = [(i * 7919 + 11) % (VOCABULARY - 3) + 3 for i in range(tokens)]
    stream = llm.stream(ids, hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True))
    while True:
        begin = time.perf_counter()
        if next(stream, None) is None:
            return
        yield time.perf_counter() - begin


def measure(base: hg.LLM, case: Case, tokens: int, steps: int) -> Figures:
    """Return what a step of one case costs."""
    with hg.LLM(base, **case.options) as llm:
        prefill, *times = steps_of(llm, tokens, steps)
        stats = llm.stats
        count = stats.decode_steps
        reads = (stats.host_key_bytes_read + stats.host_value_bytes_read) / count
        # What the host copies for the device is read twice: from the cache, then from staging.
        return Figures(
            step_s=statistics.median(times[WARMUP:]),
            read_bytes=reads + stats.h2d_bytes / count + case.resident * TOKEN_BYTES + WEIGHT_BYTES,
            link_bytes=(stats.h2d_bytes + stats.d2h_bytes) / count,
            stored_bytes=TOKEN_BYTES if case.resident < tokens else 0,
            wait_share=stats.t_wait_s / stats.decode_s,
            prefill_s=prefill,
        )


def compare(report: Report, base: hg.LLM, tokens: int, steps: int) -> list[str]:
    """Measure all cases at one length; returns the table's lines."""
    rate = _core.read_bandwidth(hg.info().cpu["usable"])
    report.add(f"{tokens} tokens: read rate", rate / 1e9, "GB/s")
    figures: dict[str, Figures] = {}
    for case in cases(tokens):
        try:
            figures[case.name] = found = measure(base, case, tokens, steps)
        except hg.HybridGenError as error:
            print(f"{case.name} at {tokens} tokens failed: {error}", file=sys.stderr)
            continue
        label = f"{tokens} tokens: {case.name}"
        report.add(f"{label} step", found.step_s * 1e3, "ms/step")
        report.add(f"{label} / full", found.step_s / figures["full"].step_s, "x of full")
        if "flexgen" in figures:
            ratio = found.step_s / figures["flexgen"].step_s
            report.add(f"{label} / flexgen", ratio, "x of flexgen")
        report.add(f"{label} over the link", found.link_bytes / 1024, "KiB/step")
        report.add(f"{label} reads", found.read_bytes / 1e6, "MB/step")
        report.add(f"{label} prefill", found.prefill_s, "s once")
    lines = [
        "",
        f"{tokens} tokens",
        f"{'method':<42} {'ms/step':>8} {'/full':>6} {'/flexgen':>8} {'KiB link':>9}  bound by",
    ]
    for name, found in figures.items():
        lines.append(
            f"{name:<42} {found.step_s * 1e3:>8.2f} "
            f"{found.step_s / figures['full'].step_s:>6.2f} "
            f"{found.step_s / figures['flexgen'].step_s:>8.2f} {found.link_bytes / 1024:>9.1f}  "
            f"{found.bound(rate)}"
        )
    for name, found in figures.items():
        if name != SPECULATIVE and SPECULATIVE in figures:
            ratio = found.step_s / figures[SPECULATIVE].step_s
            report.add(f"{tokens} tokens: hybridgen is faster than {name} by", ratio, "x")
    return lines


def state_share(base: hg.LLM, case: Case, tokens: int, steps: int) -> tuple[float, float, float]:
    """Return the median times of the stage that ends a layer, without its state, and of that.

    The stage merges, feeds the weights back to the selection state, and computes output projection
    and FFN; it waits for nobody, so that the host's part and its noise play no role. The third
    number is the median of the one's share of the other, layer by layer and step by step: both are
    then of the same moment, while the machine's speed changes within seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        with hg.LLM(base, **case.options) as llm, llm.tracing(file):
            for _ in steps_of(llm, tokens, steps):
                pass
        spans = json.loads(file.read_text())["traceEvents"]
    times: dict[str, dict[tuple[int, int], float]] = {STAGE: {}, STATE: {}}
    for span in spans:
        if span["name"] in times and span["args"]["step"] >= WARMUP:
            place = (span["args"]["step"], span["args"]["layer"])
            times[span["name"]][place] = span["dur"] * 1e-6
    states = times[STATE]
    rest = {place: times[STAGE][place] - state for place, state in states.items()}
    return (
        statistics.median(rest.values()),
        statistics.median(states.values()),
        statistics.median(state / rest[place] for place, state in states.items()),
    )


def selection_state(report: Report, base: hg.LLM, tokens: int, steps: int) -> None:
    """Add what keeping the selection state costs the stage it rides on."""
    methods = hg.methods
    kept = tokens // 5
    cases = [
        Case("h2o", named(methods.H2O(heavy=kept // 2, recent=kept - kept // 2))),
        Case("keyformer without noise", named(methods.Keyformer(kv_cache=kept, noise=False))),
        Case("keyformer", named(methods.Keyformer(kv_cache=kept))),
        Case("hybridgen exact, h2o", hybrid(tokens, "exact", selector="h2o")),
        Case("hybridgen exact, keyformer", hybrid(tokens, "exact", selector="keyformer")),
        Case("hgca", named(methods.HGCA(block=BLOCK, blocks=BLOCKS))),
    ]
    for case in cases:
        try:
            stage, state, share = state_share(base, case, tokens, steps)
        except hg.HybridGenError as error:
            print(f"{case.name} at {tokens} tokens failed: {error}", file=sys.stderr)
            continue
        label = f"{tokens} tokens: selection state of {case.name}"
        report.add(label, state * 1e6, "us/layer")
        report.add(f"{label}, rest of its stage", stage * 1e6, "us/layer")
        report.add(f"{label}, share", 100 * share, "%", STATE_BAR, at_most=True)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="2K and 8K tokens, fewer steps")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument("--tokens", type=int, nargs="+", metavar="N", help="prompt lengths")
    args = parser.parse_args()
    lengths = args.tokens or ([2048, 8192] if args.quick else [2048, 8192, 32768])
    # A multiple of hgca's block, so that whole blocks leave while steps are measured.
    steps = 32 if args.quick else 64
    load, cores = os.getloadavg()[0], hg.info().cpu["usable"]
    if load > 0.5 * cores:
        print(
            f"load is {load:.1f} on {cores} cores: host and device stages wait for other programs, "
            "and figures of methods with a host stage mean little",
            file=sys.stderr,
        )
    report = Report()
    report.machine["load_at_start"] = round(load, 2)
    tables: list[str] = []
    with hg.LLM(SHAPE, load_format="dummy", dtype="float32", method="full") as base:
        for tokens in lengths:
            tables += compare(report, base, tokens, steps)
        # The longest prompt but one: a state that grows with the tokens shows there.
        selection_state(report, base, lengths[-2:][0], STATE_STEPS)
    print("\n".join(tables))
    report.write(args.json)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
