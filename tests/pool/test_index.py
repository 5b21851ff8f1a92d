"""Search is exact, keyed by the query alone, and the index file is never trusted over the database."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError
from iclkit.pool import Pool, Scope, _vector_file, _vectors
from iclkit.pool._index import MAX_OVERFETCH, FlatIndex
from iclkit.pool._vector_file import VectorFile
from iclkit.records import Example
from iclkit.testing import HashEmbedder


def naive(vectors: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[list[int], list[float]]:
    scores = [round(float(np.dot(v.astype(np.float64), query.astype(np.float64))), 6) for v in vectors]
    rows = [r for r in range(len(vectors)) if allowed is None or allowed[r]]
    best = sorted(rows, key=lambda r: (-scores[r], r))[:k]
    return best, [scores[r] for r in best]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def spread(n: int) -> np.ndarray:
    """Row handles with holes: 3, 10, 17 ..."""
    return np.arange(3, 3 + 7 * n, 7, dtype=np.int64)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 6),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0.05, 0.5, 1.0]),
    st.sampled_from([None, 0.0, 0.1, 0.9, 1.0]),
)
def test_search_agrees_with_sorting_all_scores(
    n: int, q: int, k: int, seed: int, masked: float | None, part: float | None
) -> None:
    rng = np.random.default_rng(seed)
    # few distinct directions: many exact ties, also at the border of what is fetched
    directions = unit(rng.standard_normal((max(1, n // 6), 5)))
    vectors = directions[rng.integers(0, len(directions), n)].reshape(n, 5)
    queries = unit(rng.standard_normal((q, 5))).reshape(q, 5)
    rows = spread(n)
    inside = np.ones(n, dtype=np.bool_) if part is None else rng.random(n) < part
    masks = [inside if masked is None else inside & (rng.random(n) >= masked) for _ in range(q)]
    within = None if part is None else rows[inside]
    scopes = [Scope(frozenset([*rows[inside & ~m].tolist(), 4, 10**9]), within) for m in masks]  # 4: no row of it
    found = FlatIndex.of(vectors, rows).nearest(queries, k, scopes)
    assert len(found) == q
    for i, near in enumerate(found):
        expected_rows, expected_scores = naive(vectors, queries[i], k, masks[i])
        assert near.rows.tolist() == rows[expected_rows].tolist()
        np.testing.assert_array_equal(near.scores, np.float32(expected_scores))


@pytest.mark.parametrize("part", [1.0, 0.6, 0.4])
@pytest.mark.parametrize("excluded", [0, 1, MAX_OVERFETCH, MAX_OVERFETCH + 1, 1990, 1999, 2000])
def test_any_number_of_excluded_rows_is_honored(excluded: int, part: float) -> None:
    rng = np.random.default_rng(excluded)
    vectors, queries = unit(rng.standard_normal((2000, 16))), unit(rng.standard_normal((5, 16)))
    rows, inside = spread(2000), rng.random(2000) < part
    within = None if part == 1 else rows[inside]
    scopes, masks = [], []
    for query in queries:  # the nearest rows are the excluded ones
        out = np.argsort(-(vectors @ query))[:excluded]
        scopes.append(Scope(frozenset(rows[out].tolist()), within))
        masks.append(inside & ~np.isin(np.arange(2000), out))
    for query, mask, near in zip(queries, masks, FlatIndex.of(vectors, rows).nearest(queries, 10, scopes), strict=True):
        assert near.rows.tolist() == rows[naive(vectors, query, 10, mask)[0]].tolist()


def test_a_filter_is_prepared_once_for_all_searches_and_for_an_index_with_more_rows() -> None:
    rng = np.random.default_rng(3)
    vectors, within = unit(rng.standard_normal((3000, 8))), np.arange(0, 2000)
    index, made = FlatIndex.of(vectors), []
    for _ in range(3):
        for n in range(4):
            index.nearest(vectors[n : n + 1], 3, [Scope(frozenset([n]), within)])
        made.append(index.space(within))
    assert made[0] is made[1] is made[2]
    for n in range(20):  # filters that come once push no other array's result in
        (near,) = index.nearest(vectors[:1], 1, [Scope(within=np.array([n * 7, n * 7 + 1]))])
        assert near.rows[0] in (n * 7, n * 7 + 1)
    longer = index.extended(np.array([5000]), vectors[:1])
    (near,) = longer.nearest(vectors[:1], 2, [Scope(within=np.array([1, 5000]))])
    assert near.rows.tolist() == [5000, 1]


def test_a_thousand_ties_go_to_the_lower_rows() -> None:
    vectors = np.repeat(unit(np.array([[1.0, 0, 0], [0, 1, 0]])), 1000, axis=0)
    (near,) = FlatIndex.of(vectors).nearest(unit(np.array([[0.0, 1, 0]])), 7, [Scope()])
    assert near.rows.tolist() == list(range(1000, 1007))
    assert near.scores.tolist() == [1.0] * 7


def test_a_batch_gives_bit_for_bit_what_single_queries_give() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng.standard_normal((3000, 384))), unit(rng.standard_normal((100, 384)))
    index, within = FlatIndex.of(vectors), np.flatnonzero(rng.random(3000) < 0.3)
    for scope in (Scope(), Scope(frozenset([5, 7])), Scope(frozenset([5, 7]), within)):
        for n, near in enumerate(index.nearest(queries, 8, [scope] * 100)):
            (alone,) = index.nearest(queries[n : n + 1], 8, [scope])
            assert near.rows.tolist() == alone.rows.tolist()
            assert near.scores.tobytes() == alone.scores.tobytes()


def pool_with_index(path: Path, n: int = 30) -> tuple[HashEmbedder, Path]:
    embedder = HashEmbedder(16)
    with Pool.open(path) as pool:
        pool.add(Example(f"input number {i}", "x") for i in range(n))
        pool.embed(embedder)
    (file,) = path.parent.glob("*.vectors")
    return embedder, file


def answers(path: Path, embedder: HashEmbedder) -> None:
    """The view's vectors and search are what the database says."""
    with Pool.open(path) as pool:
        view = pool.view()
        expected = embedder.encode_documents([e.text for e in view.examples])
        np.testing.assert_array_equal(view.vectors(embedder), expected)
        queries = embedder.encode_queries(["input number 3", "number", "input"])
        for query, best in zip(queries, view.index(embedder).nearest(queries, 5, [Scope()] * 3), strict=True):
            assert view.positions(best.rows).tolist() == naive(expected, query, 5, None)[0]


