# SPDX-License-Identifier: Apache-2.0
"""The eight methods and full attention from Python: options, exact settings, mixes, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig
from hybridgen.config import METHOD_OPTIONS as OPTIONS
from hybridgen.outputs import RequestMetrics
from trained import (
    CPU,
    MODELS,
    ROOT,
    assert_offloaded,
    new_tokens,
    prompts_of,
    run_python,
    samples,
    variant,
)

M = hg.methods
Trained = Callable[[str], LLM]

NAMES = [
    "full",
    "hybridgen",
    "flexgen",
    "moe_lightning",
    "streaming_llm",
    "h2o",
    "keyformer",
    "infinigen",
    "hgca",
]

# ------------------------------------------------------------------------------------------ table


def test_the_methods_are_listed_in_a_fixed_order() -> None:
    assert [row["name"] for row in M.table()] == NAMES
    assert M()[: len(NAMES)] == NAMES
    assert list(M.summaries()) == NAMES
    for row in M.table():
        assert set(row) >= {"summary", "attention", "timing", "exact_when", "drops", "link"}
        assert all(text for name, text in row.items() if name not in ("tunables", "reads"))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.method)
def test_option_classes_agree_with_the_table(options: type[Any]) -> None:
    row = next(row for row in M.table() if row["name"] == options.method)
    fields = dataclasses.fields(options)
    assert [(f.name, f.default, type(f.default)) for f in fields] == [
        (option["name"], option["default"], type(option["default"])) for option in row["tunables"]
    ]
    assert all(option["allowed"] and option["meaning"] for option in row["tunables"])
    assert options().values() == {f.name: f.default for f in fields}
    for field in fields:
        assert field.name in (options.__doc__ or "")


def test_every_method_has_an_option_class_of_its_own() -> None:
    assert [options.method for options in OPTIONS] == NAMES
    for options in OPTIONS:
        assert getattr(M, options.__name__) is options


def test_a_dict_and_an_object_of_options_mean_the_same(trained: Trained) -> None:
    prompts = prompts_of(60)
    runs = []
    for config in (M.H2O(heavy=5, recent=6), {"heavy": 5, "recent": 6}):
        with variant(trained("tiny-llama"), method="h2o", method_config=config) as llm:
            runs.append(llm.generate_ids(prompts, new_tokens(8)))
    assert runs[0] == runs[1]


# -------------------------------------------------------------------------------- exact settings

# Budgets that no prompt below exceeds with its new tokens.
COUNT = 12
LENGTHS = (300, 430)
FEW = KVConfig(device_tokens=9)


def hybrid(**options: Any) -> dict[str, Any]:
    return {"method": "hybridgen", "kv": FEW, **options}


ROTARY = ("tiny-llama", "tiny-qwen2")
# Not on every model: what differs from the settings above has no part that depends on it.
ON_LLAMA_ONLY = (
    "flexgen-window",
    "h2o-host",
    "keyformer-host",
    "infinigen-first-layer",
    "moe_lightning-one-batch",
    "infinigen-few-columns",
    "hgca-single-tokens",
    "hybridgen-share",
    "hybridgen-h2o",
    "hybridgen-sinks",
    "hybridgen-digests-rescored",
    "hybridgen-partial-keys",
)
EXACT: dict[str, dict[str, Any]] = {
    "flexgen": {"method": "flexgen"},
    "flexgen-partly-resident": {"method_config": M.FlexGen(gpu_share=0.4)},
    "flexgen-window": {"method": "flexgen", "kv": FEW},
    "moe_lightning": {"method": "moe_lightning"},
    "moe_lightning-one-batch": {"method_config": M.MoELightning(micro_batches=1)},
    "moe_lightning-many": {"method_config": M.MoELightning(micro_batches=5, lookahead=3)},
    "streaming_llm": {"method": "streaming_llm"},
    "streaming_llm-shift": {"method_config": M.StreamingLLM(positions="shift")},
    "streaming_llm-clamp": {"method_config": M.StreamingLLM(positions="clamp")},
    "streaming_llm-host": {"method_config": M.StreamingLLM(home="host")},
    "h2o": {"method_config": M.H2O(heavy=300, recent=300)},
    "h2o-shift": {"method_config": M.H2O(heavy=300, recent=300, positions="shift")},
    "h2o-host": {"method_config": M.H2O(heavy=300, recent=300, home="host")},
    "keyformer": {"method_config": M.Keyformer(kv_cache=600)},
    "keyformer-host": {"method_config": M.Keyformer(kv_cache=600, home="host")},
    "infinigen": {"method_config": M.InfiniGen(alpha=math.inf, max_fetch=1.0)},
    "infinigen-first-layer": {
        "method_config": M.InfiniGen(alpha=math.inf, max_fetch=1.0, first_layer=1)
    },
    "infinigen-few-columns": {
        "method_config": M.InfiniGen(alpha=math.inf, max_fetch=1.0, column_share=0.01)
    },
    "hgca": {"method_config": M.HGCA(beta=0.0, block=4, blocks=3)},
    "hgca-single-tokens": {"method_config": M.HGCA(beta=0.0, block=1, blocks=1)},
    "hgca-large-blocks": {"method_config": M.HGCA(beta=0.0)},
    "hybridgen-topk": hybrid(query="exact"),
    "hybridgen-topk-rescored": hybrid(query="rescore"),
    "hybridgen-share": hybrid(query="exact", kv=KVConfig(device_tokens=0.1)),
    "hybridgen-h2o": hybrid(query="exact", selector="h2o"),
    "hybridgen-keyformer": hybrid(query="rescore", selector="keyformer"),
    "hybridgen-sinks": hybrid(query="exact", pre=True, pre_selector="sinks_recent"),
    "hybridgen-digests": hybrid(query="exact", pre=True, pre_selector="block_digests"),
    "hybridgen-digests-rescored": hybrid(query="rescore", pre=True, pre_selector="block_digests"),
    "hybridgen-partial-keys": hybrid(query="exact", pre=True, pre_selector="partial_keys"),
    "hybridgen-partial-keys-rescored": hybrid(
        query="rescore", pre=True, pre_selector="partial_keys"
    ),
}


def engine_of(base: LLM, setting: dict[str, Any]) -> LLM:
    """Return a variant; its method is named by its options if not by itself."""
    options = dict(setting)
    if options.pop("pre", False):
        options["scheduler"] = hg.SchedulerConfig(k="all", strategy="pre")
    return variant(base, **options)


def works_with(name: str, model: str) -> bool:
    is_rotary = model in ROTARY
    if name in ON_LLAMA_ONLY and model != "tiny-llama":
        return False
    moved = name.rpartition("-")[2]
    return moved not in ("shift", "clamp") or (moved == "shift") == is_rotary


@pytest.fixture(scope="module")
def exact_case(request: pytest.FixtureRequest, trained: Trained) -> tuple[LLM, Any, Any]:
    """Return a model, recall prompts and what full attention says to them."""
    base = trained(request.param)
    tasks = itertools.cycle(("kv", "mqar", "updated"))
    prompts = [
        list(samples(task, length, seed=3)[0].prompt_ids)
        for task, length in zip(tasks, LENGTHS, strict=False)
    ]
    outputs = base.generate(prompts, new_tokens(COUNT).replace(logprobs=2))
    # Identity of tokens is only meaningful where rounding cannot decide between two of them.
    for output in outputs:
        for entry in output.outputs[0].logprobs or []:
            best, second = sorted(entry.values(), reverse=True)[:2]
            assert best - second > 1e-3
    return base, prompts, [output.token_ids for output in outputs]


@pytest.mark.parametrize(
    ("exact_case", "name"),
    [(model, name) for model in MODELS for name in EXACT if works_with(name, model)],
    indirect=["exact_case"],
)
def test_a_method_in_its_exact_setting_equals_full_attention(
    exact_case: tuple[LLM, Any, Any], name: str
) -> None:
    base, prompts, expected = exact_case
    with engine_of(base, EXACT[name]) as llm:
        assert llm.generate_ids(prompts, new_tokens(COUNT)) == expected
        if name.startswith(("hybridgen", "flexgen", "infinigen", "hgca")):
            assert_offloaded(llm)
        # Also when the prompt's tail passes through decode steps, which the method governs.
        assert llm.generate_ids(prompts, new_tokens(COUNT), decode_prompt_tokens=7) == expected


@pytest.mark.parametrize("exact_case", MODELS, indirect=True)
def test_the_prompts_need_their_far_context(exact_case: tuple[LLM, Any, Any]) -> None:
    base, prompts, expected = exact_case
    answers = [
        list(samples(task, length, seed=3)[0].answer_ids)
        for task, length in zip(("kv", "mqar"), LENGTHS, strict=False)
    ]
    assert [ids[:1] for ids in expected[:2]] == answers
    window = M.StreamingLLM(sinks=4, window=40)
    with engine_of(base, {"method_config": window}) as llm:
        found = llm.generate_ids(prompts[:2], new_tokens(1), decode_prompt_tokens=8)
    assert not any(ids == answer for ids, answer in zip(found, answers, strict=True))


def test_a_method_in_its_exact_setting_equals_full_attention_on_a_pretrained_model(
    smollm2: Path,
) -> None:
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [name for name in EXACT if name in NAMES] + [
        "hybridgen-topk",
        "hybridgen-topk-rescored",
    ]
    with LLM(smollm2, dtype="float32", method="full", cpu=CPU) as base:
        prompt = base.tokenizer(document)["input_ids"][:300]
        expected = base.generate_ids([prompt], new_tokens(COUNT))
        for name in names:
            with engine_of(base, EXACT[name]) as llm:
                assert llm.generate_ids([prompt], new_tokens(COUNT)) == expected, name


# The plainest way to ask for a method, in a process of its own: a crash must not end the tests.
DEFAULTS = """
import sys
from hybridgen import LLM, CpuConfig, SamplingParams
from trained import CPU, folder_of, new_tokens, prompts_of
with LLM(folder_of("tiny-llama"), dtype="float32", cpu=CPU, method=sys.argv[1]) as llm:
    outputs = llm.generate(prompts_of(300, 20), new_tokens(40))
