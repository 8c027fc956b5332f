# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness itself on a trained tiny model: scores, generated answers, our tasks."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import hybridgen as hg
from hybridgen.cli import main
from hybridgen.evaluation import harness
from hybridgen.integrations.lm_eval import HybridGenLM, rolling_pairs, sampling_params
from trained import CPU, folder_of, prompts_of

TINY = folder_of("tiny-llama")
MODULE = "hybridgen.integrations.lm_eval"
# Six questions of our own kind in the form of a multiple choice, of a text and of an answer.
YAML = """
task: {name}
custom_dataset: !function {documents}.recall
dataset_kwargs: {{task: kv, count: 6, tokens: 300}}
test_split: test
num_fewshot: 0
doc_to_text: prompt
doc_to_target: {target}
{more}
metadata: {{version: 1}}
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: "{{[answer, 'v1', 'v2', 'v3']}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
ROLLING = """output_type: loglikelihood_rolling
metric_list: [{metric: word_perplexity}]"""
UNTIL = """output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 2, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""


@pytest.fixture(scope="module")
def model() -> Iterator[HybridGenLM]:
    options = "method=hybridgen,k=24,device_tokens=32,dtype=float32"
    made = get_model("hybridgen").create_from_arg_string(
        f"pretrained={TINY},{options}", {"batch_size": "4", "device": None}
    )
    assert isinstance(made, HybridGenLM)
    with made.llm:
        yield made


@pytest.fixture(scope="module")
def full() -> Iterator[hg.LLM]:
    with hg.LLM(TINY, dtype="float32", method="full", cpu=CPU) as llm:
        yield llm


def instance(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0, ("a task", 0, 1))


def words(ids: list[int]) -> str:
    return str(hg.Model(TINY).tokenizer.decode(ids))


@pytest.fixture
def task_of(tmp_path: Path) -> Callable[..., Any]:
    """Load a task that is written as a YAML file of a user."""

    def load(name: str, more: str, target: str = "answer") -> Any:
        documents = (harness.TASKS / "documents.py").read_text(encoding="utf-8")
        (tmp_path / "documents.py").write_text(documents, encoding="utf-8")
        text = YAML.format(name=name, documents="documents", target=target, more=more)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return harness.load_tasks([name], include_path=tmp_path)

    return load


