"""Work done, not time: twice as many rows cost at most about twice the work, and one row in a large pool next to none.

Work is counted in steps of SQLite's virtual machine: a statement that looks at every row takes some for each. In
LanceDB it is counted in rows of the tables that are looked at.
"""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit.errors import DataError
from iclkit.pool import FieldKey, Pool, Scope, _examples, _export, _sqlite, _view
from iclkit.pool._examples import StoredExamples
from iclkit.pool._index import FlatIndex
from iclkit.pool._schema import MIGRATIONS
from iclkit.records import Example
from iclkit.selectors import Chooser, Kit, make_selector
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


# ---- pools that are not held


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views hold no examples, and read few at a time."""
    monkeypatch.setattr(_sqlite, "LARGE", 5)
    monkeypatch.setattr(_examples, "READ", 50)
    monkeypatch.setattr(_view, "READ", 50)
    monkeypatch.setattr(_export, "_AT_ONCE", 50)


THROUGH_ALL: dict[str, Callable[[Pool, Path], object]] = {
    "go through": lambda pool, _: sum(1 for _ in pool),
    "ids": lambda pool, _: pool.ids,
    "stats": lambda pool, _: pool.stats(),
    "check": lambda pool, _: pool.check(),
    "dedupe": lambda pool, _: pool.dedupe(apply=False),
    "export": lambda pool, out: pool.export(out / "a.jsonl"),
    "export CSV": lambda pool, out: pool.export(out / "a.csv"),
    "export Parquet": lambda pool, out: pool.export(out / "a.parquet"),
    "keys": lambda pool, _: sum(1 for _ in pool.view().stored_keys()),
    "hash": lambda pool, _: pool.view().hash,
}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("what", THROUGH_ALL)
def test_what_goes_through_a_large_pool_does_not_hold_its_examples(what: str, tmp_path: Path) -> None:
    held = []
    for rows in (100, 100, 500):  # the first loads what stays
        path = tmp_path / f"{len(held)}.db"
        with Pool.open(path) as pool:
            pool.add(Example(f"text {n} " + "long " * 2000, "xy"[n % 2]) for n in range(rows))
        with Pool.open(path) as pool:
            tracemalloc.start()
            THROUGH_ALL[what](pool, tmp_path)
            held.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert (held[2] - held[1]) / 400 < 1000  # a text alone has 10,000 bytes


def test_looking_for_damaged_vectors_does_not_hold_them(tmp_path: Path) -> None:
    held = []
    for rows in (100, 100, 500):  # the first loads what stays
        with Pool.open(tmp_path / f"{len(held)}.db") as pool:
            pool.add(Example(f"text {n}", "x") for n in range(rows))
            pool.embed(HashEmbedder(1000))
            tracemalloc.start()
            assert pool._reader.vectors.problems() == []
            held.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert held[2] <= held[1] + 20_000  # five vectors


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("name", "part"), [("knn", None), ("knn", "x"), ("bm25", None)])
def test_a_selector_that_follows_a_large_pool_reads_what_is_new(
    name: str, part: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [0]
    plain = StoredExamples.at
    monkeypatch.setattr(
        StoredExamples, "at", lambda s, rows, at: read.__setitem__(0, read[0] + len(rows)) or plain(s, rows, at)
    )
    work = []
    for rows in (200, 800):
        with Pool.open(tmp_path / f"{rows}.db") as pool:
            pool.add(Example(f"text number {n}", "x", "xy"[n % 2]) for n in range(rows))
        with Pool.open(tmp_path / f"{rows}.db") as pool:
            kit, view = Kit(EMBEDDER), pool.view(task=part)
            chooser = Chooser(make_selector(name).fit(view, kit), view, kit, k=2, follow=True, pool=pool)
            chooser.select("text")
            read[0] = 0
            pool.add([Example("new", "x", "x")])
            assert chooser.select("text") is not None
            assert len(chooser.view) == len(view) + 1
            pool.add([Example("elsewhere", "x", "y")])
            fitted = chooser.selector
            chooser.select("text")
            assert (chooser.selector is fitted) == (part is not None)
            work.append(read[0])
    assert work[1] <= work[0] + 5


# ---- in LanceDB


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that LanceDB looks at: for every filter, change and addition all of a table, as there are no indexes."""
    table = pytest.importorskip("lancedb.table", reason="needs the extra lance").LanceTable
    count = [0]

    def counted(plain: Any) -> Any:
        def call(self: Any, *given: Any, **more: Any) -> Any:
            count[0] += self.count_rows()
            return plain(self, *given, **more)

        return call

    for name in ("search", "delete", "merge_insert"):
        monkeypatch.setattr(table, name, counted(getattr(table, name)))
    return count


