# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of Ray's: on cores of its own, within its part of the node's memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch

from .. import _core
from .._checks import is_auto
from ..batch.engine_spec import EngineSpec
from ..batch.engine_window import EngineWindow
from ..batch.line import Answer, Line
from ..checkpoint import describe_model
from ..config import KVConfig, WeightConfig
from ..devices import resolve_device
from ..errors import DeviceError
from ..llm import LLM
from ..plan import plan
from .core_claims import CoreClaim, bind_process
from .node_share import budgets_within, memory_share


@dataclass(frozen=True)
class ActorPlace:
    """Where an engine runs and what it has there."""

    node: str
    pid: int
    cpus: tuple[int, ...]
    share: int
    dram: int
    device_bytes: int
    shared_bytes: int
    """Of weights that all engines of the node hold together, once."""

    def __str__(self) -> str:
        cpus = ", ".join(map(str, self.cpus))
        shared = f", {self.shared_bytes / 2**30:.1f} GiB of weights shared"
        return (
            f"an engine on {self.node}, CPUs {cpus}, {self.share / 2**30:.1f} GiB"
            f"{shared if self.shared_bytes else ''}, process {self.pid}"
        )


class SharedEngine:
    """An engine that has its part of a node, as Ray has assigned it.

    Parameters
    ----------
    spec : EngineSpec
        Of what.

    Raises
    ------
    ConfigError
        If there are not so many cores, or for an option that is not allowed.
    OutOfMemoryError
        If the part of the memory is too small.
    """

    def __init__(self, spec: EngineSpec) -> None:
        ray: Any = import_module("ray")
        context = ray.get_runtime_context()
        assigned = context.get_assigned_resources()
        node_id = context.get_node_id()
        node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
        if node is None:
            raise DeviceError(f"[batch] Ray does not know this actor's node {node_id}")
        cpus = max(1, int(assigned.get("CPU", 1)))
        self._claim = CoreClaim(cpus, nodes=[found["cpus"] for found in _core.numa_nodes()])
        bind_process(self._claim.cpus)
        torch.set_num_threads(cpus)
        node_cpus = node["Resources"]["CPU"]
        part = memory_share(node["Resources"]["memory"], node_cpus, cpus)
        share = int(assigned.get("memory", part))
        options = with_shared_weights(spec.model, spec.engine)
        held, is_shared = _held_weights(spec.model, options), _are_shared(options)
        # Of what a node holds once an engine bears its part, unless its memory is its own affair.
        is_divided = is_shared and "memory" not in assigned
        borne = memory_share(held, node_cpus, cpus) if is_divided else held
        budgets = budgets_within(share, borne, device_is_host=_is_cpu(options))
        kv = options.get("kv") or KVConfig()
        if is_auto(kv.dram):
            options["kv"] = replace(kv, dram=budgets.dram)
        if budgets.device is not None:
            options.setdefault("device_bytes", budgets.device)
        self.llm = LLM(spec.model, **options)
        self.window = EngineWindow(self.llm, spec.forms, spec.sampling, spec.seed)
        resolved = self.llm.engine_options
        self.place = ActorPlace(
            node=str(node["NodeManagerAddress"]),
            pid=os.getpid(),
            cpus=tuple(sorted(self._claim.cpus)),
            share=share,
            dram=resolved.dram,
            device_bytes=resolved.device_bytes,
            shared_bytes=held if is_shared else 0,
        )


def _is_cpu(options: Mapping[str, Any]) -> bool:
    return resolve_device("batch", options.get("device", "auto")).name == "cpu"


def with_shared_weights(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `LLM` by which a node holds weights once for all of its engines.

    Unless somebody has said how they are held, the device is not the CPU, or the checkpoint's files
    have them otherwise than they are used.
    """
    is_unsaid = options.get("weights") in (None, WeightConfig())
    if not is_unsaid or not _is_cpu(options):
        return dict(options)
    names = ("dtype", "load_format", "revision", "gguf_file")
    found = describe_model(model, **{name: options[name] for name in names if name in options})
    shared = {"weights": WeightConfig(shared=True)} if found.is_shareable else {}
    return {**options, **shared}


def _are_shared(options: Mapping[str, Any]) -> bool:
    return (options.get("weights") or WeightConfig()).shared


def _held_weights(model: str, options: Mapping[str, Any]) -> int:
    """Return bytes of host memory that weights take, by an engine's plan."""
    tiers = plan(model, prompt_tokens=1, new_tokens=1, **options).tiers
    on_host = [name for name in tiers if name != "device" or _is_cpu(options)]
    return sum(tiers[name]["weights"] for name in on_host if name != "disk")


class EngineActor:
    """What runs as an actor of Ray; `EngineSpec` says of what.

    What keeps an engine from being made is raised by `place`: an actor whose constructor raises is
    dead, and tells little.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine: SharedEngine | None = None
        self._error: Exception | None = None
        try:
            self._engine = SharedEngine(spec)
        except Exception as error:
            self._error = error

    def place(self) -> ActorPlace:
        """Return where the engine is; raises what kept it from being made."""
        if self._engine is None:
            assert self._error is not None
            raise self._error
        return self._engine.place

    def answer(self, lines: list[Line]) -> list[Answer]:
        """Return the answers to lines; other calls may run at the same time."""
        assert self._engine is not None
        return list(self._engine.window.answers(lines))
