# SPDX-License-Identifier: Apache-2.0
"""CXL memory that this machine does not have: a channel of a given rate that all host jobs share.

A task of the host that reads n bytes of the cxl tier takes at least n / rate (TestSwitches).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import hybridgen as hg
from hybridgen import _core


@contextlib.contextmanager
def emulated_cxl(rate: float) -> Iterator[None]:
    """Let engines have a cxl tier on the first memory node, read at `rate` bytes/s at most."""
    real = _core.EngineOptions
    _core.EngineOptions = partial(  # type: ignore[misc,assignment]
        real,
        invented_cxl_node=hg.info().tiers[0]["node"],
        cxl_bytes_per_second=int(rate),
    )
    try:
        yield
    finally:
        _core.EngineOptions = real  # type: ignore[misc]
