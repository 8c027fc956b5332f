# SPDX-License-Identifier: Apache-2.0
"""Requests in flight: tokens that the engine yields become text, wherever they are asked for.

All calls of one ``LLM`` share an engine. Whoever steps it moves every request forward, so a stream
may pause while another call runs.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Any

from . import _core
from .errors import ConfigError, HybridGenError
from .outputs import CompletionOutput, RequestMetrics
from .sampling import SamplingParams
from .tokenizer import Detokenizer, StopMatcher


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
    """

    def __init__(
        self, prompt_ids: list[int], params: SamplingParams, tokenizer: Any, index: int = 0
    ) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self.request_id = -1
        self.metrics = RequestMetrics(prompt_tokens=len(prompt_ids))
        self.output = CompletionOutput(index)
        self.all_greedy = True
        self.pieces: deque[tuple[str, int]] = deque()
        """Text and token of every step that nobody has read yet."""
        if params.logprobs is not None:
            self.output.logprobs = []
        self._parts: list[str] = []
        self._matcher = StopMatcher(params.stop_strings)
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = self._read_prompt(tokenizer)

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.output.finish_reason is not None

    def accept(self, event: Any) -> None:
        """Take one token from the engine; afterwards `finished` may be true."""
        output = self.output
        output.token_ids.append(event.token_id)
        output.cumulative_logprob += event.logprob
        self.all_greedy = self.all_greedy and event.is_greedy
        if output.logprobs is not None:
            output.logprobs.append({event.token_id: event.logprob} | dict(event.top_logprobs))
        reason = event.finish_reason or None
        text = self._text_of(event.token_id, ended=reason == "stop")
        if output.stop_reason is not None:
            reason = "stop"
        elif reason == "stop" and event.token_id in self.params.extra_stop_ids:
            output.stop_reason = event.token_id
        # After a stop string nothing follows; otherwise what was held back is text after all.
        if reason is not None and not isinstance(output.stop_reason, str):
            text += self._rest()
        self._parts.append(text)
        output.finish_reason = reason
        if reason is not None:
            output.text = "".join(self._parts)
        self.pieces.append((text, event.token_id))

    def end(self, reason: str) -> None:
        """Finish from outside, keeping the text there is."""
        if not self.finished:
            self.output.text = "".join(self._parts) + self._rest()
            self.output.finish_reason = reason

    def _read_prompt(self, tokenizer: Any) -> Detokenizer:
        """Return a detokenizer behind the prompt, in the end of which a stop string may begin."""
        skip = self.params.skip_special_tokens
        longest = max(map(len, self.params.stop_strings), default=0)
        # No token is shorter than a byte, and no character longer than four.
        start = max(0, len(self.prompt_ids) - 4 * longest)
        detokenizer = Detokenizer(tokenizer, self.prompt_ids[:start], skip_special_tokens=skip)
        for token_id in self.prompt_ids[start:]:
            self._matcher.push("", seen=detokenizer.piece(token_id).seen, armed=False)
        detokenizer.begin()
        return detokenizer

    def _text_of(self, token_id: int, *, ended: bool) -> str:
        # An ending token belongs to the tokens, not to the text.
        if self._detokenizer is None or ended:
            return ""
        piece = self._detokenizer.piece(token_id)
        armed = len(self.output.token_ids) >= self.params.min_tokens
        text, stop = self._matcher.push(piece.shown, seen=piece.seen, armed=armed)
        if stop is not None:
            self.output.stop_reason = stop
        return text

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text, _ = self._matcher.push(self._detokenizer.flush(), armed=False)
        return text + self._matcher.flush()


class EngineLoop:
    """Owns an engine, hands out its events, and lets one thread at a time use it.

    Parameters
    ----------
    engine : _core.Engine
        Nothing else may step it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._live: dict[int, Sequence] = {}
        self._lock = threading.RLock()

    @property
    def engine(self) -> Any:
        """The engine; ConfigError once it is closed."""
        if self._engine is None:
            raise ConfigError("[LLM] the engine is closed; make a new LLM")
        return self._engine

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._live

    def add(
        self,
        sequence: Sequence,
        options: Any,
        *,
        forced: list[int] | None = None,
        decode_prompt_tokens: int = 0,
    ) -> None:
        """Queue a sequence; raises what the engine finds wrong with it."""
        with self._lock:
            sequence.request_id = self.engine.add(
                sequence.prompt_ids,
                options,
                forced=forced or [],
                decode_prompt_tokens=decode_prompt_tokens,
            )
            self._live[sequence.request_id] = sequence

    def step(self) -> list[Sequence]:
        """Advance all requests once; return those that finished."""
        with self._lock:
            if not self.engine.has_work():
                # A failed step has ended these; their own callers have yet to hear of it.
                lost = list(self._live.values())
                for sequence in lost:
                    self._forget(sequence, "error")
                return lost
            finished = []
            for event in self.engine.step():
                live = self._live.get(event.request_id)
                if live is None:
                    continue
                live.accept(event)
                if live.finished:
                    if not event.finish_reason:
                        self.engine.finish(live.request_id, "stop")
                    self._forget(live, "")
                    finished.append(live)
            return finished

    def abort(self, sequence: Sequence) -> None:
        """End a sequence that may or may not be in flight; never raises."""
        with self._lock:
            if sequence.request_id not in self._live:
                sequence.end("abort")
                return
            if self._engine is not None:
                with suppress(HybridGenError):
                    self._engine.finish(sequence.request_id, "abort")
            self._forget(sequence, "abort")

    def refresh_metrics(self, sequence: Sequence) -> None:
        """Read the engine's statistics of a sequence in flight."""
        with self._lock, suppress(HybridGenError):
            if sequence.request_id in self._live:
                stats = self.engine.request_stats(sequence.request_id)
                sequence.metrics = RequestMetrics.from_stats(stats)

    def close(self) -> None:
        """End everything and let go of the engine."""
        with self._lock:
            for sequence in list(self._live.values()):
                self.abort(sequence)
            self._engine = None

    def _forget(self, sequence: Sequence, reason: str) -> None:
        self.refresh_metrics(sequence)
        del self._live[sequence.request_id]
        if reason:
            sequence.end(reason)
        if self._engine is not None:
            with suppress(HybridGenError):
                self._engine.release(sequence.request_id)


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
    return _core.SamplingOptions(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=stop_ids,
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        valid_vocab=valid_vocab,
    )
