# SPDX-License-Identifier: Apache-2.0
"""What a run takes of every tier of memory, before anything is loaded."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _core
from ._checks import as_int, brief, did_you_mean, is_auto
from ._lifetime import guarded
from ._options import fields_of
from .checkpoint import describe_model, stored_codes
from .coded_checkpoint import held_weights
from .devices import resolve_device
from .engine_handle import EngineHandle
from .engine_options import EngineSetup
from .errors import ConfigError, own_errors
from .llm import LLM
from .model import Model, weight_config

OF_LOADING = (
    "dtype",
    "device",
    "load_format",
    "gguf_file",
    "revision",
    "tokenizer",
    "seed",
    "weights",
)
_COLUMNS = ("weights", "keys", "values", "staging", "workspaces", "engine", "total", "capacity")


@dataclass(frozen=True)
class MemoryPlan:
    """What `hybridgen.plan` found: bytes per tier, and how much of a batch runs at the same time.

    Parameters
    ----------
    model, dtype, device, method : str
        Of what.
    batch_size, prompt_tokens, new_tokens : int
        Equal requests, and tokens of each.
    window : int
        Newest tokens of a request that may stay on the device.
    offloaded_tokens : int
        Those that are in host memory at its end, at most.
    together : int
        Requests that run at the same time; the others wait. 0: a single one does not fit.
    tiers : dict of dict
        For "device" and each tier below, bytes when all that run together have all their tokens:
        ``weights``, ``keys``, ``values``, ``staging`` (payloads, scoring shadows, what a method
        keeps), ``workspaces`` of requests, ``engine`` (what the model's operations take), their
        ``total``, and the ``capacity`` for requests. On a CPU device all of it is host memory.
    problem : str
        Why nothing fits, with the way out; empty if something does.
    nearest : dict
        Settings with which a run fits that does not, or with which more of the batch run together:
        ``batch_size``, ``prompt_tokens``, and of `KVConfig` ``device_tokens`` and ``dram`` where
        they have to change. Empty if all run together, or if nothing helps.
    """

    model: str
    dtype: str
    device: str
    method: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    window: int
    offloaded_tokens: int
    together: int
    tiers: dict[str, dict[str, int]]
    problem: str
    nearest: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether a request of the batch can be run."""
        return self.together > 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, ready for JSON."""
        return dataclasses.asdict(self) | {"fits": self.fits}

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        each = f"{self.batch_size} x ({self.prompt_tokens} + {self.new_tokens} tokens)"
        lines = [f"{self.model}, {self.dtype} on {self.device}, method {self.method}: {each}"]
        lines.append(" ".join(["tier  ", *(name.rjust(10) for name in _COLUMNS)]))
        for name, tier in self.tiers.items():
            lines.append(
                " ".join([name.ljust(6), *(_size(tier[column]).rjust(10) for column in _COLUMNS)])
            )
        if self.device == "cpu":
            lines.append("device and dram are both host memory")
        if self.problem:
            lines.append(f"does not fit: {self.problem}")
        else:
            lines.append(
                f"{self.together} of {self.batch_size} run at the same time; of each up to "
                f"{self.window} tokens stay on the device and {self.offloaded_tokens} go to the "
                "host"
            )
        if self.nearest:
            settings = ", ".join(f"{name}={value}" for name, value in self.nearest.items())
            lines.append(f"nearest that runs together: {settings}")
        return "\n".join(lines)


@guarded
def plan(
    model: str | Path | dict[str, Any] | Model | LLM,
    *,
    batch_size: int = 1,
    prompt_tokens: int,
    new_tokens: int = 16,
    **options: Any,
) -> MemoryPlan:
    """Say what a batch takes of every tier before anything is loaded.

    Of a checkpoint only config.json is read, and the weight files' headers where that names no
    dtype or says that matrices are codes; of a hub id no weights are fetched unless only a GGUF
    file says what the model is, so that of GPTQ and AWQ there the plan is an upper bound. The
    numbers are those that `LLM` admits requests by.

    Parameters
    ----------
    model : str, Path, dict, Model or LLM
        As for `LLM`; the content of a config.json needs no ``load_format``.
    batch_size, prompt_tokens, new_tokens : int
        How many requests, and tokens of each.
    **options
        Those of `LLM`.

    Raises
    ------
    ConfigError, UnsupportedModelError, CheckpointError
        For what `LLM` refuses. What does not fit is no error: see `MemoryPlan.problem`.

    Examples
    --------
    >>> plan("path/to/model", batch_size=8, prompt_tokens=4000)  # doctest: +SKIP
    """
    run: dict[str, Any] = {
        "batch_size": as_int("plan", "batch_size", batch_size, 1),
        "prompt_tokens": as_int("plan", "prompt_tokens", prompt_tokens, 1),
        "new_tokens": as_int("plan", "new_tokens", new_tokens, 1),
    }
    known = [name for name in inspect.signature(LLM.__init__).parameters if name != "self"]
    for name in options:
        if name not in known or name == "model":
            raise ConfigError(
                f"[plan] unknown option {brief(name)}{did_you_mean(name, known)} "
                f"(options: {', '.join(run)}, {', '.join(known[1:])})"
            )
    loading = {name: options.pop(name) for name in OF_LOADING if name in options}
    setup = EngineSetup(**options)
    source = model.open_model if isinstance(model, EngineHandle) else model
    if isinstance(source, Model):
        for name, value in loading.items():
            is_said = value is not None and not is_auto(value)
            if name not in ("revision", "tokenizer", "seed") and is_said:
                raise ConfigError(
                    f"[plan] {name} is {brief(value)} for a model that is loaded already; allowed: "
                    "'auto'; pass its path"
                )
        held, formats = source.weight_config, source.weight_formats
        path, config, dtype = source.path, source.weights.config, source.dtype
        name, engine_device = source.device, source.engine_device
    else:
        held = weight_config("plan", loading.get("weights"))
        device = resolve_device("plan", loading.get("device", "auto"))
        name, engine_device = device.name, device.engine_name
        with own_errors("plan"):
            found = describe_model(
                source,
                dtype=loading.get("dtype", "auto"),
                load_format=loading.get("load_format", "auto"),
                revision=loading.get("revision"),
                gguf_file=loading.get("gguf_file"),
                needs_weights=False,
            )
            held, formats = held_weights(found.hf_config, held), stored_codes(found)
        path, dtype = found.path, found.dtype
        config = _core.ModelConfig(**found.config)
    result = setup.plan(
        config,
        dtype=dtype,
        device=engine_device,
        path=path,
        are_loaded=isinstance(source, Model),
        weights=fields_of(held),
        formats=formats,
        **run,
    )
    return MemoryPlan(
        model="config.json" if path is None else str(path),
        dtype=dtype,
        device=name,
        **run,
        **result,
    )


def _size(count: int) -> str:
    """Write bytes as people do: 1.5 GiB."""
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{number:.1f} {units[0]}"
