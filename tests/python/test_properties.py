# SPDX-License-Identifier: Apache-2.0
"""Properties of every method over many drawn settings, prompts and mixes.

The draws are derandomized: the same ones in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridgen import LLM, _core, methods
from trained import prompts_of, run_python

Trained = Callable[[str], LLM]

TEXT = prompts_of(400, seed=5)[0]

POSITIONS = st.sampled_from(["original", "shift"])
SHARES = st.sampled_from([0.05, 0.3, 0.9, 1.0])


def _retained(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    on_device = st.fixed_dictionaries({**options, "home": st.just("device")})
    on_host = st.fixed_dictionaries(
        {**options, "home": st.just("host")}
        | ({"positions": st.just("original")} if "positions" in options else {})
    )
    return on_device | on_host


CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "full": st.just({}),
    "hybridgen": st.fixed_dictionaries({"column_share": SHARES}),
    "flexgen": st.fixed_dictionaries({"gpu_share": SHARES | st.just(0.0)}),
    "moe_lightning": st.fixed_dictionaries(
        {"micro_batches": st.integers(1, 6), "lookahead": st.integers(1, 4)}
    ),
    "streaming_llm": _retained(
        sinks=st.integers(0, 9), window=st.integers(1, 40), positions=POSITIONS
    ),
    "h2o": _retained(
        heavy=st.integers(0, 30) | SHARES | st.just(0.0),
        recent=st.integers(1, 30) | SHARES,
        positions=POSITIONS,
    ),
    "keyformer": _retained(
        kv_cache=st.integers(1, 60) | SHARES,
        recent=SHARES,
        tau_init=st.sampled_from([0.5, 1.0]),
        tau_end=st.sampled_from([1.0, 3.0]),
        noise=st.booleans(),
    ),
    "infinigen": st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.1, 4.0, float("inf")]),
            "column_share": SHARES,
            "max_fetch": st.integers(1, 40) | SHARES,
            "first_layer": st.integers(1, 5),
            "capacity": SHARES,
            "policy": st.sampled_from(["fifo", "lru", "counter"]),
        }
    ),
    "hgca": st.fixed_dictionaries(
        {
            "block": st.just(1),  # larger ones below
            "blocks": st.integers(1, 4),
            "alpha": st.sampled_from([0.0, 0.5, 1.0]),
            "beta": st.sampled_from([0.0, 0.5, 3.0]),
            "keep_min": st.integers(0, 4),
            "groups": st.integers(1, 4),
        }
    ),
}

ENGINES = st.fixed_dictionaries(
    {
        "query": st.sampled_from(["exact", "speculative", "rescore"]),
        "selector": st.sampled_from(["topk", "h2o", "keyformer"]),
        "pre_selector": st.sampled_from(["sinks_recent", "block_digests", "partial_keys"]),
        "strategy": st.sampled_from(["post", "pre"]),
        "k": st.integers(1, 50) | st.sampled_from([0.1, 0.5, "all"]),
        "device_tokens": st.just("auto") | st.integers(0, 60) | st.sampled_from([0.0, 0.1, 1.0]),
        "spec_first_layer": st.integers(1, 4),
        # Most prompts are longer than one chunk of this.
        "max_num_batched_tokens": st.sampled_from([7, 16, 33, 1024]),
        "micro_batch": st.sampled_from([1, 2, 16]),
        "max_num_seqs": st.sampled_from([1, 3, 64]),
        "random_delay_us": st.sampled_from([0, 0, 20]),
    }
)

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "length": st.integers(1, 120),
            "offset": st.integers(0, 200),
            "new": st.integers(1, 8),
            "decoded": st.sampled_from([0, 0, 1, 5, 200]),
            "late": st.integers(0, 6),
        }
    ),
    min_size=1,
    max_size=4,
)


def readable(
    method: str, config: dict[str, Any], options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave out of what was drawn for method and engine what any of it would leave unread."""
    unread = set(methods.reads("hybridgen")) - set(methods.reads(method))
    unread.add("pre_selector" if options["strategy"] == "post" else "selector")
    if options["query"] == "exact":
        unread.add("spec_first_layer")
    tokens = options["device_tokens"]
    if method == "streaming_llm" and not (
        isinstance(tokens, int) and tokens > config["sinks"] and config["home"] == "device"
    ):
        unread.add("device_tokens")  # refused, not unread
    if tokens != "auto" and "device_tokens" not in unread:
        unread |= {"gpu_share", "blocks", "window"}
    if options["strategy"] == "post" or options["pre_selector"] != "partial_keys":
        unread |= {"column_share"} if method == "hybridgen" else set()
    if config.get("capacity") == 1.0:
        unread.add("policy")
    others = {name: value for name, value in options.items() if name not in unread}
    first_layer = others.pop("spec_first_layer", None)
    if first_layer is not None and "query" in others:
        others["query"] = {"mode": others["query"], "first_layer": first_layer}
    return {name: value for name, value in config.items() if name not in unread}, others


