"""Asking an HTTP server for JSON: many requests at once, paced, repeated when that helps, one clear line when not.

Nothing that a server does holds a request up for longer than ``timeout`` or takes more memory than an answer may:
the clock runs from the first byte sent to the last byte read, and the bytes are counted as they come.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import logging
import math
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from iclkit.errors import ModelError, UsageError
from iclkit.lm._servers._pace import Width, retry_after, spacing
from iclkit.secrets import RedactingFilter, redact, remember, split_query, split_userinfo
from iclkit.text import printable

T = TypeVar("T")
R = TypeVar("R")

_PASSING = {408, 409, 425, 429, *range(500, 600)} - {501, 505}  # statuses that another try may cure
_OVERLOADED = {408, 429, *range(502, 600)} - {505}  # of a server that has too much to do, and of the gateways before it
_SHARE = 8  # connections of one HTTP client
_BYTES_PER_TOKEN = 4  # of a request's body, roughly
_SLOW_TRIES = 2  # a server that let half of the timeout pass for no answer is asked again only so often
_MOST_BYTES = 64 << 20
"""Of an answer, unpacked. The candidates of a whole vocabulary take 10 to 20 MB."""
_MOST_FILE_BYTES = 1 << 30
"""Of a file of answers."""
_MOST_ERROR_BYTES = 64 << 10
_REASON_LENGTH = 300
_MAY_PASS = re.compile(
    r"overload|unavailable|capacity|rate.?limit|too many|time.?out|timed out|internal|try again", re.I
)
"""Words of an error that came without a status, of a kind that another try may cure."""
_ENCODINGS = ("", "identity", "gzip", "deflate")  # what is asked for; each chunk of these unpacks to a bounded size


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """How to treat a server.

    concurrency: requests under way at once; 0 finds out how many are fastest. retries: tries after the first of a
    request that failed in passing. timeout: seconds in which an answer must have come whole. requests_per_minute: 0 for
    no limit. backoff: seconds before the first repetition; it doubles each time, up to ``longest_wait``, and a random
    half is taken off so that clients do not come back in step. What the server says about when to come back is honoured
    up to ``longest_wait``.
    """

    concurrency: int = 0
    retries: int = 6
    timeout: float = 120.0
    requests_per_minute: float = 0.0
    backoff: float = 0.5
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name in ("concurrency", "retries")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise UsageError(f"{field.name} is {value!r}, which is of the wrong type: expected {kind}")
            if not math.isfinite(value):
                raise UsageError(f"{field.name} is {value}; expected a finite number")
        if self.concurrency < 0 or self.retries < 0 or self.timeout <= 0 or self.backoff < 0 or self.longest_wait < 0:
            raise UsageError(f"{self}: timeout must be above 0, the others not negative")
        if self.requests_per_minute < 0:
            raise UsageError(f"requests_per_minute is {self.requests_per_minute}; expected 0 (no limit) or more")


class HttpError(ModelError):
    """No usable answer. ``status`` is the last HTTP status, None when there was none; ``reason`` the server's words,
    ``parameter`` what of the request it names as the trouble.
    """

    def __init__(self, text: str, status: int | None = None, reason: str = "", parameter: str = "") -> None:
        super().__init__(text)
        self.status, self.reason, self.parameter = status, reason, parameter


class RequestRejected(HttpError):
    """The server understood and said no (a 4xx that another try would not cure)."""


class Cancelled(Exception):
    """Raised inside a worker whose siblings have failed: nobody waits for its answer any more."""


class _Unusable(Exception):
    """An answer that is too long, or packed in a way that was not asked for."""


@dataclass(frozen=True)
class _Answer:
    sent_status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def json(self) -> Any:
        """The body as JSON, None when it is none: not UTF-8, nested too deep, integers of thousands of digits."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def error(self) -> Any:
        """What the body gives as the error, of the whole or of a choice; None where it gives none."""
        body = self.json
        if not isinstance(body, dict):
            return None
        choices = [c for c in listed if isinstance(c, dict)] if isinstance(listed := body.get("choices"), list) else []
        broken = [c.get("error") or "the answer broke off" for c in choices if broke_off(c)]
        if broken:
            return broken[0]
        return None if choices else body.get("error")

    @cached_property
    def status(self) -> int:
        """The status that the body means: gateways send errors of what stands behind them as 200."""
        if not (200 <= self.sent_status < 300 and self.error):
            return self.sent_status
        code = self.error.get("code", self.error.get("status")) if isinstance(self.error, dict) else None
        if str(code).isdecimal() and 400 <= int(str(code)) < 600:
            return int(str(code))
        passing = self.json.get("choices") or _MAY_PASS.search(json.dumps(self.error))
        return 502 if passing else 400

    @property
    def words(self) -> str:
        """The beginning of the body as a piece of one line."""
        text = self.body[: 2 * _REASON_LENGTH].decode(errors="replace")
        if text.count("\ufffd") > len(text) // 8:
            return f"{len(self.body):,} bytes that are no text"
        return said(text)


