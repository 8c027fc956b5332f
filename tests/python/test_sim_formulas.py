# SPDX-License-Identifier: Apache-2.0
"""Closed formulas behind the paper's estimates, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from hybridgen.errors import ConfigError
from hybridgen.sim import SHAPES, formulas, shape_of
from hybridgen.sim.formulas import A100_RATES, GH100_RATES, STRATEGIES, Rates

OPT_13B, OPT_30B, LLAMA_8B = (SHAPES[n] for n in ("opt-13b", "opt-30b", "llama-3.1-8b"))
LENGTHS = [512 << i for i in range(8)]


def totals(rates: Rates, model: str, tokens: float, **options: float) -> list[float]:
    shape = shape_of(model)
    return [formulas.latency(rates, shape, s, tokens, **options).total_s for s in STRATEGIES]


@pytest.mark.parametrize(
    ("model", "params", "token_bytes", "layer_token_bytes"),
    [
        ("opt-1.3b", 1_315_758_080, 196_608, 8_192),
        ("opt-2.7b", 2_651_596_800, 327_680, 10_240),
        ("opt-6.7b", 6_658_473_984, 524_288, 16_384),
        ("opt-13b", 12_853_473_280, 819_200, 20_480),
        ("opt-30b", 29_974_540_288, 1_376_256, 28_672),
        ("opt-66b", 65_719_701_504, 2_359_296, 36_864),
        ("llama-3.2-1b", 1_235_814_400, 32_768, 2_048),
        ("llama-3.2-3b", 3_212_749_824, 114_688, 4_096),
        ("llama-3.1-8b", 8_030_261_248, 131_072, 4_096),
        ("qwen2.5-1.5b", 1_543_714_304, 28_672, 1_024),
        ("qwen2.5-3b", 3_085_938_688, 36_864, 1_024),
        ("qwen2.5-7b", 7_615_616_512, 57_344, 2_048),
        ("qwen2.5-14b", 14_770_033_664, 196_608, 4_096),
    ],
)
def test_parameters_and_cache_bytes_of_every_model_are_exact(
    model: str, params: int, token_bytes: int, layer_token_bytes: int
) -> None:
    shape = shape_of(model)
    assert shape.params == params
    assert shape.kv_bytes_per_token == token_bytes
    assert shape.kv_bytes_per_layer == layer_token_bytes


def test_a_model_that_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model is 'opt-13'; allowed: opt-1.3b.*opt-13b"):
        shape_of("opt-13")


def test_the_cache_grows_with_batch_and_length_and_passes_the_weights() -> None:
    assert OPT_13B.kv_bytes(1, 2048) == 1_677_721_600
    assert OPT_13B.kv_bytes(64, 65536) == pytest.approx(3435.97e9, rel=1e-5)
    assert OPT_13B.weight_bytes / OPT_13B.kv_bytes_per_token == pytest.approx(31_380.6, rel=1e-5)
    # "70B, one million tokens: hundreds of GB" holds with grouped heads.
    assert SHAPES["llama-3.1-70b"].kv_bytes(1, 10**6) == 327_680_000_000


def test_traffic_of_attention_on_the_gpu_grows_and_on_the_cpu_does_not() -> None:
    assert formulas.aog_bytes(OPT_13B, 2048) == 41_943_040
    assert formulas.aoc_bytes(OPT_13B) == 10_240
    assert formulas.aoc_bytes(OPT_13B, with_inputs=True) == 40_960
    assert formulas.merge_bytes(OPT_13B) == 20_640
    assert formulas.hybrid_bytes(OPT_13B, 128) == 1_320_960
    for tokens in LENGTHS:
        ratio = formulas.aog_bytes(OPT_13B, tokens) / formulas.hybrid_bytes(OPT_13B, tokens / 2)
        assert ratio == pytest.approx(3.96899, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "reading", "ratio"),
    [
        ("opt-13b", "consistent", 2.13333),
        ("opt-1.3b", "consistent", 5.33333),
        ("llama-3.1-8b", "consistent", 2.46154),
        ("opt-1.3b", "with head", 4.914),
        ("llama-3.1-8b", "mixed", 4.9231),
        ("qwen2.5-1.5b", "ffn only", 4.876),
    ],
)
def test_cpu_operations_over_gpu_operations_at_64k(model: str, reading: str, ratio: float) -> None:
    assert formulas.aoc_ratio(shape_of(model), 65536, reading=reading) == pytest.approx(
        ratio, rel=1e-3
    )


def test_operations_of_the_three_ways_add_up_to_the_same() -> None:
    for tokens in LENGTHS:
        sums = [sum(formulas.layer_macs(LLAMA_8B, s, tokens)) for s in STRATEGIES]
        assert sums == pytest.approx([sums[0]] * 3)


def test_the_estimate_for_machine_a() -> None:
    at_2k = [1e3 * t for t in totals(A100_RATES, "opt-13b", 2048)]
    assert at_2k == pytest.approx([2.207, 1.396, 0.934], rel=1e-3)
    for tokens in LENGTHS:
        aog, aoc, hybrid = totals(A100_RATES, "opt-13b", tokens)
        assert hybrid < aoc < aog


@pytest.mark.parametrize(
    ("per_mac", "tokens", "ratio", "threshold"), [(2, 4096, 4.21, 3798.7), (1, 2048, 4.47, 1754.7)]
)
def test_computing_on_the_cpu_takes_four_times_as_long_from_a_length_on(
    per_mac: float, tokens: int, ratio: float, threshold: float
) -> None:
    rates = Rates(gpu=A100_RATES.gpu, cpu=A100_RATES.cpu, link=A100_RATES.link, gpu_per_mac=per_mac)

    def computing(length: float) -> float:
        aoc, aog = (formulas.latency(rates, OPT_13B, s, length).compute_s for s in ("aoc", "aog"))
        return aoc / aog

    assert computing(tokens) == pytest.approx(ratio, abs=5e-3)
    found = formulas.compute_threshold(rates, OPT_13B)
    assert found == pytest.approx(threshold, rel=1e-3)
    assert computing(found) == pytest.approx(4.0)


def test_the_estimate_for_a_superchip_without_and_with_pruning() -> None:
    ms = [1e3 * t for t in totals(GH100_RATES, "opt-30b", 2048)]
    assert ms == pytest.approx([0.3489, 1.4991, 0.3683], rel=1e-3)
    pruned = [1e3 * t for t in totals(GH100_RATES, "opt-30b", 2048, used=0.4)]
    assert pruned == pytest.approx([0.2497, 0.7098, 0.2020], rel=1e-3)
    assert formulas.crossover(GH100_RATES, OPT_30B) == pytest.approx(1865, rel=0.01)
    assert formulas.crossover(GH100_RATES, OPT_30B, used=0.4) == pytest.approx(4645, rel=0.01)
    for tokens in (512, 1024, 2048, 3072, 3511):
        aog, aoc, hybrid = totals(GH100_RATES, "opt-30b", tokens, used=0.4)
        assert hybrid < aog < aoc


@pytest.mark.parametrize(
    ("model", "memory", "separate", "tokens"),
    [
        ("opt-30b", 80e9, False, 3642),
        ("opt-30b", 80e9, True, 3511),
        ("opt-13b", 80e9, False, 16568),
        ("opt-13b", 96e9, False, 21451),
        ("opt-30b", 96e9, False, 6548),
    ],
)
def test_how_many_tokens_fit_a_gpu_at_batch_four(
    model: str, memory: float, separate: bool, tokens: int
) -> None:
    assert formulas.capacity(shape_of(model), memory, 4, separate_head=separate) == tokens


@pytest.mark.parametrize(
    ("model", "tokens", "post", "pre", "sent"),
    [
        ("opt-13b", 2048, (20_971_520, 10_485_760), (1_310_720, 655_360), 1_320_960),
        ("llama-3.1-8b", 32768, (67_108_864, 134_217_728), (262_144, 524_288), 270_336),
        ("qwen2.5-7b", 32768, (33_554_432, 117_440_512), (131_072, 458_752), 138_240),
    ],
)
def test_what_choosing_after_and_before_the_logits_reads_computes_and_sends(
    model: str, tokens: int, post: tuple[int, int], pre: tuple[int, int], sent: int
) -> None:
    for strategy, expected in (("post", post), ("pre", pre)):
        cost = formulas.selection_cost(shape_of(model), tokens, 128, strategy)
        assert (cost.read_bytes, cost.macs) == expected
        assert cost.sent_bytes == sent


@pytest.mark.parametrize(
    ("model", "aog", "post_60", "post_15"),
    [
        ("opt-1.3b", 197, 953, 238),
        ("opt-6.7b", 394, 1906, 476),
        ("opt-13b", 492, 2382, 595),
        ("llama-3.1-8b", 1706, 8256, 2064),
        ("qwen2.5-7b", 3646, 17643, 4411),
        ("qwen2.5-14b", 2153, 10419, 2605),
    ],
)
def test_lengths_up_to_which_copies_and_scans_hide(
    model: str, aog: int, post_60: int, post_15: int
) -> None:
    for scan, expected in ((60e9, post_60), (15e9, post_15)):
        found = formulas.break_even(shape_of(model), 1548e9, 24.8e9, scan)
        assert found.aog_tokens == pytest.approx(aog, rel=2e-3)
        assert found.post_tokens == pytest.approx(expected, rel=2e-3)
