from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import NeedError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._coverage import coverage_order, token_recall
from iclkit.testing import HashEmbedder, TableEmbedder


def value(cover, rows):
    return float(cover[list(rows)].max(axis=0).sum()) if len(rows) else 0.0


def grid(seed, n, t, low=0):
    return np.random.default_rng(seed).integers(low, 5, (n, t)) / 4


def naive(cover, k):
    """Rounds of greedy picks, each round over what is left, by full recomputation."""
    order: list[int] = []
    current: list[int] = []
    while len(order) < min(k, len(cover)):
        left = [r for r in range(len(cover)) if r not in order]
        have = value(cover, current) if current else -np.inf
        gains = {r: value(cover, [*current, r]) for r in left}
        if max(gains.values()) <= have:
            current = []
            gains = {r: value(cover, [r]) for r in left}
        best = max(gains.values())
        order.append(min(r for r in left if gains[r] == best))
        current.append(order[-1])
    return order


@settings(max_examples=250)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), t=st.integers(1, 5), k=st.integers(1, 10))
def test_greedy_cover_equals_full_recomputation(seed, n, t, k):
    cover = grid(seed, n, t, low=-2)
    assert coverage_order(cover, k) == naive(cover, k)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 9), t=st.integers(1, 6), k=st.integers(1, 4))
def test_greedy_reaches_the_guaranteed_share_of_the_optimum(seed, n, t, k):
    cover = grid(seed, n, t)
    optimum = max(value(cover, rows) for rows in combinations(range(n), min(k, n)))
    assert value(cover, coverage_order(cover, k)) >= (1 - 1 / np.e) * optimum - 1e-9


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 8), t=st.integers(1, 6))
def test_the_value_of_a_set_is_monotone_and_submodular(seed, n, t):
    cover, rng = grid(seed, n, t), np.random.default_rng(seed)
    new, *rest = rng.permutation(n).tolist()
    cut = int(rng.integers(0, len(rest)))
    small, large = rest[:cut], rest
    assert value(cover, large) >= value(cover, small)
    gain_small = value(cover, [*small, new]) - value(cover, small)
    assert gain_small >= value(cover, [*large, new]) - value(cover, large) - 1e-9


def test_after_full_coverage_the_best_that_is_left_comes_next():
    assert coverage_order(np.array([[1, 1], [0.2, 0.9], [0.9, 0.9]]), 3) == [0, 2, 1]


def test_no_parts_leave_the_order_alone():
    assert coverage_order(np.empty((4, 0)), 3) == [0, 1, 2]


def texts(*lines):
    return Pool.of(Example(t, "y") for t in lines).view()


KIT = Kit(embedder=HashEmbedder())


def test_a_text_recalls_itself_in_full():
    (_, vectors), (_, other) = HashEmbedder().encode_tokens(["red fish swims", "a dog"])
    weights = np.full(3, 1 / 3)
    assert token_recall(vectors, vectors, weights).sum() == pytest.approx(1)
    assert token_recall(vectors, other, weights).sum() < 0.7


def test_the_first_of_set_bsr_is_the_best_single_recall_and_the_set_covers_the_query():
    view = texts("red red red", "fish fish", "red fish and many other words here", "dog", "swims")
    one = make_selector("set-bsr,sort=picks").fit(view, KIT)
    assert one.select(Query("red fish"), 1).ids == (view.ids[2],)
    assert set(one.select(Query("red swims"), 2).ids) <= {view.ids[0], view.ids[2], view.ids[4]}
    assert view.ids[4] in one.select(Query("red swims"), 2).ids
    assert one.select(Query("red fish"), 1).picks[0].score == pytest.approx(1, abs=1e-5)


def test_set_bsr_shows_by_own_recall_by_default():
    view = texts("red", "fish", "red fish swims", "dog")
    scores = [p.score for p in make_selector("set-bsr").fit(view, KIT).select(Query("red fish swims fast"), 4)]
    assert scores == sorted(scores, reverse=True)


def test_idf_weights_let_rare_tokens_decide():
    view = texts("the the", "the a", "the zebra", "the b", "the c")
    plain = make_selector("set-bsr,weights=idf,sort=picks").fit(view, KIT)
    assert plain.select(Query("the zebra"), 1).picks[0].score > 0.99
    with pytest.raises(UsageError, match="choose from uniform, idf"):
        make_selector("set-bsr,weights=tf")


def test_an_embedder_without_token_vectors_is_refused():
    view = texts("d")
    with pytest.raises(NeedError, match="gives none"):
        make_selector("set-bsr").fit(view, Kit(embedder=TableEmbedder({"d": [1, 0]})))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 10), k=st.integers(1, 6))
def test_cosine_coverage_equals_greedy_over_dimension_products(world, seed, n, k):
    w = world(seed, n, dim=5)
    one = make_selector("cosine-coverage,sort=picks").fit(w.view, w.kit)
    nearest = sorted(range(n), key=lambda r: (-w.sim[r], r))
    vectors = w.kit.embedder.encode_documents([e.text for e in w.view.examples])
    cover = vectors[nearest] * w.kit.embedder.encode_queries(["q"])
    picks = one.select(w.query, k)
    # greedy on the same candidates, by value: ties may fall either way
    current, got = [], [nearest.index(w.view.ids.index(i)) for i in picks.ids]
    for row in got[: min(k, n)]:
        gains = [value(cover, [*current, r]) for r in range(n) if r not in current]
        if current and max(gains) <= value(cover, current) + 1e-6:
            break  # a new round: checked on exact grids above
        assert value(cover, [*current, row]) >= max(gains) - 1e-5
        current.append(row)
    np.testing.assert_allclose([p.score for p in picks], w.sim[[nearest[r] for r in got]], atol=1e-5)


def test_bm25_coverage_takes_the_missing_word_before_a_second_copy():
    view = texts("red fish", "red fish today", "the dog barks", "a cat", "grass")
    one = make_selector("bm25-coverage").fit(view, Kit())
    chosen = one.select(Query("red fish barks"), 2).ids
    assert chosen == (view.ids[0], view.ids[2])
    assert "random" in one.select(Query("qwertz"), 2).notes[0]
    assert [p.why for p in one.select(Query("red"), 3)] == ["", "", "random"]
