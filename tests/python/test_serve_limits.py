# SPDX-License-Identifier: Apache-2.0
"""What a server does not let in, what it frees, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from hybridgen import LLM, DeviceError, NumericError, SamplingParams
from hybridgen.serve import gate, problems
from hybridgen.serve.command import bind
from hybridgen.serve.server import Server, run
from serving import MODEL, USUAL, Served, engine_of, served, wait_for

Trained = Callable[[str], LLM]

LONG = {"max_tokens": 1900, "ignore_eos": True}
SLOW = {"max_tokens": 120, "ignore_eos": True}
"""What takes twelve seconds at least while steps are slow, and soon ends once they are not."""
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def llm(trained: Trained) -> Iterator[LLM]:
    with engine_of(trained("tiny-llama"), max_num_seqs=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Served]:
    with served(llm, max_queue=2, max_body_bytes=4096) as found:
        yield found


@pytest.fixture
def slow(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let a step take so long that what runs still does when the next request comes.

    Returns what ends that when it is set.
    """
    step = llm._loop.step
    is_over = threading.Event()

    def delayed() -> None:
        is_over.wait(0.1)
        step()

    monkeypatch.setattr(llm._loop, "step", delayed)
    return is_over


def post(server: Served, content: bytes, **headers: str) -> httpx.Response:
    with server.http() as client:
        return client.post(
            "/v1/completions",
            content=content,
            headers={"Content-Type": "application/json"} | headers,
        )


