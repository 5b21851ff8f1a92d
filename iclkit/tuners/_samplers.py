"""What is tried next: samplers of ordered lists for Optuna.

A trial's parameters are ``pos_0`` … ``pos_{k-1}``, candidate rows in prompt order, and ``instruction`` where there is
one to choose. Every sampler here proposes all of them together, never a row twice, and no list that another trial has
or is about to have. Proposals depend on seed, trial number and what the storage shows, not on the process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from iclkit.errors import UnknownName, UsageError
from iclkit.registry import parse_spec
from iclkit.settings import check_settings, describe_settings, read_settings, setting
from iclkit.tuners import _net
from iclkit.tuners._bandit import FloatArray, acquisition, distinct_lists, standardise, ucb_widths
from iclkit.tuners._space import Arm, SearchSpace

if TYPE_CHECKING:
    from optuna import Study

_TRIES = 64  # draws for one that is new, before the rest is searched
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The parameters of a trial."""
    rows = CategoricalDistribution([*range(space.rows)])
    made: dict[str, BaseDistribution] = {f"pos_{i}": rows for i in range(space.k)}
    if space.instructions > 1:
        made["instruction"] = CategoricalDistribution([*range(space.instructions)])
    return made


def params_of(arm: Arm, space: SearchSpace) -> dict[str, int]:
    """An arm as parameters."""
    made = {f"pos_{i}": int(row) for i, row in enumerate(arm.rows)}
    return made | ({"instruction": arm.instruction} if space.instructions > 1 else {})


def arm_of(trial: FrozenTrial, space: SearchSpace) -> Arm | None:
    """The arm of a trial, also of one that waits to be run; None while it is not known."""
    params: Mapping[str, Any] = trial.params or trial.system_attrs.get("fixed_params", {})
    try:
        rows = tuple(int(params[f"pos_{i}"]) for i in range(space.k))
    except KeyError:
        return None
    if space.instructions > 1 and "instruction" not in params:
        return None
    return Arm(rows, int(params.get("instruction", 0)))


def history(study: Study, space: SearchSpace) -> tuple[list[tuple[Arm, float]], list[Arm]]:
    """(tried arms with their values in order of their number, arms under way).

    A pruned trial's value is its last partial mean, moved by how much full means differ from partial ones at that step.
    Failed trials never were.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, *_LIVE))
    whole = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    tried, live = [], []
    for trial in trials:
        arm = arm_of(trial, space)
        if arm is None:
            continue
        if trial.state in _LIVE:
            live.append(arm)
        elif trial.state == TrialState.COMPLETE and trial.value is not None:
            tried.append((arm, trial.value))
        elif trial.intermediate_values:
            step = max(trial.intermediate_values)
            moved = [t.value - t.intermediate_values[step] for t in whole
                     if t.value is not None and step in t.intermediate_values]  # fmt: skip
            tried.append((arm, trial.intermediate_values[step] + (float(np.mean(moved)) if moved else 0.0)))
    return tried, live


@dataclass(frozen=True)
class SamplerSettings:
    """The settings of a sampler; this one is for samplers without any."""

    sampler: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_settings(self, f"sampler {self.sampler!r}")


class OrderedSetSampler(BaseSampler):
    """Proposes ordered lists; other parameters are drawn at random.

    ``settings`` are those of ``settings_class``.
    """

    name = ""
    settings_class: ClassVar[type[SamplerSettings]] = SamplerSettings

    def __init__(self, space: SearchSpace, *, seed: int = 0, **settings: Any) -> None:
        self.space, self.seed = space, seed
        defaults = {each.name: each.default for each in describe_settings(self.settings_class)}
        self.options: Any = self.settings_class(
            **read_settings(self.settings_class, settings, f"sampler {self.name!r}")
        )
        self.settings: dict[str, Any] = {**defaults, **settings}

    @abstractmethod
    def next_arm(
        self, study: Study, trial: FrozenTrial, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm]
    ) -> Arm:
        """The arm of a trial. ``tried`` in order of number; ``waiting`` are the arms under way."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """All positions, and the instruction."""
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the next arm."""
        if not search_space:
            return {}
        self._raise_error_if_multi_objective(study)
        tried, live = history(study, self.space)
        if study.direction == optuna.study.StudyDirection.MINIMIZE:
            tried = [(arm, -value) for arm, value in tried]
        return params_of(self.next_arm(study, trial, tried, live), self.space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is none of ours, uniformly."""
        fresh = optuna.samplers.RandomSampler(seed=int(self.rng(trial, param_name).integers(2**31)))
        return fresh.sample_independent(study, trial, param_name, param_distribution)

    def rng(self, trial: FrozenTrial, word: str = "") -> np.random.Generator:
        """The trial's own generator."""
        return np.random.default_rng([self.seed, trial.number, *word.encode()])

    def fresh(self, taken: frozenset[Arm], rng: np.random.Generator) -> Arm:
        """An arm at random that is not taken; any arm when all that could be found are."""
        arm = Arm(())
        for _ in range(_TRIES):
            rows = tuple(int(r) for r in rng.permutation(self.space.rows)[: self.space.k])
            arm = Arm(rows, int(rng.integers(self.space.instructions)))
            if arm not in taken:
                return arm
        lists = distinct_lists(self.space.rows, self.space.k, 4096, rng).tolist()
        left = (Arm(tuple(r), i) for r in lists for i in range(self.space.instructions))
        return next((a for a in left if a not in taken), arm)


class SetSampler(OrderedSetSampler):
    """A strategy is its ``propose``: a function of what was tried, what is under way, and the trial's generator."""

    @abstractmethod
    def propose(self, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm], rng: np.random.Generator) -> Arm:
        """The next arm. ``tried`` in order of number; ``waiting`` are the arms under way."""

    def next_arm(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        tried: Sequence[tuple[Arm, float]],
        waiting: Sequence[Arm],
    ) -> Arm:
        """What the strategy proposes."""
        return self.propose(tried, waiting, self.rng(trial))


