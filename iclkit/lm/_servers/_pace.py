"""How many requests are under way at once, and when the next may start: found out, and told by the server."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST, MOST = 8, 256
"""The width that is begun with, and the largest that is tried."""
_GAIN = 1.1
"""Rate against rate: what is not a tenth faster is not faster, as the times of requests vary."""
_SHORTEST = 0.25
"""Seconds of work at least from which a rate is taken."""
_REST = 8
"""Windows between two looks at another width once the best is found."""


class Width:
    """How many requests may be under way at once. Thread-safe.

    Fixed where ``most`` is given, else climbed for: a width is kept while a wider one does not answer a tenth more
    requests per second, and left for a narrower one that does. A server that says it is overloaded (429, 503, a
    timeout) halves the width, which then grows by one at a time. A rate is measured only while requests wait for
    their turn: where the caller has no more to send, the width is not what holds it up.
    """

    def __init__(self, most: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.fixed = most or MOST, bool(most)
        self.now = most or FIRST
        self.found = 0
        """The width that climbing came to, 0 as long as it has not."""
        self._clock = clock
        self._free = threading.Condition()
        self.under_way = self._done = self._waited = self._skip = 0
        self._begun = self._idle = clock()
        self._kept: tuple[int, float] | None = None  # the best width so far and its rate
        self._step, self._ceiling, self._rest = 2.0, 0, 0
        self._halved = -math.inf  # when the width was last halved: older requests tell nothing about the new one

    def begin(self, width: int) -> None:
        """Begin with what was found before, where that is not fixed."""
        if width and not self.fixed:
            with self._free:
                self._go(width)
                self._free.notify_all()

    def at_most(self, width: int) -> None:
        """No more than so many: the server works on no more, and what waits there could as well wait here."""
        if width:
            with self._free:
                self.most = min(self.most, width)
                self._go(self.now)

    def enter(self, given_up: Callable[[], bool] = lambda: False) -> float | None:
        """Wait for a turn; the time at which it came, None where ``given_up`` meanwhile."""
        with self._free:
            if self.under_way >= self.now:
                self._waited += 1
            while self.under_way >= self.now:
                if given_up():
                    return None
                self._free.wait()
            now = self._clock()
            if not self.under_way:
                self._begun += now - self._idle  # nobody had anything to send
            self.under_way += 1
            return now

    def leave(self, entered: float, overloaded: bool = False) -> None:
        """A request that ``entered`` at this time has its answer, or none because the server has too much to do."""
        with self._free:
            self.under_way -= 1
            if overloaded:
                self._halve(entered)
            elif self._skip:
                self._skip -= 1
                if not self._skip:
                    self._open_window()
            else:
                self._done += 1
                self._judge()
            self._idle = self._clock()
            self._free.notify_all()

    def wake(self) -> None:
        """Have those who wait look again whether they are given up."""
        with self._free:
            self._free.notify_all()

    def _open_window(self) -> None:
        self._done = self._waited = 0
        self._begun = self._clock()

    def _go(self, width: float) -> None:
        """Another width; the answers of requests that began under the old one are no part of its rate."""
        self.now, self._skip = max(1, min(self.most, round(width))), self.under_way
        self._open_window()

    def _halve(self, entered: float) -> None:
        if entered > self._halved:
            self._halved, self._kept, self._ceiling = self._clock(), None, self.now - (not self.fixed)
            self._go(self.now // 2)

    def _judge(self) -> None:
        seconds = self._clock() - self._begun
        if self._done < max(16, 2 * self.now) or seconds < _SHORTEST:
            return
        rate, busy = self._done / seconds, self._waited >= self._done // 2
        self._open_window()
        if not busy:
            return
        if self.now < self._ceiling:  # back from an overload, one by one
            self._step = 1.25
            self._go(self.now + 1)
        elif not self.fixed:
            self._climb(rate)

    def _climb(self, rate: float) -> None:
        kept = self._kept
        if kept is None or kept[0] == self.now:
            self._kept = self.now, rate
            self._rest = max(0, self._rest - 1)
            if not self._rest:
                self._go(self.now * self._step)
                if self.now == self._kept[0]:  # there is no wider one
                    self._settle()
        elif rate > kept[1] * (_GAIN if self.now > kept[0] else 1):  # as fast with fewer is better
            self._kept = self.now, rate
            self._go(self.now * self._step)
            if self.now == self._kept[0]:
                self._settle()
        else:
            self._go(kept[0])
            self._settle()

    def _settle(self) -> None:
        """Stay for a while, then look to the other side."""
        self.found = self.now
        self._step = 0.7 if self._step > 1 else 1.5
        self._rest = _REST


# -- what the server tells ---------------------------------------------------------------------------------------------

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KINDS = {
    "requests": ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "ratelimit-{}", "x-ratelimit-{}"),
    "tokens": ("x-ratelimit-{}-tokens", "anthropic-ratelimit-tokens-{}"),
}
"""Headers of a limit: OpenAI's and Azure's, Anthropic's, the IETF's first draft and GitHub's."""
_STRUCTURED = re.compile(r"\b(r|t)=(\d+)")
_SINCE_1970 = 1_000_000_000
"""Seconds beyond which a number is a date."""


