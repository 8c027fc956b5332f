# SPDX-License-Identifier: Apache-2.0
"""FlexGen's small helpers: units, switches, the record of a run and how it is read again."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KB = 1 << 10
MB = 1 << 20
GB = 1 << 30
T = 1e12


def str2bool(v: object) -> bool:
    """Return what a switch's value means; argparse shows the error."""
    text = str(v).lower()
    if text in ("yes", "true", "t", "y", "1"):
        return True
    if text in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{v!r} is neither true nor false")


def run_cmd(cmd: str) -> int:
    """Print a shell command, run it and return its exit code."""
    print(cmd)
    return subprocess.run(cmd, shell=True, check=False).returncode


class ValueHolder:
    """A place for one value at a time."""

    def __init__(self) -> None:
        self.val: Any = None

    def store(self, val: object) -> None:
        """Put a value where none is."""
        if self.val is not None:
            raise RuntimeError("[ValueHolder] there is a value already; pop it first")
        self.val = val

    def pop(self) -> Any:
        """Take the value out."""
        found, self.val = self.val, None
        return found

    def clear(self) -> None:
        """Forget the value."""
        self.val = None


def array_1d(a: int, cls: Callable[[], Any]) -> list[Any]:
    """Return a list of new objects."""
    return [cls() for _ in range(a)]


def array_2d(a: int, b: int, cls: Callable[[], Any]) -> list[Any]:
    """Return a list of such lists."""
    return [array_1d(b, cls) for _ in range(a)]


def array_3d(a: int, b: int, c: int, cls: Callable[[], Any]) -> list[Any]:
    """Return three dimensions of new objects."""
    return [array_2d(b, c, cls) for _ in range(a)]


def array_4d(a: int, b: int, c: int, d: int, cls: Callable[[], Any]) -> list[Any]:
    """Return four dimensions of new objects."""
    return [array_3d(b, c, d, cls) for _ in range(a)]


def project_decode_latency(costs: Sequence[float], prompt_len: int, gen_len: int) -> float:
    """Return the decode time of a whole run from the first of its steps.

    Two steps count as they are and the mean of the others for each of the rest. Of a run with no
    third decode step the mean of what there is counts for all.

    Parameters
    ----------
    costs : sequence of float
        Seconds of the prompt and then of each decode step.
    prompt_len : int
        Not read; FlexGen's signature.
    gen_len : int
        New tokens of the whole run.

    Raises
    ------
    ValueError
        Without a decode step, unless none belongs to the run.
    """
    steps = list(costs[1:])
    if gen_len <= 1:
        return 0.0
    if not steps:
        raise ValueError(
            f"[project] no decode step was run of {gen_len - 1}; allowed: 1 at least; raise "
            "--cut-gen-len"
        )
    first, others = (steps[:2], steps[2:]) if len(steps) > 2 else ([], steps)
    return sum(first) + sum(others) / len(others) * (gen_len - 1 - len(first))


@dataclasses.dataclass
class BenchmarkResult:
    """Seconds and tokens per second of one record."""

    prefill_latency: float
    prefill_throughput: float
    decode_latency: float
    decode_throughput: float
    total_latency: float
    total_throughput: float


def benchmark_record(
    model_size: float,
    cache_size: float,
    hidden_size: float,
    gpu_peak_mem: float,
    projected: bool,
    prefill_latency: float,
    prefill_throughput: float,
    decode_latency: float,
    decode_throughput: float,
    total_latency: float,
    total_throughput: float,
) -> str:
    """Return FlexGen's five lines; sizes in bytes, times in seconds."""
    return "\n".join(
        [
            f"model size: {model_size / GB:.3f} GB\tcache size: {cache_size / GB:.3f} GB\t"
            f"hidden size (p): {hidden_size / GB:.3f} GB",
            f"peak gpu mem: {gpu_peak_mem / GB:.3f} GB\tprojected: {projected}",
            f"prefill latency: {prefill_latency:.3f} s\t"
            f"prefill throughput: {prefill_throughput:.3f} token/s",
            f"decode latency: {decode_latency:.3f} s\t"
            f"decode throughput: {decode_throughput:.3f} token/s",
            f"total latency: {total_latency:.3f} s\ttotal throughput: {total_throughput:.3f} "
            "token/s",
        ]
    )


def append_log(filename: str | Path, record: str) -> None:
    """Append a record and an end of line to a log file."""
    with open(filename, "a", encoding="utf-8") as file:
        file.write(record + "\n")


def write_benchmark_log(filename: str | Path, *figures: Any) -> str:
    """Append the record of `benchmark_record`'s figures to a log file and return it."""
    record = benchmark_record(*figures)
    append_log(filename, record)
    return record


def read_benchmark_log(filename: str | Path) -> BenchmarkResult:
    """Return the figures of a log file's first record, as FlexGen finds them: by line and words."""
    with open(filename, encoding="utf-8") as file:
        lines = file.read().splitlines()

    def figures(line: str) -> list[float]:
        latency, throughput = line.split("\t")
        return [
            float(latency.split(":")[1].split(" s")[0]),
            float(throughput.split(":")[1].split(" to")[0]),
        ]

    return BenchmarkResult(*[value for line in lines[2:5] for value in figures(line)])
