# SPDX-License-Identifier: Apache-2.0
"""The server against the same requests in Python: tokens per second, and time to the first token.

The server is a process of its own, ``python -m hybridgen serve``; clients are tasks of this one,
read streams and so take their part of the same CPUs. Both have the same model, options and number
of texts that run at a time, and take turns; figures are medians of turns.

* Rate: every client asks for one text after another; in Python one call has all prompts.
* First token: one client, nothing else under way; from the request to its first event, in Python
  from the call of ``stream`` to its first chunk.

    python benchmarks/serving.py [--clients 16] [--turns 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from report import Report  # noqa: E402

PROMPT_TOKENS = 64
NAME = "model"


class Address:
    """Where the server listens."""

    def __init__(self, line: str) -> None:
        host, _, port = line.split("http://")[1].split("/")[0].rpartition(":")
        self.host, self.port = host, int(port)

    def request(self, ids: list[int], tokens: int) -> bytes:
        """Return an HTTP request for a stream of so many tokens."""
        body = json.dumps(
            {
                "model": NAME,
                "prompt": ids,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode()


@contextmanager
def serving(model: str, clients: int) -> Iterator[Address]:
    """Run the server; yields its address."""
    command = [sys.executable, "-m", "hybridgen", "serve", "--model", model, "--port", "0"]
    command += ["--model-name", NAME, "--max-num-seqs", str(clients)]
    paths = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    environment.pop("HYBRIDGEN_API_KEY", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving"):
                raise SystemExit("serving.py: the server did not start")
            yield Address(line)
        finally:
            process.terminate()


class Client:
    """A connection that is kept; the plainest there can be, for it runs on the server's CPUs."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, ids: list[int], tokens: int) -> float:
        """Read a whole stream; returns the seconds to its first event."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.host, self._address.port)
        reader, writer = self._streams
        begin = time.perf_counter()
        writer.write(self._address.request(ids, tokens))
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"serving.py: {status!r} {await reader.read(2000)!r}")
        first, last = 0.0, b""
        while True:
            line = await reader.readline()
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - begin
                last = line
            elif line == b"0\r\n":
                await reader.readline()
                break
        found = json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"]
        if found != tokens:
            raise SystemExit(f"serving.py: a text has {found} of {tokens} tokens")
        return first

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def served_rate(
    address: Address, clients: int, prompts: list[list[int]], tokens: int
) -> float:
    """Return tokens per second over all clients, each of which asks for one text after another."""
    todo = iter(prompts)

    async def run(client: Client) -> None:
        for ids in todo:
            await client.ask(ids, tokens)
        client.close()

    begin = time.perf_counter()
    await asyncio.gather(*(run(Client(address)) for _ in range(clients)))
    return len(prompts) * tokens / (time.perf_counter() - begin)


def own_rate(llm: hg.LLM, prompts: list[list[int]], tokens: int) -> float:
    """Return tokens per second of one call; text is made, as the server makes it."""
    params = hg.SamplingParams(max_tokens=tokens, ignore_eos=True)
    begin = time.perf_counter()
    llm.generate(prompts, params)
    return len(prompts) * tokens / (time.perf_counter() - begin)


def own_first_token(llm: hg.LLM, ids: list[int]) -> float:
    """Return the seconds to the first chunk of a stream."""
    params = hg.SamplingParams(max_tokens=2, ignore_eos=True)
    begin = time.perf_counter()
    stream = llm.stream(ids, params)
    next(stream)
    first = time.perf_counter() - begin
    list(stream)
    return first


async def served_first_token(client: Client, ids: list[int]) -> float:
    return await client.ask(ids, 2)


def measure(report: Report, llm: hg.LLM, address: Address, arguments: argparse.Namespace) -> None:
    """Add all figures to the report."""
    generator = random.Random(0)
    last = llm.model_config["vocab_size"] - 1

    def prompts(count: int) -> list[list[int]]:
        return [[generator.randint(3, last) for _ in range(PROMPT_TOKENS)] for _ in range(count)]

    texts = arguments.clients * arguments.texts
    turns: list[tuple[float, float]] = []
    for _ in range(arguments.turns + 1):
        asked = prompts(texts)
        own = own_rate(llm, asked, arguments.tokens)
        found = asyncio.run(served_rate(address, arguments.clients, asked, arguments.tokens))
        turns.append((own, found))
    turns = turns[1:]  # the first touches all memory
    name = f"{arguments.clients} clients, {PROMPT_TOKENS} + {arguments.tokens} tokens"
    report.add(f"{name}: in Python", statistics.median(own for own, _ in turns), "tokens/s")
    report.add(f"{name}: served", statistics.median(found for _, found in turns), "tokens/s")
    ratio = statistics.median(found / own for own, found in turns)
    report.add(f"{name}: served / in Python", ratio, "x", 0.9)

    async def first_tokens() -> list[tuple[float, float]]:
        client = Client(address)
        found = []
        for ids in prompts(arguments.first_tokens + 2):
            own = own_first_token(llm, ids)
            found.append((own, await served_first_token(client, ids)))
        client.close()
        return found[2:]

    firsts = asyncio.run(first_tokens())
    name = f"first token of {PROMPT_TOKENS}"
    report.add(f"{name}: in Python", 1e3 * statistics.median(own for own, _ in firsts), "ms")
    report.add(f"{name}: served", 1e3 * statistics.median(found for _, found in firsts), "ms")
    added = 1e3 * statistics.median(found - own for own, found in firsts)
    report.add(f"{name}: added by the server", added, "ms", 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder; default: SmolLM2, fetched where it is missing")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--texts", type=int, default=2, help="of each client, in a turn")
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--first-tokens", type=int, default=20)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    arguments = parser.parse_args()
    model: Any = arguments.model
    if model is None:
        from get_smollm2 import ensure_smollm2

        model = str(ensure_smollm2())
    report = Report()
    with (
        unwound_by_sigterm(),
        serving(model, arguments.clients) as address,
        hg.LLM(model, max_num_seqs=arguments.clients) as llm,
    ):
        measure(report, llm, address, arguments)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
