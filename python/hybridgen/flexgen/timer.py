# SPDX-License-Identifier: Apache-2.0
"""FlexGen's global registry of timers: ``timers("generate").costs``."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timer:
    """Adds up what lies between `start` and `stop`; every pair is one of `costs`, in seconds.

    Parameters
    ----------
    name : str
        As it is registered.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = False
        self.reset()

    def start(self, sync_func: Callable[[], object] | None = None) -> None:
        """Begin; `sync_func` is called first."""
        if self.started:
            raise RuntimeError(f"[timer] {self.name} runs already; stop it first")
        if sync_func is not None:
            sync_func()
        self.start_times.append(time.perf_counter())
        self.started = True

    def stop(self, sync_func: Callable[[], object] | None = None) -> None:
        """End; `sync_func` is called first."""
        if not self.started:
            raise RuntimeError(f"[timer] {self.name} does not run; start it first")
        if sync_func is not None:
            sync_func()
        self.stop_times.append(time.perf_counter())
        self.costs.append(self.stop_times[-1] - self.start_times[-1])
        self.started = False

    def reset(self) -> None:
        """Forget everything."""
        self.started = False
        self.costs: list[float] = []
        self.start_times: list[float] = []
        self.stop_times: list[float] = []

    def elapsed(self, mode: str = "average") -> float:
        """Return the mean of the costs, or with "sum" their sum; 0.0 of none."""
        if mode not in ("average", "sum"):
            raise ValueError(f"[timer] mode is {mode!r}; allowed: average, sum")
        total = sum(self.costs)
        return total / len(self.costs) if mode == "average" and self.costs else total


class Timers:
    """All timers by name; asking for one makes it."""

    def __init__(self) -> None:
        self.timers: dict[str, Timer] = {}

    def __call__(self, name: str) -> Timer:
        return self.timers.setdefault(name, Timer(name))

    def __contains__(self, name: str) -> bool:
        return name in self.timers


timers = Timers()
