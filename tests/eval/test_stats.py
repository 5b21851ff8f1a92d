"""Statistics: against second implementations, against scipy, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from iclkit.eval._metrics import macro_f1
from iclkit.eval._multiple import false_discovery, holm
from iclkit.eval._pooled import TaskPair, average_ranks, new_tasks, pooled_difference, rank_estimates
from iclkit.eval._stats import (
    bootstrap_macro_f1,
    difference,
    estimate,
    macro_f1_difference,
    rank_intervals,
    sign_flip,
    smallest_effects,
    variance_components,
    wilson,
)

BITS = st.lists(st.integers(0, 1), min_size=2, max_size=12)


def draw(rng: np.random.Generator, chance: np.ndarray, seeds: int, seed_sd: float = 0.0) -> np.ndarray:
    """Right-or-wrong values (seeds, queries): each seed shifts the log-odds of every query."""
    logit = np.log(chance / (1 - chance)) + rng.normal(0, seed_sd, (seeds, 1))
    return (rng.random((seeds, len(chance))) < 1 / (1 + np.exp(-logit))).astype(float)


@settings(deadline=None)
@given(BITS, st.randoms(use_true_random=False))
def test_one_seed_each_gives_mcnemars_exact_p(bits, random):
    a = np.array([bits], float)
    b = np.array([[random.randint(0, 1) for _ in bits]], float)
    up, down = int((a > b).sum()), int((a < b).sum())
    expected = scipy_stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert difference(a, b).p == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1]), min_size=2, max_size=9))
def test_sign_flip_equals_the_list_of_all_signs(values):
    d = np.array(values)
    sums = [
        abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in itertools.product([-1, 1], repeat=len(d))
    ]
    expected = np.mean([s >= abs(d.sum()) - 1e-9 for s in sums])
    assert sign_flip(d, lattice=3) == pytest.approx(expected)


def test_sign_flip_of_odd_values_agrees_across_its_three_ways():
    rng = np.random.default_rng(3)
    small = rng.normal(0.3, 1, 14)
    drawn = np.append(small, [1e-9] * 10)  # 24 values: past the exact list, same distribution
    assert sign_flip(small) == pytest.approx(sign_flip(drawn), abs=0.015)
    large = rng.normal(0.02, 1, 4001)
    assert sign_flip(large) == pytest.approx(sign_flip(large[:4000]), abs=0.05)


def test_seeds_that_disagree_raise_p_and_widen_the_interval():
    steady = np.array([[1.0] * 40 + [0.0] * 20] * 3)
    split = np.array([[1.0] * 58 + [0.0] * 2, [1.0] * 38 + [0.0] * 22, [1.0] * 24 + [0.0] * 36])
    other = np.array([[1.0] * 25 + [0.0] * 35])
    calm, wild = difference(steady, other), difference(split, other)
    assert calm.value == pytest.approx(wild.value)
    assert calm.p < 0.01 < 0.05 < wild.p
    assert wild.high - wild.low > 2 * (calm.high - calm.low)


@given(st.integers(0, 60), st.integers(2, 60))
@settings(deadline=None)
def test_a_single_seed_has_wilsons_interval(right, queries):
    right = min(right, queries)
    x = np.array([[1.0] * right + [0.0] * (queries - right)])
    expected = scipy_stats.binomtest(right, queries).proportion_ci(method="wilson")
    found = estimate(x)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_variance_parts_equal_the_textbook_sums():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 9)) + rng.normal(size=(4, 1)) * 3
    seeds, queries = x.shape
    ms_seed = queries * sum((row.mean() - x.mean()) ** 2 for row in x) / (seeds - 1)
    ms_query = seeds * sum((col.mean() - x.mean()) ** 2 for col in x.T) / (queries - 1)
    rest = sum(
        (x[s, q] - x[s].mean() - x[:, q].mean() + x.mean()) ** 2 for s in range(seeds) for q in range(queries)
    ) / ((seeds - 1) * (queries - 1))
    found = variance_components(x)
    assert found.query == pytest.approx(ms_query / (seeds * queries))
    assert found.seed == pytest.approx((ms_seed - rest) / (seeds * queries))
    assert found.mean == pytest.approx(x.mean())


def test_equal_seeds_count_as_one():
    x = np.array([[1.0, 0, 1, 1, 0, 1] * 10])
    three, one = estimate(np.repeat(x, 3, axis=0)), estimate(x)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=0.01)
    d = difference(np.repeat(x, 3, axis=0), 1 - x)
    assert d.p == pytest.approx(difference(x, 1 - x).p)


def test_equal_answers_are_no_difference_and_no_certainty():
    x = np.ones((1, 50))
    found = difference(x, x)
    assert (found.value, found.p) == (0, 1)
    assert found.low < -0.01
    assert found.high > 0.01


def test_a_handful_of_queries_could_show_no_effect_whatever():
    x = np.array([[1.0, 0, 1, 0, 1]])
    assert smallest_effects(x, 1 - x, alpha=0.05 / 20) == (math.inf, math.inf)
    many = np.tile(x, 20)
    assert all(math.isfinite(size) for size in smallest_effects(many, 1 - many, alpha=0.05 / 20))


@pytest.mark.parametrize("queries", [0, 1])
def test_too_few_queries_show_nothing(queries):
    found = difference(np.ones((1, queries)), np.zeros((1, queries)))
    assert found.p == 1
    assert math.isinf(found.low)


def test_an_unbounded_metric_has_students_interval():
    x = np.random.default_rng(1).normal(-2, 1, (1, 20))
    low, high = scipy_stats.t.interval(0.95, 19, x.mean(), x.std(ddof=1) / math.sqrt(20))
    found = estimate(x, bounded=False)
    assert (found.low, found.high) == pytest.approx((low, high))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_its_definition(ps):
    order = sorted(range(len(ps)), key=ps.__getitem__)
    for alpha in (0.01, 0.05, 0.3):
        declared = set()
        for step, i in enumerate(order):
            if ps[i] > alpha / (len(ps) - step):
                break
            declared.add(i)
        assert {i for i, p in enumerate(holm(ps)) if p <= alpha * (1 - 1e-12)} <= declared
        assert declared <= {i for i, p in enumerate(holm(ps)) if p <= alpha * (1 + 1e-9)}


def test_rank_intervals_separate_what_differs_and_join_what_ties():
    rng = np.random.default_rng(5)
    chance = np.full(300, 0.5)
    values = [draw(rng, chance + shift, 1) for shift in (0.4, 0.0, 0.01, -0.3)]
    assert rank_intervals(values) == [(1, 1), (2, 3), (2, 3), (4, 4)]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 3), min_size=2, max_size=30))
def test_the_bootstrap_of_macro_f1_starts_from_the_plain_figure(rows):
    golds, first, second = zip(*rows, strict=True)
    found = bootstrap_macro_f1([first, second], golds, draws=50)
    names = {*golds, *first, *second}
    plain = [macro_f1(o, golds) * len({*o, *golds}) / len(names) for o in (first, second)]
    if all(len({*o, *golds}) == len(names) for o in (first, second)):
        assert found.value == pytest.approx(np.mean(plain))
    assert found.low <= found.value <= found.high


def test_the_bootstrap_of_macro_f1_has_no_class_for_invented_answers():
    outputs, golds = ["pos", "neg", "pos", "idk1", "idk2", "idk3"], ["pos", "neg", "pos", "neg", "pos", "neg"]
    found = bootstrap_macro_f1([outputs, outputs], golds, ["neg", "pos"])
    assert found.value == pytest.approx(macro_f1(outputs, golds, ["neg", "pos"])) == pytest.approx(0.65)
    assert found.low < found.value < found.high
    assert bootstrap_macro_f1([[" pos\n", "neg"]], ["pos", "neg"], ["neg", "pos"]).value == 1


@pytest.mark.parametrize("size", [1e3, 1e9, 1e18, 1e300])
@pytest.mark.parametrize("queries", [5, 40, 5000])
def test_a_test_of_large_values_ends_and_does_not_depend_on_the_unit(size, queries):
    rng = np.random.default_rng(0)
    d = np.rint(rng.normal(0.2, 1, queries) * 50)
    with np.errstate(all="raise"):
        assert sign_flip(d * size) == pytest.approx(sign_flip(d), abs=0.03)
    one = np.zeros(queries)
    one[0] = size  # one value of 1e9 among zeros and ones
    assert sign_flip(one) == 1.0


@pytest.mark.parametrize("unit", [1e-9, 1e-7, 1.0, 1e9])
def test_a_comparison_does_not_depend_on_the_unit_and_sees_no_difference_in_rounding(unit):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, (1, 30)), rng.normal(0.0, 1, (1, 30))
    plain = difference(a, b, bounded=False)
    assert difference(a * unit, b * unit, bounded=False).p == pytest.approx(plain.p, abs=1e-3)
    values = np.array([[0.1] * 30, [0.2] * 30, [0.3] * 30]) * unit
    assert difference(values, values[::-1], bounded=False).p == 1.0  # (.1 + .2) + .3 is not .1 + (.2 + .3)


def test_values_that_are_nearly_whole_are_not_taken_for_whole():
    d = np.array([100000.4, 100000.3, -200000.6] * 4)  # sums to 0.4, and to 0 when rounded
    exact = [s @ d for s in np.array([*itertools.product((1, -1), repeat=12)])]
    assert sign_flip(d) == pytest.approx(np.mean(np.abs(exact) >= abs(d.sum()) - 1e-6))


def test_the_bootstrap_of_macro_f1_is_as_wide_as_resampling_rows():
    rng = np.random.default_rng(7)
    golds = rng.choice(list("abc"), 120)
    said = np.where(rng.random(120) < 0.7, golds, rng.choice(list("abc"), 120))
    draws = [macro_f1(list(said[i]), list(golds[i])) for i in (rng.integers(0, 120, 120) for _ in range(1000))]
    found = bootstrap_macro_f1([list(said)], list(golds))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_wilson_stays_inside_and_holds_its_share():
    for share, size in itertools.product((0, 0.01, 0.5, 1), (1, 10, 1000)):
        low, high = wilson(share, size, 1.96)
        assert 0 <= low <= share <= high <= 1


def board(rng: np.random.Generator, *, selectors: int, queries: int, lift: float = 0.0):
    """p-values, adjusted, of a simulated board: the first selector is better than random by ``lift``."""
    chance = np.clip(rng.beta(1.2, 0.8, queries), 0.02, 0.98 - lift)
    random = draw(rng, chance, 3)
    others = [draw(rng, chance + (lift if i == 0 else 0), 3 if i % 2 else 1) for i in range(selectors)]
    scopes = [("none" if len(o) == 1 else "query", "query") for o in others]
    found = [difference(o, random, scopes=pair) for o, pair in zip(others, scopes, strict=True)]
    return found, holm([f.p for f in found])


def false_share(boards: int) -> float:
    rng = np.random.default_rng(11)
    return float(np.mean([min(board(rng, selectors=6, queries=200)[1]) <= 0.05 for _ in range(boards)]))


def power(boards: int) -> tuple[float, float]:
    """(Share of boards that declare a true effect of the stated smallest size, that size)."""
    rng = np.random.default_rng(13)

    def smallest() -> float:
        chance = np.clip(rng.beta(1.2, 0.8, 200), 0.02, 0.98)
        gain, _ = smallest_effects(draw(rng, chance, 1), draw(rng, chance, 3), alpha=0.05 / 6, scopes=("none", "query"))
        return gain

    lift = float(np.median([smallest() for _ in range(30)]))
    hits = [board(rng, selectors=6, queries=200, lift=lift)[1][0] <= 0.05 for _ in range(boards)]
    return float(np.mean(hits)), lift


def coverage(boards: int, seeds: int, seed_sd: float, mean: float = 0.6) -> tuple[float, float]:
    """Shares of simulations whose interval holds the true figure, and the true difference of two equal selectors."""
    rng = np.random.default_rng(17)
    world = np.clip(rng.beta(2 * mean, 2 - 2 * mean, 200_000), 0.02, 0.98)
    truth = float(draw(rng, world, 1, 0.0).mean()) if not seed_sd else _truth(rng, world, seed_sd)
    figure = both = 0
    for _ in range(boards):
        chance = rng.choice(world, 200)
        a, b = draw(rng, chance, seeds, seed_sd), draw(rng, chance, 3, seed_sd)
        e, d = estimate(a), difference(a, b)
        figure += e.low <= truth <= e.high
        both += d.low <= 0 <= d.high
    return figure / boards, both / boards


def _truth(rng: np.random.Generator, world: np.ndarray, seed_sd: float) -> float:
    logit = np.log(world / (1 - world)) + rng.normal(0, seed_sd, world.shape)
    return float((1 / (1 + np.exp(-logit))).mean())


def test_equal_selectors_are_rarely_declared_different_quick():
    assert false_share(120) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


def test_the_smallest_effect_is_found_about_as_often_as_stated_quick():
    assert 0.65 <= power(80)[0] <= 0.95


@pytest.mark.slow
def test_equal_selectors_are_declared_different_at_most_at_the_nominal_rate_over_1000_boards():
    assert false_share(1000) <= 0.05 + 1.65 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_power_matches_the_stated_smallest_effect_over_1000_boards():
    assert power(1000)[0] == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "seed_sd", "mean"), [(1, 0.0, 0.6), (3, 0.0, 0.6), (5, 0.3, 0.6), (3, 0.3, 0.6), (3, 0.0, 0.95)]
)
def test_intervals_cover_at_their_nominal_rate(seeds, seed_sd, mean):
    figure, both = coverage(1000, seeds, seed_sd, mean)
    # three seeds with an effect of their own leave two degrees of freedom: 93 % instead of 95 %
    floor = 0.92 if seed_sd and seeds == 3 else 0.935
    assert figure >= floor
    assert both >= floor


GOLDEN = np.array([[1.0, 1, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]])


def test_seeds_that_draw_per_query_have_no_seed_part_and_others_do():
    by_task, by_query = variance_components(GOLDEN, "task"), variance_components(GOLDEN, "query")
    assert (by_task.query, by_task.seed) == (pytest.approx(0.0203704, abs=1e-6), pytest.approx(0.0296296, abs=1e-6))
    assert math.sqrt(by_task.query + by_task.seed) == pytest.approx(0.22361, abs=1e-5)
    assert (by_query.seed, math.sqrt(by_query.query)) == (0, pytest.approx(0.14272, abs=1e-5))
    assert by_query.seed_p == by_task.seed_p == pytest.approx(scipy_stats.f.sf(5, 2, 10))


def test_a_declared_scope_takes_the_cap_from_the_p_value():
    rng = np.random.default_rng(1)
    a, b = draw(rng, np.full(120, 0.14), 1), draw(rng, np.full(120, 0.3), 3)
    b[0, :30] = 1  # by chance one seed stands out
    assert difference(a, b, scopes=("none", "query")).p == sign_flip((a - b.mean(axis=0))[0], lattice=3)
    assert difference(a, b, scopes=("none", "task")).p > difference(a, b, scopes=("none", "query")).p


def test_two_lines_that_share_their_draws_are_paired_by_seed():
    rng = np.random.default_rng(4)
    chance = rng.beta(2, 2, 100)
    a = draw(rng, chance, 3, seed_sd=1.0)
    b = np.where(rng.random(a.shape) < 0.05, 1 - a, a)  # another template, the same demonstrations
    scopes = ("task", "task")
    paired, apart = difference(a, b, scopes=scopes, shared_draw=True), difference(a, b, scopes=scopes)
    assert paired.high - paired.low < apart.high - apart.low
    assert paired.value == apart.value


def pair(plus, minus, level):
    """One seed each: a right alone on ``plus`` queries, b alone on ``minus``."""
    a = np.array([[1.0] * plus + [0.0] * minus + [1.0] * level])
    b = np.array([[0.0] * plus + [1.0] * minus + [1.0] * level])
    return TaskPair(a, b)


TASKS = [pair(9, 3, 28), pair(14, 4, 82), pair(5, 5, 10)]


def test_pooling_over_these_tasks_gives_the_hand_computed_figures():
    by_query, by_task = pooled_difference(TASKS), pooled_difference(TASKS, by="task")
    assert (by_query.value, by_query.p) == (pytest.approx(0.1), pytest.approx(0.016589, abs=1e-6))
    assert by_query.p == pytest.approx(scipy_stats.binomtest(28, 40).pvalue)
    assert by_query.error == pytest.approx(0.03907, abs=1e-5)
    assert (by_task.value, by_task.p) == (pytest.approx(0.08333, abs=1e-5), pytest.approx(0.18878, abs=1e-5))
    assert by_task.error == pytest.approx(0.06249, abs=1e-5)


def test_pooling_one_task_is_that_task_and_equal_sizes_make_both_weights_one():
    one = pooled_difference(TASKS[:1])
    alone = difference(TASKS[0].a, TASKS[0].b)
    assert (one.value, one.p) == (pytest.approx(alone.value), pytest.approx(alone.p))
    equal = [pair(9, 3, 28), pair(4, 2, 34)]
    first, second = pooled_difference(equal), pooled_difference(equal, by="task")
    assert (first.value, first.p, first.error) == pytest.approx((second.value, second.p, second.error))


def test_swapping_the_sides_negates_a_pooled_difference_and_keeps_its_p():
    swapped = [TaskPair(t.b, t.a) for t in TASKS]
    there, back = pooled_difference(TASKS), pooled_difference(swapped)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)
    same = pooled_difference([TaskPair(t.a, t.a) for t in TASKS])
    assert (same.value, same.p) == (0, 1)


def test_new_tasks_have_the_hand_computed_intervals():
    found = new_tasks((0.45, 0.12, 0.05, 0.22, -0.03, 0.15), (0.05, 0.06, 0.04, 0.07, 0.05, 0.06))
    assert (found.value, found.p) == (pytest.approx(0.16), pytest.approx(0.0646, abs=1e-4))
    assert (found.low, found.high) == (pytest.approx(-0.0141, abs=1e-4), pytest.approx(0.3341, abs=1e-4))
    assert (found.next_low, found.next_high) == (pytest.approx(-0.318, abs=1e-3), pytest.approx(0.636, abs=1e-3))
    assert found.tau == pytest.approx(0.1705, abs=1e-4)
    assert new_tasks((0.1, 0.2), (0.05, 0.05)) is None


def test_average_ranks_share_ties_and_have_intervals_around_them():
    figures = np.array(
        [
            (0.80, 0.78, 0.60, 0.55, 0.50),
            (0.70, 0.74, 0.61, 0.60, 0.52),
            (0.66, 0.60, 0.62, 0.41, 0.44),
            (0.90, 0.85, 0.80, 0.82, 0.70),
            (0.55, 0.56, 0.50, 0.47, 0.48),
            (0.77, 0.71, 0.70, 0.60, 0.65),
        ]
    )
    assert average_ranks(figures.T) == pytest.approx([1.3333, 1.8333, 3, 4.3333, 4.5], abs=1e-4)
    rng = np.random.default_rng(0)
    values = [[draw(rng, np.full(80, c), 1) for c in (0.9, 0.5, 0.5)] for _ in range(3)]
    best, *rest = rank_estimates(values)
    assert best.value == best.low == best.high == 1
    assert all(r.low < r.high for r in rest)
    assert sum(r.value for r in (best, *rest)) == pytest.approx(6)


def test_false_discovery_rates_are_the_published_ones_and_rise_with_p():
    ps = [0.001, 0.008, 0.021, 0.04, 0.2, 0.5]
    assert false_discovery(ps) == pytest.approx([0.006, 0.024, 0.042, 0.06, 0.24, 0.5])
    by = false_discovery(ps, any_dependence=True)
    assert by == pytest.approx([0.0147, 0.0588, 0.1029, 0.147, 0.588, 1])
    assert all(b >= a for a, b in zip(false_discovery(ps), by, strict=True))
    assert false_discovery([]) == []


def test_macro_f1_is_tested_by_swapping_the_answers_of_a_query():
    gold, first, second = "aaabbbcc", "aaabbbca", "aababaaa"
    found = macro_f1_difference([first], [second], gold)
    assert found.value == pytest.approx(0.84127 - 0.28148, abs=1e-5)
    assert found.p == pytest.approx(0.125, abs=0.01)  # all 256 swaps give 0.125
    same = macro_f1_difference([first], [first], gold)
    assert (same.value, same.p) == (0, 1)
    back = macro_f1_difference([second], [first], gold)
    assert (back.value, back.p) == (pytest.approx(-found.value), pytest.approx(found.p, abs=0.01))


def test_macro_f1_differs_by_the_mean_of_all_seeds_of_both_sides():
    rng = np.random.default_rng(0)
    gold = list(rng.choice(list("abc"), 60))
    runs = [[g if rng.random() < share else "a" for g in gold] for share in (0.9, 0.5, 0.6, 0.7)]
    found = macro_f1_difference(runs[:1], runs[1:], gold, scopes=("none", "query"))
    expected = macro_f1(runs[0], gold) - np.mean([macro_f1(run, gold) for run in runs[1:]])
    assert found.value == pytest.approx(expected)
    back = macro_f1_difference(runs[1:], runs[:1], gold, scopes=("query", "none"))
    assert back.value == pytest.approx(-expected)
    assert found.low < found.value < found.high


def test_macro_f1_of_seeds_that_are_a_sample_claims_less():
    rng = np.random.default_rng(1)
    gold = list(rng.choice(list("ab"), 80))
    runs = [[g if rng.random() < share else "a" for g in gold] for share in (0.95, 0.55, 0.7)]
    other = [[g if rng.random() < 0.6 else "a" for g in gold]]
    sample = macro_f1_difference(runs, other, gold, scopes=("task", "none"))
    repeats = macro_f1_difference(runs, other, gold, scopes=("query", "none"))
    assert sample.high - sample.low > 1.2 * (repeats.high - repeats.low)
    assert sample.p > repeats.p


def test_smallest_effects_shrink_with_queries_and_no_drop_is_larger_than_the_baseline():
    rng = np.random.default_rng(2)
    sizes = []
    for queries in (60, 240, 960):
        a, b = draw(rng, np.full(queries, 0.16), 1), draw(rng, np.full(queries, 0.14), 3)
        gain, drop = smallest_effects(a, b, scopes=("none", "query"))
        assert drop <= b.mean() or math.isinf(drop)
        sizes.append(gain)
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_effects(np.ones((1, 50)), np.ones((1, 50)))[0] == math.inf  # no room above


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_the_smallest_effect_is_declared_in_four_of_five_tries(sign):
    rng = np.random.default_rng(sign + 5)
    declared, tries = 0, 400
    for _ in range(tries):
        chance = np.clip(rng.beta(2, 2, 150), 0.05, 0.95)
        a, b = draw(rng, chance, 1), draw(rng, chance, 1)
        gain, drop = smallest_effects(a, b)
        size = gain if sign > 0 else drop
        room = 1 - chance.mean() if sign > 0 else chance.mean()
        share = size / room
        moved = chance + share * (1 - chance) if sign > 0 else chance * (1 - share)
        declared += difference(draw(rng, moved, 1), b).p <= 0.05
    assert 0.74 <= declared / tries <= 0.86
