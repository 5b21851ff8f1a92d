"""Se²: what to show next, given what is shown already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.trainers._config import Source, TrainConfig, sources
from iclkit.trainers._data import TaskData
from iclkit.trainers._epr import EPR
from iclkit.trainers._feedback import FeedbackPrompt, right, value
from iclkit.trainers._ledger import LabelScores
from iclkit.trainers._method import TRIED, FloatArray, Method, Session, encode_with, in_batches, judgings
from iclkit.trainers._processes import batches_for
from iclkit.trainers._sets import HeldOutSets, held_out_sets, random_sets, report_savings, set_prompt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from iclkit.trainers._fit import Loss, TrainingRow

_TRIED = 200  # rows among which sequences are formed when a model is judged
_TIED = 1e-9

Tell = Callable[[TaskData, Sequence[FeedbackPrompt], str], Sequence[LabelScores | None]]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One step of a sequence: a query row behind the rows chosen so far (first chosen first), the candidates with their
    values there (nats), best first, and the best one with which the LM is right (the best, where answers are free)."""

    query: int
    chosen: tuple[int, ...]
    ranked: tuple[tuple[int, float], ...]
    positive: int | None


def rank_probabilities(count: int) -> FloatArray:
    """(count,) probabilities of ranks, best first: e^-rank, normed; how the released code draws what to go on with.

    >>> rank_probabilities(5).round(6).tolist()
    [0.636409, 0.234122, 0.086129, 0.031685, 0.011656]
    """
    weights = np.exp(-np.arange(count, dtype=np.float64))
    chances: FloatArray = weights / weights.sum()
    return chances


def sequences(
    s: Session, course: TaskData, rows: Sequence[int], retriever: Embedder | None, tell: Tell, *, draw: int = 0
) -> list[SequenceStep]:
    """All steps of all queries, round by round: candidates, their values in the growing prompt, and one to go on with.

    Candidates are fresh in each round, never the query or what is chosen. The newest stands farthest from the query.
    What to go on with is drawn by rank, so that later rounds see more than the greedy path.
    """
    found = sources(s.config.candidates)
    if retriever is not None:
        found = (type(found[0])("knn", sum(f.count for f in found)),)
    queries = [s.corpus.examples[r] for r in rows]
    chosen: list[tuple[int, ...]] = [() for _ in rows]
    steps = []
    for turn in range(s.config.shots):
        candidates = s.miner.mine(
            course, queries, found, cross_task=s.config.cross_task, embedder=retriever, apart=chosen,
            draw=draw * s.config.shots + turn,
        )  # fmt: skip
        asks = [
            set_prompt(s, q, (*before, int(c)))
            for q, before, own in zip(queries, chosen, candidates, strict=True)
            for c in own
        ]
        told = iter(tell(course, asks, f"{course.name}: round {turn + 1} of {s.config.shots}"))
        for n, (row, own) in enumerate(zip(rows, candidates, strict=True)):
            answers = [(int(c), t) for c in own if (t := next(told)) is not None]
            values = {c: value(t, s.config.value, s.config.normalise) for c, t in answers}
            ranked = sorted(values.items(), key=lambda rv: (-rv[1], rv[0]))
            fine = {c for c, t in answers if right(t) is not False}
            steps.append(SequenceStep(row, chosen[n], tuple(ranked), next((c for c, _ in ranked if c in fine), None)))
            order = [c for c, _ in ranked] or own.tolist()
            if order:
                rng = s.rng("se2", "prefix", queries[n].id, draw, turn)
                chosen[n] = (*chosen[n], int(order[rng.choice(len(order), p=rank_probabilities(len(order)))]))
    return steps


