"""Approximate search looks at part of the pool, and is otherwise as exact search: scores, scopes, changes, damage."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import Task
from iclkit.errors import DataError, PoolError, UsageError
from iclkit.eval import evaluate, make_bench
from iclkit.pool import ApproximateIndex, Pool, Scope, _lists
from iclkit.pool._index import FlatIndex, faiss_module
from iclkit.pool._lists import ListIndex, Lists
from iclkit.predictors import Settings, TaskContext, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Example, Query, Run
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder

EMBEDDER = HashEmbedder(16)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(rows: int, dim: int = 16, seed: int = 0, spread: float = 0.4) -> np.ndarray:
    """About one center for every twenty rows."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(5).standard_normal((max(4, rows // 20), dim))
    return unit(centers[rng.integers(0, len(centers), rows)] + spread * rng.standard_normal((rows, dim)))


def index_of(vectors: np.ndarray, lists: int | None = None, recall: float = 0.99) -> ListIndex:
    exact = FlatIndex.of(vectors, np.arange(3, 3 + 7 * len(vectors), 7, dtype=np.int64))
    return ListIndex.of(exact, Lists.build(exact, np.arange(len(vectors)), "table", recall, lists, 0))


def examples(first: int, last: int) -> list[Example]:
    return [
        Example(f"ticket {n % 23} about {n % 7} parcel {n}", "xy"[n % 2], meta={"half": n % 2})
        for n in range(first, last)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pool of 400 with an approximate index."""
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(examples(0, 400))
        pool.build_index(EMBEDDER, lists=20)
    return tmp_path / "demos.db"


def file_of(path: Path) -> Path:
    (file,) = path.parent.glob("*.lists")
    return file


# ---- search


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.integers(1, 20),
    st.sampled_from([None, 0.1, 0.7]),
    st.sampled_from([0.0, 0.05, 0.6]),
    st.sampled_from([0.0, 0.3]),
)
def test_what_is_found_may_be_found_and_has_its_exact_score(
    seed: int, k: int, probes: int, part: float | None, masked: float, dead: float
) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = clustered(600, seed=1), clustered(4, seed=seed)
    index = shared_index()
    gone = np.flatnonzero(rng.random(600) < dead)
    index = index.extended(index.exact.without(gone))
    handles = index.exact.handles
    within = None if part is None else handles[rng.random(600) < part]
    scopes = [Scope(frozenset(handles[rng.random(600) < masked].tolist()), within) for _ in queries]
    found = index.search(queries, k, scopes, probes)
    exact = index.exact.nearest(queries, k, scopes)
    for query, scope, near, best in zip(queries, scopes, found, exact, strict=True):
        allowed = scope.allowed(near.rows)
        assert allowed.all()
        assert not {*near.rows.tolist()} & {*handles[gone].tolist()}
        scores = np.round(vectors[(near.rows - 3) // 7].astype(np.float64) @ query.astype(np.float64), 6)
        np.testing.assert_array_equal(near.scores, scores.astype(np.float32))
        order = np.lexsort((near.rows, -near.scores))
        assert order.tolist() == [*range(len(near))]
        assert len(near) == len(best)  # never fewer than exact search finds
        if part == 0.1 or probes >= 20:
            assert near.rows.tolist() == best.rows.tolist()


_SHARED: list[ListIndex] = []


def shared_index() -> ListIndex:
    if not _SHARED:
        _SHARED.append(index_of(clustered(600, seed=1), lists=20))
    return _SHARED[0]


def test_what_a_query_finds_depends_neither_on_others_nor_on_threads() -> None:
    index, queries = shared_index(), clustered(40, seed=9)
    scopes = [Scope(frozenset({3 + 7 * n})) for n in range(40)]
    faiss, found = faiss_module(), []
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            found.append([r.rows.tolist() for r in index.nearest(queries, 9, scopes)])
            found.append([index.nearest(queries[n : n + 1], 9, scopes[n : n + 1])[0].rows.tolist() for n in range(40)])
    finally:
        faiss.omp_set_num_threads(threads)
    assert all(f == found[0] for f in found)


def test_the_same_rows_give_the_same_centers_on_any_number_of_threads_which_is_left_as_it_was() -> None:
    faiss, made = faiss_module(), []
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            made.append(_lists._centers(clustered(300), 8, 0))
            assert faiss.omp_get_max_threads() == count
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(*made)


def test_as_few_lists_are_looked_at_as_the_recall_takes_and_it_is_what_was_measured() -> None:
    vectors = clustered(600, spread=0.8)
    infos = [index_of(vectors, recall=recall).info for recall in (0.5, 0.9, 1.0)]
    probes = [info.levels[0].probes for info in infos]
    assert probes[0] < probes[1] < probes[2]
    for info, wanted in zip(infos, (0.5, 0.9, 1.0), strict=True):
        assert all(level.recall >= wanted for level in info.levels)
    index = index_of(vectors, recall=0.9)
    queries, scopes = vectors, [Scope(frozenset({3 + 7 * n})) for n in range(600)]
    exact, found = index.exact.nearest(queries, 10, scopes), index.nearest(queries, 10, scopes)
    recall = np.mean([len({*e.rows.tolist()} & {*f.rows.tolist()}) / 10 for e, f in zip(exact, found, strict=True)])
    assert abs(recall - index.info.levels[0].recall) < 0.04


def test_vectors_without_structure_are_looked_at_as_far_as_the_recall_takes() -> None:
    index = index_of(unit(np.random.default_rng(0).standard_normal((600, 64))))
    assert index.info.probes_share > 0.5
    assert index.info.levels[0].recall >= 0.99


def test_four_times_the_rows_need_at_most_twice_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    for rows in (1000, 4000):
        index, count = index_of(clustered(rows)), []
        plain = ListIndex._best
        monkeypatch.setattr(ListIndex, "_best", lambda s, q, r, k, p=plain, c=count: c.append(len(r)) or p(s, q, r, k))
        index.search(clustered(20, seed=3), 8, [Scope()] * 20, 2)
        monkeypatch.setattr(ListIndex, "_best", plain)
        looks.append(sum(count))
    assert looks[1] <= 2.4 * looks[0]


# ---- beside a pool


def knn(pool: Pool, *texts: str, k: int = 5) -> list[tuple[str, ...]]:
    return [
        s.ids for s in make_selector("knn").fit(pool.view(), Kit(EMBEDDER)).select_many([Query(t) for t in texts], k)
    ]


def test_a_selection_says_that_search_was_approximate_and_one_by_words_does_not(path: Path) -> None:
    with Pool.open(path) as pool:
        for name in ("knn", "mmr", "rrf"):
            chosen = make_selector(name).fit(pool.view(), Kit(EMBEDDER)).select("ticket 3 about 2", 4)
            assert any("recall@10" in note and "of 20 lists" in note for note in chosen.notes), name
        assert make_selector("bm25").fit(pool.view()).select("ticket 3", 4).notes == ()
        assert pool.drop_index(EMBEDDER)
        assert not pool.drop_index(EMBEDDER)
        assert make_selector("knn").fit(pool.view(), Kit(EMBEDDER)).select("ticket 3", 4).notes == ()


def test_what_is_added_is_found_and_what_is_removed_is_not(path: Path) -> None:
    with Pool.open(path) as pool:
        for number in range(3):
            pool.add([Example(f"a wholly new matter {number}", "x")])
            new = pool.ids[-1]
            assert knn(pool, f"a wholly new matter {number}", k=1) == [(new,)]
        with Pool.open(path, read_only=True) as again:
            assert knn(again, "a wholly new matter 2", k=1) == [(new,)]
        pool.remove([new])
        assert new not in knn(pool, "a wholly new matter 2", k=9)[0]
        pool.remove(pool.ids[:150])  # vectors are written anew without those that are gone
        left = knn(pool, "ticket 3 about 2 parcel 26", "a wholly new matter 1", k=8)
        assert {*left[0], *left[1]} <= {*pool.ids}
        assert left[1][0] == pool.ids[-1]
    with Pool.open(path) as pool:
        assert knn(pool, "ticket 3 about 2 parcel 26", "a wholly new matter 1", k=8) == left


def test_rows_are_sorted_in_once_and_the_file_is_written_when_it_lacks_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lists, "_TAIL", 8)
    sorted_in: list[int] = []
    plain = _lists.assign
    monkeypatch.setattr(_lists, "assign", lambda c, v: sorted_in.append(len(v)) or plain(c, v))
    with Pool.open(path) as pool:
        before, writes = file_of(path).read_bytes(), 0
        for number in range(20):
            pool.add(examples(400 + number, 401 + number))
            knn(pool, "ticket 3")
            writes += file_of(path).read_bytes() != before
            before = file_of(path).read_bytes()
    assert sorted_in[1:] == [1] * 20
    assert writes == 2
    sorted_in.clear()
    with Pool.open(path) as pool:
        knn(pool, "ticket 3")
    assert sorted_in[1:] == [2]


def test_rows_of_a_pool_that_was_restored_and_went_on_are_sorted_anew(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    with Pool.open(path) as pool:
        pool.add(examples(400, 420))
        pool.build_index(EMBEDDER, lists=20)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.copy(copy, path)
    with Pool.open(path) as pool:
        pool.add(Example(f"a wholly other matter {n}", "x") for n in range(20))
        index = pool.view().index(EMBEDDER)
    assert isinstance(index, ListIndex)
    new = index.vectors(index.rows[-20:])
    assert all(near.scores[0] == 1 for near in index.search(new, 1, [Scope()] * 20, 1))


def damaged(content: bytes) -> Iterator[tuple[bytes, str]]:
    yield content[:-5], "is damaged"
    yield content[:3000] + bytes([content[3000] ^ 1]) + content[3001:], "is damaged"
    yield b"nothing", "is damaged"
    yield b"", "is damaged"
    yield content.replace(b"lists 1\n", b"lists 2\n", 1), "was written by another version of iclkit"
    yield re.sub(rb'"key": "[0-9a-f]', b'"key": "z', content, count=1), "belongs to another pool or embedder"


@pytest.mark.parametrize("case", range(6))
def test_an_index_that_cannot_be_used_is_refused_in_one_line_with_two_remedies(path: Path, case: int) -> None:
    with Pool.open(path) as pool:
        picks = knn(pool, "ticket 3 about 2")
    file = file_of(path)
    content, message = [*damaged(file.read_bytes())][case]
    file.write_bytes(content)
    with Pool.open(path) as pool:
        with pytest.raises(PoolError, match=re.escape(f"{file} {message}; make it again: iclkit pool index")) as error:
            knn(pool, "ticket 3 about 2")
        assert "\n" not in str(error.value)
        pool.build_index(EMBEDDER, lists=20)
        assert knn(pool, "ticket 3 about 2") == picks
        file.write_bytes(content)
        assert pool.drop_index(EMBEDDER)
        assert len(knn(pool, "ticket 3 about 2")[0]) == 5


def test_what_cannot_have_an_index_is_named(path: Path, tmp_path: Path) -> None:
    with Pool.of(examples(0, 300)) as pool, pytest.raises(PoolError, match="this pool is in memory"):
        pool.build_index(EMBEDDER)
    with Pool.open(path, read_only=True) as pool, pytest.raises(PoolError, match="for reading only"):
        pool.build_index(EMBEDDER)
    with Pool.open(tmp_path / "few.db") as pool:
        pool.add(examples(0, 20))
        with pytest.raises(DataError, match="20 rows are searched exactly at once"):
            pool.build_index(EMBEDDER)
    with Pool.open(path) as pool:
        for wrong in ({"recall": 0.0}, {"recall": 1.1}, {"lists": 1}, {"lists": 401}):
            with pytest.raises(UsageError, match=next(iter(wrong))):
                pool.build_index(EMBEDDER, **wrong)


def test_a_part_of_the_pool_is_searched_exactly_and_a_filter_of_a_query_is_kept(path: Path) -> None:
    with Pool.open(path) as pool:
        part = pool.view(where={"half": 1})
        assert part.approximate(EMBEDDER) is None
        query = Query("ticket 3 about 2", where={"half": 1})
        fitted = make_selector("knn").fit(pool.view(), Kit(EMBEDDER))
        assert all(e.meta["half"] == 1 for e in fitted.select(query, 6).examples)


def test_a_run_records_which_index_it_used_and_its_recall_and_an_exact_run_is_as_it_was(
    path: Path, tmp_path: Path
) -> None:
    def run() -> Run:
        with Pool.open(path) as pool:
            task = Task("t", "classification", (), tuple(examples(500, 503)), Template(), labels=("x", "y"))
            bench = make_bench(task, pool.view())
            predictor = make_predictor("knn", Tools(lm=FakeLM(), embedder=EMBEDDER), Settings(k=2))
            return evaluate(bench, predictor, out=tmp_path / "runs")

    approximate = run()
    assert approximate.spec.parts["index"]["k, lists, recall"][0][0] == 10
    assert run().id == approximate.id
    with Pool.open(path) as pool:
        pool.drop_index(EMBEDDER)
    exact = run()
    assert "index" not in exact.spec.parts
    assert exact.id != approximate.id


def test_the_parts_of_a_prompt_name_the_index(path: Path) -> None:
    def parts() -> dict:
        with Pool.open(path) as pool:
            context = TaskContext("", "classification", ("x", "y"), Template(), pool.view())
            return {
                name: dict(Tools(embedder=EMBEDDER).identities(make_selector(name).needs, context))
                for name in ("knn", "bm25")
            }

    found = parts()
    index = found["knn"]["index"]
    assert index["kind"] == "ivf"
    assert index["lists"] == 20
    assert index["k, lists, recall"][0][0] == 10
    assert json.loads(json.dumps(index)) == index
    assert "index" not in found["bm25"]
    with Pool.open(path) as pool:
        pool.add(examples(400, 401))
    assert parts()["knn"]["index"] == index
    with Pool.open(path) as pool:
        pool.drop_index(EMBEDDER)
    assert "index" not in parts()["knn"]


def test_the_statistics_of_a_pool_tell_its_indexes(path: Path) -> None:
    with Pool.open(path) as pool:
        (text,) = pool.stats().indexes.values()
        assert "recall@10" in text
        assert isinstance(pool.view().approximate(EMBEDDER), ApproximateIndex)
