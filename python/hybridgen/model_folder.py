# SPDX-License-Identifier: Apache-2.0
"""Where a model lies: a local folder or GGUF file, or a hub id's snapshot, fetched if needed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ._checks import brief, listed
from .errors import CheckpointError, ConfigError
from .foreign_formats import describe_file, describe_folder
from .gguf_file import first_part
from .hub import fetch_model

_WEIGHTS = tuple(
    name + suffix
    for name in ("model.safetensors", "pytorch_model.bin")
    for suffix in ("", ".index.json")
)


def resolve_model(
    path_or_id: str | Path, revision: str | None, load_format: str, gguf_file: str | None = None
) -> Path:
    """Return the local folder or GGUF file of a model, fetching it only if the name is a hub id.

    ``gguf_file`` names the file that is meant of a folder or hub id with several.
    """
    _check_gguf_file(gguf_file, load_format)
    folder, text = local_path(path_or_id), str(path_or_id)
    is_gguf = folder.is_file() and folder.suffix == ".gguf"
    if folder.is_dir() or is_gguf:
        if revision is not None:
            raise ConfigError(
                f"[load_model] revision is {brief(revision)} but {text} is local; allowed: "
                "revision with a hub id only"
            )
        if is_gguf and load_format not in ("auto", "gguf", "dummy"):
            raise ConfigError(
                f"[load_model] load_format is {brief(load_format)} and {text} is a GGUF file; "
                "allowed: auto, gguf, dummy"
            )
        if gguf_file is not None:
            return _named_gguf(folder, gguf_file)
        return first_part(folder) if is_gguf else _gguf_in(folder, load_format) or folder
    if folder.exists():
        raise CheckpointError(
            f"[load_model] {text} is a file; "
            + (describe_file(folder) or "pass the folder that contains it")
        )
    is_hub_id = isinstance(path_or_id, str) and re.fullmatch(
        r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text
    )
    if not is_hub_id:
        raise CheckpointError(
            f"[load_model] there is no folder {brief(text, 300)}; pass one that there is, or a "
            "hub id"
        )
    return fetch_model(text, revision, load_format, gguf_file)


def _check_gguf_file(name: object, load_format: str) -> None:
    if name is None:
        return
    is_inside = (
        isinstance(name, str)
        and name.endswith(".gguf")
        and not name.startswith("/")
        and ".." not in name.split("/")
        and "\0" not in name
    )
    if not is_inside:
        raise ConfigError(
            f"[load_model] gguf_file is {brief(name, 300)}; allowed: the path of a .gguf file in "
            "the folder or repository, such as 'model-Q4_K_M.gguf'"
        )
    if load_format not in ("auto", "gguf", "dummy"):
        raise ConfigError(
            f"[load_model] load_format is {brief(load_format)} beside gguf_file={brief(name, 300)};"
            " allowed: auto, gguf, dummy"
        )


def _named_gguf(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"[load_model] gguf_file is {brief(name, 300)}, and {folder} is a file already; "
            "allowed: gguf_file with a folder or a hub id"
        )
    if not (folder / name).is_file():
        there = (file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf"))
        raise CheckpointError(
            f"[load_model] gguf_file is {brief(name, 300)}, which {folder} does not hold; allowed: "
            f"{listed(there) or 'nothing, as there is no GGUF file'}"
        )
    return first_part(folder / name)


def _gguf_in(folder: Path, load_format: str) -> Path | None:
    """Return the GGUF model of a folder that holds one, unless another checkpoint is meant."""
    if load_format in ("safetensors", "bin"):
        return None
    has_config = (folder / "config.json").exists()
    has_weights = any((folder / name).exists() for name in _WEIGHTS)
    if load_format != "gguf" and has_config and (has_weights or load_format == "dummy"):
        return None
    models = sorted({first_part(file) for file in folder.glob("*.gguf")})
    if len(models) > 1:
        raise CheckpointError(
            f"[load_model] {folder} holds {len(models)} GGUF models: "
            f"{listed(model.name for model in models)}; pass the name of one of them as gguf_file"
        )
    if not models and load_format == "gguf":
        raise CheckpointError(
            f"[load_model] there is no GGUF file in {folder}; allowed: load_format='auto', or the "
            "path of a .gguf file"
        )
    return models[0] if models else None


def local_path(path_or_id: str | Path) -> Path:
    """Return where a folder or hub id would lie on this machine; CheckpointError for no path."""
    if not isinstance(path_or_id, str | Path):
        raise ConfigError(
            f"[load_model] the model is {brief(path_or_id)}; allowed: a folder or a hub id, or a "
            "GGUF file"
        )
    try:
        folder = Path(path_or_id).expanduser()
        folder.is_dir()
    # A name that is too long, a folder that may not be entered, the home of an unknown user.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"[load_model] there is no folder {brief(str(path_or_id), 300)}: {reason}; pass one "
            "that there is, or a hub id"
        ) from error
    return folder


def model_name(path_or_id: str) -> str:
    """Return what a model is called: a hub id as it is, of a path the last part."""
    path = local_path(path_or_id)
    return path.resolve().name if path.exists() else path_or_id


def read_json(file: Path, operation: str = "load_model") -> dict[str, Any]:
    """Return the JSON object in a file; CheckpointError, in an operation's name, without one."""
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is no regular file")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"[{operation}] there is no {file.name} in {file.parent}; "
            + (describe_folder(file.parent) or "pass the folder of a whole checkpoint")
        ) from error
    # Damage, wrong encodings and numbers of thousands of digits are ValueErrors.
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"[{operation}] cannot read {file}: {error}; allowed: a JSON object in UTF-8; download "
            "or save the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"[{operation}] {file} holds {brief(content)}; allowed: a JSON object; download or "
            "save the checkpoint again"
        )
    return content
