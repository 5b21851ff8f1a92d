from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.selectors import make_selector
from iclkit.selectors._mmr import mmr_order


def naive(sim, near, k, trade_off):
    taken: list[int] = []
    while len(taken) < min(k, len(sim)):
        best, best_value = -1, -np.inf
        for i in range(len(sim)):
            if i in taken:
                continue
            redundancy = max((near[i][j] for j in taken), default=0.0)
            value = round(trade_off * sim[i] - (1 - trade_off) * redundancy, 5)
            if value > best_value:
                best, best_value = i, value
        taken.append(best)
    return taken


@settings(max_examples=250)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 14), k=st.integers(1, 15), trade_off=st.sampled_from([0, 0.3, 0.5, 1])
)
def test_mmr_equals_the_double_loop(seed, n, k, trade_off):
    rng = np.random.default_rng(seed)
    # a coarse grid makes exact ties common and near-ties impossible
    sim, near = np.round(rng.random(n), 2), np.round(rng.random((n, n)), 2)
    near = np.maximum(near, near.T)
    assert mmr_order(sim, near, k, trade_off)[0] == naive(sim, near, k, trade_off)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 20), k=st.integers(1, 20))
def test_trade_off_of_one_is_knn(world, seed, n, k):
    w = world(seed, n)
    mmr = make_selector("mmr,trade_off=1").fit(w.view, w.kit).select(w.query, k)
    assert mmr.ids == make_selector("knn").fit(w.view, w.kit).select(w.query, k).ids


@pytest.mark.parametrize("trade_off", [0.1, 0.5, 0.9])
def test_the_first_pick_is_the_nearest(world, trade_off):
    for seed in range(20):
        w = world(seed, 15)
        one = make_selector(f"mmr,trade_off={trade_off}").fit(w.view, w.kit)
        assert one.select(w.query, 4).ids[0] == make_selector("knn").fit(w.view, w.kit).select(w.query, 1).ids[0]


def test_a_duplicate_waits_longer_than_under_knn():
    sim = np.array([0.9, 0.9, 0.5, 0.4])
    near = np.eye(4)
    near[0, 1] = near[1, 0] = 1
    assert mmr_order(sim, near, 4, 0.5)[0] == [0, 2, 3, 1]


def test_only_the_nearest_candidates_are_looked_at(world):
    w = world(5, 40, dim=8)
    nearest = set(make_selector("knn").fit(w.view, w.kit).select(w.query, 6).ids)
    one = make_selector("mmr,trade_off=0,candidates=6").fit(w.view, w.kit)
    assert set(one.select(w.query, 6).ids) == nearest
    assert set(one.select(w.query, 3).ids) < nearest
    assert len(one.select(w.query, 9)) == 9


@pytest.mark.parametrize("spec", ["mmr,trade_off=1.5", "mmr,trade_off=-0.1", "mmr,candidates=0"])
def test_settings_out_of_range_are_refused_when_it_is_built(spec):
    with pytest.raises(UsageError, match=r"give|choose from"):
        make_selector(spec)
    with pytest.raises(ValueError, match="trade_off"):
        mmr_order(np.zeros(2), np.eye(2), 1, 2)
