# SPDX-License-Identifier: Apache-2.0
"""Where a tensor lies in its file, for those that are read there whenever they are needed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@functools.lru_cache(maxsize=1)
def _header(file: Path, _written: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """Return where a safetensors file's data begin, and its header, once per content."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return 8 + size, json.loads(stream.read(size))


def offset_of(file: Path, name: str, dtype: str) -> int | None:
    """Return the offset of a tensor in a safetensors file; None if it is not there in ``dtype``.

    Parameters
    ----------
    file : Path
        A file that was opened already, so that its header is known to be sound.
    name, dtype : str
        The tensor's name there, and the dtype that it has to have.
    """
    if file.suffix != ".safetensors":
        return None
    status = file.stat()
    begin, header = _header(file, (status.st_mtime_ns, status.st_ino))
    entry = header.get(name)
    if entry is None or entry["dtype"] != _DTYPES[dtype]:
        return None
    return begin + int(entry["data_offsets"][0])
