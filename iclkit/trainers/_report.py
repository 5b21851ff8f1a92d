"""How well a retriever chooses, beside random choices, BM25, the untrained embedder and the best choices there were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder
from iclkit.eval import Estimate, estimate
from iclkit.records import Example, Json
from iclkit.trainers._config import Source, TrainConfig, sources
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import feedback_value, is_correct
from iclkit.trainers._method import Session, mine_candidates
from iclkit.trainers._sets import DRAWS, set_prompt

if TYPE_CHECKING:
    from iclkit.trainers._ledger import LabelScores

FloatArray = NDArray[np.float64]
Rows = tuple[int, ...]
FROM_CANDIDATES, FROM_POOL = "among the candidates", "from the whole pool"
_RESAMPLES = 2000  # of the bootstrap
_NAN = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class SelectorSetup:
    """A selector by its spec, and the embedder it chooses with, if any."""

    selector: str
    embedder: Embedder | None = None


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """The figures of one way of choosing demonstrations.

    ``gain``: mean value over that of random candidates, in nats, with its 95 % interval over queries. ``accuracy``:
    share of right answers, None where answers are free.
    """

    name: str
    pool: str
    gain: Estimate
    accuracy: Estimate | None


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task's strategies of choosing ``shots`` demonstrations.

    ``oracle_share``: the trained retriever's gain as a share of the gain of the best candidates (the oracle), with its
    95 % bootstrap interval; nan where the oracle gains nothing.
    """

    task: str
    queries: int
    shots: int
    strategies: tuple[StrategyResult, ...]
    oracle_share: Estimate

    def as_dict(self) -> dict[str, Json]:
        """Plain numbers for the card, under the names that cards have had from the start."""
        strategies: list[Json] = [
            {
                "name": s.name,
                "pool": s.pool,
                "gain": asdict(s.gain),
                "right": asdict(s.accuracy) if s.accuracy else None,
            }
            for s in self.strategies
        ]
        return {
            "task": self.task, "queries": self.queries, "shots": self.shots, "ways": strategies,
            "captured": asdict(self.oracle_share),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, report: Mapping[str, Any]) -> TaskReport:
        """The report of a card. LookupError, TypeError or AttributeError for one that is damaged."""

        def number(figures: Mapping[str, float | None]) -> Estimate:
            return Estimate(**{k: float("nan") if v is None else v for k, v in figures.items()})

        strategies = tuple(
            StrategyResult(w["name"], w["pool"], number(w["gain"]), number(w["right"]) if w["right"] else None)
            for w in report["ways"]
        )
        return cls(report["task"], report["queries"], report.get("shots", 1), strategies, number(report["captured"]))


def report_on(
    s: Session[TrainConfig], task: TaskData, setups: Mapping[str, SelectorSetup], method: str, size: int
) -> TaskReport:
    """Let each selector choose ``size`` demonstrations for the task's report queries, and have the LM score them.

    Among the candidates, which were mined as in training, all but the oracle choose without the LM. The oracle adds
    demonstrations greedily: each time the candidate that is best behind those it has. ``method`` names the setup whose
    share of the oracle's gain is reported.
    """
    queries = list(task.report)
    candidates = mine_candidates(s, task, queries)
    drawn = [_random_sets(s, q, rows, size) for q, rows in zip(queries, candidates, strict=True)]
    random = _score(s, task, queries, drawn, f"{task.name}: report")
    best = _oracle(s, task, queries, candidates, size)
    kept = [n for n, scores in enumerate(random) if best[n] is not None and any(scores)]
    queries, candidates = [queries[n] for n in kept], [candidates[n] for n in kept]
    baseline = [[scores for scores in random[n] if scores is not None] for n in kept]
    chance = np.array([np.mean([_value(s, scores) for scores in each]) for each in baseline])
    oracle = [best[n] for n in kept]
    strategies = [
        StrategyResult(
            "random", FROM_CANDIDATES, estimate(np.zeros((1, len(chance))), bounded=False), _mean_accuracy(baseline)
        )
    ]
    share = _NAN
    rows = np.unique(np.concatenate([np.array(r, np.int64) for r in candidates])) if kept else task.rows
    for name, setup in setups.items():
        others = [np.setdiff1d(rows, r).tolist() for r in candidates]
        scores = _chosen(s, replace(task, rows=rows), queries, setup, size, others)
        strategies.append(_strategy(s, name, FROM_CANDIDATES, scores, chance))
        if name == method:
            scored = [n for n, each in enumerate(scores) if each is not None]
            gains = [np.array([_value(s, each[n]) for n in scored]) - chance[scored] for each in (scores, oracle)]
            share = oracle_share(gains[0], gains[1], s.config.seed)
    strategies.append(_strategy(s, "oracle", FROM_CANDIDATES, oracle, chance))
    for name, setup in setups.items():
        strategies.append(_strategy(s, name, FROM_POOL, _chosen(s, task, queries, setup, size), chance))
    return TaskReport(task.name, len(queries), size, tuple(strategies), share)