def test_the_file_of_vectors_is_mapped_and_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db", 300)
    assert file.name.startswith("demos.")
    before, rows_before = file.read_bytes(), file.with_suffix(".rows").read_bytes()
    answers(tmp_path / "demos.db", embedder)
    assert (file.read_bytes(), file.with_suffix(".rows").read_bytes()) == (before, rows_before)
    for number in range(2):
        with Pool.open(tmp_path / "demos.db") as pool:
            pool.view().vectors(embedder)
            pool.add([Example(f"one more {number}", "x")])
            read = []
            vectors = pool._reader.vectors
            stored = vectors._stored
            monkeypatch.setattr(vectors, "_stored", lambda e, t, s=stored, r=read: r.append(len(t)) or s(e, t))
            assert pool.view().vectors(embedder).shape == (301 + number, 16)
            assert sum(read) <= 2 * _vectors._SAMPLE + 1  # for the comparison, and the new row
            (index,) = (kept.index for kept in vectors._kept.values())
            assert isinstance(index._matrix.base, np.memmap)
    assert file.read_bytes().startswith(before)
    assert len(file.read_bytes()) == len(before) + 2 * 4 * 16
    answers(tmp_path / "demos.db", embedder)


HARM: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda vectors, rows: vectors.write_bytes(b""),
    "cut": lambda vectors, rows: vectors.write_bytes(vectors.read_bytes()[:-3]),
    "flipped": lambda vectors, rows: vectors.write_bytes(b"x" + vectors.read_bytes()[1:]),
    "rows empty": lambda vectors, rows: rows.write_bytes(b""),
    "rows cut": lambda vectors, rows: rows.write_bytes(rows.read_bytes()[:-3]),
    "rows flipped": lambda vectors, rows: rows.write_bytes(rows.read_bytes()[:-9] + b"xxxxxxxxx"),
    "text": lambda vectors, rows: rows.write_text("not an index at all\n"),
    "another version": lambda vectors, rows: rows.write_bytes(b"iclkit vectors 9\n" + rows.read_bytes()[17:]),
    "header": lambda vectors, rows: rows.write_bytes(_vector_file.MAGIC + b'{"dim": 16}' + rows.read_bytes()[28:]),
}


