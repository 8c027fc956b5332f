# SPDX-License-Identifier: Apache-2.0
"""Decode on a GPU with the cache in host memory: all methods, transformers' caches, the bars.

First what `python -m hybridgen profile` measures of the machine. Then decode steps of real model
shapes with dummy weights, prompts of 8K and 32K tokens, one and four at a time, with what each
setting attends to: the softmax mass where it is known, and the recall of a small trained model.
Without a GPU the same rows run on the timed device with the profiles of an H100 NVL and an RTX 5090
and this machine's CPU; they say *emulated*, and no bar is met or missed by them.

Rows are kept in a file as they come; a rerun goes on where one stopped. What does not fit, or had
no time left, is listed with the reason.

    python benchmarks/gpu.py [--quick | --full] [--json results/gpu.json]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/figures", "scripts")]

import hybridgen as hg  # noqa: E402
from gpu_bars import compare_rows, leave_out_bars, measure_profile  # noqa: E402
from gpu_cases import FULL, METHODS, QUICK, SHAPES, ModelShape, Point, why_not  # noqa: E402
from gpu_peers import (  # noqa: E402
    CACHES,
    COMPILED,
    run_transformers,
    transformers_model,
    why_no_peer,
)
from gpu_recall import MODEL, recall  # noqa: E402
from gpu_rows import (  # noqa: E402
    Row,
    RowFile,
    dummy_model,
    key_row,
    mass_of,
    new_tokens_of,
    origin_of,
    run_row,
)
from hybridgen._files import unwound_by_sigterm  # noqa: E402
from output import revision  # noqa: E402
from report import Report  # noqa: E402

GPU = "cuda:0"
PROFILES = ("h100-nvl", "rtx5090")
GPU_STEPS, EMULATED_STEPS = 32, 4
QUICK_MINUTES = 6.0
"""On a GPU."""


def gpu_name() -> str | None:
    """Return the name of the GPU that torch sees, if there is one."""
    return torch.cuda.get_device_name(GPU) if torch.cuda.is_available() else None


@dataclass
class Session:
    """Runs rows that are not in the file yet, as long as there is time, and notes what is not."""

    report: Report
    file: RowFile
    steps: int
    minutes: float | None
    machine: str
    began: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pace: float = 0.0
    """Most seconds that a row of this run took per token of its prompts."""

    def has(self, row: Row) -> bool:
        """Take a row from the file, if it is there."""
        found = self.file.find(row)
        if found is not None:
            self.take(found)
        return found is not None

    def run(self, point: Point, key: Row, rate_gbs: float, make: Callable[[], Row]) -> None:
        """Make a row and keep it."""
        label = label_of(key)
        tokens = point.batch * point.tokens
        spent = time.monotonic() - self.began
        if self.minutes is not None and spent + self.pace * tokens > 60 * self.minutes:
            self.left_out[label] = f"no time left of {self.minutes:g} minutes; run again to go on"
            return
        began = time.monotonic()
        try:
            row = key | {"load": round(os.getloadavg()[0], 1)} | make()
        except (hg.HybridGenError, RuntimeError) as error:  # torch's lack of memory is the latter
            self.left_out[label] = "failed: " + " ".join(str(error).split())[:300]
            return
        self.pace = max(self.pace, (time.monotonic() - began) / tokens)
        resident = row["resident_tokens"] * point.shape.kv_bytes_per_token
        row["floor_ms"] = (point.weight_bytes + resident) / rate_gbs / 1e6
        self.file.add(row)
        self.take(row)

    def take(self, row: Row) -> None:
        """Report a row, of this run or of an earlier one."""
        self.rows.append(row)
        label, step = label_of(row), row["step_ms"]
        self.report.add(f"{label}: step", step, "ms/step")
        self.report.add(f"{label}: floor (analytic) / step", row["floor_ms"] / step, "share")


def label_of(row: Row) -> str:
    """Return how figures of a row begin: where its numbers are from, and of what."""
    what = f"{row['shape']}, {row['batch']} x {row['tokens']}, {row['method']}"
    return f"{origin_of(row['device'])}: {what}"


@dataclass(frozen=True)
class Side:
    """Whose rows run at the points of a shape: ours, or transformers'.

    Parameters
    ----------
    methods : sequence of str
        In the order of their rows.
    load : callable
        Returns a context of the model, which is entered when a row needs it.
    why_not : callable
        Of a point, a method and the model, if it is loaded; says why a row does not run, or "".
    run : callable
        Of the model, a point and a method; returns what was measured.
    """

    methods: Sequence[str]
    load: Callable[[], AbstractContextManager[Any]]
    why_not: Callable[[Point, str, Any], str]
    run: Callable[[Any, Point, str], Row]


def ours(shape: ModelShape, device: str, methods: Sequence[str], steps: int) -> Side:
    """Return our methods."""
    return Side(
        methods,
        lambda: dummy_model(shape, device),
        lambda point, method, model: why_not(point, method, new_tokens_of(steps), device, model),
        lambda model, point, method: run_row(model, point, method, steps),
    )


def theirs(shape: ModelShape, device: str, caches: Sequence[str], steps: int) -> Side:
    """Return transformers' caches."""
    return Side(
        caches,
        lambda: transformers_model(shape, device),
        lambda point, cache, _model: why_no_peer(point, cache, new_tokens_of(steps)),
        lambda model, point, cache: run_transformers(model, point, cache, steps),
    )


