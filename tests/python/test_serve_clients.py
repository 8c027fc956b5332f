# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, of which some leave: nobody gets another one's answer, or none."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from hybridgen import LLM, SamplingParams
from serving import MODEL, Served, engine_of, served
from trained import prompts_of

IS_LONG = bool(os.environ.get("HYBRIDGEN_LONG"))
CLIENTS, SECONDS = (64, 60.0) if IS_LONG else (24, 5.0)
LIMIT_MIB = 48
"""What the process may grow by, once every kind of request was answered."""

KINDS = ("whole", "stream", "stream", "leaves", "leaves at once")
ENOUGH = 10
"""Requests of each kind that there have to be, however long they take."""

Case = tuple[dict[str, Any], list[str]]


@pytest.fixture(scope="module")
def llm(trained: Callable[[str], LLM]) -> Iterator[LLM]:
    with engine_of(trained("tiny-llama"), max_num_seqs=16) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Served]:
    with served(llm, max_queue=2 * CLIENTS) as found:
        yield found


def cases_of(llm: LLM) -> list[Case]:
    """Return requests, each with the texts that it has alone."""
    found: list[Case] = []
    for number, ids in enumerate(prompts_of(30, 80, 150, 47, 61, 12)):
        for most, n, temperature in ((3, 1, 0.0), (12, 2, 1.0), (40, 1, 1.0)):
            options = {"max_tokens": most, "n": n, "temperature": temperature, "seed": number}
            params = SamplingParams(**options, ignore_eos=True)  # type: ignore[arg-type]
            texts = [text.text for text in llm.generate(ids, params)[0].outputs]
            fields = {"model": MODEL, "prompt": ids, "ignore_eos": True} | options
            found.append((fields, texts))
    return found


class Client:
    """Asks until it is told to stop; sometimes leaves in the middle of an answer."""

    def __init__(
        self, http: httpx.AsyncClient, cases: list[Case], seed: int, counts: Counter[str]
    ) -> None:
        self._http = http
        self._cases = cases
        self._random = random.Random(seed)
        self._counts = counts
        """Requests of each kind, of all clients."""

    async def run(self, end: float) -> None:
        while time.monotonic() < end or min(self._counts[kind] for kind in KINDS) <= ENOUGH:
            fields, texts = self._random.choice(self._cases)
            kind = self._random.choice(KINDS)
            found = await getattr(self, f"_{kind.replace(' ', '_')}")(fields)
            self._counts[kind] += 1
            if found is not None:
                assert found == texts

    async def _whole(self, fields: dict[str, Any]) -> list[str]:
        answer = await self._http.post("/v1/completions", json=fields)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    async def _stream(self, fields: dict[str, Any], leave_after: int = -1) -> list[str] | None:
        texts = [""] * fields["n"]
        async with self._http.stream(
            "POST", "/v1/completions", json=fields | {"stream": True}
        ) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            for number in itertools.count():
                if number == leave_after:
                    return None
                line = await anext(lines)
                if line == "data: [DONE]":
                    return texts
                if line:
                    (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                    texts[choice["index"]] += choice["text"]
        return None

    async def _leaves(self, fields: dict[str, Any]) -> list[str] | None:
        return await self._stream(fields, leave_after=self._random.randrange(6))

    async def _leaves_at_once(self, fields: dict[str, Any]) -> None:
        asked = asyncio.create_task(self._whole(fields))
        await asyncio.sleep(self._random.random() * 0.02)
        asked.cancel()
        await asyncio.wait({asked})
        if not asked.cancelled():
            asked.result()


async def ask_for(server: Served, cases: list[Case], seconds: float, seed: int) -> Counter[str]:
    """Let all clients ask for a while; returns how many requests of each kind there were."""
    limits = httpx.Limits(max_connections=None)
    counts: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        clients = [Client(http, cases, seed * 1000 + number, counts) for number in range(CLIENTS)]
        end = time.monotonic() + seconds
        await asyncio.gather(*(client.run(end) for client in clients))
    return counts


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_answer_is_lost_or_mixed_and_nothing_is_left_behind(llm: LLM, server: Served) -> None:
    cases = cases_of(llm)
    asyncio.run(ask_for(server, cases, SECONDS / 5, seed=1))
    before = server.wait_until_idle()
    counts = asyncio.run(ask_for(server, cases, SECONDS, seed=2))
    after = server.wait_until_idle()  # which checks that all texts are accounted for
    assert set(counts) == set(KINDS)
    assert server.ended()["abort"] > 0
    assert server.ended()["error"] == server.ended()["refused"] == 0
    requests = 'hybridgen_http_requests_total{path="/v1/completions",status="%s"}'
    answered = sum(
        after.get(requests % status, 0) - before.get(requests % status, 0) for status in (200, 499)
    )
    # One that left before its request had arrived is in no count, nor was one that came of it.
    sure = counts["whole"] + counts["stream"] + counts["leaves"]
    assert sure <= answered <= sum(counts.values())
    grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
    print(dict(counts), server.ended(), f"{grown / 2**20:.1f} MiB more")
    assert grown < LIMIT_MIB << 20
