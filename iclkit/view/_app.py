"""The page and what it asks for: routes, and who is answered."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from iclkit.errors import ChangedElsewhere, DataError, IclkitError
from iclkit.files import parse_json
from iclkit.report import fill_page, page_script, page_style, policy_hash
from iclkit.serve import HttpError, read_body, refusal, refusal_of, run_app
from iclkit.view._boards import Boards
from iclkit.view._rows import PAGE, Rows
from iclkit.view._workbench import Side, Workbench, read_query

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request: an example as it was and as it is to be."""
TOKEN = "x-iclkit-token"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("iclkit.view")
Handler = Callable[[Request], Awaitable[Response]]


def make_view_app(workbench: Workbench, runs: Path, token: str) -> Starlette:
    """An ASGI application with the page. ``token``: what the header X-ICLKIT-Token of its requests must be."""
    view = _View(workbench, Boards(runs), token)
    api = [
        ("/api/about", view.about, "GET"),
        ("/api/rows", view.rows, "GET"),
        ("/api/rows/{id}", view.row, "GET"),
        ("/api/change", view.change, "POST"),
        ("/api/undo", view.undo, "POST"),
        ("/api/select", view.select, "POST"),
        ("/api/map", view.pool_map, "GET"),
        ("/api/runs", view.runs, "GET"),
    ]
    routes = [Route(path, view.guarded(handler), methods=[method]) for path, handler, method in api]
    routes.append(Route("/board/{ticket}", view.guarded(view.board, key=False), methods=["GET"]))
    routes.append(Route("/", view.guarded(view.page, key=False), methods=["GET"]))
    return Starlette(routes=routes, exception_handlers={HTTPException: _not_found})


def run_view(workbench: Workbench, runs: Path, *, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve the page on loopback until a signal ends it. ``ready`` is called with its address, which holds its key.

    Port 0 takes a free one. UsageError for a port that cannot be had.
    """
    token = secrets.token_urlsafe(24)
    run_app(
        make_view_app(workbench, runs, token),
        host="127.0.0.1",
        port=port,
        # behind the # it is never sent: no log, no proxy and no other page sees it
        ready=lambda address: ready(f"{address}/#{token}"),
        remedy="give another --port, or leave it out",
    )


class _View:
    def __init__(self, workbench: Workbench, boards: Boards, token: str) -> None:
        self.workbench, self.boards = workbench, boards
        self.table = Rows(workbench.pool)
        self._token = token.encode()
        self._page, self._policy = _page()

    # ---- who is answered

    def guarded(self, handler: Handler, *, key: bool = True) -> Handler:
        """The handler for requests of our own page alone; errors as one line of JSON."""

        async def answer(request: Request) -> Response:
            try:
                self._check(request, key)
                response = await handler(request)
            except HttpError as error:
                response = refusal(error.status, str(error))
            except ChangedElsewhere as error:
                response = JSONResponse({"error": {"message": str(error)}, "now": error.now}, status_code=409)
            except IclkitError as error:
                response = refusal_of(error)
            except ClientDisconnect:
                response = refusal(400, "the page went away before its request had come in")
            except Exception as error:  # a fault of ours: the terminal says where, the page only that it is not theirs
                log.exception("%s failed", request.url.path)
                response = refusal(500, f"{type(error).__name__} inside iclkit; the terminal says more")
            response.headers.update(_HEADERS)
            return response

        return answer

    def _check(self, request: Request, key: bool) -> None:
        """Another page that the browser shows may send requests here: its name for us, its origin and its lack of the
        key give it away."""
        host = request.headers.get("host", "")
        if _host_name(host) not in _LOOPBACK:
            raise HttpError(403, "this page is served to this machine alone, under 127.0.0.1 or localhost")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            raise HttpError(403, "requests of other pages are not answered")
        if key and not hmac.compare_digest(request.headers.get(TOKEN, "").encode(), self._token):
            raise HttpError(401, "open the address that iclkit view printed: it holds the key of this page")

    # ---- what is answered

    async def page(self, request: Request) -> Response:  # noqa: ARG002
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy})

    async def about(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(await asyncio.to_thread(self.workbench.about))

    async def rows(self, request: Request) -> Response:
        given = request.query_params
        return JSONResponse(
            await asyncio.to_thread(
                self.table.page,
                given.get("find", ""),
                given.get("task"),
                given.get("output"),
                given.get("newest") == "1",
                _number(given, "start", 0),
                _number(given, "limit", PAGE),
            )
        )

    async def row(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.table.row, request.path_params["id"]))

    async def change(self, request: Request) -> Response:
        data = await _body(request)
        return JSONResponse(await asyncio.to_thread(self.table.change, data.get("was"), data.get("now")))

    async def undo(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(await asyncio.to_thread(self.table.undo))

    async def select(self, request: Request) -> Response:
        data = await _body(request)
        query = read_query(data.get("query"), data.get("exclude", ()))
        k, paid = data.get("k", 8), data.get("paid", [])
        if isinstance(k, bool) or not isinstance(k, int):
            raise DataError("`k` is a whole number")
        if not isinstance(paid, list) or not all(isinstance(x, bool) for x in paid):
            raise DataError("`paid` is a list of truth values")
        sides = [_side(side) for side in _list(data.get("sides"), "sides")]
        found = await asyncio.to_thread(self.workbench.ask, query, k, sides, str(data.get("order", "best-last")), paid)
        return JSONResponse(found)

    async def pool_map(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(await asyncio.to_thread(self.workbench.pool_map))

    async def runs(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(await asyncio.to_thread(self.boards.runs))

    async def board(self, request: Request) -> Response:
        """The board of its own page, which brings its own policy; its address is its key."""
        page = await asyncio.to_thread(self.boards.page, request.path_params["ticket"])
        return HTMLResponse(page)


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # no address at all
        return None


_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def _page() -> tuple[str, str]:
    """The page, which holds nothing of the pool, and its policy: its own style and script, and requests to us."""
    folder = resources.files("iclkit.view") / "page"
    style, script = page_style(folder), page_script(folder)
    policy = (
        f"default-src 'none'; style-src '{policy_hash(style)}'; script-src '{policy_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return fill_page(folder, {"STYLE": style, "SCRIPT": script}), policy


async def _body(request: Request) -> Mapping[str, Any]:
    data = parse_json(await read_body(request, MAX_BODY), "the body")
    if not isinstance(data, dict):
        raise DataError("the body is an object")
    return data


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"`{name}` is a list")
    return value


def _side(given: Any) -> Side:
    if not isinstance(given, dict) or not isinstance(given.get("selector"), str):
        raise DataError("a side is an object with a `selector`")
    settings = given.get("settings", {})
    if not isinstance(settings, dict):
        raise DataError("`settings` is an object")
    return Side(given["selector"], settings)


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise DataError(f"`{name}` is a whole number, not {text!r:.40}")
    return int(text)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, f"{request.method} {request.url.path}: nothing here")
