# SPDX-License-Identifier: Apache-2.0
"""What is installed and on what machine: the text to paste into a bug report."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import _core
from .machine_profile import MachineProfile

_PACKAGES = ("hybridgen", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Info:
    """Versions, processor, memory nodes and their tiers, device and build flags.

    Parameters
    ----------
    versions, cpu, gpu, build : dict
        By topic.
    numa_nodes : list of dict
        One per memory node: its id, CPUs (as ranges, like "0-3,8") and bytes in all and free.
    tiers : list of dict
        One per memory node: its tier ("dram", "cxl", "faster" or "ignored"; the last two are not
        used) and why it is that one, bytes in all and available, distances to the nodes, and what
        firmware says of its rates (bytes per second) and latencies (ns).
    """

    versions: dict[str, str]
    cpu: dict[str, Any]
    numa_nodes: list[dict[str, Any]]
    tiers: list[dict[str, Any]]
    gpu: dict[str, Any]
    build: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists, ready for JSON."""
        return {
            "versions": self.versions,
            "cpu": self.cpu,
            "numa_nodes": self.numa_nodes,
            "tiers": self.tiers,
            "gpu": self.gpu,
            "build": self.build,
        }

    def __repr__(self) -> str:
        lines = []
        for topic, content in self.to_dict().items():
            lines.append(topic)
            entries = content.items() if isinstance(content, dict) else enumerate(content)
            lines += [f"  {name}: {_shown(value)}" for name, value in entries]
        return "\n".join(lines)


def info() -> Info:
    """Describe this installation and this machine.

    Examples
    --------
    >>> info().versions["torch"] == torch.__version__
    True
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["torch"] = str(torch.__version__)
    build = dict(_core.build_info())
    if versions["hybridgen"] == "not installed":
        versions["hybridgen"] = str(build["version"])
    isas = build.pop("isas", [])
    cpu = {
        "model": _cpu_model(),
        "cpus": os.cpu_count(),
        "usable": _core.available_parallelism(),
        "isas": isas,
        "isa": build.pop("isa", "unknown"),
        "scan_prefetch": build.pop("scan_prefetch", "unknown"),
        "available_host_bytes": _core.available_host_bytes(),
        "huge_pages": dict(_core.huge_pages()),
    }
    return Info(versions, cpu, _numa_nodes(), list(_core.host_tiers()), _gpu(), build)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _numa_nodes() -> list[dict[str, Any]]:
    return [node | {"cpus": _ranges(node["cpus"])} for node in _core.numa_nodes()]


def _ranges(numbers: list[int]) -> str:
    """Write ascending numbers as Linux lists CPUs: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(str(end) for end in run) for run in runs)


def _gpu() -> dict[str, Any]:
    count = torch.cuda.device_count()
    found: dict[str, Any] = {"devices": count, "emulated": ["emulated", *_timed_devices()]}
    if count:
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "bytes": properties.total_memory}
        found["cuda"] = torch.version.cuda
    return found


def _timed_devices() -> list[str]:
    return [f"emulated:{name}" for name in MachineProfile.names()]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def to_json(found: Info) -> str:
    """Return the description as indented JSON."""
    return json.dumps(found.to_dict(), indent=2, default=str)
