# SPDX-License-Identifier: Apache-2.0
"""From lines that have no answer yet to shards, by whatever answers lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .batch_progress import BatchProgress
from .input_file import InputFile
from .line import Answerer, Line
from .shard_folder import ShardFolder
from .shard_sink import ShardSink

MAX_OPEN_LINES = 4096
"""Lines at most that were read and are not written; more where four shards, or twice the lines that
keep all engines busy, are more."""


@dataclass(frozen=True)
class Outcome:
    """What a batch came to.

    Parameters
    ----------
    num_lines, num_failed : int
        Of the whole folder.
    num_fresh : int
        Lines that this run answered.
    first_problem : str
        Why the first of this run's failed lines failed; empty if none did.
    """

    num_lines: int
    num_failed: int
    num_fresh: int
    first_problem: str


def run_batch(
    source: InputFile,
    folder: ShardFolder,
    answerer: Answerer | None,
    done: dict[int, int],
    *,
    lines_per_shard: int,
    progress: bool = True,
) -> Outcome:
    """Answer all lines of shards that are not there, and write these shards.

    Parameters
    ----------
    source : InputFile
        Whose lines.
    folder : ShardFolder
        Where shards go.
    answerer : Answerer or None
        None if all shards are there.
    done : dict of int to int
        As `ShardFolder.done` says.
    lines_per_shard : int
        Of the folder.
    progress : bool
        Whether to write how far it is.

    Raises
    ------
    HybridGenError
        If the disk is full, the input changes, or the machine fails: shards that were written
        stay, and the same call goes on from there.
    """
    before = sum(len(folder.lines_of(shard)) for shard in done)
    shown = BatchProgress(source.num_lines, before, sum(done.values()), enabled=progress)
    sink = ShardSink(folder, source.check_unchanged)
    failed, first_problem, fresh = sum(done.values()), "", 0
    if answerer is not None:
        lines = _Taken(source, folder, done)
        most = max(MAX_OPEN_LINES, 4 * lines_per_shard, 2 * answerer.num_lines_together)
        try:
            for answer in answerer.answers(lines, lambda: lines.count - sink.num_written < most):
                fresh += 1
                failed += bool(answer.problem)
                first_problem = first_problem or answer.problem
                sink.put(answer)
                shown.count(tokens=answer.generated_tokens, is_failure=bool(answer.problem))
        finally:
            shown.close()
    return Outcome(source.num_lines, failed, fresh, first_problem)


class _Taken:
    """Lines of shards that are not there, and how many were taken."""

    def __init__(self, source: InputFile, folder: ShardFolder, done: dict[int, int]) -> None:
        self._source, self._folder, self._done = source, folder, done
        self.count = 0

    def __iter__(self) -> Iterator[Line]:
        for line in self._source.lines():
            if self._folder.shard_of(line.index) not in self._done:
                self.count += 1
                yield line
