# SPDX-License-Identifier: Apache-2.0
"""The model class for lm-evaluation-harness, against a stand-in for what it uses of it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import hybridgen as hg
from trained import CPU, folder_of, prompts_of

TINY = folder_of("tiny-llama")
MODULE = "hybridgen.integrations.lm_eval"
REGISTERED: dict[str, Any] = {}


class StandInLM:
    """What lm_eval.api.model.LM is to its subclasses."""

    def __init__(self) -> None:
        self.cache_hook = None


@dataclass
class Instance:
    """A request as the harness makes it."""

    args: tuple[Any, ...]


def register_model(*names: str) -> Any:
    def add(kind: type) -> type:
        REGISTERED.update(dict.fromkeys(names, kind))
        return kind

    return add


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    """Import the adapter with the stand-in in the harness's place."""
    stand_ins = {name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.api")}
    stand_ins["lm_eval.api.model"] = model = types.ModuleType("lm_eval.api.model")
    stand_ins["lm_eval.api.registry"] = registry = types.ModuleType("lm_eval.api.registry")
    model.LM = StandInLM  # type: ignore[attr-defined]
    registry.register_model = register_model  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, MODULE, raising=False)
        yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def model(adapter: Any) -> Iterator[Any]:
    found = REGISTERED["hybridgen"](
        str(TINY), method="hybridgen", k=24, device_tokens=32, dtype="float32", batch_size="4"
    )
    assert isinstance(found, adapter.HybridGenLM)
    with found.llm:
        yield found


def words(ids: list[int]) -> str:
    return str(hg.Model(TINY).tokenizer.decode(ids))


def test_without_the_harness_the_import_says_what_to_install() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)
        patch.delitem(sys.modules, MODULE, raising=False)
        with pytest.raises(ImportError, match="needs lm-evaluation-harness: pip install lm_eval"):
            importlib.import_module(MODULE)


def test_options_reach_engine_cache_and_method(model: Any) -> None:
    options = model.llm.engine_options
    assert options.method == "hybridgen"
    assert options.max_num_seqs == 4
    assert options.device_tokens == 32
    assert options.k == 24


def test_loglikelihoods_are_those_of_score_and_pass_through_decode(model: Any) -> None:
    (prompt,) = prompts_of(200)
    context = words(prompt)
    pairs = [(context, " v10"), (context, " v11"), ("", "k1 v2")]
    found = model.loglikelihood([Instance(pair) for pair in pairs])
    assert found == model.llm.score(pairs)
    assert all(logprob < 0 and isinstance(greedy, bool) for logprob, greedy in found)
    assert model.evicted_bytes > 0  # the method acted


def test_a_rolling_likelihood_predicts_each_token_once(adapter: Any) -> None:
    pairs = list(adapter.rolling_pairs(list(range(1, 24)), 0, 10))
    assert [token for _, continuation in pairs for token in continuation] == list(range(1, 24))
    assert all(len(context) + len(continuation) <= 10 for context, continuation in pairs)
    assert pairs[0][0] == [0]
    assert len(pairs[-1][0]) + len(pairs[-1][1]) == 10
    for context, continuation in pairs[1:]:
        assert context[-1] == continuation[0] - 1


def test_a_short_texts_rolling_likelihood_is_its_likelihood_after_the_prefix(model: Any) -> None:
    text = "k1 v2 w3 w4"
    (rolling,) = model.loglikelihood_rolling([Instance((text,))])
    ((whole, _),) = model.llm.score([("", text)])
    assert rolling == pytest.approx(whole)
    assert model.loglikelihood_rolling([Instance(("",))]) == [0.0]


def test_generation_stops_where_the_task_says(model: Any) -> None:
    (prompt,) = prompts_of(120)
    text = words(prompt)
    request = Instance((text, {"until": ["\n\n"], "max_gen_toks": 3}))
    (found,) = model.generate_until([request])
    assert found == model.llm.generate(text, hg.SamplingParams(max_tokens=3))[0].text
    assert model.generate_until([]) == model.loglikelihood([]) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"max_tokens": 256, "temperature": 0.0, "stop": []}),
        ({"until": "a", "max_gen_toks": 5}, {"max_tokens": 5, "temperature": 0.0, "stop": ["a"]}),
        ({"do_sample": False, "temperature": 0.0}, {"temperature": 0.0}),
        ({"do_sample": True, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"temperature": 0.7, "top_k": 5}, {"temperature": 0.7, "top_k": 5}),
    ],
)
def test_a_tasks_generation_arguments_become_sampling_params(
    adapter: Any, arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = adapter.sampling_params(arguments)
    for name, value in expected.items():
        found = getattr(params, name)
        assert (list(found or []) if name == "stop" else found) == value, name


def test_scores_of_which_nothing_was_offloaded_are_pointed_out_once(adapter: Any) -> None:
    with hg.LLM(TINY, dtype="float32", method="full", cpu=CPU) as llm:
        found = adapter.HybridGenLM(llm)
        with pytest.warns(UserWarning, match="no token left the device so far"):
            found.loglikelihood([Instance(("k1 v2", " w3"))])
        assert found.loglikelihood([Instance(("k1 v2", " w3"))])[0][0] < 0
        with pytest.raises(hg.ConfigError, match=r"\[lm_eval\] pretrained is an LLM"):
            adapter.HybridGenLM(llm, k=3)
