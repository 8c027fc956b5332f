# SPDX-License-Identifier: Apache-2.0
"""Typed reading of a checkpoint's ``config.json``, in the spelling of any year.

Wrong types and missing fields are damage (CheckpointError); values that are legal but that the
engine has no code for are UnsupportedModelError.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

from .errors import CheckpointError, ConfigError, UnsupportedModelError

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_ROPE_THETA = 10000.0
_MISSING = object()


class ConfigReader:
    """Reads fields of a parsed ``config.json`` and says which one is wrong.

    Parameters
    ----------
    fields : dict
        The parsed file.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def integer(self, name: str, default: Any = _MISSING, *, low: int = 1) -> int:
        """Return a whole number; null counts as absent."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
            self._fail(name, value, f"an int >= {low}")
        return int(value)

    def real(self, name: str, default: Any = _MISSING) -> float:
        """Return a positive finite number."""
        return positive_number(name, self._get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self._fail(name, value, "true or false")
        return bool(value)

    def text(self, name: str, default: Any = _MISSING) -> str:
        """Return a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            self._fail(name, value, "a string")
        return str(value)

    def get(self, name: str) -> Any:
        """Return the raw value, None if absent."""
        return self.fields.get(name)

    def _get(self, name: str, default: Any) -> Any:
        value = self.fields.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(
                f"[config.json] {name} is missing; the file does not describe a whole model, so "
                "take it from the model's source again"
            )
        return default

    def _fail(self, name: str, value: object, allowed: str) -> None:
        raise CheckpointError(f"[config.json] {name} is {value!r}; allowed: {allowed}")


def positive_number(name: str, value: object) -> float:
    """Return a positive finite number of config.json as float."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not good or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise CheckpointError(f"[config.json] {name} is {value!r}; allowed: a number > 0")
    return float(value)  # type: ignore[arg-type]


def read_heads(reader: ConfigReader) -> dict[str, int]:
    """Return the fields that describe attention heads; two of them may be absent in old files."""
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"[config.json] num_key_value_heads is {kv_heads}; allowed: a divisor of "
            f"num_attention_heads, which is {heads}"
        )
    if reader.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"[config.json] hidden_size is {hidden}; allowed: a multiple of num_attention_heads, "
            f"which is {heads}, or head_dim given"
        )
    return {
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": reader.integer("head_dim", hidden // heads),
    }


def read_rope(reader: ConfigReader) -> tuple[float, dict[str, Any] | None]:
    """Return rotary base and scaling from the new spelling or the old one.

    New files hold ``rope_parameters`` with everything in it; old ones ``rope_theta`` beside
    ``rope_scaling``, whose kind is called ``rope_type`` or, before that, ``type``.
    """
    new, old = reader.get("rope_parameters"), reader.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"[config.json] {name} is {value!r}; allowed: an object or null")
    rope: dict[str, Any] = new or old or {}
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
            f"[config.json] partial_rotary_factor is {partial!r}; allowed: 1.0, that is rotation "
            "of whole heads"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedModelError(
            f"[config.json] rope_type is {kind!r}; allowed: default, llama3; if the scaling was "
            "added for longer contexts only, remove it from config.json"
        )
    numbers_in = ConfigReader(rope)
    fallback = reader.get("original_max_position_embeddings")
    original = numbers_in.integer(
        "original_max_position_embeddings", fallback if fallback is not None else _MISSING
    )
    scaling = {
        "factor": numbers_in.real("factor"),
        "low_freq_factor": numbers_in.real("low_freq_factor"),
        "high_freq_factor": numbers_in.real("high_freq_factor"),
        "original_max_positions": original,
    }
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise CheckpointError(
            f"[config.json] high_freq_factor is {scaling['high_freq_factor']}; allowed: more than "
            f"low_freq_factor, which is {scaling['low_freq_factor']}"
        )
    return theta, scaling


def reject_sliding_window(reader: ConfigReader, num_layers: int, window_flag: bool) -> None:
    """Refuse models in which some layer sees only a window of the context."""
    kinds = reader.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise CheckpointError(
                f"[config.json] layer_types is {kinds!r}; allowed: a list of {num_layers} strings"
            )
        odd = sorted({str(kind) for kind in kinds if kind != "full_attention"})
        if odd:
            raise UnsupportedModelError(
                f"[config.json] layer_types contains {', '.join(odd)}; allowed: full_attention"
            )
        return
    first = reader.get("max_window_layers")
    slides = reader.get("sliding_window") is not None and (first is None or first < num_layers)
    if window_flag and slides:
        raise UnsupportedModelError(
            f"[config.json] use_sliding_window is true with max_window_layers {first!r} of "
            f"{num_layers} layers; allowed: full attention in every layer"
        )


def require_activation(reader: ConfigReader, name: str, default: str, allowed: str) -> None:
    """Refuse any activation function but the one that the family's code implements."""
    value = reader.text(name, default)
    if value != allowed:
        raise UnsupportedModelError(f"[config.json] {name} is {value!r}; allowed: {allowed}")


def resolve_dtype(requested: object, hf_config: dict[str, Any]) -> str:
    """Return the dtype to run in: the requested one, or for "auto" the checkpoint's own.

    Parameters
    ----------
    requested : str or torch.dtype
        "auto", "float32", "bfloat16" or "float16".
    hf_config : dict
        The parsed config.json, whose field is ``dtype`` or, in old files, ``torch_dtype``.
    """
    name = str(requested).removeprefix("torch.")
    if name in DTYPES:
        return name
    if name != "auto":
        raise ConfigError(f"[LLM] dtype is {requested!r}; allowed: auto, {', '.join(DTYPES)}")
    stored = hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32"
    stored = str(stored).removeprefix("torch.")
    if stored not in DTYPES:
        raise UnsupportedModelError(
            f"[config.json] dtype is {stored!r}; allowed: {', '.join(DTYPES)}; pass dtype to "
            "convert the weights while they are loaded"
        )
    return stored


def read_eos_ids(*configs: dict[str, Any] | None) -> tuple[int, ...]:
    """Return the union of the ending tokens that config files name; each may be an int or a list.

    Raises
    ------
    CheckpointError
        If one of them is no token id.
    """
    found: set[int] = set()
    for config in configs:
        value = (config or {}).get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if isinstance(item, bool) or not isinstance(item, int):
                raise CheckpointError(
                    f"[config.json] eos_token_id is {value!r}; allowed: an int or a list of ints"
                )
            # Some files write -1 for "none".
            if item >= 0:
                found.add(item)
    return tuple(sorted(found))
