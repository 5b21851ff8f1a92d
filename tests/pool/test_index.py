"""Search is exact, keyed by the query alone, and the index file is never trusted over the database."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError
from iclkit.pool import Pool, Scope
from iclkit.pool._index import MAX_OVERFETCH, FlatIndex
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


def test_a_filter_is_prepared_once_for_all_searches_and_again_after_rows_are_added() -> None:
    rng = np.random.default_rng(3)
    vectors, within = unit(rng.standard_normal((3000, 8))), np.arange(0, 2000)
    index, made = FlatIndex.of(vectors), []
    for _ in range(3):
        for n in range(4):
            index.nearest(vectors[n : n + 1], 3, [Scope(frozenset([n]), within)])
        made.append(index._space(within))
    assert made[0] is made[1] is made[2]
    for n in range(20):  # filters that come once push no other array's result in
        (near,) = index.nearest(vectors[:1], 1, [Scope(within=np.array([n * 7, n * 7 + 1]))])
        assert near.rows[0] in (n * 7, n * 7 + 1)
    index.add(np.array([5000]), vectors[:1])
    (near,) = index.nearest(vectors[:1], 2, [Scope(within=np.array([1, 5000]))])
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
    (file,) = path.parent.glob("*.faiss")
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


def test_the_index_file_is_read_and_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    assert file.name.startswith("demos.")
    before = file.read_bytes()
    answers(tmp_path / "demos.db", embedder)
    assert file.read_bytes() == before
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example("one more", "x")])
        read = []
        vectors = pool._reader.vectors
        stored = vectors._stored
        monkeypatch.setattr(vectors, "_stored", lambda e, t: read.append(len(t)) or stored(e, t))
        assert pool.view().vectors(embedder).shape == (31, 16)
        assert sum(read) <= 9  # a sample for the comparison, and the new row
    assert file.read_bytes() != before
    answers(tmp_path / "demos.db", embedder)


@pytest.mark.parametrize("harm", ["empty", "cut", "flipped", "text", "header", "other_pool"])
def test_a_harmed_index_file_is_built_again_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    embedder, file = pool_with_index(tmp_path / "demos.db")
    good = file.read_bytes()
    if harm == "other_pool":
        (tmp_path / "b").mkdir()
        _, other = pool_with_index(tmp_path / "b" / "demos.db", 20)
        file.write_bytes(other.read_bytes())
    else:
        first, _, body = good.split(b"\n", 2)
        file.write_bytes(
            {
                "empty": b"",
                "cut": good[: len(good) // 2],
                "flipped": good[:-100] + bytes([good[-100] ^ 1]) + good[-99:],
                "text": b"not an index at all",
                "header": b"\n".join([first, b'{"dim": 16}', body]),
            }[harm]
        )
    with caplog.at_level(logging.WARNING, logger="iclkit"):
        answers(tmp_path / "demos.db", embedder)
    assert file.read_bytes() == good
    if harm != "other_pool":
        assert "building it again" in caplog.text


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

    monkeypatch.setattr(FlatIndex, "save", full)
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
        assert index._bf16 is not None
        assert index._bf16[0].dtype == torch.bfloat16
        with monkeypatch.context() as patch:
            patch.setattr(_index, "BF16_MAX_CANDIDATES", 0)
            expected = FlatIndex.of(vectors).nearest(queries, 8, scopes)
        for n, (near, other) in enumerate(zip(found, expected, strict=True)):
            assert near.rows.tolist() == other.rows.tolist()
            assert near.scores.tobytes() == other.scores.tobytes()
            assert near.rows.tolist() == naive(vectors, queries[n], 8, masks[n])[0]
    index.add(np.arange(3000, 3005), -vectors[:5])
    (near,) = index.nearest(-vectors[:1], 1, [Scope()])
    assert spread == 0 or near.rows.tolist() == [3000]
    assert len(index._bf16_copy()[0]) == 3005