Result = tuple[list[int], float, dict[str, Any]]


def run(engine: Any, requests: list[dict[str, Any]]) -> list[Result]:
    """Run requests, each added after so many steps of the engine; return what became of each."""
    ids: list[int] = []
    tokens: dict[int, list[int]] = {}
    scores: dict[int, float] = {}
    for request in requests:
        prompt = TEXT[request["offset"] :][: request["length"]]
        for _ in range(request["late"]):
            for event in engine.step() if engine.has_work() else []:
                tokens[event.request_id].append(event.token_id)
                scores[event.request_id] += event.logprob
        sampling = _core.SamplingOptions(max_tokens=request["new"])
        ids.append(engine.add(prompt, sampling, decode_prompt_tokens=request["decoded"]))
        tokens[ids[-1]], scores[ids[-1]] = [], 0.0
    while engine.has_work():
        for event in engine.step():
            tokens[event.request_id].append(event.token_id)
            scores[event.request_id] += event.logprob
    results = [(tokens[i], scores[i], engine.request_stats(i)) for i in ids]
    for i in ids:
        engine.release(i)
    return results


@pytest.mark.parametrize("method", CONFIGS)
def test_results_are_whole_accounted_for_and_independent_of_the_mix(
    trained: Trained, method: str
) -> None:
    model = trained("tiny-llama").model.weights

    @settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=15,
        suppress_health_check=list(HealthCheck),
    )
    @given(config=CONFIGS[method], options=ENGINES, requests=REQUESTS)
    def check(
        config: dict[str, Any], options: dict[str, Any], requests: list[dict[str, Any]]
    ) -> None:
        own, others = readable(method, config, options)
        engine = _core.Engine(
            model,
            _core.EngineOptions(
                method=method, method_config=own, threads=1, device_threads=1, **others
            ),
        )
        together = run(engine, requests)
        for request, (tokens, _, stats) in zip(requests, together, strict=True):
            assert len(tokens) == request["new"]
            assert all(0 <= token < 744 for token in tokens)
            held = [stats[f"{where}_tokens"] for where in ("resident", "offloaded", "dropped")]
            assert min(held) >= 0
            # A token that was just made has no key and value yet.
            assert sum(held) == request["length"] + request["new"] - 1
        assert all(tier["used"] == 0 for tier in engine.memory().values())
        for request, (tokens, score, _) in zip(requests, together, strict=True):
            ((alone, alone_score, _),) = run(engine, [request])
            assert (alone, alone_score) == (tokens, score)

    check()


# In a process of its own: blocks that leave a window at once have overrun buffers before.
BLOCKS = """
import itertools
from hybridgen import LLM, _core
from test_properties import run
from trained import CPU, folder_of
with LLM(folder_of("tiny-llama"), dtype="float32", cpu=CPU, method="full") as llm:
    for block, window, length in itertools.product((2, 6, 8), ("auto", 1, 16), (5, 25, 57)):
        options = _core.EngineOptions(
            method="hgca", method_config={"block": block}, device_tokens=window,
            max_num_batched_tokens=16, threads=1, device_threads=1)
        engine = _core.Engine(llm.model.weights, options)
        requests = [dict(length=n, offset=0, new=8, decoded=0, late=2) for n in (length, 40)]
        together = run(engine, requests)
        for request, (tokens, score, stats) in zip(requests, together, strict=True):
            assert run(engine, [request])[0][:2] == (tokens, score)
            held = [stats[f"{where}_tokens"] for where in ("resident", "offloaded", "dropped")]
            assert sum(held) == request["length"] + 7
print("done")
"""


def test_tokens_may_leave_a_window_in_blocks() -> None:
    finished = run_python(BLOCKS)
    assert (finished.returncode, finished.stdout) == (0, "done\n"), finished.stderr
