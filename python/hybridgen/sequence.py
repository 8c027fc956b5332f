# SPDX-License-Identifier: Apache-2.0
"""One text on its way: what the engine is asked for, and what its tokens come to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core
from .detokenizer import Detokenizer
from .outputs import CompletionOutput, RequestMetrics
from .sampling import SAMPLER_DEFAULTS, SamplingParams
from .stop_strings import StopMatcher

if TYPE_CHECKING:
    from .generation import Call


class NewToken(NamedTuple):
    """What a sequence has of one token."""

    text: str
    token_id: int
    finish_reason: str | None
    """Why the sequence ends with it, if it does."""


class _Delivery(NamedTuple):
    """A token on its way into a sequence, and what the sequence was before."""

    event: Any
    number: int
    logprob: float


class Sequence:
    """One text on its way.

    Parameters
    ----------
    prompt_ids : list of int
        What the model is given.
    params : SamplingParams
        Decides when the text ends.
    tokenizer : object or None
        None leaves the text empty.
    index : int
        Number among the texts of one prompt.
    options : _core.SamplingOptions
        The engine's form of the parameters.
    forced : list of int, optional
        Tokens that are taken instead of sampled ones.
    decode_prompt_tokens : int
        So many last prompt tokens pass through decode steps.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        tokenizer: Any,
        index: int = 0,
        *,
        options: Any = None,
        forced: list[int] | None = None,
        decode_prompt_tokens: int = 0,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self.options = options
        self.forced = forced or []
        self.decode_prompt_tokens = decode_prompt_tokens
        self.device_tokens: int | None = None
        """Of its newest tokens so many stay on the device, whatever the engine's options say."""
        self.on_disk = False
        """Whether its offloaded tokens go to the disk, whatever memory has room for."""
        self.request_id = -1
        self.call: Call | None = None
        self.error: BaseException | None = None
        """What kept it from being finished."""
        self.metrics = RequestMetrics(prompt_tokens=len(prompt_ids))
        self.output = CompletionOutput(index)
        self.prompt_logprobs: list[dict[int, float] | None] | None = None
        """Of each prompt token, if they were asked for; None of the first."""
        self.greedy: list[bool] = []
        """Of each token, whether the model would have chosen it."""
        self.pieces: list[NewToken] = []
        """All tokens; one that is in here has arrived."""
        if params.logprobs is not None:
            self.output.logprobs = []
        self._joined = (0, "")
        """So many of `pieces`, and their text."""
        self._delivery = _Delivery(None, 0, 0.0)
        self._matcher = self._new_matcher()
        self._tokenizer = tokenizer
        self._detokenizer: Detokenizer | None = None

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.output.finish_reason is not None

    def output_so_far(self) -> CompletionOutput:
        """Return a copy of what there is of it, which may go on."""
        start, text = self._joined  # a caller asks after every token: each is read once
        fresh = self.pieces[start:]  # others may append while this is read
        count = start + len(fresh)
        text += "".join(piece.text for piece in fresh)
        self._joined = count, text
        found = self.output
        return replace(
            found,
            text=found.text if self.finished else text,
            token_ids=found.token_ids[:count],
            logprobs=None if found.logprobs is None else found.logprobs[:count],
        )

    def accept(self, event: Any) -> None:
        """Take one token from the engine; afterwards `finished` may be true.

        An interrupt may leave this anywhere; then the same event is to be given again.
        """
        output = self.output
        if self._delivery.event is not event:
            self._delivery = _Delivery(event, len(self.pieces), output.cumulative_logprob)
        elif len(self.pieces) == self._delivery.number:
            self._repeat_text()
        if len(self.pieces) == self._delivery.number:
            self._take(self._delivery)
        if self.pieces[-1].finish_reason is not None:
            output.text = self._text_so_far()
            output.finish_reason = self.pieces[-1].finish_reason

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Finish from outside, keeping the text there is, even where making text is what failed.

        An interrupt passes through, and leaves the sequence unfinished.
        """
        if not self.finished:
            self.error = self.error or error
            text = self._text_so_far()
            try:
                text += self._rest()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                pass  # what was held back cannot be made text
            self.output.text = text
            self.output.finish_reason = reason

    def _take(self, delivery: _Delivery) -> None:
        event, number, logprob = delivery
        output = self.output
        if number == 0 and self.options is not None and self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None, *map(dict, event.prompt_logprobs)]
        # Assigned by number, not appended: an interrupted delivery may have been here before.
        output.token_ids[number:] = [event.token_id]
        self.greedy[number:] = [event.is_greedy]
        output.cumulative_logprob = logprob + event.logprob
        if output.logprobs is not None:
            top = {event.token_id: event.logprob} | dict(event.top_logprobs)
            output.logprobs[number:] = [top]
        reason = event.finish_reason or None
        text = self._text_of(event.token_id, number, ended=reason == "stop")
        if output.stop_reason is not None:
            reason = "stop"
        elif reason == "stop" and event.token_id in self.params.extra_stop_ids:
            output.stop_reason = event.token_id
        # After a stop string nothing follows; otherwise what was held back is text after all.
        if reason is not None and not isinstance(output.stop_reason, str):
            text += self._rest()
        self.pieces.append(NewToken(text, event.token_id, reason))

    def _repeat_text(self) -> None:
        """Make the text so far once more: what makes it may hold a part of one more token."""
        self.output.stop_reason = None
        self._matcher = self._new_matcher()
        self._detokenizer = None
        for i, piece in enumerate(self.pieces):
            self._text_of(piece.token_id, i, ended=False)

    def _new_matcher(self) -> StopMatcher:
        params = self.params
        return StopMatcher(params.stop_strings, keeps_stop=params.include_stop_str_in_output)

    def _text_so_far(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def _read_prompt(self) -> Detokenizer:
        """Return a detokenizer behind the prompt, in the end of which a stop string may begin."""
        skip = self.params.skip_special_tokens
        longest = max(map(len, self.params.stop_strings), default=0)
        # No token is shorter than a byte, and no character longer than four.
        start = max(0, len(self.prompt_ids) - 4 * longest)
        before = self.prompt_ids[:start]
        detokenizer = Detokenizer(self._tokenizer, before, skip_special_tokens=skip)
        for token_id in self.prompt_ids[start:]:
            self._matcher.push("", seen=detokenizer.piece(token_id).seen, armed=False)
        detokenizer.begin()
        return detokenizer

    def _text_of(self, token_id: int, number: int, *, ended: bool) -> str:
        # An ending token belongs to the tokens, and to the text only where that was asked for.
        if self._tokenizer is None or (ended and not self.params.include_stop_str_in_output):
            return ""
        # Not before: what the tokenizer cannot decode is the failure of this sequence alone.
        if self._detokenizer is None:
            self._detokenizer = self._read_prompt()
        piece = self._detokenizer.piece(token_id)
        armed = number + 1 >= self.params.min_tokens
        text, stop = self._matcher.push(piece.shown, seen=piece.seen, armed=armed)
        if stop is not None:
            self.output.stop_reason = stop
        return text

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text, _ = self._matcher.push(self._detokenizer.flush(), armed=False)
        return text + self._matcher.flush()


def sampling_options(
    params: SamplingParams, *, max_tokens: int, seed: int, stop_ids: list[int], valid_vocab: int
) -> Any:
    """Return the engine's form of sampling parameters.

    Parameters
    ----------
    params : SamplingParams
        As the user gave them.
    max_tokens : int
        With the context length taken into account.
    seed : int
        Of this one sequence.
    stop_ids : list of int
        All tokens that end it.
    valid_vocab : int
        Tokens from here on are never sampled; 0 for no limit.
    """
    changed = {
        "seed": seed,
        "max_tokens": max_tokens,
        "stop_token_ids": tuple(stop_ids),
        "valid_vocab": valid_vocab,
    }
    options = params.engine_options() | changed
    # Each that is given is checked once more, which takes longer than the rest of a short request.
    return _core.SamplingOptions(
        **{name: value for name, value in options.items() if value != SAMPLER_DEFAULTS[name]}
    )
