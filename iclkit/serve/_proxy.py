"""A chat API with demonstrations in it: requests are passed on to the server behind, with the chosen ones inserted."""

from __future__ import annotations

import json
import logging
import re
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
DROPPED = "x-iclkit-dropped"
"""The header of an answer that names what the model's context had no room for: ids, in the order of dropping."""
_OURS = ("x-iclkit-", "x-api-key")
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
_HOP |= {"upgrade", "host", "content-length"}
_MOST_IN_HEADER = 100  # ids; servers take headers of some kilobytes
_REFUSALS = (400, 413, 422)
_TOO_LONG = re.compile(
    r"exceed_context_size|context_length_exceeded|context[ _-]?(?:length|size|window)|too many (?:input )?tokens"
    r"|maximum (?:input|prompt|model) len|(?:prompt|input|request) is too long",
    re.I,
)
_NUMBERS = re.compile(
    r"(?<![\w.])\d[\d,]*(?= (?:input |prompt )?tokens?)|(?<=maximum context length is )\d[\d,]*", re.I
)
_PLAIN = Template("{input}\n{output}")

log = logging.getLogger("iclkit.serve")


class _Asked:
    """A chat request, and the demonstrations that stand in it now; the best first in ``examples``."""

    def __init__(self, chooser: Chooser, data: dict[str, Any], body: bytes, selection: Selection | None) -> None:
        self.chooser, self.data, self.whole, self.selection = chooser, data, body, selection
        self.examples = [*selection.examples] if selection else []
        self.dropped: list[str] = []

    @property
    def shown(self) -> list[str]:
        """The ids, in prompt order."""
        return [example.id for example in self._ordered()]

    def body(self) -> bytes:
        """The request with the demonstrations in it; as it came without any."""
        if not self.examples:
            return self.whole
        messages = self.data["messages"]
        first = next(n for n, m in enumerate(messages) if m.get("role") not in ("system", "developer"))
        shown = [turn for example in self._ordered() for turn in turns(example)]
        data = {**self.data, "messages": [*messages[:first], *shown, *messages[first:]]}
        return json.dumps(data, ensure_ascii=False).encode()

    def drop(self, share: float) -> None:
        """Take out demonstrations, the worst first, until they are ``share`` of the request's text; one at least."""
        goal = share * sum(len(text) for text in _texts(self.data)) + share * sum(map(_length, self.examples))
        gone = 0
        while self.examples and (not gone or gone < goal):
            worst = self.examples.pop()
            gone += _length(worst)
            self.dropped.append(worst.id)

    def _ordered(self) -> list[Example]:
        if self.selection is None:
            return []
        kit, query = self.chooser.kit, self.selection.query
        return order_picks(self.examples, self.chooser.order, seed=kit.seed, query_id=query.id)


class Proxy:
    """Passes ``/v1/…`` on to ``base``, the address that a client of the server behind would be given.

    In ``/v1/chat/completions`` the demonstrations for the last user message stand, as turns, before the first message
    that is not the system's. Where the server behind says that they are more than the model reads, whole demonstrations
    are taken out, the worst first, and it is asked again: it alone counts its tokens. Everything else is passed on as
    it is, answers too, as they come.
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
        asked = None
        if request.method == "POST" and path == "/chat/completions":
            asked = await self._choose(body, request.headers)
        headers = [
            (k, v) for k, v in request.headers.items() if k.lower() not in _HOP and not k.lower().startswith(_OURS)
        ]
        url = self.base + path + (f"?{request.url.query}" if request.url.query else "")
        while True:
            sent = body if asked is None else asked.body()
            answer = await self._send(self.client.build_request(request.method, url, headers=headers, content=sent))
            if asked is None or not asked.examples or answer.status_code not in _REFUSALS:
                break
            refused = b"".join([part async for part in answer.aiter_raw()])
            await answer.aclose()
            over = too_long(_decoded(answer, refused))
            if over is None:  # it refuses for another reason, and says so itself
                return self._told(Response(refused, answer.status_code), answer, asked)
            asked.drop(over)
        streamed = StreamingResponse(
            _parts(answer), status_code=answer.status_code, background=BackgroundTask(answer.aclose)
        )
        return self._told(streamed, answer, asked)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise HttpError(
                502, redact_addresses(f"{self.base} does not answer ({type(error).__name__}: {error})")
            ) from error

    def _told(self, response: Response, answer: httpx.Response, asked: _Asked | None) -> Response:
        """The response with the headers of the server behind, and what was shown; the log gets the same."""
        response.headers.update({k: v for k, v in answer.headers.items() if k.lower() not in _HOP})
        if asked is not None:
            response.headers[SHOWN] = _ids(asked.shown)
            if asked.dropped:
                response.headers[DROPPED] = _ids(asked.dropped)
            more = f" dropped {','.join(asked.dropped)}" if asked.dropped else ""
            log.info("/v1/chat/completions %d shown %s%s", answer.status_code, ",".join(asked.shown) or "none", more)
        return response

    async def _choose(self, body: bytes, headers: Mapping[str, str]) -> _Asked | None:
        """The request with demonstrations to insert; None for one that the server behind has to judge as it is."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return None  # the server behind says what is wrong with it
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            return None
        texts = [text for m in messages if m.get("role") == "user" and (text := _text(m.get("content")))]
        if not texts:
            return _Asked(self.batcher.chooser, data, body, None)
        selection = await self.batcher.select(Query(texts[-1], where=_where(headers)), self._k(headers))
        return _Asked(self.batcher.chooser, data, body, selection)

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


def too_long(body: bytes) -> float | None:
    """The share of a prompt that is more than the model reads, as an error of a chat API says it: 0 where it does not
    say how much, None for an error of another kind.

    >>> too_long(b'{"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 400, "n_ctx": 300}}')
    0.25
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = data.get("error", data) if isinstance(data, dict) else data
    about = error if isinstance(error, dict) else {"message": error}
    text = f"{about.get('message', about.get('detail', ''))}"
    if not _TOO_LONG.search(f"{about.get('code')} {about.get('type')} {text}"):
        return None
    size, room = about.get("n_prompt_tokens"), about.get("n_ctx")  # llama.cpp
    if not isinstance(size, int) or not isinstance(room, int):  # others write: maximum is 300 tokens, you asked 400
        found = sorted({int(number.replace(",", "")) for number in _NUMBERS.findall(text)})
        size, room = (found[-1], found[0]) if len(found) > 1 else (0, 0)
        size, room = next(((s, r) for s, r in [(size, room)] if s < 10 * r), (0, 0))
    return 1 - room / size if size > room > 0 else 0.0


def _decoded(answer: httpx.Response, raw: bytes) -> bytes:
    """The body of an answer without its compression; empty for one that cannot be read."""
    try:
        return httpx.Response(answer.status_code, headers=answer.headers, content=raw).content
    except httpx.DecodingError:
        return b""


def _texts(data: Mapping[str, Any]) -> list[str]:
    return [_text(message.get("content")) for message in data["messages"]]


def _length(example: Example) -> int:
    return sum(len(turn["content"]) for turn in turns(example))


def _ids(ids: Sequence[str]) -> str:
    more = f",+{len(ids) - _MOST_IN_HEADER}" if len(ids) > _MOST_IN_HEADER else ""
    return ",".join(ids[:_MOST_IN_HEADER]) + more


def turns(example: Example) -> list[dict[str, str]]:
    """A demonstration as two messages: its input and its output, as they are."""
    pieces = _PLAIN.demo_pieces(example)
    asked = "".join(p.text for p in pieces if p.kind == "input")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": example.output}]


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for part in answer.aiter_raw():
        yield part
