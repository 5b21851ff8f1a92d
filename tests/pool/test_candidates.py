"""Candidates: what exclusions, filters and provenance leave, by handles that have holes; picks as by masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, UsageError
from iclkit.pool import Pool, PoolView
from iclkit.records import Example, Query
from iclkit.testing import HashEmbedder

EMBEDDER = HashEmbedder(8)
WORDS = ["red", "green", "blue", "fish", "bird", "cat"]


def holed(texts: Sequence[str], spare: int = 6) -> PoolView:
    """A view whose handles are 1, 1 + spare + 1 ...: between any two examples some were removed."""
    pool = Pool.open(":memory:")
    for number, text in enumerate(texts):
        kept = Example(text, "xy"[number % 2], meta={"n": number, "third": number % 3}, id=f"e{number}")
        gone = [Example("gone", "z", id=f"gone {number} {m}") for m in range(spare)]
        pool.add([kept, *gone])
        pool.remove([e.id for e in gone])
    return pool.view()


def test_handles_have_holes_and_lead_to_their_examples() -> None:
    view = holed(["a b", "c d", "e f"])
    assert view.rows.tolist() == [1, 8, 15]
    assert view.row_of("e1") == 8
    assert view.row_of("gone 1 2") is None
    assert view.ids_at(np.array([15, 1])) == ["e2", "e0"]
    assert [e.text for e in view.examples_at(np.array([8, 8]))] == ["c d", "c d"]
    assert view.outputs(np.array([15, 8])) == ["x", "y"]
    with pytest.raises(DataError, match="row 2 is not in this view"):
        view.examples_at(np.array([1, 2]))
    part = view.only(np.array([15, 1]))
    assert part.rows.tolist() == [1, 15]
    assert part.row_of("e1") is None


def test_handles_outlive_changes_of_the_pool_and_are_never_used_again() -> None:
    with Pool.of(Example(f"text {n}", "x") for n in range(4)) as pool:
        before = {e.id: pool.view().row_of(e.id) for e in pool}
        pool.remove([pool.ids[0], pool.ids[3]])
        pool.add([Example("new", "x")])
        after = {e.id: pool.view().row_of(e.id) for e in pool}
        assert all(before.get(i, row) == row for i, row in after.items())
        assert after[pool.ids[-1]] not in before.values()


def test_examples_of_ids_come_in_their_order_and_a_miss_is_named() -> None:
    view = holed(["a", "b", "c"])
    assert [e.text for e in view.examples_of(["e2", "e0"])] == ["c", "a"]
    with pytest.raises(DataError, match="'e9' is not in this view"):
        view.examples_of(["e0", "e9"])


def by_mask(view: PoolView, query: Query, k: int, allowed: np.ndarray) -> tuple[list[int], list[float]]:
    """All cosines, the excluded struck out, sorted: the way of selectors that got masks."""
    vectors = view.vectors(EMBEDDER).astype(np.float64)
    (asked,) = EMBEDDER.encode_queries([query.text]).astype(np.float64)
    scores = np.round((vectors * asked).sum(1), 6)
    order = [p for p in np.lexsort((np.arange(len(view)), -scores)) if allowed[p]][:k]
    return view.rows[order].tolist(), [float(np.float32(scores[p])) for p in order]


texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join), min_size=0, max_size=14)


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(0, 6), st.integers(0, 16), st.data())
def test_the_nearest_are_those_that_a_mask_leaves(given_: list[str], spare: int, k: int, data: st.DataObject) -> None:
    view = holed(given_, spare)
    ids = [*view.ids, "unknown"]
    queries = []
    for number, text in enumerate(["red fish", "blue", "cat bird"]):
        out = frozenset(data.draw(st.sets(st.sampled_from(ids)), label="excluded"))
        where = data.draw(st.sampled_from([{}, {"third": 1}, {"third": "1"}, {"none": 0}]), label="where")
        queries.append(Query(text, exclude=out, id=str(number), where=where))
    narrow = np.array(data.draw(st.lists(st.sampled_from([*view.rows.tolist(), 0])), label="within"), dtype=np.int64)
    batch = view.candidates(queries, EMBEDDER, whole_pool=True)
    assert len(batch) == 3
    for query, own, near in zip(queries, batch, batch.nearest(k), strict=True):
        allowed = np.array(
            [
                e.id not in query.exclude
                and all(name in e.meta and str(e.meta[name]) == str(v) for name, v in query.where.items())
                for e in view.examples
            ],
            dtype=np.bool_,
        )
        assert own.query is query
        assert len(own) == allowed.sum()
        assert own.rows().tolist() == view.rows[allowed].tolist()
        assert own.allowed(view.rows).tolist() == allowed.tolist()
        rows, scores = by_mask(view, query, k, allowed)
        assert (near.rows.tolist(), near.scores.tolist()) == (rows, scores)
        alone = own.nearest(k)
        assert (alone.rows.tolist(), alone.scores.tolist()) == (rows, scores)
        assert own.outputs(near.rows) == [e.output for e in own.examples(near.rows)]
        vectors = EMBEDDER.encode_documents([e.text for e in own.examples(near.rows)]).reshape(len(near), 8)
        np.testing.assert_array_equal(own.vectors(near.rows), vectors)
        part = own.within(narrow)
        inside = allowed & np.isin(view.rows, narrow)
        assert len(part) == inside.sum()
        assert part.rows().tolist() == view.rows[inside].tolist()
        assert part.nearest(k).rows.tolist() == by_mask(view, query, k, inside)[0]
        assert part.within(view.rows).rows().tolist() == part.rows().tolist()


def test_a_part_of_a_view_has_candidates_of_its_own() -> None:
    view = holed([f"red {n}" for n in range(9)])
    part = view.only(view.matching({"third": 2}))
    (own,) = part.candidates([Query("red 5", exclude=frozenset(["e2", "e3"]))], EMBEDDER)
    assert len(own) == 2
    assert {*own.nearest(9).rows.tolist()} == {view.row_of("e5"), view.row_of("e8")}
    with pytest.raises(DataError, match="is not in this view"):
        own.vectors(view.rows[:1])


def test_all_rows_are_for_selectors_that_declare_it_and_vectors_too() -> None:
    view = holed(["a", "b"])
    (own,) = view.candidates([Query("a")])
    with pytest.raises(UsageError, match="whole_pool=True"):
        own.rows()
    with pytest.raises(UsageError, match="embedder=True"):
        own.nearest(1)
    assert own.allowed(view.rows).all()


def test_queries_are_encoded_once_and_only_when_vectors_are_asked_for() -> None:
    class Counting(HashEmbedder):
        calls = 0

        def encode_queries(self, texts, progress=None):
            Counting.calls += 1
            return super().encode_queries(texts, progress)

    batch = holed(["a", "b"]).candidates([Query("a"), Query("b")], Counting(8))
    assert [len(own) for own in batch] == [2, 2]
    assert Counting.calls == 0
    batch.nearest(1)
    batch[1].nearest(2)
    assert Counting.calls == 1


def test_threads_that_search_one_view_encode_at_the_same_time() -> None:
    both = Barrier(2, timeout=20)  # passed only by two calls that are under way together

    class Meeting(HashEmbedder):
        def encode_queries(self, texts, progress=None):
            both.wait()
            return super().encode_queries(texts, progress)

    view, embedder = holed(["red", "blue"]), Meeting(8)
    view.index(embedder)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(lambda t: view.candidates([Query(t)], embedder).nearest(1), t) for t in ("red", "blue")]
        found = [view.ids_at(job.result(30)[0].rows) for job in asked]
    assert found == [["e0"], ["e1"]]


def test_a_filter_and_an_index_of_it_are_made_once_per_view() -> None:
    view = holed([f"red {n}" for n in range(6)])
    first, second, other = (
        own.scope.within
        for own in view.candidates([Query("a", where={"third": 1}), Query("b", where={"third": 1}), Query("c")])
    )
    assert first is second
    assert other is None


def trace(source: Example, text: str, **meta: object) -> Example:
    return Example(source.input, text, meta={"generated": "bootstrap", "generated_from": [source.id], **meta})


def test_one_of_a_family_is_shown_the_first_trace() -> None:
    plain, other = Example("two plus two", "4"), Example("three plus one", "4")
    traces = [trace(plain, "2 and 2 are 4"), trace(plain, "twice 2 is 4")]
    with Pool.of([plain, other, *traces]) as pool:
        view = pool.view()
        (own,) = view.candidates([Query("two plus two")], EMBEDDER, whole_pool=True)
        assert view.ids_at(own.rows()) == [other.id, traces[0].id]
        assert view.ids_at(own.nearest(4).rows)[0] == traces[0].id
        assert len(own) == 2
        for member in (plain, *traces):  # none of a family is shown to a query that must not see one of it
            (own,) = view.candidates([Query("two plus two", exclude=frozenset([member.id]))], whole_pool=True)
            assert view.ids_at(own.rows()) == [other.id]


def test_examples_made_from_several_or_from_what_is_not_here_have_no_family() -> None:
    plain, other = Example("two plus two", "4"), Example("three plus one", "4")
    made = [
        Example("one plus three", "4", meta={"generated_from": [plain.id, other.id]}),
        Example("nine less five", "4", meta={"generated_from": [plain.id]}),
        Example("two plus two", "four", meta={"generated_from": ["0" * 32]}),
    ]
    with Pool.of([plain, other, *made]) as pool:
        (own,) = pool.view().candidates([Query("q")], whole_pool=True)
        assert len(own.rows()) == 5


def test_a_trace_of_a_trace_belongs_to_the_same_family() -> None:
    plain = Example("two plus two", "4")
    first = trace(plain, "2 and 2 are 4")
    second = trace(first, "4, since 2 and 2 are 4")
    with Pool.of([second, plain, first]) as pool:
        (own,) = pool.view().candidates([Query("q")], whole_pool=True)
        assert pool.view().ids_at(own.rows()) == [second.id]
