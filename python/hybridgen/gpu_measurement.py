# SPDX-License-Identifier: Apache-2.0
"""Measures a GPU and its link, for `hybridgen.machine_measurement`.

What is run and timed is a `Gpu`; what follows from the times, and how often each is taken, is said
here once for every kind of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Protocol

import torch

MEBI = 1 << 20
COPY_MEGABYTES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Sizes of operations whose share of the memory's rate is measured."""
ROW_BYTES = (64, 128, 256, 512, 1024, 4096, 16384)


class Gpu(Protocol):
    """Runs work and says how many seconds it took."""

    name: str
    memory_bytes: int

    def copies(self, nbytes: int, times: int) -> float:
        """Return the device's seconds for copies inside it, one after the other, not launched."""

    def products(self, size: int, dtype: torch.dtype, times: int) -> float:
        """Return the seconds of products of two [size, size] matrices."""

    def link(self, down: int, up: int, times: int) -> float:
        """Return the seconds of copies of `down` bytes to the device beside `up` to the host."""

    def gather(self, row_bytes: int, rows: int) -> float | None:
        """Return the seconds in which it reads rows of pinned memory; None if it cannot."""

    def largest(self, rows: int, count: int, k: int) -> float:
        """Return the seconds to find the k largest of each of `rows` rows of `count`."""

    def launches(self, times: int) -> float:
        """Return the host's seconds to issue that many operations, without waiting."""

    def round_trip(self) -> float:
        """Return the host's seconds to issue one operation and see that it is done."""


