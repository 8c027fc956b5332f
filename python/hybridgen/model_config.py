# SPDX-License-Identifier: Apache-2.0
"""Typed reading of a checkpoint's ``config.json``, in the spelling of any year.

Where a file says one thing in two spellings, the one that transformers reads wins, and an absent
field has the value that transformers gives it. Wrong types and sizes beyond the stated limits are
damage (CheckpointError); values that are legal but that the engine has no code for are
UnsupportedModelError.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from ._checks import MAX_COUNT, brief, to_float
from .errors import CheckpointError, ConfigError, UnsupportedModelError

DTYPES = ("float32", "bfloat16", "float16")
_DTYPE_ALIASES = {"float": "float32", "half": "float16"}
_MISSING = object()

# Far above any model's; the engine states the same limits and checks products of these too.
_LARGEST = {
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 24,
    "intermediate_size": 1 << 24,
    "ffn_dim": 1 << 24,
    "word_embed_proj_dim": 1 << 24,
}
# Beyond these, float32 arithmetic gives zeros and infinities.
_MIN_FACTOR, _MAX_FACTOR = 1e-30, 1e30


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
        """Return a size: a whole number up to its limit; ``default`` stands for null."""
        value = self._get(name, default)
        high = _LARGEST.get(name, MAX_COUNT)
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_whole or not low <= value <= high:
            self._fail(name, value, f"an int in [{low}, {high}]")
        return int(value)

    def real(self, name: str, default: Any = _MISSING) -> float:
        """Return a positive number that float32 can compute with."""
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
        raise CheckpointError(f"[config.json] {name} is {brief(value)}; allowed: {allowed}")


def positive_number(name: str, value: object) -> float:
    """Return a positive number of config.json, within what float32 can compute with, as float."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = to_float(value) if is_number else 0.0  # type: ignore[arg-type]
    if not _MIN_FACTOR <= number <= _MAX_FACTOR:
        raise CheckpointError(
            f"[config.json] {name} is {brief(value)}; allowed: a number > 0, from {_MIN_FACTOR} "
            f"to {_MAX_FACTOR}"
        )
    return number


def read_heads(reader: ConfigReader) -> dict[str, int]:
    """Return the fields that describe attention heads of a family that groups them.

    As null, ``num_key_value_heads`` and ``head_dim`` stand for what the other sizes give.
    """
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"[config.json] num_key_value_heads is {kv_heads}; allowed: a divisor of "
            f"num_attention_heads, which is {heads}"
        )
    return {
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": reader.integer("head_dim", hidden // heads),
    }


def require_whole_heads(hidden: int, heads: int) -> None:
    """Refuse a model whose heads do not divide its width."""
    if hidden % heads:
        raise CheckpointError(
            f"[config.json] hidden_size is {hidden}; allowed: a multiple of num_attention_heads, "
            f"which is {heads}, or head_dim given"
        )


def reject_windows(
    reader: ConfigReader, num_layers: int, max_positions: int, first_layer: int, sliding: bool
) -> None:
    """Refuse models in which some layer sees less than the whole context.

    Parameters
    ----------
    reader : ConfigReader
        For ``layer_types`` and ``sliding_window``.
    num_layers : int
        Layers of the model.
    max_positions : int
        Its positions: a window of as many is none.
    first_layer : int
        First layer with a window if ``layer_types`` does not say which have one.
    sliding : bool
        Whether the family reads ``sliding_window`` at all.
    """
    window = reader.get("sliding_window")
    kinds = reader.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise CheckpointError(
                f"[config.json] layer_types is {brief(kinds)}; allowed: a list of {num_layers} "
                "strings"
            )
        odd = {
            kind if isinstance(kind, str) else brief(kind)
            for kind in kinds
            if kind not in ("full_attention", "attention")
        }
    else:
        odd = {"sliding_attention"} if sliding and window and first_layer < num_layers else set()
    if odd == {"sliding_attention"} and sliding and window is not None:
        require_no_window(reader, max_positions)
        return
    if odd:
        raise UnsupportedModelError(
            f"[config.json] layer_types contains {brief(', '.join(sorted(odd)))}; allowed: "
            "full_attention"
        )


def require_no_window(reader: ConfigReader, max_positions: int) -> None:
    """Refuse a ``sliding_window`` of all layers that is shorter than the model's positions."""
    window = reader.get("sliding_window")
    if window is None or reader.integer("sliding_window") >= max_positions:
        return
    raise UnsupportedModelError(
        f"[config.json] sliding_window is {brief(window)}, less than the model's {max_positions} "
        "positions; allowed: full attention in every layer; if texts stay shorter than the "
        "window, set sliding_window to null"
    )


def require_activation(reader: ConfigReader, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse any activation function but the one that the family's code implements."""
    value = reader.text(name)
    if value not in allowed:
        raise UnsupportedModelError(
            f"[config.json] {name} is {brief(value)}; allowed: {', '.join(allowed)}"
        )


def resolve_dtype(
    requested: object, hf_config: dict[str, Any], of_weights: Callable[[], str] = lambda: "float32"
) -> str:
    """Return the dtype to run in: the requested one, or for "auto" the checkpoint's own.

    Parameters
    ----------
    requested : str or torch.dtype
        "auto", "float32", "bfloat16" or "float16".
    hf_config : dict
        The parsed config.json, whose field is ``dtype`` or, in old files, ``torch_dtype``.
    of_weights : callable
        Returns the dtype of the weights, for a config.json that names none.
    """
    name = _dtype_name(requested)
    if name in DTYPES:
        return name
    if name != "auto":
        raise ConfigError(f"[LLM] dtype is {brief(requested)}; allowed: auto, {', '.join(DTYPES)}")
    named = hf_config.get("dtype")
    if named is None:
        named = hf_config.get("torch_dtype")
    stored = of_weights() if named is None else _dtype_name(named)
    stored = _DTYPE_ALIASES.get(stored, stored)
    if stored not in DTYPES:
        raise UnsupportedModelError(
            f"[config.json] dtype is {brief(stored)}; allowed: {', '.join(DTYPES)}; pass dtype to "
            "convert the weights while they are loaded"
        )
    return stored


def _dtype_name(value: object) -> str:
    """Return the name of a dtype that is given as text or as torch's object."""
    is_name = isinstance(value, str) or type(value).__name__ == "dtype"
    return str(value).removeprefix("torch.") if is_name else brief(value)


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
            if isinstance(item, bool) or not isinstance(item, int) or item > MAX_COUNT:
                raise CheckpointError(
                    f"[config.json] eos_token_id is {brief(value)}; allowed: an int in "
                    f"[0, {MAX_COUNT}] or a list of them"
                )
            # Some files write -1 for "none".
            if item >= 0:
                found.add(item)
    return tuple(sorted(found))
