# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a run."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from .generation import EngineLoop
from .outputs import RunStats
from .sequence import Sequence


class ProgressBar:
    """A bar over finished requests, with speed, K and overlap behind it.

    It never costs a result: where it cannot be drawn (a closed or broken terminal) it stops.
    """

    def __init__(self, total: int, loop: EngineLoop, enabled: bool) -> None:
        self._loop = loop
        self._bar: Any = None
        self._shown = 0.0
        if enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit="request")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(Exception):
                self._bar.close()

    def update(self, fresh: list[Sequence]) -> None:
        """Count those that ended; refresh the numbers a few times a second."""
        if self._bar is None:
            return
        try:
            self._draw(fresh, [sequence for sequence in fresh if sequence.finished])
        except Exception:
            self._bar = None

    def _draw(self, fresh: list[Sequence], done: list[Sequence]) -> None:
        now = time.perf_counter()
        if done or (fresh and now - self._shown > 0.3):
            self._shown = now
            stats = RunStats(self._loop.run_stats())
            shown = (done or fresh)[0]
            self._loop.refresh_metrics(shown)
            metrics = shown.metrics
            postfix = {
                "tok/s": f"{stats['decode_tps']:.1f}",
                "K": metrics.k,
                "mode": metrics.strategy,
                "hidden": f"{100 * (stats.get('hidden_share') or 0.0):.0f}%",
            }
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(len(done))
