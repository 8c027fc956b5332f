# SPDX-License-Identifier: Apache-2.0
"""Which files hold a folder's weights, and in which dtype."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ._checks import brief, listed, plain
from .errors import CheckpointError
from .foreign_formats import describe_folder
from .model_folder import read_json
from .np_weights import is_np_folder
from .weight_files import FLOATING, open_weights


@dataclass(frozen=True)
class Shard:
    """One weight file and the tensors that the index looks for in it; None means all of them."""

    file: Path
    names: frozenset[str] | None = None
    dtype: str | None = None
    """What the index says of all weights, if it does."""


def find_shards(folder: Path, load_format: str) -> list[Shard]:
    """Return the weight files of a folder: one file, or those that its index names."""
    stems = {"safetensors": ["model.safetensors"], "bin": ["pytorch_model.bin"]}
    wanted = stems.get(load_format, stems["safetensors"] + stems["bin"])
    if load_format == "auto" and is_np_folder(folder):
        return [Shard(folder)]
    for name in wanted:
        if (folder / name).exists():
            return [Shard(folder / name)]
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_index(index, Path(name).suffix)
    raise CheckpointError(
        f"[load_model] there are no weights in {folder}; looked for "
        f"{', '.join(f'{name} and {name}.index.json' for name in wanted)}; "
        + (describe_folder(folder) or "pass load_format='dummy' for random weights")
    )


def _read_index(index: Path, suffix: str) -> list[Shard]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"[load_model] weight_map is {brief(weight_map)} in {index}; allowed: the file of each "
            "tensor by its name; download the checkpoint again"
        )
    by_file: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        # The name decides, not what it links to: hub snapshots consist of links to elsewhere.
        is_name = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name)
        if not is_name or not name.endswith(suffix):
            raise CheckpointError(
                f"[load_model] {index} maps {plain(tensor, 150)} to {brief(name)}; allowed: the "
                f"name of a {suffix} file in the same folder"
            )
        by_file.setdefault(name, set()).add(tensor)
    missing = [name for name in by_file if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"[load_model] {index} names files that are not there: {listed(missing)}; download "
            "the checkpoint again"
        )
    metadata = content.get("metadata")
    dtype = metadata.get("dtype") if isinstance(metadata, dict) else None
    return [
        Shard(index.parent / name, frozenset(by_file[name]), None if dtype is None else str(dtype))
        for name in sorted(by_file)
    ]


def dtype_of_weights(shards: list[Shard]) -> str:
    """Return the dtype that weights were stored in: what the index says, or the first tensor's.

    As in transformers, integers do not count; without weights it is float32.
    """
    if not shards:
        return "float32"
    if shards[0].dtype is not None:
        return shards[0].dtype.removeprefix("torch.")
    with open_weights(shards[0].file) as opened:
        for name in opened.names:
            stored = opened.dtype(name)
            if stored in FLOATING:
                return str(FLOATING[stored]).removeprefix("torch.")
    return "float32"
