"""The application: routes, keys, limits, errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from iclkit.engines import usable_cores
from iclkit.errors import IclkitError, UsageError
from iclkit.records import Example, Selection
from iclkit.secrets import remember
from iclkit.selectors import Chooser
from iclkit.serve._batching import Batcher
from iclkit.serve._metrics import Metrics
from iclkit.serve._openapi import openapi
from iclkit.serve._proxy import Proxy
from iclkit.serve._requests import MAX_K, HttpError, read_body, read_question, refusal, refusal_of

__all__ = ["MAX_BODY", "MAX_K", "MOST_WORKERS", "ServeSettings", "make_app", "workers_for"]

MAX_BODY = 1_048_576
"""Bytes of a request's body that are taken."""
MOST_WORKERS = 4
"""Threads that a selector works in, unless another number is asked for: a Python process gets little from more."""
_OPEN = ("/healthz", "/openapi.json")  # answered without a key

log = logging.getLogger("iclkit.serve")
Handler = Callable[[Request], Awaitable[Response]]


def workers_for(chooser: Chooser, asked: int | None = None) -> int:
    """The threads that a selector works in: one for each core, up to ``MOST_WORKERS``, unless another number is asked
    for; one where it asks an LM or a reranker, which use the cores themselves and answer one thread at a time.
    UsageError where more are asked for there."""
    needs = chooser.selector.needs
    if not (needs.lm or needs.reranker):
        return asked or min(usable_cores(), MOST_WORKERS)
    if asked is not None and asked > 1:
        raise UsageError(
            f"{chooser.spec} asks {'an LM' if needs.lm else 'a reranker'} and so works in one thread: leave workers out"
        )
    return 1


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """``key``: what the header X-API-Key must be, "" for no key. ``proxy``: the base URL of a chat API to pass
    ``/v1/…`` on to, "" for none. ``max_body`` in bytes. ``workers``: threads that the selector works in, None for the
    usual number (``workers_for``)."""

    key: str = field(default="", repr=False)
    max_body: int = MAX_BODY
    proxy: str = ""
    workers: int | None = None


def make_app(chooser: Chooser, settings: ServeSettings | None = None, *, transport: Any = None) -> Starlette:
    """An ASGI application that answers with this chooser. ``transport``: an httpx transport to the server behind."""
    settings = settings or ServeSettings()
    remember(settings.key)
    service = _Service(chooser, settings, transport)
    routes = [
        Route("/select", service.guarded(service.select), methods=["POST"]),
        Route("/messages", service.guarded(service.messages), methods=["POST"]),
        Route("/healthz", service.guarded(service.health), methods=["GET"]),
        Route("/metrics", service.guarded(service.metrics_text), methods=["GET"]),
        Route("/openapi.json", service.guarded(service.document), methods=["GET"]),
    ]
    if service.proxy is not None:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        routes.append(Route("/v1/{path:path}", service.guarded(service.proxy.answer), methods=methods))
    return Starlette(
        routes=routes,
        lifespan=service.lifespan,
        exception_handlers={HTTPException: _not_found},
    )


class _Service:
    def __init__(self, chooser: Chooser, settings: ServeSettings, transport: Any) -> None:
        self.chooser, self.settings = chooser, settings
        self.batcher, self.metrics = Batcher(chooser, workers_for(chooser, settings.workers)), Metrics()
        self.proxy = Proxy(settings.proxy, self.batcher, settings.max_body, transport) if settings.proxy else None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:  # noqa: ARG002
        yield
        await self.batcher.close()
        if self.proxy is not None:
            await self.proxy.close()

    def guarded(self, handler: Handler) -> Handler:
        """The handler with the key checked, errors as one line of JSON, and counted."""

        async def answer(request: Request) -> Response:
            start = time.perf_counter()
            response = await self._answer(handler, request)
            route = "/v1" if request.url.path.startswith("/v1/") else request.url.path
            self.metrics.record(route, response.status_code, time.perf_counter() - start)
            return response

        return answer

    async def _answer(self, handler: Handler, request: Request) -> Response:
        try:
            self._check_key(request)
            return await handler(request)
        except HttpError as error:
            return refusal(error.status, str(error))
        except IclkitError as error:
            return refusal_of(error)
        except ClientDisconnect:
            return refusal(400, "the client went away before its request had come in")
        except Exception as error:  # a fault of ours: the log says where, the client only that it is not theirs
            log.exception("%s failed", request.url.path)
            return refusal(500, f"{type(error).__name__} inside iclkit; the server's log says more")

    def _check_key(self, request: Request) -> None:
        if not self.settings.key or request.url.path in _OPEN:
            return
        given = request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self.settings.key.encode()):
            raise HttpError(401, "give the key of this service in the header X-API-Key")

    async def _select(self, request: Request) -> Selection:
        question = read_question(await read_body(request, self.settings.max_body))
        return await self.batcher.select(question.query, self.chooser.k if question.k is None else question.k)

    async def select(self, request: Request) -> Response:
        selection = await self._select(request)
        examples = {e.id: e for e in selection.examples}
        picks = [
            {"id": p.example_id, "rank": p.rank, "score": p.score, **_shown(examples[p.example_id])} for p in selection
        ]
        return JSONResponse({"picks": picks, "notes": [*selection.notes]})

    async def messages(self, request: Request) -> Response:
        selection = await self._select(request)
        prompt = await asyncio.to_thread(self.chooser.prompt_of, selection)  # may count tokens
        notes = [*selection.notes, *dict.fromkeys(d.reason for d in prompt.dropped)]
        return JSONResponse({"messages": prompt.to_openai(), "shown": [*prompt.shown], "notes": notes})

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        if self.chooser.follow:
            await asyncio.to_thread(self.chooser.check)
        view = self.chooser.view
        about = {"selector": str(self.chooser.spec), "examples": len(view), "revision": view.revision}
        about |= {"source": self.chooser.source} if self.chooser.source else {}
        return JSONResponse({"status": "ok", **about})

    async def metrics_text(self, request: Request) -> Response:  # noqa: ARG002
        view = self.chooser.view
        more = {
            "queries_total": ("counter", "Queries that the selector was asked.", self.batcher.queries),
            "batches_total": ("counter", "Calls of the selector, each with the queries that had come in.",
                              self.batcher.batches),
            "pool_examples": ("gauge", "Examples that can be shown.", len(view)),
            "pool_revision": ("gauge", "Revision of the pool that answers are made from.", view.revision),
        }  # fmt: skip
        return PlainTextResponse(self.metrics.text(more), media_type="text/plain; version=0.0.4")

    async def document(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(openapi())


def _shown(example: Example) -> dict[str, Any]:
    return {"input": example.input if isinstance(example.input, str) else dict(example.input), "output": example.output}


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "POST /select, POST /messages, GET /healthz, GET /metrics, GET /openapi.json"
    what = "no such method here" if error.status_code == 405 else "nothing here"
    answer = refusal(error.status_code, f"{request.method} {request.url.path}: {what}; there are {known}")
    answer.headers.update(error.headers or {})
    return answer
