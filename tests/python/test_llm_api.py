# SPDX-License-Identifier: Apache-2.0
"""The public API on tiny checkpoints, with transformers as the oracle of every number."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridgen as hg
from conftest import CONFIGS, VOCAB_SIZE, make_config
from hybridgen import LLM, ConfigError, KVConfig, SamplingParams, SchedulerConfig, _core
from hybridgen.outputs import RunStats
from hybridgen.tracing import chrome_trace

Checkpoint = Callable[..., Path]
Reference = Callable[[str], Any]

# A few resident tokens, the rest offloaded, all of them attended to with the layer's own query:
# this must equal plain attention up to rounding.
EXACT: dict[str, Any] = {
    "kv": KVConfig(device_tokens=4),
    "query": "exact",
    "scheduler": SchedulerConfig(k="all"),
}
PROMPTS = [[5, 60, 7, 99, 4, 33, 250, 12, 77, 3, 18, 200], [9, 9, 31], [100 + i for i in range(40)]]
COUNT = 12
NO_EOS = SamplingParams(max_tokens=COUNT, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    with LLM(checkpoint("llama"), **EXACT) as engine:
        yield engine


@torch.no_grad()
def reference_greedy(model: Any, prompt: list[int], count: int, valid: int) -> list[int]:
    """Continue greedily without a cache: one whole forward per token."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1, :valid]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def reference_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] of what follows each token."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


