# SPDX-License-Identifier: Apache-2.0
"""FlexGen's weight folders: one NumPy file per tensor, ``opt-1.3b-np/decoder.layers.0.fc1.weight``.

They are read in place, memory-mapped, and nothing in them is unpickled. A folder that is written
here appears whole or not at all, and has a config.json and the tokenizer's files beside what
FlexGen reads, so that it stands for itself.
"""

from __future__ import annotations

import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._checks import brief
from .errors import CheckpointError, DeviceError
from .opt_shapes import SHAPES, hf_config, shape_name

SUFFIX = "-np"
_POSITIONS = "decoder.embed_positions.weight"
_RENAMED = {f"decoder.layer_norm.{p}": f"decoder.final_layer_norm.{p}" for p in ("weight", "bias")}
_TENSOR = re.compile(r"(decoder|lm_head)\.[\w.]+")
_DTYPES = {"float16": "F16", "float32": "F32"}
_BESIDE = ("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt")


def is_np_folder(folder: Path) -> bool:
    """Say whether a folder holds FlexGen's weights, also where half of them are missing."""
    return (folder / _POSITIONS).is_file() or folder.name.endswith(SUFFIX)


def np_config(folder: Path) -> dict[str, Any]:
    """Return a config.json's content for a folder without one, from its name.

    Raises
    ------
    CheckpointError
        For a name that says no shape, and for Galactica, which is no OPT with ReLU.
    """
    name = shape_name(folder.name.removesuffix(SUFFIX))
    if name not in SHAPES:
        raise CheckpointError(
            f"[load_model] {folder} has no config.json, and its name is none of "
            f"{', '.join(n + SUFFIX for n in SHAPES)}; put the model's config.json beside its "
            "weights"
        )
    if name.startswith("galactica"):
        raise CheckpointError(
            f"[load_model] {folder} has no config.json, and Galactica is no OPT model with ReLU, "
            "as which FlexGen runs it; put the model's config.json beside its weights"
        )
    return hf_config(SHAPES[name])


class NpFolder:
    """The tensors of a folder by the names that a checkpoint of transformers gives them.

    Raises
    ------
    CheckpointError
        From `read`, for a file that is damaged, cut short, or holds anything but float16 or
        float32.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {
            _checkpoint_name(file.name): file
            for file in sorted(folder.iterdir())
            if _TENSOR.fullmatch(file.name) and file.is_file()
        }
        self.names = tuple(self._files)

    def dtype(self, name: str) -> str:
        """Return the stored dtype, in the spelling of safetensors."""
        stored = str(_mapped(self._files[name]).dtype)
        return _DTYPES.get(stored, stored)

    def place(self, name: str, dtype: str) -> tuple[Path, int] | None:
        """Return a tensor's file and offset, if it lies there row by row in this dtype."""
        file = self._files.get(name)
        if file is None or self.dtype(name) != dtype:
            return None
        array = _mapped(file)
        is_by_rows = array.flags.c_contiguous
        return (file, file.stat().st_size - array.nbytes) if is_by_rows else None

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor over the file's own pages."""
        return torch.from_numpy(_mapped(self._files[name]))


def _checkpoint_name(file: str) -> str:
    name = _RENAMED.get(file, file)
    return name if name.startswith("lm_head") else f"model.{name}"


def _file_name(name: str) -> str:
    back = {theirs: ours for ours, theirs in _RENAMED.items()}
    bare = name.removeprefix("model.")
    return back.get(bare, bare)


def _mapped(file: Path) -> Any:
    """Return the array of a NumPy file, mapped copy-on-write: torch wants memory it may write."""
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in readers:
                raise ValueError(f"it has version {version} of NumPy's format")
            shape, is_fortran, dtype = readers[version](stream)
            begin = stream.tell()
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"[load_model] cannot read {file}: {brief(str(error), 300)}; allowed: a NumPy array "
            "without pickled objects; convert the weights again"
        ) from error
    if dtype not in (np.dtype("<f2"), np.dtype("<f4")):
        raise CheckpointError(
            f"[load_model] {file} has dtype {brief(str(dtype))}; allowed: float16 or float32, "
            "little-endian; convert the weights again"
        )
    needed = begin + math.prod(shape) * dtype.itemsize
    if not shape or min(shape) < 1 or file.stat().st_size != needed:
        raise CheckpointError(
            f"[load_model] {file} has {file.stat().st_size} bytes for an array of shape "
            f"{brief(list(shape))}; allowed: {needed} bytes; the folder was written half, convert "
            "the weights again"
        )
    order = "F" if is_fortran else "C"
    return np.asarray(np.memmap(file, dtype, mode="c", offset=begin, shape=shape, order=order))  # type: ignore[call-overload]


@contextmanager
def new_np_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill by `write_tensor`, which is at its place after the block.

    Parameters
    ----------
    target : Path
        Must not exist; its parents are made where they are missing.

    Raises
    ------
    CheckpointError
        If something is there already.
    DeviceError
        If the system cannot write, for example because the disk is full. Nothing of this call
        stays, and what lay there before is untouched.
    """
    if target.exists():
        raise CheckpointError(
            f"[convert] {target} is there already; allowed: a new folder; move the old one away"
        )
    partial = target.with_name(f".{target.name}-{secrets.token_hex(4)}.partial")
    with made_folder(partial, removes_all=True):
        try:
            yield partial
            partial.rename(target)
        except OSError as error:
            raise DeviceError(
                f"[convert] cannot write {target}: {error.strerror or error}; free space there, or "
                "pass another --path"
            ) from error


def write_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Write one tensor of a new folder, by its name in a checkpoint of transformers."""
    # NumPy knows no bfloat16, of which float32 has every value.
    kept = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    with (folder / _file_name(name)).open("wb") as file:
        np.lib.format.write_array(file, kept.contiguous().numpy(), allow_pickle=False)


def copy_beside(source: Path, target: Path) -> None:
    """Copy what names shape, tokens and ends of a model, but no weights."""
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


@contextmanager
def made_folder(folder: Path, *, removes_all: bool = False) -> Iterator[Path]:
    """Make a folder and its parents; where the block fails, those that were made here go again.

    Parameters
    ----------
    folder : Path
        May be there already.
    removes_all : bool
        With what is in them; else only empty ones go.

    Raises
    ------
    DeviceError
        If there can be no such folder.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        raise DeviceError(
            f"[make folder] {folder}: {error.strerror or error}; allowed: a folder that files may "
            "be made in; name another one"
        ) from error
    try:
        yield folder
    except BaseException:
        if removes_all and folder in missing:
            shutil.rmtree(folder, ignore_errors=True)
        _remove(missing)
        raise


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
