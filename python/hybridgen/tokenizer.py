# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of folders, tried before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._checks import brief
from .codec import Codec, is_foreign, words_of
from .errors import CheckpointError, ConfigError
from .gguf_file import read_gguf
from .gguf_tokenizer import gguf_tokenizer
from .model_folder import local_path, read_json, resolve_model

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_codec(path_or_id: str | Path, revision: str | None = None) -> Codec | None:
    """Return the codec of a folder's, GGUF file's or hub id's tokenizer; None if it holds none.

    A ``tokenizer.json`` is used as it stands, whatever class the folder names beside it. A local
    folder never touches the network, and code from a checkpoint is never run.

    Raises
    ------
    CheckpointError
        If there is one but it cannot be loaded, cannot work, or needs code of the checkpoint's own.
    """
    folder = local_path(path_or_id)
    if not folder.is_dir():
        folder = resolve_model(path_or_id, revision, "dummy")
    if folder.is_file():
        return _gguf_codec(folder)
    if not any((folder / name).exists() for name in _FILES):
        return None
    _refuse_foreign_code(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer splits text in the model family's own way for some families (Qwen2), whatever
    # the tokenizer.json says.
    is_whole = (folder / "tokenizer.json").exists()
    kind = PreTrainedTokenizerFast if is_whole else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return checked_codec(tokenizer)
    # The tokenizer classes raise whatever their file formats make them stumble over.
    except BaseException as error:
        if not isinstance(error, ConfigError) and not is_foreign(error):
            raise
        words = str(error) if isinstance(error, ConfigError) else words_of(error)
        raise CheckpointError(
            f"[load_tokenizer] cannot load the tokenizer of {folder}: {words}; pass tokenizer= or "
            "remove its files to work with token ids only"
        ) from error


def _gguf_codec(file: Path) -> Codec | None:
    tokenizer = gguf_tokenizer(read_gguf(file))
    try:
        return None if tokenizer is None else checked_codec(tokenizer)
    except ConfigError as error:
        raise CheckpointError(
            f"[load_tokenizer] the tokenizer of {file} cannot work: {error}; pass tokenizer= to "
            "use another one"
        ) from error


def _refuse_foreign_code(folder: Path) -> None:
    """Raise unless transformers itself has the class that the folder asks for."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.exists() else {}
    declared, auto_map = config.get("tokenizer_class"), config.get("auto_map")
    own = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    is_whole = (folder / "tokenizer.json").exists()
    if own and not (_is_library_class(declared) or (declared is None and is_whole)):
        raise CheckpointError(
            f"[load_tokenizer] {file} asks for a tokenizer class of the checkpoint's own "
            f"({brief(own)}), and code from a checkpoint is never run; pass tokenizer= with a "
            "tokenizer of the same vocabulary, or save it as tokenizer.json with transformers"
        )
    if is_whole:
        return
    if declared is None and (folder / "config.json").exists():
        declared = read_json(folder / "config.json").get("tokenizer_class")
    # transformers takes any class of its own by that name, a model's too, and loads it.
    if declared is not None and _is_library_class(declared) is False:
        raise CheckpointError(
            f"[load_tokenizer] {folder} names the tokenizer class {brief(declared)}, which is no "
            "tokenizer; name a tokenizer class of transformers in tokenizer_config.json"
        )


def _is_library_class(name: object) -> bool | None:
    """Say whether a name is that of a tokenizer class of transformers; None if it has none such."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    # To look for the class of a model would import the model's code.
    if not isinstance(name, str) or not ("Tokenizer" in name or name.endswith("Backend")):
        return False
    found = tokenizer_class_from_name(name)
    if found is None:
        return None
    return (
        isinstance(found, type)
        and issubclass(found, PreTrainedTokenizerBase)
        and found.__module__.startswith("transformers.")
    )


def checked_codec(tokenizer: Any, operation: str = "LLM") -> Codec:
    """Return the codec of a tokenizer that can do what will be asked of it; else ConfigError."""
    needed = ("encode", "decode")
    missing = [name for name in needed if not callable(getattr(tokenizer, name, None))]
    if missing:
        raise ConfigError(
            f"[{operation}] tokenizer is {brief(tokenizer)}, which cannot {' or '.join(missing)}; "
            "allowed: a folder, a hub id, or an object with encode and decode as in transformers"
        )
    codec = Codec(tokenizer)
    codec.check()
    return codec
