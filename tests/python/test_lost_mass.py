# SPDX-License-Identifier: Apache-2.0
"""What a request's metrics, and a trace, say of the softmax mass that it did not attend to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import MODEL_FOLDERS
from hybridgen import LLM, ConfigError, KVConfig, RequestMetrics
from hybridgen import methods as M
from trained import new_tokens

Trained = Callable[[str], LLM]

PROMPT = [5 + i % 40 for i in range(120)]
FEW: dict[str, Any] = {"kv": KVConfig(device_tokens=16)}


def metrics_of(model: Any, method: Any, count: int = 8, **options: Any) -> RequestMetrics:
    with LLM(model, method=method, **options) as llm:
        return llm.generate(PROMPT, new_tokens(count))[0].metrics


@pytest.mark.parametrize(
    "method",
    ["full", "flexgen", "moe_lightning", M.HybridGen(k="all"), M.HybridGen(k="all", query="exact")],
    ids=str,
)
def test_nothing_is_lost_where_every_token_is_attended_to(trained: Trained, method: Any) -> None:
    options = FEW if isinstance(method, M.HybridGen) else {}
    found = metrics_of(trained("tiny-llama"), method, **options)
    assert (found.lost_mass, found.largest_lost_mass) == (0.0, 0.0)
    assert (found.lost_mass_kind, found.lost_mass_steps) == ("exact", 7)


def test_fewer_tokens_lose_more(trained: Trained) -> None:
    lost = []
    for k in (1, 4, 16, 64):
        found = metrics_of(trained("tiny-llama"), M.HybridGen(k=k, query="exact"), **FEW)
        assert found.lost_mass_kind == "exact"
        assert found.lost_mass is not None
        assert found.largest_lost_mass is not None
        assert 0 < found.lost_mass <= found.largest_lost_mass < 1
        lost.append(found.lost_mass)
    assert lost == sorted(lost, reverse=True)


def test_a_mass_bounds_what_is_lost_and_takes_no_more_than_it_needs(trained: Trained) -> None:
    taken = []
    for mass in (0.2, 0.5, 0.9, 0.99):
        found = metrics_of(trained("tiny-llama"), M.HybridGen(mass=mass, query="exact"), **FEW)
        assert found.lost_mass_kind == "exact"
        assert found.lost_mass is not None
        assert found.largest_lost_mass is not None
        assert 0 < found.lost_mass <= found.largest_lost_mass <= 1 - mass
        assert 0 < found.k < found.offloaded_tokens
        taken.append(found.attended_offloaded_share)
    assert taken == sorted(taken)
    assert taken[0] < taken[-1] / 2


def test_a_mass_is_limited_by_k_max(trained: Trained) -> None:
    model = trained("tiny-llama")
    free = metrics_of(model, M.HybridGen(mass=0.99, query="exact"), **FEW)
    limited = metrics_of(model, M.HybridGen(mass=0.99, k_max=2, query="exact"), **FEW)
    assert limited.k < free.k
    assert free.lost_mass is not None
    assert limited.lost_mass is not None
    assert limited.lost_mass > free.lost_mass


@pytest.mark.parametrize(
    ("option", "others"),
    [
        ("k", {"k": 3}),
        ("mass", {"k": None}),
        ("strategy", {"strategy": "pre"}),
        ("selector", {"selector": "h2o"}),
        ("scoring", {"scoring": "int8"}),
    ],
)
def test_what_a_mass_cannot_be_beside_is_refused_by_name(
    trained: Trained, option: str, others: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"^\[method hybridgen\] {option} is .*; allowed: "):
        LLM(trained("tiny-llama"), method=M.HybridGen(mass=0.9, **others))


@pytest.mark.parametrize("mass", [0, 1, 1.5, -0.1, float("nan"), "much"])
def test_a_mass_that_is_no_share_is_refused(mass: Any) -> None:
    with pytest.raises(ConfigError, match=r"mass is .*; allowed: None or a number in \(0, 1\)"):
        M.HybridGen(mass=mass)


@pytest.mark.parametrize("k_max", [0, -1, 0.0, 1.0, 1.5, "auto", "few", None])
def test_a_k_max_that_is_no_number_of_tokens_is_refused(k_max: Any) -> None:
    with pytest.raises(ConfigError, match=r"k_max is .*; allowed: an int in .*, or 'all'"):
        M.HybridGen(mass=0.9, k_max=k_max)


def test_a_timed_device_has_no_logits_to_choose_by() -> None:
    with pytest.raises(ConfigError, match=r"is timed and has none; allowed there: a number"):
        LLM(
            MODEL_FOLDERS / "tiny-llama",
            device="emulated:h100-nvl",
            dtype="float16",
            method=M.HybridGen(mass=0.9),
        )


def test_k_max_without_mass_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"k_max is 5; .*set mass, or k alone"):
        LLM(trained("tiny-llama"), method=M.HybridGen(k_max=5))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (M.HybridGen(k=8, query="rescore"), "estimated"),
        (M.HybridGen(mass=0.8, query="rescore"), "estimated"),
        (M.HybridGen(mass=0.8, query="speculative"), "estimated"),
        (M.HybridGen(k=8, query="speculative"), "estimated"),
        (M.HybridGen(k=8, query="exact", scoring="int8"), "estimated"),
        (M.HybridGen(k=8, strategy="pre", pre_selector="sinks_recent"), None),
        (M.H2O(heavy=4, recent=4), None),
        (M.StreamingLLM(sinks=2, window=8), None),
        (M.InfiniGen(max_fetch=4, first_layer=1), None),
    ],
    ids=str,
)
def test_the_kind_says_what_is_known(trained: Trained, method: Any, kind: str | None) -> None:
    options = FEW if isinstance(method, M.HybridGen) else {}
    found = metrics_of(trained("tiny-llama"), method, **options)
    assert found.lost_mass_kind == kind
    assert (found.lost_mass is None) == (kind is None)
    assert (found.largest_lost_mass is None) == (kind is None)
    assert found.lost_mass_steps == (0 if kind is None else 7)


def test_a_request_without_steps_knows_nothing(trained: Trained) -> None:
    found = metrics_of(trained("tiny-llama"), "full", count=1)
    assert (found.decode_steps, found.lost_mass, found.lost_mass_kind) == (0, None, None)


def test_samples_of_a_prompt_are_averaged_over_their_steps() -> None:
    parts = [
        RequestMetrics(
            lost_mass=0.1, largest_lost_mass=0.2, lost_mass_kind="exact", lost_mass_steps=3
        ),
        RequestMetrics(
            lost_mass=0.5, largest_lost_mass=0.6, lost_mass_kind="estimated", lost_mass_steps=1
        ),
        RequestMetrics(),
    ]
    found = RequestMetrics.combined(parts)
    assert found.lost_mass == pytest.approx(0.2)
    assert found.largest_lost_mass == 0.6
    assert (found.lost_mass_kind, found.lost_mass_steps) == ("estimated", 4)
    assert RequestMetrics.combined(parts[2:] * 2).lost_mass is None


def test_a_trace_has_a_track_of_it(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with LLM(trained("tiny-llama"), method=M.HybridGen(k=4, query="exact"), **FEW) as llm:
        with llm.tracing(path):
            found = llm.generate(PROMPT, new_tokens(8))[0].metrics
    events = json.loads(path.read_text())["traceEvents"]
    steps = [e["args"] for e in events if e["ph"] == "C" and e["name"].startswith("lost mass of")]
    assert len(steps) == found.lost_mass_steps == 7
    assert all(step["estimated"] == 0 for step in steps)
    assert sum(step["exact"] for step in steps) / 7 == pytest.approx(found.lost_mass)
    assert any(e["name"].startswith("K of request") for e in events if e["ph"] == "C")
