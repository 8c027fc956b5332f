# SPDX-License-Identifier: Apache-2.0
"""Requests of many clients in one running batch.

One thread steps the engine and nothing else does. Between two steps it takes orders (add these
texts, end those), and after each it tells the event loop what is new, all at once. The event loop
owns every `Job`; the texts in it are written by the engine's thread and may be read up to the
number of tokens that was told.
"""

from __future__ import annotations

import asyncio
import functools
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from ..generation import Call, EngineLoop
from ..request import Request
from ..sequence import Sequence
from .metrics import Metrics
from .problems import Problem, problem_of

T = TypeVar("T")

_LONGEST_RETRY_S = 60
_ANSWER_S = 1.0


class News(NamedTuple):
    """What the engine's thread tells of a text."""

    sequence: Sequence
    tokens: int
    """So many have arrived in all."""
    has_ended: bool


class Job:
    """All texts of one HTTP request, on their way.

    Parameters
    ----------
    requests : list of Request
        One for each prompt.
    is_streamed : bool
        Whether tokens are told of as they come, not only the ends of texts.
    """

    def __init__(self, requests: list[Request], *, is_streamed: bool) -> None:
        self.requests = requests
        self.is_streamed = is_streamed
        self.sequences = [sequence for request in requests for sequence in request.sequences]
        self.tokens = dict.fromkeys(self.sequences, 0)
        """How many of each text have arrived."""
        self.begin = time.monotonic()
        self._unfinished = len(self.sequences)
        self._problem: Problem | None = None
        self._was_accepted = False
        self._news = asyncio.Event()

    @property
    def is_done(self) -> bool:
        """Whether all texts have ended."""
        return self._unfinished == 0

    async def accepted(self) -> None:
        """Return when the engine has taken all texts; raises Problem if it refuses.

        What has come since, be it a failure, is left as news: an answer may have begun.
        """
        while not self._was_accepted:
            await self._news.wait()
            if not self._was_accepted:
                self._news.clear()
                self.check()

    async def changed(self) -> None:
        """Return when there is news since the last call; raises Problem if a text failed."""
        await self._news.wait()
        self._news.clear()
        self.check()

    async def ended(self) -> None:
        """Return when all texts have ended; raises Problem if one failed."""
        while not self.is_done:
            await self.changed()
        self.check()

    def check(self) -> None:
        """Raise Problem if a text failed."""
        if self._problem is not None:
            raise self._problem

    def accept(self) -> None:
        """Note that the engine has taken it."""
        self._was_accepted = True
        self._news.set()

    def fail(self, problem: Problem) -> None:
        """Note that it cannot be answered; the first problem counts."""
        self._problem = self._problem or problem
        self._news.set()

    def take(self, news: News) -> None:
        """Note what is new of a text."""
        self.tokens[news.sequence] = news.tokens
        if news.has_ended:
            self._unfinished -= 1
        self._news.set()


