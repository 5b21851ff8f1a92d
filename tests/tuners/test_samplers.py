"""Samplers as Optuna sees them, and what they find where the best list is known."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from iclkit.errors import UnknownName, UsageError
from iclkit.testing import OrderedSetProblem
from iclkit.tuners import SAMPLERS, PositionFeatures, SearchSpace, arm_of, distributions, make_sampler, tune_preset
from iclkit.tuners._samplers import history

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPECS = [*SAMPLERS, "ease,style=ts", "ease,update=batch,batches=4", "ease,neighbors=0.0"]
SPACE = SearchSpace(8, 3, features=PositionFeatures(np.random.default_rng(0).standard_normal((8, 4)), 3))


def search(spec, space, value, trials, seed=0, batch=1):
    """Arms in order of trial, asked for ``batch`` at a time."""
    study = optuna.create_study(direction="maximize", sampler=make_sampler(spec, space, seed))
    arms = []
    while len(arms) < trials:
        asked = [study.ask(distributions(space)) for _ in range(min(batch, trials - len(arms)))]
        for trial in asked:
            arms.append(arm_of(study._storage.get_trial(trial._trial_id), space))
            study.tell(trial, value(arms[-1]))
    return arms


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::optuna.exceptions.ExperimentalWarning")
class TestAsOptunaWantsThem(BasicSamplerTestCase):
    @pytest.fixture(params=[*SAMPLERS])
    def sampler(self, request):
        return lambda: make_sampler(request.param, SPACE)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("batch", [1, 5])
def test_no_list_has_a_row_twice_and_no_list_comes_twice(spec, batch):
    arms = search(spec, SPACE, lambda arm: float(arm.rows[0]), 40, batch=batch)
    assert len({*arms}) == 40
    assert all(len({*arm.rows}) == 3 for arm in arms)


@pytest.mark.parametrize("spec", SPECS)
def test_every_list_there_is_gets_its_turn(spec):
    small = SearchSpace(3, 2, features=PositionFeatures(np.eye(3), 2))
    arms = search(spec, small, lambda arm: float(arm.rows[0]), 6)
    assert {a.rows for a in arms} == {*itertools.permutations(range(3), 2)}


@pytest.mark.parametrize("spec", ["ease,warmup=4", "tpe,startup=4", "evolution", "best-of-n", "random"])
def test_proposals_hang_on_seed_and_storage_and_not_on_the_process(spec):
    def value(arm):
        return sum(arm.rows[:2]) / 20

    straight = search(spec, SPACE, value, 12, seed=3)
    storage = optuna.storages.InMemoryStorage()
    resumed = []
    for _ in range(12):  # a fresh sampler for every trial, as if every one were another process
        study = optuna.create_study(
            storage=storage, study_name="s", load_if_exists=True, direction="maximize",
            sampler=make_sampler(spec, SPACE, 3),
        )  # fmt: skip
        trial = study.ask(distributions(SPACE))
        resumed.append(arm_of(storage.get_trial(trial._trial_id), SPACE))
        study.tell(trial, value(resumed[-1]))
    assert resumed == straight
    assert search(spec, SPACE, value, 12, seed=4) != straight


def test_all_samplers_begin_with_a_draw_and_best_of_n_is_only_that():
    first = [search(s, SPACE, lambda _: 0.0, 1, seed=5)[0] for s in ("ease", "best-of-n", "evolution")]
    assert len({*first}) == 1
    values = [search("best-of-n", SPACE, f, 9) for f in (lambda arm: 0.0, lambda arm: float(arm.rows[0]))]
    assert values[0] == values[1]


def test_evolution_changes_one_place_of_the_best_and_a_rejected_child_changes_nothing():
    def value(arm):
        return -sum(abs(row - 40) for row in arm.rows)

    arms = search("evolution", SearchSpace(60, 3), value, 40)
    for n in range(1, 40):
        best = max(value(a) for a in arms[:n])
        parents = [a for a in arms[:n] if value(a) == best]
        assert sum(x != y for x, y in zip(arms[n].rows, parents[-1].rows, strict=True)) == 1
    assert max(map(value, arms)) > value(arms[0])


def test_pruned_trials_teach_and_failed_ones_do_not():
    study = optuna.create_study(direction="maximize")
    for n, (half, whole, state) in enumerate(
        [(0.5, 0.7, "COMPLETE"), (0.3, 0.5, "COMPLETE"), (0.1, None, "PRUNED"), (None, None, "FAIL")]
    ):
        trial = study.ask(distributions(SPACE))
        if half is not None:
            trial.report(half, 10)
        study.tell(trial, whole, state=optuna.trial.TrialState[state]) if state != "COMPLETE" else study.tell(
            trial, whole
        )
        assert trial.number == n
    running = study.ask(distributions(SPACE))
    tried, live = history(study, SPACE)
    assert [round(v, 6) for _, v in tried] == [0.7, 0.5, 0.3]  # a full mean is 0.2 above its half on average
    assert live == [arm_of(study._storage.get_trial(running._trial_id), SPACE)]


def test_the_instruction_is_searched_with_the_list():
    space = replace(
        SPACE, instructions=4, features=PositionFeatures(np.random.default_rng(0).standard_normal((8, 4)), 3, np.eye(4))
    )
    for spec in SAMPLERS:
        arms = search(spec, space, lambda arm: float(arm.instruction == 2), 30)
        assert 2 <= len({a.instruction for a in arms}) <= 4
        assert len({*arms}) == 30
    later = [a.instruction for a in search("ease", space, lambda arm: float(arm.instruction == 2), 40)][20:]
    assert later.count(2) > 12


def test_one_instruction_gives_the_lists_of_a_search_without():
    plain = search("ease,warmup=4", SPACE, lambda arm: arm.rows[0] / 8, 12)
    words = replace(SPACE, features=PositionFeatures(SPACE.features.vectors, 3, np.ones((1, 5))))
    assert search("ease,warmup=4", words, lambda arm: arm.rows[0] / 8, 12) == plain


def first_at(problem, spec, level, trials, seed):
    """The trial that first reached a value; trials + 1 where none did."""
    space = SearchSpace(problem.n, problem.k, features=PositionFeatures(problem.vectors, problem.k))
    arms = search(spec, space, lambda arm: problem.value(arm.rows), trials, seed)
    return next((n for n, a in enumerate(arms, 1) if problem.value(a.rows) >= level), trials + 1)


@pytest.mark.parametrize("ordered", [True, False])
def test_the_best_list_of_the_synthetic_problem_is_the_best_of_all(ordered):
    problem = OrderedSetProblem(6, 3, seed=1, ordered=ordered)
    values = {rows: problem.value(rows) for rows in itertools.permutations(range(6), 3)}
    assert max(values.values()) == pytest.approx(problem.value(problem.best)) == pytest.approx(1)
    assert min(values.values()) == pytest.approx(0)
    turned = {round(values[rows], 9) for rows in itertools.permutations(problem.best)}
    assert (len(turned) > 1) == ordered


@pytest.mark.parametrize("ordered", [True, False])
def test_the_bandit_gets_near_the_best_in_fewer_trials(ordered):
    seeds = range(3)
    problems = [OrderedSetProblem(60, 3, dim=4, seed=s, ordered=ordered) for s in seeds]
    mean = {
        spec: np.mean([first_at(p, spec, 0.95, 35, s) for s, p in zip(seeds, problems, strict=True)])
        for spec in ("ease,domain=500", "random", "tpe")
    }
    assert mean["ease,domain=500"] + 4 < min(mean["random"], mean["tpe"]), mean


def test_where_nothing_tells_lists_apart_curiosity_finds_the_one_place_that_counts_sooner_than_chance():
    """Item 7 last is worth 1, all else 0.3: n = 20, k = 3, 20 seeds, one-hot positions."""
    space = SearchSpace(20, 3, features=PositionFeatures(np.eye(20), 3))

    def first(spec, seed):
        study = optuna.create_study(direction="maximize", sampler=make_sampler(spec, space, seed))
        for n in range(1, 61):
            trial = study.ask(distributions(space))
            if trial.params["pos_2"] == 7:
                return n
            study.tell(trial, 0.3)
        return 61

    mean = {spec: np.mean([first(spec, s) for s in range(20)]) for spec in ("ease,nu=1.0,domain=300", "best-of-n")}
    assert mean["ease,nu=1.0,domain=300"] + 2 < mean["best-of-n"], mean


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("eas", UnknownName, "Did you mean 'ease'"),
        ("ease,nuu=1", UnknownName, "Did you mean 'nu'"),
        ("ease,nu=much", UsageError, "sampler 'ease': nu is much; give a finite number above 0"),
        ("ease,warmup=1.5", UsageError, "warmup is 1.5; give a whole number of 1 or more"),
        ("ease,style=greedy", UsageError, "style is greedy; choose from ucb, ts"),
        ("ease,keep=0", UsageError, "keep is 0; give a whole number of 1 or more"),
        ("ease,targets=foo", UsageError, "targets is foo; choose from standard, raw"),
        ("ease,update=often", UsageError, "choose from played, batch"),
        ("tpe,startup=0", UsageError, "startup is 0"),
        ("random,startup=3", UnknownName, "no setting of sampler 'random' named 'startup'"),
        ("ease,neighbors=2", UsageError, "neighbors is 2.0; give a number from 0 to 1"),
    ],
)
def test_a_sampler_that_is_not_there_or_not_so_is_named(spec, error, says):
    with pytest.raises(error, match=says):
        make_sampler(spec, SPACE)
    with pytest.raises(UsageError, match="needs features"):
        make_sampler("ease", SearchSpace(5, 2))


def test_minimising_is_maximising_the_negative():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="minimize", sampler=make_sampler("ease,warmup=4", SPACE, 0))
    arms = []
    for _ in range(12):
        trial = study.ask(distributions(SPACE))
        arms.append(arm_of(study._storage.get_trial(trial._trial_id), SPACE))
        study.tell(trial, -arms[-1].rows[0] / 8)
    assert arms == search("ease,warmup=4", SPACE, lambda arm: arm.rows[0] / 8, 12)


def test_the_paper_preset_proposes_through_transport_and_batches_and_its_values_are_those_of_the_code(monkeypatch):
    paper = tune_preset("paper")
    assert (paper.k, paper.trials, paper.validation, paper.candidates, paper.features) == (5, 165, 20, 100, "block")
    assert tune_preset("paper", trials=3, k="4").k == 4
    rng = np.random.default_rng(0)
    space = SearchSpace(12, 3, features=PositionFeatures(rng.standard_normal((12, 8)), 3), costs=rng.random((12, 6)))
    sampler = make_sampler(paper.sampler, space)
    assert (sampler.options.warmup, sampler.options.domain, sampler.options.keep) == (40, 50_000, 1000)
    assert (sampler.options.targets, sampler.options.update, sampler.options.neighbors) == ("raw", "batch", 0.0)
    small = paper.sampler.replace("domain=50000", "domain=400").replace("keep=1000", "keep=40").replace("=40,w", "=4,w")
    drawn, nearest = [], SearchSpace.nearest

    def remembered(self, lists, keep):
        drawn.append(lists)
        return nearest(self, lists, keep)

    monkeypatch.setattr(SearchSpace, "nearest", remembered)
    arms = search(small.replace("steps=1000", "steps=5"), space, lambda arm: float(arm.rows[0] == 3), 7)
    assert len({*arms}) == 7
    assert [len(lists) for lists in drawn] == [400] * 3
    for arm, lists in zip(arms[4:], drawn, strict=True):
        assert [*arm.rows] in nearest(space, lists, 40).tolist(), "only lists near the validation items are scored"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ease,targets=foo", "targets is foo; choose from standard, raw"),
        ("ease,warm=3", "no setting of sampler 'ease' named 'warm'"),
        ("eas", "no sampler named 'eas'"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_loaded(spec, said):
    with pytest.raises(UsageError, match=said):
        tune_preset("small", sampler=spec)
    with pytest.raises(UsageError, match="no preset named 'huge'"):
        tune_preset("huge")
