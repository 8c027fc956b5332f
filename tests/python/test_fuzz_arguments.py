# SPDX-License-Identifier: Apache-2.0
"""Arguments and mixes of requests drawn at random: what does not work ends in our own exceptions.

Every draw follows from its number, which a failure names; ``HYBRIDGEN_LONG=1`` draws twenty times
as many. Whatever happened before, the same request then gives the same tokens and no tier is used.
"""

from __future__ import annotations

import decimal
import fractions
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import hybridgen as hg
from hybridgen import LLM, HybridGenError, SamplingParams
from hybridgen.k_min import calibrate, read_dataset
from trained import CPU, prompts_of

Trained = Callable[[str], LLM]

DRAWS = 20 if os.environ.get("HYBRIDGEN_LONG") == "1" else 1
MOST_CHARACTERS = 2000
TEXT = prompts_of(300, seed=11)[0]

ODD: tuple[Any, ...] = (
    *(None, True, False, ..., NotImplemented, object(), print, SamplingParams, ValueError("x")),
    *(0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, 2**64, -(2**70), 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *("", "auto", "all", "post", "full", "topk", "12", "1e3", "x" * 5000, "\ud800", "\0", "ß\n"),
    *(
        "~nobody-by-this-name/x",
        "a\0b",
        b"",
        b"auto",
        [],
        [0],
        [[]],
        [None],
        (),
        (1, 2),
        {},
        {"k": 1},
        {1: 2},
        set(),
        range(3),
    ),
    *(np.int64(3), np.uint64(2**64 - 1), np.float32(0.5), np.bool_(True), np.array([1, 2])),
    *(np.array(5), np.array([]), np.array([0.5]), torch.tensor(3), torch.tensor([1, 2])),
    *(fractions.Fraction(1, 3), decimal.Decimal("0.1"), 1 + 2j, iter(()), memoryview(b"ab")),
)

ALIASES = {"max_new_tokens": "max_tokens", "do_sample": "temperature"}

OPTION_CLASSES: tuple[Any, ...] = (
    hg.SamplingParams,
    hg.KVConfig,
    hg.SchedulerConfig,
    hg.CpuConfig,
    hg.QueryConfig,
    *(getattr(hg.methods, name) for name in ("Full", "HybridGen", "FlexGen", "MoELightning")),
    *(getattr(hg.methods, name) for name in ("StreamingLLM", "H2O", "Keyformer", "InfiniGen")),
    hg.methods.HGCA,
)


class Outcome:
    """What became of a drawn call: its result, or our own exception; another one fails the test."""

    def __init__(self, call: Callable[[], Any], what: object) -> None:
        self.result: Any = None
        self.error: HybridGenError | None = None
        try:
            self.result = call()
        except HybridGenError as error:
            self.error = error
            text = str(error)
            assert text.startswith("["), f"{what}: {text[:200]}"
            assert len(text) <= MOST_CHARACTERS, f"{what}: {len(text)} characters"
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error


def shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(type(v))[8:-2]} {repr(v)[:40]}" for name, v in values.items())


def few(draw: random.Random, names: list[str]) -> list[str]:
    return draw.sample(names, min(len(names), draw.choice([1, 1, 1, 2, 3])))


@pytest.mark.parametrize("options", OPTION_CLASSES, ids=lambda cls: cls.__name__)
def test_an_options_class_takes_a_value_or_refuses_it_by_name(options: Any) -> None:
    names = list(options.__dataclass_fields__)
    if not names:
        pytest.skip(f"{options.__name__} has no options; it would run once it has one")
    for number in range(300 * DRAWS):
        draw = random.Random(f"{options.__name__} {number}")
        given = {name: draw.choice(ODD) for name in few(draw, names)}
        outcome = Outcome(lambda given=given: options(**given), (number, shown(given)))
        if outcome.error is not None:
            named = [ALIASES.get(name, name) for name in given] + list(given)
            assert any(name in str(outcome.error) for name in named), (number, shown(given))


