# SPDX-License-Identifier: Apache-2.0
"""The folder of a batch: what it was made of, and shards that are whole or absent.

A run may be ended at any instant. A shard is written under a temporary name, synced and renamed, so
the shards that are there say what is done, and nothing else has to.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._checks import as_path, brief, listed
from .._files import check_writable, replacing, write_whole
from ..errors import ConfigError, DeviceError
from .line import Answer
from .shard_files import ShardFormat

MANIFEST = "batch.json"
_OURS = re.compile(r"part-\d+\.(jsonl|parquet)|\.hybridgen-[0-9a-f]{16}\.tmp|batch\.json")


class ShardFolder:
    """The folder that a batch writes, held by one process at a time.

    ``with`` it: leaving lets go of the folder.

    Parameters
    ----------
    path : str or Path
        The folder; made if it is not there.
    files : ShardFormat
        How shards are written.
    num_lines, lines_per_shard : int
        Of the batch.

    Raises
    ------
    ConfigError
        If there can be no such folder, or another process is writing it.
    """

    def __init__(
        self, path: str | Path, files: ShardFormat, *, num_lines: int, lines_per_shard: int
    ) -> None:
        self.path = as_path("batch", "--out", path)
        self._files = files
        self._num_lines, self._lines_per_shard = num_lines, lines_per_shard
        self.num_shards = -(-num_lines // lines_per_shard)
        self._digits = max(5, len(str(self.num_shards - 1)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(
                f"[batch] --out is {brief(str(path), 200)}: {error.strerror}; allowed: a folder "
                "that is there or can be made"
            ) from error
        try:
            self._lock()
            check_writable(self.path / MANIFEST, "batch")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"[batch] another process is writing {self.path}; allowed: one at a time; wait for "
                "it, or choose another --out"
            ) from error
        except OSError:
            pass  # some network file systems have no locks

    # ---------------------------------------------------------------------------------- manifest

    def check(self, manifest: dict[str, Any], *, overwrite: bool) -> None:
        """Refuse a folder that holds something else; changes nothing.

        Parameters
        ----------
        manifest : dict
            What this batch is made of; see `fingerprint`.
        overwrite : bool
            Whether an earlier batch may be dropped.

        Raises
        ------
        ConfigError
            With what differs, or whose files there are.
        """
        foreign = [file.name for file in self.path.iterdir() if not _OURS.fullmatch(file.name)]
        if foreign:
            raise ConfigError(
                f"[batch] {self.path} has {listed(foreign)}, which no batch made; allowed: an "
                "empty folder, or that of a batch; choose another --out"
            )
        if overwrite:
            return
        found = self._manifest()
        if found is None:
            if any(self.path.glob("part-*")):
                raise ConfigError(
                    f"[batch] {self.path} has shards and no {MANIFEST} that says of what; allowed: "
                    "both, or none; --overwrite drops them"
                )
            return
        different = differences(found, manifest)
        if different:
            raise ConfigError(
                f"[batch] {self.path} belongs to another batch: {'; '.join(different[:6])}"
                f"{f'; and {len(different) - 6} more' if len(different) > 6 else ''}; allowed: the "
                "same; choose another --out, or drop what is there with --overwrite"
            )

    def begin(self, manifest: dict[str, Any], *, overwrite: bool) -> None:
        """Write what the batch is made of, after dropping an earlier one if that is wanted."""
        with suppress(OSError):
            for temporary in self.path.glob(".hybridgen-*.tmp"):  # of a run that was killed
                temporary.unlink()
        if overwrite:
            # First what says of what the shards are: without it nobody takes them for others'.
            for file in [self.path / MANIFEST, *self.path.glob("part-*")]:
                file.unlink(missing_ok=True)
        if not (self.path / MANIFEST).exists():
            write_whole(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n", "batch")

    def _manifest(self) -> dict[str, Any] | None:
        file = self.path / MANIFEST
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"[batch] cannot read {file}: {error}; --overwrite drops it"
            ) from error
        if not isinstance(found, dict):
            raise ConfigError(f"[batch] {file} is none of a batch; --overwrite drops it")
        return found

    # ------------------------------------------------------------------------------------ shards

    def path_of(self, shard: int) -> Path:
        """Return where a shard lies."""
        return self.path / f"part-{shard:0{self._digits}d}{self._files.suffix}"

    def lines_of(self, shard: int) -> range:
        """Return the numbers of a shard's lines."""
        first = shard * self._lines_per_shard
        return range(first, min(first + self._lines_per_shard, self._num_lines))

    def shard_of(self, index: int) -> int:
        """Return the shard of a line."""
        return index // self._lines_per_shard

    def done(self) -> dict[int, int]:
        """Return the shards that are there, with how many of their lines failed.

        Raises
        ------
        ConfigError
            If one is not what was written.
        """
        return {
            shard: self._failures_in(shard)
            for shard in range(self.num_shards)
            if self.path_of(shard).exists()
        }

    def write(self, shard: int, answers: Sequence[Answer]) -> None:
        """Write a shard: whole, or not at all.

        Raises
        ------
        ConfigError, DeviceError
            If the folder is gone, or the disk is full.
        """
        with replacing(self.path_of(shard), "batch") as temporary:
            self._files.write(temporary, (answer.content for answer in answers))

    def _failures_in(self, shard: int) -> int:
        file, expected = self.path_of(shard), self.lines_of(shard)
        failures = count = 0
        try:
            for index, written in zip(expected, self._files.read(file), strict=True):
                if written.index not in (None, index):
                    raise ValueError(f"line {count} is the answer to {written.index}")
                failures, count = failures + written.is_failure, count + 1
        except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise DeviceError(
                f"[batch] {file} is not what was written there ({error}); remove it to have its "
                f"{len(expected)} lines answered again"
            ) from error
        return failures


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two manifests, but for what only tells of them ("about")."""
    found = []
    for name in sorted((there.keys() | here.keys()) - {"about"}):
        before, now = there.get(name), here.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} is {brief(before)} there and {brief(now)} here")
    return found
