# SPDX-License-Identifier: Apache-2.0
"""The file that a batch reads: its kind, its size, and that it stays as it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .._checks import as_path
from ..errors import ConfigError
from .jsonl_input import JsonlInput
from .line import Line
from .parquet_input import ParquetInput


class Input(Protocol):
    """What reads one kind of file."""

    def count(self, seen: Callable[[bytes], object]) -> int:
        """Return how many lines there are, and show all bytes of the file to `seen`."""

    def lines(self) -> Iterator[Line]:
        """Yield every line."""


@dataclass(frozen=True)
class InputFile:
    """A file that was read once, to know what it is.

    Parameters
    ----------
    path : Path
        Where it lies.
    reader : Input
        What reads it.
    num_lines : int
        How many lines it has.
    num_bytes, sha256
        Size and digest of its bytes.
    """

    path: Path
    reader: Input
    num_lines: int
    num_bytes: int
    sha256: str
    _state: tuple[int, ...]

    def lines(self) -> Iterator[Line]:
        """Yield every line; see `check_unchanged`."""
        return self.reader.lines()

    def check_unchanged(self) -> None:
        """Raise ConfigError if the file is not what it was: answers would belong to another one."""
        try:
            now = _state_of(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if now != self._state:
            raise ConfigError(
                f"[batch] {self.path} changed while it was read; allowed: a file that stays as it "
                "is; begin again with --overwrite"
            )


def open_input(path: str | Path) -> InputFile:
    """Read a file through once; returns what it is.

    Parameters
    ----------
    path : str or Path
        A file ending in .parquet, or one with an object of JSON in every line.

    Raises
    ------
    ConfigError
        If it cannot be read, is no file, or has no lines.
    """
    path = as_path("batch", "the input", path)
    try:
        if not path.is_file():
            reason = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
            raise ConfigError(
                f"[batch] the input {path} is {reason}; allowed: a file, which is read twice, with "
                "an object of JSON in every line, or .parquet"
            )
        state = _state_of(path)
        reader = ParquetInput(path) if path.suffix == ".parquet" else JsonlInput(path)
        digest = hashlib.sha256()
        num_lines = reader.count(digest.update)
    except OSError as error:
        raise _unreadable(path, error) from error
    if num_lines == 0:
        raise ConfigError(f"[batch] the input {path} has no lines; allowed: at least one")
    found = InputFile(path, reader, num_lines, state[0], digest.hexdigest(), state)
    found.check_unchanged()
    return found


def _state_of(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"[batch] the input {path} cannot be read: {error.strerror or error}; allowed: a file that "
        "may be read"
    )
