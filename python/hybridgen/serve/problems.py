# SPDX-License-Identifier: Apache-2.0
"""What a client is told of a request that cannot be answered, as OpenAI's clients read it.

Every answer of status 400 and above has the body
``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from .._checks import one_line
from ..errors import ConfigError, HybridGenError, OutOfMemoryError, shortened, text_of
from .protocol import WITHOUT_EFFECT

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Problem(HTTPException):
    """A request that is not answered.

    Parameters
    ----------
    status : int
        The HTTP status, 400 and above.
    message : str
        One sentence for people.
    param : str, optional
        The field that is wrong.
    code : str, optional
        A word for programs.
    headers : dict of str, optional
        Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, one_line(shortened(message), 2000), dict(headers or {}))
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the content of the response."""
        return {
            "error": {
                "message": self.detail,
                "type": _TYPES.get(self.status_code, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Return the whole response."""
        return JSONResponse(self.body(), self.status_code, headers=self.headers)


_LENGTH_WORDS = "max_model_len"
_FIELD = re.compile(r"\[[\w ]+\] (\w+) is ")


def problem_of(error: BaseException, *, while_running: bool = False) -> Problem:
    """Return what a client is told of an exception.

    Parameters
    ----------
    error : BaseException
        From the engine, or from reading the request.
    while_running : bool
        Whether the request had been accepted: then it is no mistake of the caller's.
    """
    if isinstance(error, Problem):
        return error
    words = text_of(error) or type(error).__name__
    if isinstance(error, OutOfMemoryError) and while_running:
        return Problem(503, words, code="out_of_memory", headers={"Retry-After": "1"})
    if isinstance(error, ConfigError | OutOfMemoryError) and not while_running:
        found = _FIELD.match(words)
        code = "context_length_exceeded" if _LENGTH_WORDS in words else None
        return Problem(400, words, param=found[1] if found else None, code=code)
    if isinstance(error, HybridGenError):
        return Problem(500, words)
    return Problem(500, f"[serve] {type(error).__name__}: {words}")


def problem_of_fields(errors: list[Any]) -> Problem:
    """Return what is told of fields that do not fit; pydantic's first error is named."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    kind, words = first["type"], first["msg"]
    if kind in ("json_invalid", "model_attributes_type") or not place:
        return Problem(400, f"[serve] the body is no JSON object of this request: {words}")
    field = place[0]
    # Of a field that may have several forms pydantic names the one that it tried.
    forms = [part for part in place[1:] if part == "str" or not re.fullmatch(r"\w+", part)]
    name = ".".join(part for part in place if part not in forms)
    if forms:
        words = "it has none of the forms in /openapi.json"
    if kind == "extra_forbidden":
        return Problem(
            400, f"[serve] {name} is unknown; allowed: the fields of /openapi.json", param=name
        )
    if kind == "missing":
        return Problem(400, f"[serve] {name} is missing; allowed: a value for it", param=name)
    if field in WITHOUT_EFFECT:
        return Problem(
            400, f"[serve] {field} is not supported; allowed: to leave it out", param=field
        )
    return Problem(400, f"[serve] {name} is not allowed: {words}", param=name)


async def answer_problem(_request: Request, error: Exception) -> Response:
    """Answer what a route raised; FastAPI calls it."""
    if isinstance(error, Problem):
        return error.response()
    if isinstance(error, HTTPException):
        words = {404: "there is no such path", 405: "this path has no such method"}
        told = words.get(error.status_code, str(error.detail))
        return Problem(error.status_code, f"[serve] {told}", headers=error.headers).response()
    if isinstance(error, RequestValidationError):
        return problem_of_fields(list(error.errors())).response()
    return problem_of(error).response()