class Client:
    """A server's JSON API below ``url``. Thread-safe.

    ``key`` goes into the Authorization header, or to Azure's deployments into their ``api-key``, and nowhere else. A
    query of the address is sent with every request, ``user:password@`` as basic authentication; ``url`` has neither
    and may be shown, ``parameters`` is what of the query may be. Redirections are not followed: they could carry key
    and prompts to a place that was not named.
    """

    def __init__(self, url: str, key: str | None, config: HttpConfig, userinfo: tuple[str, str] | None = None) -> None:
        import httpx

        url, within = split_userinfo(url)
        userinfo = userinfo or within
        remember(key, *(() if userinfo is None else (userinfo[1] or userinfo[0],)))
        try:
            self.url, self._query, self.parameters = split_query(url)
            if not urlsplit(self.url).hostname or urlsplit(self.url).port == 0:
                raise ValueError("it names no host")
        except ValueError as error:
            raise UsageError(f"{url} is not an address: {error}") from None
        self.config = config
        self.patience = config.retries  # a caller that is only asking what the server can do lowers it for a while
        self.width = Width(config.concurrency)
        timeout = httpx.Timeout(config.timeout, connect=min(10.0, config.timeout))
        for name in ("httpx", "httpcore"):  # they log addresses with their queries, for whoever turns that on
            log = logging.getLogger(name)
            if not any(isinstance(f, RedactingFilter) for f in log.filters):
                log.addFilter(RedactingFilter())
        headers = {"Accept-Encoding": "gzip, deflate", **self._key_header(key)}
        try:
            certificates = httpx.create_ssl_context()

            def connections() -> Any:
                return httpx.AsyncClient(
                    headers=headers,
                    auth=userinfo,
                    verify=certificates,
                    limits=httpx.Limits(max_connections=_SHARE, max_keepalive_connections=_SHARE),
                    timeout=timeout,
                    follow_redirects=False,
                )

            self._connections = _Connections(connections)
        except (OSError, ValueError, ImportError, TypeError) as error:  # of proxies and certificates
            raise UsageError(
                f"no HTTP client can be set up ({_first_line(error)}); check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
            ) from None
        self.offline: Callable[[str, Mapping[str, Any]], dict[str, Any]] | None = None
        self._pace = threading.Lock()
        self._next = 0.0  # when the next request may start, on the monotonic clock
        self._gap = 0.0  # seconds from one start to the next
        self._local = _Local()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._closed = False
        end = weakref.finalize(self, _shut, self._loop, self._connections)
        end.atexit = False  # the thread ends with the interpreter

    def _key_header(self, key: str | None) -> dict[str, str]:
        key = (key or "").strip()
        if not key:
            return {}
        if not (key.isascii() and key.isprintable()):
            raise UsageError("the API key holds characters that no HTTP header can carry; check how it was copied")
        azure = "api-version=" in self._query
        if azure and not key.startswith("eyJ"):  # a token of Entra ID goes where others go
            return {"api-key": key}
        return {"Authorization": f"Bearer {key}"}

    def close(self) -> None:
        """Close the connections; requests under way are given up, and there can be no more."""
        with self._pace:
            self._closed = True
        _shut(self._loop, self._connections)

    def get(self, path: str, root: str | None = None) -> dict[str, Any]:
        """The JSON object at ``path`` below the URL, or below ``root``. Errors as ``post``."""
        return self._ask("GET", (self.url if root is None else root) + path, None, _object)

    def post(
        self, path: str, body: Mapping[str, Any], root: str | None = None, *, listed: bool = False
    ) -> dict[str, Any]:
        """Send JSON, receive a JSON object; where ``listed``, a list is taken too and comes as ``items``.

        RequestRejected for a 4xx, HttpError when the server cannot be made to answer. While ``offline`` is set, it is
        asked in the server's place.
        """
        if self.offline is not None and root is None:
            return self.offline(path, body)
        read = _object_or_list if listed else _object
        return self._ask("POST", (self.url if root is None else root) + path, _encoded(body), read)

    def upload(self, path: str, name: str, data: bytes, fields: Mapping[str, str]) -> dict[str, Any]:
        """Send a file as a form; the JSON object that comes back. Errors as ``post``."""
        boundary = hashlib.sha256(data).hexdigest()
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
        parts.append(f'name="file"; filename="{name}"\r\nContent-Type: application/jsonl\r\n\r\n'.encode() + data)
        head = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
        content = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
        return self._ask("POST", self.url + path, content, _object, f"multipart/form-data; boundary={boundary}")

    def download(self, path: str) -> bytes:
        """The file at ``path`` below the URL. Errors as ``post``."""
        return self._ask("GET", self.url + path, None, _body, most=_MOST_FILE_BYTES)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index, ``work(item)``) in the order of completion, ``width`` at a time, yielded to this thread.

        The first failure stops the rest: what was yielded is kept, waiting workers are woken, requests under way are
        given up, the error is raised. The same where the caller stops early.
        """
        stop = _Stop(self.width.wake)
        caller = threading.get_ident()

        def enter() -> None:
            self._local.stop = stop

        todo = iter(enumerate(items))
        pool = ThreadPoolExecutor(_ahead(self.width.most), "iclkit-http", initializer=enter)
        running: dict[Future[R], int] = {}
        try:
            while True:
                while len(running) < _ahead(self.width.now) and (nxt := next(todo, None)) is not None:
                    running[pool.submit(work, nxt[1])] = nxt[0]
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                failed = None
                for future in sorted(done, key=running.__getitem__):
                    index = running.pop(future)
                    if error := future.exception():
                        failed = failed or error
                    else:
                        yield index, future.result()
                if failed:
                    raise failed
        finally:
            stop.set()
            # a generator that is only garbage ends in whichever thread collects it, which may be one of the workers
            pool.shutdown(wait=threading.get_ident() == caller, cancel_futures=True)

    def _ask(
        self,
        method: str,
        address: str,
        content: bytes | None,
        read: Callable[[_Answer], T | None],
        kind: str = "application/json",
        most: int | None = None,
    ) -> T:
        """What ``read`` makes of the answer; where that is None, the answer is trouble that may pass."""
        import httpx

        retries = min(self.config.retries, self.patience)
        slow = 0
        for tried in range(retries + 1):
            pause = min(self.config.backoff * 2 ** min(tried, 60), self.config.longest_wait)
            pause *= 1 - random.random() / 2
            status: int | None = None
            reason, parameter = "", ""
            entered, overloaded = self._enter(), False
            try:
                self._wait_turn()
                begun = time.monotonic()
                answer = self._exchange(method, address, content, kind, most or _MOST_BYTES)
                overloaded = answer.status in _OVERLOADED
            except (httpx.TimeoutException, TimeoutError):
                overloaded = True
                trouble = f"did not answer within {self.config.timeout:g} s"
            except _Unusable as error:  # it would be no better the next time
                raise HttpError(f"the server at {self.url} {error}") from None
            except httpx.DecodingError as error:
                trouble = f"answered bytes that do not unpack ({_first_line(error)})"
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
                raise UsageError(f"{address} is not an address: {error}") from None
            except httpx.RequestError as error:
                overloaded = True
                trouble = f"cannot be reached ({_cause(error)})"
            else:
                status = answer.status
                self._heed(answer.headers, 0 if content is None else len(content) // _BYTES_PER_TOKEN)
                if 200 <= status < 300:
                    if (found := read(answer)) is not None:
                        return found
                    reason = answer.words
                    trouble = f"answered something that is not a JSON object: {reason[:60]!r}"
                    if _is_stream(answer):
                        reason = "it sends a stream of events, which was not asked for"
                        trouble = f"answered as no JSON object ({reason})"
                else:
                    reason, parameter = _reason(answer, address)
                    trouble = f"answered {status}: {reason}"
                    if status != answer.sent_status:
                        trouble = f"answered with an error (sent as {answer.sent_status}): {reason}"
                    if 300 <= status < 400:
                        raise HttpError(f"the server at {self.url} {trouble}", status, reason)
                    if status not in _PASSING or _is_final(answer):
                        raise RequestRejected(f"the server at {self.url} {trouble}", status, reason, parameter)
                    wanted = retry_after(answer.headers)
                    if wanted is not None:
                        pause = min(wanted, self.config.longest_wait)
                    if status == 429:  # not only this request: all of them
                        self._hold(pause)
            finally:
                self.width.leave(entered, overloaded)
            slow += time.monotonic() - begun > self.config.timeout / 2  # whatever it said in the end
            if slow > _SLOW_TRIES:
                break
            if tried < retries:
                self._sleep(pause)
        times = f", {tried + 1} times" if tried else ""
        text = f"the server at {self.url} {trouble}{times}; check that it runs and the address"
        raise HttpError(text, status, reason, parameter)

    def _exchange(self, method: str, address: str, content: bytes | None, kind: str, most: int) -> _Answer:
        """One request and its answer, given up when ``timeout`` is over or nobody waits for it any more."""
        stop = self._local.stop
        address += f"?{self._query}" if self._query else ""
        with self._pace:
            self._start()
            task = asyncio.run_coroutine_threadsafe(
                _read(self._connections, method, address, content, kind, self.config.timeout, most), self._loop
            )
        if stop is not None:
            stop.watch(task)
        try:
            return task.result()
        except concurrent.futures.CancelledError:
            if stop is None:
                raise HttpError(f"the connections to {self.url} were closed while it was asked") from None
            raise Cancelled from None
        finally:
            task.cancel()  # of no effect on a finished one; an interrupt leaves nothing under way
            if stop is not None:
                stop.forget(task)

    def _enter(self) -> float:
        """Wait until fewer requests are under way than may be; the time at which this one begins."""
        stop = self._local.stop
        begun = self.width.enter() if stop is None else self.width.enter(stop.is_set)
        if begun is None:
            raise Cancelled
        return begun

    def _heed(self, headers: Mapping[str, str], tokens: int) -> None:
        """Space the requests where the server says that little is left of what it allows."""
        hold, gap = spacing(headers, self.width.under_way - 1, tokens)
        self._gap = gap if gap <= self.config.longest_wait else 0.0  # the rest of a day's quota need not be spread
        if hold:
            self._hold(min(hold, self.config.longest_wait))

    def _start(self) -> None:
        if self._closed:
            raise HttpError(f"the connections to {self.url} are closed; load the LM again")
        if self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="iclkit-http-loop", daemon=True)
            self._thread.start()

    def _wait_turn(self) -> None:
        with self._pace:
            at = max(time.monotonic(), self._next)
            self._next = at + max(60 / most if (most := self.config.requests_per_minute) else 0.0, self._gap)
        self._sleep(at - time.monotonic())

    def _hold(self, seconds: float) -> None:
        with self._pace:
            self._next = max(self._next, time.monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        stop = self._local.stop
        if stop is None:
            time.sleep(max(seconds, 0))
        elif stop.wait(max(seconds, 0)):
            raise Cancelled


class _Stop(threading.Event):
    """Says that nobody waits any more, and gives up what is under way."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake
        self._under_way: set[Future[_Answer]] = set()
        self._lock = threading.Lock()

    def set(self) -> None:
        super().set()
        with self._lock:
            tasks = [*self._under_way]
        for task in tasks:
            task.cancel()
        self._wake()

    def watch(self, task: Future[_Answer]) -> None:
        with self._lock:
            self._under_way.add(task)
        if self.is_set():
            task.cancel()

    def forget(self, task: Future[_Answer]) -> None:
        with self._lock:
            self._under_way.discard(task)


