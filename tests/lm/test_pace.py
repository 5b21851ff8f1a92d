"""How many requests are under way, found by the rate of answers; and what servers say of their limits."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from iclkit.lm._servers._pace import Width, retry_after, seconds_of, spacing


def simulate(
    rate: Callable[[int], float], answers: int, most: int = 0, breaks_above: int = 10**6
) -> tuple[Width, float]:
    """The width after so many answers of a server that gives ``rate(n)`` a second to n at once, and the rate reached.

    With more than ``breaks_above`` under way it refuses.
    """
    rng, now, done, begun = random.Random(0), [0.0], 0, 0
    width, under_way = Width(most, clock=lambda: now[0]), list[tuple[float, int, float, bool]]()
    while done < answers:
        while width.under_way < width.now:
            begun += 1
            width._waited += 1  # more is waiting: here nobody sleeps
            entered = width.enter() or 0.0
            count = width.under_way
            ends = now[0] + count / rate(count) * rng.uniform(0.9, 1.1)
            heapq.heappush(under_way, (ends, begun, entered, count > breaks_above))
        now[0], _, entered, refused = heapq.heappop(under_way)
        width.leave(entered, refused)
        done += not refused
    return width, done / now[0]


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [
        (lambda n: 99.0 * n if n <= 8 else 794 * (8 / n) ** 0.67, 6, 12),
        (lambda n: 50.0 * n if n <= 4 else 800 / n, 3, 5),
        (lambda n: 5.0 * min(n, 64), 45, 96),
        (lambda n: 3.0 * n, 179, 256),
        (lambda n: 10.0, 1, 8),
    ],
)
def test_the_width_comes_to_where_the_server_answers_most(rate, low, high):
    width, reached = simulate(rate, 6000)
    assert low <= width.found <= high
    assert low <= width.now <= high
    assert reached > 0.65 * max(map(rate, range(1, 257)))


def test_a_server_with_too_much_to_do_is_asked_less_and_then_more_by_one_at_a_time():
    width, reached = simulate(lambda n: 5.0 * n, 4000, breaks_above=20)
    assert 8 <= width.now <= 22
    assert reached > 60
    fixed, _ = simulate(lambda n: 5.0 * n, 2000, most=16, breaks_above=10)
    assert fixed.now <= 11


def test_a_given_width_is_kept_whatever_the_rate():
    width, _ = simulate(lambda n: 1.0, 500, most=5)
    assert (width.now, width.found) == (5, 0)


def test_refusals_of_one_burst_halve_the_width_once():
    clock = [0.0]
    width = Width(16, clock=lambda: clock[0])
    entered = [width.enter() or 0.0 for _ in range(16)]
    clock[0] = 1.0
    for at in entered:
        width.leave(at, overloaded=True)
    assert width.now == 8


def test_a_caller_with_nothing_to_send_changes_no_width():
    clock = [0.0]
    width = Width(clock=lambda: clock[0])
    for _ in range(200):
        entered = width.enter() or 0.0
        clock[0] += 0.01
        width.leave(entered)
        clock[0] += 1.0
    assert width.now == 8


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("0.25", 0.25), ("6m0s", 360), ("20ms", 0.02), ("1h2m", 3720), ("", None), ("soon", None),
     ("nan", None), ("-5", 0), ("Mon, 01 Jan 2001 00:00:00 GMT", 0), ("2001-01-01T00:00:00Z", 0)],
)  # fmt: skip
def test_waits_are_read_as_servers_write_them(text, seconds):
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


def test_a_date_in_any_spelling_is_the_time_until_then():
    then = datetime.now(UTC) + timedelta(seconds=30)
    for text in (
        then.isoformat(),
        then.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        str(then.timestamp()),
        f"{1000 * then.timestamp():.0f}",
    ):
        assert 25 < (seconds_of(text) or 0) <= 30.001  # the last is rounded to milliseconds
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after-ms": "x", "retry-after": "1"}) == 1
    assert retry_after({}) is None


def headers(kind: str, limit: object, left: object, reset: object) -> dict[str, str]:
    named = {"limit": limit, "remaining": left, "reset": reset}
    return {f"x-ratelimit-{word}{kind}": str(value) for word, value in named.items() if value is not None}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, (0, 0)),
        (headers("-requests", 60, 50, "10s"), (0, 0)),  # enough for all that is under way
        (headers("-requests", 60, 4, "56s"), (0, 1)),  # one comes free a second
        (headers("-requests", 60, 0, "60s"), (1, 1)),
        (headers("-requests", None, 0, "20"), (20, 0)),  # nothing until the window ends
        (headers("-requests", None, 4, "20"), (0, 5)),
        (headers("-tokens", 10_000, 500, "9.5s"), (0, 0.5)),
        (headers("-tokens", 10_000, 400, "9.6s"), (0.5, 0.5)),  # not enough for one request; 500 of 9,600 in 0.5 s
        (headers("-requests", -1, -1, "1s"), (0, 0)),  # Azure's Responses
        (headers("-requests", 0, 0, "60s"), (0, 0)),
        (headers("-requests", 60, 0, None), (0, 0)),
        (headers("-requests", "x", "many", "soon"), (0, 0)),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "7"}, (7, 0)),
        ({"ratelimit": '"default";r=0;t=9'}, (9, 0)),
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "4s"}, (4, 0)),
    ],
)
def test_what_is_left_of_a_limit_spaces_the_requests(told, expected):
    hold, gap = spacing(told, under_way=7, tokens=500)
    assert (hold, gap) == pytest.approx(expected, abs=0.03)
