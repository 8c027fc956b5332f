# SPDX-License-Identifier: Apache-2.0
"""What a request's metrics, and a trace, say of the softmax mass that it did not attend to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridgen import LLM, KVConfig, RequestMetrics
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


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (M.HybridGen(k=8, query="rescore"), "estimated"),
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
