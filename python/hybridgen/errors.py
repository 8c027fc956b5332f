# SPDX-License-Identifier: Apache-2.0
"""The exceptions that hybridgen raises on purpose.

Each is also the built-in that a Python user expects, so ``except ValueError`` keeps working. The
compiled module raises the same classes.
"""

from __future__ import annotations


class HybridGenError(Exception):
    """Base of all exceptions of this package."""


class ConfigError(HybridGenError, ValueError):
    """A caller's mistake: an option, argument, shape or value that is not allowed."""


class UnsupportedModelError(HybridGenError, ValueError):
    """A model that this package cannot run; the message lists what it can."""


class CheckpointError(HybridGenError, ValueError):
    """A checkpoint that is missing, damaged, or does not fit its own configuration."""


class OutOfMemoryError(HybridGenError, MemoryError):
    """A memory tier cannot hold what was asked for; nothing was lost, the engine stays usable."""


class DeviceError(HybridGenError, RuntimeError):
    """The device or the operating system refused; the message carries its own text."""


class NumericError(HybridGenError, ArithmeticError):
    """A computed value that must never occur, such as a NaN logit."""
