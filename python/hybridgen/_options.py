# SPDX-License-Identifier: Apache-2.0
"""What option classes are made of: their tables lie in the compiled core.

A table says of each option its name, type, default, what is allowed and what it means. Fields,
docstrings, checks and messages come from there; `hybridgen.config` is nothing but these classes.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from . import _core
from ._checks import checked_keywords
from .disk import Disk


class Options:
    """Base of all option classes: frozen, keyword-only, checked when they are made."""

    _made_from_table: ClassVar[type[Options]]
    """The class itself; of a user's subclass the one that it derives from."""

    def __post_init__(self) -> None:
        given = {name: plain(value) for name, value in fields_of(self).items()}
        for name, value in _core.checked_options(self._made_from_table.__name__, given).items():
            if type(value) in (bool, int, float, str):
                object.__setattr__(self, name, value)


class MethodOptions(Options):
    """Base of all methods' options."""

    method: ClassVar[str]

    def values(self) -> dict[str, Any]:
        """Return the options by name."""
        return fields_of(self)


class SteeringOptions(Options):
    """What `hybridgen.SchedulerConfig` can do beside holding options."""

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """Return one of the six schedules of the paper's ablation; all are steered (``k=None``).

        Parameters
        ----------
        name : str
            ``fixed_pre``, ``fixed_post``, ``fixed_adaptive``, ``adaptive_pre``, ``adaptive_post``
            or ``full``: K fixed at ``k_min`` or steered, tokens chosen before, after or by times.
        **options
            Any other option of this class.
        """
        return cls(**({"k": None} | dict(_core.scheduler_preset(name)) | options))

    @property
    def is_steered(self) -> bool:
        """Whether the feedback scheduler decides."""
        return fields_of(self)["k"] is None


_BASES = {"SchedulerConfig": SteeringOptions}


def fields_of(options: Options) -> dict[str, Any]:
    """Return the fields by name, as they are."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}  # type: ignore[arg-type]


def said(options: Options) -> dict[str, Any]:
    """Return the fields that are not at the library's defaults."""
    fields = dataclasses.fields(options._made_from_table)  # type: ignore[arg-type]
    defaults = {field.name: field.default for field in fields}
    return {
        name: value
        for name, value in fields_of(options).items()
        if name not in defaults or value != defaults[name]
    }


def plain(value: object) -> Any:
    """Return an option as the engine takes it: objects of options as dicts."""
    if isinstance(value, SteeringOptions) and not value.is_steered:
        return None
    if isinstance(value, Options):
        # K and the strategy are the method's own, also where a SchedulerConfig says them.
        no_part = ("k", "strategy") if isinstance(value, SteeringOptions) else ()
        return {n: plain(own) for n, own in fields_of(value).items() if n not in no_part}
    if isinstance(value, Disk):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: plain(own) for name, own in value.items()}
    return value


def base_of(row: Mapping[str, Any]) -> type[Options]:
    """Return what the class of a row of ``_core.option_classes()`` derives from."""
    return MethodOptions if row["method"] else _BASES.get(row["name"], Options)


def docstring_of(row: Mapping[str, Any]) -> str:
    """Return the docstring of such a class: what it is, and its options."""
    text = row["summary"].strip().rstrip(".") + ".\n"
    if row["options"]:
        text += "\nParameters\n----------\n"
    for option in row["options"]:
        meaning = option["meaning"][:1].upper() + option["meaning"][1:].rstrip(".")
        body = f"{meaning}; allowed: {option['allowed']}."
        text += f"{option['name']} : {option['type']}, default {option['default']!r}\n"
        text += textwrap.fill(body, 92, initial_indent="    ", subsequent_indent="    ") + "\n"
    return textwrap.fill(text.split("\n", 1)[0], 92) + "\n" + text.split("\n", 1)[1]


def class_rows() -> list[dict[str, Any]]:
    """Return the rows of ``_core.option_classes()`` that classes are made from."""
    # LLM's are arguments, SamplingParams has more to it than the engine knows (sampling.py), and
    # Disk is written without keywords (disk.py).
    others = ("LLM", "SamplingParams", "Disk")
    return [row for row in _core.option_classes() if row["name"] not in others]


def options_classes(module: str) -> dict[str, type[Options]]:
    """Make all option classes, as members of a module."""
    made: dict[str, type[Options]] = {}
    for row in class_rows():
        cls = dataclasses.make_dataclass(
            row["name"],
            [(option["name"], option["type"], option["default"]) for option in row["options"]],
            bases=(base_of(row),),
            namespace={"__doc__": docstring_of(row), "__module__": module},
            frozen=True,
            kw_only=True,
        )
        cls.__module__ = module
        setattr(cls, "_made_from_table", cls)  # noqa: B010
        if row["method"]:
            setattr(cls, "method", row["method"])  # noqa: B010
        cls.__init__ = checked_keywords(row["name"])(cls.__init__)  # type: ignore[misc]
        made[row["name"]] = cls
    return made
