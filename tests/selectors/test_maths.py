from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.selectors import top_rows
from iclkit.selectors._maths import argmax_row, hash_keys, rounded, shuffled_keys, smallest_rows


def naive(scores, k, allowed, above):
    rounded = [round(float(s), 6) for s in scores]
    rows = [r for r in range(len(scores)) if allowed[r] and scores[r] > above]
    return sorted(rows, key=lambda r: (-rounded[r], r))[:k]


@settings(max_examples=300)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), k=st.integers(0, 45), above=st.sampled_from([-np.inf, 0.0]))
def test_best_rows_equals_a_stable_sort_of_rounded_scores(seed, n, k, above):
    rng = np.random.default_rng(seed)
    scores = rng.choice([-0.5, 0.0, 0.25, 0.2500001, 0.75, -np.inf], n)
    allowed = rng.random(n) < 0.8
    assert top_rows(scores, k, allowed, above).tolist() == naive(scores, k, allowed, above)


@pytest.mark.parametrize("n", [2_000, 20_011])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_short_cut_for_long_arrays_gives_the_same_rows(n, kind):
    rng = np.random.default_rng(n)
    for trial in range(20):
        scores = np.round(rng.standard_normal(n), 2 + trial % 4).astype(kind)
        allowed = rng.random(n) < 0.9
        assert top_rows(scores, 8, allowed).tolist() == naive(scores, 8, allowed, -np.inf)


def test_first_best_takes_the_lower_of_two_that_tie_to_a_millionth():
    assert argmax_row(np.array([-np.inf, 0.5 - 5e-7, 0.5])) == 1
    assert argmax_row(np.array([0.4, 0.5])) == 1


def test_keys_are_the_same_in_every_process_and_differ_by_salt():
    keys = hash_keys(["a", "b"])
    assert keys.tolist() == [3405396810240292928, 8453121595177857668]
    assert shuffled_keys(keys, "x", 1).tolist() == shuffled_keys(keys, "x", 1).tolist()
    assert shuffled_keys(keys, "x", 1).tolist() != shuffled_keys(keys, "x", 2).tolist()
    assert shuffled_keys(keys, "x", 1)[1] == shuffled_keys(keys[1:], "x", 1)[0]


def test_every_row_is_drawn_equally_often():
    keys, everything = hash_keys(f"id{n}" for n in range(10)), np.arange(10)
    drawn = np.zeros(10)
    for salt in range(3000):
        drawn[smallest_rows(shuffled_keys(keys, salt), 3, everything)] += 1
    # each row: 900 expected, standard deviation sqrt(3000 * .3 * .7) = 25
    assert np.abs(drawn - 900).max() < 5 * 25


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), k=st.integers(0, 30))
def test_smallest_rows_is_a_prefix_of_the_shuffle(seed, n, k):
    rng = np.random.default_rng(seed)
    keys, allowed = rng.integers(0, 2**60, n).astype(np.uint64), rng.random(n) < 0.7
    shuffled = sorted(np.flatnonzero(allowed).tolist(), key=lambda r: int(keys[r]))
    assert smallest_rows(keys, k, np.flatnonzero(allowed)).tolist() == shuffled[:k]


@settings(max_examples=200)
@given(
    scores=st.lists(st.floats(1e-290, 1.0) | st.sampled_from([0.0, -np.inf, 1e-9, 1.0000001e-9]), min_size=1),
    k=st.integers(0, 12),
)
def test_scores_of_any_size_tie_only_when_six_digits_agree(scores, k):
    rows = top_rows(np.array(scores), k, significant=True)
    left = [r for r, s in enumerate(scores) if s > -np.inf]
    assert len(rows) == min(k, len(left))
    for place, row in enumerate(rows.tolist()):
        later = [scores[r] for r in left if r not in rows[:place]]
        assert max(later) <= scores[row] + max(scores[row] * 1.1e-5, 0)
    assert rounded(np.array(scores)).tolist() == pytest.approx(scores, rel=1e-5)


def test_small_scores_keep_their_order_and_equal_ones_tie():
    scores = np.array([3e-9, 7e-8, 7.0000001e-8, 0.5, 0.0])
    assert top_rows(scores, 5, significant=True).tolist() == [3, 1, 2, 0, 4]
    assert top_rows(scores, 5).tolist() == [3, 0, 1, 2, 4]
