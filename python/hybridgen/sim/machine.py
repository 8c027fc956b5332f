# SPDX-License-Identifier: Apache-2.0
"""A machine as the simulator sees it: seconds and rates, from a profile alone."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

from ..machine_profile import MachineProfile
from .calibration import PAPER_MACHINES, Calibration, calibration_of

NEEDED = (
    *("gpu.tflops", "gpu.hbm_gbs", "link.h2d_gbs", "link.d2h_gbs", "link.setup_us"),
    *("link.zero_copy_eff", "cpu.dram_gbs", "cpu.kq_gbs", "cpu.gather_gbs"),
    *("overhead.launch_us", "overhead.sync_us", "overhead.launches_attn"),
    "overhead.launches_mlp",
)
"""Fields of a profile without which nothing can be simulated."""


@dataclass(frozen=True)
class Machine:
    """Times of a machine with a kind of software on it.

    Parameters
    ----------
    profile : MachineProfile
        With everything in ``NEEDED``.
    calibration : Calibration
        What it was calibrated by, and the settings that go with that.
    threads : int
        CPUs that select tokens: ``cpu.topk_gelem_s`` is of one.

    Raises
    ------
    ConfigError
        If the profile lacks a field.
    """

    profile: MachineProfile
    calibration: Calibration
    threads: int = 1
    _shares: tuple[tuple[float, float], ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        self.profile.require(NEEDED, "simulate")
        object.__setattr__(self, "_shares", self.profile.gpu.hbm_eff or ())

    @classmethod
    def load(cls, profile: str | Path | MachineProfile, calibration: str = "engine") -> Machine:
        """Return a machine by letter ("A", "B", "C" of the paper), name, file or profile."""
        if not isinstance(profile, MachineProfile):
            profile = MachineProfile.load(PAPER_MACHINES.get(str(profile), profile))
        found = calibration_of(calibration)
        return cls(found.apply(profile), found)

    # ---------------------------------------------------------------------------------------- GPU

    def memory_seconds(self, num_bytes: float) -> float:
        """Seconds of device memory for an operation of that size; as the timed device has it."""
        megabytes, shares = num_bytes / 1e6, self._shares
        if shares:
            above = bisect_left([size for size, _ in shares], megabytes)
            if above == 0:
                megabytes /= shares[0][1]
            elif above == len(shares):
                megabytes /= shares[-1][1]
            else:
                (low, low_share), (high, high_share) = shares[above - 1 : above + 1]
                begin, end = low / low_share, high / high_share
                megabytes = begin + (end - begin) * (megabytes - low) / (high - low)
        return megabytes * 1e6 / (_of(self.profile.gpu.hbm_gbs) * 1e9)

    def gpu_seconds(self, flops: float, num_bytes: float, launches: float) -> float:
        """Seconds of a stage: arithmetic, memory or launches, whichever takes longest."""
        return max(
            flops / (_of(self.profile.gpu.tflops) * 1e12),
            self.memory_seconds(num_bytes),
            launches * _of(self.profile.overhead.launch_us) * 1e-6,
        )

    @property
    def sync_seconds(self) -> float:
        """From the end of device work until the host that waits goes on."""
        return _of(self.profile.overhead.sync_us) * 1e-6

    @property
    def sublayer_seconds(self) -> float:
        """What each half layer waits for the host: nothing where it waits once per step."""
        return self.sync_seconds if self.profile.overhead.sync_per_sublayer else 0.0

    # --------------------------------------------------------------------------------------- link

    @property
    def setup_seconds(self) -> float:
        """A copy without bytes."""
        return _of(self.profile.link.setup_us) * 1e-6

    @property
    def h2d(self) -> float:
        """Bytes per second to the device, contiguous."""
        return _of(self.profile.link.h2d_gbs) * 1e9

    @property
    def d2h(self) -> float:
        """Bytes per second to the host."""
        return _of(self.profile.link.d2h_gbs) * 1e9

    @property
    def zero_copy(self) -> float:
        """Bytes per second of rows that the GPU reads from pinned memory."""
        return self.h2d * _of(self.profile.link.zero_copy_eff)

    # ---------------------------------------------------------------------------------------- CPU

    def scan_rate(self, queries_per_key: float) -> float:
        """Bytes of keys, or values, per second that the CPU works on."""
        rate = _of(self.profile.cpu.kq_gbs) * 1e9
        gflops = self.profile.cpu.kq_gflops
        # Two FLOPs for each query and each 2 bytes.
        return rate if gflops is None else min(rate, gflops * 1e9 / queries_per_key)

    @property
    def gather_rate(self) -> float:
        """Bytes per second of rows that the CPU gathers."""
        return _of(self.profile.cpu.gather_gbs) * 1e9

    def select_seconds(self, elements: float) -> float:
        """Seconds to choose the largest; nothing where the profile does not know."""
        rate = self.profile.cpu.topk_gelem_s
        return 0.0 if rate is None else elements / (rate * 1e9 * self.threads)

    @property
    def hand_off_seconds(self) -> float:
        """From the end of what the device sent until all workers work on it."""
        return self.sync_seconds + (self.profile.cpu.fork_us or 0.0) * 1e-6

    def bandwidths(self) -> dict[str, float]:
        """Bytes per second that tasks share: of DRAM, and of CXL memory where there is some."""
        found = {"dram": _of(self.profile.cpu.dram_gbs) * 1e9}
        if self.profile.cxl.gbs is not None:
            found["cxl"] = self.profile.cxl.gbs * 1e9
        return found


def _of(value: float | None) -> float:
    """Return a field that is known to be present."""
    assert value is not None
    return value
