# SPDX-License-Identifier: Apache-2.0
"""One prompt with all its texts, from what the user asked for to what they came to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ._checks import MAX_INT64, as_int, brief
from .codec import Codec
from .errors import ConfigError
from .generation import EngineLoop
from .model import Model
from .outputs import CompletionOutput, RequestMetrics, RequestOutput, withheld
from .prompts import Encoded
from .sampling import SamplingParams
from .sequence import Sequence, sampling_options

Params = SamplingParams | list[SamplingParams] | None


class Request:
    """One prompt and its texts.

    Parameters
    ----------
    prompt : str or None
        None if it came as token ids.
    sequences : list of Sequence
        One for each text.
    name : int or str, optional
        What its results are called; by default the engine's number of its first text.
    emulated : str, optional
        What its metrics say of the device.
    is_timed : bool
        Whether nothing is computed, and so text is withheld.
    """

    def __init__(
        self,
        prompt: str | None,
        sequences: list[Sequence],
        name: int | str | None = None,
        *,
        emulated: str | None = None,
        is_timed: bool = False,
    ) -> None:
        self.prompt = prompt
        self.sequences = sequences
        self.is_timed = is_timed
        self._name = name
        self._emulated = emulated

    @property
    def prompt_ids(self) -> list[int]:
        """What the model is given."""
        return self.sequences[0].prompt_ids

    @property
    def shown(self) -> str | list[int]:
        """The prompt as messages show it."""
        return self.prompt_ids if self.prompt is None else self.prompt

    @property
    def finished(self) -> bool:
        """Whether no more tokens of any text will come."""
        return all(sequence.finished for sequence in self.sequences)

    @property
    def error(self) -> BaseException | None:
        """What kept the first of the failed texts from being finished."""
        return next((s.error for s in self.sequences if s.error is not None), None)

    def output(self) -> RequestOutput:
        """Return what the texts came to when the call that ran them has ended."""
        ends = {sequence.output.finish_reason for sequence in self.sequences}
        return self._output([s.output for s in self.sequences], ends <= {"stop", "length"})

    def output_so_far(self) -> RequestOutput:
        """Return a copy of what there is of the texts, which may go on."""
        texts = [sequence.output_so_far() for sequence in self.sequences]
        return replace(self._output(texts, self.finished), error=self.error)

    def _output(self, texts: list[CompletionOutput], finished: bool) -> RequestOutput:
        return RequestOutput(
            request_id=self.sequences[0].request_id if self._name is None else self._name,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_ids,
            outputs=[withheld(text) for text in texts] if self.is_timed else texts,
            finished=finished,
            prompt_logprobs=self.sequences[0].prompt_logprobs,
            metrics=replace(
                RequestMetrics.combined([sequence.metrics for sequence in self.sequences]),
                emulated=self._emulated,
            ),
        )


class RequestMaker:
    """Makes requests of one engine: their seeds, their room and the tokens that end them.

    Parameters
    ----------
    model : Model
        Whose prompts they are.
    loop : EngineLoop
        Where they will run.
    seed : int
        Of samples without a seed of their own.
    """

    def __init__(self, model: Model, loop: EngineLoop, seed: int) -> None:
        self._model = model
        self._loop = loop
        self._seed = seed
        self._numbers = itertools.count()

    def make(
        self,
        operation: str,
        prompt: Encoded,
        params: SamplingParams,
        *,
        makes_text: bool = True,
        forced: list[int] | None = None,
        decode_prompt_tokens: int = 0,
        name: int | str | None = None,
    ) -> Request:
        """Return a request that has not been queued yet.

        Parameters
        ----------
        operation : str
            As messages begin.
        prompt : (str or None, list of int)
            As `PromptReader` gives it.
        params : SamplingParams
            For all its texts.
        makes_text : bool
            Without, only stop strings have text made.
        forced : list of int, optional
            Tokens that are taken instead of sampled ones.
        decode_prompt_tokens : int
            So many last prompt tokens pass through decode steps.
        name : int or str, optional
            See `Request`.

        Raises
        ------
        ConfigError
            If the parameters need a tokenizer and there is none, or a wrong one.
        """
        text, ids = prompt
        is_timed = self._model.machine_profile is not None
        if is_timed:
            _refuse_results(operation, params)
        self._check_bias(operation, params)
        decode_prompt_tokens = as_int(operation, "decode_prompt_tokens", decode_prompt_tokens, 0)
        codec = None if is_timed else self._codec(operation, params, makes_text)
        sequences = [
            Sequence(
                ids,
                params,
                codec,
                index,
                options=self._options(params, len(ids), index),
                forced=forced,
                decode_prompt_tokens=decode_prompt_tokens,
            )
            for index in range(params.n)
        ]
        return Request(text, sequences, name, emulated=self._model.emulated, is_timed=is_timed)

    def make_all(
        self,
        operation: str,
        prompts: list[Encoded],
        params: Params,
        **options: Any,
    ) -> list[Request]:
        """Return a request for each prompt; `params` are for all, or one each. See `make`."""
        each = _per_prompt(operation, params, len(prompts))
        return [
            self.make(operation, prompt, own, **options)
            for prompt, own in zip(prompts, each, strict=True)
        ]

    def _options(self, params: SamplingParams, prompt_tokens: int, index: int) -> Any:
        """Return the engine's form of the parameters of one text."""
        room = self._loop.engine.options.max_model_len - prompt_tokens
        number = next(self._numbers)  # at once: other threads make requests too
        seed = self._seed + number if params.seed is None else params.seed + index
        # Where nothing is computed, a token that ends the text would come by chance.
        never_ends = params.ignore_eos or self._model.machine_profile is not None
        eos = () if never_ends else self._model.eos_token_ids
        return sampling_options(
            # All texts of a prompt have the same one: the first tells of it.
            params if index == 0 else params.replace(prompt_logprobs=None),
            max_tokens=max(room, 1) if params.max_tokens is None else params.max_tokens,
            seed=seed & MAX_INT64,
            stop_ids=sorted({*eos, *params.extra_stop_ids}),
            valid_vocab=self._model.valid_vocab,
        )

    def _check_bias(self, operation: str, params: SamplingParams) -> None:
        last = self._model.config["vocab_size"] - 1
        largest = max(params.logit_bias or {}, default=0)
        if largest > last:
            raise ConfigError(
                f"[{operation}] logit_bias names the token id {largest}; allowed: 0 to {last}, the "
                "model's own"
            )

    def _codec(self, operation: str, params: SamplingParams, makes_text: bool) -> Codec | None:
        if params.stop_strings:
            return self._model._reader(operation).require_codec("stop strings")
        return self._model.codec if makes_text else None


