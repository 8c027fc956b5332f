# SPDX-License-Identifier: Apache-2.0
"""From a folder or a hub id to a model whose weights are on their device.

A local folder never touches the network, and nothing in a checkpoint is executed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _core
from ._checks import brief
from ._options import fields_of
from .coded_checkpoint import CodedMatrices, held_weights, read_quantization
from .config import WeightConfig
from .errors import ConfigError, OutOfMemoryError, UnsupportedModelError
from .families import Family, family_of
from .foreign_formats import adapter_file
from .gguf_file import GgufFile, read_gguf
from .gguf_model import hf_config_of
from .model_config import read_eos_ids, resolve_dtype
from .model_folder import local_path, read_json, resolve_model
from .np_weights import is_np_folder, np_config
from .packed_weights import PackedWeights, read_packing
from .tensor_offsets import has_matrices_as_used
from .weight_loading import GgufSource, ShardSource, WeightSource, load_weights, stored_formats
from .weight_shards import Shard, dtype_of_weights, find_shards

LOAD_FORMATS = ("auto", "safetensors", "bin", "gguf", "dummy")


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
        The parsed config.json, or what a GGUF file says in its place.
    path : Path or None
        The folder or GGUF file; None if only a dict was given.
    eos_token_ids : tuple of int
        Union of those in config.json and generation_config.json.
    generation_config : dict
        The parsed generation_config.json, empty without one.
    weights : WeightConfig
        In which format weights are held that the checkpoint has no codes of.
    formats : dict
        Those of the others, as ``_core.Model`` takes them.
    """

    model: Any
    config: dict[str, Any]
    hf_config: dict[str, Any]
    path: Path | None
    eos_token_ids: tuple[int, ...]
    generation_config: dict[str, Any] = field(default_factory=dict)
    weights: WeightConfig = field(default_factory=WeightConfig)
    formats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of its model, without its weights.

    Parameters
    ----------
    path : Path or None
        The folder or GGUF file; None if only a dict was given.
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
    gguf : GgufFile or None
        Its GGUF file, where that is what it is.
    packing : PackedWeights or None
        How its layers are quantised, where they are.
    load_format : str
        As asked for; "dummy" also where a weight file was not asked for.
    """

    path: Path | None
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    family: Family
    config: dict[str, Any]
    dtype: str
    shards: list[Shard]
    gguf: GgufFile | None = None
    packing: PackedWeights | None = None
    load_format: str = "auto"

    @property
    def is_shareable(self) -> bool:
        """Whether its files have all matrices as they are used: WeightConfig(shared=True)."""
        return (
            self.gguf is None
            and self.packing is None
            and self.load_format != "dummy"
            and read_quantization(self.hf_config) is None
            and all(has_matrices_as_used(shard.file, self.dtype) for shard in self.shards)
        )

    @functools.cached_property
    def source(self) -> WeightSource:
        """Where the tensors come from."""
        if self.gguf is not None:
            return GgufSource(self.gguf)
        return ShardSource(self.shards, bool(self.config["tie_embeddings"]), self.packing)


def describe_model(
    path_or_id: str | Path | dict[str, Any],
    *,
    dtype: str = "auto",
    load_format: str = "auto",
    revision: str | None = None,
    gguf_file: str | None = None,
    needs_weights: bool = True,
) -> Description:
    """Read what there is to know about a model; see `load_model` for parameters and errors.

    Parameters
    ----------
    needs_weights : bool
        Else weights of a hub id are not fetched, unless only a GGUF file says what the model is,
        and a dict may be given as it is.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(
            f"[load_model] load_format is {brief(load_format)}; allowed: {', '.join(LOAD_FORMATS)}"
        )
    path = None
    asked = load_format
    if isinstance(path_or_id, dict):
        if gguf_file is not None:
            raise ConfigError(
                f"[load_model] gguf_file is {brief(gguf_file)} and the model is a dict; allowed: "
                "gguf_file with a folder or a hub id"
            )
        load_format = load_format if needs_weights else "dummy"
    else:
        says_all = gguf_file is not None or load_format == "gguf"
        if not (needs_weights or says_all or local_path(path_or_id).exists()):
            load_format = "dummy"
        path = resolve_model(path_or_id, revision, load_format, gguf_file)
    gguf = read_gguf(path) if path is not None and path.is_file() else None
    generation: dict[str, Any] = {}
    if gguf is not None:
        load_format = asked  # the file is there
        hf_config = hf_config_of(gguf)
    else:
        hf_config, generation = _read_configs(path_or_id, path, load_format)
    family = family_of(hf_config)
    config = family.read(hf_config)
    packing = None if read_quantization(hf_config) else read_packing(hf_config)
    shards: list[Shard] = []
    if path is not None and gguf is None and load_format != "dummy":
        shards = find_shards(path, load_format)
    dtype = resolve_dtype(dtype, hf_config, lambda: dtype_of_weights(shards))
    return Description(
        path, hf_config, generation, family, config, dtype, shards, gguf, packing, load_format
    )


