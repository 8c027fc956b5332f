# SPDX-License-Identifier: Apache-2.0
"""Token selectors: their names, and those written in Python.

Examples
--------
>>> from hybridgen import selectors
>>> "topk" in selectors.names("post")
True
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import _core
from ._checks import as_text, brief, one_of
from .errors import ConfigError

__all__ = ["PostSelector", "PreSelector", "names", "register"]


def names(strategy: str = "post") -> list[str]:
    """Return the names of all token selectors of a strategy.

    Parameters
    ----------
    strategy : str
        "post" for ``selector=``, "pre" for ``pre_selector=`` of `hybridgen.methods.HybridGen`.
    """
    return list(_core.selector_names(one_of("selectors", "strategy", strategy, ["post", "pre"])))


class PostSelector(Protocol):
    """What `register` takes for Post-QKT: one object per request."""

    def select(
        self, layer: int, head: int, logits: npt.NDArray[np.float32], k: int
    ) -> Sequence[int]:
        """Return exactly k positions, ascending, from the logits of all offloaded tokens."""
        ...


class PreSelector(Protocol):
    """What `register` takes for Pre-QKT: one object per request."""

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


def register(name: str, make: Callable[..., PostSelector | PreSelector], *, strategy: str) -> None:
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
    as_text("register_selector", "name", name)
    if not callable(make):
        raise ConfigError(f"[register_selector] make is {brief(make)}; allowed: something to call")
    _core.register_selector(name, strategy, make)


class _Callable(ModuleType):
    """The old spelling ``hybridgen.selectors("post")``; lists nothing but what is public."""

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name.startswith("__") or name in __all__]

    def __call__(self, strategy: str = "post") -> list[str]:
        return names(strategy)


sys.modules[__name__].__class__ = _Callable