def outputs_of(requests: list[Request]) -> Callable[[], list[RequestOutput]]:
    """Return what makes the results of requests when they have ended."""
    return lambda: [request.output() for request in requests]


def _refuse_results(operation: str, params: SamplingParams) -> None:
    """Refuse what needs the model's own results, for a device that only has times."""
    asked = {
        "stop": params.stop_strings or None,
        "stop_token_ids": params.extra_stop_ids or None,
        "logprobs": params.logprobs,
        "prompt_logprobs": params.prompt_logprobs,
    }
    for name, value in asked.items():
        if value is not None:
            raise ConfigError(
                f"[{operation}] {name} is {brief(value)} on a device that only has times; allowed: "
                "None, as nothing is computed there and every text runs to max_tokens; take "
                "device='cpu', or 'emulated' without a profile"
            )


def _per_prompt(operation: str, params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, list | tuple) or not all(
        isinstance(p, SamplingParams) for p in params
    ):
        raise ConfigError(
            f"[{operation}] sampling_params is {brief(params)}; allowed: a SamplingParams, or a "
            "list with one for each prompt"
        )
    if len(params) != count:
        raise ConfigError(
            f"[{operation}] there are {len(params)} sampling_params for {count} prompts; allowed: "
            "one for all, or one for each"
        )
    return list(params)
