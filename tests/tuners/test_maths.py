"""The bandit's arithmetic against plain second implementations, and the invariants of the method."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.testing import HashEmbedder
from iclkit.tuners import Arm, BlockFeatures, PositionFeatures, SearchSpace, is_order_sensitive
from iclkit.tuners import _net as net
from iclkit.tuners._bandit import (
    acquisition,
    distinct_lists,
    principal_components,
    standardise,
    transport_bounds,
    transports,
    ucb_widths,
)
from iclkit.tuners._tune import expected_maximum

SEEDS = st.integers(0, 10**6)


def naive_output(theta, sizes, x):
    """One row through the network, one unit at a time."""
    at = 0
    for n, (a, b) in enumerate(itertools.pairwise(sizes)):
        weights, biases = theta[at : at + a * b], theta[at + a * b : at + (a + 1) * b]
        out = [biases[j] + sum(x[i] * weights[i * b + j] for i in range(a)) for j in range(b)]
        x = out if n == len(sizes) - 2 else [max(0.0, v) for v in out]
        at += (a + 1) * b
    return x[0]


def naive_gradient(theta, sizes, x, h=1e-6):
    made = np.empty_like(theta)
    for p in range(len(theta)):
        up, down = theta.copy(), theta.copy()
        up[p] += h
        down[p] -= h
        made[p] = (naive_output(up, sizes, x) - naive_output(down, sizes, x)) / (2 * h)
    return made


def network(seed, sizes=(3, 4, 3, 1)):
    rng = np.random.default_rng(seed)
    return rng, net.start(sizes, rng), sizes


@settings(max_examples=25)
@given(SEEDS)
def test_outputs_and_squared_gradients_equal_those_of_one_unit_and_one_parameter_at_a_time(seed):
    rng, theta, sizes = network(seed)
    x = rng.standard_normal((3, 3))
    assert len(theta) == net.parameters(sizes)
    assert net.predict(theta, sizes, x) == pytest.approx([naive_output(theta, sizes, row) for row in x])
    grads = np.array([naive_gradient(theta, sizes, row) for row in x])
    assert net.sum_of_squares(theta, sizes, x) == pytest.approx((grads**2).sum(axis=0), abs=1e-6)
    weights = rng.random(len(theta))
    assert net.weighted_squares(theta, sizes, x, weights) == pytest.approx((grads**2) @ weights, abs=1e-6)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([(2, 1), (3, 4, 1), (3, 4, 3, 1)]))
def test_a_step_of_the_fit_goes_down_the_slope_of_the_squared_error(seed, sizes):
    rng, theta, _ = network(seed, sizes)
    x, y, decay = rng.standard_normal((5, sizes[0])), rng.standard_normal(5), 0.1
    slope = decay * theta + sum(
        2 * (naive_output(theta, sizes, row) - value) / 5 * naive_gradient(theta, sizes, row)
        for row, value in zip(x, y, strict=True)
    )
    moved = net.fit(theta, sizes, x, y, steps=1, rate=1e-3, decay=decay) - theta
    clear = np.abs(slope) > 1e-4  # the first step of Adam is its rate against the sign
    assert moved[clear] == pytest.approx(-1e-3 * np.sign(slope[clear]), rel=1e-3)


def test_a_fit_learns_and_is_the_same_every_time():
    rng, theta, sizes = network(3, (2, 32, 1))
    x = rng.standard_normal((40, 2))
    y = x[:, 0] - 2 * x[:, 1]
    fits = [net.fit(theta, sizes, x, y, steps=300, rate=0.01, decay=0.001) for _ in range(2)]
    assert (fits[0] == fits[1]).all()
    assert ((net.predict(fits[0], sizes, x) - y) ** 2).mean() < 0.05 * y.var()


@given(SEEDS, st.floats(0.01, 10), st.floats(0.001, 10))
def test_with_nothing_played_the_width_is_the_root_of_nu_times_the_gradients_length(seed, prior, nu):
    rng, theta, sizes = network(seed)
    x = rng.standard_normal((4, 3))
    length = np.sqrt(net.weighted_squares(theta, sizes, x, np.ones(len(theta))))
    assert ucb_widths(theta, sizes, x, np.zeros(len(theta)), prior, nu) == pytest.approx(math.sqrt(nu) * length)


@given(SEEDS)
def test_playing_an_arm_never_widens_any_and_narrows_its_own(seed):
    rng, theta, sizes = network(seed)
    x = rng.standard_normal((4, 3))
    played = np.zeros(len(theta))
    before = ucb_widths(theta, sizes, x, played, 0.1, 1.0)
    for row in range(4):
        played = played + net.sum_of_squares(theta, sizes, x[row : row + 1])
        now = ucb_widths(theta, sizes, x, played, 0.1, 1.0)
        assert (now <= before + 1e-12).all()
        assert now[row] < before[row]
        before = now


def transport(costs):
    return float(transports(costs[None])[0])


def naive_transport(costs):
    """Least cost over all ways to fill k rows with v / k columns each; v a multiple of k."""
    k, v = costs.shape
    slots = [row for row in range(k) for _ in range(v // k)]
    return min(sum(costs[row, col] for row, col in zip(p, range(v), strict=True)) / v
               for p in {*itertools.permutations(slots)})  # fmt: skip


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([(1, 4), (2, 2), (2, 6), (3, 3), (3, 6)]))
def test_transport_equals_trying_every_assignment(seed, shape):
    costs = np.random.default_rng(seed).random(shape)
    assert transport(costs) == pytest.approx(naive_transport(costs))


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 6), st.integers(2, 7))
def test_transport_by_assignment_equals_transport_by_linear_programme(seed, k, v):
    from iclkit.tuners import _bandit

    costs = np.random.default_rng(seed).random((k, v))
    with pytest.MonkeyPatch.context() as patch:
        one = transport(costs)
        patch.setattr(_bandit, "_REPLICAS", 0)
        assert transport(costs) == pytest.approx(one)


def test_transport_of_one_is_a_mean_and_of_alike_items_nothing():
    row = np.random.default_rng(0).random((1, 5))
    assert transport(row) == pytest.approx(row.mean())
    assert transport(1 - np.eye(4)) == pytest.approx(0)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([(2, 4), (3, 6), (4, 3), (3, 4), (5, 20), (1, 7)]))
def test_a_bound_is_never_above_the_transport_cost(seed, shape):
    costs = np.random.default_rng(seed).random((20, *shape))
    assert (transport_bounds(costs) <= transports(costs) + 1e-9).all()


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 4), st.sampled_from([3, 8]), st.integers(1, 60))
def test_the_nearest_lists_are_those_that_solving_every_list_finds(seed, k, v, keep):
    rng = np.random.default_rng(seed)
    costs = rng.random((8, v)).round(1)  # ties
    lists = distinct_lists(8, k, 80, rng)
    exact = np.round([transport(costs[sorted(row)]) for row in lists.tolist()], 9)
    found = SearchSpace(8, k, costs=costs).nearest(lists, keep)
    assert (found == (lists if len(lists) <= keep else lists[np.argsort(exact, kind="stable")[:keep]])).all()


@given(SEEDS, st.integers(2, 8), st.integers(1, 5))
def test_standardised_features_have_mean_0_and_deviation_1_and_a_constant_one_is_0(seed, n, d):
    x = np.random.default_rng(seed).standard_normal((n, d))
    x[:, 0] = 3.0
    made = standardise(x, x)
    assert (made[:, 0] == 0).all()
    assert made[:, 1:].mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert made[:, 1:].std(axis=0) == pytest.approx(1)
    assert np.isfinite(standardise(x[:1], x)).all()


@given(SEEDS, st.integers(2, 8), st.integers(1, 6))
def test_principal_coordinates_keep_all_distances_when_none_is_left_out(seed, n, d):
    x = np.random.default_rng(seed).standard_normal((n, d))
    made = principal_components(x, 10)
    for a, b in itertools.combinations(range(n), 2):
        assert np.linalg.norm(made[a] - made[b]) == pytest.approx(np.linalg.norm(x[a] - x[b]), abs=1e-8)
    fewer = principal_components(x, 1)
    assert fewer.shape[1] <= 1
    assert fewer[:, 0] == pytest.approx(made[:, 0])


@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.integers(1, 200))
def test_lists_hold_no_row_twice_and_are_all_there_when_they_are_few(seed, n, k, count):
    k = min(n, k)
    lists = [*map(tuple, distinct_lists(n, k, count, np.random.default_rng(seed)).tolist())]
    assert all(len({*rows}) == k and {*rows} <= {*range(n)} for rows in lists)
    assert len(lists) == min(count, math.perm(n, k))
    if math.perm(n, k) <= count:
        assert {*lists} == {*itertools.permutations(range(n), k)}


def test_thompsons_draws_have_the_mean_and_spread_that_ucb_adds_up():
    means, spreads = np.full(20_000, 0.3), np.full(20_000, 0.2)
    drawn = acquisition(means, spreads, "ts", np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0.3, abs=0.01)
    assert drawn.std() == pytest.approx(0.2, abs=0.01)
    assert acquisition(means, spreads, "ucb") == pytest.approx(0.5)


def test_position_features_see_the_order_and_a_bag_of_words_does_not():
    embedder = HashEmbedder()
    texts = [f"word{n} other{n * 7}" for n in range(6)]
    positions = PositionFeatures(embedder.encode_documents(texts).astype(float), 3)
    assert is_order_sensitive(positions, 6, 3)
    bag = BlockFeatures(embedder, lambda arm: "\n\n".join(texts[r] for r in arm.rows))
    assert not is_order_sensitive(bag, 6, 3)
    assert is_order_sensitive(bag, 6, 1)
    same = np.array([[0, 1, 2], [2, 1, 0]])
    none = np.zeros(2, dtype=int)
    assert bag(same, none)[0] == pytest.approx(bag(same, none)[1], abs=1e-6)
    seen = embedder.calls["documents"]
    bag(same, none)
    assert embedder.calls["documents"] == seen  # every text once


def test_position_features_are_the_rows_of_each_position_and_the_instruction():
    vectors, words = np.random.default_rng(0).standard_normal((5, 2)), np.eye(3)
    made = PositionFeatures(vectors, 2, words, size=8)(np.array([[1, 4], [4, 1]]), np.array([0, 2]))
    rows = principal_components(vectors, 4)
    assert made[0, :4] == pytest.approx(np.concatenate([rows[1], rows[4]]))
    assert made[1, :4] == pytest.approx(np.concatenate([rows[4], rows[1]]))
    assert made[0, 4:].tolist() != made[1, 4:].tolist()


def test_the_luck_of_the_best_of_many_is_that_of_a_simulation():
    drawn = np.random.default_rng(0).standard_normal((20_000, 24)).max(axis=1).mean()
    assert expected_maximum(24) == pytest.approx(drawn, abs=0.02)
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)


def test_an_arm_is_its_order():
    assert Arm((1, 2)) != Arm((2, 1))
