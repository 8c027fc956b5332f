# SPDX-License-Identifier: Apache-2.0
"""What every HTTP request has to pass before anything of it is read: key, host, size, room.

Plain ASGI: middleware that wraps the connection would hide that a client has left.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import Problem

WITHOUT_KEY = frozenset({"/health"})
"""Paths that need no key: those that ask whether the server lives have none."""
BODY_SECONDS = 60.0
"""How long a body may take to arrive."""
_LEFT = 499


@dataclass(frozen=True)
class Rules:
    """What is let in.

    Parameters
    ----------
    keys : tuple of str
        One of them has to be given as bearer token; empty for no keys.
    hosts : frozenset of str or None
        What the header Host may name; None for anything. A page in a browser can send requests to
        this machine's own address, but only in the name of the host that it came from.
    max_body_bytes : int
        Of a request.
    max_requests : int
        Requests with a body that are answered at the same time.
    """

    keys: tuple[str, ...]
    hosts: frozenset[str] | None
    max_body_bytes: int
    max_requests: int


class Gate:
    """An ASGI application that lets requests into another one, and counts what it answers.

    Parameters
    ----------
    app : ASGIApp
        What answers.
    rules : Rules
        What is let in.
    metrics : Metrics
        Is told of every answer.
    busy : callable
        Returns what is told to a request that there is no room for.
    """

    def __init__(
        self, app: ASGIApp, *, rules: Rules, metrics: Metrics, busy: Callable[[], Problem]
    ) -> None:
        self._app = app
        self._rules = rules
        self._keys = [key.encode() for key in rules.keys]
        self._metrics = metrics
        self._busy = busy
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _LEFT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, noted)
        except Exception:
            status = 500  # who called this answers it
            raise
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.answer(path, status)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope["path"], headers)
            has_body = scope["method"] not in ("GET", "HEAD")
            if has_body and self._open >= self._rules.max_requests:
                raise self._busy()
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        self._open += has_body
        try:
            await self._app(scope, self._limited(receive), send)
        finally:
            self._open -= has_body

    def _check(self, path: str, headers: Headers) -> None:
        rules = self._rules
        if rules.hosts is not None and _host_of(headers.get("host", "")) not in rules.hosts:
            raise Problem(
                403,
                "[serve] the header Host names another machine; allowed: this machine's own "
                "address; give the server an API key, or --no-auth, to reach it by other names",
            )
        if self._keys and path not in WITHOUT_KEY and not self._is_known(headers):
            raise Problem(
                401,
                "[serve] the API key is missing or wrong; allowed: the header Authorization with "
                "'Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > rules.max_body_bytes:
            raise self._too_large()

    def _is_known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        found = given.strip().encode("latin-1", "replace")
        # All are compared, in a time that does not tell how much is right.
        matches = [hmac.compare_digest(found, key) for key in self._keys]
        return kind.lower() == "bearer" and any(matches)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"[serve] the body is larger than {self._rules.max_body_bytes} bytes, which are "
            "allowed; send a shorter one, or start the server with a larger --max-body",
        )

    def _limited(self, receive: Receive) -> Receive:
        """Return what receives a body, in pieces, as far as it is allowed."""
        size, is_complete = 0, False
        end = asyncio.get_running_loop().time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal size, is_complete
            if is_complete:
                return await receive()  # waits until the client leaves
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408,
                    f"[serve] the body did not arrive within {BODY_SECONDS:g} s; "
                    "allowed: to send it at once",
                    headers={"Connection": "close"},
                ) from None
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if size > self._rules.max_body_bytes:
                raise self._too_large()
            return message

        return limited


def _host_of(header: str) -> str:
    """Return a header Host without its port, in lower case."""
    host = header.lower()
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.partition(":")[0]
