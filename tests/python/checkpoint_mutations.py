# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to a checkpoint's folder: one mutation, sometimes two, of one of its files.

JSON files are changed as values (types swapped, huge and odd numbers, fields deleted, renamed,
nested) or as text (cut, bits flipped, duplicate fields); weights in their header (shapes, dtypes,
overlapping offsets, names) or as bytes.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    2**31 - 1,
    2**31,
    2**59 + 4,
    2**63,
    2**64,
    10**400,
    0.0,
    -0.5,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "x",
    "auto",
    "\ud800",
    "\x00",
    "\u202e\U0001f600",
    "../../etc/passwd",
    "x" * 5000,
    [],
    [[]],
    [None, "x", 3],
    list(range(300)),
    {},
    {"": None},
    {"rope_type": "linear"},
    {"a": {"b": {"c": [1]}}},
]


def mutate(folder: Path, seed: int) -> str:
    """Damage a folder in place; returns what was done, for the message of a failing test."""
    draw = random.Random(seed)
    done = []
    for _ in range(1 + (draw.random() < 0.2)):
        files = sorted(file for file in folder.iterdir() if file.is_file())
        # config.json decides most, so it is hit most.
        weights = [4 if file.name == "config.json" else 2 for file in files]
        file = draw.choices(files, weights)[0]
        if file.suffix == ".json" and draw.random() < 0.85:
            done.append(_mutate_json(file, draw))
        elif file.suffix == ".safetensors" and draw.random() < 0.85:
            done.append(_mutate_safetensors(file, draw))
        else:
            done.append(_mutate_bytes(file, draw))
    return f"seed {seed}: {'; '.join(done)}"


def _mutate_json(file: Path, draw: random.Random) -> str:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return _mutate_bytes(file, draw)
    places = _places(content)
    if not places:
        return _mutate_bytes(file, draw)
    # Big vocabularies would drown everything else.
    shallow = [place for place in places if len(place[2]) <= 2]
    parent, key, path = draw.choice(shallow if draw.random() < 0.7 else places)
    kind = draw.choice(["odd", "odd", "odd", "delete", "rename", "nest", "copy", "near", "twice"])
    if kind == "odd":
        parent[key] = copy.deepcopy(draw.choice(ODD_VALUES))
    elif kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw.choice(["", "x", str(key) + " ", str(key).upper()])] = parent.pop(key)
    elif kind == "nest":
        for _ in range(draw.choice([1, 3, 600])):
            parent[key] = {"a": parent[key]} if draw.random() < 0.5 else [parent[key]]
    elif kind == "copy":
        other, name, _ = draw.choice(places)
        parent[key] = copy.deepcopy(other[name])
    elif kind == "near" and isinstance(parent[key], int | float):
        parent[key] = draw.choice([parent[key] + 1, parent[key] * 2, -parent[key], parent[key] / 3])
    try:
        text = json.dumps(content)
    except RecursionError:
        text = "[" * 5000
    if kind == "twice" and isinstance(content, dict) and content:
        name = draw.choice(sorted(content))
        odd = json.dumps(draw.choice(ODD_VALUES[:30]))
        text = f"{text[:-1]}, {json.dumps(name)}: {odd}}}"
    file.write_bytes(text.replace("\\ud800", draw.choice(["\\ud800", "?"])).encode())
    return f"{file.name}: {kind} {'.'.join(map(str, path))[:80]}"


def _places(content: Any) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Return (parent, key, path) of every value below, a sample of long containers only."""
    found: list[tuple[Any, Any, tuple[Any, ...]]] = []
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(content, ())]
    while waiting and len(found) < 3000:
        parent, path = waiting.pop()
        keys: list[Any] = []
        if isinstance(parent, dict):
            keys = list(parent)
        elif isinstance(parent, list):
            keys = list(range(len(parent)))
        for key in [*keys[:40], *keys[-5:]] if len(keys) > 45 else keys:
            found.append((parent, key, (*path, key)))
            waiting.append((parent[key], (*path, key)))
    return found


def _mutate_safetensors(file: Path, draw: random.Random) -> str:
    data = file.read_bytes()
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        names = sorted(name for name in header if name != "__metadata__")
        entry = header[draw.choice(names)]
        # What was damaged before is damaged further as bytes.
        for name in names:
            list(header[name]["shape"])
            _, _ = header[name]["data_offsets"]
    except (ValueError, TypeError, struct.error, IndexError, KeyError):
        return _mutate_bytes(file, draw)
    kind = draw.choice(
        [
            "dtype",
            "shape",
            "offsets",
            "overlap",
            "name",
            "delete",
            "odd",
            "size",
            "metadata",
            "extra",
        ]
    )
    if kind == "dtype":
        entry["dtype"] = draw.choice(["F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "X", "", 7])
    elif kind == "shape":
        entry["shape"] = draw.choice(
            [[], [0], [1], list(entry["shape"])[::-1], [2**63], [2**32, 2**32], [-1], "x", [1.5]]
        )
    elif kind == "offsets":
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = draw.choice(
            [[end, begin], [begin, end + 4], [begin + 1, end + 1], [2**63, 2**64], [0, 0], [begin]]
        )
    elif kind == "overlap":
        entry["data_offsets"] = list(header[draw.choice(names)]["data_offsets"])
    elif kind == "name":
        name = draw.choice(names)
        other = draw.choice(["", "x", name + "\x00", name.upper(), "\u202e" + name, "x" * 5000])
        header[other] = header.pop(name)
    elif kind == "delete":
        del header[draw.choice(names)]
    elif kind == "odd":
        header[draw.choice(names)] = copy.deepcopy(draw.choice(ODD_VALUES[:20] + ODD_VALUES[28:]))
    elif kind == "metadata":
        header["__metadata__"] = draw.choice([{}, {"format": "tf"}, {"format": 5}, 5, None])
    elif kind == "extra":
        header["more"] = copy.deepcopy(entry)
    text = json.dumps(header).encode()
    shown = (
        draw.choice([0, 1, len(text) + 1, 2**40, 2**63, 2**64 - 1]) if kind == "size" else len(text)
    )
    file.write_bytes(struct.pack("<Q", shown) + text + data[8 + size :])
    return f"{file.name}: {kind}"


def _mutate_bytes(file: Path, draw: random.Random) -> str:
    data = bytearray(file.read_bytes())
    kind = draw.choice(["cut", "flip", "flip", "insert", "empty", "remove"])
    changes: dict[str, Callable[[], object]] = {
        "cut": lambda: data.__delitem__(slice(draw.randrange(len(data) + 1), None)),
        "insert": lambda: data.__setitem__(
            slice(*[draw.randrange(len(data) + 1)] * 2), b"\xff\x00{"
        ),
        "empty": data.clear,
    }
    if kind == "remove":
        file.unlink()
        return f"{file.name}: remove"
    if kind == "flip":
        # The beginning holds what is read as structure.
        for _ in range(draw.choice([1, 8, 200]) if data else 0):
            data[draw.randrange(min(len(data), draw.choice([16, 2000, len(data)])))] ^= (
                1 << draw.randrange(8)
            )
    else:
        changes[kind]()
    file.write_bytes(bytes(data))
    return f"{file.name}: {kind} bytes"
