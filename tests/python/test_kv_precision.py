# SPDX-License-Identifier: Apache-2.0
"""Keys and values of offloaded tokens that lie in 8 or 4 bits: every method, recall, budgets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import hybridgen as hg
from eval_recall import evaluate
from hybridgen import KVConfig, methods
from hybridgen.evaluation.recall_tasks import make_samples
from trained import CPU, MODELS, assert_offloaded, folder_of, new_tokens, prompts_of, vocabulary

PRECISIONS = ("full", "int8", "int4")
PAIRS = tuple(itertools.product(PRECISIONS, PRECISIONS))
SMALL = tuple(pair for pair in PAIRS if pair != ("full", "full"))

FEW: dict[str, hg.config.MethodOptions] = {
    "hybridgen": methods.HybridGen(k=6, query="exact"),
    "hybridgen, rescored": methods.HybridGen(k=6),
    "hybridgen, before": methods.HybridGen(k=6, strategy="pre"),
    "hybridgen, digests": methods.HybridGen(k=6, strategy="pre", pre_selector="block_digests"),
    "hybridgen, h2o": methods.HybridGen(k=6, selector="h2o"),
    "flexgen": methods.FlexGen(),
    "flexgen, sparse": methods.FlexGen(attn_sparsity=0.3),
    "moe_lightning": methods.MoELightning(),
    "streaming_llm": methods.StreamingLLM(sinks=2, window=20, home="host"),
    "h2o": methods.H2O(heavy=10, recent=10, home="host"),
    "keyformer": methods.Keyformer(kv_cache=20, home="host"),
    "infinigen": methods.InfiniGen(max_fetch=8),
    "infinigen, pool": methods.InfiniGen(max_fetch=8, capacity=0.97),
    "hgca": methods.HGCA(block=4, blocks=3),
}
"""Settings in which tokens leave the device."""

ALL: dict[str, hg.config.MethodOptions] = {
    "hybridgen": methods.HybridGen(k="all", query="exact"),
    "hybridgen, rescored": methods.HybridGen(k="all"),
    "hybridgen, before": methods.HybridGen(k="all", strategy="pre", pre_selector="sinks_recent"),
    "flexgen": methods.FlexGen(),
    "infinigen": methods.InfiniGen(alpha=float("inf"), max_fetch=1.0),
}
"""Settings that attend to every token, with a window that ``device_tokens`` sets."""


@pytest.fixture(scope="module")
def base() -> Iterator[hg.LLM]:
    with hg.LLM(folder_of("tiny-llama"), dtype="float32", cpu=CPU) as llm:
        yield llm


def engine(base: hg.LLM, own: hg.config.MethodOptions, pair: tuple[str, str]) -> hg.LLM:
    keys, values = pair
    window: dict[str, Any] = {"device_tokens": 24} if own.method == "hybridgen" else {}
    return hg.LLM(base, method=own, kv=KVConfig(keys=keys, values=values, **window), cpu=CPU)


def outcome(llm: hg.LLM, prompts: list[list[int]], count: int = 5) -> list[tuple[Any, float]]:
    """Return tokens and the sum of log-probabilities of every prompt's continuation."""
    results = [result.outputs[0] for result in llm.generate(prompts, new_tokens(count))]
    return [(tuple(result.token_ids), result.cumulative_logprob) for result in results]


# ------------------------------------------------------------------------------------ every method


