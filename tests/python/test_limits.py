# SPDX-License-Identifier: Apache-2.0
"""Numbers beyond what the engine counts with, and messages beyond what anybody reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybridgen
from hybridgen import (
    LLM,
    CheckpointError,
    ConfigError,
    HybridGenError,
    KVConfig,
    OutOfMemoryError,
    SamplingParams,
    SchedulerConfig,
    _core,
    errors,
)
from hybridgen._checks import brief
from hybridgen.checkpoint import load_model

HUGE = [2**31, 2**63, 2**64, 10**400, 10**5000]
INTEGERS: dict[str, Callable[[int], object]] = {
    "k": lambda x: SchedulerConfig(k=x),
    "k_min": lambda x: SchedulerConfig(k_min=x),
    "k_max": lambda x: SchedulerConfig(k_max=x),
    "interval": lambda x: SchedulerConfig(interval=x),
    "warmup": lambda x: SchedulerConfig(warmup=x),
    "device_tokens": lambda x: KVConfig(device_tokens=x),
    "n": lambda x: SamplingParams(n=x),
    "top_k": lambda x: SamplingParams(top_k=x),
    "max_tokens": lambda x: SamplingParams(max_tokens=x),
    "min_tokens": lambda x: SamplingParams(max_tokens=None, min_tokens=x),
    "logprobs": lambda x: SamplingParams(logprobs=x),
    "stop_token_ids": lambda x: SamplingParams(stop_token_ids=[x]),
    "sinks": lambda x: hybridgen.methods.StreamingLLM(sinks=x),
    "block": lambda x: hybridgen.methods.HGCA(block=x),
    "max_model_len": lambda x: LLM({}, max_model_len=x),
}
FLOATS: dict[str, Callable[[Any], object]] = {
    "temperature": lambda x: SamplingParams(temperature=x),
    "repetition_penalty": lambda x: SamplingParams(repetition_penalty=x),
    "top_p": lambda x: SamplingParams(top_p=x),
    "grow": lambda x: SchedulerConfig(grow=x),
    "deadband": lambda x: SchedulerConfig(deadband=x),
    "candidates_per_k": lambda x: KVConfig(scoring="int8", candidates_per_k=x),
    "heavy": lambda x: hybridgen.methods.H2O(heavy=x if isinstance(x, int) else float(x)),
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", HUGE, ids=lambda x: f"{x.bit_length()} bits")
def test_an_integer_beyond_the_limit_is_refused_by_the_constructor(name: str, value: int) -> None:
    for number in (value, -value):
        with pytest.raises(ConfigError, match=rf"{name} is .*allowed") as caught:
            INTEGERS[name](number)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 1e300, math.inf, -math.inf, math.nan], ids=brief
)
def test_a_number_beyond_float32_is_refused_by_the_constructor(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*allowed"):
        FLOATS[name](value)


def test_numbers_too_small_for_float32_are_not_zero_unseen() -> None:
    with pytest.raises(ConfigError, match="top_p is 1e-60"):
        SamplingParams(top_p=1e-60)
    with pytest.raises(ConfigError, match="repetition_penalty is 1e-60"):
        SamplingParams(repetition_penalty=1e-60)


@pytest.mark.parametrize(
    "size", ["99999999TB", "9" * 400 + "TB", 2**64, "0.1", 0, "\u0663GB"], ids=brief
)
def test_a_size_beyond_an_exbibyte_or_below_a_byte_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"dram is .*1 to 1 EiB"):
        KVConfig(dram=size)  # type: ignore[arg-type]


def test_the_largest_allowed_numbers_still_work(trained: Callable[[str], LLM]) -> None:
    most = 2**31 - 1
    kv = KVConfig(device_tokens=most, dram=2**60)
    llm = LLM(trained("tiny-llama"), kv=kv, scheduler=SchedulerConfig(k=most))
    params = SamplingParams(
        max_tokens=2, logprobs=most, top_k=most, temperature=1e30, seed=2**63 - 1
    )
    assert llm.generate_ids([[5, 6, 7]], params) == llm.generate_ids([[5, 6, 7]], params)


UNPRINTABLE = 10**5000
UNPRINTABLE_VALUES: dict[str, Callable[[], object]] = {
    "max_tokens": lambda: SamplingParams(max_tokens=UNPRINTABLE, max_new_tokens=5),
    "do_sample": lambda: SamplingParams(do_sample=UNPRINTABLE),  # type: ignore[arg-type]
    "stop": lambda: SamplingParams(stop=[UNPRINTABLE]),  # type: ignore[list-item]
    "dram": lambda: KVConfig(dram=UNPRINTABLE),
    "device": lambda: LLM({}, load_format="dummy", device=UNPRINTABLE),  # type: ignore[arg-type]
    "cuda": lambda: LLM({}, load_format="dummy", device="cuda:" + "9" * 5000),
    "dtype": lambda: LLM(_config(), load_format="dummy", dtype=UNPRINTABLE),  # type: ignore[arg-type]
    "revision": lambda: load_model(".", revision=UNPRINTABLE),  # type: ignore[arg-type]
    "load_format": lambda: load_model(".", load_format=UNPRINTABLE),  # type: ignore[arg-type]
    "method": lambda: LLM({}, method=UNPRINTABLE),  # type: ignore[arg-type]
    "architectures": lambda: read(architectures=UNPRINTABLE),
    "model_type": lambda: read(model_type=UNPRINTABLE),
    "layer_types": lambda: read(layer_types=[UNPRINTABLE]),
    "rope_type": lambda: read(rope_parameters={"rope_type": UNPRINTABLE}),
    "eos_token_id": lambda: read(eos_token_id=[[UNPRINTABLE]]),
}


def read(**fields: object) -> object:
    return load_model(_config() | fields, load_format="dummy")


@pytest.mark.parametrize("name", UNPRINTABLE_VALUES)
def test_a_number_that_python_does_not_print_is_refused_all_the_same(name: str) -> None:
    with pytest.raises(HybridGenError) as caught:
        UNPRINTABLE_VALUES[name]()
    assert len(str(caught.value)) < 500


CONFIG_SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "head_dim",
]


@pytest.mark.parametrize("name", CONFIG_SIZES)
@pytest.mark.parametrize(
    "value", [2**31, 4 + 2**59, 2**63, 2**64 + 4, 10**400, -1, 0, 1e300], ids=brief
)
def test_a_size_of_a_model_beyond_its_limit_is_refused(name: str, value: float) -> None:
    config = _config() | {name: value}
    with pytest.raises(CheckpointError, match=rf"{name} is .*allowed: an int in"):
        load_model(config, load_format="dummy")


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [10**400, 1e300, math.inf, math.nan, -1.0, 0, 1e-300], ids=brief)
def test_a_number_of_a_model_beyond_float32_is_refused(name: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} is .*allowed"):
        load_model(_config() | {name: value}, load_format="dummy")


def test_weights_that_the_host_cannot_hold_are_refused_before_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_core, "available_host_bytes", lambda: 20_000)
    with pytest.raises(OutOfMemoryError, match=r"the host has 0\.0 GB left"):
        load_model(_config(), load_format="dummy", dtype="float32")
    monkeypatch.setattr(_core, "available_host_bytes", lambda: 100_000)
    assert 20_000 < load_model(_config(), load_format="dummy").model.weight_bytes <= 100_000


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "text",
    ['{"a": ' + "9" * 6000 + "}", "[" * 100_000, '{"a": ' * 100_000 + "1" + "}" * 100_000],
    ids=brief,
)
def test_json_that_python_cannot_hold_is_named(
    checkpoint: Callable[..., Path], copy_of: Callable[[Path], Path], file: str, text: str
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(HybridGenError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize("value", [2**31, 2**63, "x", [5, 2**40], 1.5])
def test_an_ending_token_that_is_no_token_is_refused_at_load(
    checkpoint: Callable[..., Path], copy_of: Callable[[Path], Path], value: object
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=r"eos_token_id is .*allowed"):
        load_model(folder)


def _config() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
)
def test_no_message_is_longer_than_two_thousand_characters(kind: type[Exception]) -> None:
    way_out = "; pass a smaller one"
    text = str(kind("[load] name is " + "x" * 100_000 + way_out))
    assert len(text) <= errors.MAX_MESSAGE
    assert text.startswith("[load] name is xxx")
    assert text.endswith(way_out)
    assert "more characters" in text
    short = "s" * errors.MAX_MESSAGE
    assert str(kind(short)) == short


def test_messages_of_the_compiled_module_are_shortened_too() -> None:
    with pytest.raises(ConfigError) as caught:
        _core.EngineOptions(method="x" * 100_000)
    assert len(str(caught.value)) <= errors.MAX_MESSAGE


def test_a_value_in_a_message_is_short_and_never_raises() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert brief(10**5000) == "an integer of 16610 bits"
    assert brief(Odd()) == "a Odd"
    assert len(brief("x" * 1000)) == 60
