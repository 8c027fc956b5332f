# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen batch``: lines in, answers in order, in shards that are whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybridgen.batch.run
from batch_runs import MODEL, Echo, answers, command, run, shards, texts, write_lines
from hybridgen import LLM, ConfigError, DeviceError, SamplingParams
from hybridgen.batch import jsonl_input
from hybridgen.batch.engine_window import EngineWindow
from hybridgen.batch.fingerprint import model_files
from hybridgen.batch.input_file import open_input
from hybridgen.batch.line import Line
from hybridgen.batch.line_forms import LineForms
from hybridgen.batch.run import run_batch
from hybridgen.batch.shard_files import JsonlShards, ParquetShards
from hybridgen.batch.shard_folder import MANIFEST, ShardFolder
from hybridgen.generation import EngineLoop
from test_output_files import full_disk

PROMPTS = [f"v{number} v{number + 1} v{number}" for number in range(23)]


@pytest.fixture(scope="module")
def llm(trained: Callable[[str], LLM]) -> Iterator[LLM]:
    """The engine whose texts a batch has to have."""
    with LLM(trained("tiny-llama"), method="full") as shared:
        yield shared


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Lines with prompts and as many tokens as their number says."""
    lines = [{"prompt": p, "max_tokens": 1 + i % 5} for i, p in enumerate(PROMPTS)]
    return write_lines(tmp_path / "in.jsonl", lines)


# ------------------------------------------------------------------------------------------ lines


def test_answers_are_the_engines_texts_in_the_order_of_lines(source: Path, llm: LLM) -> None:
    out = source.with_name("out")
    assert run(source, out, "--lines-per-shard", "5") == 0
    params = [SamplingParams(max_tokens=1 + i % 5) for i in range(len(PROMPTS))]
    expected = llm.generate(PROMPTS, params)
    assert texts(out) == [output.text for output in expected]
    assert [a["index"] for a in answers(out)] == list(range(len(PROMPTS)))
    found = [a["outputs"][0]["generated_tokens"] for a in answers(out)]
    assert found == [1 + i % 5 for i in range(len(PROMPTS))]
    assert [file.name for file in shards(out)] == [f"part-0000{i}.jsonl" for i in range(5)]
    assert [len(file.read_text().splitlines()) for file in shards(out)] == [5, 5, 5, 5, 3]


def test_samples_of_a_line_do_not_depend_on_where_it_stands_in_a_run(
    source: Path, llm: LLM
) -> None:
    out = source.with_name("out")
    options = ["--lines-per-shard", "4", "--temperature", "1.5", "--seed", "7"]
    assert run(source, out, *options) == 0
    whole = texts(out)
    params = [
        SamplingParams(max_tokens=1 + i % 5, temperature=1.5, seed=7 + i)
        for i in range(len(PROMPTS))
    ]
    assert whole == [output.text for output in llm.generate(PROMPTS, params)]
    shards(out)[2].unlink()
    assert run(source, out, *options) == 0
    assert texts(out) == whole


def test_every_form_of_a_line_is_answered_in_its_form(
    tmp_path: Path, llm: LLM, copy_of: Callable[[Path], Path]
) -> None:
    model = copy_of(MODEL)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    ids = llm.model.encode("v5 v6")
    messages = [{"role": "user", "content": "v5 v6"}]
    body = {"model": "m", "temperature": 0}
    lines = [
        {"id": "a", "prompt": "v5 v6", "n": 2},
        {"id": 2, "prompt_token_ids": ids},
        {"messages": messages, "logprobs": 1},
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": messages, "logprobs": True, "top_logprobs": 2},
        },
        {"custom_id": "d", "url": "/v1/completions", "body": body | {"prompt": ids}},
    ]
    out = tmp_path / "out"
    arguments = ["--max-tokens", "3", "--model-name", "m", "--token-ids"]
    assert run(write_lines(tmp_path / "in.jsonl", lines), out, *arguments, model=model) == 0
    plain, of_ids, chat, openai_chat, openai_text = answers(out)
    expected = llm.generate("v5 v6", SamplingParams(max_tokens=3))[0]
    assert [text["text"] for text in plain["outputs"]] == [expected.text] * 2
    assert (plain["id"], of_ids["id"], chat["id"]) == ("a", 2, None)
    assert of_ids["outputs"][0]["token_ids"] == expected.token_ids
    assert len(chat["outputs"][0]["logprobs"]) == 3
    assert openai_text["custom_id"] == "d"
    response = openai_text["response"]
    assert (response["status_code"], response["body"]["object"]) == (200, "text_completion")
    assert response["body"]["choices"][0]["text"] == expected.text
    tokens = {"prompt_tokens": len(ids), "completion_tokens": 3, "total_tokens": len(ids) + 3}
    assert response["body"]["usage"] == tokens
    choice = openai_chat["response"]["body"]["choices"][0]
    assert choice["message"]["content"] == chat["outputs"][0]["text"]
    assert openai_text["response"]["body"]["choices"][0]["finish_reason"] == "length"
    for entry in choice["logprobs"]["content"]:
        assert entry["top_logprobs"][0] == {k: entry[k] for k in ("token", "logprob", "bytes")}
        assert len(entry["top_logprobs"]) == 2


def test_what_nobody_says_is_as_the_form_has_it(tmp_path: Path, llm: LLM) -> None:
    ids = llm.model.encode("v5 v6")
    lines: list[dict[str, Any]] = [
        {"prompt": "v5 v6", "ignore_eos": True},
        {"url": "/v1/completions", "body": {"prompt": ids, "ignore_eos": True}},
        {"url": "/v1/completions", "body": {"prompt": ids, "seed": 4}},
    ]
    out, said = tmp_path / "out", tmp_path / "said"
    source = write_lines(tmp_path / "in.jsonl", lines)
    assert run(source, out) == 0
    plain, long, drawn = answers(out)
    assert plain["outputs"][0]["generated_tokens"] == 128
    assert long["response"]["body"]["usage"]["completion_tokens"] == 16
    params = SamplingParams(temperature=1.0, max_tokens=16, seed=4)
    text = llm.generate("v5 v6", params)[0].text
    assert drawn["response"]["body"]["choices"][0]["text"] == text
    assert run(source, said, "--max-tokens", "3", "--temperature", "0") == 0
    plain, long, drawn = answers(said)
    assert plain["outputs"][0]["generated_tokens"] == 3
    texts_there = [a["response"]["body"]["choices"][0]["text"] for a in (long, drawn)]
    assert texts_there == [plain["outputs"][0]["text"]] * 2


def test_a_line_that_fails_becomes_a_line_with_its_error_and_the_others_go_on(
    tmp_path: Path, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "v1 v2", "max_tokens": 2}
    request = {"custom_id": "x", "url": "/v1/completions", "body": {"prompt": "v1"}}
    broken = {
        '{"prompt": "v1"': "line 1 is no JSON",
        "[1, 2]": "line 2 is [1, 2]; allowed: an object",
        '{"prompt": NaN}': "NaN is no number",
        "[" * 100_000: "line 4 is no JSON",
        '{"id": 3}': "allowed: one of prompt",
        '{"prompt": "a", "prompt_token_ids": [1]}': "allowed: one of prompt",
        '{"prompt": "a", "max_tokenz": 1}': "did you mean 'max_tokens'",
        '{"prompt": "a", "temperature": -1}': "temperature is -1",
        '{"prompt": 7}': "a prompt is 7",
        '{"prompt": "a", "id": [1]}': "a line's name is [1]",
        '{"prompt_token_ids": [99999999]}': "a token id is 99999999",
        json.dumps({"prompt_token_ids": [5] * 5000}): "the prompt has 5000 tokens",
        '{"messages": [{"role": "user", "content": "a"}]}': "no chat template",
        json.dumps(request | {"url": "/v1/embeddings"}): "url is '/v1/embeddings'",
        json.dumps(request | {"body": {"prompt": "a", "model": "gpt"}}): "model is 'gpt'",
        json.dumps(request | {"body": {"prompt": "a", "suffix": "b"}}): "the body has suffix",
        json.dumps(request | {"body": {"prompt": "a", "stream": True}}): "stream is True",
        json.dumps(request | {"body": {}}): "has no prompt",
    }
    source = write_lines(tmp_path / "in.jsonl", [*broken, "", "  ", good])
    with source.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    out = tmp_path / "out"
    assert run(source, out, "--max-tokens", "2") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: [batch] 19 of 20 lines failed")
    assert printed.err.count("\n") == 1
    found = answers(out)
    assert len(found) == 20
    for answer, message in zip(found, broken.values(), strict=False):
        error = answer["error"]
        assert message in error["message"], error
    assert {a["response"]["status_code"] for a in found if "response" in a} == {400}
    assert (
        found[-2]["outputs"][0]["text"]
        == llm.generate("v1 v2", SamplingParams(max_tokens=2))[0].text
    )
    assert "line 22 is no JSON" in found[-1]["error"]["message"]
    assert run(source, out, "--max-tokens", "2") == 1  # a second run knows it too
    assert "19 of 20 lines failed" in capsys.readouterr().err


def test_a_machine_that_fails_ends_the_run_and_leaves_lines_for_the_next(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, step, left = source.with_name("out"), EngineLoop.step, [4]

    def failing(loop: EngineLoop) -> None:
        left[0] -= 1
        if left[0] > 0:
            step(loop)
            return
        for sequence in list(loop._live.values()):
            loop._forget(sequence, "error", DeviceError("[step] the device is lost"))

    options = ["--lines-per-shard", "1", "--max-num-seqs", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(EngineLoop, "step", failing)
        assert run(source, out, *options) == 1
    assert capsys.readouterr().err == "error: [step] the device is lost\n"
    assert 0 < len(shards(out)) < len(PROMPTS)
    assert {a["error"] for a in answers(out)} == {None}
    assert run(source, out, *options) == 0
    assert len(answers(out)) == len(PROMPTS)


def test_a_table_has_lines_of_both_forms_in_the_plain_one() -> None:
    forms = LineForms("m", is_table=True)
    line = Line(4, "line 5", {"custom_id": "c", "url": "/v1/completions", "body": {}})
    with pytest.raises(ConfigError, match="has no prompt"):
        forms.asked(line)
    content = forms.failed(line, ConfigError("[batch] why")).content
    assert (content["index"], content["id"], content["outputs"]) == (4, "c", [])
    assert content["error"] == {"type": "ConfigError", "message": "[batch] why"}


def test_a_line_that_is_too_long_is_read_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_input, "MAX_LINE_BYTES", 100)
    lines = ["x" * 99 + "\n", "y" * 100 + "\n", "z" * 5000 + "\n", '{"prompt": "a"}']
    (tmp_path / "in.jsonl").write_text("".join(lines))
    source = open_input(tmp_path / "in.jsonl")
    assert (source.num_lines, source.num_bytes) == (4, 99 + 100 + 5000 + 3 + 15)
    found = list(source.lines())
    assert [line.problem.partition(":")[0] for line in found[1:3]] == [
        "line 2 is no JSON",
        "line 3 is longer than 0 MiB; allowed",
    ]
    assert found[3].content == {"prompt": "a"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens is not max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs is given without logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
    ],
)
def test_fields_of_a_chat_that_contradict_each_other_are_refused(
    body: dict[str, Any], words: str
) -> None:
    body = body | {"messages": [{"role": "user", "content": "a"}]}
    line = Line(0, "line 1", {"custom_id": "c", "url": "/v1/chat/completions", "body": body})
    with pytest.raises(ConfigError, match=words):
        LineForms("tiny-llama").asked(line)


def test_a_default_gives_way_to_another_name_of_the_same(llm: LLM) -> None:
    window = EngineWindow(llm, LineForms("m"), {"max_new_tokens": 5, "ignore_eos": True})
    own = {"prompt": "a", "max_tokens": 2}
    openai = {"url": "/v1/completions", "body": {"prompt": "a"}}
    lines = [Line(i, f"line {i}", content) for i, content in enumerate(({"prompt": "a"}, own))]
    found = [answer.content["outputs"][0] for answer in window.answers(lines)]
    assert sorted(text["generated_tokens"] for text in found) == [2, 5]
    (answer,) = window.answers([Line(0, "line 1", openai)])
    assert answer.content["response"]["body"]["usage"]["completion_tokens"] == 5


def test_a_name_that_utf_8_has_no_bytes_for_is_escaped_in_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet

    answer = LineForms("m", is_table=True).failed(
        Line(0, "line 1", {"id": "\ud800", "prompt": 5}), ConfigError("[batch] why")
    )
    ParquetShards().write(tmp_path / "a.parquet", [answer.content])
    (row,) = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert row["id"] == "\\ud800"


def test_weights_of_flexgens_folders_are_part_of_what_a_batch_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "decoder.layers.0.fc1.weight").write_bytes(b"a")
    before = model_files(tmp_path)
    (tmp_path / "decoder.layers.0.fc1.weight").write_bytes(b"b")
    assert model_files(tmp_path) != before


# --------------------------------------------------------------------------------- windows, memory


def test_memory_and_open_lines_do_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybridgen.batch.run, "MAX_OPEN_LINES", 50)

    def peak_of(count: int) -> int:
        lines = ({"prompt": "x" * 200, "id": number} for number in range(count))
        source = open_input(write_lines(tmp_path / f"{count}.jsonl", lines))
        out = tmp_path / f"out-{count}"
        with ShardFolder(out, JsonlShards(), num_lines=count, lines_per_shard=10) as folder:
            tracemalloc.start()
            try:
                outcome = run_batch(source, folder, Echo(7), {}, lines_per_shard=10, progress=False)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert outcome.num_fresh == count
        assert [a["index"] for a in answers(out)] == list(range(count))
        return peak

    small = peak_of(200)
    assert peak_of(1000) < 1.5 * small


def test_no_more_lines_are_open_than_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybridgen.batch.run, "MAX_OPEN_LINES", 100)
    source = open_input(write_lines(tmp_path / "in", ({"prompt": "a"} for _ in range(400))))
    echo = Echo(1000)  # would take all
    echo.num_lines_together = 1
    with ShardFolder(tmp_path / "out", JsonlShards(), num_lines=400, lines_per_shard=40) as folder:
        run_batch(source, folder, echo, {}, lines_per_shard=40, progress=False)
    assert echo.most_held == 160  # four shards, as the 100 lines are fewer
    assert [a["index"] for a in answers(tmp_path / "out")] == list(range(400))


# ------------------------------------------------------------------------------------------ resume

SLOWLY = """
import itertools, sys, time
from hybridgen.__main__ import main
from hybridgen.generation import EngineLoop
step, steps = EngineLoop.step, itertools.count()
def slowly(*arguments):
    time.sleep(0.005 if next(steps) < 200 else 3600)
    return step(*arguments)
