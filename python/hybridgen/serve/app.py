# SPDX-License-Identifier: Apache-2.0
"""The routes of the server: they read, have the engine run texts, and write what these come to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from .. import request as engine_request
from .._core import build_info
from ..errors import ConfigError, HybridGenError
from ..llm import LLM
from . import reading
from .gate import Gate, Rules
from .metrics import CONTENT_TYPE, Metrics
from .problems import Problem, answer_problem, problem_of
from .protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from .replies import ChatWriter, CompletionWriter, Part
from .running import Job, Running

T = TypeVar("T")

_READERS = 4
"""Threads that tokenize and render chat templates."""
_DONE = b"data: [DONE]\n\n"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "A request that is not answered"},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer"},
}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream: true its pieces as server-sent events",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}


class Service:
    """What the routes share.

    Parameters
    ----------
    llm : LLM
        With a tokenizer, on a device that computes.
    name : str
        What clients call the model.
    max_texts : int
        Texts that run or wait at most.
    """

    def __init__(self, llm: LLM, name: str, *, max_texts: int) -> None:
        codec = llm.model.codec
        if codec is None:
            raise ConfigError(
                "[serve] there is no tokenizer in the model's folder; allowed: a model with one"
            )
        llm.model._require_results("serve")
        self.llm = llm
        self.name = name
        self.codec = codec
        self.max_model_len = int(llm.engine_options.max_model_len)
        self.metrics = Metrics()
        self.running = Running(llm._loop, max_texts=max_texts, metrics=self.metrics)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="hybridgen-reader")

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what reads a request in another thread; raises Problem."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, function, *arguments)
        except HybridGenError as error:
            raise problem_of(error) from error

    def check_model(self, name: str | None) -> None:
        """Raise Problem for a model that is not served."""
        if name is not None and name != self.name:
            raise Problem(
                404,
                f"[serve] the model {name[:200]!r} is not served; allowed: {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def close(self) -> None:
        """End everything that runs."""
        self.running.close()
        self._pool.shutdown(cancel_futures=True)


def make_app(service: Service, rules: Rules) -> FastAPI:
    """Return the ASGI application; the engine runs from its startup to its shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.running.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="hybridgen",
        version=str(build_info()["version"]),
        lifespan=lifespan,
        docs_url=None,  # the pages would load scripts from elsewhere
        redoc_url=None,
        responses=_PROBLEMS,
        exception_handlers={
            HTTPException: answer_problem,
            RequestValidationError: answer_problem,
            Exception: answer_problem,
        },
    )
    _add_generation(app, service)
    _add_others(app, service)
    app.add_middleware(Gate, rules=rules, metrics=service.metrics, busy=service.running.busy)
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", response_model=Completion, responses=_STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt or several."""
        _check(service, body)
        requests = await service.read(reading.completion_requests, service.llm, body)
        texts = await service.read(_prompt_texts, service.llm, requests) if body.echo else []
        writer = CompletionWriter(service.name, service.codec, body, requests, texts)
        return await _answer(service, request, body, requests, writer)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        _check(service, body)
        requests = await service.read(reading.chat_requests, service.llm, body)
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        writer = ChatWriter(service.name, service.codec, requests, top_logprobs)
        return await _answer(service, request, body, requests, writer)


def _add_others(app: FastAPI, service: Service) -> None:
    card = ModelCard(
        id=service.name,
        object="model",
        created=int(time.time()),
        owned_by="hybridgen",
        max_model_len=service.max_model_len,
    )

    @app.get("/v1/models")
    async def models() -> ModelList:
        """List the one model that is served."""
        return ModelList(object="list", data=[card])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """Describe a model."""
        service.check_model(name)
        return card

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Return the token ids of a prompt, or of what the chat template makes of messages."""
        service.check_model(body.model)
        ids = await service.read(reading.token_ids, service.llm, body)
        return TokenizeResponse(count=len(ids), max_model_len=service.max_model_len, tokens=ids)

    @app.get("/health")
    async def health() -> Health:
        """Say whether requests are taken."""
        if service.running.problem is not None:
            raise service.running.problem
        return Health(status="ok")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Return counts and times in the form that Prometheus reads."""
        memory = await service.running.ask(service.llm._loop.engine.memory)
        return Response(service.metrics.text(memory), media_type=CONTENT_TYPE)


def _check(service: Service, body: CompletionRequest | ChatRequest) -> None:
    service.check_model(body.model)
    reading.check_combination(body)
    service.running.check_room(reading.texts_of(body))


def _prompt_texts(llm: LLM, requests: list[engine_request.Request]) -> list[str]:
    return [reading.prompt_text(llm, request) for request in requests]


# ---------------------------------------------------------------------------------------- answers


async def _answer(
    service: Service,
    request: Request,
    body: CompletionRequest | ChatRequest,
    requests: list[engine_request.Request],
    writer: CompletionWriter | ChatWriter,
) -> Response:
    """Run texts and return the answer, or a stream of it."""
    job = Job(requests, is_streamed=bool(body.stream))
    running = service.running
    is_taken = False
    try:
        if not await _unless_left(request, running.accept(job)):
            return Response(status_code=499)
        if body.stream:
            has_usage = bool(body.stream_options and body.stream_options.include_usage)
            is_taken = True  # the response leaves the job
            return _Stream(_events(job, writer, has_usage=has_usage), running, job)
        if not await _unless_left(request, job.ended()):
            return Response(status_code=499)
    finally:
        if not is_taken:
            running.leave(job)
    content = writer.write_whole(job.sequences)
    return _json(content)


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(exclude_unset=True), media_type="application/json")


async def _unless_left(request: Request, work: Awaitable[None]) -> bool:
    """Wait for work; return False, with the work cancelled, if the client leaves before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_has_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _has_left(request: Request) -> None:
    """Return when the client is gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Server-sent events of a job, which ends when the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], running: Running, job: Job) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._running = running
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.leave(self._job)


async def _events(
    job: Job, writer: CompletionWriter | ChatWriter, *, has_usage: bool
) -> AsyncIterator[bytes]:
    """Yield what is new of a job's texts, until all have ended or one failed."""
    read = dict.fromkeys(job.sequences, 0)
    try:
        while not job.is_done or read != job.tokens:
            if read == job.tokens:
                await job.changed()
            for index, sequence in enumerate(job.sequences):
                start, stop = read[sequence], job.tokens[sequence]
                read[sequence] = stop
                if start < stop and (
                    event := writer.write_piece(Part(index, sequence, start, stop))
                ):
                    yield _event(event)
        job.check()
    except Problem as problem:
        yield b"data: " + JSONResponse(problem.body()).body + b"\n\n"
        return
    if has_usage:
        yield _event(writer.write_usage(job.sequences))
    yield _DONE


def _event(content: BaseModel) -> bytes:
    return b"data: " + content.model_dump_json(exclude_unset=True).encode() + b"\n\n"