class _Connections:
    """HTTP clients of a few connections each: a client looks at all of its connections for every request.

    One client with 128 connections took 5 ms of CPU per request here, 16 clients of 8 take 1 ms.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._clients, self._used = [make()], [0]

    @contextmanager
    def one(self) -> Iterator[Any]:
        """The first client that has a connection to spare. Used on the loop's thread alone."""
        at = next((i for i, used in enumerate(self._used) if used < _SHARE), len(self._used))
        if at == len(self._used):
            self._clients.append(self._make())
            self._used.append(0)
        self._used[at] += 1
        try:
            yield self._clients[at]
        finally:
            self._used[at] -= 1

    async def aclose(self) -> None:
        """Close all."""
        for client in self._clients:
            await client.aclose()


class _Local(threading.local):
    """What a thread knows: ``stop`` is that of the ``map`` whose worker it is."""

    stop: _Stop | None = None


async def _read(
    connections: _Connections,
    method: str,
    address: str,
    content: bytes | None,
    kind: str,
    timeout: float,
    most_bytes: int,
) -> _Answer:
    headers = {} if content is None else {"Content-Type": kind}
    with connections.one() as http:
        async with asyncio.timeout(timeout), http.stream(method, address, content=content, headers=headers) as response:
            return await _whole(response, most_bytes)