@pytest.mark.parametrize("options", [{"method": "full"}, EXACT], ids=["full", "offloaded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(
    checkpoint: Checkpoint, reference: Reference, name: str, options: dict[str, Any]
) -> None:
    with LLM(checkpoint(name), **options) as engine:
        valid = len(engine.tokenizer)
        found = engine.generate_ids(PROMPTS, NO_EOS)
    expected = [reference_greedy(reference(name), p, COUNT, valid) for p in PROMPTS]
    assert found == expected


@pytest.mark.parametrize("options", [{"method": "full"}, EXACT], ids=["full", "offloaded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_transformers(
    checkpoint: Checkpoint, reference: Reference, name: str, options: dict[str, Any]
) -> None:
    pairs = [(PROMPTS[0][:8], PROMPTS[0][8:]), (PROMPTS[1][:1], PROMPTS[1][1:]), (PROMPTS[2], [3])]
    with LLM(checkpoint(name), **options) as engine:
        valid = len(engine.tokenizer)
        scores = engine.score(pairs)
    for (context, continuation), (logprob, is_greedy) in zip(pairs, scores, strict=True):
        table = reference_logprobs(reference(name), context + continuation)[len(context) - 1 : -1]
        rows = range(len(continuation))
        assert logprob == pytest.approx(float(table[rows, continuation].sum()), abs=1e-3)
        assert is_greedy == (table[:, :valid].argmax(-1).tolist() == continuation)


def test_a_greedy_continuation_scores_as_greedy(llm: LLM) -> None:
    new = llm.generate_ids([PROMPTS[0]], NO_EOS)[0]
    other = (new[0] + 1) % 300
    scores = llm.score([(PROMPTS[0], new), (PROMPTS[0], [other])])
    assert scores[0][1]
    assert not scores[1][1]


def test_even_a_one_token_answer_passes_through_a_decode_step(llm: LLM) -> None:
    llm.score([(PROMPTS[2], [3])])
    assert llm.stats.decode_steps == 1
    llm.score([(PROMPTS[2], [3, 4, 5])])
    assert llm.stats.decode_steps == 3


def test_scores_do_not_depend_on_the_batch(llm: LLM) -> None:
    pairs = [(p, [7, 8]) for p in PROMPTS]
    together = llm.score(pairs)
    for pair, score in zip(pairs, together, strict=True):
        assert llm.score([pair])[0] == (pytest.approx(score[0], abs=1e-4), score[1])


def test_scoring_splits_text_as_the_evaluation_harness_does(llm: LLM) -> None:
    encode = llm.tokenizer.encode
    read_pair = llm.model._reader("score").read_pair
    assert read_pair("the lazy ", "dog") == read_pair("the lazy", " dog")
    context, continuation = read_pair("the lazy", " dog")
    assert context + continuation == encode("the lazy dog")
    assert read_pair("", "dog") == (
        [llm.tokenizer.bos_token_id],
        encode("dog"),
    )
    with pytest.raises(ConfigError, match=r"\[score\] the continuation has no tokens"):
        llm.score([("the lazy", "")])


def test_results_come_in_input_order_with_the_prompt(llm: LLM) -> None:
    outputs = llm.generate(["The quick", "Żółć"], NO_EOS)
    assert [o.prompt for o in outputs] == ["The quick", "Żółć"]
    for output in outputs:
        assert output.prompt_token_ids == llm.tokenizer.encode(output.prompt)
        assert output.finished
        assert output.finish_reason == "length"
        assert output.token_ids == output.outputs[0].token_ids
        assert len(output.token_ids) == 12
        assert output.metrics.generated_tokens == 12


def test_every_form_of_a_prompt_means_the_same(llm: LLM) -> None:
    text = "The quick brown fox"
    ids = llm.tokenizer.encode(text)
    forms: list[Any] = [
        text,
        ids,
        tuple(ids),
        torch.tensor(ids),
        torch.tensor([ids]),
        {"prompt": text},
        {"prompt_token_ids": ids},
        [text],
        [ids],
        [{"prompt": text, "prompt_token_ids": ids}],
    ]
    results = [llm.generate(form, NO_EOS) for form in forms]
    assert all(len(result) == 1 for result in results)
    assert len({tuple(result[0].token_ids) for result in results}) == 1


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.score([]) == []


def test_ids_and_text_agree(llm: LLM) -> None:
    output = llm.generate("The quick", NO_EOS)[0]
    assert output.text == llm.tokenizer.decode(
        output.prompt_token_ids + output.token_ids, skip_special_tokens=True
    ).removeprefix("The quick")
    assert llm.generate_ids([output.prompt_token_ids], NO_EOS) == [output.token_ids]


def test_ragged_batches_equal_single_runs(llm: LLM) -> None:
    together = llm.generate_ids(PROMPTS, NO_EOS)
    assert together == [llm.generate_ids([p], NO_EOS)[0] for p in PROMPTS]


def test_more_prompts_than_fit_into_a_batch_are_queued(llm: LLM) -> None:
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    prompts = [[i % 300, (7 * i) % 300] for i in range(70)]
    found = llm.generate_ids(prompts, params)
    assert [len(ids) for ids in found] == [2] * 70
    assert found[66] == llm.generate_ids([prompts[66]], params)[0]


def test_prompt_tokens_through_decode_steps_change_nothing(llm: LLM) -> None:
    whole = llm.generate_ids(PROMPTS, NO_EOS)
    for count in (1, 5, 1000):
        assert llm.generate_ids(PROMPTS, NO_EOS, decode_prompt_tokens=count) == whole
    llm.generate_ids(PROMPTS[:1], NO_EOS, decode_prompt_tokens=5)
    assert llm.stats.decode_steps == 5 + COUNT - 1
    with pytest.raises(ConfigError, match="decode_prompt_tokens is -1"):
        llm.generate(PROMPTS, decode_prompt_tokens=-1)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 4, 2)]
    assert [len(ids) for ids in llm.generate_ids(PROMPTS, params)] == [1, 4, 2]
    with pytest.raises(ConfigError, match="2 sampling_params for 3 prompts"):
        llm.generate(PROMPTS, params[:2])


