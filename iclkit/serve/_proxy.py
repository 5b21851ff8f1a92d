"""A chat API with demonstrations in it: requests are passed on to the server behind, with the chosen ones inserted."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from iclkit.errors import DataError, UsageError
from iclkit.prompts import Template, order_picks
from iclkit.records import Example, Query, Selection
from iclkit.secrets import redact_addresses
from iclkit.selectors import Chooser
from iclkit.serve._batching import Batcher
from iclkit.serve._requests import HttpError, read_body, read_k

SHOWN = "x-iclkit-demonstrations"
"""The header of an answer that names what was inserted: ids, in prompt order."""
_OURS = ("x-iclkit-", "x-api-key")
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
_HOP |= {"upgrade", "host", "content-length"}
_MOST_IN_HEADER = 100  # ids; servers take headers of some kilobytes
_PLAIN = Template("{input}\n{output}")

log = logging.getLogger("iclkit.serve")


class Proxy:
    """Passes ``/v1/…`` on to ``base``, the address that a client of the server behind would be given.

    In ``/v1/chat/completions`` the demonstrations for the last user message stand, as turns, before the first message
    that is not the system's. Everything else is passed on as it is, answers too, as they come.
    """

    def __init__(self, base: str, batcher: Batcher, max_body: int, transport: httpx.AsyncBaseTransport | None = None):
        if not base.startswith(("http://", "https://")):
            raise UsageError(f"--proxy is the base URL of a chat API, such as http://127.0.0.1:8080/v1, not {base!r}")
        self.base, self.batcher, self.max_body = base.rstrip("/"), batcher, max_body
        timeout = httpx.Timeout(600, connect=10)
        self.client = httpx.AsyncClient(timeout=timeout, transport=transport, trust_env=False)

    async def close(self) -> None:
        """Close the connections to the server behind."""
        await self.client.aclose()

    async def answer(self, request: Request) -> Response:
        """Pass one request on. HttpError for one that cannot be, 502 where the server behind does not answer."""
        path = request.url.path.removeprefix("/v1")
        body = await read_body(request, self.max_body)
        shown: Sequence[str] | None = None
        if request.method == "POST" and path == "/chat/completions":
            body, shown = await self._insert(body, request.headers)
        headers = [
            (k, v) for k, v in request.headers.items() if k.lower() not in _HOP and not k.lower().startswith(_OURS)
        ]
        url = self.base + path + (f"?{request.url.query}" if request.url.query else "")
        asked = self.client.build_request(request.method, url, headers=headers, content=body)
        try:
            answer = await self.client.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise HttpError(
                502, redact_addresses(f"{self.base} does not answer ({type(error).__name__}: {error})")
            ) from error
        passed = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        if shown is not None:
            more = f",+{len(shown) - _MOST_IN_HEADER}" if len(shown) > _MOST_IN_HEADER else ""
            passed[SHOWN] = ",".join(shown[:_MOST_IN_HEADER]) + more
            log.info("/v1/chat/completions %d shown %s", answer.status_code, ",".join(shown) or "none")
        return StreamingResponse(
            _parts(answer), status_code=answer.status_code, headers=passed, background=BackgroundTask(answer.aclose)
        )

    async def _insert(self, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, tuple[str, ...] | None]:
        """The body with demonstrations, and their ids; as it came where there is no user message to choose for."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return body, None  # the server behind says what is wrong with it
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            return body, None
        texts = [text for m in messages if m.get("role") == "user" and (text := _text(m.get("content")))]
        if not texts:
            return body, ()
        selection = await self.batcher.select(Query(texts[-1], where=_where(headers)), self._k(headers))
        shown = in_prompt_order(self.batcher.chooser, selection)
        first = next(n for n, m in enumerate(messages) if m.get("role") not in ("system", "developer"))
        data["messages"] = [*messages[:first], *(t for e in shown for t in turns(e)), *messages[first:]]
        return json.dumps(data, ensure_ascii=False).encode(), tuple(e.id for e in shown)

    def _k(self, headers: Mapping[str, str]) -> int:
        given = headers.get("x-iclkit-k")
        if given is None:
            return self.batcher.chooser.k
        k = read_k(int(given)) if given.isascii() and given.isdigit() else None
        if k is None:
            raise DataError(f"the header X-ICLKIT-K is a number of demonstrations, not {given!r:.40}")
        return k


def _where(headers: Mapping[str, str]) -> dict[str, Any]:
    given = headers.get("x-iclkit-where")
    if not given:
        return {}
    pairs = [pair.partition("=") for pair in given.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise DataError(f"the header X-ICLKIT-Where is KEY=VALUE[,KEY=VALUE…], not {given!r:.60}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _text(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        return ""
    parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(p for p in parts if isinstance(p, str)).strip()


def in_prompt_order(chooser: Chooser, selection: Selection) -> list[Example]:
    """The examples of a selection as a prompt shows them: what is read first, first."""
    return order_picks(selection.examples, chooser.order, seed=chooser.kit.seed, query_id=selection.query.id)


def turns(example: Example) -> list[dict[str, str]]:
    """A demonstration as two messages: its input and its output, as they are."""
    pieces = _PLAIN.demo_pieces(example)
    asked = "".join(p.text for p in pieces if p.kind == "input")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": example.output}]


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for part in answer.aiter_raw():
        yield part