def raw(server: Served, request: bytes) -> bytes:
    """Send bytes as they are; returns all that comes back."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# ------------------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "w1", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "w1", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "w1", "seed": ' + b"9" * 30 + b"}",
        b'{"model": "tiny", "prompt": [' + b"9" * 400 + b"]}",
        b'{"model": "tiny", "prompt": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"model": "tiny", "prompt": "w1", "logit_bias": {"\\u0663": 1}}',
    ],
)
def test_a_malformed_body_is_a_bad_request(server: Served, content: bytes) -> None:
    answer = post(server, content)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_does_not_say_it_is_json_is_refused(server: Served) -> None:
    body = json.dumps({"model": MODEL, "prompt": "w1"}).encode()
    assert post(server, body, **{"Content-Type": "text/plain"}).status_code == 400


def test_paths_and_methods_that_there_are_none_of_are_told_in_the_same_form(
    server: Served,
) -> None:
    with server.http() as client:
        for answer, status in ((client.get("/v1/nothing"), 404), (client.delete("/health"), 405)):
            assert answer.status_code == status
            assert answer.json()["error"]["type"] == "invalid_request_error"
        # Pages that would fetch scripts from elsewhere.
        assert client.get("/docs").status_code == 404


def test_of_a_body_full_of_mistakes_few_are_looked_at(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    told = problems.problem_of_fields

    def counted(errors: list[Any]) -> problems.Problem:
        counts.append(len(errors))
        return told(errors)

    monkeypatch.setattr(problems, "problem_of_fields", counted)
    many = 60_000
    bodies: list[dict[str, Any]] = [
        {"logit_bias": {str(i): "x" for i in range(many)}},
        {f"field{i}": 0 for i in range(many)},
        {"prompt": [[1]] * many},
        {"prompt": ["w1", *([1] * many)]},
        {"stop_token_ids": ["x"] * many},
        {"stop": ["a"] * many},
    ]
    with served(llm, max_body_bytes=4 << 20) as own:
        for fields in bodies:
            body = json.dumps({"model": MODEL, "prompt": "w1"} | fields).encode()
            answer = post(own, body)
            assert (answer.status_code, len(answer.content) < 1000) == (400, True)
    assert len(counts) == len(bodies)
    assert max(counts) < 10


# ------------------------------------------------------------------------------------------ limits


def test_a_large_body_is_refused_before_it_is_read(server: Served) -> None:
    large = json.dumps({"model": MODEL, "prompt": "w1 " * 4096}).encode()
    for answer in (
        post(server, large),
        raw(
            server,
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"99999999999999999999999\r\n\r\n",
        ),
    ):
        text = answer.text if isinstance(answer, httpx.Response) else answer.decode()
        assert "--max-body" in text or "400" in text.splitlines()[0]

    def pieces() -> Iterator[bytes]:  # whose length nobody tells
        yield from (large[i : i + 1000] for i in range(0, len(large), 1000))

    with server.http() as client:
        answer = client.post(
            "/v1/completions", content=pieces(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 413
    assert "--max-body" in answer.json()["error"]["message"]


def test_a_body_that_never_comes_ends_the_request(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    with served(llm) as own:
        answer = raw(
            own,
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nContent-Length: 100\r\n\r\n{",
        )
    assert b" 408 " in answer.splitlines()[0]


def test_requests_beyond_the_queue_are_told_to_come_later(
    server: Served, slow: threading.Event
) -> None:
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(server.complete(**SLOW).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: server.metrics()["hybridgen_texts_running"] == 4)
    with server.openai() as client, pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model=MODEL, prompt="w1", max_tokens=1)
    assert caught.value.code == "queue_full"
    assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
    slow.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert server.complete().status_code == 200
    server.wait_until_idle()


def test_more_texts_than_ever_fit_are_a_bad_request(server: Served) -> None:
    assert server.complete(n=4).status_code == 200
    answer = server.complete(n=5)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert server.complete(prompt=["w1", "w2", "w3"], n=2).status_code == 400


# ---------------------------------------------------------------------------- clients that leave


def leave_when_there_are(texts: int, server: Served, fields: dict[str, Any]) -> None:
    """Ask for a completion, and leave when the server has so many texts."""

    async def ask_and_leave() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            asked = asyncio.create_task(client.post("/v1/completions", json=fields))
            count = "hybridgen_texts_running"
            await asyncio.to_thread(wait_for, lambda: server.metrics()[count] == texts)
            assert asked.cancel()
            await asyncio.wait({asked})

    asyncio.run(ask_and_leave())


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_request(server: Served, stream: bool) -> None:
    aborted = server.ended()["abort"]
    fields: dict[str, Any] = {"model": MODEL, "prompt": "w1 k2", "stream": stream, "n": 2} | LONG
    if stream:
        with (
            server.http() as client,
            client.stream("POST", "/v1/completions", json=fields) as answer,
        ):
            assert next(answer.iter_lines()).startswith("data: {")
    else:
        leave_when_there_are(2, server, fields)
    server.wait_until_idle()
    assert server.ended()["abort"] == aborted + 2
    assert server.complete().status_code == 200


@pytest.mark.usefixtures("slow")
def test_a_client_that_leaves_while_it_waits_frees_its_place(server: Served) -> None:
    with (
        server.http() as client,
        client.stream(
            "POST", "/v1/completions", json={"model": MODEL, "prompt": "w1", "stream": True} | LONG
        ) as first,
    ):
        lines = first.iter_lines()  # which closes the stream once nobody refers to it
        next(lines)
        waiting = {"model": MODEL, "prompt": "w1", "n": 2} | LONG
        leave_when_there_are(3, server, waiting)
        wait_for(lambda: server.metrics()["hybridgen_texts_running"] == 1)
    server.wait_until_idle()


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_fails_is_an_error_of_its_request_alone(
    llm: LLM,
    server: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stream: bool,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise NumericError("[step] a logit is NaN; this is a test")

    failed = server.ended()["error"]
    with monkeypatch.context() as patch:
        patch.setattr("hybridgen.sequence.Sequence.accept", broken)
        answer = server.complete(stream=stream)
    assert answer.status_code == (200 if stream else 500)
    assert "a logit is NaN" in answer.text
    if stream:
        assert "[DONE]" not in answer.text
        with monkeypatch.context() as patch, server.openai() as client:
            patch.setattr("hybridgen.sequence.Sequence.accept", broken)
            with pytest.raises(openai.APIError, match="a logit is NaN"):
                list(client.completions.create(model=MODEL, prompt="w1", stream=True))
    assert server.ended()["error"] > failed
    assert "error: [step] a logit is NaN; this is a test" in capsys.readouterr().err
    assert server.complete().status_code == 200
    assert llm.generate("w1", SamplingParams(max_tokens=1))[0].finished


def test_an_engine_thread_that_ends_is_told_to_all(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine_of(trained("tiny-llama")) as engine, served(engine) as own:
        assert own.complete().status_code == 200

        def broken() -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(engine._loop, "step", broken)
        for answer in (own.complete(), own.complete()):
            assert answer.status_code == 503
            assert "a bug" in answer.json()["error"]["message"]
        with own.http() as client:
            assert client.get("/health").status_code == 503
            assert client.get("/metrics").status_code == 200
    assert "the engine has stopped: RuntimeError: a bug" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ who may ask


def test_with_keys_only_who_has_one_is_answered(llm: LLM) -> None:
    with served(llm, keys=KEYS) as own:
        for key in KEYS:
            with own.openai(key) as client:
                assert client.completions.create(model=MODEL, prompt="w1", max_tokens=1).choices
        for key in ("first-ke", "first-keyy", "öä"):
            with own.http() as client:
                answer = client.get(
                    "/v1/models", headers={"Authorization": f"Bearer {key}".encode()}
                )
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        with own.openai("wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
            client.completions.create(model=MODEL, prompt="w1")
        assert caught.value.code == "invalid_api_key"
        with own.http() as client:
            assert client.get("/health").status_code == 200  # probes have no key
            for path in ("/metrics", "/openapi.json", "/v1/nothing"):
                assert client.get(path).status_code == 401
            basic = client.get("/v1/models", headers={"Authorization": "Basic first-key"})
            assert basic.status_code == 401


def test_without_keys_no_page_of_another_site_is_answered(llm: LLM, server: Served) -> None:
    def status(of: Served, host: str) -> int:
        with of.http() as client:
            return client.get("/health", headers={"Host": host}).status_code

    port = httpx.URL(server.url).port
    for own_name in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST:1"):
        assert status(server, own_name) == 200
    for other in ("evil.example", f"127.0.0.1.evil.example:{port}", ""):
        assert status(server, other) == 403
    for changes in ({"keys": KEYS}, {"needs_no_key": True}):
        with served(llm, **changes) as own:
            assert status(own, "gpu-server.example") == 200


def test_no_page_of_another_origin_may_read_answers(server: Served) -> None:
    with server.http() as client:
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for answer in (
            client.options("/v1/completions", headers=asked),
            client.get("/v1/models", headers=asked),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


# ------------------------------------------------------------------------------------------ its end


@pytest.mark.parametrize("seconds", [30.0, 0.3])
def test_what_runs_at_the_end_is_finished_or_told(
    llm: LLM, slow: threading.Event, seconds: float
) -> None:
    answers: list[httpx.Response] = []
    with served(llm, stop_seconds=seconds) as own:
        threads = [
            threading.Thread(target=lambda: answers.append(own.complete(**SLOW))),
            threading.Thread(target=lambda: answers.append(own.complete(stream=True, **SLOW))),
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: own.metrics()["hybridgen_texts_running"] == 2)
        own.server.should_exit = True
        if seconds > 1:
            slow.set()
        for thread in threads:
            thread.join()
    assert own.server.had_to_end_texts == (seconds < 1)
    plain, stream = sorted(answers, key=lambda a: a.headers["Content-Type"])
    if seconds > 1:
        assert plain.json()["usage"]["completion_tokens"] == SLOW["max_tokens"]
        assert stream.text.endswith("data: [DONE]\n\n")
    else:
        assert plain.status_code == 503
        assert "the server is stopping" in plain.json()["error"]["message"]
        assert "the server is stopping" in stream.text
    with pytest.raises(httpx.ConnectError):
        own.complete()


def test_texts_that_had_to_be_ended_are_an_error_of_the_command(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(server: Server, sockets: object) -> None:
        server.had_to_end_texts = True

    monkeypatch.setattr(Server, "run", end)
    with bind("127.0.0.1", 0) as listener, pytest.raises(DeviceError, match="--stop-seconds"):
        run(llm, USUAL, listener)


@pytest.mark.usefixtures("slow")
def test_a_second_signal_waits_for_nothing(llm: LLM) -> None:
    answers: list[BaseException] = []
    with served(llm, stop_seconds=60.0) as own:

        def ask() -> None:
            try:
                own.complete(**LONG)
            except httpx.HTTPError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: own.metrics()["hybridgen_texts_running"] == 1)
        begin = time.monotonic()
        own.server.handle_exit(signal.SIGINT, None)
        own.server.handle_exit(signal.SIGINT, None)
        thread.join(30)
    assert own.server.had_to_end_texts
    assert time.monotonic() - begin < 20  # of the 60 that it would have had
    assert llm.generate("w1", SamplingParams(max_tokens=1))[0].finished
