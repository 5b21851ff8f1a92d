"""Se²: the next demonstration, given the query and those chosen before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.records import Json
from iclkit.settings import setting
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import (
    BERT,
    MASK_LABELS,
    SetConfig,
    Source,
    TrainConfig,
    beyond,
    check_cosine_temperature,
    other_default,
    sources,
)
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import FeedbackPrompt, feedback_value, is_correct
from iclkit.trainers._ledger import LabelScores
from iclkit.trainers._method import (
    CHECKED_QUERIES,
    FloatArray,
    Method,
    Session,
    Side,
    candidate_sources,
    encode_with,
    evaluation_prompt_count,
    in_batches,
    some_of,
)
from iclkit.trainers._processes import batches_for
from iclkit.trainers._sets import HeldOutSets, held_out_sets, random_sets, report_savings, set_prompt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

_SAMPLE = 200  # rows among which sequences are formed when a model is evaluated
_TIED = 1e-9

ScorePrompts = Callable[[TaskData, Sequence[FeedbackPrompt], str], Sequence[LabelScores | None]]


@dataclass(frozen=True)
class Se2Config(SetConfig):
    """Se² (Liu et al. 2024); defaults for a small machine, ``paper`` for the paper's. ``shots``: rounds."""

    method: ClassVar[str] = "se2"
    paper: ClassVar[Mapping[str, Any]] = {
        **BERT, "queries": 10_000, "candidates": "random:50", "value": "share", "shots": 3, "negatives": 20,
        "hard_negatives": 20, "random_negatives": 20, "batch_size": 8, "learning_rate": 1e-5, "epochs": 6.0,
        "max_tokens": 512, "patience": 0, "evaluations": 6, "checkpoints": 10, "mask_labels": False, "rounds": "mixed",
        "random_from": "pool", "weights": "equal", "warmup_steps": 1000, "mini_batch": 128,
    }  # fmt: skip

    queries: int = other_default(SetConfig, "queries", 100)
    candidates: str = other_default(SetConfig, "candidates", "bm25:4+knn:3+random:3")
    batch_size: int = other_default(SetConfig, "batch_size", 8)
    towers: Literal[1, 2] = other_default(SetConfig, "towers", 2)
    temperature: float = setting(0.05, "similarities are divided by it", gt=0)
    negatives: int = setting(4, "worst candidates that can be negatives", ge=1)
    hard_negatives: int = setting(4, "negatives of each training row that are drawn from these", ge=0)
    random_negatives: int = setting(4, "negatives of each training row that are drawn at random", ge=0)
    random_from: Literal["pool", "middle"] = setting(
        "pool", "where those come from: the pool, or the query's scored candidates between positive and worst"
    )
    mask_labels: bool = setting(False, f"{MASK_LABELS}; none of the pool with it is drawn as a negative either")
    rounds: Literal["mixed", "apart"] = setting("mixed", "batches of all rounds, or of one round each")
    weights: Literal["equal", "spread"] = setting(
        "equal", "of training rows; spread: by how far the values of a step's candidates differ"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cosine_temperature(self)

    @property
    def masks_labels(self) -> bool:
        """As ``mask_labels`` says."""
        return self.mask_labels

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "temperature": self.temperature, "negatives": self.negatives, "hard_negatives": self.hard_negatives,
            "random_negatives": self.random_negatives,
            **beyond(self, random_from="pool", mask_labels=False, rounds="mixed", weights="equal"),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One step of a sequence: a query row behind the rows chosen so far, first chosen first.

    ``ranked``: the candidates with their values there (nats), best first. ``positive``: the best one with which the LM
    is right; where answers are free, the best.
    """

    query: int
    chosen: tuple[int, ...]
    ranked: tuple[tuple[int, float], ...]
    positive: int | None


def rank_probabilities(count: int) -> FloatArray:
    """(count,) probabilities of ranks, best first: e^-rank, normalized; how the released code draws what to go on with.

    >>> rank_probabilities(5).round(6).tolist()
    [0.636409, 0.234122, 0.086129, 0.031685, 0.011656]
    """
    weights = np.exp(-np.arange(count, dtype=np.float64))
    probabilities: FloatArray = weights / weights.sum()
    return probabilities


def sequences(
    s: Session[Se2Config],
    task: TaskData,
    rows: Sequence[int],
    retriever: Embedder | None,
    score: ScorePrompts,
    *,
    draw: int = 0,
) -> list[SequenceStep]:
    """All steps of all queries, round by round: candidates, their values in the growing prompt, and one to go on with.

    Candidates are fresh in each round, never the query or what is chosen. The newest stands farthest from the query.
    What to go on with is drawn by rank, so that later rounds see more than the greedy path.
    """
    queries = [s.corpus.examples[r] for r in rows]
    chosen: list[tuple[int, ...]] = [() for _ in rows]
    steps = []
    for turn in range(s.config.shots):
        mined = s.miner.mine(
            task, queries, candidate_sources(s.config, retriever), cross_task=s.config.cross_task, embedder=retriever,
            excluded=chosen, draw=draw * s.config.shots + turn,
        )  # fmt: skip
        prompts = [
            set_prompt(s, query, (*before, int(row)))
            for query, before, candidates in zip(queries, chosen, mined, strict=True)
            for row in candidates
        ]
        scores = iter(score(task, prompts, f"{task.name}: round {turn + 1} of {s.config.shots}"))
        for n, (row, candidates) in enumerate(zip(rows, mined, strict=True)):
            answers = {int(c): answer for c in candidates if (answer := next(scores)) is not None}
            values = {c: feedback_value(answer, s.config.value, s.config.normalize) for c, answer in answers.items()}
            ranked = sorted(values.items(), key=lambda rv: (-rv[1], rv[0]))
            right = {c for c, answer in answers.items() if is_correct(answer) is not False}
            positive = next((c for c, _ in ranked if c in right), None)
            steps.append(SequenceStep(row, chosen[n], tuple(ranked), positive))
            order = [c for c, _ in ranked] or candidates.tolist()
            if order:
                rng = s.rng("se2", "prefix", queries[n].id, draw, turn)
                chosen[n] = (*chosen[n], int(order[rng.choice(len(order), p=rank_probabilities(len(order)))]))
    return steps


class Se2(Method[Se2Config]):
    """the next demonstration given the query and those chosen before it, in sequences scored as they grow"""

    name: ClassVar[str] = "se2"
    source: ClassVar[str] = "Liu et al. 2024, Findings of ACL, arXiv 2402.13874"
    config_class: ClassVar[type[TrainConfig]] = Se2Config

    def __init__(self) -> None:
        self._steps: list[SequenceStep] = []
        self._held_out: list[HeldOutSets] | None = None

    def prompts(self, s: Session[Se2Config]) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """The prompts of all rounds: where the ledger does not say yet how a sequence goes on, of a likely one."""
        result = []
        for task in s.corpus.tasks:
            every = list[FeedbackPrompt]()

            def known(
                task: TaskData,
                prompts: Sequence[FeedbackPrompt],
                title: str,  # noqa: ARG001
                every: list[FeedbackPrompt] = every,
            ) -> list[LabelScores | None]:
                every += prompts
                scores = s.feedback.ledger.get(s.feedback.scope(task), [p.key for p in prompts])
                return [scores.get(n) for n in range(len(prompts))]

            sequences(s, task, task.queries.tolist(), None, known)
            result.append((task, [*every, *random_sets(s, task)]))
        return result

    def check(self, s: Session[Se2Config]) -> None:
        """That some query of each task has two candidates to tell apart, and that there are other rows as negatives."""
        for task in s.corpus.tasks:
            queries = [s.corpus.examples[int(r)] for r in task.queries[:CHECKED_QUERIES]]
            mined = s.miner.mine(task, queries, sources(s.config.candidates), cross_task=s.config.cross_task)
            most = max(map(len, mined), default=0)
            if most < 2 or len(task.rows) < s.config.shots + 2:
                raise DataError(
                    f"task {task.name!r} has {len(task.rows)} rows and at most {most} candidates for a query by "
                    f"candidates={s.config.candidates}; se2 with shots={s.config.shots} needs two candidates, and "
                    f"{s.config.shots + 2} rows; mine more, or add examples"
                )

    def texts(self, s: Session[Se2Config]) -> list[tuple[str, Side, list[str]]]:
        """With the queries behind as many demonstrations, drawn at random, as the last step has."""
        before = s.config.shots - 1
        states = [
            s.query_text(row, s.rng("se2", "lengths", row).choice(rows, before, replace=False).tolist())
            for task in s.corpus.tasks
            if len(rows := task.rows) > before > 0
            for row in some_of(task.queries.tolist())
        ]
        return [*super().texts(s), (f"queries with {before} random demonstrations", "query", states)]

    def evaluation_prompts(self, s: Session[Se2Config]) -> int:
        """Each evaluation has the sequence scored that the model chooses for each held-out query."""
        return evaluation_prompt_count(s, s.config.shots * sum(len(task.queries) for task in s.corpus.tasks))

    def score(self, s: Session[Se2Config]) -> None:
        """All rounds, and the random sets that models are compared with."""
        self.gather(s, 0, None)
        self._held_out = [held_out_sets(s, task) for task in s.corpus.tasks]

    def gather(self, s: Session[Se2Config], iteration: int, retriever: Embedder | None) -> list[SequenceStep]:
        """Every step of every training query's sequence; those of all iterations together."""

        def score(task: TaskData, prompts: Sequence[FeedbackPrompt], title: str) -> list[LabelScores | None]:
            with report_savings(s, title):
                return s.feedback.score(task, prompts, s.bar(title))

        if not iteration:
            self._steps = []
        for task in s.corpus.tasks:
            self._steps += sequences(s, task, task.queries.tolist(), retriever, score, draw=iteration)
        return self._steps

    def selector(self, config: Se2Config) -> Source:
        """Beam search, as many demonstrations as rounds."""
        return Source("se2", config.shots)

    def batches(self, s: Session[Se2Config], gathered: list[SequenceStep]) -> list[list[TrainingRow]]:
        """Epoch after epoch, all rounds mixed unless they stay ``apart``, negatives drawn anew in each."""
        spread = typical_spread(gathered) if s.config.weights == "spread" else 0.0
        batches: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(batches) < wanted) if wanted else (epoch < s.config.epochs):
            by_task: dict[str, list[TrainingRow]] = {}
            for step in gathered:
                if training_row := self.training_row(s, step, epoch):
                    if spread:
                        training_row = replace(training_row, values=(spread_of(step) / spread,))
                    name = s.task_of(step.query).name
                    if s.config.rounds == "apart":
                        name += f"\n{len(step.chosen)}"
                    by_task.setdefault(name, []).append(training_row)
            s.facts["steps of sequences"] = {"scored": len(gathered), "used": sum(map(len, by_task.values()))}
            if not by_task:
                break
            batches += in_batches(s, by_task, s.config.batch_size, epoch)
            epoch += 1
        return batches[: wanted or None]

    def training_row(self, s: Session[Se2Config], step: SequenceStep, epoch: int) -> TrainingRow | None:
        """The positive, hard negatives from the end of the ranking, random ones from between or from the pool.

        The end is never more than half of the candidates, and of lower value than the positive; where it has too few,
        random negatives take their place. Those come from the candidates between positive and end as long as there are
        any (``random_from``), then from the pool. None for a step without a positive, or where nothing is worse.
        """
        values = dict(step.ranked)
        if step.positive is None or values[step.positive] - step.ranked[-1][1] <= _TIED:
            return None
        most = min(s.config.negatives, (len(step.ranked) - 1) // 2) or 1
        worse = [c for c, v in step.ranked if v < values[step.positive] - _TIED]
        worst = worse[-most:]
        example = s.corpus.examples[step.query]
        rng = s.rng("se2", "lesson", example.id, len(step.chosen), *step.chosen, epoch)
        hard = rng.choice(worst, min(s.config.hard_negatives, len(worst)), replace=False).tolist()
        count = s.config.hard_negatives + s.config.random_negatives - len(hard)
        between = list[int]()
        if s.config.random_from == "middle" and (rest := [c for c in worse if c not in hard]):
            between = rng.choice(rest, min(count, len(rest)), replace=False).tolist()
            count -= len(between)
        excluded = [step.positive, *hard, *between, *step.chosen, *s.miner.forbidden(example)]
        others = s.task_of(step.query).rows
        others = others[~np.isin(others, excluded)]
        if s.config.mask_labels:
            others = others[np.array([s.corpus.examples[c].output != example.output for c in others], dtype=bool)]
        if count and not len(others):
            return None
        random = rng.choice(others, count, replace=len(others) < count).tolist() if count else []
        return TrainingRow(step.query, (step.positive, *hard, *between, *random), chosen=step.chosen)

    def loss(self, config: Se2Config, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """InfoNCE over all documents of the batch, as EPR's, rows weighted where they have weights."""
        from iclkit.trainers._losses import info_nce, similarities

        weights = batch.values[:, 0] if config.weights == "spread" else None
        return info_nce(similarities(queries, documents) / config.temperature, mask=batch.mask, weights=weights)

    def gain(self, s: Session[Se2Config], model: SentenceTransformer) -> float:
        """The gain of greedy sequences by ``model`` over random ones; each new sequence is one LM call."""
        if self._held_out is None:
            self._held_out = [held_out_sets(s, task) for task in s.corpus.tasks]
        gains = [g for part in self._held_out for g in part.gains(s, greedy(s, model, part))]
        return float(np.mean(gains)) if gains else 0.0


def spread_of(step: SequenceStep) -> float:
    """Standard deviation of the values of a step's candidates, in nats: how much it matters which one is shown."""
    return float(np.std([value for _, value in step.ranked])) if step.ranked else 0.0


def typical_spread(steps: Sequence[SequenceStep]) -> float:
    """The mean spread of the steps with a positive; 0 where there is none."""
    spreads = [spread_of(step) for step in steps if step.positive is not None]
    return float(np.mean(spreads)) if spreads else 0.0


def greedy(s: Session[Se2Config], model: SentenceTransformer, part: HeldOutSets) -> list[list[int]]:
    """A sequence of rows for each held-out query, step by step the nearest to query and rows so far.

    Rows are from a sample of the task, the same each time, so that evaluating a model does not mean encoding the pool.
    """
    rows = part.task.rows
    if len(rows) > _SAMPLE:
        rows = np.sort(s.rng("se2", "sample", part.task.name).choice(rows, _SAMPLE, replace=False))
    sequences: list[list[int]] = [[] for _ in part.queries]
    documents: FloatArray | None = None
    for _ in range(min(s.config.shots, len(rows))):
        texts = [
            s.rendering.query(q.text, part.task.name, [s.corpus.examples[c] for c in chosen])
            for q, chosen in zip(part.queries, sequences, strict=True)
        ]
        queries, encoded = encode_with(s, model, texts, [] if documents is not None else rows.tolist())
        documents = encoded if documents is None else documents
        for query, vector, chosen in zip(part.queries, queries, sequences, strict=True):
            scores = np.round(documents @ vector, 6)
            scores[np.isin(rows, [*chosen, *s.miner.forbidden(query)])] = -np.inf
            if np.isfinite(scores.max()):
                chosen.append(int(rows[int(scores.argmax())]))
    return sequences
