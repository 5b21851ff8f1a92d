"""Work done, not time: twice as many rows cost at most about twice the work, and one row in a large pool next to none.

Work is counted in steps of SQLite's virtual machine: a statement that looks at every row takes some for each.
"""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from iclkit.errors import DataError
from iclkit.pool import Pool, Scope
from iclkit.pool._index import FlatIndex
from iclkit.pool._schema import MIGRATIONS
from iclkit.records import Example
from iclkit.testing import HashEmbedder

EMBEDDER = HashEmbedder(4)


def filled(rows: int, path: str | Path = ":memory:") -> Pool:
    """Half of the rows are copies of others but for case."""
    pool = Pool.open(path)
    texts = [f"{'Text' if n % 2 else 'text'} number {n // 2}" for n in range(rows)]
    pool.add(Example(t, "x", id=f"e{n:06}") for n, t in enumerate(texts))
    pool.embed(EMBEDDER)
    return pool


def steps(pool: Pool, work: Callable[[Pool], object]) -> int:
    """Steps of SQLite's virtual machine, in tens."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with pool._table.database.reading() as connection:
        connection.set_progress_handler(step, 10)
    try:
        work(pool)
    finally:
        with pool._table.database.reading() as connection:
            connection.set_progress_handler(None, 0)
    return count


def missing(pool: Pool) -> None:
    with pytest.raises(DataError, match="the nearest id is e0001"):
        pool.get("e0001zz")


ONE = {
    "remove": lambda pool: pool.remove([f"e{n:06}" for n in range(100, 150)]),
    "remove by prefix": lambda pool: pool.remove(["chosen"]),
    "update": lambda pool: pool.update("e000100", output="other"),
    "add": lambda pool: pool.add([Example("new", "x")]),
    "look up": lambda pool: pool.get("e000100"),
    "look up by prefix": lambda pool: pool.get("chosen"),
    "look up what is not there": missing,
    "vectors of one": lambda pool: pool.embedded("e000100"),
    "add and view": lambda pool: (pool.add([Example("new", "x")]), pool.view()),
    "keys of one": lambda pool: pool.stored_keys("e000100"),
}


@pytest.mark.parametrize("change", ONE)
def test_work_on_a_few_rows_does_not_grow_with_the_pool(change: str) -> None:
    work = []
    for rows in (500, 4000):
        with filled(rows) as pool:
            pool.add([Example("chosen by prefix", "x", id="chosen-by-prefix")])
            pool.view()
            work.append(steps(pool, ONE[change]))
    assert work[1] <= 1.2 * work[0] + 5


ALL = {
    "dedupe": lambda pool: pool.dedupe(),
    "dedupe near": lambda pool: pool.dedupe(near=0.9),
    "view": lambda pool: pool._load(),
    "stats": lambda pool: pool.stats(),
    "check": lambda pool: pool.check(),
    "vectors": lambda pool: pool.view().vectors(EMBEDDER),
    "remove half": lambda pool: pool.remove(pool.ids[::2]),
}


@pytest.mark.parametrize("change", ALL)
def test_work_on_all_rows_grows_no_faster_than_the_pool(change: str) -> None:
    work = []
    for rows in (1000, 2000):
        with filled(rows) as pool:
            pool._snapshot = None
            work.append(steps(pool, ALL[change]))
    assert work[0]
    assert work[1] <= 2.3 * work[0]


def test_dropping_a_text_reads_no_other_vectors(tmp_path: Path) -> None:
    filled(4, tmp_path / "p.db").close()
    with sqlite3.connect(tmp_path / "p.db") as raw:
        (line,) = raw.execute("EXPLAIN QUERY PLAN DELETE FROM vectors WHERE text = 1").fetchall()
        assert "USING INDEX vectors_by_text" in line[3]


def test_a_pool_without_the_index_of_vectors_is_read_as_it_is_and_gets_it_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    filled(4, path).close()
    with sqlite3.connect(path) as raw:
        for index in ("vectors_by_text", "traces", "unlabelled"):
            raw.execute(f"DROP INDEX {index}")
        raw.execute("PRAGMA user_version = 2")
    with Pool.open(path, read_only=True) as pool:
        assert len(pool.view().vectors(EMBEDDER)) == 4
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)
    with Pool.open(path) as pool:
        assert pool.remove(["e000001"]) == 1
        assert pool.check() == []
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert raw.execute("SELECT count(*) FROM sqlite_master WHERE name = 'vectors_by_text'").fetchone() == (1,)


def test_vectors_are_read_from_the_file_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from iclkit.pool import _vectors

    monkeypatch.setattr(_vectors, "READ", 7)
    with filled(40) as pool:
        store, sizes = pool._reader.vectors, []
        plain = store._stored
        monkeypatch.setattr(store, "_stored", lambda e, t: sizes.append(len(t)) or plain(e, t))
        view = pool.view()
        part = view.only(view.rows[5:])
        expected = EMBEDDER.encode_documents([e.text for e in part.examples])
        np.testing.assert_array_equal(part.vectors(EMBEDDER), expected)
        assert max(sizes) == 7
        assert pool.embed(EMBEDDER) == 0
        assert pool.embed(HashEmbedder(5)) == 40


@pytest.mark.parametrize("scope", ["everything", "few excluded", "many excluded", "a filter"])
def test_rows_scored_again_do_not_grow_with_the_pool(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    for rows in (4000, 8000):
        rng = np.random.default_rng(rows)
        vectors = rng.standard_normal((rows, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index, work = FlatIndex.of(vectors), []
        plain = index.rescore
        monkeypatch.setattr(index, "rescore", lambda q, r, *more, p=plain, w=work: w.append(r.size) or p(q, r, *more))
        within = np.arange(0, rows, 2) if scope == "a filter" else None
        count = {"few excluded": 20, "many excluded": 1000}.get(scope, 0)
        index.nearest(vectors[:10], 8, [Scope(frozenset(range(n, n + count)), within) for n in range(10)])
        scored.append(sum(work))
    assert scored[1] <= 2 * scored[0]
    assert scored[1] <= 10 * 2048


def test_what_is_held_while_adding_does_not_grow_with_what_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclkit.pool._store._ADDED_AT_ONCE", 100)
    held = []
    for rows in (500, 500, 4000):  # the first fills caches that stay
        with Pool.open(tmp_path / f"{len(held)}.db") as pool:
            tracemalloc.start()
            report = pool.add((Example(f"text {n}", "x") for n in range(rows)), keep_ids=False)
            held.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert (report.added, report.ids) == (rows, ())
    assert held[2] < 1.5 * held[1]  # the ids alone would be twice that