class Se2(Method):
    """the next demonstration given the query and those chosen before it, in sequences scored as they grow"""

    name: ClassVar[str] = "se2"
    source: ClassVar[str] = "Liu et al. 2024, Findings of ACL, arXiv 2402.13874"

    def __init__(self) -> None:
        self._steps: list[SequenceStep] = []
        self._held_out: list[HeldOutSets] | None = None

    def plan(self, s: Session) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """The prompts of all rounds: where the ledger does not say yet how a sequence goes on, of a likely one."""
        out = []
        for course in s.corpus.courses:
            asks = list[FeedbackPrompt]()

            def known(
                course: TaskData,
                some: Sequence[FeedbackPrompt],
                title: str,  # noqa: ARG001
                asks: list[FeedbackPrompt] = asks,
            ) -> list[LabelScores | None]:
                asks += some
                keys = [(a.query.id, tuple(e.id for e in a.shown)) for a in some]
                told = s.feedback.ledger.get(s.feedback.scope(course), keys)
                return [told.get(n) for n in range(len(some))]

            sequences(s, course, course.queries.tolist(), None, known)
            out.append((course, [*asks, *random_sets(s, course)]))
        return out

    def check(self, s: Session) -> None:
        """That some query of each course has two candidates to tell apart, and other rows to stand against them."""
        for course in s.corpus.courses:
            queries = [s.corpus.examples[int(r)] for r in course.queries[:TRIED]]
            found = s.miner.mine(course, queries, sources(s.config.candidates), cross_task=s.config.cross_task)
            most = max(map(len, found), default=0)
            if most < 2 or len(course.rows) < s.config.shots + 2:
                raise DataError(
                    f"task {course.name!r} has {len(course.rows)} rows and at most {most} candidates for a query by "
                    f"candidates={s.config.candidates}; se2 with shots={s.config.shots} needs two candidates, and "
                    f"{s.config.shots + 2} rows; mine more, or add examples"
                )

    def judging(self, s: Session) -> int:
        """A judgement asks for the set that the model chooses for each held-out query."""
        return judgings(s, s.config.shots * sum(len(c.queries) for c in s.corpus.courses))

    def score(self, s: Session) -> None:
        """All rounds, and the random sets that models are judged by."""
        self.gather(s, 0, None)
        self._held_out = [held_out_sets(s, course) for course in s.corpus.courses]

    def gather(self, s: Session, iteration: int, retriever: Embedder | None) -> list[SequenceStep]:
        """Every step of every training query's sequence; those of all iterations together."""

        def tell(course: TaskData, asks: Sequence[FeedbackPrompt], title: str) -> list[LabelScores | None]:
            with report_savings(s, title):
                return s.feedback.tell(course, asks, s.bar(title))

        if not iteration:
            self._steps = []
        for course in s.corpus.courses:
            self._steps += sequences(s, course, course.queries.tolist(), retriever, tell, draw=iteration)
        return self._steps

    def chooser(self, config: TrainConfig) -> Source:
        """Beam search, as many demonstrations as rounds."""
        return Source("se2", config.shots)

    def batches(self, s: Session, gathered: list[SequenceStep]) -> list[list[TrainingRow]]:
        """Epoch after epoch, all rounds mixed, negatives drawn anew in each."""
        out: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(out) < wanted) if wanted else (epoch < s.config.epochs):
            made: dict[str, list[TrainingRow]] = {}
            for step in gathered:
                if lesson := self.lesson(s, step, epoch):
                    made.setdefault(s.course_of(step.query).name, []).append(lesson)
            s.facts["steps of sequences"] = {"scored": len(gathered), "used": sum(map(len, made.values()))}
            if not made:
                break
            out += in_batches(s, made, s.config.batch_size, epoch)
            epoch += 1
        return out[: wanted or None]

    def lesson(self, s: Session, step: SequenceStep, epoch: int) -> TrainingRow | None:
        """The positive, hard negatives from the end of the ranking, random ones from the pool.

        The end is never more than half of the candidates, and worth less than the positive; where it has too few,
        random negatives take their place. None for a step without a positive, or where nothing is worse.
        """
        from iclkit.trainers._fit import TrainingRow

        values = dict(step.ranked)
        if step.positive is None or values[step.positive] - step.ranked[-1][1] <= _TIED:
            return None
        most = min(s.config.negatives, (len(step.ranked) - 1) // 2) or 1
        worst = [c for c, v in step.ranked[-most:] if v < values[step.positive] - _TIED]
        example = s.corpus.examples[step.query]
        rng = s.rng("se2", "lesson", example.id, len(step.chosen), *step.chosen, epoch)
        hard = rng.choice(worst, min(s.config.hard_negatives, len(worst)), replace=False).tolist()
        not_these = [step.positive, *hard, *step.chosen, *s.miner.forbidden(example)]
        others = s.course_of(step.query).rows
        others = others[~np.isin(others, not_these)]
        count = s.config.hard_negatives + s.config.random_negatives - len(hard)
        if count and not len(others):
            return None
        more = rng.choice(others, count, replace=len(others) < count).tolist() if count else []
        return TrainingRow(step.query, (step.positive, *hard, *more), chosen=step.chosen)

    def objective(self, config: TrainConfig) -> Loss:
        """InfoNCE over all documents of the batch, as EPR's."""
        return EPR().objective(config)

    def measure(self, s: Session, model: SentenceTransformer) -> float:
        """What greedy sequences by ``model`` are worth more than random ones; each new sequence is one LM call."""
        if self._held_out is None:
            self._held_out = [held_out_sets(s, course) for course in s.corpus.courses]
        gains = [g for part in self._held_out for g in part.gains(s, greedy(s, model, part))]
        return float(np.mean(gains)) if gains else 0.0


def greedy(s: Session, model: SentenceTransformer, part: HeldOutSets) -> list[list[int]]:
    """A sequence of rows for each held-out query, step by step the nearest to query and rows so far.

    Rows are from a sample of the course, the same each time, so that judging a model does not mean encoding the pool.
    """
    rows = part.course.rows
    if len(rows) > _TRIED:
        rows = np.sort(s.rng("se2", "sample", part.course.name).choice(rows, _TRIED, replace=False))
    chosen: list[list[int]] = [[] for _ in part.queries]
    documents: FloatArray | None = None
    for _ in range(min(s.config.shots, len(rows))):
        texts = [
            s.rendering.query(q.text, part.course.name, [s.corpus.examples[c] for c in own])
            for q, own in zip(part.queries, chosen, strict=True)
        ]
        queries, found = encode_with(s, model, texts, [] if documents is not None else rows.tolist())
        documents = found if documents is None else documents
        for query, vector, own in zip(part.queries, queries, chosen, strict=True):
            near = np.round(documents @ vector, 6)
            near[np.isin(rows, [*own, *s.miner.forbidden(query)])] = -np.inf
            if np.isfinite(near.max()):
                own.append(int(rows[int(near.argmax())]))
    return chosen