@pytest.mark.parametrize("harm", HARM)
def test_harmed_files_are_made_again_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    good = file.read_bytes()
    HARM[harm](file, file.with_suffix(".rows"))
    with caplog.at_level(logging.WARNING, logger="iclkit"):
        answers(tmp_path / "demos.db", embedder)
    (record,) = caplog.records
    assert "building it again" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert file.read_bytes() == good
    caplog.clear()
    answers(tmp_path / "demos.db", embedder)
    assert not caplog.records


def test_files_of_another_pool_are_not_used(tmp_path: Path) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    (tmp_path / "b").mkdir()
    _, other = pool_with_index(tmp_path / "b" / "demos.db", 20)
    for suffix in (".vectors", ".rows"):
        shutil.copy(other.with_suffix(suffix), file.with_suffix(suffix))
    answers(tmp_path / "demos.db", embedder)


def test_files_that_were_copied_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    os.utime(file, ns=(1, 1))
    looked = []
    plain = _vector_file._checksum
    monkeypatch.setattr(_vector_file, "_checksum", lambda v, crc=0: looked.append(len(v)) or plain(v, crc))
    for _ in range(3):
        answers(tmp_path / "demos.db", embedder)
    assert looked == [30]


def test_what_a_kill_left_behind_the_rows_that_count_is_written_over(tmp_path: Path) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    for name in (file, file.with_suffix(".rows")):
        name.write_bytes(name.read_bytes() + b"half a row")
    answers(tmp_path / "demos.db", embedder)
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example("one more", "x")])
    answers(tmp_path / "demos.db", embedder)
    assert file.stat().st_size == 31 * 16 * 4
    answers(tmp_path / "demos.db", embedder)


def test_two_processes_may_append(tmp_path: Path) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    with Pool.open(tmp_path / "demos.db") as one, Pool.open(tmp_path / "demos.db") as two:
        for number, pool in enumerate((one, two, two, one, one)):
            pool.add([Example(f"one more {number}", "x")])
            view = pool.view()
            expected = embedder.encode_documents([e.text for e in view.examples])
            np.testing.assert_array_equal(view.vectors(embedder), expected)
    assert file.stat().st_size == 35 * 16 * 4
    answers(tmp_path / "demos.db", embedder)


def test_a_pool_that_was_restored_from_a_copy_and_went_on_does_not_meet_its_later_vectors(tmp_path: Path) -> None:
    path, copy = tmp_path / "demos.db", tmp_path / "copy.db"
    pool_with_index(path)
    shutil.copy(path, copy)
    with Pool.open(path) as pool:
        pool.add(Example(f"lost {n}", "x") for n in range(20))
        pool.embed(HashEmbedder(16))
    shutil.copy(copy, path)
    with Pool.open(path) as pool:
        pool.add(Example(f"other {n}", "x") for n in range(20))
    answers(path, HashEmbedder(16))


