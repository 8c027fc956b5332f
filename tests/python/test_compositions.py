# SPDX-License-Identifier: Apache-2.0
"""Methods and selectors of a user's own: written here, run by the engine as it is.

That nothing but this file is needed is the point. A method is a composition of parts, and the
pipeline knows none by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig, QueryConfig, SchedulerConfig
from hybridgen.methods import Composition
from trained import new_tokens, prompts_of, run_python, variant

M = hg.methods
Trained = Callable[[str], LLM]
Logits = npt.NDArray[np.float32]

PROMPTS = prompts_of(150, 12, 70)
COUNT = 10
FEW = KVConfig(device_tokens=9)
SIX = SchedulerConfig(k=6)
SIX_PRE = SchedulerConfig(k=6, strategy="pre")

EXACT_LOGITS = M.LayerRule(query="exact", payload="logits_and_values", choice="selector")
GUESSED_LOGITS = M.LayerRule(query="guessed", payload="logits_and_values", choice="selector")
GUESSED_KEYS = M.LayerRule(query="guessed", payload="keys_and_values", choice="selector")
PARTIAL_SELECTED = M.LayerRule(query="exact", payload="partial_attention", choice="selector")
STREAMED = M.LayerRule(query="none", payload="keys_and_values")
ON_HOST = M.LayerRule(query="exact", payload="partial_attention")
NOTHING = M.LayerRule(query="none", payload="nothing")


def generated(base: LLM, **options: Any) -> list[list[int]]:
    with variant(base, **options) as llm:
        return llm.generate_ids(PROMPTS, new_tokens(COUNT), decode_prompt_tokens=3)


def scored(base: LLM, **options: Any) -> list[float]:
    """Return log-probabilities of given continuations: a finer measure than greedy tokens."""
    pairs = [(prompt[:-6], prompt[-6:]) for prompt in PROMPTS]
    with variant(base, **options) as llm:
        return [logprob for logprob, _ in llm.score(pairs)]


# ------------------------------------------------------------------------- selectors from Python


class EverySecond:
    """Takes every second token, the newest ones if there are too many."""

    def select(self, layer: int, head: int, logits: Logits, k: int) -> Sequence[int]:
        found = list(range(0, len(logits), 2))[-k:]
        rest = [i for i in range(len(logits)) if i not in found]
        return sorted(found + rest[: k - len(found)])

    def plan(
        self, layer: int, kv_head: int, queries: Logits, num_offloaded: int, k: int
    ) -> Sequence[int]:
        return list(range(0, num_offloaded, 2))[-k:]


class TopK:
    """The k largest logits, of equal ones the first: what the library's own topk does."""

    def select(self, layer: int, head: int, logits: Logits, k: int) -> Any:
        return np.sort(np.argsort(-logits, kind="stable")[:k])


class SinksRecent:
    def plan(
        self, layer: int, kv_head: int, queries: Logits, num_offloaded: int, k: int
    ) -> Sequence[int]:
        sinks = min(4, k)
        return [*range(sinks), *range(num_offloaded - (k - sinks), num_offloaded)]


hg.register_selector("every_second", lambda **_: EverySecond(), strategy="post")
hg.register_selector("every_second_pre", lambda **_: EverySecond(), strategy="pre")
hg.register_selector("numpy_topk", lambda **_: TopK(), strategy="post")
hg.register_selector("python_sinks", lambda **_: SinksRecent(), strategy="pre")


def test_registered_selectors_are_listed_by_their_strategy() -> None:
    assert {"every_second", "numpy_topk"} <= set(hg.selectors("post"))
    assert {"every_second_pre", "python_sinks"} <= set(hg.selectors("pre"))
    assert "numpy_topk" not in hg.selectors("pre")


@pytest.mark.parametrize("query", ["exact", "speculative", "rescore"])
def test_top_k_written_in_numpy_equals_the_librarys_own(trained: Trained, query: str) -> None:
    base = trained("tiny-qwen2")
    own = generated(base, kv=FEW, scheduler=SIX, query=query)
    assert generated(base, kv=FEW, scheduler=SIX, query=query, selector="numpy_topk") == own


