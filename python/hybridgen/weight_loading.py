# SPDX-License-Identifier: Apache-2.0
"""Fills a model with a checkpoint's tensors, after checking that their names are the model's.

Tensors are read one at a time from memory-mapped files, which are closed one by one, so that the
host never holds more than the model and one shard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ._checks import brief, listed
from ._lifetime import rest
from .errors import CheckpointError, HybridGenError, UnsupportedModelError
from .families import IGNORED_TENSORS, Family
from .foreign_formats import quantized_tensors
from .gguf_file import GgufFile
from .gguf_model import weights_of
from .packed_weights import CodedFormat, PackedWeights
from .tensor_offsets import place_of
from .weight_files import OpenFile, open_weights
from .weight_shards import Shard


@dataclass(frozen=True)
class ReadTensor:
    """One tensor of a checkpoint: its name there, where it lies, and its numbers or its codes."""

    name: str
    file: Path
    numbers: torch.Tensor | None = None
    coded: dict[str, Any] | None = None
    """As ``_core.Model.load_coded`` takes it."""


class WeightSource(Protocol):
    """Where tensors come from: their names, and one after the other those that are wanted."""

    @property
    def names(self) -> frozenset[str]:
        """As transformers calls them."""

    def coded_formats(self) -> dict[str, CodedFormat]:
        """Return of which matrices there are codes."""

    def read(self, wanted: Iterable[str], dtype: str, *, as_codes: bool) -> Iterator[ReadTensor]:
        """Yield tensors: those with codes as these, or restored to ``dtype``."""

    def adds_nothing(self, name: str) -> bool:
        """Say whether a tensor that the model has no place for changes nothing."""


class ShardSource:
    """Tensors of safetensors files or pickled ones.

    Parameters
    ----------
    shards : list of Shard
        The files.
    tied : bool
        Whether the head is the token table, so that a head of its own need not be there.
    packing : PackedWeights, optional
        How layers are quantised, if they are.
    """

    def __init__(
        self, shards: list[Shard], tied: bool, packing: PackedWeights | None = None
    ) -> None:
        self._shards, self._packing = shards, packing
        self._files: dict[str, Path] = {}
        lost: dict[str, str] = {}
        for shard in shards:
            with open_weights(shard.file) as opened:
                for name in (shard.names or frozenset()) - set(opened.names):
                    lost[name] = f"{name} (in {shard.file.name})"
                # A tensor that is in two files is read from the one the index names.
                for name in opened.names:
                    if shard.names is None or name in shard.names or name not in self._files:
                        self._files[name] = shard.file
        needed = [
            text
            for name, text in lost.items()
            if name not in self._files and not follows(name, tied)
        ]
        if needed:
            raise CheckpointError(
                f"[load_model] the index names tensors that are not in their file: "
                f"{listed(needed)}; download the checkpoint again"
            )
        self._layers = {} if packing is None else packing.layers(self._files)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors; of quantised layers that of the matrix which their parts are."""
        parts = {part for layer in self._layers.values() for part in layer.values()}
        idle = () if self._packing is None else filter(self._packing.is_idle, self._files)
        return frozenset((self._files.keys() - parts - set(idle)) | self._layers.keys())

    def coded_formats(self) -> dict[str, CodedFormat]:
        """Return of which matrices there are codes."""
        formats = {}
        for shard in self._shards if self._layers else ():
            with open_weights(shard.file) as opened:
                for name, parts in self._layers.items():
                    if self._file_of(name) != shard.file:
                        continue
                    assert self._packing is not None
                    first = next(iter(parts))
                    found = self._packing.coded_format({first: opened.shape(parts[first])})
                    if found is not None:
                        formats[name] = found
        return formats

    def read(self, wanted: Iterable[str], dtype: str, *, as_codes: bool) -> Iterator[ReadTensor]:
        """Yield tensors file by file."""
        coded = self.coded_formats() if as_codes else {}
        for shard in self._shards:
            here = sorted(name for name in wanted if self._file_of(name) == shard.file)
            if not here:
                continue
            with open_weights(shard.file) as opened:
                for name in here:
                    if name in self._layers:
                        dtype_of_it = None if name in coded else dtype
                        yield self._unpacked(name, dtype_of_it, shard.file, opened)
                    else:
                        yield ReadTensor(name, shard.file, _read(opened.read, name, shard.file))

    def adds_nothing(self, name: str) -> bool:
        """Say so of zeros: some writers of GPTQ give every layer a bias."""
        if not name.endswith(".bias") or f"{name.removesuffix('bias')}weight" not in self._layers:
            return False
        with open_weights(self._files[name]) as opened:
            return not _read(opened.read, name, self._files[name]).any()

    def _file_of(self, name: str) -> Path:
        """Return where a tensor lies, or the first part of a layer."""
        return self._files[next(iter(self._layers.get(name, {}).values()), name)]

    def _unpacked(self, name: str, dtype: str | None, file: Path, opened: OpenFile) -> ReadTensor:
        """Return a layer restored to a dtype; its codes, if that is None."""
        assert self._packing is not None
        parts = {}
        for part, source in self._layers[name].items():
            if self._files[source] == file:
                parts[part] = _read(opened.read_packed, source, file)
            else:  # cut off by the end of a shard
                with open_weights(self._files[source]) as other:
                    parts[part] = _read(other.read_packed, source, self._files[source]).clone()
        try:
            if dtype is None:
                return ReadTensor(name, file, coded=self._packing.coded(parts))
            return ReadTensor(name, file, self._packing.restore(parts, dtype))
        except CheckpointError as error:
            raise CheckpointError(f"{error} ({name} in {file})") from error


