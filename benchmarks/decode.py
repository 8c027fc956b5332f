# SPDX-License-Identifier: Apache-2.0
"""Decode and prefill against transformers, and against the time of reading the weights once.

Everything is measured in this process with the same weights' shape, dtype and threads: the memory's
read rate first, then transformers and hybridgen in turn. A step cannot be faster than reading all
weights once (the ceiling). Figures are medians; ratios above 1 mean that hybridgen is faster.

    python benchmarks/decode.py [--quick] [--json results/decode.json]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from hybridgen import _core  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from report import Report  # noqa: E402

OPT_125M = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
    "do_layer_norm_before": True,
}
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """One model at one context length, with the bars it is held against."""

    name: str
    config: dict[str, Any] | None  # None: SmolLM2 with its real weights
    dtype: str
    tokens: int
    decode_bar: float | None = None
    prefill_bar: float | None = None
    hybrid: bool = False


CASES = (
    Case("SmolLM2 fp32", None, "float32", 1000, decode_bar=2.0, prefill_bar=1.0, hybrid=True),
    Case("SmolLM2 bf16", None, "bfloat16", 1000, decode_bar=2.0, prefill_bar=1.0, hybrid=True),
    Case("OPT-125M shape fp32", OPT_125M, "float32", 1000, decode_bar=1.5),
    Case("Llama-3.2-1B shape bf16", LLAMA_1B, "bfloat16", 256, decode_bar=1.1),
)


def load_transformers(case: Case) -> Any:
    """Return the transformers model of a case, random weights for shapes."""
    dtype = getattr(torch, case.dtype)
    if case.config is None:
        return transformers.AutoModelForCausalLM.from_pretrained(smollm2(), dtype=dtype).eval()
    config_class = getattr(
        transformers, case.config["architectures"][0].replace("ForCausalLM", "Config")
    )
    fields = {k: v for k, v in case.config.items() if k not in ("architectures", "model_type")}
    theta = fields.pop("rope_theta", None)
    if theta is not None:
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    config = config_class(**fields)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def smollm2() -> Path:
    """Return SmolLM2's folder, fetched on first use."""
    from get_smollm2 import ensure_smollm2

    return Path(ensure_smollm2())


@torch.no_grad()
def time_transformers(model: Any, ids: list[int], steps: int) -> tuple[float, float]:
    """Return seconds of the prefill and the median of a decode step, greedy."""
    begin = time.perf_counter()
    out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    prefill = time.perf_counter() - begin
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - begin)
    return prefill, statistics.median(times)


def time_hybridgen(llm: hg.LLM, ids: list[int], steps: int) -> tuple[float, float]:
    """Return the same two figures for hybridgen, through its public API."""
    params = hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True)
    begin = time.perf_counter()
    times = []
    for _ in llm.stream(ids, params):
        now = time.perf_counter()
        times.append(now - begin)
        begin = now
    return times[0], statistics.median(times[1:])


def load_hybridgen(case: Case, method: str, **options: Any) -> hg.LLM:
    """Return the engine of a case."""
    if case.config is None:
        return hg.LLM(smollm2(), dtype=case.dtype, method=method, **options)
    return hg.LLM(case.config, load_format="dummy", dtype=case.dtype, method=method, **options)


def prompt(case: Case, vocabulary: int) -> list[int]:
    """Return token ids that exercise the embedding: no repetition, in the vocabulary."""
    return [(i * 7919 + 11) % (vocabulary - 3) + 3 for i in range(case.tokens)]