async def _whole(response: Any, most_bytes: int) -> _Answer:
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed not in _ENCODINGS:
        raise _Unusable(f"packs its answers as {said(packed)!r}, which was not asked for")
    good = response.is_success
    most, body = (most_bytes if good else _MOST_ERROR_BYTES), bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > most:
            if good:
                raise _Unusable(f"sent more than {most >> 20} MB as one answer")
            break
    return _Answer(response.status_code, response.reason_phrase, dict(response.headers), bytes(body[:most]))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _shut(loop: asyncio.AbstractEventLoop, connections: _Connections) -> None:
    """Close connections and loop; once is enough, and after it nothing is left for the interpreter to complain of."""
    if loop.is_closed():
        return
    if not loop.is_running():
        loop.close()
        return

    async def end() -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:  # whoever waits for one would wait for ever
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await connections.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


def _object(answer: _Answer) -> dict[str, Any] | None:
    parsed = answer.json
    return parsed if isinstance(parsed, dict) else None


def _object_or_list(answer: _Answer) -> dict[str, Any] | None:
    parsed = answer.json
    return {"items": parsed} if isinstance(parsed, list) else parsed if isinstance(parsed, dict) else None


def _body(answer: _Answer) -> bytes:
    return answer.body


def said(text: str) -> str:
    """A server's words as a piece of one line: without secrets, without anything that steers a terminal, cut."""
    return printable(" ".join(redact(text).split()))[:_REASON_LENGTH]


