# SPDX-License-Identifier: Apache-2.0
"""What an LLM is asked for becomes the engine's options: checked before anything is loaded.

Which options a method reads, and what is allowed, is the engine's knowledge: what a method does not
read is refused there, by name. Here several ways to say one thing come together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _core, methods, selectors
from ._checks import brief, one_of
from ._options import MethodOptions, Options, fields_of, plain, said
from .config import METHOD_OPTIONS, CpuConfig, KVConfig, QueryConfig, SchedulerConfig
from .errors import ConfigError
from .k_min_profile import profiled_k_min
from .model import Model


class EngineSetup:
    """Options of one engine, checked by themselves; `options` finishes them for a model.

    Parameters are those of `LLM`.

    Raises
    ------
    ConfigError
        For an option that is not allowed, that the method does not read, or that is said twice and
        differently.
    """

    def __init__(
        self,
        *,
        method: str | MethodOptions | None = None,
        method_config: MethodOptions | Mapping[str, Any] | None = None,
        kv: KVConfig | None = None,
        query: str | QueryConfig | None = None,
        selector: str | None = None,
        pre_selector: str | None = None,
        scheduler: SchedulerConfig | None = None,
        cpu: CpuConfig | None = None,
        device_bytes: int | str = "auto",
        **limits: int | None,
    ) -> None:
        kv = instance("kv", kv, KVConfig)
        self.cpu: CpuConfig = instance("cpu", cpu, CpuConfig)
        one_of("CpuConfig", "isa", self.cpu.isa, ["auto", *_core.build_info()["isas"]])
        scheduler = instance("scheduler", scheduler, SchedulerConfig)
        name, own = resolve_method(method, method_config)
        composition = methods.composition_of(name)
        self._composition = None if composition is None else composition.build(name)
        self._choice = _Choice()
        if name == "hybridgen":
            self._choice.add_all(own, "the method's options")
            own = {}
        places = {"query": query, "selector": selector, "pre_selector": pre_selector}
        given = {place: value for place, value in places.items() if value is not None}
        self._choice.add_all(given | {"scheduler": scheduler}, "LLM")
        kept = said(kv)
        self._choice.add_all(_taken(kept, "scoring", "candidates_per_k"), "KVConfig")
        kept = {name: plain(value) for name, value in kept.items()}
        self._reads_k = "k" in methods.reads(name)
        self._options = kept | fields_of(self.cpu) | {"method": name, "method_config": own}
        self._options |= {"composition": self._composition}
        self._options |= _core.checked_options("LLM", limits)
        self._options["device_bytes"] = device_bytes
        self.options(None)  # refuses bad values before anything is loaded

    def options(self, path: Path | None) -> _core.EngineOptions:
        """Return the engine's options.

        Parameters
        ----------
        path : Path or None
            The checkpoint's folder, in which a k_min.json may lie.

        Raises
        ------
        ConfigError
            Also if the k_min.json is needed and broken, or belongs to another model.
        """
        chosen = self._choice.values(path if self._reads_k else None)
        return _core.EngineOptions(**self._options, **chosen)

    def engine(self, model: Model) -> Any:
        """Return an engine of a loaded model; see `options`."""
        options = self.options(model.path)
        if self._composition is None:
            return _core.Engine(model.weights, options)
        return _core.Engine(model.weights, options, self._composition)

    def plan(self, config: _core.ModelConfig, *, path: Path | None, **run: Any) -> dict[str, Any]:
        """Return what a batch on an engine of such a model takes; see ``_core.plan_run``."""
        options = self.options(path)
        found = _core.plan_run(config, options, self._composition, **run)
        return {"method": options.method, **found}


class _Choice:
    """How offloaded tokens are chosen, from all places where that can be said."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, str]] = {}

    def add_all(self, options: Mapping[str, Any], place: str) -> None:
        """Take options by their names in `hybridgen.methods.HybridGen`."""
        for name, value in options.items():
            if name == "scheduler" and isinstance(value, SchedulerConfig):
                steering = said(value)
                of_method = _taken(steering, "k", "strategy")
                if value.is_steered:
                    of_method["scheduler"] = steering
                self.add_all(of_method, "SchedulerConfig")
            else:
                self._add(name, value, place)

    def _add(self, name: str, value: Any, place: str) -> None:
        if isinstance(value, QueryConfig):
            fields = said(value)
            value = plain(value) if fields.keys() - {"mode"} else value.mode
        if name in ("selector", "pre_selector"):
            one_of("LLM", name, value, selectors.names("pre" if name == "pre_selector" else "post"))
        elif name == "query":
            _core.checked_options("HybridGen", {name: plain(value)})
        before, where = self._said.get(name, (value, place))
        if before != value:
            raise ConfigError(
                f"[LLM] {name} is {brief(before)} in {where} and {brief(value)} in {place}; "
                "allowed: one of them; say it in the method's options only"
            )
        self._said[name] = (value, place)

    def values(self, path: Path | None) -> dict[str, Any]:
        """Return them with K, and the K_min of a steered K, as the profile beside `path` says."""
        found = {name: value for name, (value, _) in self._said.items()}
        if found.get("mass") is not None:
            return found
        if found.get("k", "auto") == "auto":
            profiled = profiled_k_min(path)
            return found if profiled is None else found | {"k": profiled}
        if found["k"] is None:
            steering = dict(found.get("scheduler") or {})
            if steering.get("k_min", "auto") == "auto":
                steering["k_min"] = profiled_k_min(path) or "auto"
            if isinstance(steering["k_min"], int) and steering.get("k_max") is not None:
                steering["k_max"] = max(steering["k_min"], steering["k_max"])
            found["scheduler"] = steering
        return found


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the options that have these names, and take them out."""
    return {name: options.pop(name) for name in names if name in options}


def resolve_method(
    method: str | MethodOptions | None, config: MethodOptions | Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Return a method's name and what is said of its own options.

    Raises
    ------
    ConfigError
        If the name is unknown, or the options belong to another method.
    """
    if isinstance(method, METHOD_OPTIONS):
        if config is not None and config != method:
            raise ConfigError(
                f"[LLM] method_config is {brief(config)} beside method={brief(method)}; allowed: "
                "None, as the method has its options with it; say them there"
            )
        config, method = method, method.method
    elif method is None:
        method = config.method if isinstance(config, METHOD_OPTIONS) else "hybridgen"
    method = one_of("LLM", "method", method, methods.names())
    if config is None:
        return method, {}
    if methods.composition_of(method) is not None:
        raise ConfigError(
            f"[LLM] method_config is {brief(config)}; allowed: None, as {method!r} is a "
            "composition without options; register another one instead"
        )
    if isinstance(config, METHOD_OPTIONS):
        if config.method != method:
            raise ConfigError(
                f"[LLM] method_config is {type(config).__name__}; allowed: a dict or the options "
                f"of {method!r}; or pass method={config.method!r}"
            )
        return method, said(config)
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise ConfigError(
            f"[LLM] method_config is {brief(config)}; allowed: a dict of options or one of "
            "hybridgen.methods' classes"
        )
    kind = next(cls for cls in METHOD_OPTIONS if cls.method == method)
    _core.checked_options(kind.__name__, plain(config))
    return method, dict(config)


def instance(name: str, value: Any, kind: type[Options]) -> Any:
    """Return an object of an options class, a default one for None."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigError(
            f"[LLM] {name} is {brief(value)}; allowed: a {kind.__name__}, for example "
            f"{name}={kind.__name__}()"
        )
    return value
