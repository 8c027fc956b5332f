# SPDX-License-Identifier: Apache-2.0
"""GGUF files, versions 2 and 3, little-endian, one file or split: metadata and where tensors lie.

Nothing is believed that the file's size contradicts: counts, lengths and offsets are checked
before anything is allocated or read for them. Headers and tensors are memory-mapped.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import torch

from . import _core
from ._checks import brief, plain
from .errors import CheckpointError, UnsupportedModelError

AnyPath = TypeVar("AnyPath", bound=PurePath)

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = 65535
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

# Codes of values, as the format numbers them.
_BOOL, _STRING, _ARRAY, _FLOAT32 = 7, 8, 9, 6
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    _FLOAT32: "<f4",
    _BOOL: "|u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_UNREAD_TYPES = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


@dataclass(frozen=True)
class TensorType:
    """A type of tensors that is read: blocks of so many values in so many bytes."""

    id: int
    name: str
    block_values: int
    block_bytes: int
    bits: int
    """Of a code; 0 for plain numbers."""
    group: int
    """Values of a scale."""
    has_minima: bool
    """Whether a value is scale * code + minimum."""


_TYPES = {entry["id"]: TensorType(**entry) for entry in _core.gguf_formats()}


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies.

    Parameters
    ----------
    file : Path
        In it.
    type : TensorType
        How its rows are stored.
    shape : tuple of int
        As torch has it: the last dimension is contiguous.
    offset, size : int
        Bytes, from the start of the file.
    """

    file: Path
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int

    def rows(self) -> torch.Tensor:
        """Return its bytes, uint8 [rows, bytes of a row], mapped from the file."""
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb") as file:
            # A private mapping: torch takes no memory that cannot be written.
            mapped = mmap.mmap(
                file.fileno(),
                self.offset - start + self.size,
                access=mmap.ACCESS_COPY,
                offset=start,
            )
        data = np.frombuffer(mapped, np.uint8, self.size, self.offset - start)
        count = 1
        for extent in self.shape[:-1]:
            count *= extent
        return torch.from_numpy(data).view(count, -1)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF model says of itself.

    Parameters
    ----------
    path : Path
        The file, or the first of a split one.
    metadata : dict
        By key: numbers, booleans, strings, lists of strings, arrays of numbers.
    tensors : dict of GgufTensor
        By name, of all files of a split one.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Return what a GGUF file, or the split one that it is a part of, says of itself.

    Raises
    ------
    CheckpointError
        If a file is no GGUF, damaged, cut, or missing among the parts of a split one.
    UnsupportedModelError
        For versions, byte orders and types of tensors that are not read, by name.
    """
    parts = _parts_of(path)
    first = _read_part(parts[0])
    if len(parts) == 1:
        _require_split(parts[0], first.metadata, 0, 1)
        return first
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        opened = first if number == 0 else _read_part(part)
        _require_split(part, opened.metadata, number, len(parts))
        twice = tensors.keys() & opened.tensors.keys()
        if twice:
            raise _damaged(part, f"holds {plain(min(twice))}, which a part before it has too")
        tensors |= opened.tensors
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise _damaged(
            parts[0], f"says split.tensors.count is {brief(expected)}; there are {len(tensors)}"
        )
    return GgufFile(parts[0], first.metadata, tensors)


def first_part(path: AnyPath) -> AnyPath:
    """Return the file that stands for a model: of a split one the first part, by its name."""
    match = _SPLIT_NAME.fullmatch(path.name)
    return path if match is None else path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf")


def names_of_parts(path: AnyPath) -> list[AnyPath]:
    """Return the files of a model by the name of any of them; CheckpointError for one of none."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    parts = [
        path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf")
        for number in range(1, int(match[3]) + 1)
    ]
    if not parts:
        raise _damaged(path, "is named as one of no parts")
    return parts


def _parts_of(path: Path) -> list[Path]:
    parts = names_of_parts(path)
    for part in parts:
        if part != path and not part.is_file():
            raise CheckpointError(
                f"[load_model] {part.name} is not there, which {path.name} is one of {len(parts)} "
                f"parts with; put all parts into {path.parent}"
            )
    return parts


def _require_split(part: Path, metadata: dict[str, Any], number: int, count: int) -> None:
    said = metadata.get("split.no", 0), metadata.get("split.count", 0) or 1
    if said != (number, count):
        raise CheckpointError(
            f"[load_model] {part} says that it is part {brief(said[0])} (from 0) of "
            f"{brief(said[1])}; its name says {number} of {count}; give the parts the names that "
            "they were made with: NAME-00001-of-00003.gguf"
        )


def _damaged(file: PurePath, what: str) -> CheckpointError:
    return CheckpointError(
        f"[load_model] {file} {what}; the file is damaged or incomplete, download it again"
    )


def _read_part(file: Path) -> GgufFile:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _Header(file, data).read()
    # An empty file cannot be mapped.
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError | UnsupportedModelError):
            raise
        raise CheckpointError(f"[load_model] cannot read {file}: {error}") from error