def drawn_engine(draw: random.Random) -> dict[str, Any]:
    """Options of an LLM that are mostly sound."""
    options: dict[str, Any] = {
        "cpu": CPU,
        "method": draw.choice([*hg.methods.names(), "hybridgen", "hybridgen"]),
        "kv": hg.KVConfig(
            device_tokens=draw.choice([0, 3, 20, 0.1, "auto"]),
            keys=draw.choice(["full", "full", "int8", "int4"]),
            values=draw.choice(["full", "full", "int8", "int4"]),
        ),
        "scheduler": hg.SchedulerConfig(k=draw.choice([1, 5, 0.2, "all"])),
        "query": draw.choice(["speculative", "exact", "rescore"]),
        "seed": draw.randrange(5),
    }
    kept = [name for name in options if name != "cpu" and draw.random() < 0.6]
    return {name: options[name] for name in ["cpu", *kept]}


ENGINE_OPTIONS = [
    *("tokenizer", "revision", "dtype", "device", "max_model_len", "seed", "load_format"),
    *("method", "method_config", "kv", "query", "selector", "pre_selector", "scheduler"),
    *("weights", "cpu", "max_num_seqs", "max_num_batched_tokens", "no_such_option"),
]
MODEL_OPTIONS = [
    "tokenizer",
    "revision",
    "dtype",
    "device",
    "load_format",
    "seed",
    "no_such_option",
]


def make_and_use(base: Any, options: dict[str, Any], what: object) -> None:
    """Make an engine and let it generate; both may be refused."""
    outcome = Outcome(lambda: LLM(base, **options), what)
    if isinstance(outcome.result, LLM):
        with outcome.result as llm:
            Outcome(lambda: llm.generate([[5, 6, 7] * 4], SamplingParams(max_tokens=2)), what)


@pytest.mark.parametrize("name", ENGINE_OPTIONS)
def test_an_engine_takes_any_value_of_an_option_or_refuses_it_by_name(
    trained: Trained, name: str
) -> None:
    base = trained("tiny-llama")
    for value in ODD:
        options = {"cpu": CPU} | {name: value}
        make_and_use(base, options, shown(options))


@pytest.mark.parametrize("name", MODEL_OPTIONS)
def test_a_model_takes_any_value_of_an_option_or_refuses_it_by_name(name: str) -> None:
    fields = {"architectures": ["OPTForCausalLM"], "vocab_size": 50, "hidden_size": 16}
    fields |= {"word_embed_proj_dim": 16, "num_hidden_layers": 1, "ffn_dim": 16}
    fields |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    for value in ODD:
        options = {"load_format": "dummy"} | {name: value}
        outcome = Outcome(lambda options=options: hg.Model(fields, **options), shown(options))
        if outcome.error is None:
            with outcome.result as model, LLM(model, cpu=CPU) as llm:
                assert len(llm.generate_ids([[1, 2]], SamplingParams(max_tokens=1))) == 1


def test_an_engine_is_made_or_refused_by_name(trained: Trained) -> None:
    base = trained("tiny-llama")
    for number in range(150 * DRAWS):
        draw = random.Random(f"engine {number}")
        options = drawn_engine(draw)
        options |= {name: draw.choice(ODD) for name in few(draw, ENGINE_OPTIONS)}
        make_and_use(base, options, (number, shown(options)))


def test_any_value_in_the_place_of_a_model_is_refused() -> None:
    for value in ODD:
        for load_format in ("auto", "dummy"):
            outcome = Outcome(
                lambda value=value, form=load_format: LLM(value, load_format=form),
                shown({"": value}),
            )
            assert outcome.error is not None


GENERATION_FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


@pytest.mark.filterwarnings("ignore:.SamplingParams. the generation config sets")
def test_any_generation_config_is_read_or_refused() -> None:
    read = SamplingParams.from_generation_config
    for value in ODD:
        Outcome(lambda value=value: read(value), shown({"content": value}))
        Outcome(lambda value=value: SamplingParams.from_pretrained(value), shown({"path": value}))
        for name in GENERATION_FIELDS:
            for samples in (False, True):
                content = {"do_sample": samples} | {name: value}
                Outcome(lambda content=content: read(content), shown(content))
        for name in ("do_sample", "max_new_tokens", "max_tokens", "min_tokens", "temperature"):
            content = {"do_sample": True, "max_new_tokens": 9, "min_new_tokens": 3}
            override = {name: value}
            Outcome(lambda c=content, o=override: read(c, **o), shown(override))