def test_an_ending_token_is_in_the_ids_and_not_in_the_text(llm: LLM) -> None:
    free = llm.generate(PROMPTS[0], NO_EOS)[0]
    ending = free.token_ids[3]
    first = free.token_ids.index(ending)
    params = NO_EOS.replace(stop_token_ids=[ending], skip_special_tokens=False)
    output = llm.generate(PROMPTS[0], params)[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert output.finish_reason == "stop"
    assert output.outputs[0].stop_reason == ending
    shorter = llm.generate(PROMPTS[0], NO_EOS.replace(max_tokens=max(first, 1)))[0]
    assert output.text == (shorter.text if first else "")


def test_the_models_own_ending_token_ends_unless_ignored(
    checkpoint: Checkpoint, llm: LLM, copy_of: Callable[[Path], Path]
) -> None:
    free = llm.generate_ids([PROMPTS[0]], NO_EOS)[0]
    folder = copy_of(checkpoint("llama"))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": free[4]}), encoding="utf-8"
    )
    with LLM(folder, **EXACT) as engine:
        assert set(engine.eos_token_ids) == {1, free[4]}
        ended = engine.generate(PROMPTS[0], SamplingParams(max_tokens=12))[0]
        assert ended.token_ids == free[: free.index(free[4]) + 1]
        assert (ended.finish_reason, ended.outputs[0].stop_reason) == ("stop", None)
        assert engine.generate_ids([PROMPTS[0]], NO_EOS)[0] == free
        late = engine.generate_ids([PROMPTS[0]], SamplingParams(max_tokens=12, min_tokens=12))
        assert len(late[0]) == 12


def test_a_stop_string_cuts_the_text_before_it(llm: LLM) -> None:
    free = llm.generate("The quick", NO_EOS)[0]
    assert len(free.text) > 4
    stop = free.text[2:4]
    output = llm.generate("The quick", NO_EOS.replace(stop=stop))[0]
    assert output.text == free.text[: free.text.index(stop)]
    assert output.finish_reason == "stop"
    assert output.outputs[0].stop_reason == stop
    assert len(output.token_ids) < len(free.token_ids)
    assert llm.generate_ids([output.prompt_token_ids], NO_EOS.replace(stop=stop)) == [
        output.token_ids
    ]


def test_a_stop_string_before_min_tokens_does_not_end(llm: LLM) -> None:
    free = llm.generate("The quick", NO_EOS)[0]
    params = NO_EOS.replace(stop=free.text[2:4], min_tokens=12)
    assert len(llm.generate("The quick", params)[0].token_ids) == 12


def test_samples_repeat_with_the_same_seed_and_differ_with_another(llm: LLM) -> None:
    params = NO_EOS.replace(temperature=1.5, seed=3)
    first = llm.generate_ids([PROMPTS[0]], params)
    assert llm.generate_ids([PROMPTS[0]], params) == first
    assert llm.generate_ids([PROMPTS[0]], params.replace(seed=4)) != first


def test_samples_without_a_seed_follow_from_the_engines(checkpoint: Checkpoint) -> None:
    params = NO_EOS.replace(temperature=1.5)
    runs = []
    for seed in (1, 1, 2):
        with LLM(checkpoint("llama"), seed=seed, **EXACT) as engine:
            runs.append([engine.generate_ids([PROMPTS[0]], params) for _ in range(2)])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_n_samples_of_one_prompt_differ(llm: LLM) -> None:
    output = llm.generate(PROMPTS[0], NO_EOS.replace(n=3, temperature=1.5, seed=3))[0]
    assert [o.index for o in output.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in output.outputs}) == 3
    assert output.metrics.generated_tokens == 36


def test_padding_rows_of_the_embedding_are_never_sampled(llm: LLM) -> None:
    params = NO_EOS.replace(n=8, temperature=100.0, seed=1, max_tokens=40)
    outputs = llm.generate(PROMPTS[0], params)[0].outputs
    assert len(llm.tokenizer) < VOCAB_SIZE
    assert max(i for o in outputs for i in o.token_ids) < len(llm.tokenizer)


