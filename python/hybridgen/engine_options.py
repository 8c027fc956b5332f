# SPDX-License-Identifier: Apache-2.0
"""What an LLM is asked for becomes the engine's options: checked before anything is loaded.

Which options a method reads is the engine's knowledge (`hybridgen.methods.reads`); what a method
does not read is refused there, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import _core
from ._checks import as_int, brief, one_of
from .config import QUERY_MODES, CpuConfig, KVConfig, QueryConfig, SchedulerConfig, is_auto
from .errors import ConfigError
from .k_min import resolve_k, resolve_k_min
from .method_options import MethodOptions, methods, resolve_method
from .model import Model


class EngineSetup:
    """Options of one engine, checked by themselves; `options` finishes them for a model.

    Parameters are those of `LLM`.

    Raises
    ------
    ConfigError
        For an option that is not allowed, or that the method does not read.
    """

    def __init__(
        self,
        *,
        method: str,
        method_config: MethodOptions | Mapping[str, Any] | None,
        kv: KVConfig | None,
        query: str | QueryConfig,
        selector: str,
        pre_selector: str,
        scheduler: SchedulerConfig | None,
        cpu: CpuConfig | None,
        max_model_len: int | None,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        kv = instance("kv", kv, KVConfig)
        self.cpu: CpuConfig = instance("cpu", cpu, CpuConfig)
        self._scheduler: SchedulerConfig = instance("scheduler", scheduler, SchedulerConfig)
        values, composition = resolve_method(method, method_config)
        if not isinstance(query, QueryConfig):
            query = QueryConfig(mode=one_of("LLM", "query", query, QUERY_MODES))
        one_of("LLM", "selector", selector, _core.selector_names("post"))
        one_of("LLM", "pre_selector", pre_selector, _core.selector_names("pre"))
        one_of("CpuConfig", "isa", self.cpu.isa, ["auto", *_core.build_info()["isas"]])
        if max_model_len is not None:
            max_model_len = as_int("LLM", "max_model_len", max_model_len, 1)
        self._reads_k = "k" in methods.reads(method)
        self._composition = None if composition is None else composition.build(method)
        self._options: dict[str, Any] = {
            "method": method,
            "method_config": values,
            "composition": self._composition,
            "query": query.mode,
            "spec_first_layer": query.first_layer,
            "guess_norm": query.norm,
            "guess_source": query.source,
            "selector": selector,
            "pre_selector": pre_selector,
            "strategy": self._scheduler.strategy,
            "scoring": kv.scoring,
            "candidates_per_k": kv.candidates_per_k or 0.0,
            "device_tokens": None if is_auto(kv.device_tokens) else kv.device_tokens,
            "dram_bytes": 0 if is_auto(kv.dram) else kv.dram,
            "threads": 0 if is_auto(self.cpu.threads) else self.cpu.threads,
            "device_threads": 0 if is_auto(self.cpu.device_threads) else self.cpu.device_threads,
            "numa_node": self.cpu.numa if isinstance(self.cpu.numa, int) else -1,
            "divides_heads": is_auto(self.cpu.numa),
            "isa": self.cpu.isa,
            "max_model_len": max_model_len or 0,
            "max_batch": as_int("LLM", "max_num_seqs", max_num_seqs, 1),
            "prefill_chunk": as_int("LLM", "max_num_batched_tokens", max_num_batched_tokens, 1),
        }
        self.options(None)  # refuses bad values before anything is loaded

    def options(self, path: Path | None, device_bytes: int = 0) -> _core.EngineOptions:
        """Return the engine's options.

        Parameters
        ----------
        path : Path or None
            The checkpoint's folder, in which a k_min.json may lie.
        device_bytes : int
            What requests may take on the device; 0 lets the engine look at host memory.

        Raises
        ------
        ConfigError
            Also if the k_min.json is needed and broken, or belongs to another model.
        """
        place = path if self._reads_k else None
        scheduler = self._scheduler
        return _core.EngineOptions(
            **self._options,
            k=resolve_k(scheduler, place),
            scheduler=(
                scheduler.options(resolve_k_min(scheduler, place)) if scheduler.is_steered else None
            ),
            device_bytes=device_bytes,
        )

    def engine(self, model: Model) -> Any:
        """Return an engine of a loaded model; see `options`."""
        options = self.options(model.path, _free_device_bytes(model.device))
        if self._composition is None:
            return _core.Engine(model.weights, options)
        return _core.Engine(model.weights, options, self._composition)


def instance(name: str, value: Any, kind: type[Any]) -> Any:
    """Return an object of an options class, a default one for None."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigError(
            f"[LLM] {name} is {brief(value)}; allowed: a {kind.__name__}, for example "
            f"{name}={kind.__name__}()"
        )
    return value


def _free_device_bytes(device: str) -> int:
    """Return what a request's window may take on a GPU; 0 lets the engine look at host memory."""
    if not device.startswith("cuda"):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.9 * free)  # the rest is for activations