def test_sinks_and_recent_written_in_python_equal_the_librarys_own(trained: Trained) -> None:
    base = trained("tiny-qwen2")
    pre = {"kv": FEW, "scheduler": SIX_PRE, "query": "exact"}
    own = generated(base, **pre, pre_selector="sinks_recent")
    ours = generated(base, **pre, pre_selector="python_sinks")
    assert ours == own


def test_a_selector_is_made_once_per_request_with_the_models_shape(trained: Trained) -> None:
    made: list[dict[str, int]] = []

    def make(**shape: int) -> TopK:
        made.append(shape)
        return TopK()

    hg.register_selector("counted", make, strategy="post")
    base = trained("tiny-qwen2")
    config = base.model_config
    generated(base, kv=FEW, scheduler=SIX, selector="counted")
    assert len(made) == len(PROMPTS)
    for shape in made:
        assert shape["num_layers"] == config["num_layers"]
        assert shape["num_heads"] == config["num_heads"]
        assert shape["num_kv_heads"] == config["num_kv_heads"]
        assert shape["head_dim"] == config["head_dim"]
    longest = max(map(len, PROMPTS)) + COUNT - FEW.device_tokens  # type: ignore[operator]
    assert max(shape["max_offloaded"] for shape in made) == longest


def test_a_selector_sees_every_layer_and_head_and_all_logits(trained: Trained) -> None:
    seen: set[tuple[int, int]] = set()
    lengths: set[tuple[int, int]] = set()

    class Watching(TopK):
        def select(self, layer: int, head: int, logits: Logits, k: int) -> Any:
            seen.add((layer, head))
            lengths.add((len(logits), k))
            assert logits.dtype == np.float32
            return super().select(layer, head, logits, k)

    hg.register_selector("watching", lambda **_: Watching(), strategy="post")
    base = trained("tiny-llama")
    with variant(base, kv=FEW, scheduler=SIX, query="exact", selector="watching") as llm:
        llm.generate(PROMPTS[0], new_tokens(4))
    config = base.model_config
    assert seen == {
        (layer, head)
        for layer in range(config["num_layers"])
        for head in range(config["num_heads"])
    }
    # The window makes room for the new token first, so that 9 tokens with it stay.
    assert lengths == {(150 + i - 9, 6) for i in range(1, 4)}


