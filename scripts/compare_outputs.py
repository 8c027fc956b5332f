# SPDX-License-Identifier: Apache-2.0
"""Whether a change left every method's results as they were, bit for bit.

    python scripts/compare_outputs.py record before.json     # in the tree before the change
    python scripts/compare_outputs.py compare before.json    # in the tree after it

A record holds, for every method in several settings on the models of tests/models: the tokens with
their log-probabilities (exactly, as hexadecimal floats), those of a score, what each request kept
where, and the bytes that crossed the link. Records belong to one machine and one build of LibTorch:
kernels of another instruction set round differently. Steered runs are not part of it, as they
follow the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen import KVConfig, SamplingParams, SchedulerConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("tiny-llama", "tiny-opt", "tiny-qwen2")
CPU = hg.CpuConfig(threads=2, device_threads=1)
PROMPTS = (37, 150, 400)
NEW_TOKENS = 12


def of(method: str, *, device_tokens: Any = None, **config: Any) -> dict[str, Any]:
    """Arguments of `LLM` for a method and its own options."""
    options: dict[str, Any] = {"method": method}
    if config:
        options["method_config"] = config
    if device_tokens is not None:
        options["kv"] = KVConfig(device_tokens=device_tokens)
    return options


def hybrid(k: Any, *, strategy: str = "post", kv: Any = None, **options: Any) -> dict[str, Any]:
    """Arguments of `LLM` for the hybridgen method with 20 tokens on the device."""
    kv = {"device_tokens": 20, **(kv or {})}
    return {
        "kv": KVConfig(**kv),
        "scheduler": SchedulerConfig(k=k, strategy=strategy),
        **options,
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "full": of("full"),
    "default": {},
    "hybridgen, all": hybrid("all", query="exact"),
    "hybridgen, exact": hybrid(9, query="exact"),
    "hybridgen, speculative": hybrid(9, query="speculative"),
    "hybridgen, rescored": hybrid(9, query="rescore"),
    "hybridgen, from layer 1": hybrid(9, query=hg.QueryConfig(mode="speculative", first_layer=1)),
    "hybridgen, this layer's norm": hybrid(
        9, query=hg.QueryConfig(mode="speculative", norm="current")
    ),
    "hybridgen, last query": hybrid(
        9, query=hg.QueryConfig(mode="speculative", source="previous_query")
    ),
    "hybridgen, share": hybrid(0.2),
    "hybridgen, int8": hybrid(9, kv={"scoring": "int8"}),
    "hybridgen, int4": hybrid(9, kv={"scoring": "int4", "candidates_per_k": 3}),
    "hybridgen, small rows": hybrid(9, kv={"keys": "int8", "values": "int4"}),
    "hybridgen, h2o": hybrid(9, selector="h2o"),
    "hybridgen, keyformer": hybrid(9, selector="keyformer"),
    "hybridgen, partial keys": hybrid(9, strategy="pre"),
    "hybridgen, partial keys, speculative": hybrid(9, strategy="pre", query="speculative"),
    "hybridgen, sinks": hybrid(9, strategy="pre", pre_selector="sinks_recent", query="exact"),
    "hybridgen, digests": hybrid(9, strategy="pre", pre_selector="block_digests"),
    "flexgen": of("flexgen"),
    "flexgen, partly resident": of("flexgen", gpu_share=0.4),
    "flexgen, window": of("flexgen", device_tokens=20),
    "flexgen, sparse": of("flexgen", attn_sparsity=0.3),
    "moe_lightning": of("moe_lightning"),
    "moe_lightning, three parts": of("moe_lightning", micro_batches=3, lookahead=1),
    "streaming_llm": of("streaming_llm", sinks=2, window=30),
    "streaming_llm, shift": of("streaming_llm", sinks=2, window=30, positions="shift"),
    "streaming_llm, clamp": of("streaming_llm", sinks=2, window=30, positions="clamp"),
    "streaming_llm, host": of("streaming_llm", sinks=2, window=30, home="host"),
    "h2o": of("h2o"),
    "h2o, shift": of("h2o", heavy=10, recent=10, positions="shift"),
    "h2o, host": of("h2o", heavy=10, recent=10, home="host"),
    "keyformer": of("keyformer"),
    "keyformer, quiet": of("keyformer", kv_cache=30, noise=False),
    "keyformer, host": of("keyformer", kv_cache=30, home="host", seed=3),
    "infinigen": of("infinigen"),
    "infinigen, few": of("infinigen", alpha=1.0, max_fetch=8, column_share=0.3),
    "infinigen, counter": of("infinigen", capacity=0.97, policy="counter"),
    "infinigen, fifo": of("infinigen", capacity=0.97, policy="fifo"),
    "infinigen, lru": of("infinigen", capacity=0.97, policy="lru", device_tokens=10),
    "hgca": of("hgca", device_tokens=20),
    "hgca, small blocks": of("hgca", beta=0.5, block=2, blocks=3),
}


def prompts() -> list[list[int]]:
    """Token ids that any of the models knows, of several lengths."""
    return [[3 + (index * index * 7 + index * 13) % 200 for index in range(n)] for n in PROMPTS]


def outcome(llm: hg.LLM) -> dict[str, Any]:
    """Everything about a run that must not change."""
    greedy = SamplingParams(max_tokens=NEW_TOKENS, logprobs=2, ignore_eos=True)
    drawn = SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0.9, top_p=0.9, seed=5, logprobs=0, ignore_eos=True
    )
    requests = []
    for params in (greedy, drawn):
        for output in llm.generate(prompts(), params):
            completion = output.outputs[0]
            requests.append(
                {
                    "tokens": list(completion.token_ids),
                    "logprobs": [
                        {str(token): float(value).hex() for token, value in sorted(entry.items())}
                        for entry in completion.logprobs or []
                    ],
                    "metrics": {
                        name: getattr(output.metrics, name)
                        for name in ("offloaded_tokens", "resident_tokens", "dropped_tokens", "k")
                    },
                }
            )
    stats = llm.stats
    link = {name: getattr(stats, name) for name in ("h2d_bytes", "d2h_bytes", "evicted_bytes")}
    with_decode = llm.generate(
        prompts()[2], SamplingParams(max_tokens=2, logprobs=0), decode_prompt_tokens=30
    )
    return {
        "requests": requests,
        "link": link,
        "decoded prompt": list(with_decode[0].outputs[0].token_ids),
    }


def record() -> dict[str, Any]:
    """Outcomes by model and setting; a refusal (positions that a model lacks) is one as well."""
    outcomes: dict[str, Any] = {}
    for model in MODELS:
        base = hg.LLM(str(ROOT / "tests" / "models" / model), method="full", cpu=CPU)
        for name, options in SETTINGS.items():
            if sys.stderr.isatty():
                print(f"\r{model}: {name:40}", end="", file=sys.stderr)
            try:
                with hg.LLM(base, cpu=CPU, **options) as llm:
                    outcomes[f"{model}: {name}"] = outcome(llm)
            except hg.ConfigError as error:
                outcomes[f"{model}: {name}"] = {"refused": type(error).__name__}
        base.close()
    return outcomes


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the settings whose outcomes are not the same, and which part of them is not."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            found.append(f"{name}: only {'after' if old is None else 'before'} the change")
        elif old != new:
            parts = [part for part in old.keys() | new.keys() if old.get(part) != new.get(part)]
            found.append(f"{name}: {', '.join(sorted(parts))}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    outcomes = record()
    if options.action == "record":
        options.file.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
        return 0
    found = differences(json.loads(options.file.read_text(encoding="utf-8")), outcomes)
    for line in found:
        print(line)
    print(f"{len(outcomes)} settings, {len(found)} differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
