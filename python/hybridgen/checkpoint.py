# SPDX-License-Identifier: Apache-2.0
"""From a folder or a hub id to a model whose weights are on their device.

Tensors are read one at a time from memory-mapped files, which are closed one by one, so that the
host never holds more than the model and one shard. A local folder never touches the network, and
nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _core
from ._checks import brief, plain
from ._lifetime import rest
from .errors import (
    CheckpointError,
    ConfigError,
    HybridGenError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from .families import IGNORED_TENSORS, Family, family_of
from .foreign_formats import adapter_file, describe_folder, quantized_tensors
from .model_config import read_eos_ids, resolve_dtype
from .model_folder import local_path, resolve_folder
from .np_weights import is_np_folder, np_config
from .weight_files import FLOATING, OpenFile, open_weights

LOAD_FORMATS = ("auto", "safetensors", "bin", "dummy")

_LISTED = 8


@dataclass
class LoadedModel:
    """A model with its weights, and what its folder says about it.

    Parameters
    ----------
    model : _core.Model
        Ready for an engine.
    config : dict
        Fields of ``_core.ModelConfig``.
    hf_config : dict
        The parsed config.json.
    path : Path or None
        The folder; None if only a dict was given.
    eos_token_ids : tuple of int
        Union of those in config.json and generation_config.json.
    generation_config : dict
        The parsed generation_config.json, empty without one.
    """

    model: Any
    config: dict[str, Any]
    hf_config: dict[str, Any]
    path: Path | None
    eos_token_ids: tuple[int, ...]
    generation_config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """One weight file and the tensors that the index looks for in it; None means all of them."""

    file: Path
    names: frozenset[str] | None = None
    dtype: str | None = None
    """What the index says of all weights, if it does."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of its model, without its weights.

    Parameters
    ----------
    path : Path or None
        The folder; None if only a dict was given.
    hf_config, generation_config : dict
        Parsed files.
    family : Family
        How its tensors are called.
    config : dict
        Fields of ``_core.ModelConfig``.
    dtype : str
        To run in.
    shards : list of Shard
        Its weight files.
    """

    path: Path | None
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    family: Family
    config: dict[str, Any]
    dtype: str
    shards: list[Shard]


def describe_model(
    path_or_id: str | Path | dict[str, Any],
    *,
    dtype: str = "auto",
    load_format: str = "auto",
    revision: str | None = None,
    needs_weights: bool = True,
) -> Description:
    """Read what there is to know about a model; see `load_model` for parameters and errors.

    Parameters
    ----------
    needs_weights : bool
        Else weights of a hub id are not fetched, and a dict may be given as it is.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(
            f"[load_model] load_format is {brief(load_format)}; allowed: {', '.join(LOAD_FORMATS)}"
        )
    if not needs_weights and (isinstance(path_or_id, dict) or not local_path(path_or_id).is_dir()):
        load_format = "dummy"
    path, hf_config, generation = _read_configs(path_or_id, load_format, revision)
    family = family_of(hf_config)
    config = family.read(hf_config)
    shards: list[Shard] = []
    if path is not None and load_format != "dummy":
        shards = find_shards(path, load_format)
    dtype = resolve_dtype(dtype, hf_config, lambda: dtype_of_weights(shards))
    return Description(path, hf_config, generation, family, config, dtype, shards)


def load_model(
    path_or_id: str | Path | dict[str, Any],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    load_format: str = "auto",
    revision: str | None = None,
    seed: int = 0,
    is_timed: bool = False,
) -> LoadedModel:
    """Load a model.

    Parameters
    ----------
    path_or_id : str, Path or dict
        A folder, a hub id, or the content of a config.json (with ``load_format="dummy"`` only).
    dtype : str
        "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
    device : str
        "cpu", "cuda:0", "emulated" or "emulated:N".
    load_format : str
        "auto" prefers safetensors over pickled files; "dummy" draws random weights.
    revision : str, optional
        Branch, tag or commit; hub ids only.
    seed : int
        Of dummy weights.
    is_timed : bool
        Whether the device is an emulated one that computes nothing: weights then only take room
        there and time, and none are read.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing or damaged, or does not fit its configuration.
    UnsupportedModelError
        If the engine cannot run this model.
    OutOfMemoryError
        If the weights do not fit.
    """
    found = describe_model(path_or_id, dtype=dtype, load_format=load_format, revision=revision)
    eos_token_ids = read_eos_ids(found.hf_config, found.generation_config)
    model = _core.Model(_core.ModelConfig(**found.config), dtype=found.dtype, device=device)
    if not is_timed:
        _require_memory(model)
    if load_format == "dummy" or is_timed:
        model.load_dummy(seed)
    else:
        _load_weights(model, found.family, found.config, found.shards)
    model.finish()
    return LoadedModel(
        model, found.config, found.hf_config, found.path, eos_token_ids, found.generation_config
    )


def _read_configs(
    path_or_id: str | Path | dict[str, Any], load_format: str, revision: str | None
) -> tuple[Path | None, dict[str, Any], dict[str, Any]]:
    """Return the folder, if there is one, and what config and generation_config hold."""
    if isinstance(path_or_id, dict):
        if load_format != "dummy":
            raise ConfigError(
                "[load_model] the model is a dict, which holds no weights; allowed: a folder or a "
                "hub id, or load_format='dummy' for random weights"
            )
        return None, path_or_id, {}
    path = resolve_folder(path_or_id, revision, load_format)
    _reject_adapter(path)
    file = path / "generation_config.json"
    by_name = is_np_folder(path) and not (path / "config.json").exists()
    hf_config = np_config(path) if by_name else read_json(path / "config.json")
    return path, hf_config, read_json(file) if file.exists() else {}


