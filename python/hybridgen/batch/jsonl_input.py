# SPDX-License-Identifier: Apache-2.0
"""Lines of JSON, however long and however broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .._checks import brief, one_line
from .line import Line

MAX_LINE_BYTES = 64 << 20
"""A longer line is read past, so that no file makes this program's memory grow with it."""
_PIECE = 1 << 20


class JsonlInput:
    """A file with an object of JSON in every line; blank lines do not count.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, seen: Callable[[bytes], object]) -> int:
        """Return how many lines there are, and show all bytes of the file to `seen`."""
        with self.path.open("rb") as file:
            return sum(1 for _ in _raw_lines(file, seen))

    def lines(self) -> Iterator[Line]:
        """Yield every line."""
        with self.path.open("rb") as file:
            for index, (number, raw) in enumerate(_raw_lines(file)):
                yield _parsed(index, f"line {number}", raw)


def _raw_lines(
    file: BinaryIO, seen: Callable[[bytes], object] = lambda _: None
) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number, from 1, and the bytes of all lines that are not blank; None for too long.

    Bytes are read in pieces, so that of a line that is too long only one is held.
    """
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        seen(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while rest := file.readline(_PIECE):
                seen(rest)
                if rest.endswith(b"\n"):
                    break
            yield number, None
        elif raw.strip():
            yield number, raw


def _parsed(index: int, place: str, raw: bytes | None) -> Line:
    if raw is None:
        allowed = f"{MAX_LINE_BYTES >> 20} MiB"
        return Line(index, place, None, f"{place} is longer than {allowed}; allowed: {allowed}")
    try:
        content = json.loads(
            raw.decode("utf-8-sig" if place == "line 1" else "utf-8"),
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 200)
        return Line(index, place, None, f"{place} is no JSON: {reason}; allowed: an object of it")
    if not isinstance(content, dict):
        return Line(index, place, None, f"{place} is {brief(content)}; allowed: an object")
    return Line(index, place, content)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
