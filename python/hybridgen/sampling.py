# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen and when a text ends."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from . import _core
from ._checks import (
    as_bool,
    as_float,
    as_int,
    as_path,
    brief,
    items_of,
    options_class,
)
from .errors import ConfigError
from .generation_defaults import translate
from .model_folder import read_json
from .sampling_names import ELSEWHERE

# Each text of a prompt is a request of its own.
_MAX_TEXTS = 16384
_MAX_BIAS = 100.0
_MAX_STOP_LETTERS = 65536


SAMPLER_DEFAULTS: dict[str, Any] = {
    row["name"]: row["default"] for row in _core.SamplingOptions.describe()
}
"""What the engine's sampler knows, and what each is where nobody says."""


class _DefaultInt(int):
    """A default that can be told from the same number given."""


class _DefaultFloat(float):
    """The same of a float."""


_USUAL_LENGTH = _DefaultInt(16)
_GREEDY = _DefaultFloat(0.0)
_TAKES_THE_PLACE_OF = {
    "max_tokens": ("max_new_tokens", "max_length"),
    "max_new_tokens": ("max_new_tokens", "max_length"),
    "min_tokens": ("min_new_tokens", "min_length"),
}
"""Overrides, and the fields of a generation config that are then never looked at."""


@options_class
class SamplingParams:
    """How to sample, with vLLM's names. The default is greedy.

    Parameters
    ----------
    n : int
        Texts per prompt; they differ only when sampling.
    temperature : float
        0.0 takes the most likely token; sampling begins above.
    top_p, top_k, min_p : float, int, float
        Restrict sampling to the likeliest tokens; 1.0, 0 (or -1) and 0.0 restrict nothing.
    max_tokens : int or None
        New tokens at most; None means as many as the context length leaves.
    min_tokens : int
        New tokens before an ending token or a stop string may end the text.
    stop : str or sequence of str
        Strings that end the text, at the token that completes one; they are not part of it. Special
        tokens count, and so does the end of the prompt.
    stop_token_ids : sequence of int
        Tokens that end the text, besides the model's own.
    ignore_eos : bool
        Go on after the model's own ending tokens.
    seed : int, optional
        Makes this request's samples repeatable; by default they follow from the engine's seed.
    logprobs : int, optional
        Report the log-probability of each new token and of this many likeliest ones, of the
        model's own distribution: before temperature, penalty and the restrictions above.
    prompt_logprobs : int, optional
        Report the same of each prompt token but the first, which nothing comes before.
    repetition_penalty : float
        Above 1.0 makes tokens that occurred before, in prompt or text, less likely.
    presence_penalty, frequency_penalty : float
        Taken off the logit of each token that was generated; the second as often as it was. From
        -2 to 2; below 0 they make tokens likelier.
    logit_bias : dict of int to float, optional
        Added to the logits of these tokens, before all penalties; from -100, which all but forbids
        a token, to 100.
    skip_special_tokens : bool
        Leave special tokens out of the text.
    include_stop_str_in_output : bool
        Let a text end with the stop string, or with the text of the token, that ended it, as far as
        that is text (not of the prompt, nor of special tokens that are left out).
    max_new_tokens, do_sample
        transformers' names: ``max_tokens``, and ``temperature`` 1.0 or 0.0.

    Raises
    ------
    ConfigError
        For a value out of range, a contradiction, or an unknown name.

    Examples
    --------
    >>> SamplingParams(max_new_tokens=8).max_tokens
    8
    """

    n: int = 1
    temperature: float = _GREEDY
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = _USUAL_LENGTH
    min_tokens: int = 0
    stop: str | Iterable[str] | None = ()
    stop_token_ids: Iterable[int] | None = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = dataclasses.field(default=None, hash=False)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    max_new_tokens: dataclasses.InitVar[int | None] = None
    do_sample: dataclasses.InitVar[bool | None] = None

    _elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    def __post_init__(self, max_new_tokens: int | None, do_sample: bool | None) -> None:
        name = "SamplingParams"

        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        put("n", as_int(name, "n", self.n, 1, _MAX_TEXTS))
        put("temperature", _temperature(self.temperature, do_sample))
        put("max_tokens", _max_tokens(self.max_tokens, max_new_tokens))
        put("logit_bias", _logit_bias(name, self.logit_bias))
        put("stop_token_ids", _stop_ids(name, self.stop_token_ids))
        for field, value in _core.checked_options(name, self.engine_options()).items():
            if field != "logit_bias":
                put(field, value)
        put("stop", _stop_strings(name, self.stop))
        for field in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            put(field, as_bool(name, field, getattr(self, field)))

    def engine_options(self) -> dict[str, Any]:
        """Return what the engine's sampler knows of these, by its names; no None but for None."""
        fields = {name: getattr(self, name) for name in _SAMPLED}
        fields["logit_bias"] = tuple((self.logit_bias or {}).items())
        # The kind first: an array compares to an array.
        if isinstance(self.top_k, numbers.Integral) and self.top_k == -1:
            fields["top_k"] = 0  # vLLM's way to write "no restriction"
        for name in ("max_tokens", "seed"):
            if fields[name] is None:  # of the model's length, of the engine's seed
                del fields[name]
        return fields

    @classmethod
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> SamplingParams:
        """Read the defaults that a checkpoint ships in ``generation_config.json``.

        Parameters
        ----------
        path : str or Path
            A folder, or the file itself.
        **overrides
            Fields that replace those of the file.

        Raises
        ------
        CheckpointError
            If there is no such file, or it is no JSON object.
        ConfigError
            If a value or the path is not allowed.
        """
        file = as_path("SamplingParams", "path", path)
        if file.is_dir():
            file = file / "generation_config.json"
        content = read_json(file, "SamplingParams")
        return cls.from_generation_config(content, **overrides)

    @classmethod
    def from_generation_config(cls, content: Mapping[str, Any], **overrides: Any) -> SamplingParams:
        """Translate the content of a ``generation_config.json``; see `from_pretrained`.

        What changes the text and has no counterpart here, beam search for example, is left out and
        named in one warning, unless an override takes its place.

        Raises
        ------
        CheckpointError, ConfigError
            If a value of the content, or an override, is not allowed.
        """
        if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
            raise ConfigError(
                f"[SamplingParams] the generation config is {brief(content)}; allowed: the fields "
                "of a generation_config.json by name; pass the parsed file, or its folder to "
                "from_pretrained"
            )
        # As in the fields' own place, None is no override of these two.
        overrides = {
            name: value
            for name, value in overrides.items()
            if value is not None or name not in ("max_new_tokens", "do_sample")
        }
        given = dict(content)
        if "do_sample" in overrides:
            given["do_sample"] = as_bool("SamplingParams", "do_sample", overrides["do_sample"])
        for name in overrides.keys() & _TAKES_THE_PLACE_OF.keys():
            for replaced in _TAKES_THE_PLACE_OF[name]:
                given.pop(replaced, None)
        fields, left_out = translate(given)
        if left_out:
            warnings.warn(
                f"[SamplingParams] the generation config sets {', '.join(left_out[:12])}"
                f"{f' and {len(left_out) - 12} fields more' if len(left_out) > 12 else ''}, which "
                "this engine has no counterpart of: they are left out, the other fields hold; to "
                "choose otherwise pass fields of SamplingParams beside the file (max_tokens in "
                "place of max_length), or make a SamplingParams of your own",
                stacklevel=2,
            )
        # A limit is kept before a file's min_new_tokens, as in transformers.
        most = (fields | overrides).get("max_tokens", overrides.get("max_new_tokens"))
        if isinstance(most, int) and isinstance(fields.get("min_tokens"), int):
            fields["min_tokens"] = min(fields["min_tokens"], most)
        return cls(**(fields | overrides))

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with some fields changed; ``max_new_tokens`` and ``do_sample`` too."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if changes.get("max_new_tokens") is not None:
            del fields["max_tokens"]
        do_sample = changes.get("do_sample")
        if do_sample is not None and as_bool("SamplingParams", "do_sample", do_sample) == (
            self.temperature == 0
        ):
            del fields["temperature"]
        return type(self)(**(fields | changes))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        return cast("tuple[str, ...]", self.stop)

    @property
    def extra_stop_ids(self) -> tuple[int, ...]:
        """The additional ending tokens as a tuple."""
        return cast("tuple[int, ...]", self.stop_token_ids)


