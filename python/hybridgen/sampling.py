# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen and when a text ends."""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ._checks import as_bool, as_float, as_int, options_class
from .errors import CheckpointError, ConfigError

_MAX_INT64 = (1 << 63) - 1
_MAX_TOKENS = (1 << 31) - 1

# What a generation_config.json may ask for that this engine has no counterpart of, with the value
# that asks for nothing.
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "diversity_penalty": 0.0,
    "bad_words_ids": [],
    "force_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": -1,
    "forced_eos_token_id": -1,
    "sequence_bias": {},
    "guidance_scale": 1.0,
    "watermarking_config": {},
}


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
        Strings that end the text; they are not part of it.
    stop_token_ids : sequence of int
        Tokens that end the text, besides the model's own.
    ignore_eos : bool
        Go on after the model's own ending tokens.
    seed : int, optional
        Makes this request's samples repeatable; by default they follow from the engine's seed.
    logprobs : int, optional
        Report the log-probability of each new token and of this many likeliest ones.
    repetition_penalty : float
        Above 1.0 makes tokens that occurred before less likely.
    skip_special_tokens : bool
        Leave special tokens out of the text.

    The names of transformers ``max_new_tokens`` and ``do_sample`` are understood too.

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
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Iterable[str] | None = ()
    stop_token_ids: Iterable[int] | None = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True
    # Translated before the dataclass sees them, see _apply_aliases; here for type checkers.
    max_new_tokens: dataclasses.InitVar[int | None] = None
    do_sample: dataclasses.InitVar[bool | None] = None

    def __post_init__(self, max_new_tokens: int | None, do_sample: bool | None) -> None:
        name = "SamplingParams"

        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        put("n", as_int(name, "n", self.n, 1))
        put("temperature", as_float(name, "temperature", self.temperature, 0.0))
        put("top_p", as_float(name, "top_p", self.top_p, 0.0, 1.0))
        if self.top_p == 0.0:
            raise ConfigError(
                f"[{name}] top_p is 0.0; allowed: a number in (0, 1]; use temperature=0.0 for "
                "greedy decoding"
            )
        # vLLM writes -1 for "no restriction"; the engine writes 0.
        put("top_k", max(0, as_int(name, "top_k", self.top_k, -1, _MAX_TOKENS)))
        put("min_p", as_float(name, "min_p", self.min_p, 0.0, 1.0))
        if self.max_tokens is not None:
            put("max_tokens", as_int(name, "max_tokens", self.max_tokens, 1, _MAX_TOKENS))
        put("min_tokens", as_int(name, "min_tokens", self.min_tokens, 0))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"[{name}] min_tokens is {self.min_tokens}; allowed: at most max_tokens, which is "
                f"{self.max_tokens}"
            )
        put("stop", _stop_strings(name, self.stop))
        put("stop_token_ids", _stop_ids(name, self.stop_token_ids))
        put("ignore_eos", as_bool(name, "ignore_eos", self.ignore_eos))
        if self.seed is not None:
            put("seed", as_int(name, "seed", self.seed, 0, _MAX_INT64))
        if self.logprobs is not None:
            put("logprobs", as_int(name, "logprobs", self.logprobs, 0))
        penalty = as_float(name, "repetition_penalty", self.repetition_penalty, 0.0)
        if penalty == 0.0:
            raise ConfigError(
                f"[{name}] repetition_penalty is 0.0; allowed: a number > 0; 1.0 means none"
            )
        put("repetition_penalty", penalty)
        put(
            "skip_special_tokens",
            as_bool(name, "skip_special_tokens", self.skip_special_tokens),
        )

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
            If the file asks for something this engine cannot do, beam search for example.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "generation_config.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"[SamplingParams] cannot read {file}: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"[SamplingParams] {file} holds no JSON object")
        return cls.from_generation_config(content, **overrides)

    @classmethod
    def from_generation_config(cls, content: dict[str, Any], **overrides: Any) -> SamplingParams:
        """Translate the content of a ``generation_config.json``; see `from_pretrained`."""
        for name, neutral in _NEUTRAL.items():
            value = content.get(name)
            if value is None or value == neutral or value == []:
                continue
            raise ConfigError(
                f"[SamplingParams] the generation config sets {name} to {value!r}, which this "
                "engine cannot do; set the fields of SamplingParams yourself"
            )
        names = {
            "top_p": "top_p",
            "top_k": "top_k",
            "min_p": "min_p",
            "temperature": "temperature",
            "repetition_penalty": "repetition_penalty",
            "max_new_tokens": "max_tokens",
            "min_new_tokens": "min_tokens",
            "stop_strings": "stop",
        }
        fields = {
            ours: content[theirs]
            for theirs, ours in names.items()
            if content.get(theirs) is not None
        }
        if content.get("do_sample"):
            fields.setdefault("temperature", 1.0)
        else:
            # The file may keep a temperature beside do_sample=false; transformers ignores it too.
            for name in ("temperature", "top_p", "top_k", "min_p"):
                fields.pop(name, None)
        for alias, name in (("max_new_tokens", "max_tokens"), ("do_sample", "temperature")):
            if alias in overrides:
                fields.pop(name, None)
        return cls(**(fields | overrides))

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        return cast("tuple[str, ...]", self.stop)

    @property
    def extra_stop_ids(self) -> tuple[int, ...]:
        """The additional ending tokens as a tuple."""
        return cast("tuple[int, ...]", self.stop_token_ids)


def _stop_strings(operation: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Iterable):
        raise ConfigError(f"[{operation}] stop is {value!r}; allowed: a string or a list of them")
    found = tuple(strings)
    for text in found:
        if not isinstance(text, str) or not text:
            raise ConfigError(
                f"[{operation}] stop contains {text!r}; allowed: strings that are not empty"
            )
    return cast("tuple[str, ...]", found)


def _stop_ids(operation: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = (value,) if isinstance(value, numbers.Integral) else value
    if not isinstance(ids, Iterable) or isinstance(ids, str):
        raise ConfigError(f"[{operation}] stop_token_ids is {value!r}; allowed: a list of ints")
    return tuple(as_int(operation, "stop_token_ids", i, 0, _MAX_TOKENS) for i in ids)


def _apply_aliases(init: Any) -> Any:
    """Translate ``max_new_tokens`` and ``do_sample`` before the dataclass sees them."""

    @functools.wraps(init)
    def with_aliases(self: SamplingParams, **fields: Any) -> None:
        limit, do_sample = fields.pop("max_new_tokens", None), fields.pop("do_sample", None)
        if limit is not None and fields.setdefault("max_tokens", limit) != limit:
            raise ConfigError(
                f"[SamplingParams] max_tokens is {fields['max_tokens']!r} and max_new_tokens is "
                f"{limit!r}; they mean the same, so give one of them"
            )
        if do_sample is not None:
            do_sample = as_bool("SamplingParams", "do_sample", do_sample)
            temperature = fields.setdefault("temperature", 1.0 if do_sample else 0.0)
            if do_sample == (temperature == 0):
                raise ConfigError(
                    f"[SamplingParams] do_sample is {do_sample} and temperature is "
                    f"{temperature!r}; sampling needs a temperature above 0, greedy decoding 0"
                )
        init(self, **fields)

    return with_aliases


SamplingParams.__init__ = _apply_aliases(SamplingParams.__init__)  # type: ignore[method-assign]
