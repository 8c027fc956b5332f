# SPDX-License-Identifier: Apache-2.0
"""Options of an engine: where keys and values live, how many tokens count, who computes.

All classes are frozen dataclasses with keyword-only fields, checked when they are made. What this
version cannot honour is refused with a ConfigError, never ignored.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from fractions import Fraction
from typing import Any

from typing_extensions import TypeIs

from . import _core
from ._checks import MAX_COUNT, as_bool, as_float, as_int, brief, one_of, options_class, to_float
from .errors import ConfigError

USUAL_K: tuple[int, float] = _core.EngineOptions().k
"""A fixed K without a profile of its model: so many tokens, or this share of them if it is more."""

DEFAULT_K = 128
"""First and smallest K of a steered request without a profile of its model."""

QUERY_MODES = ("exact", "speculative", "rescore")

_MAX_BYTES = 1 << 60
_MAX_FACTOR = 1e6

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 1 << shift for letter, shift in (("k", 10), ("m", 20), ("g", 30), ("t", 40))
}


def parse_bytes(operation: str, name: str, value: object) -> int:
    """Return a size in bytes from an int or from text such as ``"64GiB"`` or ``"1.5 GB"``.

    Raises
    ------
    ConfigError
        If the text is no size, or the size is not positive.
    """
    allowed = "'auto', a number of bytes from 1 to 1 EiB, or text such as '64GiB' or '500MB'"
    size: float = 0
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower(), re.ASCII)
        if match:
            size = float(match[1]) * _UNITS[match[2] or ""]
    elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
        size = int(value)
    if not 1 <= size <= _MAX_BYTES:
        raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: {allowed}")
    return int(size)


def _set(config: object, name: str, value: object) -> None:
    """Store the normalised value of a field of a frozen dataclass."""
    object.__setattr__(config, name, value)


@options_class
class KVConfig:
    """Where the keys and values of past tokens are kept.

    Parameters
    ----------
    device_tokens : "auto", int or float
        The newest tokens of a request that stay on the device: a number of tokens, a share of its
        prompt from 0.0 to 1.0, or as many as fit. ``1`` is one token, ``1.0`` the whole prompt. A
        share above 0.0 never means fewer than 256 tokens. What fits follows from the prompt, the
        new tokens and the device's whole budget; while others hold it, a request waits.
    dram : "auto", int or str
        Host memory for offloaded tokens at most: bytes, or text such as ``"64GiB"``.
    cxl, cxl_node : None
        Reserved; this version keeps all host data in DRAM.
    placement : "semantic"
        Which of K and V goes to which host tier. With DRAM only there is one answer.
    pin : True
        Host memory that a CUDA device copies from is always locked in place; without such a device
        there is nothing to lock.
    scoring : "full", "int8" or "int4"
        What a Post-QKT scan of the offloaded keys reads: the keys, or a copy of them in 8 or 4 bits
        kept beside them, a half or a quarter of float16's bytes. It only proposes tokens; which of
        those count, and their logits, come from the keys themselves. ``selector="topk"`` only.
    candidates_per_k : float, optional
        Tokens that get exact logits per token that counts, at least 1; with ``scoring`` "int8" or
        "int4". Default: 2 and 4.

    Examples
    --------
    >>> KVConfig(device_tokens=0.1, dram="8GiB").dram
    8589934592
    """

    device_tokens: str | int | float = "auto"
    dram: str | int = "auto"
    cxl: None = None
    placement: str = "semantic"
    cxl_node: None = None
    pin: bool = True
    scoring: str = "full"
    candidates_per_k: float | None = None

    def __post_init__(self) -> None:
        name = "KVConfig"
        _set(self, "device_tokens", _device_tokens(name, self.device_tokens))
        if not is_auto(self.dram):
            _set(self, "dram", parse_bytes(name, "dram", self.dram))
        for field in ("cxl", "cxl_node"):
            if getattr(self, field) is not None:
                raise ConfigError(
                    f"[{name}] {field} is {brief(getattr(self, field))}; allowed: None; this "
                    "version keeps offloaded tokens in DRAM only, so set dram instead"
                )
        one_of(name, "placement", self.placement, ["semantic"])
        _set(self, "pin", as_bool(name, "pin", self.pin))
        if not self.pin:
            raise ConfigError(
                f"[{name}] pin is False; allowed: True; this version always locks the memory that "
                "a CUDA device copies from"
            )
        one_of(name, "scoring", self.scoring, ["full", "int8", "int4"])
        if self.candidates_per_k is not None:
            value = as_float(name, "candidates_per_k", self.candidates_per_k, 1.0, _MAX_FACTOR)
            _set(self, "candidates_per_k", value)
            if self.scoring == "full":
                raise ConfigError(
                    f"[{name}] candidates_per_k is {value!r} with scoring 'full'; allowed: None; "
                    "set scoring to 'int8' or 'int4', or leave it out"
                )


def _device_tokens(operation: str, value: object) -> str | int | float:
    if is_auto(value):
        return value
    if isinstance(value, numbers.Integral):
        if not isinstance(value, bool) and 0 <= int(value) <= MAX_COUNT:
            return int(value)
    elif isinstance(value, numbers.Real) and 0.0 <= to_float(value) <= 1.0:
        return float(value)
    raise ConfigError(
        f"[{operation}] device_tokens is {brief(value)}; allowed: 'auto', an int in "
        f"[0, {MAX_COUNT}] (tokens), or a float in [0.0, 1.0] (share of the prompt)"
    )


@options_class
class SchedulerConfig:
    """How many offloaded tokens a step attends to (K), and when they are chosen.

    By default K is fixed, and so large that answers stay those of full attention; the same input
    gives the same text. With ``k=None`` the feedback scheduler steers both (paper §4.3): it
    compares the host's time with the device's every few steps, lets K rise while the host keeps
    up, lets it fall to ``k_min`` otherwise, and then chooses tokens before their logits are known.
    So generated text may depend on the machine's speed. Only a steered K reads the options after
    ``strategy``.

    Parameters
    ----------
    k : "auto", int, float, "all" or None
        Offloaded tokens attended to per head. "auto": the value in the ``k_min.json`` beside the
        checkpoint (see `calibrate`), or without one the larger of 256 and an eighth of the
        offloaded tokens. A number; a share of the offloaded tokens between 0.0 and 1.0; all of
        them. None: as many as stage times allow.
    strategy : "post" or "pre"
        Choose tokens after their logits are known (Post-QKT), or before (Pre-QKT); what a steered
        request starts with.
    k_min : "auto" or int
        First and smallest K of a steered request; "auto" is the value in ``k_min.json``, or 128
        without one.
    k_max : None or int
        Largest K of a steered request; None: all offloaded tokens.
    adapt_k, adapt_strategy : bool
        What a steered request may change.
    return_to_post : "never" or "estimate"
        Whether a request that chooses before may choose after again, once the scan of all keys is
        estimated to fit beside the device's work.
    grow, shrink : float
        Factors of one rise and one fall of K.
    interval : int
        Decode steps per decision.
    warmup : int
        Steps without measuring after the prompt and after each change of strategy.
    deadband : float
        Nothing changes while the host is slower than the device by less than this share.

    Examples
    --------
    >>> SchedulerConfig.preset("fixed_post", k_min=64).adapt_k
    False
    """

    k: int | float | str | None = "auto"
    strategy: str = "post"
    k_min: str | int = "auto"
    k_max: int | None = None
    adapt_k: bool = True
    adapt_strategy: bool = True
    return_to_post: str = "never"
    grow: float = 1.2
    shrink: float = 0.8
    interval: int = 4
    warmup: int = 1
    deadband: float = 0.0

    def __post_init__(self) -> None:
        name = "SchedulerConfig"
        _set(self, "k", _tokens_to_attend(name, self.k))
        one_of(name, "strategy", self.strategy, ["post", "pre"])
        if isinstance(self.k_min, str):
            one_of(name, "k_min", self.k_min, ["auto"])
        else:
            _set(self, "k_min", as_int(name, "k_min", self.k_min, 1))
        if self.k_max is not None:
            lowest = self.k_min if isinstance(self.k_min, int) else 1
            _set(self, "k_max", as_int(name, "k_max", self.k_max, lowest))
        _set(self, "adapt_k", as_bool(name, "adapt_k", self.adapt_k))
        _set(self, "adapt_strategy", as_bool(name, "adapt_strategy", self.adapt_strategy))
        one_of(name, "return_to_post", self.return_to_post, ["never", "estimate"])
        _set(self, "grow", as_float(name, "grow", self.grow, 1.0, _MAX_FACTOR))
        _set(self, "shrink", as_float(name, "shrink", self.shrink, 0.0, 1.0))
        _set(self, "interval", as_int(name, "interval", self.interval, 1))
        _set(self, "warmup", as_int(name, "warmup", self.warmup, 0))
        _set(self, "deadband", as_float(name, "deadband", self.deadband, 0.0, _MAX_FACTOR))
        if not self.is_steered:
            self._refuse_what_only_steering_reads()
        self.options(DEFAULT_K if isinstance(self.k_min, str) else self.k_min)

    def _refuse_what_only_steering_reads(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("k", "strategy") and value != field.default:
                raise ConfigError(
                    f"[SchedulerConfig] {field.name} is {value!r} with k {self.k!r}; allowed: "
                    f"{field.default!r}, as only a steered K reads it; set k=None"
                )

    @classmethod
    def preset(cls, name: str, **options: Any) -> SchedulerConfig:
        """Return one of the six schedules of the paper's ablation; all are steered (``k=None``).

        Parameters
        ----------
        name : str
            ``fixed_pre``, ``fixed_post``, ``fixed_adaptive``, ``adaptive_pre``, ``adaptive_post``
            or ``full``: K fixed at ``k_min`` or steered, tokens chosen before, after or by times.
        **options
            Any other option of this class.
        """
        return cls(**({"k": None} | dict(_core.scheduler_preset(name)) | options))

    @property
    def is_steered(self) -> bool:
        """Whether the feedback scheduler decides."""
        return self.k is None

    @property
    def resolved_k(self) -> int | float | tuple[int, float] | None:
        """A fixed K as the engine takes it: None is every offloaded token, a pair the larger."""
        if self.k == "all":
            return None
        return USUAL_K if self.k is None or isinstance(self.k, str) else self.k

    def options(self, k_min: int) -> _core.SchedulerOptions | None:
        """Return what steers a request whose ``k_min`` is known; None if nothing does."""
        if not self.is_steered:
            return None
        return _core.SchedulerOptions(
            k_min=k_min,
            k_max=None if self.k_max is None else max(k_min, self.k_max),
            grow=_fraction(self.grow),
            shrink=_fraction(self.shrink),
            interval=self.interval,
            warmup=self.warmup,
            deadband=self.deadband,
            adapt_k=self.adapt_k,
            adapt_strategy=self.adapt_strategy,
            strategy=self.strategy,
            return_to_post=self.return_to_post,
        )


def _fraction(factor: float) -> tuple[int, int]:
    """Return the fraction that a decimal such as 1.2 stands for."""
    exact = Fraction(repr(float(factor))).limit_denominator(1_000_000)
    return exact.numerator, exact.denominator


def _tokens_to_attend(operation: str, value: object) -> int | float | str | None:
    if value is None or (isinstance(value, str) and value in ("auto", "all")):
        return value
    if isinstance(value, numbers.Integral):
        if not isinstance(value, bool) and 1 <= int(value) <= MAX_COUNT:
            return int(value)
    elif isinstance(value, numbers.Real) and 0.0 < to_float(value) < 1.0:
        return float(value)
    raise ConfigError(
        f"[{operation}] k is {brief(value)}; allowed: 'auto', an int in [1, {MAX_COUNT}] (tokens), "
        "a float in (0.0, 1.0) (share of the offloaded tokens), 'all', or None (steered)"
    )


@options_class
class WeightConfig:
    """Where the weights live; this version keeps all of them on the device.

    Parameters
    ----------
    gpu : float
        Share of the weights on the device; only 1.0 is possible.
    """

    gpu: float = 1.0

    def __post_init__(self) -> None:
        _set(self, "gpu", as_float("WeightConfig", "gpu", self.gpu, 0.0, 1.0))
        if self.gpu != 1.0:
            raise ConfigError(
                f"[WeightConfig] gpu is {self.gpu}; allowed: 1.0; this version keeps all weights "
                "on the device, so offload keys and values instead (KVConfig.device_tokens)"
            )


@options_class
class CpuConfig:
    """Threads, memory node and instruction set of the host's part.

    Parameters
    ----------
    threads : "auto" or int
        Threads that score offloaded tokens.
    device_threads : "auto" or int
        Threads of the device's part when the device is the CPU.
    numa : "auto", "off" or int
        Where offloaded tokens lie and which CPUs score them. "auto" divides key/value heads over
        the memory nodes of this machine, if it has several with CPUs that this process may use:
        a head's tokens lie on one node, whose CPUs score them first; `LLM.numa_parts` shows it.
        "off" leaves both to the operating system. A number is one node, with CPUs, from
        ``numa_nodes`` in ``hybridgen.info()``, for all of them.
    isa : str
        "auto", or one of the names under ``isas`` in ``hybridgen.info()``.
    """

    threads: str | int = "auto"
    device_threads: str | int = "auto"
    numa: str | int = "auto"
    isa: str = "auto"

    def __post_init__(self) -> None:
        name = "CpuConfig"
        for field, low, high in (
            ("threads", 1, 4096),
            ("device_threads", 1, 4096),
            ("numa", 0, 1023),  # Linux knows at most 1024 nodes
        ):
            value = getattr(self, field)
            if isinstance(value, str):
                one_of(name, field, value, ["auto", "off"] if field == "numa" else ["auto"])
            else:
                _set(self, field, as_int(name, field, value, low, high))
        if not isinstance(self.isa, str) or not self.isa:
            raise ConfigError(
                f"[{name}] isa is {brief(self.isa)}; allowed: 'auto' or a name that "
                "hybridgen.info() lists under isas"
            )


@options_class
class QueryConfig:
    """Which query the host scores offloaded keys with.

    Parameters
    ----------
    mode : str
        "rescore" guesses it one layer ahead, but only to choose tokens; "speculative" uses the
        guessed logits, too; "exact" waits for the layer's own.
    first_layer : int
        First layer whose query is guessed, at least 1; the layers before it are exact. Their
        inputs resemble each other least, so 2 is the default.
    norm : str
        Norm applied to the input that the guess is made from: the "next" layer's (as in the paper)
        or the "current" one's (as in InfiniGen).
    source : str
        "next_weights" projects the guess with the next layer's weights; "previous_query" takes the
        query of the layer before as it is.
    """

    mode: str = "rescore"
    first_layer: int = 2
    norm: str = "next"
    source: str = "next_weights"

    def __post_init__(self) -> None:
        one_of("QueryConfig", "mode", self.mode, QUERY_MODES)
        one_of("QueryConfig", "norm", self.norm, ["next", "current"])
        one_of("QueryConfig", "source", self.source, ["next_weights", "previous_query"])
        _set(self, "first_layer", as_int("QueryConfig", "first_layer", self.first_layer, 1))


def is_auto(value: object) -> TypeIs[str]:
    """Say whether an option is left to the engine; checked options hold no other string."""
    return isinstance(value, str) and value == "auto"