print([len(output.token_ids) for output in outputs])
"""


@pytest.mark.parametrize("name", ["hgca", "infinigen"])
def test_a_method_runs_with_nothing_but_its_name(name: str) -> None:
    finished = run_python(DEFAULTS, name)
    assert (finished.returncode, finished.stdout) == (0, "[40, 40]\n"), finished.stderr


# ------------------------------------------------------------------------------------------ mixes

APPROXIMATE: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "flexgen": {"method": "flexgen"},
    "moe_lightning": {"method_config": M.MoELightning(micro_batches=3)},
    "streaming_llm": {"method_config": M.StreamingLLM(sinks=2, window=11)},
    "streaming_llm-shift": {"method_config": M.StreamingLLM(sinks=2, window=11, positions="shift")},
    "streaming_llm-host": {"method_config": M.StreamingLLM(sinks=2, window=11, home="host")},
    "h2o": {"method_config": M.H2O(heavy=0.1, recent=7)},
    "h2o-shift": {"method_config": M.H2O(heavy=6, recent=7, positions="shift")},
    "h2o-host": {"method_config": M.H2O(heavy=6, recent=7, home="host")},
    "keyformer": {"method_config": M.Keyformer(kv_cache=0.3)},
    "keyformer-host": {"method_config": M.Keyformer(kv_cache=14, home="host")},
    "infinigen": {"method_config": M.InfiniGen(alpha=2.0, max_fetch=0.1, first_layer=1)},
    "infinigen-pool": {"method_config": M.InfiniGen(max_fetch=5, capacity=0.5, policy="lru")},
    "hgca": {"method_config": M.HGCA(block=1, blocks=8, beta=2.0, keep_min=0)},
    "hgca-blocks": {"method_config": M.HGCA(block=8, blocks=2, beta=1.0, keep_min=1)},
    "hybridgen": hybrid(scheduler=hg.SchedulerConfig(k=6)),
    "hybridgen-keyformer": hybrid(scheduler=hg.SchedulerConfig(k=6), selector="keyformer"),
    "hybridgen-digests": hybrid(
        scheduler=hg.SchedulerConfig(k=6, strategy="pre"), pre_selector="block_digests"
    ),
    "hybridgen-partial-keys": hybrid(
        scheduler=hg.SchedulerConfig(k=6, strategy="pre"), pre_selector="partial_keys"
    ),
}
MIX = prompts_of(120, 3, 45, 80, 17)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_requests_beside_each_other_equal_requests_run_alone(trained: Trained, name: str) -> None:
    counts = (9, 20, 1, 16, 12)
    params = [new_tokens(count) for count in counts]
    with engine_of(trained("tiny-llama"), APPROXIMATE[name]) as llm:
        together = llm.generate_ids(MIX, params, decode_prompt_tokens=2)
        alone = [
            llm.generate_ids([prompt], param, decode_prompt_tokens=2)[0]
            for prompt, param in zip(MIX, params, strict=True)
        ]
    assert together == alone
    assert [len(ids) for ids in together] == list(counts)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_two_streams_taken_in_turns_equal_requests_run_alone(trained: Trained, name: str) -> None:
    with engine_of(trained("tiny-qwen2"), APPROXIMATE[name]) as llm:
        prompts = MIX[:1] + MIX[3:4]
        alone = llm.generate_ids(prompts, new_tokens(10))
        streams = [llm.stream(prompt, new_tokens(10)) for prompt in prompts]
        tokens: list[list[int]] = [[], []]
        # The second starts late, while the first one is decoding.
        tokens[0] += [next(streams[0]).token_id for _ in range(3)]
        for chunks in itertools.zip_longest(*streams):
            for found, chunk in zip(tokens, chunks, strict=True):
                if chunk is not None:
                    found.append(chunk.token_id)
    assert tokens == alone


@pytest.mark.parametrize("name", [name for name in APPROXIMATE if name not in ("full", "flexgen")])
def test_a_request_leaves_nothing_behind(trained: Trained, name: str) -> None:
    with engine_of(trained("tiny-llama"), APPROXIMATE[name]) as llm:
        first = llm.generate_ids(MIX[:1], new_tokens(10))
        llm.generate_ids(MIX[1:], new_tokens(5))
        assert llm.generate_ids(MIX[:1], new_tokens(10)) == first
        assert all(tier["used"] == 0 for tier in llm.memory.values())


def noisy(base: LLM, seed: int) -> LLM:
    return engine_of(base, {"method_config": M.Keyformer(kv_cache=14, seed=seed)})


def test_noise_belongs_to_the_seed_and_the_prompt(trained: Trained) -> None:
    params = new_tokens(20).replace(logprobs=0)
    scores: dict[int, list[list[float]]] = {}
    for seed in (0, 1, 2):
        scores[seed] = []
        for _ in range(2):
            with noisy(trained("tiny-llama"), seed) as llm:
                for _ in range(2):
                    outputs = llm.generate(MIX[:1] + MIX[2:4], params)
                    scores[seed].append([o.outputs[0].cumulative_logprob for o in outputs])
        # Engines, calls and neighbours play no part.
        assert scores[seed][1:] == scores[seed][:1] * 3
    first, second, third = (scores[seed][0] for seed in (0, 1, 2))
    assert first != second != third != first


def test_a_stream_a_batch_and_a_repetition_draw_the_same_noise(trained: Trained) -> None:
    with noisy(trained("tiny-llama"), 0) as llm:
        expected = llm.generate_ids(MIX[:1], new_tokens(20))
        assert llm.generate_ids([*MIX[1:], MIX[0]], new_tokens(20))[-1:] == expected
        assert [[c.token_id for c in llm.stream(MIX[0], new_tokens(20))]] == expected
        assert llm.generate_ids(MIX[:1] * 3, new_tokens(20)) == expected * 3


def test_scores_repeat_whoever_else_is_scored(trained: Trained) -> None:
    pairs = [(prompt[:-4], prompt[-4:]) for prompt in (MIX[0], MIX[2], MIX[3])]
    with noisy(trained("tiny-llama"), 0) as llm:
        alone = [llm.score([pair])[0] for pair in pairs]
        assert llm.score(pairs) == alone
        assert llm.score(pairs[::-1]) == alone[::-1]


# ------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("name", APPROXIMATE)
def test_every_token_is_resident_offloaded_or_dropped(trained: Trained, name: str) -> None:
    with engine_of(trained("tiny-llama"), APPROXIMATE[name]) as llm:
        for output in llm.generate(MIX, new_tokens(12)):
            found = output.metrics
            # The last new token is never fed back, so it has no key and value.
            tokens = found.prompt_tokens + found.generated_tokens - 1
            assert found.resident_tokens + found.offloaded_tokens + found.dropped_tokens == tokens


def test_metrics_say_what_was_dropped_for_good(trained: Trained) -> None:
    def metrics(config: Any, count: int = 8) -> RequestMetrics:
        with engine_of(trained("tiny-llama"), {"method_config": config}) as llm:
            return llm.generate(MIX[0], new_tokens(count))[0].metrics

    device = metrics(M.StreamingLLM(sinks=2, window=11))
    assert (device.resident_tokens, device.dropped_tokens) == (13, 120 + 7 - 13)
    host = metrics(M.StreamingLLM(sinks=2, window=11, home="host"))
    assert (host.offloaded_tokens, host.dropped_tokens) == (13, 120 + 7 - 13)
    assert metrics(M.H2O(heavy=5, recent=6)).resident_tokens == 11
    assert metrics(M.H2O(heavy=0.1, recent=0.1)).resident_tokens == 24
    assert metrics(M.Keyformer(kv_cache=0.5)).resident_tokens == 60
    assert metrics(M.FlexGen()).dropped_tokens == 0
    assert metrics(M.HGCA(block=1, blocks=4)).dropped_tokens == 0


@pytest.mark.parametrize(
    ("config", "counts_all"),
    [
        (M.FlexGen(), True),
        (M.MoELightning(), True),
        (M.InfiniGen(max_fetch=4, first_layer=1), False),
        (M.HGCA(block=1, blocks=4, beta=5.0, keep_min=0), False),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_metrics_say_how_many_offloaded_tokens_counted(
    trained: Trained, config: Any, counts_all: bool
) -> None:
    with engine_of(trained("tiny-llama"), {"method_config": config}) as llm:
        found = llm.generate(MIX[0], new_tokens(8))[0].metrics
    assert (found.k == found.offloaded_tokens) == counts_all
    assert (found.attended_offloaded_share == pytest.approx(1.0)) == counts_all


# --------------------------------------------------------------------------------------- refusals


def _shown(value: object) -> str:
    """Return a value as messages show it; numbers may be shortened."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return r"\S+"
    return re.escape(repr(value))


