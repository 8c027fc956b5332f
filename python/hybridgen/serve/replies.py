# SPDX-License-Identifier: Apache-2.0
"""What the engine's texts are in the protocol's form; whole or as pieces of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, cast

from .._core import build_info
from ..codec import Codec
from ..openai_tokens import finite, likeliest, token_bytes, token_name, with_chosen
from ..request import Request
from ..sequence import Sequence
from .protocol import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    TokenLogprob,
    TopLogprob,
    Usage,
)

FinishReason = Literal["stop", "length"] | None
_FINGERPRINT = f"hybridgen-{build_info()['version']}"


class Part(NamedTuple):
    """Some tokens of a text, one behind the other."""

    number: int
    """Of the text, among all of its HTTP request: the protocol's index."""
    sequence: Sequence
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        """Whether the text begins with it."""
        return self.start == 0

    @property
    def text(self) -> str:
        """What the tokens add to the text."""
        return "".join(piece.text for piece in self.sequence.pieces[self.start : self.stop])

    @property
    def finish_reason(self) -> FinishReason:
        """Why the text ends with it, if it does."""
        pieces = self.sequence.pieces[self.start : self.stop]
        return cast("FinishReason", pieces[-1].finish_reason if pieces else None)


def whole(sequences: Iterable[Sequence]) -> Iterator[Part]:
    """Yield each text as one part."""
    for index, sequence in enumerate(sequences):
        yield Part(index, sequence, 0, len(sequence.pieces))


def usage_of(requests: list[Request], new_tokens: int) -> Usage:
    """Return how many tokens some requests had, of which so many are new."""
    prompt_tokens = sum(len(request.prompt_ids) for request in requests)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=new_tokens,
        total_tokens=prompt_tokens + new_tokens,
    )


class _Writer:
    """What all answers to one HTTP request share."""

    prefix = ""

    def __init__(self, model: str, codec: Codec) -> None:
        self._codec = codec
        self._id = f"{self.prefix}-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model


