from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.records import Query
from iclkit.selectors import make_selector


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), k=st.integers(1, 27), gone=st.integers(0, 3))
def test_knn_equals_brute_force_with_ties_to_the_lower_row(world, seed, n, k, gone):
    w = world(seed, n, exclude=tuple(range(min(gone, n))))
    rows = sorted(range(min(gone, n), n), key=lambda r: (-w.sim[r], r))[:k]
    selection = make_selector("knn").fit(w.view, w.kit).select(w.query, k)
    assert selection.ids == tuple(w.view.ids[r] for r in rows)


def test_a_query_that_stands_in_the_pool_is_its_own_nearest(world):
    w = world(0, 20, dim=8)
    one = make_selector("knn").fit(w.view, w.kit)
    # its duplicates tie with it, and ties go to the lower row
    hits = [one.select(Query(f"d{n}"), 1).ids[0] for n in range(20)]
    assert all(w.near[n, w.view.ids.index(i)] == 1 for n, i in enumerate(hits))


def test_the_top_k_is_a_prefix_of_the_top_k_plus_one(world):
    w = world(1, 30)
    one = make_selector("knn").fit(w.view, w.kit)
    assert all(one.select(w.query, k).ids == one.select(w.query, 30).ids[:k] for k in range(30))
