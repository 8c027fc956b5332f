# SPDX-License-Identifier: Apache-2.0
"""What the answers in a folder were made of: input, model and options, as values to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._options import Options, said
from ..errors import CheckpointError
from .input_file import InputFile

FORMAT = 1

_WHOLE_BYTES = 16 << 20
_PIECES, _PIECE = 64, 64 << 10
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".gguf", ".npy")
_SUFFIXES_OF_FLEXGEN = (".weight", ".bias")

_CHANGE_NO_TEXT = {
    "cpu": ("threads", "device_threads", "numa"),
    "kv": ("dram", "cxl", "cxl_node", "disk", "placement"),
    "weights": ("device", "host", "folder", "direct"),
    "": ("max_num_seqs", "max_num_batched_tokens"),
}
"""Options that say where and how fast, by their object; text is the same with any of them."""


def manifest_of(
    source: InputFile, model: Path, options: dict[str, Any], output: dict[str, Any]
) -> dict[str, Any]:
    """Return what a folder says of its answers; all but "about" has to agree for a run to go on.

    Parameters
    ----------
    source : InputFile
        What is answered.
    model : Path
        Folder or GGUF file.
    options : dict
        Of engine and sampling, as far as text depends on them; ready for JSON.
    output : dict
        How answers are written.
    """
    return {
        "format": FORMAT,
        "about": {"input": str(source.path.resolve()), "model": str(model.resolve())},
        "input": {
            "lines": source.num_lines,
            "bytes": source.num_bytes,
            "sha256": source.sha256,
        },
        "model": model_files(model),
        "options": options,
        "output": output,
    }


def text_options(engine: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of engine and sampling, as far as text depends on it, as JSON has it.

    Parameters
    ----------
    engine : mapping
        Options of `LLM`; option objects count as what they say beside their defaults.
    sampling : mapping
        Fields of `SamplingParams`.
    """
    found: dict[str, Any] = {"sampling": dict(sampling)}
    for name, value in engine.items():
        if isinstance(value, Options):
            idle = _CHANGE_NO_TEXT.get(name, ())
            value = {key: item for key, item in said(value).items() if key not in idle}
        if value is not None and value != {} and name not in _CHANGE_NO_TEXT[""]:
            found[name] = value
    return dict(json.loads(json.dumps(found, default=repr)))


def model_files(model: Path) -> dict[str, str]:
    """Return of each file of a model what tells it from another.

    Files up to 16 MiB are read whole; of larger ones the size and 64 pieces of 64 KiB, first and
    last among them, so that a model of any size takes a moment.
    """
    try:
        return {file.name: _digest(file) for file in _files(model)}
    except OSError as error:
        raise CheckpointError(
            f"[batch] cannot read {error.filename or model}: {error.strerror or error}; allowed: a "
            "model whose files can be read"
        ) from error


def _files(model: Path) -> Iterator[Path]:
    if model.is_file():
        yield model
        return
    for file in sorted(model.iterdir()):
        if file.is_file() and file.suffix in _SUFFIXES + _SUFFIXES_OF_FLEXGEN:
            yield file


def _digest(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        if size <= _WHOLE_BYTES:
            digest.update(content.read())
        else:
            for number in range(_PIECES):
                content.seek(number * (size - _PIECE) // (_PIECES - 1))
                digest.update(content.read(_PIECE))
    return digest.hexdigest()