@pytest.mark.parametrize("name", FEW)
def test_every_method_keeps_rows_in_every_pair_of_formats(base: hg.LLM, name: str) -> None:
    prompts = prompts_of(90, 47)
    link, reads = {}, {}
    for pair in PAIRS:
        with engine(base, FEW[name], pair) as llm:
            together = outcome(llm, prompts)
            assert_offloaded(llm)
            stats = llm.stats
            link[pair] = (stats.h2d_bytes, stats.d2h_bytes, stats.evicted_bytes)
            reads[pair] = (stats.host_key_bytes_read, stats.host_value_bytes_read)
            assert [outcome(llm, [prompt])[0] for prompt in prompts] == together
    # Rows cross the link as the device works on them; what the host reads is what it holds.
    # Where the formats change which tokens are chosen, the numbers of rows may differ.
    if name in ("flexgen", "moe_lightning", "streaming_llm"):
        assert len(set(link.values())) == 1
        for column, side in enumerate(("keys", "values")):
            of = {pair[column]: reads[pair][column] for pair in PAIRS}
            assert of["int4"] < of["int8"] < of["full"], side
            assert len({reads[pair][column] for pair in PAIRS}) == 3


@pytest.mark.parametrize("pair", SMALL)
def test_all_who_attend_to_every_token_attend_to_the_same_rows(
    base: hg.LLM, pair: tuple[str, str]
) -> None:
    prompts = prompts_of(150, 90)
    keys, values = pair
    kv = KVConfig(device_tokens=24, keys=keys, values=values)
    found = {}
    for name, own in ALL.items():
        with hg.LLM(base, method=own, kv=kv, cpu=CPU) as llm:
            found[name] = outcome(llm, prompts)
            assert_offloaded(llm)
    for name, results in found.items():
        for (ids, logprob), (expected, reference) in zip(results, found["flexgen"], strict=True):
            assert ids == expected, name
            assert logprob == pytest.approx(reference, abs=2e-3), name


def test_a_composition_keeps_rows_as_any_other_method(base: hg.LLM) -> None:
    rule = methods.LayerRule(query="none", payload="keys_and_values")
    methods.register("streamed, small", methods.Composition(residency="window", rule=rule))
    kv = KVConfig(device_tokens=24, keys="int8", values="int4")
    prompts = prompts_of(90)
    with hg.LLM(base, method="streamed, small", kv=kv, cpu=CPU) as llm:
        streamed = outcome(llm, prompts)
        reads = llm.stats.host_key_bytes_read
    with hg.LLM(base, method=methods.FlexGen(), kv=kv, cpu=CPU) as llm:
        assert streamed == outcome(llm, prompts)
        assert reads == llm.stats.host_key_bytes_read
    on_device = methods.Composition(
        residency="all", rule=methods.LayerRule(query="none", payload="nothing")
    )
    methods.register("resident, small", on_device)
    with pytest.raises(hg.ConfigError, match=r"keys is 'int8'.*does not read it"):
        hg.LLM(base, method="resident, small", kv=KVConfig(keys="int8"))


@pytest.mark.parametrize("name", ["hybridgen", "flexgen", "infinigen", "h2o"])
def test_an_emulated_device_gives_the_tokens_that_the_cpu_gives(name: str) -> None:
    prompts = prompts_of(150, 90)
    window: dict[str, Any] = {"device_tokens": 24} if name == "hybridgen" else {}
    kv = KVConfig(keys="int8", values="int4", **window)
    found = []
    for device in ("cpu", "emulated"):
        folder = folder_of("tiny-llama")
        with hg.LLM(folder, device=device, method=FEW[name], kv=kv, cpu=CPU) as llm:
            found.append(llm.generate_ids(prompts, new_tokens(6)))
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_that_never_leave_the_device_stay_exact(base: hg.LLM, precision: str) -> None:
    kv = KVConfig(device_tokens=200, keys=precision, values=precision)
    prompts = prompts_of(90)
    with hg.LLM(base, method=methods.HybridGen(k="all"), kv=kv, cpu=CPU) as llm:
        found = outcome(llm, prompts)
        assert llm.stats.evicted_bytes == 0
    with hg.LLM(base, method="full", cpu=CPU) as llm:
        assert found == outcome(llm, prompts)