def _taken(tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm]) -> frozenset[Arm]:
    """The arms that need not be proposed again."""
    return frozenset([*(arm for arm, _ in tried), *waiting])


class BestOfNSampler(SetSampler):
    """Lists at random, all alike and none twice: the best of n."""

    name = "best-of-n"

    def propose(self, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm], rng: np.random.Generator) -> Arm:
        """A new list."""
        taken = _taken(tried, waiting)
        return self.fresh(taken, rng)


class EvolutionSampler(SetSampler):
    """The best list so far with one place filled anew; the later of equal ones is the parent, so that it can drift."""

    name = "evolution"

    def propose(self, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm], rng: np.random.Generator) -> Arm:
        """A child that is new and has no row twice."""
        taken = _taken(tried, waiting)
        if not tried:
            return self.fresh(taken, rng)
        parent = max(enumerate(tried), key=lambda each: (each[1][1], each[0]))[1][0]
        for _ in range(_TRIES):
            rows, words = [*parent.rows], parent.instruction
            place = int(rng.integers(self.space.k + (self.space.instructions > 1)))
            if place == self.space.k:
                words = int(rng.integers(self.space.instructions))
            else:
                others = sorted({*range(self.space.rows)} - {*rows})
                if not others:
                    return self.fresh(taken, rng)
                rows[place] = others[int(rng.integers(len(others)))]
            if (child := Arm(tuple(rows), words)) not in taken:
                return child
        return self.fresh(taken, rng)


class OptunaSampler(OrderedSetSampler):
    """A sampler of Optuna's own, asked for one position after the other until a row comes that is not there yet."""

    @abstractmethod
    def inner(self, seed: int) -> BaseSampler:
        """Optuna's sampler, made anew for every trial so that nothing hangs on a process."""

    def next_arm(
        self, study: Study, trial: FrozenTrial, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm]
    ) -> Arm:
        """The first list of a few that is new."""
        taken, rng = _taken(tried, waiting), self.rng(trial)
        inner = self.inner(int(rng.integers(2**31)))
        for _ in range(8):
            rows: list[int] = []
            dists = distributions(self.space)
            words = int(inner.sample_independent(study, trial, "instruction", dists.pop("instruction"))) if (
                "instruction" in dists) else 0  # fmt: skip
            for name, dist in dists.items():
                drawn = (int(inner.sample_independent(study, trial, name, dist)) for _ in range(_TRIES))
                left = sorted({*range(self.space.rows)} - {*rows})
                rows.append(next((r for r in drawn if r not in rows), left[int(rng.integers(len(left)))]))
            if (arm := Arm(tuple(rows), words)) not in taken:
                return arm
        return self.fresh(taken, rng)