def test_calibration_measures_or_refuses_any_argument(trained: Trained) -> None:
    base = trained("tiny-llama")
    names = ["metric", "k_values", "tolerance", "max_tokens", "device_tokens", "progress"]
    usual = {"k_values": [30], "max_tokens": 1, "device_tokens": 2, "tolerance": 1.0}
    prompt = TEXT[:30]
    with LLM(base, cpu=CPU, max_model_len=64) as llm:

        def try_one(what: str, value: object, dataset: Any, **options: Any) -> None:
            Outcome(lambda: calibrate(llm, dataset, **usual | options), shown({what: value}))

        for value in ODD:
            Outcome(lambda value=value: calibrate(value, [prompt]), shown({"llm": value}))
            Outcome(lambda value=value: read_dataset(value), shown({"path": value}))
            try_one("dataset", value, value)
            try_one("prompt", value, [value])
            try_one("prompt", value, [{"prompt": value}])
            try_one("answer", value, [{"prompt": prompt, "answer": value}])
            for name in names:
                try_one(name, value, [prompt], **{name: value})


def drawn_prompt(draw: random.Random) -> Any:
    if draw.random() < 0.4:
        return draw.choice(ODD)
    start, length = draw.randrange(100), draw.choice([1, 2, 9, 60, 200])
    ids = TEXT[start : start + length]
    return draw.choice([ids, {"prompt_token_ids": ids}, tuple(ids), np.array(ids), "the cat sat"])


def drawn_params(draw: random.Random) -> Any:
    if draw.random() < 0.2:
        return draw.choice(ODD)
    fields = {
        "max_tokens": draw.choice([1, 3, 6, None]) if draw.random() < 0.9 else 2**31 - 1,
        "n": draw.choice([1, 1, 1, 2]),
        "temperature": draw.choice([0.0, 0.0, 0.8, 1e-30, 1e30]),
        "top_k": draw.choice([0, 1, 5, 2**31 - 1]),
        "top_p": draw.choice([1.0, 0.5, 1e-6]),
        "min_tokens": draw.choice([0, 0, 1]),
        "stop": draw.choice([(), "a", ["the", "x" * 500], "\0"]),
        "stop_token_ids": draw.choice([(), [3], [2**31 - 1]]),
        "ignore_eos": draw.random() < 0.5,
        "seed": draw.choice([None, 0, 2**63 - 1]),
        "logprobs": draw.choice([None, 0, 3, 10**6]),
        "prompt_logprobs": draw.choice([None, 0, 3, 10**6]),
        "repetition_penalty": draw.choice([1.0, 1.3, 1e-30, 1e30]),
        "presence_penalty": draw.choice([0.0, 2.0, -2]),
        "frequency_penalty": draw.choice([0.0, 0.1, -2.0]),
        "logit_bias": draw.choice([None, {}, {3: 100}, {9: -100.0, 5: 0.5}, {2**31 - 1: 1}]),
        "include_stop_str_in_output": draw.random() < 0.5,
    }
    kept = [*few(draw, list(fields)), "max_tokens"]
    return SamplingParams(**{name: fields[name] for name in kept})


def drawn_calls(draw: random.Random) -> Iterator[tuple[str, Callable[[LLM], Any]]]:
    prompts = [drawn_prompt(draw) for _ in range(draw.choice([1, 2, 3]))]
    params = drawn_params(draw)
    decoded = draw.choice([0, 0, 1, 500]) if draw.random() < 0.8 else draw.choice(ODD)
    many = draw.choice([prompts, prompts[0]])
    taken = draw.choice([1, 3, 10**6])

    def stream(llm: LLM) -> list[str]:
        chunks = llm.stream(many, params, decode_prompt_tokens=decoded)
        return [chunk.text for chunk, _ in zip(chunks, range(taken), strict=False)]

    def by_steps(llm: LLM) -> None:
        names = [draw.choice(["a", "b", 3, draw.choice(ODD)]) for _ in prompts]
        try:
            for name, prompt in zip(names, prompts, strict=True):
                llm.add_request(name, prompt, params)
                llm.step()
            llm.abort_request(draw.choice([names[0], names[1:], draw.choice(ODD)]))
            for _ in range(taken):
                if not llm.has_unfinished_requests():
                    break
                llm.step()
        finally:
            llm.abort_request([name for name in names if isinstance(name, str | int)])
            assert not llm.has_unfinished_requests()

    yield "add_request", by_steps
    yield "generate", lambda llm: llm.generate(many, params, decode_prompt_tokens=decoded)
    yield "generate_ids", lambda llm: llm.generate_ids(many, params)
    yield "stream", stream
    pairs = [(drawn_prompt(draw), drawn_prompt(draw))]
    pairs += draw.choice([[], [draw.choice(ODD)], [(TEXT[:20], TEXT[20:24])]])
    yield "score", lambda llm: llm.score(draw.choice([pairs, draw.choice(ODD)]))
    yield "chat", lambda llm: llm.chat(draw.choice(ODD), params)
    content = draw.choice(ODD)
    messages = [{"role": draw.choice(["user", draw.choice(ODD)]), "content": content}]
    yield "chat", lambda llm: llm.chat(messages, params)
    yield "chat", lambda llm: list(llm.chat(messages, params, stream=draw.choice([True, *ODD])))