def test_logprobs_hold_the_sampled_token_and_the_likeliest(llm: LLM, reference: Reference) -> None:
    output = llm.generate(PROMPTS[0], NO_EOS.replace(logprobs=3))[0].outputs[0]
    assert output.logprobs is not None
    table = reference_logprobs(reference("llama"), PROMPTS[0] + output.token_ids)
    rows = table[len(PROMPTS[0]) - 1 : -1]
    for token, entry, row in zip(output.token_ids, output.logprobs, rows, strict=True):
        assert token in entry
        assert len(entry) >= 3
        for other, logprob in entry.items():
            assert logprob == pytest.approx(float(row[other]), abs=1e-3)
    total = sum(e[t] for e, t in zip(output.logprobs, output.token_ids, strict=True))
    assert output.cumulative_logprob == pytest.approx(total)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.3},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.5},
    ],
)
def test_logprobs_are_the_models_own_however_tokens_are_drawn(
    llm: LLM, reference: Reference, sampling: dict[str, Any]
) -> None:
    params = NO_EOS.replace(logprobs=0, seed=4, **sampling)
    output = llm.generate(PROMPTS[0], params)[0].outputs[0]
    assert output.logprobs is not None
    table = reference_logprobs(reference("llama"), PROMPTS[0] + output.token_ids)
    rows = table[len(PROMPTS[0]) - 1 : -1]
    own = [float(row[token]) for token, row in zip(output.token_ids, rows, strict=True)]
    found = [entry[token] for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
    assert found == pytest.approx(own, abs=1e-3)
    assert output.cumulative_logprob == pytest.approx(sum(own), abs=1e-2)
    assert "before temperature" in (hg.CompletionOutput.__doc__ or "")


def test_logprobs_are_absent_unless_asked_for(llm: LLM) -> None:
    assert llm.generate(PROMPTS[0])[0].outputs[0].logprobs is None


def test_tokens_end_where_the_context_does(checkpoint: Checkpoint) -> None:
    with LLM(checkpoint("llama"), max_model_len=20, **EXACT) as engine:
        output = engine.generate(PROMPTS[0], SamplingParams(max_tokens=None, ignore_eos=True))[0]
        assert output.finish_reason == "length"
        assert len(output.token_ids) == 20 - len(PROMPTS[0])
        with pytest.raises(ConfigError, match="20"):
            engine.generate(PROMPTS[2])


@pytest.mark.parametrize("options", [{"method": "full"}, EXACT], ids=["full", "offloaded"])
def test_prompt_and_new_tokens_never_exceed_max_model_len(
    checkpoint: Checkpoint, options: dict[str, Any]
) -> None:
    with LLM(checkpoint("llama"), max_model_len=20, **options) as engine:
        for length in (1, 12, 19):
            for limit in (None, 20 - length, 1000):
                params = SamplingParams(max_tokens=limit, ignore_eos=True)
                output = engine.generate([5] * length, params)[0]
                assert (len(output.token_ids), output.finish_reason) == (20 - length, "length")
        message = "has 20 tokens and needs one more; allowed: at most 20 .*max_model_len"
        with pytest.raises(ConfigError, match=message):
            engine.generate([5] * 20)
        # A score's continuation counts as new tokens do.
        assert len(engine.score([([5] * 12, [7] * 8)])) == 1
        with pytest.raises(ConfigError, match="21 tokens with its continuation; allowed: at most"):
            engine.score([([5] * 12, [7] * 9)])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5, 6], []], "empty"),
        ([[5, 6], [VOCAB_SIZE]], rf"token id is {VOCAB_SIZE}; allowed"),
        ([[5, 6], [-1]], "token id is -1; allowed"),
        ([[5, 6], [True]], "a prompt is"),
        ([[5, 6], 3.5], "a prompt is 3.5"),
        ({"text": "a"}, "the keys text"),
        ({}, "the keys none"),
        (None, "prompts is NoneType"),
        ([[5, 6], list(range(300))], "256"),
    ],
)
def test_a_bad_prompt_is_refused_and_the_engine_stays_usable(
    llm: LLM, prompts: Any, message: str
) -> None:
    before = llm.generate_ids([PROMPTS[0]], NO_EOS)
    with pytest.raises(ConfigError, match=message):
        llm.generate(prompts, NO_EOS)
    assert llm._loop.idle
    assert not llm._loop.engine.has_work()
    assert llm.generate_ids([PROMPTS[0]], NO_EOS) == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_finished_text_and_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    expected = llm.generate(PROMPTS, NO_EOS)
    params = [NO_EOS.replace(max_tokens=2), NO_EOS.replace(max_tokens=100), NO_EOS]
    step = llm._loop.step
    finished: list[Any] = []

    def interrupted() -> None:
        if finished:
            raise failure
        before = set(llm._loop._live)
        step()
        finished.extend(before - set(llm._loop._live))

    with monkeypatch.context() as patch:
        patch.setattr(llm._loop, "step", interrupted)
        with pytest.raises(failure) as caught:
            llm.generate(PROMPTS, params)
    partial = caught.value.outputs  # type: ignore[attr-defined]
    assert [o.finished for o in partial] == [True, False, False]
    assert partial[0].token_ids == expected[0].token_ids[:2]
    assert [o.finish_reason for o in partial] == ["length", "abort", "abort"]
    for output, whole in zip(partial[1:], expected[1:], strict=True):
        assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert llm._loop.idle
    assert not llm._loop.engine.has_work()
    assert llm.generate(PROMPTS, NO_EOS)[2].token_ids == expected[2].token_ids