IN_LANCE: dict[str, Callable[[Pool], object]] = {
    "view": lambda pool: pool.view(labeled=None),
    "stats": lambda pool: pool.stats(),
    "check": lambda pool: pool.check(),
    "dedupe": lambda pool: pool.dedupe(),
    "dedupe near": lambda pool: pool.dedupe(near=0.9),
    "remove half": lambda pool: pool.remove([f"e{n:06}" for n in range(0, len(pool), 2)]),
    "annotate all": lambda pool: pool.annotate([f"e{n:06}" for n in range(len(pool))], {"seen": True}),
    "label all": lambda pool: (
        pool.add(Example(f"open {n}", "", id=f"o{n}") for n in range(len(pool))),
        pool.label({f"o{n}": "x" for n in range(len(pool) // 2)}),
    ),
    "add what is there": lambda pool: pool.add([*pool]),
    "keys of all": lambda pool: [*pool.view().stored_keys()],
}


@pytest.mark.parametrize("change", IN_LANCE)
def test_rows_that_lancedb_looks_at_grow_no_faster_than_the_pool(
    change: str, looked: list[int], tmp_path: Path
) -> None:
    work = []
    for rows in (100, 200):
        with filled(rows, tmp_path / f"{rows}.lance") as pool:
            pool.view().keys(FieldKey())
            pool._snapshot = None
            looked[0] = 0
            IN_LANCE[change](pool)
            work.append(looked[0])
    assert work[0]
    assert work[1] <= 2.3 * work[0]


def test_a_selector_that_follows_a_pool_in_lancedb_reads_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb", reason="needs the extra lance")
    from iclkit.pool import _lance, _lance_vectors

    read, plain, stored = {"examples": 0, "vectors": 0}, _lance._example, _lance_vectors.LanceVectors._stored

    def example(row: Any) -> Example:
        read["examples"] += 1
        return plain(row)

    def vectors(self: Any, embedder: Any, texts: Any) -> Any:
        read["vectors"] += len(texts)
        return stored(self, embedder, texts)

    monkeypatch.setattr(_lance, "_example", example)
    monkeypatch.setattr(_lance_vectors.LanceVectors, "_stored", vectors)
    work = []
    for rows in (50, 200):
        with filled(rows, tmp_path / f"{rows}.lance") as pool, Pool.open(tmp_path / f"{rows}.lance") as other:
            kit = Kit(EMBEDDER)
            chooser = Chooser(make_selector("knn").fit(pool.view(), kit), pool.view(), kit, k=2, follow=True, pool=pool)
            read |= {"examples": 0, "vectors": 0}
            for change in (
                lambda other: other.add([Example("new", "x", id="n")]),
                lambda other: other.annotate(["e000003"], {"seen": True}),
                lambda other: other.remove(["e000005"]),
                lambda other: other.update("e000007", input="another text"),
            ):
                before = dict(read)
                change(other)
                read |= before  # what the change itself reads is another test's
                chooser.select("new")
                assert [*chooser.view.examples] == [*Pool.open(other.path).view().examples]
                read["examples"] -= len(chooser.view)
                expected = EMBEDDER.encode_documents([e.text for e in chooser.view.examples])
                np.testing.assert_array_equal(chooser.view.vectors(EMBEDDER), expected)
            work.append(dict(read))
    assert work[0] == work[1] == {"examples": 3, "vectors": 2}


@pytest.mark.parametrize("gone", [0, 1, 90])
def test_rows_and_texts_of_large_pools_are_read_many_at_a_time(
    gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite, "LARGE", 1)
    monkeypatch.setattr(_sqlite, "_ROWS_READ", 7)
    with filled(90, tmp_path / "demos.db") as pool:
        pool.remove([f"e{n:06}" for n in range(90)][-gone:] if gone else [])
    with Pool.open(tmp_path / "demos.db") as pool:
        view = pool.view()
        stored = pool._table.database.read("SELECT seq, text FROM examples ORDER BY seq")
        assert [*zip(view.rows.tolist(), view._texts.tolist(), strict=True)] == stored
        assert len(stored) == 90 - gone


def test_one_row_more_in_a_large_pool_in_lancedb_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb", reason="needs the extra lance")
    from iclkit.pool import _lance, _lance_vectors

    read, plain = [0], _lance.batches

    def counted(*asked: Any) -> Any:
        for batch in plain(*asked):
            read[0] += batch.num_rows
            yield batch

    for module in (_lance, _lance_vectors):
        monkeypatch.setattr(module, "batches", counted)
    monkeypatch.setattr(_lance, "LARGE", 1)
    monkeypatch.setattr(_lance_vectors, "HELD", 0)
    kit, work = Kit(EMBEDDER), []

    def nearest(pool: Pool, text: str = "new") -> tuple[str, ...]:
        return make_selector("knn").fit(pool.view(), kit).select(text, 5).ids

    changes: list[Callable[[Pool], object]] = [
        lambda pool: pool.add([Example("another", "x", id="a"), Example("text number 3", "y", id="same text")]),
        lambda pool: pool.annotate(["e000003"], {"seen": True}),
        lambda pool: pool.update("e000007", input="another text"),
        lambda pool: pool.remove(["e000005", "n"]),
        lambda pool: (pool.remove(["e000008"]), pool.add([Example("new again", "x", id="e000008")])),
        lambda pool: pool.dedupe(),
    ]
    for rows in (100, 400):
        with filled(rows, tmp_path / f"{rows}.lance") as pool, Pool.open(tmp_path / f"{rows}.lance") as other:
            nearest(pool)
            pool.add([Example("first", "x")])
            nearest(pool)
            read[0] = 0
            pool.add([Example("new", "x", id="n")])
            assert nearest(pool)[0] == "n"
            work.append(read[0])
            for number, change in enumerate(changes):
                change(other)
                if number % 2:  # then it is the other one that embeds what is new
                    nearest(other)
                view, fresh = pool.view(), Pool.open(other.path).view()
                assert (view.rows.tolist(), view._texts.tolist()) == (fresh.rows.tolist(), fresh._texts.tolist())
                flat = FlatIndex.of(fresh.vectors(EMBEDDER), fresh.rows)
                for text in ("new", "another text", "text number 3"):
                    (best,) = flat.nearest(EMBEDDER.encode_queries([text]), 5, [Scope()])
                    assert nearest(pool, text) == tuple(fresh.ids_at(best.rows))
    assert work[0] == work[1] <= 20


def test_a_pool_in_lancedb_that_was_taken_back_to_an_earlier_version_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lancedb = pytest.importorskip("lancedb", reason="needs the extra lance")
    from iclkit.pool import _lance

    monkeypatch.setattr(_lance, "LARGE", 1)
    with filled(50, tmp_path / "demos.lance") as pool:
        table = lancedb.connect(tmp_path / "demos.lance").open_table(_lance.EXAMPLES)
        before = pool.view()._texts.tolist()
        pool.update("e000007", input="another text")
        assert pool.view()._texts.tolist() != before
        table.restore(table.version)
        assert pool.view()._texts.tolist() == before
        pool.add([Example("new", "x")])
        assert pool.view()._texts.tolist()[:-1] == before
