# SPDX-License-Identifier: Apache-2.0
"""FlexGen's devices as scripts hold them: names, memory in use, a folder. The engine allocates."""

from __future__ import annotations

import dataclasses
import enum
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, DeviceError
from ..model_folder import local_path
from ..np_weights import made_folder
from .utils import GB


class DeviceType(enum.Enum):
    """Kinds of places."""

    CPU = 1
    CUDA = 2
    DISK = 3
    MIXED = 4
    COMPRESSED = 5

    @staticmethod
    def convert(name: str) -> DeviceType:
        """Return the kind that a name such as "cuda:0" begins with."""
        try:
            return DeviceType[name.split(":")[0].upper()]
        except KeyError:
            raise ConfigError(
                f"[DeviceType] name is {name!r}; allowed: cpu, cuda, disk, mixed, compressed"
            ) from None


@dataclasses.dataclass
class TorchTensor:
    """An array and the device it is on."""

    shape: tuple[int, ...]
    dtype: Any
    data: Any
    device: Any
    name: str = ""

    def delete(self) -> None:
        """Let its memory, or its file, go."""
        if isinstance(self.data, Path):
            self.data.unlink(missing_ok=True)
        self.data = None


class TorchDevice:
    """The CPU's memory or a CUDA device.

    Parameters
    ----------
    name : str
        "cpu" or "cuda:0".
    mem_capacity, flops : optional
        Kept for scripts.
    engine_device : str, optional
        The engine's name of it, where that is another one, such as "emulated".
    """

    def __init__(
        self,
        name: str,
        mem_capacity: Any = None,
        flops: Any = None,
        *,
        engine_device: str | None = None,
    ) -> None:
        self.name = name
        self.engine_device = engine_device or name
        self.mem_capacity = mem_capacity
        self.flops = flops
        self.dev = torch.device(name)
        self.device_type = DeviceType.convert(self.dev.type)
        self.compressed_device = TorchCompressedDevice(self)
        self.links: dict[Any, Any] = {}

    def add_link(self, link: TorchLink) -> None:
        """Keep a link for scripts that ask for it."""
        self.links[link.b if link.a is self else link.a] = link

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        pin_memory: bool | None = None,
        name: str | None = None,
    ) -> TorchTensor:
        """Return a tensor of no particular content; `dtype` is NumPy's."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        pins = bool(pin_memory) and self.device_type is DeviceType.CPU and torch.cuda.is_available()
        data = torch.empty(shape, dtype=kind, pin_memory=pins, device=self.dev)
        return TorchTensor(tuple(shape), kind, data, self, name or "")

    def delete(self, tensor: TorchTensor) -> None:
        """Let a tensor's memory go."""
        tensor.delete()

    def synchronize(self) -> None:
        """Wait for a CUDA device."""
        if self.device_type is DeviceType.CUDA:
            torch.cuda.synchronize(self.dev)

    def mem_stats(self) -> tuple[int, int]:
        """Return bytes in use and at most: the allocator's of a GPU, the process's of the CPU."""
        if self.device_type is DeviceType.CUDA:
            return torch.cuda.memory_allocated(self.dev), torch.cuda.max_memory_allocated(self.dev)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return pages * resource.getpagesize(), peak

    def print_stats(self, output_file: str | None = None) -> tuple[int, int]:
        """Print what `mem_stats` returns, and append it to a file if one is named."""
        current, peak = self.mem_stats()
        text = (
            f"TorchDevice: {self.name}\n  cur_mem: {current / GB:.4f} GB,  "
            f"peak_mem: {peak / GB:.4f} GB\n"
        )
        if output_file is None:
            print(text, end="")
        else:
            with open(output_file, "a", encoding="utf-8") as file:
                file.write(text)
        return current, peak

    def __str__(self) -> str:
        return f"TorchDevice(name={self.name})"


class TorchCompressedDevice:
    """What stands for a device whose tensors are in 4 bits."""

    def __init__(self, base_device: Any) -> None:
        self.name = "compressed"
        self.device_type = DeviceType.COMPRESSED
        self.base_device = base_device


