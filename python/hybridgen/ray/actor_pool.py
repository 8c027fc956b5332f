# SPDX-License-Identifier: Apache-2.0
"""Lines through the engines of a cluster: batches to actors, and those of a dead one to another.

A batch belongs to nobody until its answers are here. That is why batches are handed out here, by
`ray.wait`: with retries of Ray's own a batch waits for the actor that had it to be back, which it
never is where a node is lost for good.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .._checks import one_line
from ..batch.engine_spec import EngineSpec
from ..batch.line import Answer, Line
from ..errors import DeviceError, HybridGenError
from .engine_actor import ActorPlace, EngineActor
from .node_share import ActorShare

BATCHES_PER_ACTOR = 2
"""In each actor at the same time: while one ends, the other keeps the engine's batch full."""
MOST_LOSSES = 3
"""Times that a batch, or the start of an actor, may end with the actor's death."""
START_SECONDS = 900.0
"""For the first of the actors, and for another one when there is none left."""


@dataclass(eq=False)
class _Worker:
    actor: Any
    place: ActorPlace | None = None
    num_batches: int = 0


@dataclass(eq=False)
class _Batch:
    lines: list[Line]
    losses: int = 0


class ActorPool:
    """Answers lines by engines in actors of Ray.

    ``with`` it: entering starts the actors and waits for the first, leaving ends them.

    Parameters
    ----------
    ray : module
        Connected.
    spec : EngineSpec
        What engines are made of.
    share : ActorShare
        What each asks Ray for.
    num_actors : int
        How many.
    lines_per_batch : int
        Lines that go to an actor together.
    tell : callable
        Called with a sentence when an actor comes or goes.

    Raises
    ------
    HybridGenError
        What keeps an engine from being made, such as a model that does not fit; DeviceError if
        actors die again and again.
    """

    def __init__(
        self,
        ray: Any,
        spec: EngineSpec,
        share: ActorShare,
        num_actors: int,
        *,
        lines_per_batch: int,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._ray, self._spec, self._tell = ray, spec, tell
        self._num_actors, self._lines_per_batch = num_actors, lines_per_batch
        self._class = ray.remote(EngineActor).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_concurrency=BATCHES_PER_ACTOR,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        self._starting: dict[Any, _Worker] = {}
        self._running: dict[Any, tuple[_Worker, _Batch]] = {}
        self._ready: list[_Worker] = []
        self._lost: deque[_Batch] = deque()
        self._failed_starts = 0

    @property
    def num_lines_together(self) -> int:
        """Lines that keep all actors busy."""
        return self._num_actors * BATCHES_PER_ACTOR * self._lines_per_batch

    @property
    def places(self) -> list[ActorPlace]:
        """Where the engines are that answer now."""
        return [worker.place for worker in self._ready if worker.place is not None]

    def __enter__(self) -> ActorPool:
        try:
            for _ in range(self._num_actors):
                self._start()
            self._wait_for(1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_all(self) -> None:
        """Wait until all actors are ready, before any lines: for measurements."""
        self._wait_for(self._num_actors)

    def _wait_for(self, count: int) -> None:
        while len(self._ready) < count:
            for reference in self._next():
                self._take_start(reference)

    def close(self) -> None:
        """End all actors."""
        for worker in [*self._ready, *self._starting.values()]:
            self._ray.kill(worker.actor)
        self._ready.clear()
        self._starting.clear()
        self._running.clear()

    def answers(
        self, lines: Iterable[Line], may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[Answer]:
        """Yield answers as batches end; see `Answerer`. One call after the other."""
        coming = iter(lines)
        is_over = False
        while True:
            is_over = self._hand_out(coming, may_take, is_over)
            if is_over and not self._running and not self._lost:
                return
            for reference in self._next():
                if reference in self._starting:
                    self._take_start(reference)
                else:
                    yield from self._take_answers(reference)

    def _start(self) -> None:
        actor = self._class.remote(self._spec)
        self._starting[actor.place.remote()] = _Worker(actor)

    def _hand_out(
        self, coming: Iterator[Line], may_take: Callable[[], bool], is_over: bool
    ) -> bool:
        """Give batches to actors that have room; return whether no lines are left to take."""
        while worker := min(self._ready, key=lambda one: one.num_batches, default=None):
            if worker.num_batches >= BATCHES_PER_ACTOR:
                break
            batch = self._lost.popleft() if self._lost else _Batch([])
            while not (is_over or batch.losses or not may_take()):
                if len(batch.lines) == self._lines_per_batch:
                    break
                line = next(coming, None)
                is_over = line is None
                if line is not None:
                    batch.lines.append(line)
            if not batch.lines:
                break
            worker.num_batches += 1
            self._running[worker.actor.answer.remote(batch.lines)] = worker, batch
        return is_over

    def _next(self) -> list[Any]:
        """Wait until a call has ended; return the references of those that have."""
        waits_since = time.monotonic()
        while True:
            references = [*self._running, *self._starting]
            found, _ = self._ray.wait(references, num_returns=1, timeout=5.0)
            if found:
                return list(found)
            if not self._ready and time.monotonic() - waits_since > START_SECONDS:
                raise DeviceError(
                    f"[batch] no actor has come up in {START_SECONDS:.0f} s; allowed: nodes with "
                    "room for one; see `ray status`, then run the same command again"
                )

    def _take_answers(self, reference: Any) -> list[Answer]:
        """Return a batch's answers; none if its actor died, and the batch waits for another."""
        worker, batch = self._running.pop(reference)
        worker.num_batches -= 1
        try:
            return list(self._result(reference))
        except self._ray.exceptions.RayActorError as error:
            reason = one_line(str(error), 300)
            batch.losses += 1
            if batch.losses >= MOST_LOSSES:
                first, last = batch.lines[0].place, batch.lines[-1].place
                raise DeviceError(
                    f"[batch] {batch.losses} actors died with {first} to {last}: {reason}; "
                    "allowed: lines that leave the process alive; see Ray's logs, or take these out"
                ) from error
            self._lost.append(batch)
            if worker in self._ready:
                self._ready.remove(worker)
                self._ray.kill(worker.actor)  # one that cannot be reached may yet be alive
                self._tell(f"an engine is gone, and another one starts: {reason}")
                self._start()
            return []

    def _take_start(self, reference: Any) -> None:
        """Take an actor that is ready into service, or start another one for one that died."""
        worker = self._starting.pop(reference)
        try:
            worker.place = self._result(reference)
        except self._ray.exceptions.RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts >= MOST_LOSSES and not self._ready:
                raise DeviceError(
                    f"[batch] {self._failed_starts} actors died as they started: "
                    f"{one_line(str(error), 300)}; allowed: a node whose memory holds the model; "
                    "see Ray's logs"
                ) from error
            self._start()
            return
        except BaseException:
            self._ray.kill(worker.actor)
            raise
        self._failed_starts = 0
        self._ready.append(worker)
        self._tell(f"{worker.place}")

    def _result(self, reference: Any) -> Any:
        """Return a call's result; what it raised is raised as it was."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HybridGenError):
                raise error.cause from None
            raise DeviceError(f"[batch] an actor failed: {one_line(str(error))}") from error