def _read(read: Callable[[str], torch.Tensor], name: str, file: Path) -> torch.Tensor:
    try:
        return read(name)
    except HybridGenError:
        raise
    # Both readers report damage as almost any exception.
    except Exception as error:
        raise CheckpointError(f"[load_model] cannot read {name} in {file}: {error}") from error


class GgufSource:
    """Tensors of a GGUF file: those that are quantised as the codes that they are."""

    def __init__(self, gguf: GgufFile) -> None:
        self._weights = weights_of(gguf)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._weights)

    def coded_formats(self) -> dict[str, CodedFormat]:
        """Return of which matrices there are codes."""
        found = ((name, weight.coded_format) for name, weight in self._weights.items())
        return {name: coded for name, coded in found if coded is not None}

    def read(self, wanted: Iterable[str], dtype: str, *, as_codes: bool) -> Iterator[ReadTensor]:
        """Yield tensors in the order of the file."""
        chosen = frozenset(wanted)
        for name, weight in self._weights.items():
            if name not in chosen:
                continue
            file = weight.tensor.file
            if weight.coded_format is None or not as_codes:
                yield ReadTensor(name, file, weight.restored(dtype))
            else:
                yield ReadTensor(name, file, coded=weight.coded())

    def adds_nothing(self, _name: str) -> bool:
        """Nothing does."""
        return False


def stored_formats(family: Family, config: dict[str, Any], source: WeightSource) -> dict[str, Any]:
    """Return, by the engine's names, the formats of matrices that a checkpoint has codes of.

    These are what ``_core.Model`` takes as ``formats``.
    """
    formats = source.coded_formats()
    layers = range(config["num_layers"])
    names = [f"{module}.weight" for module in family.modules]
    names += [f"layers.{i}.{module}.weight" for i in layers for module in family.layer_modules]
    found = {name: next(filter(formats.get, family.spellings(name)), None) for name in names}
    return {name: formats[own]._asdict() for name, own in found.items() if own is not None}


def load_weights(
    model: Any,
    family: Family,
    config: dict[str, Any],
    source: WeightSource,
    *,
    as_codes: bool = False,
) -> None:
    """Copy every tensor into the model, after checking that names in source and model agree.

    With ``as_codes`` matrices that the source has codes of are copied as these, for a model that
    was made for their formats.
    """
    shapes: dict[str, tuple[int, ...]] = {
        name: tuple(shape) for name, shape in model.expected_tensors()
    }
    plan = _match_names(family, list(shapes), source, bool(config["tie_embeddings"]))
    for tensor in source.read(plan, model.dtype, as_codes=as_codes):
        rest()  # the interpreter's end does not wait for all of them
        _load_tensor(model, plan[tensor.name], shapes, tensor)


def _load_tensor(
    model: Any, name: str, shapes: dict[str, tuple[int, ...]], tensor: ReadTensor
) -> None:
    where = f"{tensor.name} in {tensor.file}"
    if tensor.numbers is not None and tuple(tensor.numbers.shape) != shapes[name]:
        raise CheckpointError(
            f"[load_model] {where} has shape {list(tensor.numbers.shape)}; the model's "
            f"configuration asks for {list(shapes[name])}"
        )
    place = None
    if tensor.coded is None and model.is_read_in_place(name):
        place = place_of(tensor.file, tensor.name, model.dtype)
    try:
        if tensor.coded is not None:
            model.load_coded(name, **tensor.coded)
        elif place is None:
            model.load_tensor(name, tensor.numbers)
        else:
            file, offset = place
            model.load_from_file(name, path=str(file.resolve()), offset=offset)
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({where})") from error


def follows(name: str, tied: bool) -> bool:
    """Say whether a tensor follows from the config or from another tensor, so that none is read."""
    ignored = [*IGNORED_TENSORS, *([r"lm_head\.weight"] if tied else [])]
    return any(re.fullmatch(pattern, name) for pattern in ignored)


def _match_names(
    family: Family, expected: list[str], source: WeightSource, tied: bool
) -> dict[str, str]:
    """Return checkpoint name -> engine name; CheckpointError lists all that do not fit."""
    present = source.names
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
    extra = [
        name
        for name in present - set(plan)
        if not follows(name, tied) and not source.adds_nothing(name)
    ]
    quantized = quantized_tensors(extra)
    if missing and quantized:
        raise UnsupportedModelError(
            f"[load_model] the weights are quantized in a way that config.json does not say or "
            f"that is not read: {len(quantized)} tensors such as {brief(quantized[0])}; allowed: "
            "weights in float32, bfloat16 or float16, and GPTQ, AWQ and fp8 with their "
            "quantization_config; take the unquantized checkpoint that this one was made from"
        )
    if missing or extra:
        parts = [f"missing: {listed(missing)}"] if missing else []
        parts += [f"unexpected: {listed(extra)}"] if extra else []
        raise CheckpointError(
            "[load_model] the tensors of the checkpoint are not those of its config.json; "
            + "; ".join(parts)
        )
    return plan
