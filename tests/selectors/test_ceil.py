from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._dpp import dpp_order, dpp_steps
from iclkit.testing import SelectorContract, TableEmbedder


class TestCEIL(SelectorContract):
    @pytest.fixture(params=["ceil,trade_off=0.5,candidates=6"])
    def selector(self, request):
        return make_selector(request.param)


GOLDEN = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]])


@pytest.mark.parametrize(("trade_off", "best"), [(0.1, {0, 1}), (1.0, {0, 3})])
def test_the_golden_pairs_of_the_papers_kernel(trade_off, best):
    assert {*dpp_order(GOLDEN[:, 0], GOLDEN @ GOLDEN.T, 2, trade_off)} == best


def log_det(sim, near, rows, trade_off):
    relevance = (1 + sim) / 2
    weight = np.exp((relevance - relevance.max()) / (2 * trade_off))
    kernel = weight[:, None] * (1 + near) / 2 * weight[None]
    return float(np.linalg.slogdet(kernel[np.ix_(rows, rows)])[1])


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 9), k=st.integers(1, 5), trade_off=st.sampled_from([0.1, 0.5, 2.0]))
def test_the_gains_of_the_steps_are_those_of_the_log_determinant(seed, n, k, trade_off):
    rows = np.random.default_rng(seed).standard_normal((n + 1, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sim, near = rows[:n] @ rows[n], rows[:n] @ rows[:n].T
    chosen, so_far = [], 0.0
    for row, gains in dpp_steps(sim, near, k, trade_off):
        for other in set(range(n)) - {*chosen}:
            assert log_det(sim, near, [*chosen, other], trade_off) - so_far == pytest.approx(gains[other], abs=1e-6)
        chosen.append(row)
        so_far = log_det(sim, near, chosen, trade_off)
    assert chosen == dpp_order(sim, near, k, trade_off)


def test_a_small_trade_off_is_knn_and_a_large_one_spreads_out():
    rows = np.random.default_rng(5).standard_normal((41, 24)) + 0.5
    table = {"q": rows[40], **{f"d{n}": row for n, row in enumerate(rows[:40])}}
    view, kit, query = Pool.of(Example(d, "x") for d in table if d != "q").view(), Kit(TableEmbedder(table)), Query("q")
    nearest = make_selector("knn").fit(view, kit).select(query, 4)
    assert make_selector("ceil,trade_off=0.0001").fit(view, kit).select(query, 4).ids == nearest.ids

    def nearness(ids):
        vectors = view.vectors(kit.embedder)[[view.ids.index(i) for i in ids]]
        return np.mean([a @ b for a, b in combinations(vectors, 2)])

    spread = make_selector("ceil,trade_off=100.0").fit(view, kit).select(query, 4)
    assert nearness(spread.ids) < nearness(nearest.ids) - 0.2


def test_the_most_relevant_has_rank_one_and_so_stands_next_to_the_query(world):
    w = world(7, 30, dim=6)
    picks = make_selector("ceil,trade_off=0.5").fit(w.view, w.kit).select(w.query, 5).picks
    assert [p.score for p in picks] == sorted((p.score for p in picks), reverse=True)


def test_it_is_dpp_with_the_trade_off_as_scale(world):
    w = world(8, 30, dim=6)
    ours, dpp = (make_selector(s).fit(w.view, w.kit) for s in ("ceil,trade_off=0.3", "dpp,scale=0.3"))
    assert ours.select(w.query, 6).picks == dpp.select(w.query, 6).picks


def test_its_explanation_has_the_greedy_steps_and_what_came_second(world):
    w = world(9, 20, dim=6)
    chooser = make_selector("ceil,trade_off=0.5").fit(w.view, w.kit)
    query = Query(w.query.input, exclude=frozenset({w.view.ids[0]}))
    _, *lines = chooser.explain(query, 3)
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2", "step 3"]
    for line in lines:
        gain, second = (float(part.split(":")[0]) for part in (line.split("determinant ")[1], line.split("up ")[1]))
        assert gain >= second


def test_settings_are_checked():
    for spec in ("ceil,trade_off=0", "ceil,candidates=0"):
        with pytest.raises(UsageError, match=r"give|choose from"):
            make_selector(spec)
