# SPDX-License-Identifier: Apache-2.0
"""Streams: the tokens of some requests as chunks, while they run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from .failures import reported
from .generation import EngineLoop
from .outputs import StreamChunk
from .request import Request, outputs_of


def stream_chunks(
    operation: str, requests: list[Request], loop: EngineLoop
) -> Iterator[StreamChunk]:
    """Run requests and yield their tokens; raises as `reported` says."""
    owners = {sequence: index for index, r in enumerate(requests) for sequence in r.sequences}
    nothing: Any = None
    clocks = {sequence: _Clock() for sequence in owners}
    peak = 0
    with (
        reported(operation, requests, outputs_of(requests)),
        closing(loop.stream(list(owners))) as tokens,
    ):
        for sequence, number in tokens:
            peak = max(peak, loop.device_bytes())
            new = sequence.pieces[number]
            is_last = sequence.finished and number + 1 == len(sequence.pieces)
            clock = clocks[sequence]
            clock.tick()
            is_timed = requests[owners[sequence]].is_timed
            yield StreamChunk(
                text=nothing if is_timed else new.text,
                token_id=nothing if is_timed else new.token_id,
                index=number,
                prompt_tps=clock.rate_to_first(len(sequence.prompt_ids)),
                generation_tps=clock.rate_since_first(number),
                peak_memory=peak,
                finish_reason=sequence.output.finish_reason if is_last else new.finish_reason,
                prompt_index=owners[sequence],
                output_index=sequence.output.index,
            )


class _Clock:
    """When the first and the newest token of a text came."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first = 0.0
        self._now = 0.0

    def tick(self) -> None:
        self._now = time.perf_counter()
        self._first = self._first or self._now

    def rate_to_first(self, count: int) -> float:
        return count / max(self._first - self._start, 1e-9)

    def rate_since_first(self, count: int) -> float:
        return count / max(self._now - self._first, 1e-9) if count else 0.0