def test_chat_goes_through_the_template(
    checkpoint: Checkpoint, copy_of: Callable[[Path], Path], llm: LLM
) -> None:
    folder = copy_of(checkpoint("llama"))
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    conversation = [{"role": "user", "content": "fox"}]
    with LLM(folder, **EXACT) as engine:
        one = engine.chat(conversation, NO_EOS)
        assert one[0].prompt_token_ids == engine.tokenizer.encode("[user]fox[assistant]")
        two = engine.chat([conversation, conversation], NO_EOS)
        assert [o.token_ids for o in two] == [one[0].token_ids] * 2
        with pytest.raises(ConfigError, match="messages is empty"):
            engine.chat([])
    with pytest.raises(ConfigError, match="no chat template"):
        llm.chat(conversation)


def test_token_ids_work_without_a_tokenizer(
    checkpoint: Checkpoint, copy_of: Callable[[Path], Path], llm: LLM
) -> None:
    folder = copy_of(checkpoint("llama"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with LLM(folder, **EXACT) as engine:
        output = engine.generate([5, 6, 7], NO_EOS)[0]
        assert len(output.token_ids) == 12
        assert output.text == ""
        with pytest.raises(ConfigError, match="no tokenizer"):
            engine.generate("text")
        with pytest.raises(ConfigError, match="no tokenizer"):
            engine.generate([5, 6], SamplingParams(stop="a"))
    with LLM(folder, tokenizer=checkpoint("llama"), **EXACT) as engine:
        assert engine.generate("fox", NO_EOS)[0].text == llm.generate("fox", NO_EOS)[0].text


def test_an_engine_can_be_made_of_a_config_alone() -> None:
    fields = json.loads(make_config("llama").to_json_string())
    with LLM(fields, load_format="dummy", seed=5) as engine:
        assert len(engine.generate_ids([[1, 2, 3]], NO_EOS)[0]) == 12


@pytest.mark.parametrize("name", ["opt", "llama3", "qwen2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_the_single_precision_scores(
    checkpoint: Checkpoint, name: str, dtype: str
) -> None:
    pairs = [(p, [7, 8, 9]) for p in PROMPTS]
    scores = []
    for precision in ("float32", dtype):
        with LLM(checkpoint(name), dtype=precision, **EXACT) as engine:
            scores.append([logprob for logprob, _ in engine.score(pairs)])
    assert scores[1] == pytest.approx(scores[0], rel=0.05, abs=0.3)


def test_statistics_count_what_was_done(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, NO_EOS)
    stats = llm.stats
    assert stats.requests == 3
    assert stats.prompt_tokens == sum(map(len, PROMPTS))
    assert stats.generated_tokens == 36
    assert stats.decode_tps > 0
    assert stats["decode_s"] == stats.decode_s == stats.to_dict()["decode_s"]
    assert "tok/s" in stats.summary()
    assert stats._repr_html_().startswith("<table>")
    with pytest.raises(AttributeError, match=r"it has .*decode_s"):
        _ = stats.nonsense
    longest = outputs[2].metrics
    assert longest.prompt_tokens == 40
    assert longest.offloaded_tokens > 30
    assert longest.attended_offloaded_share == pytest.approx(1.0)


def test_statistics_of_one_call_do_not_count_the_one_before(llm: LLM) -> None:
    llm.generate(PROMPTS, NO_EOS)
    llm.generate(PROMPTS[:1], NO_EOS)
    assert llm.stats.requests == 1


def test_run_statistics_become_a_table(llm: LLM) -> None:
    pandas = pytest.importorskip("pandas", reason="the table is pandas'")
    table = llm.stats.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 1


def test_a_trace_has_named_rows_and_spans_in_microseconds(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with llm.tracing(file):
        llm.generate(PROMPTS, NO_EOS)
        with pytest.raises(ConfigError, match="being recorded"), llm.tracing(file):
            pass
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert any(name == "device" for name in names.values())
    assert any(name.startswith("cpu worker") for name in names.values())
    spans = [e for e in events if e["ph"] == "X"]
    assert spans
    for span in spans:
        assert span["tid"] in names
        assert span["ts"] >= 0
        assert span["dur"] >= 0
        assert set(span["args"]) == {"layer", "step", "bytes"}


def test_spans_are_counted_from_the_first() -> None:
    span = {"name": "a", "worker": 0, "layer": 1, "step": 2, "bytes": 3}
    trace = chrome_trace(
        [
            span | {"lane": "cpu", "worker": 1, "begin_ns": 5000, "end_ns": 9000},
            span | {"lane": "device", "begin_ns": 3000, "end_ns": 4500},
        ]
    )
    first, second = (e for e in trace["traceEvents"] if e["ph"] == "X")
    assert (first["ts"], first["dur"], second["ts"], second["dur"]) == (2.0, 4.0, 0.0, 1.5)
    assert first["tid"] != second["tid"]
    assert chrome_trace([])["traceEvents"][0]["name"] == "process_name"


def test_threads_of_the_disk_have_a_row_each() -> None:
    span = {"name": "read", "lane": "disk", "layer": 1, "step": -1, "bytes": 3}
    trace = chrome_trace(
        [span | {"worker": worker, "begin_ns": 10, "end_ns": 20} for worker in (0, 1, 1)]
        + [
            span | {"lane": "moves", "worker": worker, "begin_ns": 1, "end_ns": 2}
            for worker in (0, 1)
        ]
    )
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["moves between tiers", "disk 0", "disk 1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hybridgin"}, "did you mean 'hybridgen'"),
        ({"query": "guess"}, "allowed: 'exact', 'speculative' or 'rescore'"),
        ({"selector": "top"}, "selector is 'top'"),
        ({"pre_selector": "sinks"}, "pre_selector is 'sinks'"),
        ({"kv": {"device_tokens": 1}}, "allowed: a KVConfig"),
        ({"device_tokens": 1}, r"write kv=KVConfig\(device_tokens=...\)"),
        ({"max_tokens": 1}, "pass that to generate"),
        ({"dtpye": "float32"}, "did you mean 'dtype'"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"max_model_len": 10**6}, "max_model_len is 1000000"),
        ({"seed": -1}, "seed is -1"),
        ({"load_format": "pickle"}, "load_format is 'pickle'"),
        ({"cpu": hg.CpuConfig(isa="avx9000")}, "isa is 'avx9000'"),
        ({"cpu": hg.CpuConfig(numa=1023)}, "node is 1023; allowed: "),
    ],
)
def test_a_bad_option_is_refused(
    checkpoint: Checkpoint, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(checkpoint("llama"), **options)


def test_offloaded_tokens_lie_on_the_chosen_memory_node(checkpoint: Checkpoint, llm: LLM) -> None:
    here = min(os.sched_getaffinity(0))
    node = next(node["id"] for node in _core.numa_nodes() if here in node["cpus"])
    cpu = hg.CpuConfig(numa=node, threads=1)
    if not _core.build_info()["numa"]:
        with pytest.raises(ConfigError, match=r"libnuma-dev|CAP_SYS_NICE"):
            LLM(checkpoint("llama"), cpu=cpu, **EXACT)
        return
    with LLM(checkpoint("llama"), cpu=cpu, **EXACT) as engine:
        stream = engine.stream(PROMPTS[0], NO_EOS)
        next(stream)
        assert engine.memory["dram"]["bytes"] > 0
        assert set(engine.memory["dram"]["nodes"]) == {node}
        if len(_core.numa_nodes()) > 1:  # else there is nothing to ask for
            # Preferred, so that a full node does not end the process, and asked about afterwards.
            assert f" prefer:{node} " in Path("/proc/self/numa_maps").read_text(encoding="utf-8")
        stream.close()
        assert engine.generate_ids(PROMPTS, NO_EOS) == llm.generate_ids(PROMPTS, NO_EOS)


def test_heads_divided_over_memory_nodes_give_the_same_tokens(
    checkpoint: Checkpoint, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _core.EngineOptions
    monkeypatch.setattr(_core, "EngineOptions", partial(options, invented_nodes=2))
    cpu = hg.CpuConfig(threads=2)
    with LLM(checkpoint("llama"), cpu=cpu, **EXACT) as engine:
        parts = engine.numa_parts
        assert [part["node"] for part in parts] == [0, 1]
        assert sum(part["num_heads"] for part in parts) == engine.model_config["num_kv_heads"]
        assert engine.generate_ids(PROMPTS, NO_EOS) == llm.generate_ids(PROMPTS, NO_EOS)
    cpu = hg.CpuConfig(threads=2, numa="off")
    with LLM(checkpoint("llama"), cpu=cpu, **EXACT) as engine:
        assert engine.numa_parts == []
        assert engine.engine_options.numa == "off"
        assert engine.generate_ids(PROMPTS, NO_EOS) == llm.generate_ids(PROMPTS, NO_EOS)


def test_from_pretrained_is_the_constructor(checkpoint: Checkpoint, llm: LLM) -> None:
    with LLM.from_pretrained(checkpoint("llama"), **EXACT) as engine:
        assert engine.generate_ids(PROMPTS, NO_EOS) == llm.generate_ids(PROMPTS, NO_EOS)


def test_a_closed_engine_says_so(checkpoint: Checkpoint) -> None:
    engine = LLM(checkpoint("llama"))
    engine.close()
    engine.close()
    with pytest.raises(ConfigError, match="the engine is closed"):
        engine.generate([1, 2])
    with pytest.raises(ConfigError, match="the engine is closed"):
        _ = engine.stats


def test_progress_is_shown_on_request(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, NO_EOS)
    assert capsys.readouterr().err == ""
    for calling in (
        lambda: llm.generate(PROMPTS, NO_EOS, use_tqdm=True),
        lambda: llm.generate(PROMPTS, NO_EOS, progress=True),
        lambda: llm.generate_ids(PROMPTS, NO_EOS, use_tqdm=True),
    ):
        calling()
        shown = capsys.readouterr().err
        assert "3/3" in shown
        for part in ("tok/s", "K=", "mode=post", "hidden="):
            assert part in shown


def test_info_describes_the_installation() -> None:
    found = hg.info()
    assert found.versions["torch"] == torch.__version__
    assert found.cpu["isa"] in found.cpu["isas"]
    assert found.cpu["scan_prefetch"] in ("l1", "l2", "l3")
    assert "numa_nodes" in repr(found)
    assert [node["id"] for node in found.numa_nodes] == sorted(
        node["id"] for node in found.numa_nodes
    )
    for node in found.numa_nodes:
        assert 0 <= node["free_bytes"] <= node["total_bytes"]
    assert any(re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", n["cpus"]) for n in found.numa_nodes)
    json.dumps(found.to_dict())


def test_info_says_which_tier_each_memory_node_is_and_why() -> None:
    found = hg.info()
    assert [tier["node"] for tier in found.tiers] == [node["id"] for node in found.numa_nodes]
    assert "dram" in {tier["tier"] for tier in found.tiers}
    for tier in found.tiers:
        assert tier["tier"] in ("dram", "cxl", "faster", "ignored")
        assert tier["why"]
        assert tier["why"] in repr(found)
        assert 0 <= tier["available_bytes"] <= tier["total_bytes"]


def test_names_to_choose_from_are_listed() -> None:
    assert {"full", "hybridgen"} <= set(hg.methods.names())
    assert "topk" in hg.selectors("post")
    assert "sinks_recent" in hg.selectors("pre")
    with pytest.raises(ConfigError, match="allowed: post, pre"):
        hg.selectors("both")


def test_run_stats_can_be_copied_and_pickled() -> None:
    import copy
    import pickle

    stats = RunStats({"decode_tokens": 20, "decode_s": 0.5})
    assert copy.deepcopy(stats).decode_tps == pickle.loads(pickle.dumps(stats)).decode_tps == 40.0