EngineLoop.step = slowly
sys.exit(main(sys.argv[1:]))
"""
"""The command in a process that ends only when it is killed, after 200 steps at most."""


def kill_when_there_are(number: int, out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until there are so many shards, then kill the process."""
    end = time.monotonic() + 120
    while len(shards(out)) < number and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


def test_a_run_that_is_killed_or_interrupted_goes_on_without_losing_or_repeating_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"prompt": f"v{i % 60} v{i % 7}", "id": i, "max_tokens": 9} for i in range(400)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    options = ["--lines-per-shard", "10", "--ignore-eos", "--max-num-seqs", "8"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = [sys.executable, "-c", SLOWLY, *command(source, out, *options)]
    kill_when_there_are(
        3,
        out,
        subprocess.Popen(arguments, stdout=subprocess.DEVNULL),
    )
    before = {file: file.stat().st_mtime_ns for file in shards(out)}
    assert 3 <= len(before) <= 200 * 8 // 90  # steps, texts of a step, and tokens of a shard
    (out / ".hybridgen-0123456789abcdef.tmp").write_text("half of a shard")

    write = ShardFolder.write

    def interrupted(folder: ShardFolder, shard: int, found: Any) -> None:
        if len(shards(out)) == len(before) + 2:
            signal.raise_signal(signal.SIGINT)
        write(folder, shard, found)

    # Whoever starts the tests may ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ShardFolder, "write", interrupted)
            assert run(source, out, *options) == 1
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "error: interrupted\n"
    assert len(shards(out)) == len(before) + 2
    assert run(source, out, *options) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before  # none was made again
    assert [a["id"] for a in answers(out)] == list(range(400))
    assert not list(out.glob(".*"))
    assert run(source, whole, *options) == 0
    assert answers(out) == answers(whole)


def test_a_batch_that_is_whole_loads_no_model(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.with_name("out")
    assert run(source, out) == 0
    assert "23 lines answered, 23 now" in capsys.readouterr().out
    monkeypatch.setattr("hybridgen.batch.command.LLM", None)
    assert run(source, out) == 0
    assert "23 lines answered, 0 now" in capsys.readouterr().out


def test_another_input_model_or_option_is_refused_by_name(
    source: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.with_name("out")
    assert run(source, out, "--temperature", "0.5") == 0
    before = answers(out)

    def refused(*arguments: str, model: Path = MODEL) -> str:
        capsys.readouterr()
        assert run(source, out, *arguments, model=model) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "belongs to another batch" in printed
        assert "--overwrite" in printed
        return printed

    words = refused("--temperature", "0.25")
    assert "options.sampling.temperature is 0.5 there and 0.25 here" in words
    assert "options.dtype is 'float32' there" in refused("--temperature", "0.5", "--dtype", "auto")
    other = refused("--temperature", "0.5", "--lines-per-shard", "7", "--token-ids")
    assert "output.lines_per_shard is 1000 there and 7 here" in other
    assert "output.token_ids is False there and True here" in other
    model = copy_of(MODEL)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    words = refused("--temperature", "0.5", "--model-name", "tiny-llama", model=model)
    assert "model.model.safetensors is" in words
    # Where it runs, and how fast, is no part of what it is.
    elsewhere = ["--max-num-seqs", "3", "--weight-host", "0.0", "--dram", "1GiB"]
    assert run(source, out, "--temperature", "0.5", *elsewhere) == 0
    with source.open("a") as file:
        file.write('{"prompt": "v9"}\n')
    words = refused("--temperature", "0.5")
    assert "input.lines is 23 there and 24 here" in words
    assert answers(out) == before
    assert run(source, out, "--overwrite", "--lines-per-shard", "7") == 0
    assert len(answers(out)) == 24
    assert len(shards(out)) == 4


def test_an_input_that_changes_meanwhile_ends_the_run(tmp_path: Path) -> None:
    source = open_input(write_lines(tmp_path / "in", ({"prompt": "a"} for _ in range(20))))
    with ShardFolder(tmp_path / "out", JsonlShards(), num_lines=20, lines_per_shard=5) as folder:
        os.utime(tmp_path / "in", ns=(1, 1))
        with pytest.raises(ConfigError, match="changed while it was read"):
            run_batch(source, folder, Echo(), {}, lines_per_shard=5, progress=False)
    assert shards(tmp_path / "out") == []


# --------------------------------------------------------------------------------------- bad places


def test_a_full_disk_ends_the_run_and_leaves_no_half_of_a_shard(tmp_path: Path) -> None:
    lines = ({"prompt": "x" * (10 if i < 5 else 2000)} for i in range(10))
    source = open_input(write_lines(tmp_path / "in", lines))
    out = tmp_path / "out"
    with ShardFolder(out, JsonlShards(), num_lines=10, lines_per_shard=5) as folder:
        with full_disk(), pytest.raises(DeviceError, match="File too large"):
            run_batch(source, folder, Echo(), {}, lines_per_shard=5, progress=False)
        assert [file.name for file in out.iterdir()] == ["part-00000.jsonl"]
        done = folder.done()
        assert list(done) == [0]
        outcome = run_batch(source, folder, Echo(), done, lines_per_shard=5, progress=False)
    assert outcome.num_fresh == 5
    assert [a["index"] for a in answers(out)] == list(range(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "absent.jsonl"}, "absent.jsonl is not there"),
        ({"input": "."}, "is a folder"),
        ({"input": "empty"}, "has no lines"),
        ({"--out": "empty/out"}, "--out is"),
        ({"--out": "empty"}, "--out is"),
        ({"--out": "full"}, "has mine.txt, which no batch made"),
        ({"--model": "absent-model"}, "absent-model"),
        ({"--temperature": "-1"}, "temperature is -1"),
        ({"--lines-per-shard": "0"}, "--lines-per-shard is 0"),
        ({"--format": "csv"}, "--format is 'csv'"),
        ({"--device": "emulated:h100-nvl"}, "nothing is computed"),
        ({"--heavy": None}, None),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_writes_nothing(
    source: Path,
    change: dict[str, str],
    message: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    Path("empty").touch()
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    arguments = {"--out": "out", "--model": str(MODEL)} | change
    given = ["batch", arguments.pop("input", str(source))]
    given += [word for pair in arguments.items() for word in pair if word is not None]
    if message is None:
        with pytest.raises(SystemExit):
            hybridgen.cli.main(given)
    else:
        assert hybridgen.cli.main(given) in (1, 2)
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert message in printed.err
    assert not list(Path().glob("out/*"))
    assert [file.name for file in Path("full").iterdir()] == ["mine.txt"]


def test_a_model_that_does_not_fit_leaves_an_earlier_batch_as_it_was(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.with_name("out")
    assert run(source, out) == 0
    before = {file: file.read_bytes() for file in out.iterdir()}

    def too_large(*_: object, **__: object) -> None:
        raise hybridgen.OutOfMemoryError("[load_model] the weights take 9 TiB")

    monkeypatch.setattr("hybridgen.batch.command.LLM", too_large)
    assert run(source, out, "--overwrite") == 1
    assert capsys.readouterr().err == "error: [load_model] the weights take 9 TiB\n"
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_two_runs_do_not_write_one_folder(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("out")
    with ShardFolder(out, JsonlShards(), num_lines=1, lines_per_shard=1):
        assert run(source, out) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert run(source, out) == 0


def test_a_damaged_shard_and_shards_of_nobody_are_named(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.with_name("out")
    assert run(source, out, "--lines-per-shard", "10") == 0
    lines = shards(out)[1].read_text().splitlines(keepends=True)
    shards(out)[1].write_text("".join(lines[:-1]))
    assert run(source, out, "--lines-per-shard", "10") == 1
    assert "part-00001.jsonl is not what was written there" in capsys.readouterr().err
    (out / MANIFEST).unlink()
    assert run(source, out, "--lines-per-shard", "10") == 2
    assert "has shards and no batch.json" in capsys.readouterr().err
    assert run(source, out, "--lines-per-shard", "10", "--overwrite") == 0


# ----------------------------------------------------------------------------------------- progress


def test_progress_says_lines_tokens_per_second_and_time_left(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hybridgen.batch.batch_progress import BatchProgress

    shown = BatchProgress(100, 40, 2, enabled=False)
    for _ in range(20):
        shown.count(tokens=50, is_failure=False)
    assert shown.text(10.0) == "60/100 lines, 100.0 tokens/s, 00:10 so far, 00:20 left, 2 failed"
    arguments = command(source, source.with_name("out"))
    arguments.remove("--no-progress")
    assert hybridgen.cli.main(arguments) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("batch: 23/23 lines, ")
    assert last.endswith("00:00 left")


# ------------------------------------------------------------------------------------------ Parquet


def test_parquet_in_and_out_have_the_texts_of_lines_of_json(tmp_path: Path, llm: LLM) -> None:
    pytest.importorskip("pyarrow", reason="pip install pyarrow would run it")
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"id": "a", "prompt": "v1 v2", "max_tokens": 3, "logprobs": 1},
        {"id": "b", "prompt_token_ids": [5, 6, 7], "max_tokens": 2},
        {"id": "c", "prompt": "v3", "temperature": -1.0},
    ]
    table = pyarrow.Table.from_pylist(
        [{k: row.get(k) for k in {k for r in rows for k in r}} for row in rows]
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    write_lines(tmp_path / "in.jsonl", rows)
    for name in ("in.parquet", "in.jsonl"):
        for form in ("jsonl", "parquet"):
            out = tmp_path / f"{name}-{form}"
            arguments = ["--format", form, "--lines-per-shard", "2", "--token-ids"]
            assert run(tmp_path / name, out, *arguments) == 1
            assert run(tmp_path / name, out, *arguments) == 1  # goes on with what is there
    lines = answers(tmp_path / "in.jsonl-jsonl")
    assert [a["error"] is None for a in lines] == [True, True, False]
    assert [
        {k: v for k, v in a.items() if k != "error"} for a in answers(tmp_path / "in.parquet-jsonl")
    ] == [{k: v for k, v in a.items() if k != "error"} for a in lines]
    for name in ("in.parquet", "in.jsonl"):
        files = shards(tmp_path / f"{name}-parquet")
        assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet"]
        found = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
        assert [row["id"] for row in found] == ["a", "b", "c"]
        assert "temperature is -1.0" in found[2]["error"]["message"]
        for row, line in zip(found[:2], lines, strict=False):
            assert row["outputs"][0]["text"] == line["outputs"][0]["text"]
            assert row["outputs"][0]["token_ids"] == line["outputs"][0]["token_ids"]
        assert json.loads(found[0]["outputs"][0]["logprobs"]) == lines[0]["outputs"][0]["logprobs"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    assert run(tmp_path / "broken.parquet", tmp_path / "out") == 2
