# SPDX-License-Identifier: Apache-2.0
"""A class for `ray.data.Dataset.map_batches`: an engine in every actor of its pool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .._checks import MAX_INT64, as_int, brief, plain
from ..batch.engine_spec import EngineSpec
from ..batch.line import Answer, Line
from ..batch.line_forms import LineForms
from ..errors import ConfigError
from ..sampling import SamplingParams
from .engine_actor import SharedEngine

_PROMPTS = ("prompt", "prompt_token_ids", "messages")
_ADDED = (
    "text",
    "token_ids",
    "finish_reason",
    "cumulative_logprob",
    "prompt_tokens",
    "generated_tokens",
    "error",
)


class BatchEngine:
    """Continues the prompts of a dataset's rows.

    Each actor has as many cores of its own as ``num_cpus`` says, and that part of its node's
    memory; on CPUs weights are held once for all actors of a node, where their files allow it.

    Rows have one of the columns ``prompt``, ``prompt_token_ids`` and ``messages``, and perhaps
    ``sampling_params``, a dict of fields of `SamplingParams` of which nulls count as absent. All
    columns come back, and with them ``text``, ``token_ids``, ``finish_reason``,
    ``cumulative_logprob``, ``prompt_tokens``, ``generated_tokens`` and ``error``: null, or why a
    row has no text (then the others are null).

    Parameters
    ----------
    model : str
        As for `LLM`; a path is one on every node.
    sampling_params : mapping, optional
        Fields of `SamplingParams` for rows that do not give them; ``n`` is 1.
    seed : int
        Of samples; a row without a seed of its own adds a number that its prompt has, so that a
        batch that is run again has the same texts.
    **options
        Of `LLM`.

    Raises
    ------
    ConfigError, OutOfMemoryError
        If there can be no such engine, or a dataset lacks the columns.

    Examples
    --------
    >>> dataset.map_batches(  # doctest: +SKIP
    ...     hybridgen.ray.BatchEngine,
    ...     fn_constructor_kwargs={"model": "path/to/model", "sampling_params": {"max_tokens": 64}},
    ...     compute=ray.data.ActorPoolStrategy(size=2),
    ...     num_cpus=8,
    ...     batch_size=256,
    ... )
    """

    def __init__(
        self,
        model: str,
        *,
        sampling_params: Mapping[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self._seed = as_int("map_batches", "seed", seed, 0, MAX_INT64)
        self._sampling = dict(sampling_params or {})
        _check_one_text(self._sampling)
        SamplingParams(**self._sampling)  # refuses what no row could be answered with
        spec = EngineSpec(
            model=model,
            engine=options | {"seed": seed},
            forms=LineForms(model, has_token_ids=True, is_table=True),
            sampling=self._sampling,
        )
        self._engine = SharedEngine(spec)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch's columns, and the texts'."""
        answers = list(self._engine.window.answers(lines_of(batch, self._seed)))
        rows = [row_of(answer) for answer in sorted(answers, key=lambda answer: answer.index)]
        return dict(batch) | {name: [row[name] for row in rows] for name in _ADDED}


def lines_of(batch: Mapping[str, Any], seed: int) -> list[Line]:
    """Return the rows of a batch as lines; ConfigError if its columns are no prompts."""
    found = [name for name in _PROMPTS if name in batch]
    taken = [name for name in _ADDED if name in batch]
    if len(found) != 1 or taken:
        raise ConfigError(
            f"[map_batches] the dataset has the columns {', '.join(map(plain, batch))}; allowed: "
            f"one of {', '.join(_PROMPTS)}, and none of {', '.join(_ADDED)}, which are added; "
            "rename or drop columns"
        )
    key = found[0]
    options = batch.get("sampling_params")
    return [
        _line(
            index,
            key,
            as_python(prompt),
            as_python(options[index]) if options is not None else {},
            seed,
        )
        for index, prompt in enumerate(batch[key])
    ]


def _line(index: int, key: str, prompt: Any, options: Any, seed: int) -> Line:
    place = f"row {index}"
    try:
        if not isinstance(options, dict | None):
            raise ConfigError(f"sampling_params is {brief(options)}; allowed: a dict, or null")
        given = {name: value for name, value in (options or {}).items() if value is not None}
        _check_one_text(given)
        if given.keys() & {*_PROMPTS, "id"}:
            raise ConfigError(f"sampling_params has {', '.join(given)}; allowed: its fields only")
    except ConfigError as error:
        return Line(index, place, None, f"{place}: {error}")
    digest = hashlib.sha256(repr(prompt).encode(errors="backslashreplace")).digest()
    own = (seed + int.from_bytes(digest[:7], "little")) & MAX_INT64
    return Line(index, place, {key: prompt, "seed": own} | given)


def row_of(answer: Answer) -> dict[str, Any]:
    """Return what is added to a row."""
    content, row = answer.content, dict.fromkeys(_ADDED)
    if content["error"] is not None:
        return row | {"error": content["error"]["message"]}
    (text,) = content["outputs"]
    found = {name: text[name] for name in _ADDED if name in text}
    return row | found | {"prompt_tokens": content["prompt_tokens"]}


def as_python(value: Any) -> Any:
    """Return a value of NumPy as Python's own, also within lists and dicts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: as_python(item) for name, item in value.items() if item is not None}
    return [as_python(item) for item in value] if isinstance(value, list | tuple) else value


def _check_one_text(options: Mapping[str, Any]) -> None:
    if options.get("n", 1) != 1:
        raise ConfigError(
            f"[map_batches] n is {brief(options['n'])}; allowed: 1, as a row has one text; repeat "
            "the row, with another seed in its sampling_params"
        )