def run_side(
    session: Session, device: str, rate_gbs: float, points: Sequence[Point], side: Side
) -> None:
    """Run all rows of a side at the points of one shape; its model leaves the device then."""
    with ExitStack() as stack:
        model: Any = None
        for point in points:
            for method in side.methods:
                key = key_row(session.machine, device, point, method)
                if session.has(key):
                    continue
                reason = side.why_not(point, method, model)
                if reason:
                    session.left_out[label_of(key)] = reason
                    continue
                if model is None:
                    model = stack.enter_context(side.load())
                session.run(point, key, rate_gbs, functools.partial(side.run, model, point, method))


def run_recall(session: Session, methods: Sequence[str], tokens: int) -> dict[str, float]:
    """Return each method's recall with its setting for prompts of `tokens`; measured everywhere."""
    device = GPU if gpu_name() else "cpu"
    found: dict[str, float] = {}
    with ExitStack() as stack:
        model: hg.Model | None = None
        for method in methods:
            key: Row = {
                "mode": "measured",
                "machine": session.machine,
                "device": device,
                "shape": "recall of tiny-llama",
                "tokens": tokens,
                "batch": 1,
                "method": method,
            }
            row = session.file.find(key)
            if row is None:
                if model is None:
                    model = stack.enter_context(hg.Model(MODEL, dtype="float32", device=device))
                row = key | {"recall": recall(model, method, tokens)}
                session.file.add(row)
            found[method] = row["recall"]
            name = f"measured, {device}: recall of tiny-llama, setting of {tokens} tokens, {method}"
            session.report.add(name, found[method], "share")
    return found


