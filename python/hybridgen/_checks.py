# SPDX-License-Identifier: Apache-2.0
"""Checks of option values, and errors that help.

Every message reads ``[operation] name is VALUE; allowed: ...; way out``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, dataclass_transform

from typing_extensions import TypeIs

from .errors import ConfigError, shortened

T = TypeVar("T")
P = ParamSpec("P")

MAX_COUNT = (1 << 31) - 1
"""Largest number of tokens, steps and the like: what the engine counts with, and far more than
fits anywhere, so that products of two of them and sums of many still fit 64 bits."""

MAX_INT64 = (1 << 63) - 1

_LISTED = 8


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return the candidate that a typing error most likely meant, or an empty string."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else ""


def did_you_mean(name: object, candidates: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest candidate, or an empty string."""
    match = nearest(name, candidates) if isinstance(name, str) else ""
    return f"; did you mean {match!r}?" if match else ""


def checked_keywords(
    operation: str, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that an unknown keyword raises ConfigError with a suggestion.

    Parameters
    ----------
    operation : str
        As messages begin.
    elsewhere : mapping of str to str
        Names that other libraries or other places have, and what to do instead.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name in known:
                    continue
                if name in elsewhere:
                    raise ConfigError(
                        f"[{operation}] unknown option {brief(name)}; {elsewhere[name]}"
                    )
                raise ConfigError(
                    f"[{operation}] unknown option {brief(name)}{did_you_mean(name, known)} "
                    f"(options: {', '.join(known)})"
                )
            return function(*args, **kwargs)

        return checked

    return decorate


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options_class(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass that names unknown options helpfully.

    Its ``_elsewhere``, if it has one, says what to write for names that it does not have.
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    elsewhere = vars(cls).get("_elsewhere", {})
    made.__init__ = checked_keywords(cls.__name__, elsewhere)(made.__init__)  # type: ignore[method-assign]
    return made


def as_int(operation: str, name: str, value: object, low: int, high: int = MAX_COUNT) -> int:
    """Return a whole number in ``[low, high]`` as int; NumPy's integers count, bool does not."""
    if type(value) is int and low <= value <= high:  # lists of token ids are long
        return value
    too_large = isinstance(value, numbers.Integral) and int(value) > high
    # The largest count is no news to who gave too small a number.
    allowed = f"an int in [{low}, {high}]" if too_large or high != MAX_COUNT else f"an int >= {low}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: {allowed}")
    number = int(value)
    if not low <= number <= high:
        raise ConfigError(f"[{operation}] {name} is {brief(number)}; allowed: {allowed}")
    return number


def as_float(operation: str, name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return a finite real number in ``[low, high]`` as float; bool and NaN do not count."""
    allowed = f"a number >= {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: {allowed}")
    number = to_float(value)
    # NaN fails every comparison, so the test is that the value lies inside.
    if not (low <= number <= high and math.isfinite(number)):
        raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: {allowed}")
    return number


def to_float(value: numbers.Real) -> float:
    """Return a real number as float; infinity, with its sign, for one that no float holds."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def as_bool(operation: str, name: str, value: object) -> bool:
    """Return a bool; 0, 1 and strings are not taken for one."""
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: True, False")


def as_text(operation: str, name: str, value: object) -> str:
    """Return a string; the engine takes no other, and no lone surrogates."""
    if isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value):
        return value
    raise ConfigError(f"[{operation}] {name} is {brief(value)}; allowed: a text")


def one_of(operation: str, name: str, value: object, allowed: Iterable[str]) -> str:
    """Return a string that is one of the allowed ones."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    raise ConfigError(
        f"[{operation}] {name} is {brief(value)}; allowed: {', '.join(names)}"
        f"{did_you_mean(value, names)}"
    )


def as_path(operation: str, name: str, value: object) -> Path:
    """Return a path that the system can look for, ``~`` as the home folder; it need not exist."""
    reason: object = ""
    try:
        if isinstance(value, str | os.PathLike):
            path = Path(value).expanduser()
            path.exists()
            os.fsencode(path)
            if "\0" not in str(path):
                return path
            reason = ": it has a null byte"
    # A name that is too long or no Unicode, the home of an unknown user, a PathLike of bytes.
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f": {getattr(error, 'strerror', None) or error}"
    raise ConfigError(
        f"[{operation}] {name} is {brief(value)}{reason}; allowed: the path of a file or folder"
    )


def is_auto(value: object) -> TypeIs[str]:
    """Say whether an option is left to the engine; checked options hold no other string."""
    return isinstance(value, str) and value == "auto"


def items_of(value: object) -> list[Any] | None:
    """Return the items of a list or the like; None for a text, a mapping and what has none."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return None
    try:
        return list(value)
    except Exception:  # arrays without dimensions call themselves iterable
        return None


def one_line(text: str, length: int = 600) -> str:
    """Return foreign words on one line, cut to a length that fits a message."""
    return shortened(" ".join(text.split()), length)


def plain(name: object, length: int = 60) -> str:
    """Return a name as `brief` cuts and escapes it, without quotation marks around it."""
    return brief(name, length).strip("'")


def brief(value: object, length: int = 60) -> str:
    """Return the value's repr, cut to a length that fits a message."""
    if isinstance(value, int) and value.bit_length() > 512:
        # Python refuses to print integers of more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Iterable[str]) -> str:
    """Return the first of many names, and how many more there are."""
    found = sorted(names)
    shown = [plain(name, 150) for name in found[:_LISTED]]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
