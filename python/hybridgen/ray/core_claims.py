# SPDX-License-Identifier: Apache-2.0
"""Cores that processes of one machine claim for themselves, so that no two engines share one.

A claim is a lock on a file, one for each CPU: the system gives it back however a process ends. Ray
counts CPUs and does not say which; two of its nodes may be one machine.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, DeviceError

_WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.1


class CoreClaim:
    """CPUs that are this process's own until it ends, or `release`.

    Parameters
    ----------
    count : int
        How many.
    nodes : sequence of lists of int, optional
        The CPUs of each memory node, of which a claim takes one if it can; by default one of all.
    folder : Path, optional
        Where the locks lie; the same for all processes of a machine.
    wait_seconds : float
        How long to wait for a process that is ending.

    Raises
    ------
    ConfigError
        If so many CPUs are not free.
    """

    def __init__(
        self,
        count: int,
        *,
        nodes: Sequence[Iterable[int]] = (),
        folder: Path | None = None,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        allowed = os.sched_getaffinity(0)
        groups = [sorted(allowed & set(node)) for node in nodes]
        groups.append(sorted(allowed - {cpu for group in groups for cpu in group}))
        self._handles: dict[int, int] = {}
        end = time.monotonic() + wait_seconds
        place = _claims_folder() if folder is None else folder
        while not self._take(count, groups, place):
            if time.monotonic() >= end:
                raise ConfigError(
                    f"[batch] an engine is to have {count} CPUs of its own, and of the "
                    f"{len(allowed)} here others have claimed too many; allowed: as many as are "
                    "free; ask for fewer actors, or start the node with the CPUs that it has (ray "
                    "start --num-cpus)"
                )
            time.sleep(_POLL_SECONDS)

    @property
    def cpus(self) -> frozenset[int]:
        """The CPUs."""
        return frozenset(self._handles)

    def release(self) -> None:
        """Give the CPUs back."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _take(self, count: int, groups: Sequence[Sequence[int]], folder: Path) -> bool:
        """Claim CPUs if there are enough; one process at a time chooses."""
        choosing = _opened(folder / "choosing")
        try:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            free: dict[int, int] = {}
            for cpu in (cpu for group in groups for cpu in group):
                handle = _locked(folder / f"cpu-{cpu}")
                if handle is not None:
                    free[cpu] = handle
            chosen = chosen_cpus([[cpu for cpu in g if cpu in free] for g in groups], count)
            self._handles = {cpu: free.pop(cpu) for cpu in chosen}
            for handle in free.values():
                os.close(handle)
            return bool(chosen)
        finally:
            os.close(choosing)


def chosen_cpus(free: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return so many CPUs, of one group if one has them; none if there are too few in all."""
    for group in free:
        if len(group) >= count:
            return list(group[:count])
    every = [cpu for group in free for cpu in group]
    return every[:count] if len(every) >= count else []


def bind_process(cpus: Iterable[int]) -> None:
    """Let all threads of this process, and those that they start, run on these CPUs only."""
    wanted = set(cpus)
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(task), wanted)


def _claims_folder() -> Path:
    """Return the folder of this user's claims on this machine."""
    folder = Path(tempfile.gettempdir()) / f"hybridgen-cores-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DeviceError(
            f"[batch] {folder} is no folder of this user; allowed: one, for the locks of CPUs; "
            "remove what is there"
        )
    return folder


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _locked(file: Path) -> int | None:
    """Return a handle that holds a file's lock; None if another one does."""
    handle = _opened(file)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
