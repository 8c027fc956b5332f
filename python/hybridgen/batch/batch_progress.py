# SPDX-License-Identifier: Apache-2.0
"""How far a batch is, on standard error: lines, tokens per second, time left."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_SECONDS_ON_TERMINAL = 0.5
_SECONDS_IN_LOG = 30.0


class BatchProgress:
    """A line that is drawn anew on a terminal; elsewhere a line every half a minute.

    It never costs an answer: where it cannot be written it stops.

    Parameters
    ----------
    total, done : int
        Lines of the batch, and those that earlier runs answered.
    failed : int
        Of the latter, lines without a text.
    enabled : bool
        Whether anything is written.
    """

    def __init__(self, total: int, done: int, failed: int, *, enabled: bool = True) -> None:
        self._total, self._before, self._failed = total, done, failed
        self._done, self._tokens = done, 0
        self._begin = self._shown = time.monotonic()
        self._enabled = enabled and sys.stderr is not None
        self._is_terminal = self._enabled and sys.stderr.isatty()

    def count(self, *, tokens: int, is_failure: bool) -> None:
        """Count a line that is answered."""
        self._done += 1
        self._tokens += tokens
        self._failed += is_failure
        interval = _SECONDS_ON_TERMINAL if self._is_terminal else _SECONDS_IN_LOG
        if time.monotonic() - self._shown >= interval:
            self._show()

    def close(self) -> None:
        """Write where it stands."""
        self._show()
        if self._enabled and self._is_terminal:
            self._write("\n")

    def text(self, seconds: float) -> str:
        """Return where it stands after so many seconds."""
        fresh = self._done - self._before
        left = seconds * (self._total - self._done) / fresh if fresh else None
        rate = self._tokens / seconds if seconds > 0 else 0.0
        shown_left = "?" if left is None else tqdm.format_interval(left)
        failures = f", {self._failed} failed" if self._failed else ""
        return (
            f"{self._done}/{self._total} lines, {rate:.1f} tokens/s, "
            f"{tqdm.format_interval(seconds)} so far, {shown_left} left{failures}"
        )

    def _show(self) -> None:
        if not self._enabled:
            return
        self._shown = time.monotonic()
        text = f"batch: {self.text(self._shown - self._begin)}"
        self._write(f"\r{text}\033[K" if self._is_terminal else f"{text}\n")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._enabled = False
