# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to a GGUF file: in its structure (counts, lengths, kinds, offsets), or its bytes.

The file is taken apart into pieces first, so that what is changed is what it is meant to be, and
everything else still stands where it should.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ODD_NUMBERS = [0, 1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


@dataclass
class Value:
    """One entry of the metadata: key, kind and the bytes behind them."""

    key: bytes
    kind: int
    payload: bytes


@dataclass
class Tensor:
    """What the header says of one tensor."""

    name: bytes
    shape: list[int]
    kind: int
    offset: int


@dataclass
class Parts:
    """A file in pieces."""

    version: int
    values: list[Value]
    tensors: list[Tensor]
    data: bytes
    counts: list[int] = field(default_factory=list)
    """Of tensors and values, if the header is to say something else."""

    def bytes(self) -> bytes:
        """Put the pieces together again."""
        counts = self.counts or [len(self.tensors), len(self.values)]
        head = struct.pack("<4sIQQ", b"GGUF", self.version, *counts)
        for value in self.values:
            head += _string(value.key) + struct.pack("<I", value.kind) + value.payload
        for tensor in self.tensors:
            head += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
            head += b"".join(struct.pack("<Q", extent % 2**64) for extent in tensor.shape)
            head += struct.pack("<IQ", tensor.kind, tensor.offset % 2**64)
        return head + bytes(-len(head) % 32) + self.data


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def take_apart(data: bytes) -> Parts:
    """Return the pieces of a sound file."""
    _, version, tensor_count, value_count = struct.unpack_from("<4sIQQ", data)
    at = 24

    def string() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return data[at - length : at]

    def payload(kind: int) -> bytes:
        nonlocal at
        start = at
        if kind == STRING:
            string()
        elif kind == ARRAY:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            if inner == STRING:
                for _ in range(count):
                    string()
            else:
                at += count * SCALAR_SIZES[inner]
        else:
            at += SCALAR_SIZES[kind]
        return data[start:at]

    values = []
    for _ in range(value_count):
        key = string()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        values.append(Value(key, kind, payload(kind)))
    tensors = []
    for _ in range(tensor_count):
        name = string()
        (dimensions,) = struct.unpack_from("<I", data, at)
        shape = list(struct.unpack_from(f"<{dimensions}Q", data, at + 4))
        at += 4 + 8 * dimensions
        kind, offset = struct.unpack_from("<IQ", data, at)
        at += 12
        tensors.append(Tensor(name, shape, kind, offset))
    at += -at % 32
    return Parts(version, values, tensors, data[at:])


def mutate_gguf(file: Path, seed: int) -> str:
    """Damage a file in place; returns what was done, for the message of a failing test."""
    draw = random.Random(seed)
    data = file.read_bytes()
    done = []
    for _ in range(1 + (draw.random() < 0.2)):
        try:
            parts = take_apart(data) if draw.random() < 0.85 else None
        except (struct.error, KeyError, OverflowError, MemoryError):
            parts = None
        if parts is not None and len(parts.tensors) < 100 and parts.values and parts.tensors:
            name = draw.choice(sorted(_STRUCTURE))
            done.append(f"{name} {_STRUCTURE[name](parts, draw)}")
            data = parts.bytes()
        else:
            data, what = _damaged_bytes(data, draw)
            done.append(what)
    file.write_bytes(data)
    return f"seed {seed}: {'; '.join(done)}"


def _counts(parts: Parts, draw: random.Random) -> str:
    parts.counts = [len(parts.tensors), len(parts.values)]
    place = draw.randrange(2)
    parts.counts[place] = draw.choice([*ODD_NUMBERS, parts.counts[place] + draw.choice([-1, 1])])
    return str(parts.counts)


def _scalar(parts: Parts, draw: random.Random) -> str:
    value = draw.choice([value for value in parts.values if value.kind in SCALAR_SIZES])
    size = SCALAR_SIZES[value.kind]
    odd = [struct.pack("<Q", number)[:size] for number in ODD_NUMBERS]
    odd += [bytes(size), b"\xff" * size, struct.pack("<f", float("nan"))[:size].ljust(size, b"\0")]
    value.payload = draw.choice([*odd, draw.randbytes(size)])
    return value.key.decode(errors="replace")


def _kind(parts: Parts, draw: random.Random) -> str:
    value = draw.choice(parts.values)
    value.kind = draw.choice([*range(14), 2**32 - 1])
    return f"{value.key!r} is {value.kind}"


def _length(parts: Parts, draw: random.Random) -> str:
    """A string or array that says it is longer or shorter than it is, or an array of odd kinds."""
    value = draw.choice([value for value in parts.values if value.kind in (STRING, ARRAY)])
    if value.kind == ARRAY and draw.random() < 0.4:
        inner = draw.choice([*range(14), 2**32 - 1])
        value.payload = struct.pack("<I", inner) + value.payload[4:]
        return f"{value.key!r} of {inner}"
    at = 4 if value.kind == ARRAY else 0
    (length,) = struct.unpack_from("<Q", value.payload, at)
    length = draw.choice([*ODD_NUMBERS, length + draw.choice([-1, 1, 8])]) % 2**64
    value.payload = value.payload[:at] + struct.pack("<Q", length) + value.payload[at + 8 :]
    return f"{value.key!r} is {length} long"


def _nested(parts: Parts, draw: random.Random) -> str:
    value = draw.choice(parts.values)
    depth = draw.choice([1, 3, 2000])
    value.kind = ARRAY
    value.payload = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", 4, 0)
    return f"{value.key!r} {depth} deep"


def _entries(parts: Parts, draw: random.Random) -> str:
    """Keys that are missing, twice, renamed or swapped."""
    kind = draw.choice(["delete", "twice", "rename", "swap"])
    value = draw.choice(parts.values)
    if kind == "delete":
        parts.values.remove(value)
    elif kind == "twice":
        parts.values.append(value)
    elif kind == "rename":
        value.key = draw.choice(
            [b"", b"\xff\xfe", value.key + b"x", b"llama.logit_scale", b"k" * 70000]
        )
    else:
        other = draw.choice(parts.values)
        value.key, other.key = other.key, value.key
    return f"{kind} {value.key[:40]!r}"


def _shape(parts: Parts, draw: random.Random) -> str:
    tensor = draw.choice(parts.tensors)
    tensor.shape = draw.choice(
        [
            [],
            [0],
            tensor.shape[::-1],
            [*tensor.shape, 1],
            [1] * 9,
            [2**32, 2**32],
            [2**63],
            [draw.choice(ODD_NUMBERS), *tensor.shape[1:]],
            [extent + 1 for extent in tensor.shape],
        ]
    )
    return f"{tensor.name!r} {tensor.shape}"


def _place(parts: Parts, draw: random.Random) -> str:
    tensor, other = draw.choice(parts.tensors), draw.choice(parts.tensors)
    tensor.offset = draw.choice(
        [*ODD_NUMBERS, other.offset, tensor.offset + 1, tensor.offset + 32, len(parts.data)]
    )
    return f"{tensor.name!r} at {tensor.offset}"


def _type(parts: Parts, draw: random.Random) -> str:
    tensor = draw.choice(parts.tensors)
    tensor.kind = draw.choice([*range(42), 2**31, 2**32 - 1])
    return f"{tensor.name!r} of {tensor.kind}"


def _tensors(parts: Parts, draw: random.Random) -> str:
    kind = draw.choice(["delete", "twice", "rename", "more"])
    tensor = draw.choice(parts.tensors)
    if kind == "delete":
        parts.tensors.remove(tensor)
    elif kind == "twice":
        parts.tensors.append(tensor)
    elif kind == "rename":
        tensor.name = draw.choice(
            [
                b"",
                b"\xff",
                tensor.name.upper(),
                b"rope_freqs.weight",
                draw.choice(parts.tensors).name,
            ]
        )
    else:
        parts.tensors.append(Tensor(b"rope_freqs.weight", [4], 0, tensor.offset))
    return f"{kind} {tensor.name!r}"


def _version(parts: Parts, draw: random.Random) -> str:
    parts.version = draw.choice([0, 1, 2, 4, 0x03000000, 2**32 - 1])
    return str(parts.version)


_STRUCTURE: dict[str, Callable[[Parts, random.Random], str]] = {
    "counts": _counts,
    "entries": _entries,
    "kind": _kind,
    "length": _length,
    "nested": _nested,
    "place": _place,
    "scalar": _scalar,
    "scalar too": _scalar,
    "shape": _shape,
    "tensors": _tensors,
    "type": _type,
    "version": _version,
}


def _damaged_bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    kind = draw.choice(["cut", "flip", "flip", "insert", "shuffle"])
    damaged = bytearray(data)
    at = draw.randrange(len(data) + 1)
    if kind == "cut":
        del damaged[at:]
    elif kind == "insert":
        damaged[at:at] = draw.randbytes(draw.choice([1, 8, 32]))
    elif kind == "shuffle" and len(data) > 128:
        piece = len(data) // 4
        pieces = [data[i : i + piece] for i in range(0, len(data), piece)]
        draw.shuffle(pieces)
        damaged = bytearray(b"".join(pieces))
    elif data:
        for _ in range(draw.choice([1, 8, 200])):
            place = draw.randrange(min(len(data), draw.choice([24, 2000, len(data)])))
            damaged[place] ^= 1 << draw.randrange(8)
    return bytes(damaged), f"{kind} bytes"