def load_model(
    path_or_id: str | Path | dict[str, Any],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    load_format: str = "auto",
    revision: str | None = None,
    gguf_file: str | None = None,
    seed: int = 0,
    is_timed: bool = False,
    weights: WeightConfig | None = None,
) -> LoadedModel:
    """Load a model.

    Parameters
    ----------
    path_or_id : str, Path or dict
        A folder, a GGUF file, a hub id, or the content of a config.json (with
        ``load_format="dummy"`` only).
    dtype : str
        "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
    device : str
        "cpu", "cuda:0", "emulated" or "emulated:N".
    load_format : str
        "auto" prefers safetensors over pickled files, and these over GGUF; "dummy" draws random
        weights.
    revision : str, optional
        Branch, tag or commit; hub ids only.
    gguf_file : str, optional
        Which file of a folder or hub id is the model.
    seed : int
        Of dummy weights.
    is_timed : bool
        Whether the device is an emulated one that computes nothing: weights then only take room
        there and time, and none are read.
    weights : WeightConfig, optional
        In which format weights are held; by default that of the checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing or damaged, or does not fit its configuration.
    UnsupportedModelError
        If the engine cannot run this model.
    OutOfMemoryError
        If the weights do not fit.
    """
    found = describe_model(
        path_or_id, dtype=dtype, load_format=load_format, revision=revision, gguf_file=gguf_file
    )
    eos_token_ids = read_eos_ids(found.hf_config, found.generation_config)
    held = held_weights(found.hf_config, weights or WeightConfig())
    core_config = _core.ModelConfig(**found.config)
    coded = read_quantization(found.hf_config) is not None
    formats = stored_codes(found)
    model = _core.Model(
        core_config,
        dtype=found.dtype,
        device=device,
        weights=fields_of(held),
        formats=formats,
    )
    if not is_timed:
        _require_memory(model)
    if load_format == "dummy" or is_timed:
        model.load_dummy(seed)
    elif coded:
        matrices = CodedMatrices.of(core_config, held, found.family.source_name)
        matrices.load(model, [shard.file for shard in found.shards])
    else:
        load_weights(model, found.family, found.config, found.source, as_codes=True)
    model.finish()
    return LoadedModel(
        model,
        found.config,
        found.hf_config,
        found.path,
        eos_token_ids,
        found.generation_config,
        held,
        formats,
    )


def stored_codes(found: Description) -> dict[str, Any]:
    """Return the formats of matrices that come as codes of a reader, as ``_core.Model`` takes them.

    Of weight files only the headers are read.
    """
    has_codes = found.gguf is not None or found.packing is not None
    if found.load_format == "dummy" or not has_codes:
        return {}
    return stored_formats(found.family, found.config, found.source)


def _read_configs(
    path_or_id: str | Path | dict[str, Any], path: Path | None, load_format: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what config and generation_config hold."""
    if path is None:
        if load_format != "dummy":
            raise ConfigError(
                "[load_model] the model is a dict, which holds no weights; allowed: a folder or a "
                "hub id, or load_format='dummy' for random weights"
            )
        assert isinstance(path_or_id, dict)
        return path_or_id, {}
    _reject_adapter(path)
    file = path / "generation_config.json"
    by_name = is_np_folder(path) and not (path / "config.json").exists()
    hf_config = np_config(path) if by_name else read_json(path / "config.json")
    return hf_config, read_json(file) if file.exists() else {}


def _require_memory(model: _core.Model) -> None:
    """Refuse weights that the host cannot hold, before they are written and the system ends us."""
    available = _core.available_host_bytes()
    needed = model.host_weight_bytes
    if needed > available:
        raise OutOfMemoryError(
            f"[load_model] the weights take {needed / 1e9:.1f} GB in {model.dtype}; "
            f"the host has {available / 1e9:.1f} GB left; free memory, or pass "
            "dtype='bfloat16', weights=WeightConfig(format='int8') or a smaller model"
        )


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
