# SPDX-License-Identifier: Apache-2.0
"""The exceptions that hybridgen raises on purpose.

Each is also the built-in that a Python user expects, so ``except ValueError`` keeps working. The
compiled module raises the same classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

MAX_MESSAGE = 2000
"""Characters of a message at most; a longer one loses its middle."""


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a text of at most ``limit`` characters: its beginning and its end, the way out."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    mark = f" [... {len(text) - limit} more characters ...] "
    return text[: limit - tail - len(mark)] + mark + text[-tail:]


def text_of(error: BaseException) -> str:
    """Return an exception's words; empty if its class, which may be a user's, cannot tell them."""
    try:
        return str(error)
    except Exception:
        return ""


class HybridGenError(Exception):
    """Base of all exceptions of this package; no message is longer than ``MAX_MESSAGE``.

    Attributes
    ----------
    outputs : list or None
        What a call had when it failed, in the order of its prompts; None if nothing was run.
    """

    outputs: list[Any] | None = None

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


# How a lack of memory is worded by libraries that have no type of their own for it; all that
# src/device/own_error.cpp knows, and NumPy's words.
_LACK_OF_MEMORY = (
    "not enough memory",
    "unable to mmap",
    "cannot allocate memory",
    "out of memory",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
    "unable to allocate",
)


def own_error(error: BaseException, operation: str) -> BaseException:
    """Return a failed allocation as OutOfMemoryError, whoever reports it; others as they are.

    Who reads files or calls a tokenizer may have taken the lack of memory for a fault of these: the
    cause of a CheckpointError or ConfigError counts too.
    """
    if isinstance(error, CheckpointError | ConfigError):
        if error.__cause__ is None:
            return error
        found = own_error(error.__cause__, operation)
        return found if isinstance(found, OutOfMemoryError) else error
    if isinstance(error, HybridGenError):
        return error
    text = text_of(error)
    is_worded_so = any(words in text.lower() for words in _LACK_OF_MEMORY)
    may_be_worded_so = isinstance(error, RuntimeError | OSError)
    if not (isinstance(error, MemoryError) or (may_be_worded_so and is_worded_so)):
        return error
    reason = shortened(text, 600) or type(error).__name__
    own = OutOfMemoryError(
        f"[{operation}] an allocation failed: {reason}; allowed: what the system has free; lower "
        "the memory settings, or run fewer or shorter requests at a time"
    )
    own.__cause__ = error
    return own


@contextmanager
def own_errors(operation: str) -> Iterator[None]:
    """Raise lacks of memory in the block as OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, CheckpointError, ConfigError) as error:
        own = own_error(error, operation)
        if own is error:
            raise
        raise own from error


class GenerationError(HybridGenError):
    """Some prompts of a call failed; the others ran to their end.

    If all failures are of one class, it is of that class too: ``except OutOfMemoryError`` also
    catches a call that had no memory for some of its prompts, and ``except LookupError`` one in
    which a selector of the user's own raised that. Its ``__cause__`` is the first failure.

    Attributes
    ----------
    outputs : list
        What the call would have returned, in the order of its prompts; of the failed ones what
        they had.
    errors : dict of int to BaseException
        The failures, by the number of the prompt in the call, from 0.
    """

    outputs: list[Any]
    errors: dict[int, BaseException]

    @staticmethod
    def of(message: str, errors: dict[int, BaseException], outputs: list[Any]) -> GenerationError:
        """Make one of the class that `errors` share."""
        kinds = {type(error) for error in errors.values()}
        # SystemExit and the like are no failures; a user's class may do anything when it is used.
        if len(kinds) == 1 and issubclass(kind := kinds.pop(), Exception):
            with suppress(Exception):
                return _filled(_generation_error_like(kind)(message), message, errors, outputs)
        return _filled(GenerationError(message), message, errors, outputs)

    def __str__(self) -> str:
        return Exception.__str__(self)  # whatever the class of the failures makes of it

    def __reduce__(self) -> tuple[Any, ...]:
        return GenerationError.of, (str(self), self.errors, self.outputs)


def _filled(
    error: GenerationError, message: str, errors: dict[int, BaseException], outputs: list[Any]
) -> GenerationError:
    if not isinstance(error, GenerationError):
        raise TypeError("the failures' class makes something else")
    error.args = (shortened(message),)
    error.errors = errors
    error.outputs = outputs
    return error


_LIKE: dict[type[Exception], type[GenerationError]] = {}
"""GenerationError that is also of another class, made when it is first wanted."""


def _generation_error_like(kind: type[Exception]) -> type[GenerationError]:
    if kind not in _LIKE:
        namespace = {"__doc__": GenerationError.__doc__, "__module__": __name__}
        _LIKE[kind] = type("GenerationError", (GenerationError, kind), namespace)
    return _LIKE[kind]
