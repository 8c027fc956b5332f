# SPDX-License-Identifier: Apache-2.0
"""Requests that a caller adds and steps by hand, as with vLLM's engine."""

from __future__ import annotations

from ._checks import brief, items_of
from .errors import ConfigError
from .generation import Call, EngineLoop
from .outputs import RequestOutput
from .request import Request
from .sequence import Sequence

RequestId = str | int


class OpenRequests:
    """Requests between `LLM.add_request` and the step that hands over the last of them.

    Other calls on the same engine may step it: what they bring of these is kept for the next
    `step`.

    Parameters
    ----------
    loop : EngineLoop
        Where they run.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._call = Call()
        self._requests: dict[RequestId, Request] = {}
        self._of_sequence: dict[Sequence, RequestId] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def check_name(self, name: object) -> RequestId:
        """Return the name of a request to be; ConfigError for one that is taken or no name."""
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ConfigError(
                f"[add_request] request_id is {brief(name)}; allowed: a string or an int"
            )
        if name in self._requests:
            raise ConfigError(
                f"[add_request] request_id is {brief(name)}, which is the name of a request that "
                "has not ended; allowed: another one; abort_request ends the old one"
            )
        return name

    def add(self, name: RequestId, request: Request) -> None:
        """Queue a request."""
        with self._loop.lock:
            self.check_name(name)  # another thread may have been faster
            self._loop.add(request.sequences, self._call)
            self._requests[name] = request
            self._of_sequence.update(dict.fromkeys(request.sequences, name))

    def step(self) -> list[RequestOutput]:
        """Return what is new, after a step of the engine if nothing is."""
        _ = self._loop.engine  # refuses one that is closed
        if not self._requests:
            return []
        with self._loop.lock:
            if not self._call.news:
                self._loop.step()
            # Read, then removed: an interrupt in between hands news out twice, never loses them.
            news = list(self._call.news)
            fresh = [s for s in dict.fromkeys(news) if s in self._of_sequence]
            for sequence in fresh:
                self._loop.refresh_metrics(sequence)
            names = [self._of_sequence[sequence] for sequence in fresh]
            found = {name: self._requests[name].output_so_far() for name in dict.fromkeys(names)}
            for _ in news:
                self._call.news.popleft()
            for name, output in found.items():
                if output.finished:
                    self._forget(name)
            return list(found.values())

    def abort(self, names: object) -> None:
        """End requests without results; names that there are none of are left out."""
        wanted = [names] if isinstance(names, str | int) else items_of(names)
        if wanted is None:
            raise ConfigError(
                f"[abort_request] request_ids is {brief(names)}; allowed: the request_id of a "
                "request, or a list of them"
            )
        with self._loop.lock:
            for name in wanted:
                if isinstance(name, str | int) and name in self._requests:
                    for sequence in self._requests[name].sequences:
                        self._loop.abort(sequence)
                    self._forget(name)

    def _forget(self, name: RequestId) -> None:
        for sequence in self._requests.pop(name).sequences:
            del self._of_sequence[sequence]
