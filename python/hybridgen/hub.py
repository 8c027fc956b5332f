# SPDX-License-Identifier: Apache-2.0
"""Models of the hub: from an id to its snapshot in the local cache, fetched where it is not there.

The network is reached through huggingface_hub alone, which keeps the cache and knows when it may.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ._checks import brief, listed
from .errors import CheckpointError
from .gguf_file import first_part, names_of_parts

_JSON_AND_TOKENIZER = ["*.json", "tokenizer.model", "*.txt", "*.jinja"]
_SUBFOLDERS = ["*/*"]
"""Those hold copies in other formats."""
_WEIGHTS = {"safetensors": "*.safetensors", "bin": "pytorch_model*.bin"}
"""What is preferred comes first."""


def fetch_model(
    repo: str, revision: str | None, load_format: str, gguf_file: str | None = None
) -> Path:
    """Return the folder or GGUF file of a hub id, with weights in one format.

    Parameters
    ----------
    repo, revision : str
        Which snapshot.
    load_format : str
        As for `Model`; of "dummy" no weights are fetched, unless only a GGUF file says what the
        model is. "auto" takes GGUF where there are no other weights.
    gguf_file : str, optional
        Its path in the repository; any part of a split one.

    Raises
    ------
    CheckpointError
        If it is neither in the cache nor to be had, or without a file of this name, or if it has
        several GGUF models and none is named.
    """
    return _unless_the_hub_refuses(repo, lambda: _fetched(repo, revision, load_format, gguf_file))


def _fetched(repo: str, revision: str | None, load_format: str, gguf_file: str | None) -> Path:
    def fetch(*patterns: str) -> Path:
        return _snapshot(repo, revision, [*_JSON_AND_TOKENIZER, *patterns], _SUBFOLDERS)

    if gguf_file is not None:
        return _gguf(repo, revision, gguf_file)
    folder = None
    for kind, pattern in _WEIGHTS.items():
        if load_format in ("auto", kind):
            folder = fetch(pattern)
            if load_format == kind or any(folder.glob(pattern)):
                return folder
    folder = folder or fetch()
    if load_format == "dummy" and (folder / "config.json").is_file():
        return folder
    return _only_gguf(repo, revision, folder)


def _snapshot(
    repo: str, revision: str | None, patterns: list[str], ignored: list[str] | None = None
) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
    )


def _only_gguf(repo: str, revision: str | None, folder: Path) -> Path:
    """Return the one GGUF model of a repository; without any, a folder that names what it lacks."""
    models = sorted({_first(name) for name in _gguf_names(repo, revision, folder)[0]})
    if len(models) > 1:
        raise CheckpointError(
            f"[load_model] {repo} has {len(models)} GGUF models: {listed(models)}; pass the name "
            "of one of them as gguf_file"
        )
    return _gguf(repo, revision, models[0]) if models else folder


def _gguf(repo: str, revision: str | None, name: str) -> Path:
    """Return a GGUF file of a repository, all parts of a split one beside it."""
    parts = names_of_parts(PurePosixPath(name))
    folder = _snapshot(repo, revision, [glob.escape(str(part)) for part in parts])
    missing = [str(part) for part in parts if not (folder / part).is_file()]
    if not missing:
        return folder / parts[0]
    names, is_all = _gguf_names(repo, revision, folder)
    raise CheckpointError(
        f"[load_model] gguf_file is {brief(name, 300)}, and {repo} has no {brief(missing[0], 300)}"
        + ("" if is_all else " in the local hub cache, and the hub cannot be reached")
        + f"; allowed: {listed(names) or 'nothing, as there is no GGUF file'}"
    )


def _gguf_names(repo: str, revision: str | None, folder: Path) -> tuple[list[str], bool]:
    """Return the GGUF files of a repository, and whether the hub says so or only the cache."""
    from huggingface_hub import HfApi

    try:
        found, is_all = HfApi().list_repo_files(repo, revision=revision), True
    # The client's own errors, those of the library below it, and the system's.
    except Exception:
        found = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
        is_all = False
    return sorted(name for name in found if name.endswith(".gguf")), is_all


def _first(name: str) -> str:
    return str(first_part(PurePosixPath(name)))


def _unless_the_hub_refuses(repo: str, fetch: Callable[[], Path]) -> Path:
    try:
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
    try:
        return fetch()
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