def rounds(function: Callable[[], tuple[float, float]], count: int) -> tuple[float, float]:
    """Return the medians of several rounds of two figures."""
    pairs = [function() for _ in range(count)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def measure_transformers(
    case: Case, steps: int, count: int
) -> tuple[list[int], int, tuple[float, float]]:
    """Return the prompt, the bytes of the weights and transformers' two figures."""
    model = load_transformers(case)
    ids = prompt(case, model.config.vocab_size)
    time_transformers(model, ids[:64], 2)  # warm-up
    theirs = rounds(lambda: time_transformers(model, ids, steps), count)
    return ids, sum(p.numel() * p.element_size() for p in model.parameters()), theirs


def measure(case: Case, report: Report, steps: int, count: int) -> None:
    """Measure one case and add its figures."""
    threads = hg.info().cpu["usable"]
    rate = _core.read_bandwidth(threads)
    ids, weight_bytes, theirs = measure_transformers(case, steps, count)
    gc.collect()
    with load_hybridgen(case, "full") as llm:
        time_hybridgen(llm, ids[:64], 2)
        ours = rounds(lambda: time_hybridgen(llm, ids, steps), count)
    floor = weight_bytes / rate
    label = f"{case.name}, {case.tokens} tokens"
    report.add(f"{label}: read rate, {threads} threads", rate / 1e9, "GB/s")
    report.add(f"{label}: weights / read rate", floor * 1e3, "ms/step")
    report.add(f"{label}: transformers decode", 1 / theirs[1], "tokens/s")
    report.add(f"{label}: full decode", 1 / ours[1], "tokens/s")
    report.add(f"{label}: full decode / transformers", theirs[1] / ours[1], "x", case.decode_bar)
    report.add(f"{label}: full decode, share of ceiling", floor / ours[1], "share")
    report.add(f"{label}: full prefill / transformers", theirs[0] / ours[0], "x", case.prefill_bar)
    if case.hybrid:
        kv = hg.KVConfig(device_tokens=case.tokens // 10)
        scheduler = hg.SchedulerConfig(k=0.05)
        options = {"kv": kv, "scheduler": scheduler, "query": "speculative"}
        with load_hybridgen(case, "hybridgen", **options) as llm:
            time_hybridgen(llm, ids[:64], 2)
            hybrid = rounds(lambda: time_hybridgen(llm, ids, steps), count)
            stats = llm.stats
        name = f"{label}: hybrid (10 % on device, K 5 %, speculative)"
        report.add(f"{name} decode", 1 / hybrid[1], "tokens/s")
        report.add(f"{name} / transformers", theirs[1] / hybrid[1], "x")
        report.add(f"{name} hidden share of host stage", stats.hidden_share, "share")
        link = (stats.h2d_bytes + stats.d2h_bytes) / max(1, stats.decode_tokens)
        report.add(f"{name} bytes over the link", link / 1024, "KiB/token")


def overhead(report: Report) -> None:
    """Whole time per layer and step of models so small that little but overhead is left."""
    minimal = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 16,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
    }
    sources: list[tuple[str, Any, dict[str, Any]]] = [
        ("minimal shape", minimal, {"load_format": "dummy"})
    ]
    for family in ("llama", "opt", "qwen2"):
        folder = ROOT / "tests" / "models" / f"tiny-{family}"
        if folder.exists():
            sources.append((f"tiny-{family}", folder, {}))
    cpu = hg.CpuConfig(threads=1, device_threads=1)
    for name, source, options in sources:
        for method in ("full", "hybridgen"):
            kv = hg.KVConfig(device_tokens=32) if method == "hybridgen" else hg.KVConfig()
            with hg.LLM(source, dtype="float32", method=method, kv=kv, cpu=cpu, **options) as llm:
                params = hg.SamplingParams(max_tokens=128, ignore_eos=True)
                llm.generate_ids([[5] * 100], params)
                stats = llm.stats
                layers = llm.model_config["num_layers"]
            busy = stats.decode_s - stats.t_wait_s
            per_layer = busy / (stats.decode_steps * layers)
            bar = 30.0 if name == "minimal shape" else None
            report.add(
                f"{name}, {method}: step without waits, per layer, kernels included",
                per_layer * 1e6,
                "us",
                bar,
            )


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds, no 1B shape")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose name has this")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(hg.info().cpu["usable"])
    report = Report()
    for case in CASES:
        if args.only not in case.name or (args.quick and case.config is LLAMA_1B):
            continue
        measure(case, report, steps=16 if args.quick else 32, count=1 if args.quick else 3)
    if not args.only:
        overhead(report)
    report.write(args.json)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