class RandomSetSampler(OptunaSampler):
    """Optuna's random search."""

    name = "random"

    def inner(self, seed: int) -> BaseSampler:
        """RandomSampler."""
        return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class TPESettings(SamplerSettings):
    """The settings of ``TPESetSampler``."""

    sampler: ClassVar[str] = "tpe"

    startup: int = setting(10, "lists at random before the estimator is used", ge=1)


class TPESetSampler(OptunaSampler):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), over rows as categories."""

    name = "tpe"
    settings_class = TPESettings

    def inner(self, seed: int) -> BaseSampler:
        """TPESampler, with running trials counted as bad so that workers spread out."""
        return optuna.samplers.TPESampler(n_startup_trials=self.options.startup, seed=seed, constant_liar=True)


@dataclass(frozen=True)
class EaseSettings(SamplerSettings):
    """The settings of ``EaseSampler``."""

    sampler: ClassVar[str] = "ease"

    warmup: int = setting(10, "lists at random before the network is used", ge=1)
    nu: float = setting(0.01, "weight of the uncertainty; under the square root, as in the reference code", gt=0)
    prior: float = setting(0.1, "diagonal of the confidence matrix before any list was played", gt=0)
    style: Literal["ucb", "ts"] = setting("ucb", "mean plus uncertainty, or a draw (Thompson sampling)")
    update: Literal["played", "batch"] = setting("played", "lists in the confidence: the played ones, or all winners")
    domain: int = setting(2000, "lists that are drawn at random for a proposal", ge=1)
    keep: int = setting(500, "lists of a proposal that are scored", ge=1)
    neighbors: float = setting(0.5, "share of these that are neighbors of the best lists so far", ge=0, le=1)
    batches: int = setting(20, "winners of a proposal under update=batch", ge=1)
    width: int = setting(256, "units of a hidden layer", ge=1)
    hidden: int = setting(1, "hidden layers", ge=1)
    steps: int = setting(100, "steps of Adam for each fit", ge=1)
    rate: float = setting(0.01, "learning rate of Adam", gt=0)
    targets: Literal["standard", "raw"] = setting("standard", "values that are fitted: standardized, or as they are")


class EaseSampler(SetSampler):
    """NeuralUCB over ordered lists: a network's prediction plus what its gradient says is not known yet.

    EASE (Wu et al. 2024, NeurIPS, arXiv 2405.16122). After ``warmup`` lists at random, each proposal: fits the network
    anew from its first weights to all that was tried; draws ``domain`` lists, of which those ``keep`` remain that are
    nearest to the validation items by optimal transport; scores each, crossed with up to ten instructions, and takes
    the best new one. ``neighbors`` is the share of the lists scored that are the best lists so far with one place
    filled anew or two exchanged, which a random draw from millions would not hold; 0 is the paper's way.

    The confidence matrix is the diagonal ``prior`` + g², over every arm played, the first ones included, and every arm
    under way, whose value is not known but whose gradient is; all under the present network (``update=played``).
    ``update=batch`` is what the reference code does: ``batches`` winners of a proposal enter it, only one of which is
    played, and it is kept in this process from proposal to proposal. See ``EaseSettings``.
    """

    name = "ease"
    settings_class = EaseSettings

    def __init__(self, space: SearchSpace, *, seed: int = 0, **settings: Any) -> None:
        super().__init__(space, seed=seed, **settings)
        if space.features is None:
            raise UsageError("ease needs features of the lists; give an embedder")
        self.features = space.features
        self._winners: FloatArray | None = None  # squared gradients of all winners so far, for update=batch

    def propose(self, tried: Sequence[tuple[Arm, float]], waiting: Sequence[Arm], rng: np.random.Generator) -> Arm:
        """The list of highest acquisition; at random while fewer than ``warmup`` were tried or are under way."""
        taken = _taken(tried, waiting)
        if len(taken) < self.options.warmup or not tried:
            return self.fresh(taken, rng)
        arms = [a for a in self.candidates(tried, rng) if a not in taken]
        if not arms:
            return self.fresh(taken, rng)
        seen = self._look([a for a, _ in tried])
        sizes = (seen.shape[1], *[self.options.width] * self.options.hidden, 1)
        theta = _net.start(sizes, np.random.default_rng(self.seed))  # always the same: a fit depends on data alone
        values = np.array([value for _, value in tried])
        if self.options.targets == "standard":
            values = (values - values.mean()) / (values.std() or 1.0)
        x = standardise(seen, seen)
        theta = _net.fit(
            theta,
            sizes,
            x,
            values,
            steps=self.options.steps,
            rate=self.options.rate,
            decay=self.options.prior / len(values),
        )
        features = standardise(seen, self._look(arms))
        if self.options.update == "batch":
            return arms[self._of_batches(theta, sizes, features, rng)]
        played = _net.sum_of_squares(theta, sizes, standardise(seen, self._look(sorted(taken))))
        scores = self._scores(theta, sizes, features, played, rng)
        return arms[int(np.argmax(scores))]

    def candidates(self, tried: Sequence[tuple[Arm, float]], rng: np.random.Generator) -> list[Arm]:
        """The arms to be scored, each once."""
        space = self.space
        near = round(self.options.neighbors * self.options.keep)
        far = distinct_lists(space.rows, space.k, self.options.domain, rng)
        if space.costs is not None:
            far = space.nearest(far, max(1, self.options.keep - near))
        ranked = sorted(tried, key=lambda each: -each[1])[:5]
        close = [_neighbor(ranked[n % len(ranked)][0].rows, space.rows, rng) for n in range(near)]
        words = rng.permuted(np.tile(np.arange(space.instructions), (len(far) + near, 1)), axis=1)[:, :10]
        lists = [*map(tuple, far.tolist()), *close]
        return [*dict.fromkeys(Arm(rows, int(i)) for rows, own in zip(lists, words, strict=True) for i in own)]

    def _scores(
        self, theta: FloatArray, sizes: Sequence[int], x: FloatArray, played: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        spreads = ucb_widths(theta, sizes, x, played, self.options.prior, self.options.nu)
        return acquisition(_net.predict(theta, sizes, x), spreads, self.options.style, rng)

    def _of_batches(self, theta: FloatArray, sizes: Sequence[int], x: FloatArray, rng: np.random.Generator) -> int:
        """The best of the batches' winners, each of which enters the confidence."""
        if self._winners is None or len(self._winners) != len(theta):
            self._winners = np.zeros(len(theta))
        best, best_score = 0, -np.inf
        for part in np.array_split(rng.permutation(len(x)), min(self.options.batches, len(x))):
            scores = self._scores(theta, sizes, x[part], self._winners, rng)
            won = int(np.argmax(scores))
            self._winners = self._winners + _net.sum_of_squares(theta, sizes, x[part[won : won + 1]])
            if scores[won] > best_score:
                best, best_score = int(part[won]), float(scores[won])
        return best

    def _look(self, arms: Sequence[Arm]) -> FloatArray:
        lists = np.array([a.rows for a in arms], dtype=np.int64)
        return np.asarray(self.features(lists, np.array([a.instruction for a in arms])), dtype=np.float64)


