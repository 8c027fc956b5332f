# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen serve``: what it refuses before it loads a model, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from hybridgen import ConfigError, OutOfMemoryError, cli
from hybridgen.cli import main
from hybridgen.serve.command import bind, is_own_address, read_keys
from trained import ROOT, folder_of, run_python

pytestmark = pytest.mark.timeout(120)

MODEL = str(folder_of("tiny-llama"))
KEY = "a-key-of-this-test"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRIDGEN_API_KEY", raising=False)


def refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], model: str = MODEL
) -> tuple[int, str]:
    """Return the exit code and the one line of error of a server that does not start."""
    code = main(["serve", "--model", model, "--device", "cpu", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return code, printed.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "there is no API key; allowed: 127.0.0.1"),
        (["--host", "192.0.2.1"], 2, "--no-auth"),
        (["--port", "70000"], 2, "port is 70000; allowed: an int in [0, 65535]"),
        (["--max-queue", "-1"], 2, "max_queue is -1"),
        (["--max-body", "0"], 2, "max_body is 0"),
        (["--stop-seconds", "nan"], 2, "stop_seconds is nan"),
        (["--api-key-file", "/no/such/file"], 2, "No such file"),
        (["--model-name", ""], 2, "model_name is ''"),
        (["--host", "192.0.2.1", "--no-auth"], 1, "cannot listen on 192.0.2.1"),
        (["--host", "no.such.host.invalid", "--no-auth"], 1, "cannot listen on no.such"),
        (["--port", "0", "--k", "0"], 2, "k is 0"),
        (["--device", "emulated:h100-nvl"], 2, "where nothing is computed"),
    ],
)
def test_what_is_not_allowed_is_one_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    found, line = refused(arguments, capsys)
    assert words in line
    assert found == code


def test_a_port_in_use_is_said_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, line = refused(["--port", str(port)], capsys, model="/no/such/model")
    assert code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in line


def test_a_model_without_a_tokenizer_is_refused(
    capsys: pytest.CaptureFixture[str], copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(Path(MODEL))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    code, line = refused(["--port", "0"], capsys, model=str(folder))
    assert (code, "there is no tokenizer" in line) == (2, True)


def test_a_model_that_does_not_fit_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise OutOfMemoryError("[load_model] the weights need 140 GiB; allowed: 12 GiB")

    monkeypatch.setattr(cli, "engine_from", load)
    code, line = refused(["--port", "0"], capsys)
    assert (code, "the weights need 140 GiB" in line) == (1, True)


def test_a_key_is_never_taken_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--model", MODEL, "--api-key", KEY])
    assert caught.value.code == 2
    capsys.readouterr()


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n", encoding="utf-8")
    assert read_keys(str(file), " three\n") == ("one", "two", "three")
    assert read_keys(None, None) == ()
    for content in ("", "\n", "a b\n", "schlüssel\n", "a\x00b\n"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_keys(str(file), None)
        assert "schlüssel" not in str(caught.value)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        read_keys(str(file), None)
    with pytest.raises(ConfigError):
        read_keys(None, "")


def test_only_loopback_addresses_are_this_machines_own() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_own_address(host)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        assert not is_own_address(host)


def test_importing_hybridgen_or_its_command_line_imports_no_server() -> None:
    code = (
        "import sys, hybridgen, hybridgen.cli\n"
        "found = {'fastapi', 'uvicorn', 'prometheus_client', 'starlette'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_packages_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("server", "app", "gate", "problems"):
        monkeypatch.delitem(sys.modules, f"hybridgen.serve.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, line = refused(["--port", "0"], capsys)
    assert (code, "pip install 'hybridgen[serve]'" in line) == (1, True)


# ---------------------------------------------------------------------------------- a real process


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yields the process and its address."""
    command = [sys.executable, "-m", "hybridgen", "serve", "--model", MODEL, "--device", "cpu"]
    paths = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, "--threads", "1", "--device-threads", "1", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    ) as running:
        assert running.stdout is not None
        try:
            line = running.stdout.readline()
            assert line.startswith("serving tiny-llama at http://127.0.0.1:"), line
            yield running, line.split(" at ")[1].split()[0]
        finally:
            running.kill()


def lines_of(response: Any) -> Iterator[str]:
    return (line for line in response.iter_lines() if line)


@pytest.mark.slow
def test_sigterm_finishes_what_runs_and_the_exit_code_is_0() -> None:
    with process(HYBRIDGEN_API_KEY=KEY) as (running, url):
        with (
            pytest.raises(openai.AuthenticationError),
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
        ):
            client.models.list()
        fields = {"model": "tiny-llama", "prompt": "w1", "max_tokens": 1500, "stream": True}
        with (
            httpx.Client(timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as http,
            http.stream("POST", f"{url}/completions", json=fields | {"ignore_eos": True}) as answer,
        ):
            lines = lines_of(answer)
            first = json.loads(next(lines).removeprefix("data: "))
            running.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert first["choices"][0]["finish_reason"] is None
        assert rest[-1] == "data: [DONE]"
        assert (
            json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (0, "")


def test_an_ipv6_address_may_be_listened_on() -> None:
    if not socket.has_ipv6:
        pytest.skip("a machine with IPv6 would run it")
    with bind("::1", 0) as listener:
        assert listener.family == socket.AF_INET6
