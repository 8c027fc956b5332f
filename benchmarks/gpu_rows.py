# SPDX-License-Identifier: Apache-2.0
"""Rows of `gpu.py`: decode steps of the engine at one point, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hybridgen as hg
from engine_runs import config_of
from gpu_cases import DTYPE, Point, options_of
from hybridgen.sim import ModelShape

Row = dict[str, Any]
KEY = ("machine", "device", "shape", "tokens", "batch", "method")
"""What makes a row another one."""
WARMUP = 2
"""Steps that are not counted; nor is the last, in which memory of the requests is freed."""


class RowFile:
    """Rows as JSON lines, each written when it is there, so that a later run goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[tuple[Any, ...], Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._rows[_key_of(row)] = row
            except (ValueError, KeyError, TypeError):
                continue  # of a run that was ended while it wrote
        self._begin = "" if not text or text.endswith("\n") else "\n"

    def find(self, row: Row) -> Row | None:
        """Return the row with the same key, if there is one."""
        return self._rows.get(_key_of(row))

    def add(self, row: Row) -> None:
        """Write a row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._begin + json.dumps(row) + "\n")
        self._begin = ""
        self._rows[_key_of(row)] = row


def _key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def key_row(machine: str, device: str, point: Point, method: str) -> Row:
    """Return a row's key, and its mode."""
    return {
        "mode": "emulated" if device.startswith("emulated") else "measured",
        "machine": machine,
        "device": device,
        "shape": point.shape.name,
        "tokens": point.tokens,
        "batch": point.batch,
        "method": method,
    }


def origin_of(device: str) -> str:
    """Return how figures of a device begin: whether they are measured or emulated, and of what."""
    if not device.startswith("emulated:"):
        return f"measured, {device}"
    profile = device.removeprefix("emulated:")
    return f"emulated, {Path(profile).stem if profile.endswith('.json') else profile}"


@contextmanager
def dummy_model(shape: ModelShape, device: str) -> Iterator[hg.Model]:
    """Load a shape with random weights, which a timed device does not even read."""
    with hg.Model(config_of(shape), load_format="dummy", dtype=DTYPE, device=device) as model:
        yield model


def prompts_of(point: Point) -> list[list[int]]:
    """Return token ids without a pattern, others for every request."""
    vocabulary = point.shape.vocab_size - 3
    return [
        [(i * 7919 + 11 + number) % vocabulary + 3 for i in range(point.tokens)]
        for number in range(point.batch)
    ]


def run_row(model: hg.Model, point: Point, method: str, steps: int) -> Row:
    """Return what a decode step of a method costs there, as the engine counted it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a timed device withholds text
        llm = hg.LLM(model, max_num_seqs=point.batch, **options_of(method, point.tokens))
    times: list[float] = []
    metrics: dict[Any, hg.RequestMetrics] = {}
    with llm:
        params = hg.SamplingParams(max_tokens=new_tokens_of(steps), ignore_eos=True)
        begin = time.perf_counter()
        for number, ids in enumerate(prompts_of(point)):
            llm.add_request(number, ids, params)
        while llm.has_unfinished_requests():
            before, began = llm.stats.decode_tokens, time.perf_counter()
            outputs = llm.step()
            if llm.stats.decode_tokens - before == point.batch:
                times.append(time.perf_counter() - began)
            for output in outputs:
                if output.error is not None:
                    raise output.error
                metrics[output.request_id] = output.metrics
        stats = llm.stats
        seconds = time.perf_counter() - begin
    counted = times[WARMUP:-1]
    return {
        "steps": len(counted),
        "step_ms": 1e3 * statistics.median(counted),
        "tokens_per_s": point.batch / statistics.median(counted),
        "seconds": seconds,
        "weights": "dummy",
        **_per_step(stats),
        **_quality([metrics[number] for number in range(point.batch)]),
    }


def new_tokens_of(steps: int) -> int:
    """Return how many tokens a request writes for `steps` counted ones: the first has no step."""
    return 1 + WARMUP + steps + 1


def _per_step(stats: hg.RunStats) -> Row:
    """Return means over all decode steps."""
    count = stats.decode_steps
    return {
        "prefill_s": stats.prefill_s,
        **{
            f"{name}_ms": 1e3 * stats[f"t_{counter}_s"] / count
            for name, counter in (
                ("host", "cpu"),
                ("link", "link"),
                ("gpu", "device"),
                ("wait", "wait"),
            )
        },
        "host_jobs": stats.host_jobs / count,
        "to_gpu_mb": stats.h2d_bytes / count / 1e6,
        "to_host_mb": stats.d2h_bytes / count / 1e6,
        "host_read_mb": (stats.host_key_bytes_read + stats.host_value_bytes_read) / count / 1e6,
    }


def _quality(metrics: Sequence[hg.RequestMetrics]) -> Row:
    """Return where tokens were, and the softmax mass that was attended to, where it is known."""
    row: Row = {
        "strategy": metrics[0].strategy,
        "k": metrics[0].k,
        "resident_tokens": sum(each.resident_tokens for each in metrics),
        "offloaded_tokens": sum(each.offloaded_tokens for each in metrics),
        "dropped_tokens": sum(each.dropped_tokens for each in metrics),
        "attended_share": statistics.mean(each.attended_offloaded_share for each in metrics),
        "mass": None,
        "mass_kind": None,
    }
    losses = [each.lost_mass for each in metrics if each.lost_mass is not None]
    if len(losses) == len(metrics):
        kinds = {each.lost_mass_kind for each in metrics}
        row["mass"] = 1.0 - statistics.mean(losses)
        row["mass_kind"] = "estimated" if "estimated" in kinds else "exact"
    return row


def mass_of(row: Row) -> str:
    """Return the attended mass as a table says it."""
    if row["mass"] is not None and (row["mode"] == "measured" or row["mass_kind"] == "exact"):
        return f"{row['mass']:.3f} {row['mass_kind']}"
    return "none, timed" if row["mode"] == "emulated" else "none"
