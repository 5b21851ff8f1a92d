from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.selectors import make_selector
from iclkit.selectors._dpp import dpp_order


def kernel(sim, near, scale):
    relevance = np.exp((sim + 1) / 2 / (2 * scale))
    return relevance[:, None] * (1 + near) / 2 * relevance[None]


def log_det(matrix, rows):
    sign, value = np.linalg.slogdet(matrix[np.ix_(rows, rows)])
    return value if sign > 0 else -np.inf


def unit_rows(seed, n, dim):
    rows = np.random.default_rng(seed).standard_normal((n + 1, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:n] @ rows[n], rows[:n] @ rows[:n].T


@settings(max_examples=250)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), k=st.integers(1, 9), scale=st.sampled_from([0.05, 0.1, 1.0]))
def test_every_pick_is_the_one_brute_force_would_make(seed, n, k, scale):
    sim, near = unit_rows(seed, n, dim=12)
    matrix, order = kernel(sim, near, scale), dpp_order(sim, near, k, scale)
    assert len(set(order)) == len(order) == min(k, n)
    for size in range(len(order)):
        gains = {r: log_det(matrix, [*order[:size], r]) for r in range(n) if r not in order[:size]}
        assert gains[order[size]] >= max(gains.values()) - 1e-6


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 12), dim=st.integers(1, 3))
def test_a_kernel_of_low_rank_never_repeats_and_is_filled_by_relevance(seed, n, dim):
    sim, near = unit_rows(seed, n, dim)
    order = dpp_order(sim, near, n, 0.1)
    assert sorted(order) == [*range(n)]
    rest = order[dim + 1 :]  # the rank of S is at most dim + 1
    assert [sim[r] for r in rest] == sorted((sim[r] for r in rest), reverse=True)


@pytest.mark.parametrize("scale", [1e-4, 1e-3])
def test_a_small_scale_is_knn_without_underflow(scale):
    for seed in range(30):
        sim, near = unit_rows(seed, 20, 16)
        assert dpp_order(sim, near, 8, scale) == np.argsort(-sim, kind="stable")[:8].tolist()


def test_unrelated_candidates_come_by_relevance():
    sim = np.array([0.1, 0.7, 0.3])
    assert dpp_order(sim, 2 * np.eye(3) - 1, 3, 0.1) == [1, 2, 0]


def test_a_duplicate_is_never_second():
    sim, near = np.array([0.9, 0.9, -0.5]), np.eye(3)
    near[0, 1] = near[1, 0] = 1
    assert dpp_order(sim, near, 3, 0.1) == [0, 2, 1]


def test_adding_a_constant_to_relevance_changes_nothing():
    sim, near = unit_rows(4, 10, 16)
    assert dpp_order(sim, near, 6, 0.2) == dpp_order(sim - 0.3, near, 6, 0.2)


def test_picks_are_shown_by_relevance_or_as_picked(world):
    w = world(11, 30, dim=6)
    by_relevance = make_selector("dpp,scale=0.5").fit(w.view, w.kit).select(w.query, 6)
    as_picked = make_selector("dpp,scale=0.5,sort=picks").fit(w.view, w.kit).select(w.query, 6)
    assert set(by_relevance.ids) == set(as_picked.ids)
    scores = [p.score for p in by_relevance]
    assert scores == sorted(scores, reverse=True)
    assert as_picked.ids[:4] == make_selector("dpp,scale=0.5,sort=picks").fit(w.view, w.kit).select(w.query, 4).ids


def test_settings_are_checked():
    for spec in ("dpp,scale=0", "dpp,sort=no", "dpp,candidates=0"):
        with pytest.raises(UsageError, match=r"give|choose from"):
            make_selector(spec)
    with pytest.raises(ValueError, match="scale"):
        dpp_order(np.zeros(1), np.eye(1), 1, 0)
