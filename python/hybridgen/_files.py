# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written beside their place, then renamed into it.

Temporary files and folders are removed however a program ends, but for SIGKILL.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._checks import brief
from .errors import ConfigError, DeviceError, HybridGenError

_CALLERS_MISTAKES = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)


@contextmanager
def replacing(path: str | Path, operation: str = "write") -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` once the block succeeds.

    If it fails, or the process ends in it, a file that was there stays as it was. Links are
    followed; a device or a pipe is written to directly. Errors of the block that name another file
    come out as they are.

    Parameters
    ----------
    path : str or Path
        The file to write; its folder must exist.
    operation : str
        Who writes, for messages.

    Raises
    ------
    ConfigError
        If there can be no such file.
    DeviceError
        If the system cannot write it, for example because the disk is full.
    """
    target, is_file = _target_of(path, operation)
    temporary = target.with_name(f".hybridgen-{secrets.token_hex(8)}.tmp") if is_file else target
    try:
        if is_file:
            with _renamed(temporary, target):
                yield temporary
        else:
            yield target
    except OSError as error:
        # That a disk is full is reported without a name, and a missing folder with ours.
        if error.filename not in (None, str(temporary), str(target)):
            raise
        raise _refusal(path, operation, error) from error


def check_writable(path: str | Path, operation: str = "write") -> None:
    """Raise already now what `replacing` would, as far as that is known before there is content."""
    target, is_file = _target_of(path, operation)
    if is_file:
        try:
            tempfile.TemporaryFile(dir=target.parent).close()
        except OSError as error:
            raise _refusal(path, operation, error) from error


def _target_of(path: str | Path, operation: str) -> tuple[Path, bool]:
    """Return where a path leads to, and whether that is a regular file or not there yet."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return target, target.is_file() or not target.exists()
    except (OSError, TypeError, ValueError) as error:  # the latter: null bytes
        raise _refusal(path, operation, error) from error


@contextmanager
def _renamed(temporary: Path, target: Path) -> Iterator[None]:
    """Let the temporary file take the target's place after the block; remove it if that fails."""
    try:
        yield
        if target.exists():
            shutil.copymode(target, temporary)
        # A full disk may show only now, and after the rename there is no way back.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_whole(path: str | Path, text: str, operation: str = "write") -> None:
    """Write a text file in UTF-8; see `replacing` for what may go wrong."""
    with replacing(path, operation) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is temporary is removed.

    The exit code is 143, as a shell reports it. A handler that the program has set already stays,
    and so does that of a thread other than the main one, which cannot set any.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refusal(path: object, operation: str, error: Exception) -> HybridGenError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    is_callers = not isinstance(error, OSError) or error.errno in _CALLERS_MISTAKES
    kind = ConfigError if is_callers else DeviceError
    return kind(
        f"[{operation}] path is {brief(path)}; allowed: a file that can be written ({reason}); "
        "choose an existing folder that may be written and has room"
    )
