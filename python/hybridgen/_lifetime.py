# SPDX-License-Identifier: Apache-2.0
"""What an engine has to survive: a fork, calls from inside itself, the end of the interpreter.

A daemon thread that comes back to Python from compiled code while the interpreter ends kills the
process. So the end waits until every thread has left the sections that are guarded here, and none
enters one again: a thread that would is parked for ever, as daemon threads are anyway.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from . import _core
from .errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])

_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_registration = threading.RLock()  # reentrant: a garbage collection may close an LLM inside
_ending_thread: int | None = None


class Guard:
    """A reentrant lock whose sections the end of the interpreter waits for.

    ``with guard.lock:`` is a section; `rest` inside of one lets the interpreter end there.
    """

    def __init__(self, owner: str = "LLM") -> None:
        self._owner = owner
        self._process = os.getpid()
        self._lock = threading.RLock()
        with _registration:
            _guards.add(self)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that made the guard."""
        return os.getpid() != self._process

    @property
    def is_over(self) -> bool:
        """Whether there is no engine to speak to: in a forked child, and where modules vanish."""
        return self.is_forked or sys.is_finalizing()

    @property
    def lock(self) -> Any:
        """The lock; ConfigError where waiting for it would never end."""
        self.refuse_if_forked()
        if _core.is_engine_thread():
            if not self._lock.acquire(blocking=False):
                raise ConfigError(
                    "[LLM] a callback of an engine, such as a selector, uses an LLM that is busy; "
                    "allowed: another LLM, or this one after the call that runs the callback"
                )
            self._lock.release()
        return self._lock

    def refuse_if_forked(self) -> None:
        """Raise ConfigError in a forked child, which has none of the engine's threads."""
        if self.is_forked:
            raise ConfigError(
                f"[{self._owner}] this process ({os.getpid()}) was forked from the one that made "
                f"the {self._owner} ({self._process}), whose threads are not here; make the "
                f"{self._owner} in this process, or "
                "start it with multiprocessing.get_context('spawn')"
            )

    def leave(self) -> None:
        """Give the lock up if the calling thread holds it, however often it entered."""
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()

    def wait_until_left(self) -> None:
        """Return when no thread is in a section."""
        if not self.is_forked:
            with self._lock:
                pass


def rest() -> None:
    """Let the interpreter end here if it is about to: then this never returns.

    Workers of an engine go on, because a section waits for them.
    """
    if _ending_thread in (None, threading.get_ident()) or _core.is_engine_thread():
        return
    with _registration:
        guards = list(_guards)
    for guard in guards:
        guard.leave()
    threading.Event().wait()


def guarded(function: _Function) -> _Function:
    """Wrap a function so that the interpreter does not end while it runs, except in `rest`."""

    @functools.wraps(function)
    def section(*args: Any, **kwargs: Any) -> Any:
        guard = Guard()
        with guard.lock:
            rest()
            return function(*args, **kwargs)

    return cast(_Function, section)


def _end() -> None:
    global _ending_thread
    _ending_thread = threading.get_ident()
    with _registration:
        guards = list(_guards)
    for guard in guards:
        guard.wait_until_left()


def _begin_in_child() -> None:
    global _registration
    _registration = threading.RLock()  # another thread may have held it


atexit.register(_end)
os.register_at_fork(after_in_child=_begin_in_child)


class Closable:
    """What ``close()`` ends: at the end of a ``with`` block, and when nobody refers to it."""

    def close(self) -> None:
        """Let go of what it holds; again does nothing."""
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The constructor may have failed before there was anything to close.
        with suppress(Exception):
            self.close()