class CompletionWriter(_Writer):
    """Writes answers of ``/v1/completions``.

    Parameters
    ----------
    model : str
        As it is called here.
    codec : Codec
        Spells tokens.
    body : CompletionRequest
        What was asked for.
    requests : list of Request
        One for each prompt.
    echoed : list of str
        With ``echo`` the texts of the prompts.
    """

    prefix = "cmpl"

    def __init__(
        self,
        model: str,
        codec: Codec,
        body: CompletionRequest,
        requests: list[Request],
        echoed: list[str],
    ) -> None:
        super().__init__(model, codec)
        self._requests = requests
        self._keeps_tokens = body.max_tokens != 0
        self._has_logprobs = body.logprobs is not None
        self._likeliest = body.logprobs or 0
        self._echoed = echoed or [""] * len(requests)
        self._texts_each = body.n or 1
        self._lengths: dict[int, int] = {}
        """Of each text, the letters that were written."""

    def write_whole(self, sequences: list[Sequence]) -> Completion:
        """Return the answer to a request whose texts have ended."""
        answer = self._answer([self._choice(part) for part in whole(sequences)])
        answer.usage = self._usage(sequences)
        return answer

    def write_piece(self, part: Part) -> Completion | None:
        """Return an event of a stream; None if there is nothing to tell."""
        choice = self._choice(part)
        if not choice.text and choice.finish_reason is None and not self._has_logprobs:
            return None
        return self._answer([choice])

    def write_usage(self, sequences: list[Sequence]) -> Completion:
        """Return the last event of a stream that tells of tokens."""
        answer = self._answer([])
        answer.usage = self._usage(sequences)
        return answer

    def _answer(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            system_fingerprint=_FINGERPRINT,
            choices=choices,
        )

    def _usage(self, sequences: list[Sequence]) -> Usage:
        kept = sum(len(s.pieces) for s in sequences) if self._keeps_tokens else 0
        return usage_of(self._requests, kept)

    def _choice(self, part: Part) -> CompletionChoice:
        echoed = self._echoed[part.number // self._texts_each] if part.is_first else ""
        new = part.text if self._keeps_tokens else ""
        text = echoed + new
        logprobs = self._logprobs(part, len(echoed)) if self._has_logprobs else None
        self._lengths[part.number] = self._lengths.get(part.number, 0) + len(text)
        reason = part.finish_reason if self._keeps_tokens else "length"
        return CompletionChoice(
            index=part.number, text=text, logprobs=logprobs, finish_reason=reason
        )

    def _logprobs(self, part: Part, echoed: int) -> CompletionLogprobs:
        found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        offset = self._lengths.get(part.number, 0)
        request = self._requests[part.number // self._texts_each]
        if echoed:
            self._add_prompt(found, request)
        sequence, end = part.sequence, part.stop if self._keeps_tokens else part.start
        offset += echoed
        for number in range(part.start, end):
            piece = sequence.pieces[number]
            assert sequence.output.logprobs is not None
            self._add(found, piece.token_id, sequence.output.logprobs[number], offset)
            offset += len(piece.text)
        return found

    def _add_prompt(self, found: CompletionLogprobs, request: Request) -> None:
        all_logprobs = request.sequences[0].prompt_logprobs or []
        offset = 0
        for token_id, logprobs in zip(request.prompt_ids, all_logprobs, strict=True):
            self._add(found, token_id, logprobs, offset)
            offset += len(self._codec.spelling(token_id).text)

    def _add(
        self,
        found: CompletionLogprobs,
        token_id: int,
        logprobs: dict[int, float] | None,
        offset: int,
    ) -> None:
        assert found.top_logprobs is not None
        found.tokens.append(token_name(self._codec, token_id))
        found.text_offset.append(offset)
        if logprobs is None:
            found.token_logprobs.append(None)
            found.top_logprobs.append(None)
            return
        found.token_logprobs.append(finite(logprobs[token_id]))
        shown = with_chosen(logprobs, token_id, self._likeliest)
        found.top_logprobs.append(
            {token_name(self._codec, i): finite(value) for i, value in shown.items()}
        )


class ChatWriter(_Writer):
    """Writes answers of ``/v1/chat/completions``.

    Parameters
    ----------
    model, codec, requests
        As for `CompletionWriter`.
    top_logprobs : int or None
        How many of the likeliest tokens are told; None for no log-probabilities at all.
    """

    prefix = "chatcmpl"

    def __init__(
        self, model: str, codec: Codec, requests: list[Request], top_logprobs: int | None
    ) -> None:
        super().__init__(model, codec)
        self._requests = requests
        self._top_logprobs = top_logprobs

    def write_whole(self, sequences: list[Sequence]) -> ChatCompletion:
        """Return the answer to a request whose texts have ended."""
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            system_fingerprint=_FINGERPRINT,
            choices=[self._choice(part) for part in whole(sequences)],
            usage=self._usage(sequences),
        )

    def write_piece(self, part: Part) -> ChatChunk | None:
        """Return an event of a stream; None if there is nothing to tell."""
        delta = Delta(content=part.text)
        if part.is_first:
            delta.role = "assistant"
        reason, logprobs = part.finish_reason, self._logprobs(part)
        if not (delta.content or part.is_first or reason or logprobs):
            return None
        return self._chunk(
            [ChunkChoice(index=part.number, delta=delta, logprobs=logprobs, finish_reason=reason)]
        )

    def write_usage(self, sequences: list[Sequence]) -> ChatChunk:
        """Return the last event of a stream that tells of tokens."""
        chunk = self._chunk([])
        chunk.usage = self._usage(sequences)
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            system_fingerprint=_FINGERPRINT,
            choices=choices,
        )

    def _usage(self, sequences: list[Sequence]) -> Usage:
        return usage_of(self._requests, sum(len(s.pieces) for s in sequences))

    def _choice(self, part: Part) -> ChatChoice:
        reason = part.finish_reason
        assert reason is not None
        return ChatChoice(
            index=part.number,
            message=Answer(role="assistant", content=part.text, refusal=None),
            logprobs=self._logprobs(part),
            finish_reason=reason,
        )

    def _logprobs(self, part: Part) -> ChatLogprobs | None:
        found = part.sequence.output.logprobs
        if self._top_logprobs is None or found is None:
            return None
        pieces = part.sequence.pieces
        return ChatLogprobs(
            content=[
                self._token(pieces[number].token_id, found[number])
                for number in range(part.start, part.stop)
            ],
            refusal=None,
        )

    def _token(self, token_id: int, logprobs: dict[int, float]) -> TokenLogprob:
        top = [self._top(*pair) for pair in likeliest(logprobs, self._top_logprobs or 0)]
        own = self._top(token_id, logprobs[token_id])
        return TokenLogprob(**own.model_dump(), top_logprobs=top)

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(
            token=token_name(self._codec, token_id),
            logprob=finite(logprob),
            bytes=list(token_bytes(self._codec, token_id)),
        )