def table_of(rows: Sequence[Row], recalled: dict[str, float], tokens: int) -> Iterator[str]:
    """Yield a table per device, shape, length and batch."""
    places = ("device", "shape", "tokens", "batch")
    for place in dict.fromkeys(tuple(row[name] for name in places) for row in rows):
        device, shape, length, batch = place
        yield ""
        yield f"{origin_of(device)}: {shape}, {batch} x {length} tokens (floor: analytic)"
        yield (
            f"{'method':<29} {'ms/step':>8} {'tokens/s':>8} {'floor':>6} {'GPU ms':>7} "
            f"{'host ms':>8} {'link ms':>8} {'waited':>8} {'MB to GPU':>9} {'load':>5}  "
            f"{'attended mass':<13} recall"
        )
        for row in rows:
            if tuple(row[name] for name in places) != place:
                continue
            counted = [
                f"{row[name]:.1f}" if name in row else "-"
                for name in ("gpu_ms", "host_ms", "link_ms", "wait_ms", "to_gpu_mb", "load")
            ]
            said = recalled.get(row["method"])
            yield (
                f"{row['method']:<29} {row['step_ms']:>8.1f} {row['tokens_per_s']:>8.1f} "
                f"{row['floor_ms'] / row['step_ms']:>6.0%} {counted[0]:>7} {counted[1]:>8} "
                f"{counted[2]:>8} {counted[3]:>8} {counted[4]:>9} {counted[5]:>5}  "
                f"{mass_of(row):<13} "
                f"{f'{said:.2f}' if said is not None and length == tokens else '-'}"
            )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one shape, the default")
    size.add_argument("--full", action="store_true", help="all shapes, lengths and batches")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument(
        "--rows",
        metavar="FILE",
        type=Path,
        default=ROOT / "results" / "gpu.jsonl",
        help="rows as they come, and those of earlier runs",
    )
    parser.add_argument(
        "--profiles", nargs="+", metavar="NAME", help="run on the timed device, with these"
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, metavar="TOKENS")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *CACHES], metavar="METHOD")
    parser.add_argument("--steps", type=int, help="decode steps that are counted, of each row")
    parser.add_argument("--minutes", type=float, help="no row begins that would end later")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything."""
    arguments = parse_arguments(argv)
    name = gpu_name()
    is_emulated = bool(arguments.profiles) or name is None
    profiles = arguments.profiles or PROFILES
    shapes, lengths, batches = FULL if arguments.full else QUICK
    shapes, lengths = arguments.shapes or shapes, arguments.lengths or lengths
    batches = arguments.batches or batches
    peers = [name for name in CACHES if arguments.full or name != COMPILED]
    chosen = arguments.methods or [*METHODS, *peers]
    minutes = arguments.minutes
    if minutes is None and not is_emulated and not arguments.full:
        minutes = QUICK_MINUTES

    report = Report()
    report.machine |= {
        "gpu": name or "no GPU",
        "revision": revision(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    machine = ", ".join(str(report.machine[name]) for name in ("cpu", "cores", "gpu", "revision"))
    steps = arguments.steps or (EMULATED_STEPS if is_emulated else GPU_STEPS)
    session = Session(report, RowFile(arguments.rows), steps, minutes, machine)
    profile = measure_profile(report, has_gpu=name is not None)
    methods = [name for name in METHODS if name in chosen]
    recalled = run_recall(session, methods, max(lengths))

    devices = {GPU: profile}
    if is_emulated:
        devices = {f"emulated:{name}": hg.MachineProfile.load(name) for name in profiles}
        print(
            f"\n# emulated: times of the GPU and the link are the profile's, whose rates are "
            f"mostly estimates; the CPU is this machine's ({report.machine['cpu']}, "
            f"{report.machine['cores']} cores), and so are its stages and waits for them"
        )
    for device, of in devices.items():
        rate = of.gpu.hbm_gbs
        assert rate is not None  # no GPU is measured or timed without it
        for shape in shapes:
            points = [Point(SHAPES[shape], n, batch) for batch in batches for n in lengths]
            sides = [ours(SHAPES[shape], device, methods, steps)]
            if not is_emulated:
                caches = [name for name in CACHES if name in chosen]
                sides.append(theirs(SHAPES[shape], device, caches, steps))
            for side in sides:
                run_side(session, device, rate, points, side)

    print("\n".join(table_of(session.rows, recalled, max(lengths))))
    print("\n# launches of a step are counted by the C++ tests (docs/cuda.md, Launches)\n")
    for device in devices:
        compare_rows(report, session.rows, recalled, device)
    if is_emulated:
        leave_out_bars(report, "needs a GPU")
    for label, reason in session.left_out.items():
        print(f"# not run: {label}: {reason}")
    report.machine["not_run"] = session.left_out
    report.write(arguments.json)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