def _neighbor(rows: tuple[int, ...], n: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The list with one place filled anew, or (half of the time) two places exchanged."""
    made = [*rows]
    if len(made) > 1 and (len(made) == n or rng.random() < 0.5):
        a, b = rng.choice(len(made), 2, replace=False)
        made[a], made[b] = made[b], made[a]
    elif len(made) < n:
        others = sorted({*range(n)} - {*made})
        made[int(rng.integers(len(made)))] = others[int(rng.integers(len(others)))]
    return tuple(made)


SAMPLERS: dict[str, type[OrderedSetSampler]] = {
    s.name: s for s in (EaseSampler, RandomSetSampler, TPESetSampler, BestOfNSampler, EvolutionSampler)
}


def sampler_options(spec: str) -> SamplerSettings:
    """The settings of a spec such as ``"ease,style=ts"``.

    UnknownName for a sampler or a setting that does not exist, UsageError for a value that it does not take.
    """
    wanted = parse_spec(spec)
    if wanted.name not in SAMPLERS:
        raise UnknownName("sampler", wanted.name, SAMPLERS)
    kind = SAMPLERS[wanted.name].settings_class
    return kind(**read_settings(kind, wanted.settings, f"sampler {wanted.name!r}"))


def make_sampler(spec: str, space: SearchSpace, seed: int = 0) -> OrderedSetSampler:
    """The sampler of a spec such as ``"ease,style=ts"``. UnknownName, UsageError as for selectors."""
    sampler_options(spec)
    wanted = parse_spec(spec)
    return SAMPLERS[wanted.name](space, seed=seed, **dict(wanted.settings))
