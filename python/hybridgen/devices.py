# SPDX-License-Identifier: Apache-2.0
"""What a device's name means: the CPU, a CUDA device, or one that is emulated."""

from __future__ import annotations

import functools
import re
import sys
import types
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from . import _core
from ._checks import brief
from .errors import ConfigError
from .machine_profile import MachineProfile

_TIMED_MAY_LACK = ("gpu.hbm_eff", "link.duplex_factor")


@dataclass(frozen=True)
class Device:
    """A device that there is.

    Parameters
    ----------
    name : str
        As `Model.device` says it: "cpu", "cuda:0", "emulated" or "emulated:h100-nvl".
    engine_name : str
        As the engine knows it.
    profile : MachineProfile or None
        Whose times the device has; None unless it is emulated and timed.
    """

    name: str
    engine_name: str
    profile: MachineProfile | None = None

    @property
    def emulated(self) -> str | None:
        """What a report must say, lest its times be taken for a GPU's; None on a real device."""
        if self.profile is not None:
            return f"emulated: {self.profile.name}'s GPU and link, this machine's CPU"
        return "emulated: no GPU, and no times of one" if self.name == "emulated" else None


def resolve_device(operation: str, device: object) -> Device:
    """Return the device of a name; "auto" is a CUDA device or the CPU, never an emulated one.

    Raises
    ------
    ConfigError
        For a name that is not known, a CUDA device that torch does not see, and a profile that
        cannot be read or lacks what times are made from.
    """
    name = str(device) if isinstance(device, str | torch.device) else brief(device)
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda:0" if count else "cpu"
    if name == "cpu":
        return Device(name, name)
    if name == "emulated":
        _offer_emulated()
        return Device(name, name)
    if name.startswith("emulated:"):
        _offer_emulated()
        return _timed(operation, name.removeprefix("emulated:"))
    match = re.fullmatch(r"cuda(?::([0-9]{1,9}))?", name)
    if not match:
        raise ConfigError(
            f"[{operation}] device is {brief(name)}; allowed: auto, cpu, cuda:0, emulated, "
            f"emulated:PROFILE with one of {', '.join(MachineProfile.names())} or a .json file"
        )
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(
            f"[{operation}] device is {name!r}, but torch {torch.__version__} sees {count} CUDA "
            "devices; allowed: auto, cpu"
            + (f", cuda:0 to cuda:{count - 1}" if count else "; a GPU needs a CUDA build of torch")
        )
    _warn_without_kernels()
    return Device(f"cuda:{index}", f"cuda:{index}")


@functools.cache
def _warn_without_kernels() -> None:
    """Say once that a GPU will be used operation by operation."""
    if not _core.build_info()["cuda"]:
        warnings.warn(
            "this build of hybridgen has no CUDA kernels (it found no nvcc, or torch is older than "
            "2.13): decode steps run through LibTorch's operators, about ten times as many "
            "launches; install the CUDA toolkit and build it again (docs/development.md)",
            stacklevel=2,
        )


def _offer_emulated() -> None:
    """Let torch know the device, with the functions that it calls of every device's module."""
    _core.offer_emulated_device()
    if hasattr(torch, "emulated"):
        return
    module = types.ModuleType("torch.emulated", "A device of hybridgen's engines, not of tensors.")
    answers: dict[str, Any] = {
        "is_available": False,
        "is_initialized": True,
        "device_count": 0,
        "current_device": 0,
        "synchronize": None,
        "manual_seed_all": None,
        "_is_in_bad_fork": False,
    }
    for function, answer in answers.items():
        setattr(module, function, lambda *_, answer=answer, **__: answer)
    torch._register_device_module("emulated", module)
    sys.modules[module.__name__] = module


def _timed(operation: str, place: str) -> Device:
    """Return the emulated device with the times of a profile, by its name or file."""
    # LibTorch asks Python for some operators' shapes and imports this for it, which takes seconds:
    # they are not to be in the time of the first step.
    import torch._dynamo  # noqa: F401

    profile = MachineProfile.load(place)
    known = [row["name"] for row in _core.machine_profile_fields()]
    of_file = [name for name in known if "." in name]
    needed = profile.require((n for n in of_file if n not in _TIMED_MAY_LACK), operation)
    present = profile.values()
    optional = {name: present[name] for name in _TIMED_MAY_LACK if name in present}
    index = _core.register_machine_profile({"name": profile.name} | needed | optional)
    is_file = "/" in place or place.endswith(".json")
    return Device(f"emulated:{place if is_file else profile.name}", f"emulated:{index}", profile)
