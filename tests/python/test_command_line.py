# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen``: output on stdout, one line of error on stderr, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hybridgen as hg
from hybridgen import LLM, Disk, KVConfig, SamplingParams, SchedulerConfig
from hybridgen.cli import main
from hybridgen.cli_options import add_engine_arguments, engine_from, kv_from

Checkpoint = Callable[..., Path]

NO_EOS = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> Iterator[LLM]:
    kv, scheduler = KVConfig(device_tokens=4), SchedulerConfig(k="all")
    with LLM(checkpoint("llama"), kv=kv, query="exact", scheduler=scheduler) as engine:
        yield engine


def options(path: Path) -> list[str]:
    return ["--model", str(path), "--query", "exact", "--k", "all", "--device-tokens", "4"]


def test_generate_prints_the_text(
    checkpoint: Checkpoint, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", *options(checkpoint("llama")), "--prompt", "The quick"]
    arguments += ["--max-tokens", "12", "--ignore-eos"]
    text = llm.generate("The quick", NO_EOS)[0].text
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert main([*arguments, "--stream"]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert main([*arguments, "--json", "--prompt", "fox"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["outputs"][0]["outputs"][0]["text"] == text
    assert printed["outputs"][1]["prompt"] == "fox"
    assert printed["stats"]["requests"] == 2


def test_a_prompt_may_come_from_a_file(
    checkpoint: Checkpoint, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("The quick\n", encoding="utf-8")
    arguments = ["generate", *options(checkpoint("llama")), "--ignore-eos"]
    assert main([*arguments, "--max-tokens", "12", "--prompt-file", str(file)]) == 0
    assert capsys.readouterr().out == f"{llm.generate('The quick', NO_EOS)[0].text}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", "a", "--k", "0"], 2, "k is 0"),
        (["--prompt", "a", "--method", "nothing"], 2, "method is 'nothing'"),
        (["--prompt", "a", "--method", "full", "--k", "5"], 2, "full] k is 5"),
        (["--prompt", "a", "--method", "full", "--k", "steered"], 2, "full] k is None"),
        (["--prompt", "a", "--method", "h2o", "--device-tokens", "5"], 2, "device_tokens is 5"),
        (["--prompt", "a", "--query", "exact", "--spec-first-layer", "3"], 2, "first_layer is"),
        (["--prompt", "a", "--pre-selector", "sinks_recent"], 2, "set strategy='pre'"),
        (["--prompt-file", "/does/not/exist"], 2, "cannot read --prompt-file"),
        (["--prompt", "a", "--load-format", "bin"], 1, "there are no weights"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["generate", "--model", str(checkpoint("llama")), *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_wrong_command_line_exits_with_two() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate"])
    assert caught.value.code == 2


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = "import sys; from hybridgen.cli import main; sys.exit(main(['methods']))"
    paths = [str(Path(hg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", command],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_info_and_methods_print_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "methods"):
        assert main([command]) == 0
        assert capsys.readouterr().out
        assert main([command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_limits_of_an_engine_and_options_of_the_method_reach_the_engine(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(checkpoint("llama"))
    limits = ["--max-model-len", "9", "--max-num-seqs", "3", "--max-num-batched-tokens", "5"]
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    given = parser.parse_args(["--model", model, *limits, "--method-config", "k=none"])
    with engine_from(given) as llm:
        options = llm.engine_options.to_dict()
    names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "k")
    assert [options[name] for name in names] == [9, 3, 5, None]
    assert main(["generate", "--model", model, "--prompt", "a", "--max-num-seqs", "0"]) == 2
    assert "max_num_seqs is 0" in capsys.readouterr().err


def test_a_disk_is_a_folder_and_a_size_on_the_command_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    given = parser.parse_args(["--model", "x", "--disk", f"{tmp_path}:2GiB", "--cxl", "0"])
    assert kv_from(given) == KVConfig(disk=Disk(tmp_path, 2 << 30), cxl=0)
    wrong = ["generate", "--model", "x", "--prompt", "a", "--disk", str(tmp_path)]
    assert main(wrong) == 2
    assert "allowed: FOLDER:SIZE" in capsys.readouterr().err


def test_every_token_can_be_given_a_bias(
    checkpoint: Checkpoint, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", *options(checkpoint("llama")), "--prompt", "The quick"]
    arguments += ["--max-tokens", "12", "--ignore-eos"]
    bias = {60: 100.0, 7: -1.5}
    flags = [part for token, by in bias.items() for part in ("--logit-bias", f"{token}={by}")]
    assert main([*arguments, *flags]) == 0
    biased = llm.generate("The quick", NO_EOS.replace(logit_bias=bias))[0].text
    assert capsys.readouterr().out == f"{biased}\n" != llm.generate("The quick", NO_EOS)[0].text
    for wrong in ("7", "7=x", "x=1"):
        with pytest.raises(SystemExit):
            main([*arguments, "--logit-bias", wrong])
        assert "is not TOKEN_ID=NUMBER" in capsys.readouterr().err