def _require_memory(model: _core.Model) -> None:
    """Refuse weights that the host cannot hold, before they are written and the system ends us."""
    available = _core.available_host_bytes()
    if not model.device.startswith("cuda") and model.weight_bytes > available:
        raise OutOfMemoryError(
            f"[load_model] the weights take {model.weight_bytes / 1e9:.1f} GB in {model.dtype}; "
            f"the host has {available / 1e9:.1f} GB left; free memory, or pass dtype='bfloat16' or "
            "a smaller model"
        )


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


def _reject_adapter(folder: Path) -> None:
    name = adapter_file(folder)
    if name is None:
        return
    if (folder / "config.json").is_file():
        raise UnsupportedModelError(
            f"[load_model] {name} in {folder} belongs to a LoRA or another adapter beside its base "
            "model; this package applies no adapters: merge it into the weights (peft's "
            "merge_and_unload, then save_pretrained), or move it out of the folder to run the base "
            "model alone"
        )
    raise UnsupportedModelError(
        f"[load_model] {name} shows that {folder} is a LoRA or another adapter without its base "
        "model; merge it into the base model (peft's merge_and_unload, then save_pretrained) and "
        "pass that folder"
    )


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
            f"[load_model] {index} names files that are not there: {_list(missing)}; download "
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


def _load_weights(model: Any, family: Family, config: dict[str, Any], shards: list[Shard]) -> None:
    """Copy every tensor into the model, after checking that names in files and model agree."""
    shapes: dict[str, tuple[int, ...]] = {
        name: tuple(shape) for name, shape in model.expected_tensors()
    }
    present: dict[str, Path] = {}
    lost: dict[str, str] = {}
    for shard in shards:
        with open_weights(shard.file) as opened:
            for name in (shard.names or frozenset()) - set(opened.names):
                lost[name] = f"{name} (in {shard.file.name})"
            # A tensor that is in two files is read from the one the index names.
            for name in opened.names:
                if shard.names is None or name in shard.names or name not in present:
                    present[name] = shard.file
    tied = bool(config["tie_embeddings"])
    needed = [
        text for name, text in lost.items() if name not in present and not follows(name, tied)
    ]
    if needed:
        raise CheckpointError(
            f"[load_model] the index names tensors that are not in their file: {_list(needed)}; "
            "download the checkpoint again"
        )

    plan = _match_names(family, list(shapes), set(present), tied)
    for shard in shards:
        wanted = {source: name for source, name in plan.items() if present[source] == shard.file}
        if not wanted:
            continue
        with open_weights(shard.file) as opened:
            for source in sorted(wanted):
                rest()  # the interpreter's end does not wait for all of them
                _load_tensor(model, wanted[source], shapes, source, shard.file, opened)


def _load_tensor(
    model: Any,
    name: str,
    shapes: dict[str, tuple[int, ...]],
    source: str,
    file: Path,
    opened: OpenFile,
) -> None:
    try:
        tensor = opened.read(source)
    except HybridGenError:
        raise
    # Both readers report damage as almost any exception.
    except Exception as error:
        raise CheckpointError(f"[load_model] cannot read {source} in {file}: {error}") from error
    if tuple(tensor.shape) != shapes[name]:
        raise CheckpointError(
            f"[load_model] {source} in {file} has shape {list(tensor.shape)}; config.json asks for "
            f"{list(shapes[name])}"
        )
    try:
        model.load_tensor(name, tensor)
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({source} in {file})") from error


def follows(name: str, tied: bool) -> bool:
    """Say whether a tensor follows from the config or from another tensor, so that none is read."""
    ignored = [*IGNORED_TENSORS, *([r"lm_head\.weight"] if tied else [])]
    return any(re.fullmatch(pattern, name) for pattern in ignored)


def _match_names(
    family: Family, expected: list[str], present: set[str], tied: bool
) -> dict[str, str]:
    """Return checkpoint name -> engine name; CheckpointError lists all that do not fit."""
    plan: dict[str, str] = {}
    missing: list[str] = []
    for name in expected:
        spellings = family.spellings(name)
        if tied and name == "embed_tokens.weight":
            # Some files keep the head's copy of a shared tensor instead.
            spellings = [*spellings, "lm_head.weight"]
        found = [spelling for spelling in spellings if spelling in present]
        if found:
            plan[found[0]] = name
        else:
            missing.append(spellings[0])
    extra = [name for name in present - set(plan) if not follows(name, tied)]
    quantized = quantized_tensors(extra)
    if missing and quantized:
        raise UnsupportedModelError(
            f"[load_model] the weights are quantized (GPTQ, AWQ or another way): {len(quantized)} "
            f"tensors such as {brief(quantized[0])}; allowed: weights in float32, bfloat16 or "
            "float16; take the unquantized checkpoint that this one was made from"
        )
    if missing or extra:
        parts = [f"missing: {_list(missing)}"] if missing else []
        parts += [f"unexpected: {_list(extra)}"] if extra else []
        raise CheckpointError(
            "[load_model] the tensors of the checkpoint are not those of its config.json; "
            + "; ".join(parts)
        )
    return plan


def _list(names: list[str]) -> str:
    shown = [plain(name, 150) for name in sorted(names)[:_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
