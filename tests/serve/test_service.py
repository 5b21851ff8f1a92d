"""Demonstrations over HTTP: the same picks as in Python, filters, keys, limits, and one line for whatever is wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from iclkit.errors import DataError, PoolError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Chooser, make_selector
from iclkit.serve import MAX_K, ServeSettings, make_app, workers_for
from iclkit.serve._batching import Batcher
from iclkit.testing import FakeLM

from .conftest import EXAMPLES


@pytest.fixture
def client(chooser: Chooser) -> Iterator[TestClient]:
    with TestClient(make_app(chooser)) as client:
        yield client


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [p["id"] for p in answer.json()["picks"]]


def line(answer: Any, status: int) -> str:
    assert answer.status_code == status
    (only,) = answer.json()
    assert only == "error"
    message: str = answer.json()["error"]["message"]
    assert "\n" not in message
    return message


def test_the_picks_are_those_of_python(client: TestClient, chooser: Chooser) -> None:
    answer = client.post("/select", json={"input": "where is my parcel", "k": 3})
    expected = chooser.select("where is my parcel", 3)
    assert ids(answer) == [*expected.ids]
    first = answer.json()["picks"][0]
    assert (first["rank"], first["score"]) == (1, expected.picks[0].score)
    assert Example(first["input"], first["output"]).id == expected.ids[0]
    assert ids(client.post("/select", json={"input": "where is my parcel"})) == [*expected.ids[:2]]


def test_messages_are_those_of_the_chooser(client: TestClient, chooser: Chooser) -> None:
    answer = client.post("/messages", json={"input": "where is my parcel"}).json()
    prompt = chooser.prompt("where is my parcel")
    assert answer["messages"] == prompt.to_openai()
    assert answer["shown"] == [*prompt.shown]


def test_filters_and_exclusions_hold_for_one_request(client: TestClient) -> None:
    mine = {e.id for e in EXAMPLES if e.meta["tenant"] == "acme"}
    picks = ids(client.post("/select", json={"input": "my parcel", "k": 5, "where": {"tenant": "acme"}}))
    assert {*picks} == mine
    assert picks[0] not in ids(client.post("/select", json={"input": "my parcel", "k": 5, "exclude": picks[:1]}))
    assert len(ids(client.post("/select", json={"input": "my parcel", "k": 5}))) == 5


def test_it_follows_the_pool_and_says_its_revision(chooser: Chooser, pool: Pool) -> None:
    chooser.follow = True
    with TestClient(make_app(chooser)) as client:
        new = Example("a brand new question about drones", "drones")
        assert new.id not in ids(client.post("/select", json={"input": "drones"}))
        before = client.get("/healthz").json()
        pool.add([new])
        assert ids(client.post("/select", json={"input": "drones"}))[0] == new.id
        after = client.get("/healthz").json()
        assert (after["examples"], after["status"]) == (6, "ok")
        assert after["revision"] > before["revision"]


def test_a_followed_pool_that_is_another_file_is_one_line(chooser: Chooser, pool: Pool, tmp_path: Path) -> None:
    chooser.follow = True
    with TestClient(make_app(chooser)) as client:
        assert client.post("/select", json={"input": "drones"}).status_code == 200
        place, other = Path(str(pool.path)), tmp_path / "other.db"
        with Pool.open(other) as made:
            made.add([Example("x", "y")])
        place.rename(tmp_path / "old.db")
        other.rename(place)
        for answer in (client.post("/select", json={"input": "drones"}), client.get("/healthz")):
            assert answer.status_code == 503
            assert "moved, removed or replaced while it was open" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"input": "x", "kk": 3}', 400, "no field of a request named 'kk'. Did you mean 'k'?"),
        (b'{"k": 3}', 400, "`input` is missing"),
        (b'{"input": 3}', 400, "`input` is a text, or an object whose values are texts, not int"),
        (b'{"input": {"a": 1}}', 400, "`input` is a text, or an object"),
        (b'{"input": {}}', 400, "`input` is a text, or an object"),
        (b'{"input": "x", "k": -1}', 400, f"`k` is a whole number from 0 to {MAX_K}, not -1"),
        (b'{"input": "x", "k": true}', 400, "`k` is a whole number"),
        (b'{"input": "x", "where": []}', 400, "`where` is an object of metadata"),
        (b'{"input": "x", "exclude": "abc"}', 400, "`exclude` is a list of example ids"),
        (b"[1]", 400, "the body is an object such as"),
        (b"{", 400, "the body"),
        (b"", 400, "the body"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"input": "\\ud800"}', 400, "surrogate"),
        (b"[" * 100_000, 400, "nested too deep"),
        (b'{"input": "' + b"x" * 2000 + b'"}', 413, "the body has 2,013 bytes, and 1,000 are taken"),
    ],
)
def test_what_is_wrong_with_a_body_is_one_line(chooser: Chooser, body: bytes, status: int, says: str) -> None:
    limit = 1_000 if status == 413 else 1_000_000
    with TestClient(make_app(chooser, ServeSettings(max_body=limit))) as client:
        assert says in line(client.post("/select", content=body), status)


def test_a_body_without_a_length_is_cut_off_at_the_limit(chooser: Chooser) -> None:
    taken = []

    def parts() -> Iterator[bytes]:
        for _ in range(1000):
            taken.append(1)
            yield b"x" * 100

    with TestClient(make_app(chooser, ServeSettings(max_body=250))) as client:
        assert "more than the 250 bytes" in line(client.post("/messages", content=parts()), 413)


def test_a_client_that_goes_away_is_no_fault_of_the_service(
    chooser: Chooser, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(make_app(chooser)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /select HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        for _ in range(1000):
            answered = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
            if counted := 'path="/select",status="400"' in answered:
                break
        assert counted, answered
    assert "Traceback" not in caplog.text


def test_paths_and_methods_that_are_not_there_are_said(client: TestClient) -> None:
    assert "GET /: nothing here; there are POST /select" in line(client.get("/"), 404)
    answer = client.get("/select")
    assert "no such method here" in line(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert line(client.post("/v1/chat/completions", json={}), 404)


def test_a_key_is_asked_for_but_by_the_health_check(chooser: Chooser) -> None:
    with TestClient(make_app(chooser, ServeSettings(key="s3cret-key"))) as client:
        for given in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}):
            assert "X-API-Key" in line(client.post("/select", json={"input": "x"}, headers=given), 401)
            assert "X-API-Key" in line(client.get("/metrics", headers=given), 401)
        assert ids(client.post("/select", json={"input": "x"}, headers={"X-API-Key": "s3cret-key"}))
        assert client.get("/healthz").status_code == 200
    assert "s3cret" not in repr(ServeSettings(key="s3cret-key"))


def test_faults_of_the_pool_and_of_ours_are_no_fault_of_the_request(
    chooser: Chooser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(make_app(chooser)) as client:
        for error, status, says in (
            (PoolError("tickets.db is damaged"), 503, "tickets.db is damaged"),
            (KeyError("inner"), 500, "KeyError inside iclkit; the server's log says more"),
        ):

            def fail(*_: Any, error: Exception = error) -> Any:
                raise error

            monkeypatch.setattr(chooser, "select_many", fail)
            assert says in line(client.post("/select", json={"input": "x"}), status)
    assert "inner" in caplog.text


def test_requests_are_counted(client: TestClient) -> None:
    client.post("/select", json={"input": "x"})
    client.post("/select", json={})
    text = client.get("/metrics").text
    assert 'iclkit_requests_total{path="/select",status="200"} 1' in text
    assert 'iclkit_requests_total{path="/select",status="400"} 1' in text
    assert 'iclkit_request_seconds_count{path="/select"} 2' in text
    assert "iclkit_queries_total 1" in text
    assert "iclkit_pool_examples 5" in text


class Recording(Chooser):
    """Answers as another does, after ``first``; ``asked``: how many queries came at a time."""

    def __init__(self, like: Chooser, first: Callable[[], object] = lambda: None) -> None:
        super().__init__(like.selector, like.view, like.kit)
        self.like, self.first, self.asked = like, first, list[int]()

    def select_many(self, queries: Any, k: int | None = None) -> Any:
        self.first()
        self.asked.append(len(queries))
        return self.like.select_many(queries, k)


def test_queries_that_come_in_while_others_are_answered_are_asked_together(chooser: Chooser) -> None:
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go.wait(60)

    recording = Recording(chooser, hold)

    async def ask() -> list[Any]:
        batcher = Batcher(recording)
        first = asyncio.create_task(batcher.select(Query("parcel"), 2))
        assert await asyncio.to_thread(begun.wait, 60)
        more = [asyncio.create_task(batcher.select(Query(f"invoice {n}"), 1 + n % 2)) for n in range(10)]
        more += [asyncio.create_task(batcher.select(Query("invoice 0"), 1)) for _ in range(3)]  # asked once
        more.append(asyncio.create_task(batcher.select(Query("invoice 0", where={"tenant": "acme"}), 1)))
        await asyncio.sleep(0)
        go.set()
        found = await asyncio.gather(first, *more)
        await batcher.close()
        return found

    found = asyncio.run(ask())
    assert recording.asked == [1, 6, 5]  # then one call for each k
    assert [s.ids for s in found[1:11]] == [chooser.select(f"invoice {n}", 1 + n % 2).ids for n in range(10)]
    assert [s.ids for s in found[11:14]] == [found[1].ids] * 3
    assert found[14].ids == chooser.select("invoice 0", 1, where={"tenant": "acme"}).ids


def test_workers_choose_at_the_same_time_and_none_takes_more_than_its_share(chooser: Chooser) -> None:
    both = threading.Barrier(2, timeout=20)  # passed only by two calls that are under way together
    recording = Recording(chooser, both.wait)

    async def ask() -> list[Any]:
        batcher = Batcher(recording, workers=2)
        found = await asyncio.gather(*(batcher.select(Query(f"invoice {n}"), 2) for n in range(9)))
        await batcher.close()
        return found

    found = asyncio.run(ask())
    assert sorted(recording.asked) == [4, 5]
    assert [s.ids for s in found] == [chooser.select(f"invoice {n}", 2).ids for n in range(9)]


def test_what_comes_in_while_a_batch_is_made_goes_along_with_it(chooser: Chooser) -> None:
    recording = Recording(chooser)

    async def ask() -> None:
        batcher = Batcher(recording)
        under_way = list[asyncio.Task[Any]]()
        for n in range(5):  # each in a turn of the event loop of its own, as requests are read
            under_way.append(asyncio.create_task(batcher.select(Query(f"invoice {n}"), 1)))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*under_way), 20)
        await batcher.close()

    asyncio.run(ask())
    assert recording.asked == [5]


def test_a_selector_that_asks_an_lm_works_in_one_thread(chooser: Chooser) -> None:
    kit = replace(chooser.kit, lm=FakeLM())
    asks = Chooser(make_selector("mdl").fit(chooser.view, kit), chooser.view, kit)
    assert workers_for(asks) == workers_for(asks, 1) == 1
    assert workers_for(chooser, 3) == 3
    with pytest.raises(UsageError, match=r"mdl.* asks an LM and so works in one thread"):
        make_app(asks, ServeSettings(workers=2))


def test_those_who_ask_again_are_waited_for_and_closing_leaves_nobody_waiting(
    chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclkit.serve._batching.LINGER", 1e9)  # for as long as it takes
    monkeypatch.setattr("iclkit.serve._batching.LONGEST_LINGER", 1e9)
    recording = Recording(chooser)

    async def ask() -> None:
        batcher = Batcher(recording)
        await asyncio.gather(*(batcher.select(Query(f"parcel {n}"), 1) for n in range(3)))
        again = list[asyncio.Task[Any]]()
        for n in range(3):  # not all at once
            again.append(asyncio.create_task(batcher.select(Query(f"invoice {n}"), 1)))
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*again), 20)
        last = asyncio.create_task(batcher.select(Query("late"), 1))
        await asyncio.sleep(0.01)
        await batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(last, 20)

    asyncio.run(ask())
    assert recording.asked == [3, 3]


def test_a_query_that_fails_costs_nobody_else_an_answer(chooser: Chooser) -> None:
    class Picky(Chooser):
        def select_many(self, queries: Any, k: int | None = None) -> Any:
            if any(q.text == "bad" for q in queries):
                raise DataError("no")
            return chooser.select_many(queries, k)

    async def ask() -> list[Any]:
        batcher = Batcher(Picky(chooser.selector, chooser.view, chooser.kit))
        asked = [batcher.select(Query(t), 1) for t in ("parcel", "bad", "invoice")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()
        return found

    good, bad, also = asyncio.run(ask())
    assert isinstance(bad, DataError)
    assert [good.ids, also.ids] == [chooser.select(t, 1).ids for t in ("parcel", "invoice")]


def test_the_openapi_document_holds_for_whatever_is_generated_from_it(chooser: Chooser) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(chooser))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {o.path for o in operations} == {"/select", "/messages", "/healthz", "/metrics"}
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=15, deadline=None, suppress_health_check=[*HealthCheck], database=None)
            def check(case: Any) -> None:
                case.call_and_validate()

            if mode == schemathesis.GenerationMode.POSITIVE or operation.body:
                check()
    assert json.dumps(schema.raw_schema)
