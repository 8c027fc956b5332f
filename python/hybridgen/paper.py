# SPDX-License-Identifier: Apache-2.0
"""HybridGen as its paper describes it, which is not how the library is set by default."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import methods
from ._checks import brief
from .config import KVConfig, SchedulerConfig
from .errors import ConfigError


def paper_setting(*, kv: KVConfig | None = None, **scheduler: Any) -> dict[str, Any]:
    """Return options of `LLM` with which it runs as the paper says.

    Queries of the next layer are guessed and their logits enter the softmax (§4.2.2), stage times
    decide how many tokens are taken and how they are chosen (§4.3), and running requests give up
    tokens on the device for a waiting one (§4.2.3). A request's text then depends on the machine's
    speed and on what runs beside it; by default neither is so.

    Parameters
    ----------
    kv : KVConfig, optional
        Where keys and values are kept otherwise.
    **scheduler
        Options of `SchedulerConfig`, such as ``k_min``.

    Returns
    -------
    dict
        ``method`` and ``kv``.

    Raises
    ------
    ConfigError
        For options that cannot be or are not the paper's: a fixed ``k``.

    Examples
    --------
    >>> LLM("path/to/model", **paper_setting(k_min=64))  # doctest: +SKIP
    """
    if scheduler.get("k") is not None:
        raise ConfigError(
            f"[paper_setting] k is {brief(scheduler['k'])}; allowed: None, as stage times steer "
            "it; set k_min and k_max instead"
        )
    if kv is not None and not isinstance(kv, KVConfig):
        raise ConfigError(f"[paper_setting] kv is {brief(kv)}; allowed: a KVConfig")
    steered = SchedulerConfig.preset("full", **scheduler)
    return {
        "method": methods.HybridGen(query="speculative", scheduler=steered),
        "kv": dataclasses.replace(kv or KVConfig(), shrink_windows=True),
    }