CHANGE = st.tuples(
    st.sampled_from(["add", "remove", "update", "reopen", "read only"]), st.lists(st.integers(0, 30), max_size=9)
)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(CHANGE, min_size=1, max_size=8), in_memory=st.booleans())
def test_after_any_changes_search_is_what_the_pool_says(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, list[int]]], in_memory: bool
) -> None:
    path = ":memory:" if in_memory else tmp_path_factory.mktemp("pool") / "demos.db"
    embedder, pool, old = HashEmbedder(8), Pool.open(path), []
    for change, numbers in changes:
        ids = pool.ids
        chosen = list(dict.fromkeys(ids[n % len(ids)] for n in numbers)) if ids else []
        if change == "add":
            pool.add(Example(f"text {n} and {n * n}", "x") for n in numbers)
        elif change == "remove":
            pool.remove(chosen)
        elif change == "update":
            for example_id in chosen[:2]:
                pool.update(example_id, input=f"changed {example_id}")
        elif not in_memory:
            pool.close()
            pool = Pool.open(path)
        reader = Pool.open(path, read_only=True) if change == "read only" and not in_memory else pool
        old.append(reader.view())
        old[-1].index(embedder)
    for view in old:  # an earlier view still is what it was
        expected = embedder.encode_documents([e.text for e in view.examples]).reshape(-1, 8)
        np.testing.assert_array_equal(view.vectors(embedder), expected)
        queries = embedder.encode_queries(["text 3", "changed"])
        excluded = frozenset(view.rows[::3].tolist())
        mask = np.arange(len(view)) % 3 != 0
        for scope, allowed in ((Scope(), None), (Scope(excluded), mask), (Scope(within=view.rows[mask]), mask)):
            for query, best in zip(queries, view.index(embedder).nearest(queries, 4, [scope] * 2), strict=True):
                assert view.positions(best.rows).tolist() == naive(expected, query, 4, allowed)[0]


def test_removing_some_rows_writes_no_vectors_and_removing_many_drops_them(tmp_path: Path) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db", 100)
    sizes = []
    with Pool.open(tmp_path / "demos.db") as pool:
        for _ in range(3):
            pool.remove(pool.ids[5:20])
            assert len(pool.view().vectors(embedder)) == len(pool)
            sizes.append(file.stat().st_size // 64)
    assert sizes == [100, 70, 70]
    answers(tmp_path / "demos.db", embedder)


def test_a_row_that_was_removed_has_no_vector(tmp_path: Path) -> None:
    embedder, _ = pool_with_index(tmp_path / "demos.db")
    with Pool.open(tmp_path / "demos.db") as pool:
        gone = pool.view().rows[3]
        pool.remove([pool.ids[3]])
        with pytest.raises(DataError, match=f"row {gone} is not in this view"):
            pool.view().index(embedder).vectors(np.array([gone]))


def test_vectors_changed_in_the_database_win_over_the_index_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    embedder, _ = pool_with_index(tmp_path / "demos.db", 6)
    other = np.zeros(16, "<f4")
    other[0] = 1
    with sqlite3.connect(tmp_path / "demos.db") as raw:
        raw.execute("UPDATE vectors SET vector = ?", (other.tobytes(),))
    with caplog.at_level(logging.WARNING, logger="iclkit"), Pool.open(tmp_path / "demos.db") as pool:
        assert (pool.view().vectors(embedder) == other).all()
    assert "does not agree with the pool" in caplog.text


def test_removed_rows_leave_the_index(tmp_path: Path) -> None:
    embedder, _ = pool_with_index(tmp_path / "demos.db")
    with Pool.open(tmp_path / "demos.db") as pool:
        gone = pool.ids[3]
        pool.remove([gone])
        view = pool.view()
        (best,) = view.index(embedder).nearest(embedder.encode_queries(["input number 3"]), 29, [Scope()])
        assert len(best) == 29
        assert gone not in view.ids_at(best.rows)
    answers(tmp_path / "demos.db", embedder)


def test_a_part_of_the_pool_is_searched_alone() -> None:
    embedder = HashEmbedder(16)
    with Pool.of(Example(f"input number {i}", "x", meta={"half": i % 2}) for i in range(40)) as pool:
        view = pool.view(where={"half": 1})
        vectors = embedder.encode_documents([e.text for e in view.examples])
        query = embedder.encode_queries(["input number 4"])
        (best,) = view.index(embedder).nearest(query, 5, [Scope()])
        assert view.positions(best.rows).tolist() == naive(vectors, query[0], 5, None)[0]
        assert all(e.meta["half"] == 1 for e in view.examples_at(best.rows))


def test_vectors_are_read_only_and_outlive_pool_and_view() -> None:
    embedder = HashEmbedder(16)
    with Pool.of([Example("a", "x"), Example("b", "y")]) as pool:
        vectors = pool.view().vectors(embedder)
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1
    del pool
    np.testing.assert_array_equal(vectors, embedder.encode_documents(["a", "b"]))


def test_shapes_that_do_not_fit_are_named() -> None:
    embedder = HashEmbedder(16)
    with Pool.of([Example("a", "x")]) as pool:
        view, query = pool.view(), embedder.encode_queries(["a"])
        with pytest.raises(DataError, match=r"shape \(1, 15\)"):
            view.index(embedder).nearest(query[:, :-1], 1, [Scope()])
        with pytest.raises(DataError, match="one scope per query"):
            view.index(embedder).nearest(query, 1, [Scope(), Scope()])
        assert len(pool.view(task="none").index(embedder).nearest(query, 3, [Scope()])[0]) == 0


def test_an_index_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VectorFile, "write", full)
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([Example("a", "x")])
        assert pool.view().vectors(HashEmbedder(16)).shape == (1, 16)
    assert "could not write" in caplog.text


