# SPDX-License-Identifier: Apache-2.0
"""Names of the token selectors."""

from __future__ import annotations

from . import _core
from ._checks import one_of


def selectors(strategy: str = "post") -> list[str]:
    """Return the names of all token selectors of a strategy.

    Parameters
    ----------
    strategy : str
        "post" for ``LLM(selector=...)``, "pre" for ``LLM(pre_selector=...)``.
    """
    return list(_core.selector_names(one_of("selectors", "strategy", strategy, ["post", "pre"])))
