# SPDX-License-Identifier: Apache-2.0
"""What a machine can do, as one file: rates and times that emulation, simulation and plans read.

Some profiles ship with the package, ``MachineProfile.names()``; ``python -m hybridgen profile``
measures the present machine. Every rate is one that is reached, not a data sheet's. A field that
nobody knows is absent; who needs it says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ._checks import as_path, as_text, brief, did_you_mean, one_of, plain
from ._files import write_whole
from .errors import ConfigError
from .machine_rates import (
    OPERATION,
    SECTIONS,
    CpuRates,
    CxlRates,
    GpuRates,
    LinkRates,
    Overheads,
)

FORMAT = 1
CONFIDENCES = ("s", "d", "g", "e", "measured")
"""From a source, derived from one, general knowledge, an estimate, or measured."""

_FOLDER = Path(__file__).parent / "profiles"
_ALIASES = {"h100": "h100-nvl"}
_MAX_BYTES = 1 << 20
_MAX_TEXT = 2000

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """Rates and times of one machine.

    Parameters
    ----------
    name : str
        As reports call it.
    description : str
        Which machine that is.
    gpu, link, cpu, cxl, overhead : GpuRates, LinkRates, CpuRates, CxlRates, Overheads
        Fields by topic; None where a field is absent.
    source : mapping of str to str
        Where a field comes from, by its full name such as "gpu.tflops".
    confidence : mapping of str to str
        How sure it is, by full name: "s" from a source, "d" derived from one, "g" general
        knowledge, "e" an estimate, or "measured".

    Raises
    ------
    ConfigError
        For a value that is not allowed.

    Examples
    --------
    >>> profile = MachineProfile.load("h100-nvl")
    >>> profile.link.h2d_gbs, profile.confidence["link.h2d_gbs"]
    (52.0, 'e')
    """

    name: str
    description: str = ""
    gpu: GpuRates = field(default_factory=GpuRates)
    link: LinkRates = field(default_factory=LinkRates)
    cpu: CpuRates = field(default_factory=CpuRates)
    cxl: CxlRates = field(default_factory=CxlRates)
    overhead: Overheads = field(default_factory=Overheads)
    source: Mapping[str, str] = field(default_factory=dict)
    confidence: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = _text("name", self.name)
        if not name.strip():
            raise ConfigError(f"[{OPERATION}] name is {brief(name)}; allowed: a text with letters")
        _text("description", self.description)
        for section, kind in SECTIONS.items():
            object.__setattr__(self, section, _checked(section, kind, getattr(self, section)))
        present = self.values().keys()
        for topic in ("source", "confidence"):
            found = _notes(topic, getattr(self, topic), present)
            object.__setattr__(self, topic, MappingProxyType(found))

    # -------------------------------------------------------------------------------------- fields

    def values(self) -> dict[str, Any]:
        """Return all fields that are present, by their full names."""
        return {
            f"{section}.{each.name}": value
            for section, kind in SECTIONS.items()
            for each in fields(kind)
            if (value := getattr(getattr(self, section), each.name)) is not None
        }

    def require(self, names: Iterable[str], operation: str) -> dict[str, Any]:
        """Return the named fields; ConfigError, in an operation's name, for those that are absent.

        Examples
        --------
        >>> MachineProfile.load("a100").require(["link.h2d_gbs"], "simulate")
        {'link.h2d_gbs': 24.8}
        """
        present = self.values()
        names = list(names)
        missing = [name for name in names if name not in present]
        if missing:
            raise ConfigError(
                f"[{operation}] the profile {brief(self.name)} lacks {', '.join(missing)}; "
                "allowed: one that has these fields; measure with `python -m hybridgen profile`, "
                "add --base to take them from a shipped one"
            )
        return {name: present[name] for name in names}

    def with_values(
        self, values: Mapping[str, Any], *, source: str, confidence: str, **changes: str
    ) -> MachineProfile:
        """Return a profile with some fields replaced, and where these come from.

        Parameters
        ----------
        values : mapping
            By full name.
        source, confidence : str
            Of these fields.
        **changes
            Another ``name`` or ``description``.
        """
        content = self.to_dict() | changes
        for name, value in values.items():
            section, _, key = name.partition(".")
            content.setdefault(section, {})[key] = value
        content["source"] = content.get("source", {}) | dict.fromkeys(values, source)
        content["confidence"] = content.get("confidence", {}) | dict.fromkeys(values, confidence)
        return type(self).from_dict(content)

    @property
    def fingerprint(self) -> str:
        """What tells it from another one: 12 hex digits over all it says."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    # --------------------------------------------------------------------------------------- files

    @staticmethod
    def names() -> list[str]:
        """Return the names of the profiles that ship with the package.

        Examples
        --------
        >>> MachineProfile.names()
        ['a100', 'gh200', 'h100-nvl', 'h200', 'rtx5090']
        """
        return sorted(path.stem for path in _FOLDER.glob("*.json"))

    @classmethod
    def load(cls, name: str | Path) -> MachineProfile:
        """Read a profile.

        Parameters
        ----------
        name : str or Path
            One of `names` ("h100" is short for "h100-nvl"), or the path of a file; what has a slash
            or ends with ".json" is a path.

        Raises
        ------
        ConfigError
            If there is no such profile, the file cannot be read, or it says what is not allowed.
        """
        if isinstance(name, str) and "/" not in name and not name.endswith(".json"):
            known = cls.names()
            name = _ALIASES.get(name, name)
            if name not in known:
                raise ConfigError(
                    f"[{OPERATION}] there is no {brief(name)}; allowed: {', '.join(known)}, or "
                    f"the path of a .json file{did_you_mean(name, [*known, *_ALIASES])}"
                )
            return cls._read(_FOLDER / f"{name}.json")
        return cls._read(as_path(OPERATION, "path", name))

    @classmethod
    def _read(cls, path: Path) -> MachineProfile:
        way_out = "measure one with `python -m hybridgen profile`, or see docs/profiles.md"
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no regular file")
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
            if len(text) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES} bytes")
            content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"[{OPERATION}] cannot read {plain(str(path), 300)}: {reason}; allowed: a JSON "
                f"object in UTF-8; {way_out}"
            ) from error
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{error} (in {plain(str(path), 300)}; {way_out})") from error

    @classmethod
    def from_dict(cls, content: object) -> MachineProfile:
        """Return the profile that `to_dict` described; ConfigError for anything else."""
        found = _mapping("the profile", content)
        known = ["format", "name", "description", *SECTIONS, "source", "confidence"]
        _refuse_unknown("the profile", found, known)
        number = found.pop("format", None)
        if type(number) is not int or number != FORMAT:
            raise ConfigError(
                f"[{OPERATION}] format is {brief(number)}; allowed: {FORMAT}; another version of "
                "this package may have written it"
            )
        if "name" not in found:
            raise ConfigError(f"[{OPERATION}] name is missing; allowed: a text")
        for section, kind in SECTIONS.items():
            if section not in found:
                continue
            values = _mapping(section, found[section])
            _refuse_unknown(section, values, [each.name for each in fields(kind)])
            for key, value in values.items():
                if value is None:
                    raise ConfigError(
                        f"[{OPERATION}] {section}.{key} is null; allowed: a value; leave out what "
                        "is not known"
                    )
            found[section] = kind(**values)
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, ready for JSON: what a profile file holds."""
        content: dict[str, Any] = {"format": FORMAT, "name": self.name}
        if self.description:
            content["description"] = self.description
        for name, value in self.values().items():
            section, _, key = name.partition(".")
            plain_value = [list(pair) for pair in value] if isinstance(value, tuple) else value
            content.setdefault(section, {})[key] = plain_value
        for topic in ("source", "confidence"):
            if notes := dict(getattr(self, topic)):
                content[topic] = notes
        return content

    def save(self, path: str | Path) -> None:
        """Write a profile file; if that fails, a file that was there stays as it was.

        Raises
        ------
        ConfigError, DeviceError
            If there can be no such file, or the system cannot write it.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(path, text + "\n", OPERATION)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _checked(section: str, kind: type[Section], value: object) -> Section:
    """Return a section with its values checked and of one type."""
    if not isinstance(value, kind):
        raise ConfigError(f"[{OPERATION}] {section} is {brief(value)}; allowed: a {kind.__name__}")
    read = {
        each.name: each.metadata["read"](f"{section}.{each.name}", found)
        for each in fields(kind)  # type: ignore[arg-type]
        if (found := getattr(value, each.name)) is not None
    }
    return replace(value, **read)  # type: ignore[type-var]


def _notes(topic: str, value: object, present: Iterable[str]) -> dict[str, str]:
    """Return texts by the full names of fields that are present."""
    notes = _mapping(topic, value)
    _refuse_unknown(topic, notes, present)
    for name, text in notes.items():
        if topic == "confidence":
            one_of(OPERATION, f"{topic} of {name}", text, CONFIDENCES)
        else:
            _text(f"{topic} of {name}", text)
    return notes


def _mapping(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ConfigError(f"[{OPERATION}] {name} is {brief(value)}; allowed: an object of names")


def _refuse_unknown(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise ConfigError(
                f"[{OPERATION}] {where} has the unknown field {brief(key)}"
                f"{did_you_mean(key, known)} (allowed: {', '.join(known) or 'none'})"
            )


def _text(name: str, value: object) -> str:
    text = as_text(OPERATION, name, value)
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise ConfigError(
            f"[{OPERATION}] {name} is {brief(value)}; allowed: one line of at most {_MAX_TEXT} "
            "characters"
        )
    return text


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError where it says a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {brief(twice)} twice")
    return found
