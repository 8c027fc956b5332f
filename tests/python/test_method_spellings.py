# SPDX-License-Identifier: Apache-2.0
"""One way to ask for a method and its options, old spellings that mean the same, and conflicts."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig, QueryConfig, SchedulerConfig
from hybridgen.engine_options import EngineSetup
from trained import ROOT, new_tokens, prompts_of, run_python, variant

M = hg.methods
Trained = Callable[[str], LLM]


def engine_options(**options: Any) -> dict[str, Any]:
    """Return what the engine is told, by name."""
    return dict(EngineSetup(**options).options(None).to_dict())


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a name": ({"method": M.H2O()}, {"method": "h2o"}),
    "k": ({"method": M.HybridGen(k=64)}, {"scheduler": SchedulerConfig(k=64)}),
    "a share": ({"method": M.HybridGen(k=0.25)}, {"scheduler": SchedulerConfig(k=0.25)}),
    "all": ({"method": M.HybridGen(k="all")}, {"scheduler": SchedulerConfig(k="all")}),
    "strategy": (
        {"method": M.HybridGen(strategy="pre")},
        {"scheduler": SchedulerConfig(strategy="pre")},
    ),
    "query": ({"method": M.HybridGen(query="exact")}, {"query": "exact"}),
    "a query's options": (
        {"method": M.HybridGen(query=QueryConfig(first_layer=3, norm="current"))},
        {"query": QueryConfig(first_layer=3, norm="current")},
    ),
    "a query of one option": (
        {"method": M.HybridGen(query=QueryConfig(mode="exact"))},
        {"query": "exact"},
    ),
    "selector": ({"method": M.HybridGen(selector="h2o")}, {"selector": "h2o"}),
    "pre_selector": (
        {"method": M.HybridGen(strategy="pre", pre_selector="sinks_recent")},
        {"scheduler": SchedulerConfig(strategy="pre"), "pre_selector": "sinks_recent"},
    ),
    "scoring": (
        {"method": M.HybridGen(scoring="int8", candidates_per_k=3)},
        {"kv": KVConfig(scoring="int8", candidates_per_k=3)},
    ),
    "steering": (
        {"method": M.HybridGen(scheduler=SchedulerConfig(k=None, k_min=7, interval=2))},
        {"scheduler": SchedulerConfig(k=None, k_min=7, interval=2)},
    ),
    "steering by k": ({"method": M.HybridGen(k=None)}, {"scheduler": SchedulerConfig(k=None)}),
    "a share of columns": (
        {"method": M.HybridGen(strategy="pre", column_share=0.5)},
        {
            "method": "hybridgen",
            "method_config": {"column_share": 0.5},
            "scheduler": SchedulerConfig(strategy="pre"),
        },
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_old_spellings_say_what_the_methods_own_options_say(name: str) -> None:
    new, old = SAME[name]
    assert engine_options(**new) == engine_options(**old)
    assert name == "a name" or engine_options(**new) != engine_options()


@pytest.mark.parametrize(
    "options",
    [
        {"method": M.H2O(heavy=5, recent=6)},
        {"method": "h2o", "method_config": M.H2O(heavy=5, recent=6)},
        {"method": "h2o", "method_config": {"heavy": 5, "recent": 6}},
        {"method_config": M.H2O(heavy=5, recent=6)},
        {"method": M.H2O(heavy=5, recent=6), "method_config": M.H2O(heavy=5, recent=6)},
    ],
)
def test_a_method_is_named_by_its_options_alone(trained: Trained, options: dict[str, Any]) -> None:
    with variant(trained("tiny-llama"), **options) as llm:
        assert llm.engine_options.method == "h2o"
        metrics = llm.generate(prompts_of(60)[0], new_tokens(4))[0].metrics
        assert metrics.resident_tokens == 11


def test_options_as_a_dict_may_have_objects_in_them(trained: Trained) -> None:
    config = {"k": None, "query": QueryConfig(mode="exact"), "scheduler": SchedulerConfig(k=None)}
    with variant(trained("tiny-llama"), method_config=config, scheduler=None) as llm:
        assert llm.engine_options.query == "exact"
        assert llm.engine_options.scheduler["k_min"] == 128


CONFLICTS: list[tuple[dict[str, Any], str]] = [
    (
        {"method": M.HybridGen(query="exact"), "query": "rescore"},
        r"query is 'exact' in the method's options and 'rescore' in LLM; allowed: one of them",
    ),
    (
        {"method": M.HybridGen(k=64), "scheduler": SchedulerConfig(k=65)},
        r"k is 64 in the method's options and 65 in SchedulerConfig; allowed: one of them",
    ),
    (
        {"method": M.HybridGen(k=64, scheduler=SchedulerConfig(k=65))},
        r"k is 64 in the method's options and 65 in SchedulerConfig",
    ),
    (
        {"method": M.HybridGen(scoring="int8"), "kv": KVConfig(scoring="int4")},
        r"scoring is 'int8' in the method's options and 'int4' in KVConfig",
    ),
    ({"method": M.HybridGen(selector="h2o"), "selector": "keyformer"}, r"selector is 'h2o' in"),
    (
        {"method": M.H2O(heavy=3), "method_config": {"heavy": 4}},
        r"method_config is \{'heavy': 4\} beside method=H2O\(heavy=3",
    ),
    ({"method": "flexgen", "method_config": M.H2O()}, r"or pass method='h2o'"),
]


@pytest.mark.parametrize(("options", "message"), CONFLICTS)
def test_what_is_said_twice_and_differently_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^\[LLM\] .*{message}"):
        EngineSetup(**options)


def test_what_is_said_twice_and_alike_is_no_conflict() -> None:
    method = M.HybridGen(k=64, query="exact", selector="h2o")
    twice = {"query": "exact", "selector": "h2o", "scheduler": SchedulerConfig(k=64)}
    assert engine_options(method=method, **twice) == engine_options(method=method)


def test_hybridgens_options_are_refused_where_they_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match=r"^\[engine options\] k is 5; .*the scheduler steers"):
        hg._core.EngineOptions(k=5, scheduler={"k_min": 7})
    with pytest.raises(ConfigError, match=r"^\[method hybridgen\] k is 64; .*the scheduler steers"):
        M.HybridGen(k=64, scheduler=SchedulerConfig(k=None))
    with pytest.raises(ConfigError, match=r"^\[H2O\] unknown option 'query'"):
        M.H2O(query="exact")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"write method=hybridgen.methods.HybridGen\(k="):
        LLM({}, k=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"^\[HybridGen\] unknown option 'ks'; did you mean 'k'"):
        M.HybridGen(ks=5)  # type: ignore[call-arg]


def test_methods_and_selectors_are_modules_that_may_still_be_called() -> None:
    assert isinstance(M, types.ModuleType)
    assert isinstance(hg.selectors, types.ModuleType)
    assert M() == M.names()
    assert hg.selectors("pre") == hg.selectors.names("pre") != hg.selectors.names("post")
    assert hg.selectors() == hg.selectors.names()
    assert hg.register_selector is hg.selectors.register


def test_what_is_made_from_the_tables_is_up_to_date() -> None:
    path = str(ROOT / "scripts/build_api.py")
    code = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"
    finished = run_python(f"import sys; sys.argv = [{path!r}, '--check']; {code}")
    assert (finished.returncode, finished.stderr) == (0, "")


class MineOfH2O(M.H2O):
    """A user's subclass with a name and a default of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"heavy": 0.3} | options))


