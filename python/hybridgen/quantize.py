# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint whose matrices are codes, so that loading need not make them again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import _core
from ._checks import as_path, brief
from ._lifetime import guarded
from ._options import said as said_in
from .checkpoint import describe_model
from .coded_checkpoint import OF_FORMAT, CodedMatrices, part_name, quantization_config
from .config import WeightConfig
from .errors import CheckpointError, ConfigError, DeviceError, own_errors
from .families import Family
from .weight_loading import load_weights

_SHARD_BYTES = 4 << 30
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".pt", ".h5", ".msgpack", ".onnx")
_OWN_FILES = ("config.json", "quantize_config.json")


@guarded
def quantize(
    model: str | Path,
    out: str | Path,
    *,
    weights: WeightConfig,
    revision: str | None = None,
    load_format: str = "auto",
    progress: bool = False,
) -> Path:
    """Save a checkpoint with its weights in the format of ``weights``; returns its folder.

    ``LLM(out)`` holds the same bits as ``LLM(model, weights=weights)``. What keeps its format is
    copied, and so are the tokenizer and everything else in the folder that is no weight.

    Parameters
    ----------
    model : str or Path
        A folder or a hub id with weights in float32, bfloat16 or float16.
    out : str or Path
        A folder that is not there yet. It appears when it is whole.
    weights : WeightConfig
        At least one of its formats is to be named.
    revision, load_format
        As for `Model`.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ConfigError
        For an option that is not allowed, or an ``out`` that is there.
    CheckpointError, UnsupportedModelError
        If the checkpoint cannot be read.
    DeviceError
        If the system cannot write.
    """
    target = as_path("quantize", "out", out)
    if not isinstance(weights, WeightConfig) or weights == WeightConfig():
        raise ConfigError(
            f"[quantize] weights is {brief(weights)}; allowed: a WeightConfig that names a format, "
            "such as WeightConfig(format='int4')"
        )
    for name in said_in(weights):
        if name not in OF_FORMAT:
            raise ConfigError(
                f"[quantize] weights has {name}={brief(getattr(weights, name))}, and files lie "
                "where they lie; allowed: None; say it when the new checkpoint is loaded"
            )
    if os.path.lexists(target):
        raise ConfigError(
            f"[quantize] out is {brief(str(target), 300)}, which is there already; allowed: a "
            "folder that is not; choose another name, or remove it"
        )
    with own_errors("quantize"):
        found = describe_model(model, load_format=load_format, revision=revision)
        if found.path is None or load_format == "dummy":
            raise ConfigError(
                "[quantize] the model has no weights; allowed: a folder or a hub id with weights"
            )
        if found.gguf is not None or found.hf_config.get("quantization_config"):
            raise CheckpointError(
                f"[quantize] {found.path} is a GGUF file, or quantized already "
                "(quantization_config in its config.json); allowed: a folder with weights in "
                "float32, bfloat16 or float16"
            )
        config = _core.ModelConfig(**found.config)
        matrices = CodedMatrices.of(config, weights, found.family.source_name)
        with _folder_in_the_making(target) as folder:
            _copy_files(found.path, folder)
            said = {**found.hf_config, "quantization_config": quantization_config(weights)}
            (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            writer = _Writer(folder, config, found.family, matrices, found.dtype, progress)
            with writer:
                load_weights(writer, found.family, found.config, found.source)
    return target


class _Writer:
    """Takes tensors as a model does, and writes them, as codes where they are to be."""

    def __init__(
        self,
        folder: Path,
        config: _core.ModelConfig,
        family: Family,
        matrices: CodedMatrices,
        dtype: str,
        progress: bool,
    ) -> None:
        self.dtype = dtype
        self._folder, self._family, self._matrices = folder, family, matrices
        self._shapes = _core.tensor_shapes(config)
        self._shards: list[list[str]] = []
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = self._total = 0
        self._bar: Any = None
        if progress:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=len(self._shapes), unit="tensor")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            self._write_shard()
            self._name_shards()

    def expected_tensors(self) -> list[tuple[str, list[int]]]:
        """Return names and shapes, as a model."""
        return self._shapes

    def is_read_in_place(self, _name: str) -> bool:
        """Say, as a model, that no tensor stays where it lies: all are to be written."""
        return False

    def load_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Take one of them."""
        source = self._family.source_name(name)
        made = {source: tensor.detach().clone().contiguous()}
        if name in self._matrices.formats:
            parts = _core.code_matrix(tensor, self._matrices.formats[name])
            made = {part_name(source, part): codes for part, codes in parts.items()}
        size = sum(part.nbytes for part in made.values())
        if self._tensors and self._bytes + size > _SHARD_BYTES:
            self._write_shard()
        self._tensors |= made
        self._bytes += size
        self._total += size
        if self._bar is not None:
            self._bar.update()

    def _write_shard(self) -> None:
        save_file(
            self._tensors, self._folder / f"{len(self._shards)}.safetensors", {"format": "pt"}
        )
        self._shards.append(list(self._tensors))
        self._tensors, self._bytes = {}, 0

    def _name_shards(self) -> None:
        count = len(self._shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        if count == 1:
            names = ["model.safetensors"]
        for i, name in enumerate(names):
            (self._folder / f"{i}.safetensors").rename(self._folder / name)
        if count > 1:
            files = zip(self._shards, names, strict=True)
            index = {
                "metadata": {"total_size": self._total},
                "weight_map": {tensor: name for shard, name in files for tensor in shard},
            }
            path = self._folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _folder_in_the_making(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the target's name once the block succeeds."""
    folder = target.with_name(f".hybridgen-{secrets.token_hex(8)}.tmp")
    try:
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        folder.rename(target)  # refused where a folder with content has come up meanwhile
    except OSError as error:
        raise DeviceError(
            f"[quantize] cannot write {target}: {error.strerror or error}; allowed: a folder that "
            "can be made; choose one with room"
        ) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)


def _copy_files(source: Path, folder: Path) -> None:
    """Copy what is no weight, such as the tokenizer."""
    for file in sorted(source.iterdir()):
        is_weight = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and not is_weight and file.name not in _OWN_FILES:
            shutil.copyfile(file, folder / file.name)