@pytest.mark.parametrize("spread", [1.0, 0.01, 0.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rough_first_looks_change_nothing(spread: float, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from iclkit.pool import _index

    monkeypatch.setattr(_index, "supports_bf16", lambda _: True)  # exact anywhere, fast where the hardware has it
    rng = np.random.default_rng(1)
    vectors = unit(rng.standard_normal(32) + spread * rng.standard_normal((3000, 32))) * np.float32(scale)
    queries = unit(rng.standard_normal((40, 32))) * np.float32(scale)
    allowed = [rng.random(3000) > 0.03 for _ in queries]
    index = FlatIndex.of(vectors)
    for masks in ([np.ones(3000, dtype=np.bool_)] * 40, allowed):
        scopes = [Scope(frozenset(np.flatnonzero(~mask).tolist())) for mask in masks]
        found = index.nearest(queries, 8, scopes)
        assert index._rough._rows.dtype == torch.bfloat16
        with monkeypatch.context() as patch:
            patch.setattr(_index, "BF16_MAX_CANDIDATES", 0)
            expected = FlatIndex.of(vectors).nearest(queries, 8, scopes)
        for n, (near, other) in enumerate(zip(found, expected, strict=True)):
            assert near.rows.tolist() == other.rows.tolist()
            assert near.scores.tobytes() == other.scores.tobytes()
            assert near.rows.tolist() == naive(vectors, queries[n], 8, masks[n])[0]
    rounded = []
    plain = torch.Tensor.bfloat16
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: rounded.append(len(x)) or plain(x))
    longer = index.extended(np.arange(3000, 3005), -vectors[:5])
    (near,) = longer.nearest(-vectors[:1], 1, [Scope()])
    assert spread == 0 or near.rows.tolist() == [3000]
    assert rounded == [5, 1]  # the copy is extended, and a query rounded
    (near,) = index.nearest(-vectors[:1], 1, [Scope()])
    assert near.rows[0] < 3000
    other = index.extended(np.arange(3000, 3005), -vectors[5:10])
    (near,) = other.nearest(-vectors[5:6], 1, [Scope()])
    assert spread == 0 or near.rows.tolist() == [3000]