def test_a_subclass_of_an_options_class_means_what_its_base_means() -> None:
    mine = engine_options(method=MineOfH2O(recent=6))
    assert mine == engine_options(method=M.H2O(heavy=0.3, recent=6)) != engine_options(method="h2o")

    class Window(KVConfig):
        pass

    assert engine_options(kv=Window(device_tokens=7)) == engine_options(
        kv=KVConfig(device_tokens=7)
    )
    with pytest.raises(ConfigError, match=r"\[method h2o\] heavy is -1"):
        MineOfH2O(heavy=-1)


def test_a_default_that_a_subclass_changes_reaches_the_engine() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Heavier(M.H2O):
        heavy: int | float = 0.3

    assert engine_options(method=Heavier()) == engine_options(method=M.H2O(heavy=0.3))


@pytest.mark.parametrize("place", ["method", "method_config"])
def test_the_base_of_all_methods_options_is_no_method(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[LLM\] {place} is .*MethodOptions"):
        EngineSetup(**{place: M.MethodOptions()})


def test_the_modules_list_nothing_but_what_is_public() -> None:
    for module in (hg.methods, hg.selectors):
        assert {n for n in dir(module) if not n.startswith("__")} == set(module.__all__)


def test_a_steered_request_that_never_scans_refuses_what_only_a_scan_reads() -> None:
    never = SchedulerConfig.preset("fixed_pre")
    for options in ({"selector": "h2o"}, {"kv": KVConfig(scoring="int8")}):
        with pytest.raises(ConfigError, match="tokens are chosen before their logits only"):
            engine_options(scheduler=never, **options)
        engine_options(scheduler=SchedulerConfig.preset("full"), **options)


def test_a_k_max_below_a_k_min_that_nobody_set_is_that_k_min() -> None:
    steering = SchedulerConfig(k=None, k_max=64)
    for options in ({"scheduler": steering}, {"method": M.HybridGen(scheduler=steering)}):
        bounds = engine_options(**options)["scheduler"]
        assert (bounds["k_min"], bounds["k_max"]) == (128, 128)
    with pytest.raises(ConfigError, match="k_min is 100"):
        SchedulerConfig(k=None, k_min=100, k_max=64)
