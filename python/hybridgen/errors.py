# SPDX-License-Identifier: Apache-2.0
"""The exceptions that hybridgen raises on purpose.

Each is also the built-in that a Python user expects, so ``except ValueError`` keeps working. The
compiled module raises the same classes.
"""

from __future__ import annotations

MAX_MESSAGE = 2000
"""Characters of a message at most; a longer one loses its middle."""


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a text of at most ``limit`` characters: its beginning and its end, the way out."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    mark = f" [... {len(text) - limit} more characters ...] "
    return text[: limit - tail - len(mark)] + mark + text[-tail:]


class HybridGenError(Exception):
    """Base of all exceptions of this package; no message is longer than ``MAX_MESSAGE``."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(arg) if isinstance(arg, str) else arg for arg in args))


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