class _Header:
    """Reads the header of one file from its beginning on."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self._file, self._data, self._size, self._at = file, data, len(data), 0

    def read(self) -> GgufFile:
        self._read_version()
        tensor_count, key_count = self._number("<u8"), self._number("<u8")
        # Of a tensor: lengths of its name and shape, type, offset. Of a value: key, kind, a byte.
        self._require_room(tensor_count, 24, "tensors")
        self._require_room(key_count, 13, "metadata values")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text("a key", _MAX_KEY_BYTES)
            if key in metadata:
                raise _damaged(self._file, f"has the key {plain(key)} twice")
            metadata[key] = self._value(key, self._number("<u4"))
        stated = [self._tensor() for _ in range(tensor_count)]
        return GgufFile(self._file, metadata, self._placed(stated, self._alignment(metadata)))

    def _read_version(self) -> None:
        if self._data[:4] != MAGIC:
            raise _damaged(self._file, f"begins with {bytes(self._data[:4])!r}, no GGUF file")
        self._at = 4
        version = self._number("<u4")
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"[load_model] {self._file} is big-endian; allowed: little-endian GGUF; convert it "
                "with llama.cpp's gguf_convert_endian.py"
            )
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"[load_model] {self._file} has GGUF version {version}; allowed: 2, 3; convert the "
                "model again with a llama.cpp of today"
            )

    # ------------------------------------------------------------------------------------ pieces

    def _require_room(self, count: int, size: int, what: str) -> None:
        if count > (self._size - self._at) // size:
            raise _damaged(
                self._file,
                f"has {self._size} bytes; at byte {self._at} it says that {count} {what} follow",
            )

    def _take(self, size: int, what: str) -> bytes:
        self._require_room(size, 1, f"bytes of {what}")
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self, kind: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self._take(dtype.itemsize, "a number"), dtype)[0].item()

    def _length(self) -> int:
        (length,) = struct.unpack("<Q", self._take(8, "a length"))
        return int(length)

    def _text(self, what: str, limit: int | None = None) -> str:
        length = self._length()
        if limit is not None and length > limit:
            raise _damaged(self._file, f"has {what} of {length} bytes at byte {self._at}")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self._file, f"has {what} that is not UTF-8 ({error.reason})") from error

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._text(plain(key))
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise _damaged(self._file, f"has a value of kind {kind} for {plain(key)}")
        if kind == _FLOAT32:
            number = np.frombuffer(self._take(4, plain(key)), "<f4")[0]
            return float(str(number))  # the shortest decimal that means this float32
        number = self._number(_SCALARS[kind])
        return bool(number) if kind == _BOOL else number

    def _array(self, key: str) -> Any:
        kind, count = self._number("<u4"), self._length()
        if kind == _STRING:
            self._require_room(count, 8, f"strings of {plain(key)}")
            return [self._text(plain(key)) for _ in range(count)]
        if kind not in _SCALARS:
            raise _damaged(self._file, f"has an array of kind {kind} for {plain(key)}")
        dtype = np.dtype(_SCALARS[kind])
        self._require_room(count, dtype.itemsize, f"numbers of {plain(key)}")
        return np.frombuffer(self._take(count * dtype.itemsize, plain(key)), dtype)

    def _alignment(self, metadata: dict[str, Any]) -> int:
        found = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        is_power = (
            isinstance(found, int) and 0 < found <= _MAX_ALIGNMENT and not found & (found - 1)
        )
        if not is_power or isinstance(found, bool):
            raise _damaged(self._file, f"has general.alignment {brief(found)}, no power of two")
        return found

    # ----------------------------------------------------------------------------------- tensors

    def _tensor(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        """Return name, type, shape and the offset behind the header."""
        name = self._text("a tensor's name", _MAX_KEY_BYTES)
        dimensions = self._number("<u4")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self._file, f"has {plain(name)} with {dimensions} dimensions")
        shape = tuple(self._length() for _ in range(dimensions))[::-1]
        type_id, offset = self._number("<u4"), self._length()
        if type_id not in _TYPES:
            known = ", ".join(found.name for found in _TYPES.values())
            named = _UNREAD_TYPES.get(type_id, f"number {type_id}")
            raise UnsupportedModelError(
                f"[load_model] {plain(name)} in {self._file} has the type {named}; allowed: "
                f"{known}; take the same model in one of these (Q4_K_M files hold Q4_K and Q6_K)"
            )
        return name, _TYPES[type_id], shape, offset

    def _placed(
        self, stated: list[tuple[str, TensorType, tuple[int, ...], int]], alignment: int
    ) -> dict[str, GgufTensor]:
        """Return the tensors, each found to lie in the file, whole and apart from the others."""
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in stated:
            if name in tensors:
                raise _damaged(self._file, f"has the tensor {plain(name)} twice")
            elements = 1
            for extent in shape:
                elements *= extent
            if elements == 0 or shape[-1] % kind.block_values:
                raise _damaged(
                    self._file,
                    f"has {plain(name)} of shape {list(shape)} in {kind.name}, whose rows are "
                    f"blocks of {kind.block_values}",
                )
            size = elements // kind.block_values * kind.block_bytes
            if offset % alignment or start + offset + size > self._size:
                raise _damaged(
                    self._file,
                    f"has {self._size} bytes, and {plain(name)} of {size} bytes begins {offset} "
                    f"behind byte {start}",
                )
            tensors[name] = GgufTensor(self._file, kind, shape, start + offset, size)
        _refuse_overlaps(self._file, tensors)
        return tensors


def _refuse_overlaps(file: Path, tensors: dict[str, GgufTensor]) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise _damaged(file, f"has {plain(before)} and {plain(name)} in the same bytes")
        end, before = tensor.offset + tensor.size, name
