# SPDX-License-Identifier: Apache-2.0
"""The feedback scheduler from Python: presets, what is fixed stays fixed, one state per request.

Stage times decide what a steered request does, so these tests assert only what holds on any
machine: bounds, counts and independence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hybridgen import LLM, ConfigError, KVConfig, RequestMetrics, SchedulerConfig, _core
from trained import assert_offloaded, new_tokens, prompts_of, variant

Trained = Callable[[str], LLM]

FEW = KVConfig(device_tokens=9)
PROMPTS = prompts_of(150, 60)
COUNT = 24
K_MIN = 5

PRESETS = {
    "fixed_pre": (False, False, "pre"),
    "fixed_post": (False, False, "post"),
    "fixed_adaptive": (False, True, "post"),
    "adaptive_pre": (True, False, "pre"),
    "adaptive_post": (True, False, "post"),
    "full": (True, True, "post"),
}


def test_the_six_presets_are_those_of_the_papers_ablation() -> None:
    assert list(_core.scheduler_preset_names()) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_may_change_and_how_it_starts(name: str) -> None:
    preset = SchedulerConfig.preset(name)
    assert (preset.adapt_k, preset.adapt_strategy, preset.strategy) == PRESETS[name]
    assert preset.is_steered
    assert preset == SchedulerConfig(
        k=None,
        adapt_k=preset.adapt_k,
        adapt_strategy=preset.adapt_strategy,
        strategy=preset.strategy,
    )
    assert SchedulerConfig.preset(name, k_min=7, interval=2).interval == 2


def test_a_k_of_none_is_the_full_preset_and_nothing_is_steered_by_default() -> None:
    assert SchedulerConfig.preset("full") == SchedulerConfig(k=None)
    assert not SchedulerConfig().is_steered


@pytest.mark.parametrize("k", ["auto", 6, 0.2, "all"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k_min", 5),
        ("k_max", 50),
        ("adapt_k", False),
        ("adapt_strategy", False),
        ("return_to_post", "estimate"),
        ("grow", 1.5),
        ("shrink", 0.5),
        ("interval", 3),
        ("warmup", 0),
        ("deadband", 0.1),
    ],
)
def test_a_fixed_k_refuses_what_only_a_steered_one_reads(k: Any, name: str, value: Any) -> None:
    message = rf"^\[SchedulerConfig\] {name} is .* with k {k!r}; allowed: .*set k=None$"
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(k=k, **{name: value})
    assert SchedulerConfig(k=None, **{name: value}).is_steered


def test_by_default_k_is_the_larger_of_256_and_an_eighth(trained: Trained) -> None:
    base = trained("tiny-llama")
    with LLM(base) as llm:
        assert llm.engine_options.k == (256, 0.125)
        assert (llm.engine_options.query, llm.engine_options.strategy) == ("rescore", "post")
    for length, k in ((150, 150 - 9), (330, 256), (1000, 256)):
        with LLM(base, kv=FEW) as llm:
            # The second token's step sees all but the window, which the new token is part of.
            metrics = llm.generate(prompts_of(length)[0], new_tokens(1), decode_prompt_tokens=1)[
                0
            ].metrics
            assert metrics.offloaded_tokens == length - 9
            assert (metrics.k, metrics.scheduler_decisions) == (k, 0)


def test_by_default_the_same_call_gives_the_same_text(trained: Trained) -> None:
    runs = []
    for _ in range(2):
        with LLM(trained("tiny-llama"), kv=KVConfig(device_tokens=9)) as llm:
            runs += [llm.generate_ids(PROMPTS, new_tokens(COUNT)) for _ in range(2)]
            runs.append([llm.generate_ids([p], new_tokens(COUNT))[0] for p in PROMPTS])
            assert_offloaded(llm)
    assert runs[1:] == runs[:1] * 5


@pytest.mark.parametrize(
    ("name", "meant"),
    [("fixed_pos", "fixed_post"), ("adaptive_pr", "adaptive_pre"), ("ful", "full")],
)
def test_an_unknown_preset_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf'^\[scheduler\] .*allowed: .*did you mean "{meant}"'):
        SchedulerConfig.preset(name)


def test_an_unknown_option_of_a_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'intervals'; did you mean 'interval'"):
        SchedulerConfig.preset("full", intervals=3)


@pytest.mark.parametrize("k", [6, 0.2, "all"])
@pytest.mark.parametrize("strategy", ["post", "pre"])
def test_a_fixed_k_has_no_scheduler_and_repeats(trained: Trained, k: Any, strategy: str) -> None:
    scheduler = SchedulerConfig(k=k, strategy=strategy)
    runs = []
    for _ in range(2):
        with variant(trained("tiny-llama"), kv=FEW, scheduler=scheduler) as llm:
            for _ in range(2):
                outputs = llm.generate(PROMPTS, new_tokens(COUNT).replace(logprobs=0))
                runs.append([(o.token_ids, o.outputs[0].cumulative_logprob) for o in outputs])
                for output in outputs:
                    metrics = output.metrics
                    assert (metrics.scheduler_decisions, metrics.last_decision) == (0, "")
                    assert metrics.strategy == strategy
                    expected = {
                        6: 6,
                        0.2: int(0.2 * metrics.offloaded_tokens),
                        "all": metrics.offloaded_tokens,
                    }
                    assert metrics.k == pytest.approx(expected[k], abs=1)
    assert runs[1:] == runs[:1] * 3


@pytest.mark.parametrize("strategy", ["post", "pre"])
def test_a_fixed_preset_is_a_fixed_k(trained: Trained, strategy: str) -> None:
    base = trained("tiny-qwen2")
    preset = SchedulerConfig.preset(f"fixed_{strategy}", k_min=6, interval=1, warmup=0)
    with variant(base, kv=FEW, scheduler=preset) as llm:
        steered = llm.generate(PROMPTS, new_tokens(COUNT))
    with variant(base, kv=FEW, scheduler=SchedulerConfig(k=6, strategy=strategy)) as llm:
        assert llm.generate_ids(PROMPTS, new_tokens(COUNT)) == [o.token_ids for o in steered]
    for output in steered:
        metrics = output.metrics
        assert (metrics.k, metrics.strategy, metrics.last_decision) == (6, strategy, "hold")
        assert metrics.scheduler_decisions > 0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("k_max", [None, 12])
def test_a_steered_request_stays_within_its_bounds(
    trained: Trained, name: str, k_max: int | None
) -> None:
    adapts_k, adapts_strategy, strategy = PRESETS[name]
    scheduler = SchedulerConfig.preset(name, k_min=K_MIN, k_max=k_max, interval=1, warmup=0)
    with variant(trained("tiny-llama"), kv=FEW, scheduler=scheduler) as llm:
        for output in llm.generate(PROMPTS, new_tokens(COUNT)):
            metrics = output.metrics
            most = metrics.offloaded_tokens if k_max is None else k_max
            assert K_MIN <= metrics.k <= most
            if not adapts_k:
                assert metrics.k == K_MIN
            if not adapts_strategy:
                assert metrics.strategy == strategy
            assert metrics.strategy in ("post", "pre")
            assert metrics.last_decision in ("hold", "grow", "shrink", "to_pre")
            assert len(output.token_ids) == COUNT


@pytest.mark.parametrize(("interval", "warmup"), [(1, 0), (4, 0), (4, 1), (5, 3), (100, 0)])
def test_decisions_are_made_every_interval_after_the_warmup(
    trained: Trained, interval: int, warmup: int
) -> None:
    # A change of strategy warms up again, so it is left out here.
    scheduler = SchedulerConfig(
        k=None, k_min=K_MIN, interval=interval, warmup=warmup, adapt_strategy=False
    )
    with variant(trained("tiny-llama"), kv=FEW, scheduler=scheduler) as llm:
        metrics = llm.generate(PROMPTS[0], new_tokens(COUNT))[0].metrics
        assert metrics.decode_steps == COUNT - 1
        assert metrics.scheduler_decisions == (COUNT - 1 - warmup) // interval


def test_without_offloaded_tokens_nothing_is_decided(trained: Trained) -> None:
    scheduler = SchedulerConfig(k=None, k_min=K_MIN, interval=1, warmup=0)
    with variant(trained("tiny-llama"), scheduler=scheduler) as llm:
        metrics = llm.generate(PROMPTS[0], new_tokens(COUNT))[0].metrics
        assert (metrics.offloaded_tokens, metrics.k, metrics.scheduler_decisions) == (0, 0, 0)


def test_exact_queries_overlap_nothing_and_so_decide_nothing(trained: Trained) -> None:
    scheduler = SchedulerConfig(k=None, k_min=K_MIN, interval=1, warmup=0)
    with variant(trained("tiny-llama"), kv=FEW, query="exact", scheduler=scheduler) as llm:
        metrics = llm.generate(PROMPTS[0], new_tokens(COUNT))[0].metrics
        assert (metrics.k, metrics.strategy, metrics.scheduler_decisions) == (K_MIN, "post", 0)


def test_requests_beside_each_other_have_states_of_their_own(trained: Trained) -> None:
    scheduler = SchedulerConfig(k=None, k_min=K_MIN, interval=2, warmup=1)
    with variant(trained("tiny-llama"), kv=FEW, scheduler=scheduler) as llm:
        metrics: dict[Any, RequestMetrics] = {}

        def step() -> set[Any]:
            news = {output.request_id: output.metrics for output in llm.step()}
            metrics.update(news)
            return set(news)

        llm.add_request("first", PROMPTS[0], new_tokens(40))
        for _ in range(20):
            step()
        assert metrics["first"].scheduler_decisions >= 6
        llm.add_request("second", PROMPTS[1], new_tokens(10))
        assert step() == {"second"}  # the prompt
        for _ in range(2):  # as long as it warms up and samples
            found = metrics["second"]
            assert (found.k, found.strategy) == (K_MIN, "post")
            assert (found.scheduler_decisions, found.last_decision) == (0, "hold")
            assert step() == {"first", "second"}
        while llm.has_unfinished_requests():
            step()
        assert metrics["first"].scheduler_decisions > metrics["second"].scheduler_decisions > 0


def test_a_finished_request_does_not_affect_the_next(trained: Trained) -> None:
    scheduler = SchedulerConfig(k=None, k_min=K_MIN, interval=1, warmup=0)
    patient = SchedulerConfig(k=None, k_min=K_MIN, interval=100)
    base = trained("tiny-llama")
    with variant(base, kv=FEW, scheduler=patient) as llm:
        undecided = llm.generate_ids(PROMPTS[:1], new_tokens(2))
    with variant(base, kv=FEW, scheduler=scheduler) as llm:
        assert llm.generate(PROMPTS[0], new_tokens(40))[0].metrics.scheduler_decisions > 0
        # The first decode step of a request always runs at K_min, chosen after.
        found = llm.generate(PROMPTS[0], new_tokens(2))[0]
        assert [found.token_ids] == undecided
        assert found.metrics.scheduler_decisions == 1
        assert found.metrics.attended_offloaded_share == pytest.approx(K_MIN / 142)