def gpu_steps(gpu: Gpu, *, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield titles and measurements of a GPU."""
    passes = 3 if quick else 7
    link_bytes = (64 if quick else 256) * MEBI
    # Never more than an eighth of the device: others may use it.
    largest_mb = gpu.memory_bytes / 8e6
    sizes = [mb for mb in COPY_MEGABYTES[: -1 if quick else None] if mb <= largest_mb]

    def times_of(run: Callable[[], float]) -> float:
        run()  # the first makes buffers, loads kernels, raises clocks
        return median(run() for _ in range(passes))

    def memory() -> dict[str, Any]:
        # Half is read, half written.
        seconds = [times_of(lambda n=int(mb * 5e5): gpu.copies(n, 20)) / 20 for mb in sizes]  # type: ignore[misc]
        rates = [mb / 1e3 / taken for mb, taken in zip(sizes, seconds, strict=True)]
        return {
            "gpu.mem_gb": gpu.memory_bytes / 1e9,
            "gpu.hbm_gbs": max(rates),
            "gpu.hbm_eff": rising_shares(sizes, rates),
        }

    def products() -> dict[str, Any]:
        found = {}
        for field, dtype in (("tflops", torch.bfloat16), ("tflops_fp32", torch.float32)):
            size = 2048 if quick else 8192 if dtype == torch.bfloat16 else 4096
            seconds = times_of(lambda n=size, d=dtype: gpu.products(n, d, 5)) / 5  # type: ignore[misc]
            found[f"gpu.{field}"] = 2 * size**3 / seconds / 1e12
        return found

    def link() -> dict[str, Any]:
        down = times_of(lambda: gpu.link(link_bytes, 0, 4)) / 4
        up = times_of(lambda: gpu.link(0, link_bytes, 4)) / 4
        both = times_of(lambda: gpu.link(link_bytes, link_bytes, 4)) / 4
        return {
            "link.h2d_gbs": link_bytes / down / 1e9,
            "link.d2h_gbs": link_bytes / up / 1e9,
            # Both directions at the rates times this factor would take as long as the slower one.
            "link.duplex_factor": min(1.0, max(down, up) / both),
            "link.setup_us": times_of(lambda: gpu.link(4, 0, 200)) / 200 * 1e6,
        }

    def gather() -> dict[str, Any]:
        down = times_of(lambda: gpu.link(link_bytes, 0, 4)) / 4
        h2d = link_bytes / down
        rates = []
        for row_bytes in ROW_BYTES:
            rows = link_bytes // 16 // row_bytes
            if gpu.gather(row_bytes, rows) is None:
                return {}
            seconds = times_of(lambda b=row_bytes, n=rows: gpu.gather(b, n) or 0.0)  # type: ignore[misc]
            rates.append(row_bytes * rows / seconds / h2d)
        shares = [min(1.0, rate) for rate in rates]
        return {
            "link.zero_copy_eff": shares[ROW_BYTES.index(256)],
            "link.gather_eff": rising_shares([float(n) for n in ROW_BYTES], shares, highest=1.0),
        }

    def selection() -> dict[str, Any]:
        rows, count = 32, 1 << 15
        seconds = times_of(lambda: gpu.largest(rows, count, count // 20))
        return {"gpu.topk_gelem_s": rows * count / seconds / 1e9}

    def overheads() -> dict[str, Any]:
        launch = times_of(lambda: gpu.launches(200)) / 200
        replayed = times_of(lambda: gpu.copies(4, 200)) / 200
        round_trip = median(gpu.round_trip() for _ in range(100 * passes))
        return {
            "overhead.launch_us": launch * 1e6,
            "overhead.graph_us": replayed * 1e6,
            "overhead.sync_us": max(0.0, round_trip - launch - replayed) * 1e6,
        }

    yield "device memory", memory
    yield "matrix products", products
    yield "link", link
    yield "gathering over the link", gather
    yield "choosing on the device", selection
    yield "launches and waits", overheads


def rising_shares(
    sizes: list[float], rates: list[float], highest: float | None = None
) -> list[tuple[float, float]]:
    """Return shares of the highest rate by size, such that no larger size takes less time.

    A time that came out no longer than a smaller size's, which is noise, is taken for a little
    longer.

    Examples
    --------
    >>> rising_shares([1.0, 2.0, 8.0], [1.0, 1.6, 4.0])
    [(1.0, 0.25), (2.0, 0.4), (8.0, 1.0)]
    """
    highest = highest or max(rates)
    found: list[tuple[float, float]] = []
    seconds = 0.0
    for size, rate in zip(sizes, rates, strict=True):
        seconds = max(1.001 * seconds, size / rate)  # by more than rounding takes away
        found.append((size, min(1.0, float(f"{size / seconds / highest:.4g}"))))
    return found


class CudaGpu:
    """A CUDA device as torch has it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.name = str(properties.name)
        self.memory_bytes = int(properties.total_memory)
        self._small = torch.zeros(1, device=device)
        self._graphs: dict[tuple[int, int], Any] = {}
        self._staging: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._lanes = (torch.cuda.Stream(device), torch.cuda.Stream(device))

    def _timed(self, work: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def copies(self, nbytes: int, times: int) -> float:
        if (nbytes, times) not in self._graphs:
            source = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
            target = torch.empty_like(source)
            target.copy_(source)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(times):
                    target.copy_(source)
            self._graphs = {(nbytes, times): (graph, source, target)}
        return self._timed(self._graphs[nbytes, times][0].replay)

    def products(self, size: int, dtype: torch.dtype, times: int) -> float:
        left = torch.ones(size, size, dtype=dtype, device=self._device)
        out = torch.empty_like(left)
        torch.mm(left, left, out=out)

        def work() -> None:
            for _ in range(times):
                torch.mm(left, left, out=out)

        return self._timed(work)

    def link(self, down: int, up: int, times: int) -> float:
        for nbytes in {down, up} - {0}:
            if nbytes not in self._staging:
                pinned = torch.zeros(2 * nbytes, dtype=torch.uint8, pin_memory=True)
                self._staging[nbytes] = pinned, pinned.to(self._device)
        begin = torch.cuda.Event(enable_timing=True)
        ends = [torch.cuda.Event(enable_timing=True) for _ in self._lanes]
        torch.cuda.synchronize(self._device)
        begin.record(self._lanes[0])
        self._lanes[1].wait_event(begin)
        for _ in range(times):
            for nbytes, lane, to_device in ((down, self._lanes[0], 1), (up, self._lanes[1], 0)):
                if nbytes:
                    pinned, there = self._staging[nbytes]
                    part = slice(0, nbytes) if to_device else slice(nbytes, None)
                    source, target = (pinned, there) if to_device else (there, pinned)
                    with torch.cuda.stream(lane):
                        target[part].copy_(source[part], non_blocking=True)
        for end, lane in zip(ends, self._lanes, strict=True):
            end.record(lane)
            end.synchronize()
        return max(float(begin.elapsed_time(end)) for end in ends) / 1e3

    def gather(self, row_bytes: int, rows: int) -> float | None:
        stride = 16  # of that many rows one is read
        pinned = torch.zeros(stride * rows, row_bytes // 4, dtype=torch.int32, pin_memory=True)
        try:
            seen = torch.as_tensor(_DeviceView(pinned), device=self._device)
        except (RuntimeError, TypeError, ValueError):
            return None  # this torch takes no host memory for the device's
        if seen.data_ptr() != pinned.data_ptr():
            return None  # it made a copy, which is not what is to be measured
        index = torch.arange(0, stride * rows, stride, device=self._device)
        out = torch.index_select(seen, 0, index)

        def work() -> None:
            torch.index_select(seen, 0, index, out=out)

        return self._timed(work)

    def largest(self, rows: int, count: int, k: int) -> float:
        scores = torch.randn(rows, count, device=self._device)

        def work() -> None:
            torch.topk(scores, k)

        return self._timed(work)

    def launches(self, times: int) -> float:
        torch.cuda.synchronize(self._device)
        begin = time.perf_counter()
        for _ in range(times):
            self._small.add_(1)
        seconds = time.perf_counter() - begin
        torch.cuda.synchronize(self._device)
        return seconds

    def round_trip(self) -> float:
        event = torch.cuda.Event()
        begin = time.perf_counter()
        self._small.add_(1)
        event.record()
        event.synchronize()
        return time.perf_counter() - begin


class _DeviceView:
    """Pinned host memory at the address at which the device sees it."""

    def __init__(self, pinned: torch.Tensor) -> None:
        self._pinned = pinned
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": "<i4",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }
