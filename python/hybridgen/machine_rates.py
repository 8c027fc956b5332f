# SPDX-License-Identifier: Apache-2.0
"""The fields of a `MachineProfile` by topic: rates and times, their units, what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ._checks import as_float, brief, items_of
from .errors import ConfigError

OPERATION = "machine profile"
"""How messages call what went wrong."""

_MAX_PAIRS = 64
_LOWEST, _HIGHEST = 1e-9, 1e9


def _positive(name: str, value: object, high: float = _HIGHEST) -> float:
    return as_float(OPERATION, name, value, _LOWEST, high)


def _share(name: str, value: object) -> float:
    return _positive(name, value, 1.0)


def _not_negative(name: str, value: object) -> float:
    return as_float(OPERATION, name, value, 0.0, _HIGHEST)


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"[{OPERATION}] {name} is {brief(value)}; allowed: true, false")


def _shares_by_size(name: str, value: object) -> tuple[tuple[float, float], ...]:
    """Return pairs (size, share) by ascending size, of which no larger one takes less time."""
    pairs: list[tuple[float, float]] = []
    for item in items_of(value) or []:
        terms = items_of(item)
        if terms is None or len(terms) != 2 or len(pairs) == _MAX_PAIRS:
            break
        size, share = _positive(name, terms[0]), _share(name, terms[1])
        if pairs and (size <= pairs[-1][0] or size / share < pairs[-1][0] / pairs[-1][1]):
            break
        pairs.append((size, share))
    else:
        if pairs:
            return tuple(pairs)
    raise ConfigError(
        f"[{OPERATION}] {name} is {brief(value)}; allowed: 1 to {_MAX_PAIRS} pairs [size, share] "
        "by ascending size, of which no larger one takes less time (size / share does not fall)"
    )


def _field(read: Callable[[str, object], Any], unit: str, meaning: str) -> Any:
    return field(default=None, metadata={"read": read, "unit": unit, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class GpuRates:
    """A GPU by itself; see docs/profiles.md for each field."""

    tflops: float | None = _field(
        _positive, "TFLOP/s", "Dense products of 16-bit numbers; a multiply-add is two."
    )
    tflops_fp32: float | None = _field(
        _positive, "TFLOP/s", "Dense products of float32, and all other arithmetic."
    )
    hbm_gbs: float | None = _field(
        _positive, "GB/s", "Device memory, reads and writes together, of large operations."
    )
    hbm_eff: tuple[tuple[float, float], ...] | None = _field(
        _shares_by_size,
        "pairs [MB, share]",
        "Share of hbm_gbs that an operation of that size reaches; time is linear in between.",
    )
    mem_gb: float | None = _field(_positive, "GB", "Device memory.")
    topk_gelem_s: float | None = _field(
        _positive, "1e9 elements/s", "Selection of the largest of a row, rows of 32,768."
    )


@dataclass(frozen=True, kw_only=True)
class LinkRates:
    """Between host memory and the GPU."""

    h2d_gbs: float | None = _field(_positive, "GB/s", "Pinned host memory to the device, alone.")
    d2h_gbs: float | None = _field(_positive, "GB/s", "Device to pinned host memory, alone.")
    duplex_factor: float | None = _field(
        _share, "share", "Of both rates while both directions run; absent: 1."
    )
    setup_us: float | None = _field(_not_negative, "us", "A copy without bytes.")
    zero_copy_eff: float | None = _field(
        _share, "share of h2d_gbs", "Rows of 256 bytes that the GPU reads from pinned memory."
    )
    gather_eff: tuple[tuple[float, float], ...] | None = _field(
        _shares_by_size, "pairs [bytes of a row, share of h2d_gbs]", "The same by size of a row."
    )


@dataclass(frozen=True, kw_only=True)
class CpuRates:
    """The host: all cores that this process may use, unless it says one thread."""

    dram_gbs: float | None = _field(_positive, "GB/s", "Reading DRAM.")
    kq_gbs: float | None = _field(
        _positive, "GB/s", "Keys that the logits kernel scans: 16-bit, head_dim 128, one query."
    )
    kq_gflops: float | None = _field(
        _positive, "GFLOP/s", "The same kernel when it is bound by arithmetic: 16 queries a key."
    )
    gather_gbs: float | None = _field(
        _positive, "GB/s", "Rows of 256 bytes gathered by ascending index, bytes read once."
    )
    topk_gelem_s: float | None = _field(
        _positive, "1e9 elements/s", "Selection of the largest 1/20 of a row, one thread."
    )
    fork_us: float | None = _field(
        _not_negative, "us", "Handing work to all waiting workers and seeing it done."
    )
    wake_us: float | None = _field(_not_negative, "us", "The same when the workers sleep.")
    latency_ns: float | None = _field(_positive, "ns", "One random line of DRAM.")


@dataclass(frozen=True, kw_only=True)
class CxlRates:
    """Memory behind a CXL link, where there is some."""

    gbs: float | None = _field(_positive, "GB/s", "Reads by the device's copy engine.")
    cpu_gbs: float | None = _field(_positive, "GB/s", "Reads by the CPU.")
    latency_ns: float | None = _field(_positive, "ns", "One random line.")


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """What software costs beside bytes and FLOPs."""

    launch_us: float | None = _field(_not_negative, "us", "The host, to issue one operation.")
    graph_us: float | None = _field(
        _not_negative, "us", "One operation inside a replayed CUDA graph."
    )
    sync_us: float | None = _field(
        _not_negative, "us", "From the end of device work until the host that waits goes on."
    )
    host_us: float | None = _field(_not_negative, "us", "The host, once per step.")
    launches_attn: float | None = _field(
        _not_negative, "launches", "Per layer for attention; the simulator only."
    )
    launches_mlp: float | None = _field(
        _not_negative, "launches", "Per layer for the rest; the simulator only."
    )
    sync_per_sublayer: bool | None = _field(
        _flag, "true or false", "Whether the host waits after each half layer; the simulator only."
    )


SECTIONS: dict[str, type] = {
    "gpu": GpuRates,
    "link": LinkRates,
    "cpu": CpuRates,
    "cxl": CxlRates,
    "overhead": Overheads,
}


def field_table() -> list[dict[str, str]]:
    """Return name, unit and meaning of every field, in the order of the file."""
    return [
        {"name": f"{section}.{each.name}"}
        | {key: each.metadata[key] for key in ("unit", "meaning")}
        for section, kind in SECTIONS.items()
        for each in fields(kind)
    ]
