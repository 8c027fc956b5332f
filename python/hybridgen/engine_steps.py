# SPDX-License-Identifier: Apache-2.0
"""An engine that is stepped by hand: requests are added, and steps tell what became of them."""

from __future__ import annotations

from collections.abc import Iterable

from ._lifetime import guarded
from .engine_handle import EngineHandle
from .errors import ConfigError
from .generation import EngineLoop
from .model import Model
from .open_requests import OpenRequests, RequestId
from .outputs import RequestOutput
from .prompts import Prompt
from .request import RequestMaker
from .sampling import SamplingParams


class EngineSteps(EngineHandle):
    """What `LLM` is without calls that wait for whole texts.

    Parameters
    ----------
    model : Model
        Closed with this.
    loop : EngineLoop
        An engine on it.
    seed : int
        Of samples without a seed of their own.
    """

    def __init__(self, model: Model, loop: EngineLoop, seed: int) -> None:
        super().__init__(model, loop)
        self._maker = RequestMaker(model, loop, seed)
        self._open = OpenRequests(loop)

    @guarded
    def add_request(
        self, request_id: RequestId, prompt: Prompt, params: SamplingParams | None = None
    ) -> None:
        """Queue a prompt for `step`; other calls may run meanwhile.

        Parameters
        ----------
        request_id : str or int
            Of your choice; no other request that has not ended may have it.
        prompt, params
            One prompt and its parameters, as for `generate`.

        Raises
        ------
        ConfigError, OutOfMemoryError
            If it cannot be run; nothing is queued then.
        """
        self._open.check_name(request_id)
        read = self.model._reader("add_request").read(prompt)
        if len(read) != 1:
            raise ConfigError(f"[add_request] got {len(read)} prompts; allowed: 1 in each request")
        (request,) = self._maker.make_all("add_request", read, params, name=request_id)
        self._open.add(request_id, request)

    @guarded
    def step(self) -> list[RequestOutput]:
        """Let the engine do one step for all requests; return those of `add_request` with news.

        Each output is a copy of all there is of its request; with ``finished`` it is the last. One
        that fails is finished too, has the finish_reason "error" and its exception in ``error``;
        the others go on. Steps of other calls count: if they brought news, these are returned
        without another step.

        Examples
        --------
        >>> llm.add_request("a", "Once upon a time")  # doctest: +SKIP
        >>> while llm.has_unfinished_requests():  # doctest: +SKIP
        ...     for output in llm.step():
        ...         if output.finished:
        ...             print(output.request_id, output.text)
        """
        return self._open.step()

    def has_unfinished_requests(self) -> bool:
        """Say whether `step` has yet to return the last of a request."""
        return self.get_num_unfinished_requests() > 0

    def get_num_unfinished_requests(self) -> int:
        """Return how many requests `step` has yet to return the last of."""
        _ = self._loop.engine  # refuses one that is closed
        return len(self._open)

    @guarded
    def abort_request(self, request_ids: RequestId | Iterable[RequestId]) -> None:
        """End requests of `add_request` now; `step` returns nothing of them any more.

        Names that no unfinished request has are left out, as in vLLM.
        """
        self._open.abort(request_ids)