def test_a_pre_selector_sees_the_queries_of_a_kv_head(trained: Trained) -> None:
    sizes: set[int] = set()

    class Watching(SinksRecent):
        def plan(
            self, layer: int, kv_head: int, queries: Logits, num_offloaded: int, k: int
        ) -> Sequence[int]:
            sizes.add(queries.size)
            assert np.isfinite(queries).all()
            return super().plan(layer, kv_head, queries, num_offloaded, k)

    hg.register_selector("watching_pre", lambda **_: Watching(), strategy="pre")
    base = trained("tiny-llama")
    generated(base, kv=FEW, scheduler=SIX_PRE, query="exact", pre_selector="watching_pre")
    config = base.model_config
    assert sizes == {config["num_heads"] // config["num_kv_heads"] * config["head_dim"]}


def test_a_second_registration_replaces_the_first(trained: Trained) -> None:
    base = trained("tiny-llama")
    hg.register_selector("changing", lambda **_: EverySecond(), strategy="post")
    every_second = generated(base, kv=FEW, scheduler=SIX, query="exact", selector="changing")
    hg.register_selector("changing", lambda **_: TopK(), strategy="post")
    top_k = generated(base, kv=FEW, scheduler=SIX, query="exact", selector="changing")
    assert top_k == generated(base, kv=FEW, scheduler=SIX, query="exact")
    assert every_second != top_k


@pytest.mark.parametrize(
    ("name", "make", "strategy", "message"),
    [
        ("topk", TopK, "post", 'name is "topk"; allowed: any that is not one of the library\'s'),
        ("", TopK, "post", 'name is ""; allowed'),
        (5, TopK, "post", "name is 5; allowed: a text"),
        ("mine", 5, "post", "make is 5; allowed: something to call"),
        ("mine", TopK, "both", "strategy is 'both'; allowed: post, pre"),
    ],
)
def test_a_bad_registration_is_refused(name: Any, make: Any, strategy: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[register_selector\] .*{message}"):
        hg.register_selector(name, make, strategy=strategy)


def test_a_selector_of_the_other_strategy_is_refused(trained: Trained) -> None:
    for options in ({"selector": "every_second_pre"}, {"pre_selector": "every_second"}):
        with pytest.raises(ConfigError, match=r"^\[LLM\] (pre_)?selector is '.*'; allowed: "):
            variant(trained("tiny-llama"), **options)


# ------------------------------------------------------------------------------------ bad selectors


class Answering:
    """Answers with whatever a test wants."""

    def __init__(self, answer: Callable[[int, int], Any]) -> None:
        self.answer = answer

    def select(self, layer: int, head: int, logits: Logits, k: int) -> Any:
        return self.answer(len(logits), k)

    def plan(self, layer: int, kv_head: int, queries: Logits, num_offloaded: int, k: int) -> Any:
        return self.answer(num_offloaded, k)


def _raise(*_: int) -> Any:
    raise LookupError("no idea which")


BAD_ANSWERS: dict[str, tuple[Callable[[int, int], Any], str]] = {
    "duplicates": (lambda n, k: [0, 0, *range(1, k - 1)], "position 0 was chosen after 0"),
    "descending": (lambda n, k: list(range(k))[::-1], "position 4 was chosen after 5"),
    "negative": (lambda n, k: [-1, *range(k - 1)], "position -1 was chosen"),
    "out-of-range": (lambda n, k: [*range(k - 1), n], r"position \d+ was chosen"),
    # A 32 bit integer would make 2^32 the first token, and 2^32 + 5 the sixth, in its right place.
    "far-out-of-range": (lambda n, k: [1 << 32, *range(1, k)], "position 4294967296 was chosen"),
    "far-out-at-the-end": (
        lambda n, k: [*range(k - 1), (1 << 32) + k],
        r"position 42949673\d\d was chosen",
    ),
    "far-below": (lambda n, k: [-(1 << 32), *range(1, k)], "position -4294967296 was chosen"),
    "too-many": (lambda n, k: list(range(k + 1)), "7 positions"),
    "a-number": (lambda n, k: 3, "returned .*int.*; allowed: a sequence of integers"),
    "nothing": (lambda n, k: None, "returned .*NoneType.*; allowed: a sequence of integers"),
    "fractions": (lambda n, k: [0.5] * k, "returned .*list.*; allowed: a sequence of integers"),
    "text": (lambda n, k: "012345", "returned .*str.*; allowed: a sequence of integers"),
}


def check_refusal(
    base: LLM, strategy: str, make: Callable[..., Any], message: str, kind: type[Exception]
) -> None:
    """Run a bad selector; afterwards the same engine runs, once the selector is a good one."""
    name = f"bad_{strategy}"
    hg.register_selector(name, make, strategy=strategy)
    option = "selector" if strategy == "post" else "pre_selector"
    scheduler = SIX if strategy == "post" else SIX_PRE
    with variant(base, kv=FEW, query="exact", scheduler=scheduler, **{option: name}) as llm:
        with pytest.raises(kind) as caught:
            llm.generate(PROMPTS, new_tokens(COUNT))
        assert isinstance(caught.value, hg.GenerationError)
        assert list(caught.value.errors) == [0, 1, 2]
        assert [type(error) for error in caught.value.errors.values()] == [kind] * 3
        assert re.search(message, str(caught.value.errors[0]))
        assert llm._loop.idle
        assert not llm._loop.engine.has_work()
        assert all(tier["used"] == 0 for tier in llm.memory.values())
        good: Any = TopK() if strategy == "post" else SinksRecent()
        hg.register_selector(name, lambda **_: good, strategy=strategy)
        after = llm.generate_ids(PROMPTS[:1], new_tokens(3))
    with variant(base, kv=FEW, query="exact", scheduler=scheduler) as llm:
        assert after == llm.generate_ids(PROMPTS[:1], new_tokens(3))


@pytest.mark.parametrize("strategy", ["post", "pre"])
@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_positions_that_make_no_sense_are_refused_by_the_selectors_name(
    trained: Trained, strategy: str, case: str
) -> None:
    answer, message = BAD_ANSWERS[case]
    check_refusal(
        trained("tiny-llama"),
        strategy,
        lambda **_: Answering(answer),
        rf"^\[selector bad_{strategy}\] .*{message}",
        ConfigError,
    )


def test_a_post_selector_must_fill_its_places(trained: Trained) -> None:
    check_refusal(
        trained("tiny-llama"),
        "post",
        lambda **_: Answering(lambda n, k: list(range(k - 1))),
        r"^\[selector bad_post\] select returned 5 positions; allowed: exactly 6",
        ConfigError,
    )


SHORT_RULES: dict[str, dict[str, Any]] = {
    "logits": {"rule": EXACT_LOGITS},
    "rescored": {"rule": GUESSED_KEYS, "early_rule": EXACT_LOGITS, "first_layer": 1},
    "partial": {"rule": PARTIAL_SELECTED},
}


@pytest.mark.parametrize("rule", SHORT_RULES)
@pytest.mark.parametrize("sinks", [0, 1, 2])
def test_a_pre_selector_may_choose_fewer_tokens_or_none(
    trained: Trained, sinks: int, rule: str
) -> None:
    """Sinks and a window are StreamingLLM, however many tokens might have been chosen."""
    hg.register_selector(
        "short",
        lambda **_: Answering(lambda n, k: list(range(min(sinks, n)))),
        strategy="pre",
    )
    M.register(
        "short",
        M.Composition(
            residency="window",
            strategy="pre",
            pre_selector="short",
            **SHORT_RULES[rule],
        ),
    )
    base = trained("tiny-llama")
    # The 9 tokens of FEW contain the new one, a window of 8 does not.
    streaming = M.StreamingLLM(sinks=sinks, window=8)
    expected = scored(base, method="streaming_llm", method_config=streaming)
    found = scored(base, method="short", kv=FEW, scheduler=SIX_PRE)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found != pytest.approx(scored(base, method="full"), abs=1e-1)


@pytest.mark.parametrize("strategy", ["post", "pre"])
def test_an_exception_in_a_selector_reaches_the_caller(trained: Trained, strategy: str) -> None:
    make: Callable[..., Any] = lambda **_: Answering(_raise)  # noqa: E731
    check_refusal(trained("tiny-llama"), strategy, make, "no idea which", LookupError)


@pytest.mark.parametrize("strategy", ["post", "pre"])
def test_an_exception_while_a_selector_is_made_reaches_the_caller(
    trained: Trained, strategy: str
) -> None:
    def make(**_: int) -> Any:
        raise LookupError("no idea how")

    check_refusal(trained("tiny-llama"), strategy, make, "no idea how", LookupError)


@pytest.mark.parametrize("strategy", ["post", "pre"])
def test_an_object_without_the_method_is_refused(trained: Trained, strategy: str) -> None:
    make: Callable[..., Any] = lambda **_: object()  # noqa: E731
    word = "select" if strategy == "post" else "plan"
    check_refusal(trained("tiny-llama"), strategy, make, word, AttributeError)


# ------------------------------------------------------------------------------------ compositions


def test_a_new_method_needs_no_more_than_a_name_and_its_parts(trained: Trained) -> None:
    """A selector and a method that the engine has never heard of."""
    M.register(
        "alternating",
        M.Composition(
            residency="window",
            window=12,
            rule=M.LayerRule(query="exact", payload="keys_and_values", choice="selector"),
            early_rule=STREAMED,
            first_layer=1,
            strategy="pre",
            pre_selector="every_second_pre",
        ),
    )
    assert M()[-1] == "alternating"
    base = trained("tiny-llama")
    full = base.generate_ids(PROMPTS, new_tokens(COUNT))
    assert generated(base, method="alternating", scheduler=SIX_PRE) != full
    with variant(base, method="alternating", scheduler=SIX_PRE) as llm:
        together = llm.generate(PROMPTS, new_tokens(COUNT))
        for prompt, output in zip(PROMPTS, together, strict=True):
            assert llm.generate_ids([prompt], new_tokens(COUNT)) == [output.token_ids]
        metrics = together[0].metrics
        assert (metrics.strategy, metrics.k, metrics.resident_tokens) == ("pre", 6, 12)
        assert metrics.offloaded_tokens == 150 + COUNT - 1 - 12


def hybridgen_parts(query: str) -> Composition:
    """Return HybridGen's own parts."""
    rules: dict[str, Any] = {
        "exact": {"rule": EXACT_LOGITS},
        "speculative": {"rule": GUESSED_LOGITS, "early_rule": EXACT_LOGITS, "first_layer": 2},
        "rescore": {"rule": GUESSED_KEYS, "early_rule": EXACT_LOGITS, "first_layer": 2},
    }
    return M.Composition(
        residency="window", selector="topk", pre_selector="sinks_recent", **rules[query]
    )


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("query", ["exact", "speculative", "rescore"])
def test_hybridgens_parts_are_hybridgen(trained: Trained, model: str, query: str) -> None:
    base = trained(model)
    M.register("parts_of_hybridgen", hybridgen_parts(query))
    expected = generated(base, kv=FEW, scheduler=SIX, query=query)
    assert generated(base, method="parts_of_hybridgen", kv=FEW, scheduler=SIX) == expected
    assert scored(base, method="parts_of_hybridgen", kv=FEW, scheduler=SIX) == scored(
        base, kv=FEW, scheduler=SIX, query=query
    )


def test_hybridgens_parts_choose_before_as_hybridgen_does(trained: Trained) -> None:
    base = trained("tiny-qwen2")
    parts = hybridgen_parts("exact")
    before = M.Composition(
        residency="window", rule=parts.rule, strategy="pre", pre_selector="sinks_recent"
    )
    M.register("parts_of_pre", before)
    expected = generated(
        base, kv=FEW, scheduler=SIX_PRE, query="exact", pre_selector="sinks_recent"
    )
    assert generated(base, method="parts_of_pre", kv=FEW, scheduler=SIX_PRE) == expected


EXACT_COMPOSITIONS = {
    "nothing-leaves": M.Composition(residency="all", rule=NOTHING),
    "streamed": M.Composition(residency="window", rule=STREAMED, window=1),
    "streamed-window": M.Composition(residency="window", rule=STREAMED, window=20),
    "attention-on-the-host": M.Composition(residency="none", rule=ON_HOST),
    "merged-by-sums": M.Composition(residency="window", rule=ON_HOST, window=7),
    "logits": M.Composition(residency="window", rule=EXACT_LOGITS, selector="topk", window=7),
    "logits-of-ours": M.Composition(
        residency="window", rule=EXACT_LOGITS, selector="numpy_topk", window=7
    ),
    "rescored": M.Composition(
        residency="window",
        rule=GUESSED_KEYS,
        early_rule=STREAMED,
        first_layer=1,
        selector="topk",
        window=7,
    ),
    "mixed": M.Composition(
        residency="window",
        rule=ON_HOST,
        early_rule=EXACT_LOGITS,
        first_layer=2,
        selector="topk",
        window=7,
    ),
    "partial-keys": M.Composition(
        residency="window",
        rule=EXACT_LOGITS,
        strategy="pre",
        pre_selector="partial_keys",
        window=7,
    ),
}


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("name", EXACT_COMPOSITIONS)
def test_a_composition_that_leaves_nothing_out_equals_full_attention(
    trained: Trained, model: str, name: str
) -> None:
    base = trained(model)
    M.register(name, EXACT_COMPOSITIONS[name])
    assert generated(base, method=name) == generated(base, method="full")
    assert scored(base, method=name) == pytest.approx(scored(base, method="full"), abs=1e-3)


def test_partial_attention_over_all_that_a_selector_chose_equals_full(trained: Trained) -> None:
    hg.register_selector(
        "everything", lambda **_: Answering(lambda n, k: list(range(n))), strategy="pre"
    )
    M.register(
        "partial",
        M.Composition(
            residency="window",
            window=7,
            rule=M.LayerRule(query="exact", payload="partial_attention", choice="selector"),
            strategy="pre",
            pre_selector="everything",
        ),
    )
    base = trained("tiny-llama")
    assert generated(base, method="partial") == generated(base, method="full")


def test_a_compositions_window_is_its_own_or_device_tokens_never_both(trained: Trained) -> None:
    M.register("windowed", EXACT_COMPOSITIONS["streamed-window"])
    M.register("open", M.Composition(residency="window", rule=STREAMED))
    base = trained("tiny-llama")
    for name, kv, resident in (
        ("windowed", KVConfig(), 20),
        ("open", KVConfig(device_tokens=33), 33),
    ):
        with variant(base, method=name, kv=kv) as llm:
            metrics = llm.generate(PROMPTS[0], new_tokens(4))[0].metrics
            assert metrics.resident_tokens == resident
    message = (
        r"^\[method windowed\] device_tokens is 33; allowed: 'auto', as .* window of 20 tokens"
    )
    with pytest.raises(ConfigError, match=message):
        variant(base, method="windowed", kv=KVConfig(device_tokens=33))


# What a steered request does when its composition knows only one strategy. In a process of its
# own: a crash must not end the tests.
STEERED = """
import sys
import hybridgen as hg
from hybridgen import LLM, SchedulerConfig
from trained import CPU, folder_of, new_tokens, prompts_of
kind, query = sys.argv[1:]
hg.methods.register("mine", hg.methods.Composition(
    residency="window", window=4, strategy=kind,
    rule=hg.methods.LayerRule(query=query, payload="keys_and_values", choice="selector"),
    early_rule=hg.methods.LayerRule(query="exact", payload="keys_and_values", choice="selector"),
    first_layer=1,
    **({"selector": "topk"} if kind == "post" else {"pre_selector": "sinks_recent"})))
scheduler = SchedulerConfig(k=None, k_min=1, k_max=1, interval=1, warmup=0)
with LLM(folder_of("tiny-llama"), dtype="float32", cpu=CPU, method="mine",
         scheduler=scheduler) as llm:
    output = llm.generate(prompts_of(300), new_tokens(40))[0]
print(len(output.token_ids), output.metrics.strategy)
"""


@pytest.mark.parametrize("kind", ["post", "pre"])
def test_a_steered_composition_keeps_to_the_strategy_that_it_has_a_selector_for(kind: str) -> None:
    finished = run_python(STEERED, kind, "guessed")
    assert (finished.returncode, finished.stdout) == (0, f"40 {kind}\n"), finished.stderr


# ------------------------------------------------------------------------------------- refusals

LOGITS_OF_ALL = M.LayerRule(query="exact", payload="logits_and_values")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        # A payload and nothing to send, or the other way round.
        ({"residency": "all", "rule": STREAMED}, "no token ever leaves the device; allowed: "),
        ({"residency": "window", "rule": NOTHING}, "the host sends nothing; allowed: "),
        ({"residency": "none", "rule": NOTHING}, "the host sends nothing; allowed: "),
        (
            {"residency": "window", "rule": STREAMED, "early_rule": NOTHING, "first_layer": 1},
            "the host sends nothing; allowed: ",
        ),
        (
            {"residency": "all", "rule": NOTHING, "early_rule": STREAMED, "first_layer": 1},
            "no token ever leaves the device; allowed: ",
        ),
        # A choice and nobody who chooses.
        ({"residency": "window", "rule": EXACT_LOGITS}, "choice is selector and there is none"),
        (
            {"residency": "window", "rule": EXACT_LOGITS, "pre_selector": "sinks_recent"},
            "strategy is post and it has no selector",
        ),
        (
            {
                "residency": "window",
                "rule": EXACT_LOGITS,
                "selector": "topk",
                "strategy": "pre",
            },
            "strategy is pre and it has no selector",
        ),
        # Logits without a query.
        (
            {
                "residency": "window",
                "rule": M.LayerRule(query="none", payload="logits_and_values", choice="selector"),
                "selector": "topk",
            },
            "needs a query and gets none; allowed: query exact or guessed",
        ),
        (
            {
                "residency": "window",
                "rule": M.LayerRule(query="none", payload="keys_and_values", choice="selector"),
                "selector": "topk",
            },
            "needs a query and gets none",
        ),
        (
            {
                "residency": "window",
                "rule": M.LayerRule(query="none", payload="keys_and_values", choice="partial_keys"),
            },
            "needs a query and gets none",
        ),
        (
            {
                "residency": "window",
                "rule": M.LayerRule(query="none", payload="partial_attention"),
            },
            "needs a query and gets none",
        ),
        # Parts that contradict each other.
        ({"residency": "window", "rule": LOGITS_OF_ALL}, "logits of all tokens .*allowed: choice"),
        (
            {"residency": "window", "rule": PARTIAL_SELECTED, "selector": "topk"},
            "over tokens chosen after their logits; allowed: strategy pre",
        ),
        ({"residency": "none", "rule": STREAMED}, "no token is on the device; allowed there: "),
        (
            {
                "residency": "none",
                "rule": M.LayerRule(query="guessed", payload="partial_attention"),
            },
            "no token is on the device; allowed there: ",
        ),
        (
            {
                "residency": "none",
                "rule": PARTIAL_SELECTED,
                "strategy": "pre",
                "pre_selector": "sinks_recent",
            },
            "the newest may not be chosen; allowed: choice all",
        ),
        # The first layer has none before it that could guess its query.
        (
            {"residency": "window", "rule": GUESSED_KEYS, "selector": "topk"},
            "guessed.*allowed: ",
        ),
        # Words that mean nothing, or something else.
        ({"residency": "retained", "rule": NOTHING}, "residency is 'retained'; allowed: all, w"),
        ({"residency": "window", "rule": STREAMED, "strategy": "both"}, "strategy is 'both'; all"),
        (
            {"residency": "window", "rule": M.LayerRule(query="maybe", payload="nothing")},
            "query is 'maybe'; allowed: none, exact, guessed",
        ),
        (
            {"residency": "window", "rule": M.LayerRule(query="none", payload="keys")},
            "payload is 'keys'; allowed: nothing, ",
        ),
        (
            {
                "residency": "window",
                "rule": M.LayerRule(query="none", payload="nothing", choice="some"),
            },
            "choice is 'some'; allowed: all, selector, partial_keys",
        ),
        (
            {"residency": "window", "rule": EXACT_LOGITS, "selector": "sinks_recent"},
            "selector 'sinks_recent' does not select post-QKT",
        ),
        (
            {"residency": "window", "rule": EXACT_LOGITS, "pre_selector": "topk"},
            "selector 'topk' does not select pre-QKT",
        ),
        (
            {"residency": "window", "rule": EXACT_LOGITS, "selector": "topkk"},
            'name is "topkk"; allowed: .*did you mean "topk"',
        ),
        ({"residency": "window", "rule": STREAMED, "window": -1}, "window is -1; allowed: "),
        (
            {
                "residency": "window",
                "rule": STREAMED,
                "early_rule": STREAMED,
                "first_layer": -1,
            },
            "first_layer is -1; allowed: ",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[([Cc]omposition|make_selector).*{message}"):
        M.Composition(**parts)


def test_an_unknown_part_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'residence'; did you mean 'residency'"):
        M.Composition(residence="all", rule=NOTHING)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="unknown option 'chioce'; did you mean 'choice'"):
        M.LayerRule(query="none", payload="nothing", chioce="all")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "composition", "message"),
    [
        ("h2o", EXACT_COMPOSITIONS["streamed"], "name is 'h2o'; allowed: any that is not one"),
        ("", EXACT_COMPOSITIONS["streamed"], "name is empty; allowed: any other text"),
        ("mine", "streamed", "composition is 'streamed'; allowed: a Composition"),
        ("mine", None, "composition is None; allowed: a Composition"),
    ],
)
def test_a_bad_method_is_not_registered(name: str, composition: Any, message: str) -> None:
    before = M()
    with pytest.raises(ConfigError, match=message):
        M.register(name, composition)
    assert M() == before


def test_a_composition_has_no_options(trained: Trained) -> None:
    M.register("plain", EXACT_COMPOSITIONS["streamed"])
    base = trained("tiny-llama")
    with pytest.raises(ConfigError, match=r"^\[LLM\] method_config is .*; allowed: None"):
        variant(base, method="plain", method_config={"window": 3})
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        variant(base, method="plane")
    assert generated(base, method="plain") == generated(base, method="full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "exact"}, "query is 'exact'; allowed: 'rescore'"),
        ({"query": QueryConfig(first_layer=1)}, "query.first_layer is 1; allowed: 2"),
        ({"selector": "h2o"}, "selector is 'h2o'; allowed: 'topk'"),
        (
            {"pre_selector": "sinks_recent"},
            "pre_selector is 'sinks_recent'; allowed: 'partial_keys'",
        ),
        ({"scheduler": SIX_PRE}, "strategy is 'pre'; allowed: 'post'"),
        ({"kv": KVConfig(scoring="int8")}, "scoring is 'int8'; allowed: 'full'"),
    ],
)
def test_what_a_composition_has_of_its_own_is_refused_as_an_option(
    trained: Trained, options: dict[str, Any], message: str
) -> None:
    M.register("parts", hybridgen_parts("exact"))
    with pytest.raises(ConfigError, match=rf"^\[method parts\] {message}, as parts does not read"):
        LLM(trained("tiny-llama"), method="parts", **options)


