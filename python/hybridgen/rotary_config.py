# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of a checkpoint's ``config.json``: base, scaling, and how far they reach.

The numbers mean what they mean in transformers' ``modeling_rope_utils``; what is absent has its
default there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._checks import MAX_COUNT, brief
from .errors import CheckpointError, UnsupportedModelError
from .model_config import ConfigReader, positive_number

DEFAULT_ROPE_THETA = 10000.0
_MIN_ATTENTION_FACTOR, _MAX_ATTENTION_FACTOR = 1e-3, 1e3


@dataclass(frozen=True)
class Rotary:
    """What config.json says of rotary positions.

    Parameters
    ----------
    theta : float
        Base of the wavelengths.
    scaling : dict or None
        Fields of the engine's ``rope_scaling``.
    max_positions : int
        ``max_position_embeddings``, or more where the scaling reaches further.
    """

    theta: float
    scaling: dict[str, Any] | None
    max_positions: int


@dataclass(frozen=True)
class _Scaling:
    """Where a scaling's numbers are."""

    inside: ConfigReader  # the parameters
    outside: ConfigReader  # the file
    head_dim: int
    max_positions: int  # max_position_embeddings

    def original(self) -> int:
        """Return the length before scaling, which counts first if it is beside the parameters."""
        name = "original_max_position_embeddings"
        if self.outside.get(name) is not None:
            return self.outside.integer(name)
        return self.inside.integer(name, self.max_positions)

    def factor(self) -> float:
        """Return the factor; without one, that by which the positions are more than originally."""
        if self.inside.get("factor") is None:
            return self.max_positions / self.original()
        return self.inside.real("factor")

    def attention_factor(self, default: Callable[[], float]) -> float:
        """Return what cosines and sines are multiplied by."""
        given = self.inside.get("attention_factor")
        factor = default() if given is None else positive_number("attention_factor", given)
        if not _MIN_ATTENTION_FACTOR <= factor <= _MAX_ATTENTION_FACTOR:
            raise CheckpointError(
                f"[config.json] attention_factor is {brief(factor)}; allowed: a number from "
                f"{_MIN_ATTENTION_FACTOR} to {_MAX_ATTENTION_FACTOR}"
            )
        return factor

    def reach(self, factor: float, original: int) -> int:
        """Return the positions of a model that was stretched from so many."""
        return max(self.max_positions, int(min(factor * original, MAX_COUNT)))


_Read = tuple[dict[str, Any], int]  # fields of the engine's rope_scaling, and how far they reach


def _linear(scaling: _Scaling) -> _Read:
    factor = scaling.inside.real("factor")
    return {"factor": factor}, scaling.reach(factor, scaling.max_positions)


def _dynamic(scaling: _Scaling) -> _Read:
    factor = scaling.inside.real("factor")
    if scaling.head_dim == 2:
        raise UnsupportedModelError(
            "[config.json] rope_type is 'dynamic' and head_dim is 2; allowed: head_dim > 2, since "
            "the base grows by a power of head_dim / (head_dim - 2)"
        )
    fields = {"factor": factor, "original_max_positions": scaling.max_positions}
    return fields, scaling.reach(factor, scaling.max_positions)


