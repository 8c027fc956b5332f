# SPDX-License-Identifier: Apache-2.0
"""Where a tensor lies in its file, for those that are read there whenever they are needed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .np_weights import NpFolder
from .weight_files import open_weights

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@functools.lru_cache(maxsize=1)
def _header(file: Path, _written: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """Return where a safetensors file's data begin, and its header, once per content."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return 8 + size, json.loads(stream.read(size))


def place_of(file: Path, name: str, dtype: str) -> tuple[Path, int] | None:
    """Return the file that a tensor lies in as it is, and its offset; None if there is none.

    Parameters
    ----------
    file : Path
        A safetensors file, or FlexGen's folder of NumPy files; opened already, so that its headers
        are known to be sound.
    name, dtype : str
        The tensor's name there, and the dtype that it has to have.
    """
    if file.is_dir():
        return NpFolder(file).place(name, _DTYPES[dtype])
    if file.suffix != ".safetensors":
        return None
    status = file.stat()
    begin, header = _header(file, (status.st_mtime_ns, status.st_ino))
    entry = header.get(name)
    if entry is None or entry["dtype"] != _DTYPES[dtype]:
        return None
    return file, begin + int(entry["data_offsets"][0])


def has_matrices_as_used(file: Path, dtype: str) -> bool:
    """Say whether a file has all its matrices of this dtype, where a CPU can read them in place.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    if file.suffix != ".safetensors":
        return False
    with open_weights(file):  # its header is sound
        pass
    status = file.stat()
    begin, header = _header(file, (status.st_mtime_ns, status.st_ino))
    return all(
        entry["dtype"] == _DTYPES[dtype]
        and (begin + int(entry["data_offsets"][0])) % _BYTES[dtype] == 0
        for name, entry in header.items()
        if name != "__metadata__" and len(entry["shape"]) > 1
    )