def test_without_the_harness_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    for module in (MODULE, "hybridgen.evaluation.harness"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r"pip install 'hybridgen\[eval\]'"):
        importlib.import_module(MODULE)
    assert main(["eval", "--model", "nowhere", "--tasks", "hybridgen_text"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: hybridgen.integrations.lm_eval needs lm-evaluation-harness: "
        "pip install 'hybridgen[eval]'\n"
    )


def test_options_of_the_harness_reach_engine_cache_and_method(model: HybridGenLM) -> None:
    options = model.llm.engine_options
    assert options.method == "hybridgen"
    assert options.max_num_seqs == 4
    assert options.device_tokens == 32
    assert options.k == 24


def test_loglikelihoods_are_those_of_score_and_what_the_engine_did_is_counted(
    model: HybridGenLM,
) -> None:
    (prompt,) = prompts_of(200)
    pairs = [(words(prompt), " v10"), (words(prompt), " v11"), ("", "k1 v2")]
    model.tallies.clear()
    found = model.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    assert found == model.llm.score(pairs)
    reported = [score.metrics for score in model.llm.score_outputs(pairs)]
    tally = model.tallies["a task"]
    assert tally.requests == 3
    assert tally.offloaded == sum(metrics.offloaded_tokens for metrics in reported) > 300
    assert tally.tokens == sum(m.offloaded_tokens + m.resident_tokens for m in reported)


def test_a_rolling_likelihood_predicts_each_token_once() -> None:
    pairs = list(rolling_pairs(list(range(1, 24)), 0, 10))
    assert [token for _, continuation in pairs for token in continuation] == list(range(1, 24))
    assert all(len(context) + len(continuation) <= 10 for context, continuation in pairs)
    assert pairs[0][0] == [0]
    assert len(pairs[-1][0]) + len(pairs[-1][1]) == 10
    for context, continuation in pairs[1:]:
        assert context[-1] == continuation[0] - 1


def test_a_short_texts_rolling_likelihood_is_its_likelihood_after_the_prefix(
    model: HybridGenLM,
) -> None:
    text = "k1 v2 w3 w4"
    (rolling,) = model.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    ((whole, _),) = model.llm.score([("", text)])
    assert rolling == pytest.approx(whole)
    assert model.loglikelihood_rolling([instance("loglikelihood_rolling", "")]) == [0.0]


def test_generated_answers_pass_through_decode_from_their_first_token_on(
    model: HybridGenLM,
) -> None:
    (prompt,) = prompts_of(120)
    text = words(prompt)
    arguments = {"until": ["\n\n"], "max_gen_toks": 3}
    (found,) = model.generate_until([instance("generate_until", text, arguments)])
    (wanted,) = model.llm.generate(text, hg.SamplingParams(max_tokens=3), decode_prompt_tokens=1)
    assert found == wanted.text
    assert model.llm.stats.decode_steps == 3
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
    arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = sampling_params(arguments)
    for name, value in expected.items():
        found = getattr(params, name)
        assert (list(found or []) if name == "stop" else found) == value, name


def test_scores_of_which_nothing_was_offloaded_are_pointed_out_once(full: hg.LLM) -> None:
    found = HybridGenLM(full)
    request = instance("loglikelihood", "k1 v2", " w3")
    with pytest.warns(UserWarning, match="no token left the device so far"):
        found.loglikelihood([request])
    assert found.loglikelihood([request])[0][0] < 0
    with pytest.raises(hg.ConfigError, match=r"\[lm_eval\] pretrained is an LLM"):
        HybridGenLM(full, k=3)


@pytest.mark.filterwarnings("ignore:no token left the device")
@pytest.mark.parametrize(
    ("name", "more", "target"),
    [("choice", CHOICE, "0"), ("rolling", ROLLING, "prompt"), ("until", UNTIL, "answer")],
    ids=["choice", "rolling", "until"],
)
def test_full_attention_scores_every_kind_of_task_as_transformers_does(
    full: hg.LLM, task_of: Callable[..., Any], name: str, more: str, target: str
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    reference = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=1)
    kept = []
    for judged in (HybridGenLM(full), reference):
        found = evaluate(judged, task_of(name, more, target), bootstrap_iters=0)
        kept.append([sample["resps"] for sample in found["samples"][name]])
    ours, theirs = kept
    assert len(ours) == 6
    if name == "until":  # transformers decodes an answer without the space before it
        assert [text[0][0].split() for text in ours] == [text[0][0].split() for text in theirs]
        return
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def flat(nested: Any) -> list[float]:
    """Return the numbers and truths of nested lists in order."""
    if isinstance(nested, list | tuple):
        return [number for part in nested for number in flat(part)]
    return [float(nested)]


def test_the_command_prints_value_error_n_and_where_tokens_were(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["eval", "--model", str(TINY), "--dtype", "float32", "--threads", "1"]
    arguments += ["--device-tokens", "32", "--k", "32"]
    arguments += ["--tasks", "hybridgen_recall_kv", "hybridgen_aggregation", "--limit", "4"]
    arguments += ["--task-config", "count=5", "--task-config", "tokens=1000"]
    arguments += ["--task-config", "words=200"]
    assert main([*arguments, "--json"]) == 0
    recall, aggregation = json.loads(capsys.readouterr().out)["results"]
    assert recall["value"] == 1.0
    assert (recall["n"], recall["shots"], recall["chance"]) == (4, 0, 0.01)
    assert recall["tokens"] == pytest.approx(1000, abs=2)
    assert recall["offloaded_share"] == pytest.approx(968 / 1000, abs=0.01)
    assert recall["attended_offloaded_share"] == pytest.approx(32 / 968, rel=0.05)
    assert not recall["at_chance"]
    # The tiny models know no language.
    assert aggregation["value"] == 0.0
    assert aggregation["at_chance"]

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1.000 ± 0.000" in printed
    assert "no better than chance: hybridgen_aggregation. If it is the same with" in printed


def test_tokens_that_a_method_gave_up_are_counted_as_such(full: hg.LLM) -> None:
    tasks = harness.load_tasks(["hybridgen_recall_kv"], task_options={"count": 2})
    window = hg.methods.StreamingLLM(sinks=4, window=96)
    with hg.LLM(full, method=window, cpu=CPU) as llm:
        (found,) = harness.evaluate(llm, tasks).results
    assert found.value == 0.0
    assert found.dropped_share == pytest.approx(1 - 100 / 1100, abs=0.01)
    assert found.offloaded_share == 0.0


def test_a_task_that_nobody_knows_is_refused_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = harness._manager
    monkeypatch.setattr(harness, "_manager", lambda defaults, *more: listed(False, *more))
    assert main(["eval", "--model", "nowhere", "--tasks", "guessing"]) == 2
    error = capsys.readouterr().err
    assert "[eval] tasks has 'guessing'; allowed: hybridgen_aggregation, hybridgen_copa" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-config", "wrods=300"], "task_options has 'wrods'; allowed: count, seed, tokens"),
        (["--task-config", "words=100"], "cannot be made: words is 100; allowed: 200 to 40000"),
        (["--task-config", "count=many"], "hybridgen_keys cannot be made: "),
        (["--num-fewshot", "-1"], "num_fewshot is -1"),
        (["--limit", "0"], "limit is 0"),
    ],
)
def test_options_that_no_task_allows_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--model", str(TINY), "--tasks", "hybridgen_keys", *arguments]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


