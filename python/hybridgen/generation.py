# SPDX-License-Identifier: Apache-2.0
"""Requests in flight: tokens that the engine yields reach their sequences, whoever steps it.

All calls of one ``LLM`` share an engine. Whoever steps it moves every request forward, so a stream
may pause while another call runs.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Generator
from contextlib import closing, nullcontext, suppress
from typing import Any

from ._lifetime import Guard, rest
from .errors import ConfigError, HybridGenError, own_error, text_of
from .outputs import RequestMetrics
from .sequence import Sequence


class Call:
    """Which sequences a caller has yet to hear of; whoever steps the engine fills it.

    A sequence is in it once for every token, and once more when it has ended and all of it is done.
    """

    def __init__(self) -> None:
        self.news: deque[Sequence] = deque()

    def read(self) -> list[Sequence]:
        """Return the sequences there is news of, each once, and forget the news."""
        return list(dict.fromkeys(self.news.popleft() for _ in range(len(self.news))))


_CLOCKS: weakref.WeakValueDictionary[str, EngineLoop] = weakref.WeakValueDictionary()


def claim_clock(clock: str, device: str, loop: EngineLoop) -> None:
    """Let one engine at a time have the clock of an emulated device, which messages call `device`.

    Raises
    ------
    ConfigError
        While another one has it.
    """
    owner = _CLOCKS.get(clock)
    if owner is not None and not owner.is_closed:
        raise ConfigError(
            f"[LLM] device is {device!r}, where another LLM is open, and the two would be timed "
            "as if each had it alone; allowed: one at a time; close the other one first"
        )
    _CLOCKS[clock] = loop


class EngineLoop:
    """Owns an engine, runs sequences through it, and lets one thread at a time use it.

    A sequence's failure is its own: it is kept in `Sequence.error` for whoever asked for it, and
    everything else in flight goes on.

    Parameters
    ----------
    engine : _core.Engine
        Nothing else may step it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._live: dict[int, Sequence] = {}
        self._events: list[Any] = []
        """Of the last step, not yet given to their sequences."""
        self._past: dict[str, Any] = {}
        """Sums of before the last call began."""
        self._guard = Guard()

    @property
    def engine(self) -> Any:
        """The engine; ConfigError once it is closed, and in a forked process."""
        rest()
        self._guard.refuse_if_forked()
        if self._engine is None:
            raise ConfigError(
                "[LLM] the engine is closed; allowed: an LLM that is open; make a new one, or "
                "close this one later"
            )
        return self._engine

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine is None

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._live

    @property
    def lock(self) -> Any:
        """What a caller holds while nobody else may step; it is reentrant."""
        return self._guard.lock

    def add(self, sequences: list[Sequence], call: Call) -> None:
        """Queue sequences, all or none; what the engine finds wrong with one is raised.

        Under the lock as a whole: nobody steps the first ones while a later one is refused.
        """
        with self.lock:
            if self.idle:
                self._past = self.all_stats()
                self.engine.reset_stats()
            for sequence in sequences:
                try:
                    sequence.call = call
                    sequence.request_id = self.engine.add(
                        sequence.prompt_ids,
                        sequence.options,
                        forced=sequence.forced,
                        decode_prompt_tokens=sequence.decode_prompt_tokens,
                        device_tokens=sequence.device_tokens,
                        on_disk=sequence.on_disk,
                    )
                    self._live[sequence.request_id] = sequence
                except BaseException as error:
                    sequence.error = error
                    for each in sequences:
                        self.abort(each)
                    raise

    def run(self, sequences: list[Sequence]) -> Generator[list[Sequence], None, None]:
        """Queue sequences and yield after every step those of which there is news.

        Each ends with a `finish_reason` and, if it could not be finished, with an `error`; ended
        it is yielded once. Closing the iterator ends those that still run.
        """
        call = Call()
        waiting = set(sequences)
        try:
            self.add(sequences, call)
            while waiting:
                if not call.news:
                    self.step()
                # Somebody else's interrupt may have the end of one told of twice.
                fresh = [sequence for sequence in call.read() if sequence in waiting]
                waiting.difference_update(s for s in fresh if s.finished)
                yield fresh
        finally:
            for sequence in sequences:
                self.abort(sequence)

    def stream(self, sequences: list[Sequence]) -> Generator[tuple[Sequence, int], None, None]:
        """Run sequences, yielding every token as the number of a piece of its sequence."""
        read = dict.fromkeys(sequences, 0)
        with closing(self.run(sequences)) as steps:
            for fresh in steps:
                for sequence in fresh:
                    while read[sequence] < len(sequence.pieces):
                        read[sequence] += 1
                        yield sequence, read[sequence] - 1

    def step(self) -> None:
        """Advance all requests once, and give every sequence what is new of it."""
        with self.lock:
            if not self._events:
                try:
                    # Filled in place: an interrupt on the way back must not lose others' tokens.
                    self.engine.step(self._events)
                    if not self._events and not self.engine.has_work():
                        raise HybridGenError("[step] the engine has lost requests; this is a bug")
                except Exception as error:
                    kind = type(error) if isinstance(error, HybridGenError) else HybridGenError
                    for sequence in list(self._live.values()):
                        own = kind(f"[step] {text_of(error)}")
                        own.__cause__ = error
                        self._forget(sequence, "error", own)
            # Delivered, then removed: an interrupt has an event delivered twice, never lost.
            while self._events:
                self._deliver(self._events[0])
                del self._events[0]

    def abort(self, sequence: Sequence) -> None:
        """End a sequence that may or may not be in flight.

        Raises ConfigError in a callback of an engine that is busy; passes interrupts on.
        """
        if self._guard.is_over:
            sequence.end("abort")
            return
        with self.lock:
            rest()
            if sequence.request_id in self._live:
                self._forget(sequence, "abort")
            else:
                sequence.end("abort")

    def run_stats(self) -> dict[str, Any]:
        """Return the engine's sums since the last call began."""
        with self.lock:
            return dict(self.engine.run_stats())

    def all_stats(self) -> dict[str, Any]:
        """Return the engine's sums since it was made."""
        with self.lock:
            now = self.engine.run_stats()
            return {name: value + self._past.get(name, 0) for name, value in now.items()}

    def refresh_metrics(self, sequence: Sequence) -> None:
        """Read the engine's statistics of a sequence in flight."""
        with self.lock, suppress(HybridGenError):
            if sequence.request_id in self._live:
                stats = self.engine.request_stats(sequence.request_id)
                sequence.metrics = RequestMetrics.from_stats(stats)

    def memory(self) -> dict[str, dict[str, Any]]:
        """Return what each tier holds, and where its pages lie; no step runs meanwhile."""
        with self.lock:
            return dict(self.engine.memory(pages=True))

    def device_bytes(self) -> int:
        """Return how much the device's part of the cache holds now; 0 once closed."""
        with self.lock, suppress(HybridGenError):
            return int(self.engine.memory().get("device", {}).get("used", 0))
        return 0

    def close(self) -> None:
        """Let go of the engine and its requests, whose callers get an error."""
        # In a forked child another thread may have held the lock, which nobody gives up there.
        with nullcontext() if self._guard.is_forked else self.lock:
            for sequence in [] if self._guard.is_forked else list(self._live.values()):
                self._forget(
                    sequence,
                    "abort",
                    ConfigError(
                        "[close] the LLM was closed before the text ended; close it when all calls "
                        "have returned"
                    ),
                )
            self._live.clear()
            self._engine = None

    def _deliver(self, event: Any) -> None:
        """Give an event to its sequence, which it may end.

        An interrupt passes through; it ends the sequences of the call that it came to, not this.
        """
        sequence = self._live.get(event.request_id)
        if sequence is None:  # its caller left while it was on the way
            self._release(event.request_id)
            return
        if event.error is not None:
            self._forget(sequence, "error", event.error)
            return
        try:
            sequence.accept(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of the tokenizers library are no Exceptions
            self._forget(sequence, "error", own_error(error, "text"))
            return
        if sequence.finished:
            self._forget(sequence)
        elif sequence.call is not None:
            sequence.call.news.append(sequence)

    def _forget(
        self, sequence: Sequence, reason: str = "", error: BaseException | None = None
    ) -> None:
        """End a sequence in flight, in the engine too, and let its caller know.

        It is in flight until all is done, so that after an interrupt this can be done again.
        """
        if reason:
            sequence.end(reason, error)
        if self._engine is not None:
            with suppress(HybridGenError):
                self._engine.finish(sequence.request_id, sequence.output.finish_reason)
        self.refresh_metrics(sequence)
        if sequence.call is not None:
            sequence.call.news.append(sequence)
        self._release(sequence.request_id)
        self._live.pop(sequence.request_id, None)

    def _release(self, request_id: int) -> None:
        if self._engine is not None:
            with suppress(HybridGenError):
                self._engine.release(request_id)