def test_a_composition_reads_what_its_parts_need() -> None:
    M.register("parts", hybridgen_parts("exact"))
    assert M.reads("parts") == ("k", "scheduler", "device_tokens", "keys", "values")
    M.register("parts", M.Composition(residency="window", rule=STREAMED))
    assert M.reads("parts") == ("device_tokens", "keys", "values")
    M.register("parts", M.Composition(residency="all", rule=NOTHING))
    assert M.reads("parts") == ()


def test_k_is_refused_where_no_selector_chooses(trained: Trained) -> None:
    M.register("parts", M.Composition(residency="window", rule=STREAMED))
    for scheduler, message in ((SIX, "k is 6"), (SchedulerConfig(k=None), "k is None")):
        with pytest.raises(ConfigError, match=rf"^\[method parts\] {message}"):
            LLM(trained("tiny-llama"), method="parts", scheduler=scheduler)


@pytest.mark.parametrize("name", [5, None, [], b"x", "\ud800"])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\[methods.register\] name is .*; allowed: a text"):
        M.register(name, Composition(residency="window", rule=STREAMED, window=1))
    with pytest.raises(ConfigError, match=r"^\[register_selector\] name is .*; allowed: a text"):
        hg.selectors.register(name, lambda **_: None, strategy="post")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rule": "exact"}, r"rule is 'exact'; allowed: a LayerRule"),
        ({"rule": None}, r"rule is None; allowed: a LayerRule"),
        ({"early_rule": ("none", "nothing", "all")}, r"early_rule is \('none'.*; allowed: a Layer"),
        ({"residency": 5}, r"residency is 5; allowed: a text"),
        ({"strategy": None}, r"strategy is None; allowed: a text"),
        ({"selector": 5}, r"selector is 5; allowed: a text"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_by_its_name(
    parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^\[Composition\] {message}"):
        Composition(**({"residency": "window", "rule": STREAMED, "window": 1} | parts))


def test_a_rule_of_anything_but_words_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^\[LayerRule\] query is 5; allowed: a text"):
        M.LayerRule(query=5, payload="nothing")  # type: ignore[arg-type]