def test_a_call_answers_or_refuses_and_leaves_the_engine_as_it_was(trained: Trained) -> None:
    base = trained("tiny-llama")
    control = [TEXT[:40]]
    for options in (
        {"method": "full"},
        {"kv": hg.KVConfig(device_tokens=9), "scheduler": hg.SchedulerConfig(k=6)},
    ):
        with LLM(base, cpu=CPU, max_model_len=256, **options) as llm:
            expected = llm.generate_ids(control, SamplingParams(max_tokens=5, ignore_eos=True))
            for number in range(60 * DRAWS):
                draw = random.Random(f"call {number}")
                for name, call in drawn_calls(draw):
                    Outcome(lambda call=call: call(llm), f"draw {number} of {name}")
                again = llm.generate_ids(control, SamplingParams(max_tokens=5, ignore_eos=True))
                assert again == expected, number
                assert all(tier["used"] == 0 for tier in llm.memory.values()), number


class FailsAt:
    """A selector that takes the newest tokens and fails in its n-th call."""

    def __init__(self, num_offloaded_fails: int) -> None:
        self.fails_with = num_offloaded_fails

    def plan(self, layer: int, kv_head: int, queries: Any, num_offloaded: int, k: int) -> list[int]:
        if num_offloaded == self.fails_with and layer == 1:
            raise ZeroDivisionError(f"selector gave up at {num_offloaded} tokens")
        return list(range(num_offloaded - k, num_offloaded))


def test_of_a_mix_only_the_requests_that_fail_are_lost(trained: Trained) -> None:
    base = trained("tiny-llama")
    window = 8
    fails = 60  # offloaded tokens at which a request's selector raises
    hg.register_selector("fails_at", lambda **_: FailsAt(fails), strategy="pre")
    options: dict[str, Any] = {
        "kv": hg.KVConfig(device_tokens=window),
        "scheduler": hg.SchedulerConfig(k=4, strategy="pre"),
        "pre_selector": "fails_at",
    }
    num_doomed = num_whole = 0
    with LLM(base, cpu=CPU, **options) as llm:
        for number in range(12 * DRAWS):
            draw = random.Random(f"mix {number}")
            count = draw.randrange(1, 6)
            lengths = [
                draw.choice([20, 40, fails + window - 3, fails + window - 1, 90])
                for _ in range(count)
            ]
            prompts = [TEXT[i : i + length] for i, length in enumerate(lengths)]
            params = [
                SamplingParams(max_tokens=draw.choice([1, 4, 7]), ignore_eos=True)
                for _ in range(count)
            ]
            # Steps see the tokens beyond the window from the second new token on.
            doomed = {
                i
                for i, length in enumerate(lengths)
                if 1 <= fails + window - length < (params[i].max_tokens or 0)
            }
            error: BaseException | None = None
            try:
                outputs = llm.generate(prompts, params)
            except (HybridGenError, ZeroDivisionError) as caught:
                error, outputs = caught, caught.outputs  # type: ignore[union-attr]
            assert (error is not None) == bool(doomed), (number, doomed, error)
            for i, output in enumerate(outputs):
                assert (output.finish_reason == "error") == (i in doomed), (number, i)
                if i not in doomed:
                    assert llm.generate_ids([prompts[i]], params[i]) == [output.token_ids]
            assert all(tier["used"] == 0 for tier in llm.memory.values())
            num_doomed += len(doomed)
            num_whole += count - len(doomed)
    assert min(num_doomed, num_whole) > 5
