"""Statistics against answers that are known: constructed data, and another implementation (statsmodels)."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from iclkit.eval import TaskPair, difference, holm, new_tasks, pooled_difference, variance_components


def draw(rng, chance, seeds=1):
    return (rng.random((seeds, len(chance))) < chance).astype(float)


def test_two_identical_selectors_never_differ():
    rng = np.random.default_rng(0)
    for n in range(50):
        x = draw(rng, rng.uniform(0.1, 0.9, 40), seeds=1 + n % 3)
        for scopes in (("none", "none"), ("query", "query"), ("task", "task")):
            d, over = difference(x, x, scopes=scopes), pooled_difference([TaskPair(x, x, scopes)] * 3)
            assert (d.value, d.p, over.value, over.p) == (0.0, 1.0, 0.0, 1.0)
            assert d.low <= 0.0 <= d.high
        assert new_tasks([0.0] * 3, [0.1] * 3).p == 1.0


def test_a_constant_shift_of_15_points_is_found_at_the_stated_rate():
    rng, found, said = np.random.default_rng(1), [], []
    for _ in range(600):
        chance = rng.uniform(0.1, 0.75, 104)
        b, a = draw(rng, chance, 3), draw(rng, chance + 0.15)
        d = difference(a, b, scopes=("none", "query"))
        found.append(d.p <= 0.05)
        said.append(d.smallest_gain)
    assert np.mean(said) == pytest.approx(0.15, abs=0.01)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_a_constant_shift_over_six_tasks_is_found_by_pooling_and_hardly_by_a_corrected_table():
    rng, alone, pooled = np.random.default_rng(2), [], []
    for _ in range(40):
        pairs = []
        for _ in range(6):
            chance = rng.uniform(0.1, 0.8, 50)
            pairs.append(TaskPair(draw(rng, chance + 0.15), draw(rng, chance, 3), ("none", "query")))
        alone.append(np.mean([pooled_difference([p]).p <= 0.05 / 48 for p in pairs]))
        pooled.append(pooled_difference(pairs).p <= 0.05 / 48)
    assert np.mean(alone) < 0.3
    assert np.mean(pooled) > 0.85


def test_further_questions_take_power_from_a_corrected_one_and_none_from_a_declared_one():
    p, rest = 0.01, [0.5] * 40
    assert holm([p])[0] == p
    assert holm([p, *rest])[0] == pytest.approx(0.41)


@pytest.fixture
def formula():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only looked at
        yield pytest.importorskip("statsmodels.formula.api", reason="no statsmodels: pip install iclkit[dev]")


@pytest.mark.parametrize("key", [3, 5])
def test_variance_components_are_those_of_a_mixed_model(formula, key):
    """Restricted maximum likelihood with crossed effects of queries and seeds."""
    import pandas as pd

    rng = np.random.default_rng(key)
    seeds, queries = 4, 25
    x = rng.normal(0, 1, (1, queries)) + rng.normal(0, 0.7, (seeds, 1)) + rng.normal(0, 0.5, (seeds, queries))
    rows = pd.DataFrame({"y": x.ravel(), "seed": np.repeat(np.arange(seeds), queries),
                         "query": np.tile(np.arange(queries), seeds), "one": 1})  # fmt: skip
    parts = {"seed": "0 + C(seed)", "query": "0 + C(query)"}
    fit = formula.mixedlm("y ~ 1", rows, groups="one", vc_formula=parts).fit(reml=True)
    own = variance_components(x, "task")
    assert own.mean == pytest.approx(fit.params["Intercept"], abs=1e-6)
    assert math.sqrt(own.query + own.seed) == pytest.approx(fit.bse["Intercept"], rel=1e-3)


def test_a_paired_difference_has_the_error_of_a_mixed_model(formula):
    """A random intercept per query is what pairing by query takes out."""
    import pandas as pd

    rng = np.random.default_rng(4)
    chance = rng.uniform(0.1, 0.9, 60)
    a, b = draw(rng, chance), draw(rng, chance)
    rows = pd.DataFrame({"y": np.concatenate([a[0], b[0]]), "line": np.repeat([1, 0], 60),
                         "query": np.tile(np.arange(60), 2)})  # fmt: skip
    fit = formula.mixedlm("y ~ line", rows, groups="query").fit(reml=True)
    own = pooled_difference([TaskPair(a, b, ("none", "none"))])
    assert own.value == pytest.approx(fit.params["line"], abs=1e-9)
    assert own.error == pytest.approx(fit.bse["line"], rel=1e-3)
