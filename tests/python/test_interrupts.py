# SPDX-License-Identifier: Apache-2.0
"""Interrupts at any moment, and failures of a whole step: each caller keeps what is its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

import hybridgen.codec
import hybridgen.detokenizer
import hybridgen.generation
import hybridgen.sequence
import hybridgen.stop_strings
from broken_model import (
    FULL,
    GREEDY,
    HEALTHY,
    HYBRID,
    NUM_TOKENS,
    ToyTokenizer,
    broken,
    is_idle,
    sequence_of,
)
from hybridgen import LLM, OutOfMemoryError, SamplingParams


@pytest.fixture(scope="module", params=["full", "hybrid"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with broken(**(FULL if request.param == "full" else HYBRID)) as model:
        yield model


class Interrupting:
    """The engine, with something that comes between the end of a step and its caller."""

    def __init__(self, engine: Any, after: int, error: BaseException) -> None:
        self._engine = engine
        self._left = after
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, events: list[Any]) -> None:
        self._engine.step(events)
        self._left -= 1
        if self._left == 0:
            raise self._error


def test_an_interrupt_carries_what_there_is_and_takes_no_token_from_others(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llm.generate_ids(HEALTHY, GREEDY)
    stream = llm.stream(HEALTHY[0], GREEDY)
    got = [next(stream).token_id]
    engine = Interrupting(llm._loop.engine, 4, KeyboardInterrupt())
    with monkeypatch.context() as patch:
        patch.setattr(llm._loop, "_engine", engine)
        with pytest.raises(KeyboardInterrupt) as caught:
            llm.generate(HEALTHY[1:], GREEDY)
    outputs = caught.value.outputs  # type: ignore[attr-defined]
    assert [o.finish_reason for o in outputs] == ["abort", "abort"]
    for output, whole in zip(outputs, expected[1:], strict=True):
        assert output.token_ids == whole[: len(output.token_ids)]
    got += [chunk.token_id for chunk in stream]
    assert got == expected[0]
    assert is_idle(llm)


class InterruptAt:
    """Raises KeyboardInterrupt at one line of what delivers the tokens of one request."""

    FILES = (
        hybridgen.generation.__file__,
        hybridgen.sequence.__file__,
        hybridgen.detokenizer.__file__,
        hybridgen.stop_strings.__file__,
        hybridgen.codec.__file__,
    )

    def __init__(self, request_id: int, line: int) -> None:
        self._request_id = request_id
        self._left = line
        self._is_theirs = False
        self.where = ""

    def __call__(self, frame: FrameType, kind: str, _: object) -> Any:
        code = frame.f_code
        if code.co_filename not in self.FILES:
            return None
        if code.co_name == "_deliver" and kind == "call":
            self._is_theirs = frame.f_locals["event"].request_id == self._request_id
        if kind == "line" and self._is_theirs and code.co_name not in ("run", "abort", "add"):
            self._left -= 1
            if self._left < 0:
                self._is_theirs = False
                self.where = f"{code.co_qualname}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("stop", [[], ["\x7f no such \x7f"]], ids=["plain", "stop"])
def test_an_interrupt_at_any_line_takes_no_token_from_others(stop: list[str]) -> None:
    params = SamplingParams(max_tokens=3, ignore_eos=True, stop=stop, logprobs=1)
    places = set()
    with broken(tokenizer=ToyTokenizer(), **FULL) as llm:
        expected = [(chunk.token_id, chunk.text) for chunk in llm.stream("ABCD", params)]
        whole = llm.generate("ABCD", params)[0].outputs[0]
        line = 0
        while True:
            stream = llm.stream("ABCD", params)
            chunks = [next(stream)]
            (theirs,) = llm._loop._live.values()
            interrupt = InterruptAt(theirs.request_id, line)
            sys.settrace(interrupt)
            try:
                llm.generate(["EF", "GHI"], GREEDY)
            except KeyboardInterrupt as error:
                sys.settrace(None)
                outputs = error.outputs  # type: ignore[attr-defined]
                assert {o.finish_reason for o in outputs} <= {"abort", "length"}
            finally:
                sys.settrace(None)
            chunks += stream
            assert [(c.token_id, c.text) for c in chunks] == expected, interrupt.where
            assert [c.finish_reason for c in chunks][-1] == "length", interrupt.where
            assert theirs.output == whole, interrupt.where
            assert theirs.metrics.generated_tokens == 3, interrupt.where
            assert is_idle(llm), interrupt.where
            if not interrupt.where:
                break
            places.add(interrupt.where.split(":")[0])
            line += 1
    assert {"EngineLoop.step", "EngineLoop._forget", "Sequence._take"} <= places


def test_a_call_hears_once_of_each_end_whatever_others_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[int] = []
    with broken(**FULL) as llm:
        loop = llm._loop
        sequences = [sequence_of(llm, ids) for ids in HEALTHY[:2]]
        steps = loop.run(sequences)
        forget = loop._forget
        interrupted: list[Any] = []

        def interrupting(sequence: Any, *arguments: Any) -> None:
            if sequence is sequences[0] and not interrupted:
                assert sequence.call is not None
                sequence.call.news.append(sequence)
                interrupted.append(sequence)
                raise KeyboardInterrupt
            forget(sequence, *arguments)

        monkeypatch.setattr(loop, "_forget", interrupting)
        for _ in range(NUM_TOKENS):
            done += [sum(s.finished for s in next(steps))]
            if sequences[0].finished:
                break
            if len(sequences[0].pieces) == NUM_TOKENS - 1:
                with pytest.raises(KeyboardInterrupt):  # in a step of somebody else's
                    loop.step()
        done += [sum(s.finished for s in fresh) for fresh in steps]
        assert interrupted
        assert sum(done) == 2
        assert [len(s.output.token_ids) for s in sequences] == [6, 6]
        assert is_idle(llm)


def test_what_the_engine_did_is_read_between_steps(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name == "run_stats":
                held.append(llm._loop._guard._lock._is_owned())  # type: ignore[attr-defined]
            return getattr(engine, name)

    engine = llm._loop.engine
    monkeypatch.setattr(llm._loop, "_engine", Watched())
    llm.generate_ids(HEALTHY, GREEDY, progress=True)
    assert llm.stats.decode_tokens > 0
    assert len(held) > 1
    assert all(held)


def test_requests_made_at_the_same_time_have_seeds_of_their_own(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    original = hybridgen.sequence.sampling_options

    def noting(params: SamplingParams, **options: Any) -> Any:
        seeds.append(options["seed"])
        return original(params, **options)

    class AnotherBetween(int):
        """A seed whose use is interrupted by another request."""

        def __add__(self, other: int) -> int:
            if len(seeds) < 3:
                monkeypatch.setattr(llm._maker, "_seed", int(self))
                sequence_of(llm, [5])
            return int(self) + other

    monkeypatch.setattr("hybridgen.request.sampling_options", noting)
    monkeypatch.setattr(llm._maker, "_seed", AnotherBetween(7))
    for _ in range(2):
        sequence_of(llm, [5])
    assert len(set(seeds)) == len(seeds) == 3


def test_a_step_that_fails_as_a_whole_ends_everything_in_flight_and_no_more(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = llm.stream(HEALTHY[0], GREEDY)
    next(stream)
    engine = Interrupting(llm._loop.engine, 3, OutOfMemoryError("no room for the events"))
    with monkeypatch.context() as patch:
        patch.setattr(llm._loop, "_engine", engine)
        with pytest.raises(OutOfMemoryError, match=r"prompt 0 .*prompt 1 .*no room"):
            llm.generate(HEALTHY[1:], GREEDY)
        with pytest.raises(OutOfMemoryError, match="no room for the events"):
            list(stream)
    assert is_idle(llm)
    assert len(llm.generate_ids(HEALTHY[:1], GREEDY)[0]) == 6