def _ahead(width: int) -> int:
    """Pieces of work that are begun where so many requests may be under way: some wait, so that none is waited for.

    With one at a time the requests of a piece follow each other, and find in the server's cache what they share.
    """
    return width if width == 1 else width + max(2, width // 4)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: what becomes of it is the server's affair
        return json.dumps(body, separators=(",", ":")).encode()


def _cause(error: BaseException) -> str:
    """What the operating system said, where a library only says that no attempt to connect succeeded."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        if isinstance(seen, ConnectionError) and seen.errno:
            return os.strerror(seen.errno)
        seen = seen.__cause__ or seen.__context__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return said((str(error).strip() or type(error).__name__).split("\n")[0])


def _reason(answer: _Answer, address: str) -> tuple[str, str]:
    """The server's own words (the message of an OpenAI-style error, else the start of the body), and the parameter."""
    if 300 <= answer.status < 400:
        target = urljoin(address, answer.headers.get("location", ""))
        return said(f"it sends requests on to {split_query(target)[0]}; give the address that answers itself"), ""
    body = answer.json
    text: Any = answer.words
    parameter = ""
    if isinstance(body, dict):
        error = answer.error or body.get("detail") or body.get("message") or body.get("msg") or ""
        text = error.get("message", "") if isinstance(error, dict) else error
        parameter = str(error.get("param") or "") if isinstance(error, dict) else ""
    return said(str(text)) or said(answer.phrase) or "no reason given", said(parameter)


def broke_off(choice: Mapping[str, Any]) -> bool:
    """Whether a choice is no answer but an error, of the server or of what stands behind it."""
    return bool(choice.get("error")) or choice.get("finish_reason") in ("error", "abort")


def _is_stream(answer: _Answer) -> bool:
    return "event-stream" in answer.headers.get("content-type", "") or answer.body.lstrip()[:5] == b"data:"


def _is_final(answer: _Answer) -> bool:
    """A status that usually passes, for a reason that does not: a budget that is used up."""
    error = answer.error
    return isinstance(error, dict) and "insufficient_quota" in (error.get("code"), error.get("type"))
