# SPDX-License-Identifier: Apache-2.0
"""A server in a thread of the tests, around an engine of theirs, and clients of it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from openai import OpenAI

from hybridgen import LLM
from hybridgen.serve.command import ServeOptions, bind
from hybridgen.serve.server import Server
from trained import variant

MODEL = "tiny"
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}1 {{ m.content }} {% endfor %}Q"
USUAL = ServeOptions(
    host="127.0.0.1",
    port=0,
    keys=(),
    needs_no_key=False,
    name=MODEL,
    max_queue=64,
    max_body_bytes=1 << 20,
    stop_seconds=10.0,
)


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    llm: LLM
    server: Server

    def openai(self, key: str = "none") -> OpenAI:
        """Return the official client, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def complete(self, **fields: Any) -> httpx.Response:
        """Post a completion that is as short as can be, but for what is given."""
        body = {"model": MODEL, "prompt": "w1 k2 v3", "max_tokens": 1} | fields
        with self.http() as client:
            return client.post("/v1/completions", json=body)

    def metrics(self) -> dict[str, float]:
        """Return the figures of /metrics by name and labels."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def ended(self) -> dict[str, float]:
        """Return how many texts ended, by reason."""
        name = "hybridgen_texts_ended_total"
        return {
            key.split('"')[1]: value
            for key, value in self.metrics().items()
            if key.startswith(name)
        }

    def wait_until_idle(self) -> dict[str, float]:
        """Return the metrics once no text runs; every one that was begun has then ended."""
        wait_for(lambda: self.metrics()["hybridgen_texts_running"] == 0)
        found = self.metrics()
        running = self.server.service.running
        assert not running._jobs
        assert not running._owners
        assert found["hybridgen_texts_begun_total"] == sum(self.ended().values())
        assert found['hybridgen_memory_used_bytes{tier="dram"}'] == 0
        assert found['hybridgen_memory_used_bytes{tier="device"}'] == 0
        return found


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return when a condition holds; fails if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def engine_of(base: LLM, **options: Any) -> LLM:
    """Return an engine with the weights of `base`, whose tokenizer has a chat template."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return variant(base, tokenizer=tokenizer, **options)


@contextmanager
def served(llm: LLM, **changes: Any) -> Iterator[Served]:
    """Answer requests while the block runs; changes are of ServeOptions."""
    options = replace(USUAL, **changes)
    ready = threading.Event()
    with bind(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        server = Server(llm, options, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(30)
            yield Served(f"http://127.0.0.1:{port}", llm, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
