# SPDX-License-Identifier: Apache-2.0
"""A discrete-event simulator of tasks on lanes that share memory bandwidth.

A lane (the GPU's stream, the host's workers, a copy engine) does one task at a time, in the order
in which they were added. A task waits for others, takes a fixed time, and then moves bytes: at most
at its own rate, and together with what else runs at no more than the bandwidths that they share.
Rates are max-min fair: all rise together until a task reaches its own limit or exhausts a bandwidth
that it shares. Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that a lane does.

    Parameters
    ----------
    name : str
        As timelines call it.
    lane : str
        Who does it.
    after : tuple of int
        Numbers of the tasks that it waits for, as `Tasks.add` returned them.
    seconds : float
        Fixed time.
    bytes : float
        Moved when the fixed time is over.
    rate : float
        Bytes per second at most.
    shares : mapping of str to float
        Bytes of a shared bandwidth that one byte takes.
    layer : int
        Of the model; -1 for what belongs to none.
    """

    name: str
    lane: str
    after: tuple[int, ...] = ()
    seconds: float = 0.0
    bytes: float = 0.0
    rate: float = math.inf
    shares: Mapping[str, float] = field(default_factory=dict)
    layer: int = -1


@dataclass(frozen=True, slots=True)
class Span:
    """When a task ran, in seconds from the start."""

    task: Task
    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.begin_s


class Tasks:
    """The tasks of a simulation, in the order of their lanes."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def add(self, task: Task) -> int:
        """Add a task behind all others of its lane; returns its number."""
        if any(other >= len(self.tasks) for other in task.after):
            raise ValueError(f"{task.name} waits for a task that is not there yet")
        if task.bytes > 0 and not task.rate < math.inf and not task.shares:
            raise ValueError(f"{task.name} moves bytes without a rate")
        self.tasks.append(task)
        return len(self.tasks) - 1


class _Running:
    """A task that has begun: fixed time left, then bytes left."""

    __slots__ = ("begin_s", "bytes", "number", "seconds", "task")

    def __init__(self, number: int, task: Task, now: float) -> None:
        self.number, self.task, self.begin_s = number, task, now
        self.seconds, self.bytes = task.seconds, task.bytes


def fair_rates(tasks: Sequence[Task], bandwidths: Mapping[str, float]) -> list[float]:
    """Return the bytes per second of tasks that move bytes at the same time: max-min fair."""
    if len(tasks) == 1:
        (task,) = tasks
        limits = [bandwidths[name] / share for name, share in task.shares.items() if share > 0]
        return [min([task.rate, *limits])]
    wanted = dict.fromkeys(bandwidths, 0.0)
    for task in tasks:
        for name, share in task.shares.items():
            wanted[name] += share * task.rate
    if all(wanted[name] <= room for name, room in bandwidths.items()):
        return [task.rate for task in tasks]
    rates = [0.0] * len(tasks)
    rising = set(range(len(tasks)))
    left = dict(bandwidths)
    while rising:
        # How far all may rise together until the first limit.
        step = min(tasks[i].rate - rates[i] for i in rising)
        use = dict.fromkeys(left, 0.0)
        for i in rising:
            for name, share in tasks[i].shares.items():
                use[name] += share
        for name, taken in use.items():
            if taken > 0:
                step = min(step, left[name] / taken)
        for i in rising:
            rates[i] += step
        for name, taken in use.items():
            left[name] -= step * taken
        full = {name for name, room in left.items() if room <= 1e-9 * bandwidths[name]}
        rising = {
            i
            for i in rising
            if rates[i] < tasks[i].rate * (1 - 1e-12)
            and not any(share > 0 and name in full for name, share in tasks[i].shares.items())
        }
    return rates


def simulate(tasks: Tasks, bandwidths: Mapping[str, float]) -> list[Span]:
    """Run all tasks; returns when each ran, in the order in which they were added.

    Parameters
    ----------
    tasks : Tasks
        What runs.
    bandwidths : mapping of str to float
        Bytes per second of each shared bandwidth.
    """
    queues: dict[str, list[int]] = {}
    missing = [len(set(task.after)) for task in tasks.tasks]
    followers: list[list[int]] = [[] for _ in tasks.tasks]
    for number, task in enumerate(tasks.tasks):
        queues.setdefault(task.lane, []).append(number)
        for other in set(task.after):
            followers[other].append(number)
    for queue in queues.values():
        queue.reverse()
    spans: list[Span | None] = [None] * len(tasks.tasks)
    running: dict[str, _Running] = {}
    now = 0.0
    while True:
        for lane, queue in queues.items():
            if queue and lane not in running and missing[queue[-1]] == 0:
                number = queue.pop()
                running[lane] = _Running(number, tasks.tasks[number], now)
        if not running:
            break
        waiting = [r for r in running.values() if r.seconds > 0]
        moving = [r for r in running.values() if r.seconds <= 0 and r.bytes > 0]
        rates = fair_rates([r.task for r in moving], bandwidths) if moving else []
        ends = [r.bytes / rate for r, rate in zip(moving, rates, strict=True)]
        if len(waiting) + len(moving) < len(running):
            step = 0.0  # something neither waits nor moves: it is done
        else:
            step = min([*(r.seconds for r in waiting), *ends])
        now += step
        for r in waiting:
            r.seconds = 0.0 if r.seconds <= step else r.seconds - step
        for r, rate, end in zip(moving, rates, ends, strict=True):
            r.bytes = 0.0 if end <= step else r.bytes - rate * step
        for lane in [lane for lane, r in running.items() if r.seconds <= 0 and r.bytes <= 0]:
            done = running.pop(lane)
            spans[done.number] = Span(done.task, done.begin_s, now)
            for number in followers[done.number]:
                missing[number] -= 1
    if any(span is None for span in spans):
        raise ValueError("some tasks never ran: each waits for another one of its own lane")
    return [span for span in spans if span is not None]


def busy_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """Return how long each lane was busy."""
    busy: dict[str, float] = {}
    for span in spans:
        busy[span.task.lane] = busy.get(span.task.lane, 0.0) + span.seconds
    return busy
