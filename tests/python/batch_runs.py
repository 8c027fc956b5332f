# SPDX-License-Identifier: Apache-2.0
"""Batches as tests run them: an input file, a folder of answers, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hybridgen.batch.line import Answer, Line
from hybridgen.cli import main
from trained import folder_of

MODEL = folder_of("tiny-llama")
OPTIONS = ["--method", "full", "--threads", "1", "--device-threads", "1", "--no-progress"]
OPTIONS += ["--dtype", "float32"]


def write_lines(file: Path, lines: Iterable[object]) -> Path:
    """Write an object of JSON in every line; strings as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return file


def command(source: Path, out: Path, *more: str, model: Path = MODEL) -> list[str]:
    """Return the arguments of a batch."""
    return ["batch", str(source), "--out", str(out), "--model", str(model), *OPTIONS, *more]


def run(source: Path, out: Path, *more: str, model: Path = MODEL) -> int:
    """Run a batch in this process; returns the exit code."""
    return main(command(source, out, *more, model=model))


def shards(out: Path) -> list[Path]:
    """Return the shards in their order."""
    return sorted(out.glob("part-*"))


def answers(out: Path) -> list[dict[str, Any]]:
    """Return all answers of lines of JSON, in their order."""
    return [json.loads(line) for file in shards(out) for line in file.read_text().splitlines()]


def texts(out: Path) -> list[str | None]:
    """Return the first text of each plain answer; None of one that failed."""
    return [a["outputs"][0]["text"] if a["error"] is None else None for a in answers(out)]


class Echo:
    """Answers lines with themselves, of so many at a time the last one first."""

    def __init__(self, together: int = 1) -> None:
        self._together = together
        self.num_lines_together = together
        self.most_held = 0

    def answers(
        self, lines: Iterable[Line], may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[Answer]:
        coming = iter(lines)
        held: list[Line] = []
        while True:
            while len(held) < self._together and may_take() and (line := next(coming, None)):
                held.append(line)
            self.most_held = max(self.most_held, len(held))
            if not held:
                return
            line = held.pop()
            yield Answer(line.index, {"index": line.index, "error": None, "said": line.content})