class Running:
    """The engine's thread, and what the event loop knows of it.

    Parameters
    ----------
    loop : EngineLoop
        Whose engine is stepped.
    max_texts : int
        Texts that run or wait at most; a request beyond is refused with 429.
    metrics : Metrics
        Is told what begins and ends.
    """

    def __init__(self, loop: EngineLoop, *, max_texts: int, metrics: Metrics) -> None:
        self.max_texts = max_texts
        self._loop = loop
        self._metrics = metrics
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="hybridgen-engine", daemon=True)
        # Of the engine's thread.
        self._call = Call()
        self._owners: dict[Sequence, Job] = {}
        # Of the event loop.
        self._events: asyncio.AbstractEventLoop | None = None
        self._jobs: set[Job] = set()
        self._texts = 0
        self._job_seconds = 1.0
        self._closed_to: Problem | None = None

    # ------------------------------------------------------------------------ the event loop's side

    def start(self) -> None:
        """Start the engine's thread; the running event loop is the one that is told."""
        self._events = asyncio.get_running_loop()
        self._thread.start()

    @property
    def problem(self) -> Problem | None:
        """Why no request is taken any more, if none is."""
        return self._closed_to

    def check_room(self, texts: int) -> None:
        """Raise Problem if a request of so many texts cannot be taken now, or ever."""
        if self._closed_to is not None:
            raise self._closed_to
        if texts > self.max_texts:
            raise Problem(
                400,
                f"[serve] the request asks for {texts} texts; allowed: {self.max_texts} that run "
                "or wait; ask for fewer at a time",
                param="n",
            )
        if self._texts + texts > self.max_texts:
            raise self.busy()

    def busy(self) -> Problem:
        """Return what a client is told while there is no room."""
        return Problem(
            429,
            f"[serve] {self._texts} texts run or wait; allowed: {self.max_texts}; try again later",
            code="queue_full",
            headers={"Retry-After": str(self._retry_seconds())},
        )

    async def accept(self, job: Job) -> None:
        """Give a job to the engine; returns when it has taken it.

        The caller has to `leave` it in any case.

        Raises
        ------
        Problem
            If there is no room, or the engine refuses one of the texts; then none is run.
        """
        self.check_room(len(job.sequences))
        self._jobs.add(job)
        self._texts += len(job.sequences)
        self._metrics.begin(len(job.sequences))
        self._orders.put(functools.partial(self._add, job))
        await job.accepted()

    def leave(self, job: Job) -> None:
        """End what still runs of a job that nobody waits for any more."""
        if job in self._jobs:
            self._orders.put(functools.partial(self._abort, job))

    def refuse(self, problem: Problem) -> None:
        """Take no more requests; those that run go on."""
        self._closed_to = self._closed_to or problem

    def end_all(self, problem: Problem) -> int:
        """Take no more requests, and end those that run; returns how many these were."""
        self.refuse(problem)
        jobs = list(self._jobs)
        for job in jobs:
            job.fail(problem)
            self.leave(job)
        return len(jobs)

    def close(self) -> None:
        """End everything, and wait until the engine's thread has ended."""
        self.end_all(Problem(503, "[serve] the server is stopping; try again later"))
        self._orders.put(self._finish)
        self._thread.join()

    async def ask(self, question: Callable[[], T]) -> T | None:
        """Let the engine's thread answer between two steps; None if it does not within a second."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def give(found: T) -> None:
            if not answer.done():
                answer.set_result(found)

        self._orders.put(lambda: self._tell(give, question()))
        with suppress(TimeoutError):
            return await asyncio.wait_for(answer, _ANSWER_S)
        return None

    def _retry_seconds(self) -> int:
        return max(1, min(_LONGEST_RETRY_S, math.ceil(self._job_seconds)))

    def _take_news(self, all_news: list[tuple[Job, News]]) -> None:
        for job, news in all_news:
            job.take(news)
            if news.has_ended:
                self._end_text(job, news.sequence)

    def _end_text(self, job: Job, sequence: Sequence) -> None:
        self._texts -= 1
        self._metrics.end(sequence)
        if sequence.output.finish_reason not in ("stop", "length"):
            error = sequence.error or Problem(503, "[serve] the text was ended; try again")
            problem = problem_of(error, while_running=True)
            if sequence.output.finish_reason == "error":
                _report(problem)
            job.fail(problem)
            self.leave(job)
        if job.is_done:
            self._jobs.discard(job)
            seconds = time.monotonic() - job.begin
            self._job_seconds += 0.1 * (seconds - self._job_seconds)

    def _take_refusal(self, job: Job, error: BaseException) -> None:
        self._jobs.discard(job)
        self._texts -= len(job.sequences)
        self._metrics.refuse(len(job.sequences))
        job.fail(problem_of(error))

    def _take_failure(self, error: BaseException) -> None:
        problem = Problem(503, f"[serve] the engine has stopped: {type(error).__name__}: {error}")
        _report(problem)
        self.end_all(problem)

    # ------------------------------------------------------------------------ the engine's thread

    def _work(self) -> None:
        try:
            while not self._is_over:
                self._take_orders()
                if self._owners:
                    if not self._call.news:
                        self._loop.step()
                    self._tell_news()
        except BaseException as error:
            self._tell(self._take_failure, error)

    def _take_orders(self) -> None:
        """Do what was ordered; waits for an order while there is nothing to run."""
        if not self._owners:
            self._orders.get()()
        while not self._is_over:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()

    def _add(self, job: Job) -> None:
        try:
            self._loop.add(job.sequences, self._call)
        except Exception as error:
            self._tell(self._take_refusal, job, error)
            return
        self._owners.update(dict.fromkeys(job.sequences, job))
        self._tell(job.accept)

    def _abort(self, job: Job) -> None:
        for sequence in job.sequences:
            if sequence in self._owners:
                self._loop.abort(sequence)  # which is news

    def _finish(self) -> None:
        self._is_over = True

    def _tell_news(self) -> None:
        found: list[tuple[Job, News]] = []
        for sequence in self._call.read():
            job = self._owners.get(sequence)
            if job is None:  # of a request that was refused
                continue
            has_ended = sequence.finished
            if has_ended:
                del self._owners[sequence]
            if has_ended or job.is_streamed:
                found.append((job, News(sequence, len(sequence.pieces), has_ended)))
        if found:
            self._tell(self._take_news, found)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._events is not None
        try:
            self._events.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody is left to be told
            self._is_over = True


def _report(problem: Problem) -> None:
    """Tell who runs the server, not only the client."""
    print(f"error: {problem.detail}", file=sys.stderr, flush=True)
