# SPDX-License-Identifier: Apache-2.0
"""Measures the present machine into a `MachineProfile`: ``python -m hybridgen profile``.

The CPU's fields come from our own kernels and worker pool, the GPU's and the link's from torch
where it sees a CUDA device. What cannot be measured is taken from a base profile, if one is named,
and else absent: a profile of another GPU and link with this CPU is that base, measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from . import _core
from ._checks import as_bool, as_int
from .errors import ConfigError
from .gpu_measurement import Gpu, gpu_steps
from .info import info
from .machine_profile import MachineProfile

_OPERATION = "profile"


@dataclass(frozen=True)
class Step:
    """A part of the measurement: what it is called, and what gives its fields by full name."""

    title: str
    run: Callable[[], dict[str, Any]]


def measure_machine(
    *,
    base: MachineProfile | None = None,
    name: str | None = None,
    threads: int | None = None,
    quick: bool = False,
    progress: bool = False,
    gpu: Gpu | None = None,
) -> MachineProfile:
    """Measure this machine.

    Parameters
    ----------
    base : MachineProfile, optional
        Where fields of GPU, link and overhead come from that cannot be measured here.
    name : str, optional
        Of the profile; by default the GPU's and the CPU's.
    threads : int, optional
        CPUs that work; by default all that this process may use.
    quick : bool
        Fewer passes over less memory: seconds, and rougher.
    progress : bool
        Show a progress bar.
    gpu : Gpu, optional
        What measures a GPU; by default the first CUDA device that torch sees, if any.

    Raises
    ------
    ConfigError
        For an argument that is not allowed.
    OutOfMemoryError
        If the memory to measure with is not free.

    Notes
    -----
    Each value is the median of its passes; the machine should have nothing else to do.
    """
    most = _core.available_parallelism()
    if threads is None:
        threads = most
    threads = as_int(_OPERATION, "threads", threads, 1, most)
    quick = as_bool(_OPERATION, "quick", quick)
    progress = as_bool(_OPERATION, "progress", progress)
    if base is not None and not isinstance(base, MachineProfile):
        raise ConfigError(f"[{_OPERATION}] base is {base!r}; allowed: a MachineProfile or None")
    if name is not None:
        MachineProfile(name=name)  # refuses what is no name
    if gpu is None:
        gpu = _first_gpu()
    measured: dict[str, Any] = {}
    steps = [*cpu_steps(threads, quick=quick)]
    if gpu is not None:
        steps += [Step(title, run) for title, run in gpu_steps(gpu, quick=quick)]
    for step in _shown(steps, progress):
        measured |= step.run()
    return _profile(measured, base, gpu, name, threads)


def cpu_steps(threads: int, *, quick: bool) -> Iterator[Step]:
    """Yield what is measured of the CPU."""
    mebibytes, passes = (64, 3) if quick else (512, 7)
    scanned = mebibytes << 20

    def memory() -> dict[str, Any]:
        return {"cpu.dram_gbs": _core.read_bandwidth(threads, scanned) / 1e9}

    def scan() -> dict[str, Any]:
        one = median(_core.measure_scan_keys(threads, mebibytes, 1, "auto", passes))
        many = median(_core.measure_scan_keys(threads, mebibytes, 16, "auto", passes))
        multiply_adds = scanned / 2 * 16  # of a key's 16-bit numbers with 16 queries
        return {"cpu.kq_gbs": scanned / one / 1e9, "cpu.kq_gflops": 2 * multiply_adds / many / 1e9}

    def gather() -> dict[str, Any]:
        moved, seconds = _core.measure_gather(threads, mebibytes, 256, passes)
        return {"cpu.gather_gbs": moved / median(seconds) / 1e9}

    def selection() -> dict[str, Any]:
        count = 1 << 17
        seconds = median(_core.measure_select(count, count // 20, 10 * passes))
        return {"cpu.topk_gelem_s": count / seconds / 1e9}

    def hand_off() -> dict[str, Any]:
        runs = 100 * passes
        return {
            "cpu.fork_us": median(_core.measure_hand_off(threads, False, runs)) * 1e6,
            "cpu.wake_us": median(_core.measure_hand_off(threads, True, runs)) * 1e6,
        }

    def latency() -> dict[str, Any]:
        return {"cpu.latency_ns": median(_core.measure_walk_lines(mebibytes, passes)) * 1e9}

    yield Step("reading DRAM", memory)
    yield Step("scanning keys", scan)
    yield Step("gathering rows", gather)
    yield Step("choosing the largest", selection)
    yield Step("handing work over", hand_off)
    yield Step("latency of DRAM", latency)


def _first_gpu() -> Gpu | None:
    import torch

    from .gpu_measurement import CudaGpu

    return CudaGpu(torch.device("cuda:0")) if torch.cuda.device_count() else None


def _shown(steps: list[Step], progress: bool) -> Iterator[Step]:
    """Yield the steps, with a bar that says which one runs."""
    if not progress:
        yield from steps
        return
    from tqdm.auto import tqdm

    with tqdm(total=len(steps), unit="step") as bar:
        for step in steps:
            bar.set_description(step.title)
            yield step
            bar.update()


def _profile(
    measured: dict[str, Any],
    base: MachineProfile | None,
    gpu: Gpu | None,
    name: str | None,
    threads: int,
) -> MachineProfile:
    """Return the base's GPU, link and overhead under what was measured."""
    found = info()
    cpu = " ".join(str(found.cpu["model"]).split())
    other = gpu.name if gpu is not None else base.name if base is not None else None
    if name is None:
        name = cpu if other is None else f"{other} with {cpu}"
    source = f"measured: {threads} CPUs of {cpu}, {found.cpu['isa']}"
    if gpu is not None:
        source += f"; {gpu.name}"
    source += f"; hybridgen {found.versions['hybridgen']}, torch {found.versions['torch']}"
    # The base's CPU and memory are another machine's.
    kept = (
        MachineProfile(name=name)
        if base is None
        else MachineProfile(
            name=name,
            gpu=base.gpu,
            link=base.link,
            overhead=base.overhead,
            source=_without_host(base.source),
            confidence=_without_host(base.confidence),
        )
    )
    description = f"{cpu}, {threads} CPUs, {found.cpu['isa']}"
    if other is not None:
        description = f"{gpu.name if gpu else f'GPU and link of {other}'}; {description}"
    return kept.with_values(
        {field: _rounded(value) for field, value in measured.items()},
        source=source,
        confidence="measured",
        description=description,
    )


def _without_host(notes: Any) -> dict[str, str]:
    return {k: v for k, v in notes.items() if not k.startswith(("cpu.", "cxl."))}


def _rounded(value: Any) -> Any:
    """Return numbers with four digits, which is more than is known."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