def seconds_of(value: str | None) -> float | None:
    """A time to wait as servers write it: seconds, a duration (``6m0s``, ``20ms``), a date; None for another text.

    >>> seconds_of("2.5"), seconds_of("1m30s"), seconds_of("20ms"), seconds_of("soon")
    (2.5, 90.0, 0.02, None)
    """
    text = (value or "").strip()
    if not text:
        return None
    parts = _PARTS.findall(text)
    if parts and "".join(a + b for a, b in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
        if seconds > _SINCE_1970:  # a date, in seconds or (OpenRouter) milliseconds
            seconds = (seconds / 1000 if seconds > 100 * _SINCE_1970 else seconds) - time.time()
    except ValueError:
        try:
            date = datetime.fromisoformat(text) if text[:1].isdigit() and "-" in text else parsedate_to_datetime(text)
            seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the server wants to be asked again; None where it does not say.

    ``retry-after-ms`` is the more exact one of Azure and OpenAI.
    """
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        return seconds_of(headers.get("retry-after"))


def spacing(headers: Mapping[str, str], under_way: int, tokens: int) -> tuple[float, float]:
    """(seconds in which no request should start, seconds between two after that), by what is left of the limits.

    Both are 0 while that serves the requests under way and one more of ``tokens`` tokens. Else requests are spaced as
    they come free again, where the size of the limit is told, or spread over the time until it is whole. Numbers below
    0, limits of 0 and limits without a time mean nothing: Azure writes them.
    """
    found = [_spacing(headers, kind, 1 if kind == "requests" else max(1, tokens), under_way) for kind in _KINDS]
    return max(hold for hold, _ in found), max(gap for _, gap in found)


def _spacing(headers: Mapping[str, str], kind: str, size: int, under_way: int) -> tuple[float, float]:
    limit, left, reset = (_told(headers, kind, word) for word in ("limit", "remaining", "reset"))
    if kind == "requests" and "ratelimit" in headers:  # the IETF's later drafts: "default";r=50;t=30
        told = {k: float(v) for k, v in _STRUCTURED.findall(headers["ratelimit"])}
        left, reset = told.get("r"), told.get("t")
    if left is None or not reset or left < 0 or left >= size * (under_way + 1) or (limit is not None and limit <= 0):
        return 0.0, 0.0
    if limit is not None and limit > left:  # it fills up by and by
        gap = min(reset, size * reset / (limit - left))
        return (gap if left < size else 0.0), gap
    return (reset, 0.0) if left < size else (0.0, size * reset / left)


def _told(headers: Mapping[str, str], kind: str, word: str) -> float | None:
    for name in _KINDS[kind]:
        value = headers.get(name.format(word))
        if value is None:
            continue
        if word == "reset":
            return seconds_of(value)
        try:
            number = float(value.split(",")[0].split(";")[0])
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None