def host_bytes(base: hg.LLM, pair: tuple[str, str], tokens: int) -> int:
    """Return the host memory that a prompt of so many tokens takes while it is decoded."""
    kv = KVConfig(device_tokens=24, keys=pair[0], values=pair[1])
    with hg.LLM(base, method=methods.FlexGen(), kv=kv, cpu=CPU) as llm:
        stream = llm.stream(prompts_of(tokens)[0], new_tokens(2))
        next(stream)
        used = int(llm.memory["dram"]["used"])
        for _ in stream:
            pass
    return used


def test_the_host_takes_less_memory_by_what_the_formats_say(base: hg.LLM) -> None:
    taken = {pair: host_bytes(base, pair, 1000) for pair in PAIRS}
    full = taken["full", "full"]
    for keys, values in SMALL:
        # What each side saves does not depend on the other side.
        saved = 2 * full - taken[keys, "full"] - taken["full", values]
        assert full - taken[keys, values] == saved
    assert full > taken["int8", "full"] > taken["int4", "full"]
    assert full > taken["full", "int8"] > taken["full", "int4"]


def test_a_prompt_that_is_too_long_for_the_host_fits_in_fewer_bits(base: hg.LLM) -> None:
    small = host_bytes(base, ("int8", "int4"), 600)
    assert small < host_bytes(base, ("full", "full"), 600)
    prompts = prompts_of(600)

    def answer(**formats: Any) -> list[list[int]]:
        kv = KVConfig(device_tokens=24, dram=small, **formats)
        with hg.LLM(base, method=methods.FlexGen(), kv=kv, cpu=CPU) as llm:
            return llm.generate_ids(prompts, new_tokens(2))

    assert len(answer(keys="int8", values="int4")[0]) == 2
    with pytest.raises(hg.OutOfMemoryError, match=r"KVConfig\(keys=.*values="):
        answer()


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("option", ["keys", "values"])
def test_what_has_no_rows_on_the_host_refuses_their_format(base: hg.LLM, option: str) -> None:
    chosen: dict[str, Any] = {option: "int8"}
    kv = KVConfig(**chosen)
    with pytest.raises(hg.ConfigError, match=rf"{option} is 'int8'.*full does not read it"):
        hg.LLM(base, method="full", kv=kv)
    for name in ("streaming_llm", "h2o", "keyformer"):
        with pytest.raises(hg.ConfigError, match=rf"{option} is 'int8'.*set home='host'"):
            hg.LLM(base, method=name, kv=kv)


def test_a_shadow_of_keys_that_are_codes_themselves_is_refused(base: hg.LLM) -> None:
    kv = KVConfig(device_tokens=24, keys="int8", scoring="int4")
    with pytest.raises(hg.ConfigError, match=r"scoring is 'int4'.*scanned so"):
        hg.LLM(base, kv=kv)
    # Values lie beside any keys.
    with hg.LLM(base, kv=KVConfig(device_tokens=24, values="int4", scoring="int8"), cpu=CPU) as llm:
        assert len(llm.generate_ids(prompts_of(90), new_tokens(2))[0]) == 2


# ---------------------------------------------------------------------------------------- recall


@pytest.mark.parametrize("model", MODELS)
def test_trained_models_recall_what_they_recall_with_full_rows(model: str) -> None:
    samples = make_samples("kv", vocabulary(), (256, 512), 100, seed=5, length=560)
    recall = {}
    with hg.LLM(folder_of(model), dtype="float32", cpu=CPU) as llm:
        for pair in (("full", "full"), ("int8", "int8"), ("int8", "int4")):
            kv = KVConfig(device_tokens=40, keys=pair[0], values=pair[1])
            with hg.LLM(llm, method=methods.HybridGen(k=0.05), kv=kv, cpu=CPU) as small:
                found = evaluate(small, samples, decode_prompt_tokens=1, batch=25)
            assert found["offloaded_share"] > 0.9
            recall[pair] = found["exact_match"]
    assert recall["full", "full"] >= 0.9
    assert recall["int8", "int8"] >= recall["full", "full"] - 0.01
    assert recall["int8", "int4"] >= recall["full", "full"] - 0.03