class TorchDisk:
    """A folder. It is made where it is missing.

    Parameters
    ----------
    path : str
        The folder.
    mem_capacity, cuda_id, num_copy_threads : optional
        Kept for scripts.
    """

    def __init__(
        self, path: str, mem_capacity: Any = None, cuda_id: int = 0, num_copy_threads: int = 4
    ) -> None:
        self.name = str(path)
        self.path = str(local_path(path).absolute())
        self.mem_capacity = mem_capacity
        self.cuda_id = cuda_id
        self.num_copy_threads = num_copy_threads
        self.device_type = DeviceType.DISK
        self.compressed_device = TorchCompressedDevice(self)
        self.links: dict[Any, Any] = {}
        self._count = 0
        if Path(self.path).exists() and not Path(self.path).is_dir():
            raise DeviceError(
                f"[TorchDisk] {path} is a file; allowed: a folder; name another --offload-dir"
            )
        with made_folder(Path(self.path)):
            pass

    def add_link(self, link: TorchLink) -> None:
        """Keep a link for scripts that ask for it."""
        self.links[link.b if link.a is self else link.a] = link

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        pin_memory: bool | None = None,
        name: str | None = None,
    ) -> TorchTensor:
        """Return a tensor in a file of its own in the folder, which `delete` removes."""
        self._count += 1
        file = Path(self.path) / (name or f"t_{id(self):x}_{self._count}")
        np.lib.format.open_memmap(file, mode="w+", shape=tuple(shape), dtype=dtype)
        return TorchTensor(tuple(shape), np.dtype(dtype), file, self, file.name)

    def delete(self, tensor: TorchTensor) -> None:
        """Remove a tensor's file."""
        tensor.delete()

    def synchronize(self) -> None:
        """Do nothing: nothing is under way."""

    def close_copy_threads(self) -> None:
        """Do nothing: there are none."""

    def mem_stats(self) -> tuple[int, int]:
        """Return the bytes of the folder's files, twice."""
        found = sum(file.stat().st_size for file in Path(self.path).glob("*") if file.is_file())
        return found, found

    def print_stats(self) -> tuple[int, int]:
        """Print them."""
        current, peak = self.mem_stats()
        print(f"TorchDisk: {self.path}\n  cur_mem: {current / GB:.4f} GB")
        return current, peak


class TorchMixedDevice:
    """What stands for several places at once, in the order GPU, CPU, disk."""

    def __init__(self, base_devices: list[Any]) -> None:
        self.name = "mixed"
        self.device_type = DeviceType.MIXED
        self.base_devices = base_devices


@dataclasses.dataclass(eq=False)
class TorchLink:
    """Two devices and the bandwidths between them, bytes a second; kept for scripts."""

    a: Any
    b: Any
    a_to_b_bandwidth: float
    b_to_a_bandwidth: float

    def io_time(self, src: Any, dst: Any, size: float) -> float:
        """Return the seconds that so many bytes take."""
        return size / (self.a_to_b_bandwidth if src is self.a else self.b_to_a_bandwidth)


def _array_of(tensor: TorchTensor, indices: Any) -> Any:
    data = (
        np.load(tensor.data, mmap_mode="r+", allow_pickle=False)
        if isinstance(tensor.data, Path)
        else tensor.data
    )
    return data if indices is None else data[indices]


def general_copy(dst: TorchTensor, dst_indices: Any, src: TorchTensor, src_indices: Any) -> None:
    """Copy a part of one tensor to a part of another, wherever they are; done on return."""
    target, source = _array_of(dst, dst_indices), _array_of(src, src_indices)
    if isinstance(target, torch.Tensor):
        target.copy_(source if isinstance(source, torch.Tensor) else torch.tensor(source))
    else:
        target[...] = source.cpu().numpy() if isinstance(source, torch.Tensor) else source


def fix_recursive_import() -> None:
    """Do nothing: there is no recursive import."""


@dataclasses.dataclass(frozen=True)
class ExecutionEnv:
    """The devices of a run; ``gpu`` is the CPU where there is no GPU."""

    gpu: Any = None
    cpu: Any = None
    disk: Any = None
    mixed: Any = None

    @classmethod
    def create(cls, offload_dir: str, device: str = "auto") -> ExecutionEnv:
        """Return the devices of this machine.

        Parameters
        ----------
        offload_dir : str
            The folder for what lies on the disk; it is made where it is missing.
        device : str
            As for `hybridgen.LLM`: "auto" is the first CUDA device, or the CPU.
        """
        if device == "auto":
            device = "cuda:0" if torch.cuda.device_count() else "cpu"
        name = device if device.startswith("cuda") else "cpu"
        gpu = TorchDevice(name, engine_device=device)
        cpu = TorchDevice("cpu")
        disk = TorchDisk(offload_dir)
        return cls(gpu=gpu, cpu=cpu, disk=disk, mixed=TorchMixedDevice([gpu, cpu, disk]))

    def close_copy_threads(self) -> None:
        """Do nothing: the engine has no threads of its own between two runs."""


Env = ExecutionEnv
"""The name that it had before February 2023."""
