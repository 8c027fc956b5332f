# SPDX-License-Identifier: Apache-2.0
"""Options of an engine and of its methods: where keys and values live, how many tokens count.

All classes are frozen dataclasses with keyword-only fields, checked when they are made. What this
version cannot honour is refused with a ConfigError, never ignored. They are made from the tables of
the compiled core; what they hold is written out in config.pyi, and in docs/api.md.
"""

from __future__ import annotations

from ._options import MethodOptions, Options, options_classes

_CLASSES = options_classes(__name__)
globals().update(_CLASSES)

METHOD_OPTIONS: tuple[type[MethodOptions], ...] = tuple(
    cls for cls in _CLASSES.values() if issubclass(cls, MethodOptions)
)
"""The methods' own, in the order of ``hybridgen.methods.names()``."""

__all__ = ["METHOD_OPTIONS", "MethodOptions", "Options", *_CLASSES]
