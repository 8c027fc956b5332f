# SPDX-License-Identifier: Apache-2.0
"""Model holds weights and tokenizer, LLM an engine on it; each is closed for itself."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import typing
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridgen as hg
from conftest import make_config
from hybridgen import LLM, ConfigError, CpuConfig, KVConfig, Model, SamplingParams, SchedulerConfig
from hybridgen.open_requests import RequestId
from hybridgen.prompts import Prompt
from test_lifetime import in_child

Checkpoint = Callable[..., Path]

CPU = CpuConfig(threads=1, device_threads=1)
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
PROMPT = [5, 60, 7, 99, 4, 33, 250, 12]


@pytest.fixture
def model(checkpoint: Checkpoint) -> Any:
    with Model(checkpoint("llama")) as loaded:
        yield loaded


def test_several_engines_run_on_one_model(model: Model) -> None:
    with LLM(model, method="full", cpu=CPU) as full, LLM(model, method="h2o", cpu=CPU) as h2o:
        assert full.model.weights is h2o.model.weights is model.weights
        assert full.tokenizer is h2o.tokenizer is model.tokenizer
        expected = full.generate_ids([PROMPT], GREEDY)
        with LLM(model.path, method="full", cpu=CPU) as alone:  # type: ignore[arg-type]
            assert alone.model.weights is not model.weights
            assert alone.generate_ids([PROMPT], GREEDY) == expected


def test_an_engine_outlives_the_model_that_it_was_made_of(model: Model) -> None:
    llm = LLM(model, method="full", cpu=CPU)
    expected = llm.generate_ids([PROMPT], GREEDY)
    model.close()
    assert llm.generate_ids([PROMPT], GREEDY) == expected
    with LLM(llm.model, method="full", cpu=CPU) as another:
        llm.close()
        assert another.generate_ids([PROMPT], GREEDY) == expected


def test_the_weights_go_with_the_last_that_holds_them(checkpoint: Checkpoint) -> None:
    model = Model(checkpoint("llama"))
    weights = weakref.ref(model.weights)
    llm = LLM(model, method="full", cpu=CPU)
    model.close()
    gc.collect()
    assert weights() is not None
    llm.close()
    gc.collect()
    assert weights() is None
    assert llm.model_config["num_layers"] == 3  # what was read stays


def test_a_closed_model_says_so_and_closes_again(checkpoint: Checkpoint) -> None:
    model = Model(checkpoint("llama"))
    model.close()
    model.close()
    for use in (lambda: LLM(model), lambda: model.weights, model.__enter__, model._share):
        with pytest.raises(ConfigError, match="the model is closed"):
            use()
    assert model.encode("The quick")  # what needs no weights goes on


@pytest.mark.timeout(60)
def test_a_forked_child_may_not_use_the_model_and_may_let_it_go(model: Model) -> None:
    def check() -> None:
        for use in (lambda: LLM(model), lambda: model.weights):
            with pytest.raises(ConfigError, match=r"\[Model\] .*was forked from .*\('spawn'\)"):
                use()
        model.close()

    in_child(check)
    with LLM(model, cpu=CPU) as llm:
        assert len(llm.generate_ids([PROMPT], GREEDY)[0]) == 6


def test_a_model_knows_what_its_checkpoint_says(checkpoint: Checkpoint, model: Model) -> None:
    assert model.path == checkpoint("llama")
    assert model.config["num_layers"] == 3
    assert model.eos_token_ids == (1,)
    assert model.generation_config["eos_token_id"] == 1
    assert (model.dtype, model.device) == ("float32", "cpu")
    assert "3 layers of 32" in repr(model)
    assert "float32 on cpu" in repr(model)
    ids = model.encode("The quick brown fox")
    assert ids == model.get_tokenizer().encode("The quick brown fox")
    assert model.decode(ids) == "The quick brown fox"
    assert model.decode([0, *ids]) == "The quick brown fox"
    assert model.decode([0, *ids], skip_special_tokens=False) == "<s>The quick brown fox"


def test_the_engine_hands_out_the_models_tokenizer(model: Model) -> None:
    with LLM(model, cpu=CPU) as llm:
        assert llm.get_tokenizer() is llm.tokenizer is model.tokenizer
    fields = json.loads(make_config("llama").to_json_string())
    with Model(fields, load_format="dummy") as bare, LLM(bare, cpu=CPU) as llm:
        assert llm.tokenizer is None
        for need in (llm.get_tokenizer, bare.get_tokenizer, lambda: bare.decode([1])):
            with pytest.raises(ConfigError, match="no tokenizer"):
                need()


def test_dummy_weights_follow_from_the_models_seed() -> None:
    fields = json.loads(make_config("llama").to_json_string())

    def text_of(of_model: int, **options: Any) -> list[list[int]]:
        with (
            Model(fields, load_format="dummy", seed=of_model) as model,
            LLM(model, method="full", cpu=CPU, **options) as llm,
        ):
            return llm.generate_ids([PROMPT], GREEDY)

    assert text_of(5) == text_of(5, seed=9) != text_of(6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"^\[Model\] seed is -1"),
        ({"load_format": "pickle"}, r"^\[Model\] load_format is 'pickle'"),
        ({"device": "tpu"}, r"^\[Model\] device is 'tpu'"),
        ({"tokenizer": 5}, r"^\[Model\] tokenizer is 5, which cannot encode"),
        ({"dtpye": "float32"}, r"^\[Model\] unknown option 'dtpye'; did you mean 'dtype'\?"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    checkpoint: Checkpoint, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Model(checkpoint("llama"), **options)


def test_a_model_cannot_be_copied(model: Model) -> None:
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="cannot be copied or pickled"):
            copying(model)


def test_constructors_say_what_they_take() -> None:
    of_llm = inspect.signature(LLM).parameters
    assert list(of_llm)[:2] == ["model", "tokenizer"]
    assert of_llm["max_num_seqs"].default == 64
    assert inspect.signature(Model).parameters["dtype"].default == "auto"
    of_sampling = inspect.signature(SamplingParams).parameters
    assert of_sampling["max_tokens"].default == 16
    assert str(of_sampling["max_tokens"]).endswith("= 16")
    assert of_sampling["temperature"].default == 0.0
    for kind in (LLM, Model):
        assert vars(kind)["__init__"].__doc__ is None  # the class says it
        assert "self" in inspect.signature(kind.__init__).parameters


def test_limits_of_a_batch_go_to_the_engine_and_bad_ones_are_named(model: Model) -> None:
    with LLM(model, max_num_seqs=2, max_num_batched_tokens=3, method="full", cpu=CPU) as small:
        options = small.engine_options
        assert (options.max_num_seqs, options.max_num_batched_tokens) == (2, 3)
        found = small.generate_ids([PROMPT] * 5, GREEDY)
        assert small.stats.decode_steps == 3 * 5  # two, two and one at a time
    with LLM(model, method="full", cpu=CPU) as usual:
        assert usual.generate_ids([PROMPT] * 5, GREEDY) == found
        assert usual.stats.decode_steps == 5
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        for value in (0, -1, 2.0, True, None):
            with pytest.raises(
                ConfigError, match=rf"^\[LLM\] {name} is {value}; allowed: an integer"
            ):
                LLM(model, **{name: value})


def test_a_block_is_measured_over_all_its_calls(model: Model) -> None:
    with LLM(
        model,
        kv=KVConfig(device_tokens=3),
        query="exact",
        scheduler=SchedulerConfig(k=2),
        cpu=CPU,
    ) as llm:
        llm.generate_ids([PROMPT], GREEDY)
        with llm.measure() as stats:
            assert (stats.requests, stats.decode_steps) == (0, 0)
            llm.generate_ids([PROMPT], GREEDY)
            one = llm.stats
            llm.generate_ids([PROMPT, PROMPT], GREEDY)
        two = llm.stats
        assert (one.requests, two.requests, stats.requests) == (1, 2, 3)
        for name in ("generated_tokens", "decode_steps", "h2d_bytes", "host_key_bytes_read"):
            assert stats[name] == one[name] + two[name]
        assert stats.decode_s == pytest.approx(one.decode_s + two.decode_s)
        assert stats.decode_tps == pytest.approx(stats.decode_tokens / stats.decode_s)
        assert 0.0 <= stats.hidden_share <= 1.0
        llm.generate_ids([PROMPT], GREEDY)
        assert stats.requests == 3
        with pytest.raises(ConfigError), llm.measure() as failed:
            llm.generate_ids([PROMPT, [-1]], GREEDY)
        assert failed.requests == 0
        with llm.measure() as closed:
            llm.close()
        assert closed.requests == 0
    assert isinstance(closed, hg.RunStats)


def test_what_is_no_list_of_token_ids_is_not_decoded(model: Model) -> None:
    assert model.decode(np.array(PROMPT)) == model.decode(iter(PROMPT)) == model.decode(PROMPT)  # type: ignore[arg-type]
    for ids in (5, None, "12", [1.5], [-1], [True], [2**70], ["1"]):
        with pytest.raises(ConfigError, match=r"^\[decode\] (token_ids|a token id) is "):
            model.decode(ids)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^\[decode\] skip_special_tokens is 'no'; allowed"):
        model.decode(PROMPT, skip_special_tokens="no")  # type: ignore[arg-type]


def test_an_engine_shows_the_weights_that_were_loaded(model: Model) -> None:
    with LLM(model, method="full", cpu=CPU) as engine:
        assert engine._loaded.model.weight_bytes == model.weights.weight_bytes


def test_what_a_subclass_of_model_has_of_its_own_is_shared_too(checkpoint: Checkpoint) -> None:
    class Named(Model):
        def __init__(self, path: Path, name: str) -> None:
            super().__init__(path)
            self.name = name

    with Named(checkpoint("llama"), "mine") as model, LLM(model, method="full", cpu=CPU) as llm:
        model.close()
        assert isinstance(llm.model, Named)
        assert llm.model.name == "mine"
        assert len(llm.generate_ids([PROMPT], GREEDY)[0]) == 6


def test_several_of_a_kind_are_no_type_error() -> None:
    """A list of strings is a sequence of prompts or ids to a type checker, but no list of them."""
    hints = typing.get_type_hints
    assert Sequence[Prompt] in typing.get_args(hints(LLM.stream)["prompt"])
    assert Iterable[RequestId] in typing.get_args(hints(LLM.abort_request)["request_ids"])
    assert hints(SchedulerConfig.preset)["return"] is typing.Self