_SAMPLED = [name for name in SAMPLER_DEFAULTS if name in SamplingParams.__dataclass_fields__]


def _stop_strings(operation: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else items_of(value)
    if strings is None:
        raise ConfigError(
            f"[{operation}] stop is {brief(value)}; allowed: a string or a list of them"
        )
    found = tuple(strings)
    for text in found:
        if not isinstance(text, str) or not text:
            raise ConfigError(
                f"[{operation}] stop contains {brief(text)}; allowed: strings that are not empty"
            )
    size = sum(map(len, found))
    if size > _MAX_STOP_LETTERS:
        raise ConfigError(
            f"[{operation}] the strings in stop have {size} letters; allowed: "
            f"{_MAX_STOP_LETTERS} in all"
        )
    return cast("tuple[str, ...]", found)


def _stop_ids(operation: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = [value] if isinstance(value, numbers.Integral) else items_of(value)
    if ids is None:
        raise ConfigError(
            f"[{operation}] stop_token_ids is {brief(value)}; allowed: a list of ints"
        )
    return tuple(as_int(operation, "stop_token_ids", i, 0) for i in ids)


def _logit_bias(operation: str, value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"[{operation}] logit_bias is {brief(value)}; allowed: a dict from token ids to numbers"
        )
    return {
        as_int(operation, "a token id of logit_bias", token, 0): as_float(
            operation, f"logit_bias of token {brief(token)}", bias, -_MAX_BIAS, _MAX_BIAS
        )
        for token, bias in value.items()
    }


def _max_tokens(max_tokens: int | None, max_new_tokens: int | None) -> int | None:
    """Return the one of them that was given; both may be if they say the same."""
    if max_new_tokens is None:
        return max_tokens
    limit = as_int("SamplingParams", "max_new_tokens", max_new_tokens, 1)
    is_same = isinstance(max_tokens, numbers.Integral) and max_tokens == limit
    if max_tokens is not _USUAL_LENGTH and not is_same:
        raise ConfigError(
            f"[SamplingParams] max_tokens is {brief(max_tokens)} and max_new_tokens is {limit}; "
            "they mean the same, so give one of them"
        )
    return limit


def _temperature(temperature: float, do_sample: bool | None) -> float:
    """Return the temperature that do_sample means; ConfigError if another one was given."""
    if do_sample is None:
        return temperature
    do_sample = as_bool("SamplingParams", "do_sample", do_sample)
    if temperature is _GREEDY:
        return 1.0 if do_sample else 0.0
    if do_sample == (temperature == 0):
        raise ConfigError(
            f"[SamplingParams] do_sample is {do_sample} and temperature is "
            f"{brief(temperature)}; sampling needs a temperature above 0, greedy decoding 0"
        )
    return temperature
