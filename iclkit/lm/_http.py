"""Asking an HTTP server for JSON: many requests at once, paced, repeated when that helps, one clear line when not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from iclkit.errors import ModelError, UsageError

T = TypeVar("T")
R = TypeVar("R")

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that another try may cure
_SLOW_TRIES = 2  # a server that let a whole timeout pass is asked again only so often


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """How to treat a server.

    concurrency: requests under way at once. retries: tries after the first of a request that failed in passing.
    timeout: seconds without a byte of an answer. requests_per_minute: 0 for no limit. backoff: seconds before the
    first repetition; it doubles each time, up to ``longest_wait``, and a random half is taken off so that clients
    do not come back in step. A ``Retry-After`` of the server is honoured up to ``longest_wait``.
    """

    concurrency: int = 8
    retries: int = 6
    timeout: float = 120.0
    requests_per_minute: float = 0.0
    backoff: float = 0.5
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.backoff < 0 or self.longest_wait < 0:
            raise UsageError(f"{self}: concurrency must be at least 1, timeout above 0, the others not negative")
        if self.requests_per_minute < 0:
            raise UsageError(f"requests_per_minute is {self.requests_per_minute}; expected 0 (no limit) or more")


class HttpError(ModelError):
    """No usable answer. ``status`` is the last HTTP status, None when there was none; ``reason`` the server's words."""

    def __init__(self, text: str, status: int | None = None, reason: str = "") -> None:
        super().__init__(text)
        self.status, self.reason = status, reason


class Refused(HttpError):
    """The server understood and said no (a 4xx that another try would not cure)."""


class Stopped(Exception):
    """Raised inside a worker whose siblings have failed: nobody waits for its answer any more."""


class Client:
    """A server's JSON API below ``url``. Thread-safe. ``key`` goes into the Authorization header and nowhere else."""

    def __init__(self, url: str, key: str | None, config: HttpConfig) -> None:
        import httpx

        self.url, self.config, self._key = url, config, key
        self.patience = config.retries  # a caller that is only asking what the server can do lowers it for a while
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        timeout = httpx.Timeout(config.timeout, connect=min(10.0, config.timeout))
        self._http = httpx.Client(headers=headers, limits=limits, timeout=timeout)
        self._pace = threading.Lock()
        self._next = 0.0  # when the next request may start, on the monotonic clock
        self._local = threading.local()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at ``path``: below the URL, or an address of its own. Errors as ``post``."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send JSON, receive a JSON object. Refused for a 4xx, HttpError when the server cannot be made to answer."""
        return self._ask("POST", path, body)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index, ``work(item)``) in the order of completion, ``concurrency`` at a time, yielded to this thread.

        The first failure stops the rest: what was yielded is kept, waiting workers are woken, the error is raised.
        """
        stop = threading.Event()

        def enter() -> None:
            self._local.stop = stop

        todo = iter(enumerate(items))
        pool = ThreadPoolExecutor(self.config.concurrency, "iclkit-http", initializer=enter)
        running: dict[Future[R], int] = {}
        try:
            while True:
                while len(running) < 2 * self.config.concurrency and (nxt := next(todo, None)) is not None:
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
            pool.shutdown(cancel_futures=True)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        import httpx

        retries = min(self.config.retries, self.patience)

        address = path if "://" in path else self.url + path
        slow = 0
        for tried in range(retries + 1):
            self._wait_turn()
            pause = self.config.backoff * 2**tried
            pause = min(pause, self.config.longest_wait) * (1 - random.random() / 2)
            status: int | None = None
            reason = ""
            cause: Exception | None = None
            try:
                response = self._http.request(method, address, json=body)
            except httpx.TimeoutException as error:
                slow += 1
                trouble = f"did not answer within {self.config.timeout:g} s"
                cause = error
                if slow > _SLOW_TRIES:
                    break
            except httpx.TransportError as error:
                trouble, cause = f"cannot be reached ({_first_line(error)})", error
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UsageError(f"{address} is not an address: {error}") from error
            else:
                if response.is_success:
                    try:
                        found = response.json()
                    except ValueError as error:
                        found, cause = None, error
                    if isinstance(found, dict):
                        return found
                    trouble = f"answered something that is not a JSON object: {response.text[:60]!r}"
                else:
                    status, reason = response.status_code, self._clean(_reason(response))
                    trouble, cause = f"answered {status}: {reason}", None
                    if status not in _PASSING:
                        raise Refused(f"the server at {self.url} {trouble}", status, reason)
                    asked = _retry_after(response.headers.get("Retry-After"))
                    if asked is not None:
                        pause = min(asked, self.config.longest_wait)
                    if status == 429:  # not only this request: all of them
                        self._hold(pause)
            if tried < retries:
                self._sleep(pause)
        times = f", {tried + 1} times" if tried else ""
        text = f"the server at {self.url} {trouble}{times}; check that it runs and the address"
        raise HttpError(text, status, reason) from cause

    def _wait_turn(self) -> None:
        with self._pace:
            at = max(time.monotonic(), self._next)
            self._next = at + (60 / self.config.requests_per_minute if self.config.requests_per_minute else 0)
        self._sleep(at - time.monotonic())

    def _hold(self, seconds: float) -> None:
        with self._pace:
            self._next = max(self._next, time.monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        stop: threading.Event | None = getattr(self._local, "stop", None)
        if stop is None:
            time.sleep(max(seconds, 0))
        elif stop.wait(max(seconds, 0)):
            raise Stopped

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _reason(response: Any) -> str:
    """The server's own words: the message of an OpenAI-style error, else the start of the body."""
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body.get("message", "")))
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:300] or response.reason_phrase


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
