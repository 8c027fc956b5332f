# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose matrices are codes already: what ``python -m hybridgen quantize`` writes.

A matrix ``NAME.weight`` lies as ``NAME.codes`` (uint8), ``NAME.scales`` and maybe ``NAME.minima``,
as src/kernels/coded_rows.h says; ``quantization_config`` in config.json has the options that they
were made with, and these say which matrices are codes and how large each part has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from . import _core
from ._checks import brief, plain
from ._lifetime import rest
from ._options import fields_of
from .config import WeightConfig
from .errors import CheckpointError, ConfigError

METHOD = "hybridgen"
_VERSION = 1
_PARTS = ("codes", "scales", "minima")
OF_FORMAT = ("format", "group", "min_max", "head", "embeddings")
"""Options of a WeightConfig that say what is saved; the others say where weights lie."""


def quantization_config(weights: WeightConfig) -> dict[str, Any]:
    """Return what config.json says of matrices that were coded with these options."""
    options = {name: getattr(weights, name) for name in OF_FORMAT}
    return {"quant_method": METHOD, "version": _VERSION, **options}


def read_quantization(hf_config: Mapping[str, Any]) -> WeightConfig | None:
    """Return the options that a checkpoint's matrices were coded with; None for any other.

    Raises
    ------
    CheckpointError
        If it is of this format, and damaged or newer.
    """
    said = hf_config.get("quantization_config")
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return None
    options = {name: said[name] for name in said if name not in ("quant_method", "version")}
    if said.get("version") != _VERSION:
        raise CheckpointError(
            f"[load_model] version is {brief(said.get('version'))} in quantization_config; "
            f"allowed: {_VERSION}; take a newer version of this package"
        )
    try:
        return WeightConfig(**options)
    except ConfigError as error:
        raise CheckpointError(
            f"[load_model] quantization_config of config.json is not what quantize writes: {error}"
        ) from error


def held_weights(hf_config: Mapping[str, Any], asked: WeightConfig) -> WeightConfig:
    """Return how a checkpoint's weights are held: as it has them, or else as asked.

    Raises
    ------
    CheckpointError
        If its quantization_config is damaged.
    ConfigError
        If options name a format for a checkpoint whose matrices are codes already.
    """
    stored = read_quantization(hf_config)
    if stored is None:
        return asked
    for name in ("format", "head", "embeddings"):
        if getattr(asked, name) not in ("auto", getattr(stored, name)):
            raise ConfigError(
                f"[load_model] weights has {name}={getattr(asked, name)!r} for a checkpoint whose "
                "matrices are codes already (quantization_config); allowed: 'auto'; quantize the "
                "checkpoint that it was made from"
            )
    return replace(asked, **{name: getattr(stored, name) for name in OF_FORMAT})


@dataclass(frozen=True)
class CodedMatrices:
    """Which matrices of a model a checkpoint has as codes.

    Parameters
    ----------
    formats : dict
        By the engine's name of each: ``bits``, ``group``, ``minima`` and ``scales``.
    source_name : callable
        Returns how checkpoints call one of the engine's tensors.
    """

    formats: dict[str, dict[str, Any]]
    source_name: Callable[[str], str]

    @classmethod
    def of(
        cls, config: _core.ModelConfig, weights: WeightConfig, source_name: Callable[[str], str]
    ) -> CodedMatrices:
        """Return those that such options code in such a model."""
        return cls(_core.weight_formats(config, fields_of(weights)), source_name)

    def sources(self, name: str) -> dict[str, str]:
        """Return how a tensor's parts are called in a checkpoint; of a dense one there is one."""
        source, found = self.source_name(name), self.formats.get(name)
        if found is None:
            return {"weight": source}
        return {part: part_name(source, part) for part in _PARTS if part != "minima" or found[part]}

    def load(self, model: Any, files: Iterable[Path]) -> None:
        """Fill a model from safetensors files, one tensor at a time.

        Raises
        ------
        CheckpointError
            For files that are damaged, tensors that are missing, left over, of another shape or
            dtype, and numbers that are none.
        """
        with ExitStack() as opened:
            handles = {file: _opened(opened, file) for file in files}
            place = {name: file for file, handle in handles.items() for name in handle.keys()}
            wanted = {name: self.sources(name) for name, _ in model.expected_tensors()}
            _compare({part for parts in wanted.values() for part in parts.values()}, set(place))
            for name, parts in wanted.items():
                rest()  # the interpreter's end does not wait for all of them
                file = place[next(iter(parts.values()))]
                try:
                    read = {
                        part: handles[place[source]].get_tensor(source)
                        for part, source in parts.items()
                    }
                    self._hand_over(model, name, read)
                except CheckpointError as error:
                    raise CheckpointError(f"{error} ({parts} in {file})") from error
                # The reader reports damage as almost any exception.
                except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
                    raise CheckpointError(
                        f"[load_model] cannot read {brief(parts, 300)} in {file}: {error}"
                    ) from error

    def _hand_over(self, model: Any, name: str, parts: dict[str, Any]) -> None:
        found = self.formats.get(name)
        if found is None:
            model.load_tensor(name, parts["weight"])
        else:
            model.load_coded(name, **parts, bits=found["bits"], group=found["group"])


def part_name(source: str, part: str) -> str:
    """Return the name of a part of the matrix that other checkpoints call ``source``."""
    return f"{source.removesuffix('.weight')}.{part}"


def _opened(stack: ExitStack, file: Path) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="pt", device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"[load_model] cannot read {file}: {error}; the file is damaged or incomplete, "
            "quantize the checkpoint again"
        ) from error


def _compare(wanted: set[str], present: set[str]) -> None:
    """Refuse files whose tensors are not those that config.json says."""
    parts = [
        f"{what}: {', '.join(plain(name, 150) for name in sorted(names)[:8])}"
        + (f", and {len(names) - 8} more" if len(names) > 8 else "")
        for what, names in (("missing", wanted - present), ("unexpected", present - wanted))
        if names
    ]
    if parts:
        raise CheckpointError(
            "[load_model] the tensors of the checkpoint are not those of its config.json; "
            + "; ".join(parts)
        )
