# SPDX-License-Identifier: Apache-2.0
"""Options of the methods, compositions of one's own, and selectors written in Python.

``hybridgen.methods`` is the way in: call it for the names, take a method's options from it
(``hybridgen.methods.H2O(heavy=0.1)``), register a composition with it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from ._checks import MAX_COUNT, MAX_INT64, as_int, brief, one_of, options_class, to_float
from .errors import ConfigError


def _plain(method: str, name: str, value: object) -> bool | int | float | str:
    """Return an option as the engine takes it; NumPy's numbers count, None and lists do not."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        highest = MAX_INT64 if name == "seed" else MAX_COUNT
        return as_int(f"method {method}", name, value, -highest, highest)
    if isinstance(value, numbers.Real):
        return to_float(value)
    if isinstance(value, str) and value.isprintable():  # no half of a character either
        return value
    allowed = {
        option["name"]: option["allowed"]
        for row in _core.method_table()
        if row["name"] == method
        for option in row["tunables"]
    }
    raise ConfigError(
        f"[method {method}] {name} is {brief(value)}; allowed: "
        f"{allowed.get(name, 'a number, a text, True or False')}"
    )


class MethodOptions:
    """Base of all methods' options: checked when they are made."""

    method: ClassVar[str]
    _read_where: ClassVar[Mapping[str, Any]] = {}
    """Options of the engine under which every one of these is read; `LLM` checks its own."""

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            object.__setattr__(self, name, _plain(self.method, name, value))
        _core.EngineOptions(method=self.method, method_config=self.values(), **self._read_where)

    def values(self) -> dict[str, Any]:
        """Return the options by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@options_class
class Full(MethodOptions):
    """Full attention, everything on the device; there is nothing to choose."""

    method: ClassVar[str] = "full"


@options_class
class HybridGen(MethodOptions):
    """HybridGen's options beyond those of `LLM` itself.

    Parameters
    ----------
    column_share : float
        With ``pre_selector="partial_keys"`` where tokens may be chosen before their logits
        (``strategy="pre"`` or ``k=None``): share of every key's dimensions that it sees.
    """

    method: ClassVar[str] = "hybridgen"
    _read_where: ClassVar[Mapping[str, Any]] = {"strategy": "pre"}
    column_share: float = 0.2


@options_class
class FlexGen(MethodOptions):
    """Keys and values stream from the host to the device (Sheng et al., 2023).

    Parameters
    ----------
    gpu_share : float
        Share of a prompt's tokens, the newest, that stay on the device; or set
        ``KVConfig.device_tokens``.
    attn_sparsity : float
        Share of the tokens whose values are fetched: those with the largest weights.
    """

    method: ClassVar[str] = "flexgen"
    gpu_share: float = 0.0
    attn_sparsity: float = 1.0


@options_class
class MoELightning(MethodOptions):
    """Attention on the host, everything else on the device (Cao et al., 2025).

    Parameters
    ----------
    micro_batches : int
        Parts of the batch that alternate between host and device.
    lookahead : int
        Micro-batches whose queries are projected ahead of the one that is finished.
    """

    method: ClassVar[str] = "moe_lightning"
    micro_batches: int = 2
    lookahead: int = 2


@options_class
class StreamingLLM(MethodOptions):
    """Attention sinks and a window of recent tokens (Xiao et al., 2024).

    Parameters
    ----------
    sinks, window : int
        First and newest tokens that are kept.
    positions : str
        "original", "shift" (rotary models: places in the cache) or "clamp" (learned positions).
    home : str
        "device", or "host" to stream the kept tokens every step.
    """

    method: ClassVar[str] = "streaming_llm"
    sinks: int = 4
    window: int = 1024
    positions: str = "original"
    home: str = "device"


@options_class
class H2O(MethodOptions):
    """Heavy hitters and recent tokens (Zhang et al., 2023).

    Parameters
    ----------
    heavy, recent : int or float
        Tokens with the largest accumulated weights and newest tokens: numbers, or shares of the
        prompt.
    positions : str
        "original" or "shift" (rotary models: places in the cache).
    home : str
        "device", or "host" to stream the kept tokens every step.
    """

    method: ClassVar[str] = "h2o"
    heavy: int | float = 0.1
    recent: int | float = 0.1
    positions: str = "original"
    home: str = "device"


@options_class
class Keyformer(MethodOptions):
    """Key tokens by Gumbel-softmax scores, and recent tokens (Adnan et al., 2024).

    Parameters
    ----------
    kv_cache : int or float
        Tokens that are kept in all: a number, or a share of the prompt.
    recent : float
        Share of that budget for the newest tokens.
    tau_init, tau_end : float
        Temperature of the prompt's scores and of the last new token's.
    noise : bool
        Whether Gumbel noise is added to the scores' logits.
    seed : int
        Of the noise, where there is some.
    home : str
        "device", or "host" to stream the kept tokens every step.
    """

    method: ClassVar[str] = "keyformer"
    kv_cache: int | float = 0.6
    recent: float = 0.3
    tau_init: float = 1.0
    tau_end: float = 2.0
    noise: bool = True
    seed: int = 0
    home: str = "device"


@options_class
class InfiniGen(MethodOptions):
    """Tokens prefetched by guessed logits over partial keys (Lee et al., 2024).

    Parameters
    ----------
    alpha : float
        Tokens whose guessed logit is within alpha of the largest are wanted.
    column_share : float
        Share of every key's rotated dimensions that the guess sees.
    max_fetch : int or float
        Tokens fetched per KV head at most: a number, or a share of the offloaded ones.
    first_layer : int
        First layer that is guessed; those before it load every token.
    capacity : float
        Share of a request's tokens that the host keeps, never less than its prompt.
    policy : str
        Which token leaves a full pool (``capacity`` below 1.0): "fifo", "lru" or "counter".
    """

    method: ClassVar[str] = "infinigen"
    alpha: float = 4.0
    column_share: float = 0.2
    max_fetch: int | float = 0.2
    first_layer: int = 2
    capacity: float = 1.0
    policy: str = "counter"


@options_class
class HGCA(MethodOptions):
    """A dense window on the device, salient older tokens on the host (Deng et al., 2025).

    Parameters
    ----------
    block, blocks : int
        Tokens that leave the window at once, and blocks in the window; instead of ``blocks``,
        ``KVConfig.device_tokens`` may set the window.
    alpha : float
        Weight of the newest step in a token's moving average.
    beta : float
        Salience threshold, in shares of the window's mean weight; 0 keeps every token.
    keep_min : int
        Tokens of every leaving block that are kept at least.
    groups : int
        Groups of KV heads that keep the same number of tokens.
    """

    method: ClassVar[str] = "hgca"
    block: int = 128
    blocks: int = 2
    alpha: float = 0.5
    beta: float = 0.5
    keep_min: int = 10
    groups: int = 4


OPTIONS: tuple[type[MethodOptions], ...] = (
    Full,
    HybridGen,
    FlexGen,
    MoELightning,
    StreamingLLM,
    H2O,
    Keyformer,
    InfiniGen,
    HGCA,
)


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


class PostSelector(Protocol):
    """What `register_selector` takes for Post-QKT: one object per request."""

    def select(
        self, layer: int, head: int, logits: npt.NDArray[np.float32], k: int
    ) -> Sequence[int]:
        """Return exactly k positions, ascending, from the logits of all offloaded tokens."""
        ...


class PreSelector(Protocol):
    """What `register_selector` takes for Pre-QKT: one object per request."""

    def plan(
        self,
        layer: int,
        kv_head: int,
        queries: npt.NDArray[np.float32],
        num_offloaded: int,
        k: int,
    ) -> Sequence[int]:
        """Return at most k positions in ascending order, for all query heads of a KV head.

        ``queries`` holds the scaled queries of these heads, one after the other.
        """
        ...


def register_selector(
    name: str, make: Callable[..., PostSelector | PreSelector], *, strategy: str
) -> None:
    """Add a token selector for ``LLM(selector=...)`` or ``LLM(pre_selector=...)``.

    Parameters
    ----------
    name : str
        Any name that is not one of the library's own; a second registration replaces the first.
    make : callable
        Called once per request with ``num_layers``, ``num_kv_heads``, ``num_heads``, ``head_dim``
        and ``max_offloaded`` as keywords; returns a `PostSelector` or a `PreSelector`. Its methods
        run on the host's worker threads, one at a time.
    strategy : str
        "post" or "pre".
    """
    one_of("register_selector", "strategy", strategy, ["post", "pre"])
    if not isinstance(name, str) or not callable(make):
        raise ConfigError(
            f"[register_selector] name is {brief(name)} and make is {brief(make)}; allowed: a "
            "text, and something to call"
        )
    _core.register_selector(name, strategy, make)


AnyComposition: TypeAlias = Composition


class Methods:
    """The methods: their names, their options, and compositions of one's own."""

    Full = Full
    HybridGen = HybridGen
    FlexGen = FlexGen
    MoELightning = MoELightning
    StreamingLLM = StreamingLLM
    H2O = H2O
    Keyformer = Keyformer
    InfiniGen = InfiniGen
    HGCA = HGCA
    LayerRule = LayerRule
    Composition = Composition

    def __call__(self) -> list[str]:
        """Return the names of all methods for ``LLM(method=...)``."""
        return [row["name"] for row in _core.method_table()] + list(_compositions)

    def table(self) -> list[dict[str, Any]]:
        """Return what there is to know about every method of the library, as plain data."""
        return list(_core.method_table())

    def reads(self, name: str) -> tuple[str, ...]:
        """Return which engine options a method reads that not every method does.

        The names are those of the engine; `LLM` refuses any other of them that is set:
        ``query``, ``selector``, ``device_tokens`` of KVConfig, ``k`` of SchedulerConfig, ...

        Raises
        ------
        ConfigError
            If there is no such method.
        """
        one_of("methods.reads", "name", name, self())
        if name in _compositions:
            return tuple(_compositions[name].build(name).reads)
        return next(tuple(row["reads"]) for row in _core.method_table() if row["name"] == name)

    def summaries(self) -> dict[str, str]:
        """Return one line about each method of the library, by name."""
        return {row["name"]: row["summary"] for row in _core.method_table()}

    def register(self, name: str, composition: AnyComposition) -> None:
        """Make a composition selectable by name, as ``LLM(method=name)``.

        Raises
        ------
        ConfigError
            If the name is one of the library's own.
        """
        if not isinstance(composition, AnyComposition):
            raise ConfigError(
                f"[methods.register] composition is {brief(composition)}; allowed: a Composition"
            )
        composition.build(name)
        if name in (row["name"] for row in _core.method_table()):
            raise ConfigError(
                f"[methods.register] name is {brief(name)}; allowed: any that is not one of the "
                "library's own"
            )
        _compositions[name] = composition


methods = Methods()


def resolve_method(
    method: str, config: MethodOptions | Mapping[str, Any] | None
) -> tuple[dict[str, Any], Composition | None]:
    """Return a method's options by name, and its composition if it is a user's own.

    Raises
    ------
    ConfigError
        If the name is unknown, or the options belong to another method.
    """
    one_of("LLM", "method", method, methods())
    composition = _compositions.get(method)
    if config is None:
        return {}, composition
    if composition is not None:
        raise ConfigError(
            f"[LLM] method_config is {brief(config)}; allowed: None, as {method!r} is a "
            "composition without options; register another one instead"
        )
    if isinstance(config, MethodOptions):
        if config.method != method:
            raise ConfigError(
                f"[LLM] method_config is {type(config).__name__}; allowed: a dict or the options "
                f"of {method!r}; or pass method={config.method!r}"
            )
        return config.values(), None
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise ConfigError(
            f"[LLM] method_config is {brief(config)}; allowed: a dict of options or one of "
            "hybridgen.methods' classes"
        )
    return {name: _plain(method, name, value) for name, value in config.items()}, None
