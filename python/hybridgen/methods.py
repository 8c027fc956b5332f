# SPDX-License-Identifier: Apache-2.0
"""The methods: their names, their options, and compositions of one's own.

Examples
--------
>>> from hybridgen import methods
>>> methods.H2O(heavy=64).heavy
64
>>> "hybridgen" in methods.names()
True
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from . import _core
from ._checks import as_int, as_text, brief, one_of, options_class
from .config import (
    H2O,
    HGCA,
    FlexGen,
    Full,
    HybridGen,
    InfiniGen,
    Keyformer,
    MethodOptions,
    MoELightning,
    StreamingLLM,
)
from .errors import ConfigError

__all__ = [
    "H2O",
    "HGCA",
    "Composition",
    "FlexGen",
    "Full",
    "HybridGen",
    "InfiniGen",
    "Keyformer",
    "LayerRule",
    "MethodOptions",
    "MoELightning",
    "StreamingLLM",
    "names",
    "reads",
    "register",
    "summaries",
    "table",
]


@options_class
class LayerRule:
    """What the host does in a layer of a composition.

    Parameters
    ----------
    query : str
        "none", "exact" (the layer's own) or "guessed" (from the layer before).
    payload : str
        What it sends: "nothing", "logits_and_values", "keys_and_values", "partial_attention".
    choice : str
        Of which tokens: "all", those of a "selector", or by "partial_keys".
    """

    query: str
    payload: str
    choice: str = "all"

    def __post_init__(self) -> None:
        for name in ("query", "payload", "choice"):
            as_text("LayerRule", name, getattr(self, name))

    def parts(self) -> tuple[str, str, str]:
        """Return the three parts in the order that the engine takes them."""
        return self.query, self.payload, self.choice


@options_class
class Composition:
    """A method made of the same parts as the library's own.

    Parameters
    ----------
    residency : str
        Tokens on the device: "all", a "window" of the newest, or "none".
    rule : LayerRule
        What the host does in every layer, or in those from ``first_layer`` on.
    early_rule : LayerRule, optional
        What it does in the layers before ``first_layer``.
    first_layer : int
        First layer of ``rule`` if there is an ``early_rule``.
    strategy : str
        "post" (tokens are chosen by their logits) or "pre".
    selector, pre_selector : str
        Names of selectors, for a rule that chooses by one.
    window : int, optional
        Tokens of the window; without it ``KVConfig.device_tokens``, by default as many as fit.

    Of the options of `LLM` that not every method reads, a composition reads ``k`` where a selector
    chooses and ``device_tokens`` where there is a window without a number; its query, selectors and
    strategy are its own.

    Examples
    --------
    >>> Composition(
    ...     residency="window", rule=LayerRule(query="none", payload="keys_and_values"), window=1
    ... ).residency
    'window'
    """

    residency: str
    rule: LayerRule
    early_rule: LayerRule | None = None
    first_layer: int = 0
    strategy: str = "post"
    selector: str = ""
    pre_selector: str = ""
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("residency", "strategy", "selector", "pre_selector"):
            as_text("Composition", name, getattr(self, name))
        for name in ("rule", "early_rule"):
            value = getattr(self, name)
            if not (isinstance(value, LayerRule) or (value is None and name == "early_rule")):
                raise ConfigError(f"[Composition] {name} is {brief(value)}; allowed: a LayerRule")
        first = as_int("Composition", "first_layer", self.first_layer, 0)
        object.__setattr__(self, "first_layer", first)
        if self.window is not None:
            window = as_int("Composition", "window", self.window, 0)
            object.__setattr__(self, "window", window)
        self.build("composition")

    def build(self, name: str) -> _core.Composition:
        """Return the engine's form of it; refuses parts that do not go together."""
        return _core.Composition(
            name=name,
            residency=self.residency,
            rule=self.rule.parts(),
            early_rule=None if self.early_rule is None else self.early_rule.parts(),
            first_layer=self.first_layer,
            strategy=self.strategy,
            selector=self.selector,
            pre_selector=self.pre_selector,
            window=self.window,
        )


_compositions: dict[str, Composition] = {}


def names() -> list[str]:
    """Return the names of all methods for ``LLM(method=...)``, registered compositions too."""
    return [row["name"] for row in _core.method_table()] + list(_compositions)


def table() -> list[dict[str, Any]]:
    """Return what there is to know about every method of the library, as plain data."""
    return list(_core.method_table())


def reads(name: str) -> tuple[str, ...]:
    """Return which engine options a method reads that not every method does.

    The names are those of the engine; `LLM` refuses any other of them that is set:
    ``query``, ``selector``, ``device_tokens`` of KVConfig, ``k`` of SchedulerConfig, ...

    Raises
    ------
    ConfigError
        If there is no such method.
    """
    one_of("methods.reads", "name", name, names())
    if name in _compositions:
        return tuple(_compositions[name].build(name).reads)
    return next(tuple(row["reads"]) for row in _core.method_table() if row["name"] == name)


def summaries() -> dict[str, str]:
    """Return one line about each method of the library, by name."""
    return {row["name"]: row["summary"] for row in _core.method_table()}


def register(name: str, composition: Composition) -> None:
    """Make a composition selectable by name, as ``LLM(method=name)``.

    Raises
    ------
    ConfigError
        If the name is one of the library's own.
    """
    if not isinstance(composition, Composition):
        raise ConfigError(
            f"[methods.register] composition is {brief(composition)}; allowed: a Composition"
        )
    composition.build(as_text("methods.register", "name", name))
    if name in (row["name"] for row in _core.method_table()):
        raise ConfigError(
            f"[methods.register] name is {brief(name)}; allowed: any that is not one of the "
            "library's own"
        )
    _compositions[name] = composition


def composition_of(name: str) -> Composition | None:
    """Return the composition that was registered by a name; None for the library's methods."""
    return _compositions.get(name)


class _Callable(ModuleType):
    """The old spelling ``hybridgen.methods()``; lists nothing but what is public."""

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name.startswith("__") or name in __all__]

    def __call__(self) -> list[str]:
        return names()


sys.modules[__name__].__class__ = _Callable
