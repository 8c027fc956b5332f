# SPDX-License-Identifier: Apache-2.0
"""Weight files, safetensors or pickled, behind one door: names, stored dtypes, single tensors.

Files are memory-mapped, and pickled ones are read with ``weights_only``: nothing in them is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .np_weights import NpFolder

READABLE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FLOATING = READABLE | {"F64": torch.float64}
"""Dtypes of weights by their names in safetensors; of these float64 cannot be read."""
PACKED = {
    "I32": torch.int32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Further dtypes of the tensors that a quantised layer lies in."""
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class OpenFile:
    """A weight file while it is open: the names in it, in order, and ways to read one tensor."""

    names: tuple[str, ...]
    dtype: Callable[[str], str]
    """Returns the stored dtype of a tensor, in the spelling of safetensors where it has one."""
    read: Callable[[str], torch.Tensor]
    """Returns a tensor of numbers."""
    read_packed: Callable[[str], torch.Tensor]
    """Returns a tensor of any dtype, for layers whose numbers are packed."""
    shape: Callable[[str], tuple[int, ...]]
    """Returns a tensor's shape, without its data."""


@contextmanager
def open_weights(file: Path) -> Iterator[OpenFile]:
    """Open a ``.safetensors`` or ``.bin`` file, or FlexGen's folder of NumPy files, memory-mapped.

    Errors name file and tensor.
    """
    if file.is_dir():
        folder = NpFolder(file)
        yield OpenFile(
            folder.names,
            folder.dtype,
            folder.read,
            folder.read,
            lambda name: tuple(folder.read(name).shape),
        )
        return
    if file.suffix == ".bin":
        tensors = _open_pickle(file)
        yield OpenFile(
            tuple(tensors),
            lambda name: _stored_dtype(tensors[name]),
            lambda name: _checked(file, name, tensors[name], READABLE),
            lambda name: _checked(file, name, tensors[name], READABLE | PACKED),
            lambda name: tuple(getattr(tensors[name], "shape", ())),
        )
        return
    try:
        handle = safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"[load_model] cannot read {file}{_unknown_dtype(file)}: {error}; the file is damaged "
            "or incomplete, download it again"
        ) from error

    def dtype(name: str) -> str:
        return str(handle.get_slice(name).get_dtype())

    def read(name: str, allowed: Mapping[str, torch.dtype] = READABLE) -> torch.Tensor:
        if dtype(name) not in allowed:
            raise _dtype_error(file, name, dtype(name))
        return handle.get_tensor(name)

    with handle:
        names = tuple(handle.keys())
        yield OpenFile(
            names,
            dtype,
            read,
            lambda name: read(name, READABLE | PACKED),
            lambda name: tuple(handle.get_slice(name).get_shape()),
        )


def _open_pickle(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    # Torch's unpickler reports damage as almost any exception.
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"[load_model] cannot read {file}: {text}; the file is damaged, holds more than "
            "tensors, or has the format of torch before 1.6; use a safetensors version"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"[load_model] {file} holds no table of tensors by name; allowed: what "
            "torch.save(model.state_dict(), file) writes; save the model again, as safetensors"
        )
    return content


def _stored_dtype(tensor: object) -> str:
    if not isinstance(tensor, torch.Tensor):
        return type(tensor).__name__
    known = (name for name, dtype in FLOATING.items() if dtype == tensor.dtype)
    return next(known, str(tensor.dtype).removeprefix("torch."))


def _checked(
    file: Path, name: str, tensor: object, allowed: Mapping[str, torch.dtype]
) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise CheckpointError(f"[load_model] {name} in {file} is {kind}, no tensor")
    layout = str(tensor.layout).removeprefix("torch.")
    kinds = {
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "on the meta device, without data": tensor.is_meta,
        f"of layout {layout}": tensor.layout != torch.strided,
    }
    for kind, holds in kinds.items():
        if holds:
            raise CheckpointError(
                f"[load_model] {name} in {file} is {kind}; allowed: dense tensors; save the model "
                "again with dense tensors, as safetensors"
            )
    if tensor.dtype not in allowed.values():
        raise _dtype_error(file, name, str(tensor.dtype).removeprefix("torch."))
    return tensor


def _dtype_error(file: Path, name: str, stored: str) -> CheckpointError:
    way_out = (
        "convert the checkpoint once: from_pretrained(folder, dtype='float32') of transformers, "
        "then save_pretrained(new_folder)"
        if stored in ("F64", "float64")
        else "take the unquantized checkpoint"
    )
    return CheckpointError(
        f"[load_model] {name} in {file} has dtype {stored}; allowed: float32, bfloat16, float16; "
        f"{way_out}"
    )


def _unknown_dtype(file: Path) -> str:
    """Name the tensor whose dtype made the reader refuse a file, if that was the reason."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                return ""
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] not in READABLE | PACKED:
                return f" ({name} has dtype {entry['dtype']})"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return ""
