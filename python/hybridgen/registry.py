# SPDX-License-Identifier: Apache-2.0
"""Names of what can be chosen: methods and token selectors."""

from __future__ import annotations

from . import _core
from ._checks import one_of


def methods() -> list[str]:
    """Return the names of all methods for ``LLM(method=...)``."""
    return list(_core.method_names())


def method_summaries() -> dict[str, str]:
    """Return one line about each method, by name."""
    return dict(_core.method_summaries())


def selectors(strategy: str = "post") -> list[str]:
    """Return the names of all token selectors of a strategy.

    Parameters
    ----------
    strategy : str
        "post" for ``LLM(selector=...)``, "pre" for ``LLM(pre_selector=...)``.
    """
    return list(_core.selector_names(one_of("selectors", "strategy", strategy, ["post", "pre"])))