def report_prompts(s: Session[TrainConfig], meant: Source) -> int:
    """The most prompts that the report has scored; ``meant``: the selector that is reported on."""
    candidates, size = sum(source.count for source in sources(s.config.candidates)), meant.count
    setups = 3 if meant.spec == "knn" else 4
    # one demonstration among the candidates is scored once, whoever chooses it
    each = candidates + setups if size == 1 else DRAWS + size * candidates + 2 * setups
    return each * sum(len(task.report) for task in s.corpus.tasks)


def oracle_share(gain: FloatArray, best: FloatArray, seed: int) -> Estimate:
    """mean(gain) / mean(best) over queries (q,) with a percentile bootstrap interval; nan where the best is 0."""
    if not len(best) or best.mean() <= 1e-9:
        return _NAN
    draws = np.random.default_rng(seed).integers(len(best), size=(_RESAMPLES, len(best)))
    below = best[draws].mean(1)
    ratios = gain[draws].mean(1)[below > 1e-9] / below[below > 1e-9]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(gain.mean() / best.mean()), float(low), float(high))


def _random_sets(s: Session[TrainConfig], query: Example, candidates: Sequence[int], size: int) -> list[Rows]:
    """Random choices: each candidate once, or some sets of them."""
    if size == 1:
        return [(c,) for c in candidates]
    rng = s.rng("report", query.id, size)
    return [tuple(rng.choice(candidates, min(size, len(candidates)), replace=False).tolist()) for _ in range(DRAWS)]


def _oracle(
    s: Session[TrainConfig],
    task: TaskData,
    queries: Sequence[Example],
    candidates: Sequence[Sequence[int]],
    size: int,
) -> list[LabelScores | None]:
    """Scores of the best set that greedy search finds for each query; None where no prompt fits.

    Of equally good candidates the first is taken.
    """
    chosen: list[Rows] = [() for _ in queries]
    best: list[LabelScores | None] = [None for _ in queries]
    for step in range(1, size + 1):
        longer = [
            [(*rows, c) for c in of_query if c not in rows] for rows, of_query in zip(chosen, candidates, strict=True)
        ]
        title = f"{task.name}: report, oracle {step} of {size}"
        for n, answers in enumerate(_score(s, task, queries, longer, title)):
            scored = [(rows, a) for rows, a in zip(longer[n], answers, strict=True) if a is not None]
            if scored:
                chosen[n], best[n] = max(scored, key=lambda pair: _value(s, pair[1]))
    return best


def _chosen(
    s: Session[TrainConfig],
    task: TaskData,
    queries: Sequence[Example],
    setup: SelectorSetup,
    size: int,
    excluded: Sequence[Sequence[int]] | None = None,
) -> list[LabelScores | None]:
    """Scores of the demonstrations that a selector chooses for each query."""
    mined = s.miner.mine(
        task, queries, (Source(setup.selector, size),), cross_task=s.config.cross_task and excluded is None,
        embedder=setup.embedder, excluded=excluded,
    )  # fmt: skip
    return [scores for (scores,) in _score(s, task, queries, [[rows.tolist()] for rows in mined])]


def _score(
    s: Session[TrainConfig],
    task: TaskData,
    queries: Sequence[Example],
    sets: Sequence[Sequence[Sequence[int]]],
    title: str = "",
) -> list[list[LabelScores | None]]:
    """Scores of each query behind each of its sets."""
    prompts = [set_prompt(s, q, rows) for q, of_query in zip(queries, sets, strict=True) for rows in of_query]
    scores = iter(s.feedback.score(task, prompts, s.bar(title) if title else None))
    return [[next(scores) for _ in of_query] for of_query in sets]


def _value(s: Session[TrainConfig], scores: LabelScores | None) -> float:
    return feedback_value(scores, s.config.value, s.config.normalize) if scores else float("nan")


def _strategy(
    s: Session[TrainConfig], name: str, pool: str, scores: Sequence[LabelScores | None], chance: FloatArray
) -> StrategyResult:
    """The figures of a strategy; queries whose prompt has no score are left out."""
    scored = [(n, each) for n, each in enumerate(scores) if each is not None]
    gain = np.array([_value(s, each) - chance[n] for n, each in scored])
    correct = [is_correct(each) for _, each in scored]
    known = [float(c) for c in correct if c is not None]
    return StrategyResult(
        name,
        pool,
        estimate(gain[None], bounded=False),
        estimate(np.array([known])) if len(known) == len(correct) else None,
    )


def _mean_accuracy(scores: Sequence[Sequence[LabelScores]]) -> Estimate | None:
    correct = [[is_correct(each) for each in of_query] for of_query in scores]
    if any(c is None for of_query in correct for c in of_query):
        return None
    return estimate(np.array([[np.mean([bool(c) for c in of_query]) for of_query in correct]]))
