# SPDX-License-Identifier: Apache-2.0
"""Lines through one engine, a bounded number of them at a time, so that its batch stays full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._checks import MAX_INT64
from ..chat import chat_prompts
from ..errors import DeviceError, HybridGenError, own_error
from ..generation import Call
from ..llm import LLM
from ..prompts import Encoded
from ..request import Request
from ..sampling import SamplingParams
from ..sequence import Sequence
from .asked import Asked
from .line import Answer, Line
from .line_forms import LineForms

_SAME = (("max_tokens", "max_new_tokens"), ("temperature", "do_sample"))
"""Fields that mean the same: one that is said takes the place of both."""

_WAITING_PER_SEAT = 2
"""Texts in flight per text that runs: a request that ends is followed by one that waits."""


class EngineWindow:
    """Answers lines by an engine of this process.

    Several threads may do so at the same time: their lines share the engine's batch.

    Parameters
    ----------
    llm : LLM
        The engine; open as long as lines are answered.
    forms : LineForms
        How lines are read and answers written.
    defaults : mapping
        Fields of `SamplingParams` that lines do not give.
    seed : int
        Of lines without one; a line's own number is added, so that its text is the same wherever
        and whenever it is made.
    """

    def __init__(
        self, llm: LLM, forms: LineForms, defaults: Mapping[str, Any], seed: int = 0
    ) -> None:
        llm.model._require_results("batch")
        self._llm, self._forms = llm, forms
        self._defaults, self._seed = dict(defaults), seed
        self._limit: int = _WAITING_PER_SEAT * llm.engine_options.max_num_seqs

    @property
    def num_lines_together(self) -> int:
        """Lines that keep the engine busy, with a text each."""
        return self._limit

    def answers(
        self, lines: Iterable[Line], may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[Answer]:
        """Yield answers as lines end; see `Answerer`."""
        coming = iter(lines)
        in_flight = _InFlight(self._llm)
        is_over = False
        try:
            while True:
                while not is_over and in_flight.num_texts < self._limit and may_take():
                    line = next(coming, None)
                    if line is None:
                        is_over = True
                        break
                    failure = self._begin(line, in_flight)
                    if failure is not None:
                        yield failure
                if not in_flight.num_texts:
                    if is_over:
                        return
                    continue
                for line, request in in_flight.step():
                    yield self._answer(line, request)
        finally:
            in_flight.abort()

    def _begin(self, line: Line, in_flight: _InFlight) -> Answer | None:
        """Put a line's request into the engine; returns the answer if it is refused."""
        try:
            request = self._request(line, self._forms.asked(line))
        except Exception as error:  # whatever a line makes of the options
            return self._failure(line, error)
        try:
            in_flight.add(line, request)
        except (HybridGenError, MemoryError) as error:
            return self._failure(line, error)
        return None

    def _request(self, line: Line, asked: Asked) -> Request:
        fields: dict[str, Any] = {"seed": (self._seed + line.index) & MAX_INT64}
        for said in (asked.usual, self._defaults, asked.options):
            for names in _SAME:
                if said.keys() & set(names):
                    fields = {name: fields[name] for name in fields if name not in names}
            fields |= said
        params = SamplingParams(**fields)
        return self._llm._maker.make("batch", self._encoded(asked), params, name=line.index)

    def _encoded(self, asked: Asked) -> Encoded:
        reader = self._llm.model._reader("batch")
        if asked.messages is None:
            return reader.read_one(asked.prompt)
        (ids,) = chat_prompts(reader.require_codec("messages"), [asked.messages])
        return None, ids

    def _answer(self, line: Line, request: Request) -> Answer:
        if request.error is not None:
            return self._failure(line, request.error)
        return self._forms.answered(line, request.output(), self._llm.model.codec)

    def _failure(self, line: Line, error: BaseException) -> Answer:
        """Return the answer to a line that failed by itself; else raise what failed."""
        error = own_error(error, "batch")
        # A machine that fails would make errors of all lines that are left.
        if isinstance(error, DeviceError) or type(error) is HybridGenError:
            raise error
        return self._forms.failed(line, error)


class _InFlight:
    """Requests that were added and have not ended, of one call."""

    def __init__(self, llm: LLM) -> None:
        self._loop = llm._loop
        self._call = Call()
        self._of_sequence: dict[Sequence, tuple[Line, Request]] = {}
        self._texts_left: dict[Request, int] = {}

    @property
    def num_texts(self) -> int:
        """How many texts have not ended."""
        return len(self._of_sequence)

    def add(self, line: Line, request: Request) -> None:
        """Queue a request; what the engine finds wrong with it is raised."""
        self._loop.add(request.sequences, self._call)
        self._of_sequence.update(dict.fromkeys(request.sequences, (line, request)))
        self._texts_left[request] = len(request.sequences)

    def step(self) -> Iterator[tuple[Line, Request]]:
        """Let the engine do a step, unless another thread's brought news; yield what has ended."""
        if not self._call.news:
            self._loop.step()
        for sequence in self._call.read():
            if sequence.finished and sequence in self._of_sequence:
                line, request = self._of_sequence.pop(sequence)
                self._texts_left[request] -= 1
                if not self._texts_left[request]:
                    del self._texts_left[request]
                    yield line, request

    def abort(self) -> None:
        """End what has not."""
        for sequence in list(self._of_sequence):
            self._loop.abort(sequence)
