# SPDX-License-Identifier: Apache-2.0
"""Answers in any order to shards in order."""

from __future__ import annotations

from collections.abc import Callable

from .line import Answer
from .shard_folder import ShardFolder


class ShardSink:
    """Keeps answers until all of a shard are there, then writes it.

    Parameters
    ----------
    folder : ShardFolder
        Where shards go.
    check : callable
        Called before a shard is written; what it raises keeps the shard from being written.
    """

    def __init__(self, folder: ShardFolder, check: Callable[[], None] = lambda: None) -> None:
        self._folder, self._check = folder, check
        self._open: dict[int, dict[int, Answer]] = {}
        self.num_written = 0
        """Lines in the shards that were written."""

    def put(self, answer: Answer) -> None:
        """Take an answer, the only one to its line."""
        shard = self._folder.shard_of(answer.index)
        kept = self._open.setdefault(shard, {})
        if answer.index in kept:
            raise ValueError(f"line {answer.index} was answered before")
        kept[answer.index] = answer
        expected = self._folder.lines_of(shard)
        if len(kept) == len(expected):
            self._check()
            self._folder.write(shard, [kept[index] for index in expected])
            del self._open[shard]
            self.num_written += len(expected)