@pytest.mark.parametrize(
    ("method", "config", "name"),
    [
        ("h2o", {"heavy": -1}, "heavy"),
        ("h2o", {"recent": 0}, "recent"),
        ("h2o", {"heavy": -1, "recent": 0}, "heavy"),
        ("h2o", {"heavy": 1.5}, "heavy"),
        ("h2o", {"heavy": -0.1}, "heavy"),
        ("h2o", {"recent": 0.0}, "recent"),
        ("h2o", {"recent": 1.01}, "recent"),
        ("h2o", {"heavy": math.nan}, "heavy"),
        ("h2o", {"heavy": "many"}, "heavy"),
        ("h2o", {"heavy": True}, "heavy"),
        ("h2o", {"heavy": None}, "heavy"),
        ("h2o", {"heavy": [1]}, "heavy"),
        ("h2o", {"heavy": 1 << 70}, "heavy"),
        ("h2o", {"positions": "clamp"}, "positions"),
        ("h2o", {"positions": "shift", "home": "host"}, "positions"),
        ("h2o", {"home": "disk"}, "home"),
        ("h2o", {"home": 1}, "home"),
        ("streaming_llm", {"window": 0}, "window"),
        ("streaming_llm", {"window": 8.0}, "window"),
        ("streaming_llm", {"sinks": -1}, "sinks"),
        ("streaming_llm", {"positions": "rolled"}, "positions"),
        ("streaming_llm", {"positions": "shift", "home": "host"}, "positions"),
        ("keyformer", {"kv_cache": 0}, "kv_cache"),
        ("keyformer", {"kv_cache": 1.5}, "kv_cache"),
        ("keyformer", {"recent": 0.0}, "recent"),
        ("keyformer", {"recent": 1.5}, "recent"),
        ("keyformer", {"tau_init": 0.0}, "tau_init"),
        ("keyformer", {"tau_end": -1.0}, "tau_end"),
        ("keyformer", {"tau_end": math.inf}, "tau_end"),
        ("keyformer", {"noise": 1}, "noise"),
        ("keyformer", {"noise": None}, "noise"),
        ("keyformer", {"seed": -1}, "seed"),
        ("infinigen", {"alpha": 0.0}, "alpha"),
        ("infinigen", {"alpha": -4}, "alpha"),
        ("infinigen", {"alpha": math.nan}, "alpha"),
        ("infinigen", {"column_share": 0.0}, "column_share"),
        ("infinigen", {"column_share": 1.1}, "column_share"),
        ("infinigen", {"max_fetch": 0}, "max_fetch"),
        ("infinigen", {"max_fetch": 1.1}, "max_fetch"),
        ("infinigen", {"first_layer": 0}, "first_layer"),
        ("infinigen", {"capacity": 0.0}, "capacity"),
        ("infinigen", {"capacity": 2.0}, "capacity"),
        ("infinigen", {"policy": "lifo"}, "policy"),
        ("hgca", {"beta": -0.1}, "beta"),
        ("hgca", {"alpha": 1.1}, "alpha"),
        ("hgca", {"block": 0}, "block"),
        ("hgca", {"blocks": 0}, "blocks"),
        ("hgca", {"keep_min": -1}, "keep_min"),
        ("hgca", {"groups": 0}, "groups"),
        ("hgca", {"block": 4, "blocks": 1 << 62}, "blocks"),
        ("moe_lightning", {"micro_batches": 0}, "micro_batches"),
        ("moe_lightning", {"lookahead": 0}, "lookahead"),
        ("flexgen", {"gpu_share": -0.1}, "gpu_share"),
        ("flexgen", {"gpu_share": 1.1}, "gpu_share"),
        ("hybridgen", {"column_share": 0.0}, "column_share"),
    ],
)
def test_an_impossible_option_is_refused_by_name(
    trained: Trained, method: str, config: dict[str, Any], name: str
) -> None:
    base = trained("tiny-llama")
    message = rf"^\[method {method}\] {name} is {_shown(config[name])}; allowed: "
    with pytest.raises(ConfigError, match=message):
        variant(base, method=method, method_config=config)
    options = next(options for options in OPTIONS if options.method == method)
    with pytest.raises(ConfigError, match=message):
        options(**config)
    assert len(base.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2


def test_numbers_of_numpy_are_options_too() -> None:
    whole: Any = np.int64(7)
    for share in (np.float32(0.5), np.float64(0.5)):
        assert M.H2O(heavy=share, recent=whole)  # type: ignore[arg-type]
    flag: Any = np.bool_(False)
    assert not M.Keyformer(noise=flag).noise


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("h2o", {"heavi": 3}, "option 'heavi' is not known; allowed: .*; did you mean 'heavy'"),
        ("h2o", {"window": 3}, "option 'window' is not known; allowed: heavy, recent"),
        ("streaming_llm", {"windw": 3}, "did you mean 'window'"),
        ("full", {"window": 3}, "option 'window' is not known; allowed: none"),
        ("h2o", M.HGCA(), "method_config is HGCA; allowed: .*'h2o'; or pass method='hgca'"),
        ("h2o", 3, "method_config is 3; allowed: a dict of options"),
        ("h2o", {1: 2}, "method_config is {1: 2}; allowed: a dict of options"),
        ("h2oo", None, "method is 'h2oo'; allowed: full, .*; did you mean 'h2o'"),
        ("hybridgin", None, "did you mean 'hybridgen'"),
        ("", None, "method is ''; allowed: full"),
        (7, None, "method is 7; allowed: full"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_known(
    trained: Trained, method: Any, config: Any, message: str
) -> None:
    base = trained("tiny-llama")
    with pytest.raises(ConfigError, match=rf"^\[.*{message}") as caught:
        variant(base, method=method, method_config=config)
    assert "allowed" in str(caught.value)
    assert len(base.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2


def test_an_unknown_field_of_an_option_class_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^\[H2O\] unknown option 'heavi'; did you mean 'heavy'"):
        M.H2O(heavi=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("model", "config", "allowed"),
    [
        ("tiny-opt", M.StreamingLLM(positions="shift"), "original, clamp"),
        ("tiny-opt", M.H2O(positions="shift"), "original"),
        ("tiny-llama", M.StreamingLLM(positions="clamp"), "original, shift"),
        ("tiny-qwen2", M.StreamingLLM(positions="clamp"), "original, shift"),
    ],
)
def test_positions_that_the_model_does_not_have_are_refused(
    trained: Trained, model: str, config: Any, allowed: str
) -> None:
    base = trained(model)
    message = rf"^\[method {config.method}\] positions is .*; allowed there: {allowed}$"
    with pytest.raises(ConfigError, match=message):
        engine_of(base, {"method_config": config})
    assert len(base.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2


# -------------------------------------------------------------------- options that are not read

# Every option that only some methods read, set to something else than its default.
SET: dict[str, dict[str, Any]] = {
    "query": {"query": "exact"},
    "query.first_layer": {"query": hg.QueryConfig(first_layer=3)},
    "query.norm": {"query": hg.QueryConfig(norm="current")},
    "query.source": {"query": hg.QueryConfig(source="previous_query")},
    "selector": {"selector": "h2o"},
    "pre_selector": {"pre_selector": "sinks_recent"},
    "strategy": {"scheduler": hg.SchedulerConfig(strategy="pre")},
    "k": {"scheduler": hg.SchedulerConfig(k=5)},
    "scheduler": {"scheduler": hg.SchedulerConfig(k=None)},
    "scoring": {"kv": KVConfig(scoring="int8")},
    "candidates_per_k": {"kv": KVConfig(scoring="int8", candidates_per_k=3)},
    "device_tokens": {"kv": KVConfig(device_tokens=30)},
    "keys": {"kv": KVConfig(keys="int8")},
    "values": {"kv": KVConfig(values="int4")},
}
OF_THE_ENGINE = {"device_tokens", "keys", "values"}
RETAINING = ("streaming_llm", "h2o", "keyformer")
OWN_STRATEGY = {"infinigen": "pre", "hgca": "pre"}


def test_there_is_a_setting_of_every_option_that_not_all_methods_read() -> None:
    own = {field.name for field in dataclasses.fields(M.HybridGen)}
    only_own = {"column_share", "mass", "k_max"}
    assert {name.partition(".")[0] for name in SET} | only_own == own | OF_THE_ENGINE
    assert set(M.reads("hybridgen")) == own | OF_THE_ENGINE
    assert M.reads("full") == ()
    assert {name for name in NAMES if "device_tokens" in M.reads(name)} == {
        "hybridgen",
        "flexgen",
        "streaming_llm",
        "infinigen",
        "hgca",
    }
    for option in ("keys", "values"):
        assert [name for name in NAMES if option not in M.reads(name)] == ["full"]
    with pytest.raises(ConfigError, match=r"name is 'fulll'; allowed: .*did you mean 'full'"):
        M.reads("fulll")


@pytest.mark.parametrize("method", [name for name in NAMES if name != "hybridgen"])
@pytest.mark.parametrize("option", SET)
def test_an_option_that_the_method_does_not_read_is_refused_by_name(
    trained: Trained, method: str, option: str
) -> None:
    base = trained("tiny-llama")
    if option.partition(".")[0] in M.reads(method) or (option, OWN_STRATEGY.get(method)) == (
        "strategy",
        "pre",
    ):
        on_host = option in ("keys", "values") and method in RETAINING
        own = {"method_config": {"home": "host"}} if on_host else {}
        with LLM(base, method=method, **own, **SET[option]) as llm:
            assert len(llm.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2
        return
    name = {"candidates_per_k": "scoring", "scheduler": "k"}.get(option, option)
    message = rf"^\[method {method}\] {name} is .*; allowed: .* {method} does not read it; leave "
    with pytest.raises(ConfigError, match=message):
        LLM(base, method=method, **SET[option])


def test_all_that_is_not_read_is_named_at_once(trained: Trained) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(
            trained("tiny-llama"),
            method="full",
            query="exact",
            selector="h2o",
            kv=KVConfig(device_tokens=3),
            scheduler=hg.SchedulerConfig(k=5, strategy="pre"),
        )
    for text in ("query is 'exact'", "selector", "strategy", "k", "device_tokens"):
        assert text in str(caught.value)


def test_device_tokens_say_how_many_tokens_streaming_llm_keeps(trained: Trained) -> None:
    base = trained("tiny-llama")
    params, prompt = new_tokens(6), prompts_of(90)
    own = {"method": "streaming_llm", "method_config": {"sinks": 3, "window": 20}}
    with variant(base, scheduler=None, **own) as llm:
        expected = llm.generate_ids(prompt, params)
    kept = {"method_config": {"sinks": 3}, "kv": KVConfig(device_tokens=23)}
    with variant(base, scheduler=None, method="streaming_llm", **kept) as llm:
        output = llm.generate(prompt, params)[0]
    assert output.token_ids == expected[0]
    assert output.metrics.resident_tokens == 23


@pytest.mark.parametrize(
    ("config", "device_tokens"),
    [({"window": 20}, 24), ({}, 4), ({}, 0.5), ({"home": "host"}, 30)],
)
def test_streaming_llm_refuses_device_tokens_that_say_nothing_or_something_else(
    trained: Trained, config: dict[str, Any], device_tokens: float
) -> None:
    kv = KVConfig(device_tokens=device_tokens)
    with pytest.raises(ConfigError, match="device_tokens"):
        LLM(trained("tiny-llama"), method="streaming_llm", method_config=config, kv=kv)


SILENCED: list[tuple[Any, dict[str, Any]]] = [
    (M.HybridGen(column_share=0.9), {}),
    (M.FlexGen(gpu_share=0.9), {"kv": KVConfig(device_tokens=4)}),
    (M.HGCA(blocks=3), {"kv": KVConfig(device_tokens=4)}),
    (M.StreamingLLM(window=9), {"kv": KVConfig(device_tokens=30)}),
]


@pytest.mark.parametrize(("config", "options"), SILENCED)
def test_an_option_of_the_method_that_another_one_silences_is_refused_unless_at_its_default(
    trained: Trained, config: Any, options: dict[str, Any]
) -> None:
    base, method = trained("tiny-llama"), config.method
    changed = {n: v for n, v in config.values().items() if v != type(config)().values()[n]}
    ((name, value),) = changed.items()
    message = rf"^\[method {method}\] {name} is {value}; allowed: "
    for given in (config, changed):
        with pytest.raises(ConfigError, match=message):
            LLM(base, method=method, method_config=given, **options)
    with variant(base, scheduler=None, method=method, method_config=type(config)(), **options):
        pass


@pytest.mark.parametrize(
    ("options", "silenced", "message"),
    [
        (M.Keyformer, {"noise": False, "seed": 3}, "seed is 3; allowed: 0, as noise=False"),
        (M.InfiniGen, {"policy": "lru"}, "policy is 'lru'; allowed: 'counter', as no pool"),
    ],
)
def test_options_that_silence_each_other_are_refused_when_they_are_made(
    options: Any, silenced: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**silenced)


def test_an_option_at_its_default_is_no_request(trained: Trained) -> None:
    options: dict[str, Any] = {
        "query": "rescore",
        "selector": "topk",
        "pre_selector": "partial_keys",
        "kv": KVConfig(),
        "scheduler": hg.SchedulerConfig(),
    }
    with LLM(trained("tiny-llama"), method="full", **options) as llm:
        assert len(llm.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": hg.QueryConfig(mode="exact", first_layer=3)}, "query.first_layer is 3.*guesses"),
        (SET["pre_selector"], "pre_selector is 'sinks_recent'.*set strategy='pre' or k=None"),
        (SET["selector"] | SET["strategy"], "selector is 'h2o'.*set strategy='post'"),
        (
            {"query": hg.QueryConfig(source="previous_query", norm="current")},
            "query.norm is 'current'.*takes that query as it is",
        ),
    ],
)
def test_an_option_that_another_one_leaves_without_effect_is_refused(
    trained: Trained, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^\[method hybridgen\] {message}"):
        LLM(trained("tiny-llama"), **options)


def test_a_revision_of_what_has_none_is_refused(trained: Trained) -> None:
    for model in (trained("tiny-llama"), {"architectures": ["LlamaForCausalLM"]}):
        with pytest.raises(ConfigError, match=r"^\[LLM\] revision is 'main' and nothing is read"):
            LLM(model, revision="main")


# --------------------------------------------------------------------------------- shared weights


def test_another_llm_shares_its_weights_and_tokenizer(trained: Trained) -> None:
    base = trained("tiny-llama")
    with LLM(base, method="h2o") as first, LLM(first, method="flexgen") as second:
        assert first.model.weights is second.model.weights is base.model.weights
        assert first.tokenizer is base.tokenizer
        assert (first.path, second.model_config) == (base.path, base.model_config)
        expected = base.generate_ids(MIX, new_tokens(6))
        # Each has requests of its own, and outlives the one that it was made of.
        first.close()
        assert second.generate_ids(MIX, new_tokens(6)) == expected
        with pytest.raises(ConfigError, match="the engine is closed"):
            first.generate([5, 6])


@pytest.mark.parametrize(
    "options", [{"dtype": "float32"}, {"device": "cpu"}, {"load_format": "dummy"}]
)
def test_weights_that_are_loaded_cannot_be_loaded_differently(
    trained: Trained, options: dict[str, str]
) -> None:
    (name, value) = next(iter(options.items()))
    message = rf"^\[LLM\] {name} is '{value}' for a model that is loaded already; allowed: 'auto'"
    with pytest.raises(ConfigError, match=message):
        LLM(trained("tiny-llama"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "positions"), [("tiny-llama", "shift"), ("tiny-opt", "clamp")])
def test_streams_past_the_positions_of_the_model(
    trained: Trained, name: str, positions: str
) -> None:
    base = trained(name)
    known = base.model_config["max_positions"]
    options = M.StreamingLLM(sinks=4, window=60, positions=positions)
    with variant(
        base, method="streaming_llm", method_config=options, max_model_len=2 * known
    ) as llm:
        long_prompt = [5 + i % 40 for i in range(known + 50)]
        with pytest.raises(ConfigError, match="decode_prompt_tokens=50"):
            llm.generate_ids([long_prompt], new_tokens(4))
        ids = llm.generate_ids([long_prompt], new_tokens(30), decode_prompt_tokens=60)
        assert [len(new) for new in ids] == [30]
    with pytest.raises(ConfigError, match=f"allowed: 1 to {known} .*'shift' or 'clamp'"):
        variant(base, method="full", max_model_len=2 * known)