PAPER = {
    "baber/piqa": [{"goal": "Open it", "sol1": "turn", "sol2": "wait", "label": 0}],
    "allenai/openbookqa": [
        {
            "question_stem": "The sun is",
            "choices": {"text": ["a star", "a cup", "a fish", "ice"], "label": list("ABCD")},
            "answerKey": "A",
        }
    ],
    "aps/super_glue": [
        {
            "premise": "The ground got wet.",
            "question": "cause",
            "choice1": "It rained.",
            "choice2": "It was noon.",
            "label": 0,
        }
    ],
    "nyu-mll/glue": [{"sentence1": "A dog runs.", "sentence2": "It moves.", "label": 0}],
}


def test_the_papers_four_tasks_are_three_shot_and_read_the_hubs_columns(
    full: hg.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import pyarrow

    def load(path: str, **options: Any) -> dict[str, Any]:
        table = pyarrow.Table.from_pylist(PAPER[path] * 5)
        return {
            split: datasets.Dataset(table, fingerprint=f"{split}{len(path)}")
            for split in ("train", "validation", "test")
        }

    monkeypatch.setattr(datasets, "load_dataset", load)
    asked: dict[str, list[tuple[str, str]]] = {}

    def likes_the_first(model: HybridGenLM, requests: list[Any]) -> list[tuple[float, bool]]:
        for request in requests:
            model.tallies[request.task_name].add(hg.RequestMetrics(resident_tokens=9))
            asked.setdefault(request.task_name, []).append(request.args)
        return [(-float(request.idx), True) for request in requests]

    monkeypatch.setattr(HybridGenLM, "loglikelihood", likes_the_first)
    tasks = harness.load_tasks(["hybridgen_paper"])
    results = {row.task: row for row in harness.evaluate(full, tasks, limit=2).results}
    assert {name: row.chance for name, row in results.items()} == {
        "hybridgen_copa": 0.5,
        "hybridgen_openbookqa": 0.25,
        "hybridgen_piqa": 0.5,
        "hybridgen_rte": 0.5,
    }
    assert all((row.shots, row.n, row.value) == (3, 2, 1.0) for row in results.values())
    ends = {
        "hybridgen_copa": ("The ground got wet because", " it rained."),
        "hybridgen_openbookqa": ("The sun is", " a star"),
        "hybridgen_piqa": ("Question: Open it\nAnswer:", " turn"),
        "hybridgen_rte": ("A dog runs.\nQuestion: It moves. True or False?\nAnswer:", " True"),
    }
    for name, (question, answer) in ends.items():
        context, continuation = asked[name][0]
        assert continuation == answer
        assert context == (question + answer + "\n\n") * 3 + question