def _yarn(scaling: _Scaling) -> _Read:
    inside, factor, original = scaling.inside, scaling.factor(), scaling.original()

    def default_attention() -> float:
        scales = [inside.get(name) for name in ("mscale", "mscale_all_dim")]
        if not all(scales):
            return _yarn_magnitude(factor, 1.0)
        own, of_all = inside.real("mscale"), inside.real("mscale_all_dim")
        return _yarn_magnitude(factor, own) / _yarn_magnitude(factor, of_all)

    fields = {
        "factor": factor,
        "original_max_positions": original,
        "attention_factor": scaling.attention_factor(default_attention),
        # Here 0 stands for the default, and null for false.
        "beta_fast": inside.real("beta_fast") if inside.get("beta_fast") else 32.0,
        "beta_slow": inside.real("beta_slow") if inside.get("beta_slow") else 1.0,
        "truncate": inside.flag("truncate", "truncate" not in inside.fields),
    }
    return fields, scaling.reach(factor, original)


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(scaling: _Scaling) -> _Read:
    factor, original = scaling.factor(), scaling.original()

    def default_attention() -> float:
        if factor <= 1.0:
            return 1.0
        if original == 1:
            raise CheckpointError(
                "[config.json] original_max_position_embeddings is 1; allowed: more than 1 with "
                "rope_type 'longrope', or attention_factor given"
            )
        return math.sqrt(1.0 + math.log(factor) / math.log(original))

    fields = {
        "original_max_positions": original,
        "attention_factor": scaling.attention_factor(default_attention),
        "short_factors": _factors(scaling, "short_factor"),
        "long_factors": _factors(scaling, "long_factor"),
    }
    return fields, scaling.reach(factor, original)


def _factors(scaling: _Scaling, name: str) -> tuple[float, ...]:
    values, count = scaling.inside.get(name), scaling.head_dim // 2
    if not isinstance(values, list) or len(values) != count:
        raise CheckpointError(
            f"[config.json] {name} is {brief(values)}; allowed: a list of {count} numbers, one for "
            f"two of the {scaling.head_dim} dimensions of a head"
        )
    return tuple(positive_number(name, value) for value in values)


def _llama3(scaling: _Scaling) -> _Read:
    inside = scaling.inside
    fields = {
        "factor": inside.real("factor"),
        "low_freq_factor": inside.real("low_freq_factor"),
        "high_freq_factor": inside.real("high_freq_factor"),
        "original_max_positions": scaling.original(),
    }
    if fields["high_freq_factor"] <= fields["low_freq_factor"]:
        raise CheckpointError(
            f"[config.json] high_freq_factor is {fields['high_freq_factor']}; allowed: more than "
            f"low_freq_factor, which is {fields['low_freq_factor']}"
        )
    return fields, scaling.max_positions


_KINDS: dict[str, Callable[[_Scaling], _Read]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def read_rotary(reader: ConfigReader, head_dim: int) -> Rotary:
    """Return base, scaling and positions from the new spelling or the old one.

    New files hold ``rope_parameters`` with everything in it; old ones ``rope_theta`` beside
    ``rope_scaling``, whose kind is called ``rope_type`` or, before that, ``type``. As in
    transformers, a ``rope_scaling`` that is not empty replaces ``rope_parameters`` altogether.
    """
    new, old = reader.get("rope_parameters"), reader.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(
                f"[config.json] {name} is {brief(value)}; allowed: an object or null"
            )
    rope: dict[str, Any] = old or new or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedModelError(
            "[config.json] rope_parameters differ between kinds of layers; allowed: one set for "
            "all layers"
        )
    theta = rope.get("rope_theta")
    if theta is None:
        theta = reader.get("rope_theta")
    theta = DEFAULT_ROPE_THETA if theta is None else positive_number("rope_theta", theta)
    partial = rope.get("partial_rotary_factor", reader.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedModelError(
            f"[config.json] partial_rotary_factor is {brief(partial)}; allowed: 1.0, that is "
            "rotation of whole heads"
        )
    max_positions = reader.integer("max_position_embeddings")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return Rotary(theta, None, max_positions)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnsupportedModelError(
            f"[config.json] rope_type is {brief(kind)}; allowed: default, {', '.join(_KINDS)}; "
            "if the scaling was added for longer contexts only, remove it from config.json"
        )
    if kind == "yarn" and theta == 1.0:
        raise UnsupportedModelError(
            "[config.json] rope_type is 'yarn' and rope_theta is 1; allowed: another base"
        )
    scaling = _Scaling(ConfigReader(rope), reader, head_dim, max_positions)
    fields, reach = _KINDS[kind](scaling)
    return Rotary(theta, {"kind": kind} | fields, reach)
