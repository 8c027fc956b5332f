# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: uvicorn around the application, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ..errors import DeviceError
from ..llm import LLM
from .app import Service, make_app
from .command import ServeOptions, hosts_of
from .gate import Rules
from .problems import Problem

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSING_S = 10


class Server(uvicorn.Server):
    """Takes no more requests after a signal, and gives those that run a while to end.

    Parameters
    ----------
    llm : LLM
        What answers.
    options : ServeOptions
        As the command line says.
    when_ready : callable
        Called once requests are answered.
    """

    def __init__(
        self, llm: LLM, options: ServeOptions, when_ready: Callable[[], None] = lambda: None
    ) -> None:
        max_texts = int(llm.engine_options.max_num_seqs) + options.max_queue
        self.service = Service(llm, options.name, max_texts=max_texts)
        rules = Rules(
            keys=options.keys,
            hosts=hosts_of(options),
            max_body_bytes=options.max_body_bytes,
            max_requests=max_texts,
        )
        super().__init__(
            uvicorn.Config(
                make_app(self.service, rules),
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",  # a server without its engine must not answer
                timeout_graceful_shutdown=round(options.stop_seconds + _CLOSING_S),
            )
        )
        self.had_to_end_texts = False
        self._stop_seconds = options.stop_seconds
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        self._when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and return when those that run have ended or were ended."""
        stopping = Problem(503, "[serve] the server is stopping; try again later")
        self.service.running.refuse(stopping)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._stop_seconds, self._end_texts, stopping)
        await super().shutdown(sockets)
        timer.cancel()
        self._end_texts(stopping)  # after a second signal some still run
        if self.force_exit:
            await asyncio.to_thread(self.service.close)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let a signal end the server, not the process: it has an exit code of its own."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal waits for nothing."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def _end_texts(self, problem: Problem) -> None:
        self.had_to_end_texts |= self.service.running.end_all(problem) > 0


def run(llm: LLM, options: ServeOptions, listener: socket.socket) -> None:
    """Answer requests until a signal; DeviceError if texts had to be ended."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    needs = "an API key is required" if options.keys else "no API key is required"

    def tell() -> None:
        print(f"serving {options.name} at http://{shown}:{port}/v1 ({needs})", flush=True)

    server = Server(llm, options, tell)
    server.run(sockets=[listener])
    if server.had_to_end_texts:
        raise DeviceError(
            f"[serve] texts that still ran after {options.stop_seconds:g} s were ended; "
            "--stop-seconds gives them longer"
        )
