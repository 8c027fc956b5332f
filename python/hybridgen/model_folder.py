# SPDX-License-Identifier: Apache-2.0
"""Where a model lies: a local folder, or a hub id's snapshot, fetched if it has to be."""

from __future__ import annotations

import re
from pathlib import Path

from ._checks import brief
from .errors import CheckpointError, ConfigError
from .foreign_formats import describe_file

_JSON_AND_TOKENIZER = ["*.json", "tokenizer.model", "*.txt", "*.jinja"]


def resolve_folder(path_or_id: str | Path, revision: str | None, load_format: str) -> Path:
    """Return the local folder of a model, downloading it only if the name is a hub id."""
    folder, text = local_path(path_or_id), str(path_or_id)
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"[load_model] revision is {brief(revision)} but {text} is a local folder; "
                "allowed: revision with a hub id only"
            )
        return folder
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
    return _download(text, revision, load_format)


def local_path(path_or_id: str | Path) -> Path:
    """Return where a folder or hub id would lie on this machine; CheckpointError for no path."""
    if not isinstance(path_or_id, str | Path):
        raise ConfigError(
            f"[load_model] the model is {brief(path_or_id)}; allowed: a folder or a hub id"
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


def _download(repo: str, revision: str | None, load_format: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise CheckpointError(
            f"[load_model] there is no folder {repo}, and hub ids need huggingface_hub: "
            "pip install huggingface_hub"
        ) from error

    def fetch(patterns: list[str]) -> Path:
        # Subfolders hold copies in other formats.
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
        )

    try:
        if load_format == "dummy":
            return fetch(_JSON_AND_TOKENIZER)
        if load_format != "bin":
            folder = fetch([*_JSON_AND_TOKENIZER, "*.safetensors"])
            if load_format == "safetensors" or any(folder.glob("*.safetensors")):
                return folder
        return fetch([*_JSON_AND_TOKENIZER, "pytorch_model*.bin"])
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"[load_model] {repo} is neither a folder nor in the local hub cache, and the hub "
            "cannot be reached (no network, or HF_HUB_OFFLINE is set); download the model first "
            f"or pass a folder ({error})"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"[load_model] {repo} is no folder, and downloading it from the hub failed: {error}"
        ) from error
