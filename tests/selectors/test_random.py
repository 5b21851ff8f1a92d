from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._balanced import balanced_rows
from iclkit.selectors._maths import hash_keys

POOL = Pool.of(Example(f"text {n}", "abc"[n % 3]) for n in range(60)).view()


def fitted(name: str, seed: int = 0):
    return make_selector(name).fit(POOL, Kit(seed=seed))


def test_random_draws_anew_for_every_query_and_seed():
    one = fitted("random")
    assert one.select(Query("x"), 5).ids != one.select(Query("y"), 5).ids
    assert one.select(Query("x"), 5).ids != fitted("random", seed=1).select(Query("x"), 5).ids


def test_random_fixed_is_the_same_for_every_query_and_nested_in_k():
    one = fitted("random-fixed")
    assert one.select(Query("x"), 20).ids == one.select(Query("y"), 20).ids
    assert one.select(Query("x"), 10).ids == one.select(Query("x"), 20).ids[:10]
    assert one.select(Query("x"), 20).ids != fitted("random-fixed", seed=1).select(Query("x"), 20).ids


def test_excluding_an_example_keeps_the_rest_of_a_draw():
    for name in ("random", "random-fixed"):
        one = fitted(name)
        first = one.select(Query("x"), 6).ids
        without = one.select(Query("x", exclude=frozenset(first[:1])), 5).ids
        assert without == first[1:]


def test_balanced_shows_every_label_equally_often_and_shuffles_which_comes_first():
    one, first = fitted("balanced"), Counter[str]()
    for n in range(60):
        labels = [POOL.examples_of([i])[0].output for i in one.select(Query(f"q{n}"), 7).ids]
        assert sorted(Counter(labels).values()) == [2, 2, 3]
        first[labels[0]] += 1
    assert set(first) == {"a", "b", "c"}


@settings(max_examples=250)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), k=st.integers(0, 30))
def test_balanced_equals_dealing_one_of_each_label_per_round(seed, n, k):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    allowed = rng.random(n) < 0.8
    order = rng.permutation(n).astype(np.uint64)
    rows = balanced_rows(labels, order, hash_keys("wxyz"), k, np.flatnonzero(allowed)).tolist()
    piles = {
        c: sorted((r for r in range(n) if allowed[r] and labels[r] == c), key=lambda r: order[r]) for c in range(4)
    }
    dealt = 0
    while dealt < len(rows):
        turn = {c: pile.pop(0) for c, pile in piles.items() if pile}
        part = rows[dealt : dealt + len(turn)]
        assert set(part) <= set(turn.values())
        assert len(set(part)) == len(part)
        dealt += len(turn)
    assert len(rows) == min(k, int(allowed.sum()))
    assert balanced_rows(labels, order, hash_keys("wxyz"), k + 1, np.flatnonzero(allowed)).tolist()[:k] == rows
