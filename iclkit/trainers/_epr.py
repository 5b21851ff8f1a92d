"""EPR: the best and the worst candidates of each training query, told apart by a bi-encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.records import Json
from iclkit.settings import setting
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import BERT, MASK_LABELS, TrainConfig, beyond, check_cosine_temperature
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import FeedbackPrompt
from iclkit.trainers._method import (
    CHECKED_QUERIES,
    HeldOutQueries,
    Method,
    RankedCandidates,
    Session,
    candidate_gain,
    candidate_prompts,
    held_out,
    in_batches,
    mine_candidates,
    score_candidates,
)
from iclkit.trainers._processes import batches_for

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor


@dataclass(frozen=True)
class CandidateConfig(TrainConfig):
    """The settings that EPR, UDR and LLM-R share: candidates are scored one at a time."""

    positives: int = setting(3, "best candidates that can be positives", ge=1)
    negatives: int = setting(3, "worst candidates that can be negatives", ge=1)
    temperature: float = setting(0.05, "similarities are divided by it", gt=0)
    mask_labels: bool = setting(False, MASK_LABELS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cosine_temperature(self)

    @property
    def exported_positives(self) -> int:
        """As many as can be positives."""
        return self.positives

    @property
    def masks_labels(self) -> bool:
        """As ``mask_labels`` says."""
        return self.mask_labels

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "positives": self.positives, "negatives": self.negatives, "temperature": self.temperature,
            **beyond(self, mask_labels=False),
        }  # fmt: skip


@dataclass(frozen=True)
class EPRConfig(CandidateConfig):
    """EPR (Rubin, Herzig & Berant 2022); defaults for a small machine, ``paper`` for the paper's."""

    method: ClassVar[str] = "epr"
    paper: ClassVar[Mapping[str, Any]] = {
        **BERT, "queries": 44_000, "candidates": "bm25@output:50", "value": "gold", "positives": 5, "negatives": 5,
        "batch_size": 120, "learning_rate": 1e-4, "epochs": 30.0, "max_tokens": 256, "patience": 0, "keep": "last",
        "checkpoints": 10, "warmup_steps": 1237, "mini_batch": 128, "gather_across_devices": True,
    }  # fmt: skip

    hard_negatives: int = setting(1, "negatives of each training row", ge=0)
    positive_sampling: Literal["topk", "top1"] = setting("topk", "draw a positive from the best, or take the best")

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "hard_negatives": self.hard_negatives, "positive_sampling": self.positive_sampling,
        }  # fmt: skip


CandidateT = TypeVar("CandidateT", bound=CandidateConfig)


class CandidateMethod(Method[CandidateT], Generic[CandidateT]):
    """What EPR, UDR and LLM-R share: candidates scored one at a time; later iterations add the retriever's own."""

    power: ClassVar[float] = 1.0
    """How a task's share of the batches grows with its share of the queries."""

    needed: ClassVar[tuple[str, ...]] = ("positives", "negatives", "hard_negatives")
    """Settings that say how many candidates a query must have."""

    def __init__(self) -> None:
        self._candidates: dict[int, list[int]] = {}
        self._held_out: list[HeldOutQueries] | None = None

    def prompts(self, s: Session[CandidateT]) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """All candidates of all training and held-out queries."""
        result = []
        for task in s.corpus.tasks:
            queries = [s.corpus.examples[int(r)] for r in (*task.queries, *task.held_out)]
            result.append((task, candidate_prompts(s, queries, mine_candidates(s, task, queries))))
        return result

    def check(self, s: Session[CandidateT]) -> None:
        """That some training query has enough candidates for a training row; some queries of each task are tried."""
        most = 0
        for task in s.corpus.tasks:
            rows = task.queries[:CHECKED_QUERIES].tolist()
            mined = mine_candidates(s, task, [s.corpus.examples[r] for r in rows])
            for row, candidates in zip(rows, mined, strict=True):
                if self.can_learn(s, row, [(r, -float(n)) for n, r in enumerate(candidates)]):
                    return
                most = max(most, len(candidates))
        settings = s.config.as_dict()
        wanted = ", ".join(f"{name}={settings[name]}" for name in self.needed)
        raise DataError(
            f"no training query has candidates enough for {self.name}: at most {most} are found by "
            f"candidates={s.config.candidates}, with {wanted}; lower these, mine more, or add examples"
        )

    def can_learn(self, s: Session[CandidateT], row: int, ranked: list[tuple[int, float]]) -> bool:
        """Whether a query's candidates, ranked somehow without ties, make what is trained on."""
        return self.training_row(s, row, ranked, 0) is not None

    def gather(self, s: Session[CandidateT], iteration: int, retriever: Embedder | None) -> RankedCandidates:
        """Every training query's candidates with their values, best first; candidates of all iterations together."""
        ranked: RankedCandidates = {}
        for task in s.corpus.tasks:
            rows = task.queries.tolist()
            queries = [s.corpus.examples[r] for r in rows]
            for row, mined in zip(rows, mine_candidates(s, task, queries, retriever), strict=True):
                known = self._candidates.setdefault(row, [])
                known += [r for r in mined if r not in {*known}]
            candidates = [self._candidates[r] for r in rows]
            title = f"{task.name}: feedback" + (f", iteration {iteration + 1}" if iteration else "")
            ranked |= dict(zip(rows, score_candidates(s, task, queries, candidates, title), strict=True))
        return ranked

    def gain(self, s: Session[CandidateT], model: SentenceTransformer) -> float:
        """The gain among scored candidates of the held-out queries; no LM call after the first time."""
        if self._held_out is None:
            self._held_out = held_out(s)
        return candidate_gain(s, model, self._held_out)

    def batches(self, s: Session[CandidateT], gathered: RankedCandidates) -> list[list[TrainingRow]]:
        """Epoch after epoch of training rows, drawn anew in each."""
        batches: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(batches) < wanted) if wanted else (epoch < s.config.epochs):
            by_task: dict[str, list[TrainingRow]] = {}
            for row, ranked in gathered.items():
                if training_row := self.training_row(s, row, ranked, epoch):
                    by_task.setdefault(s.task_of(row).name, []).append(training_row)
            s.facts["queries"] = {"scored": len(gathered), "used": sum(map(len, by_task.values()))}
            if not by_task:
                break
            batches += in_batches(s, by_task, s.config.batch_size, epoch, power=self.power)
            epoch += 1
        return batches[: wanted or None]

    @abstractmethod
    def training_row(
        self, s: Session[CandidateT], row: int, ranked: list[tuple[int, float]], epoch: int
    ) -> TrainingRow | None:
        """What is learned from one query in an epoch; None when too few of its candidates were scored."""


class EPR(CandidateMethod[EPRConfig]):
    """one positive of the best k candidates against hard negatives of the worst k and the batch"""

    name: ClassVar[str] = "epr"
    source: ClassVar[str] = "Rubin, Herzig & Berant 2022, NAACL, arXiv 2112.08633"
    config_class: ClassVar[type[TrainConfig]] = EPRConfig

    def training_row(
        self, s: Session[EPRConfig], row: int, ranked: list[tuple[int, float]], epoch: int
    ) -> TrainingRow | None:
        """A positive drawn from the best, hard negatives from the worst; the two never overlap."""
        best, worst = extremes(ranked, s.config.positives, s.config.negatives)
        if not best or len(worst) < s.config.hard_negatives:
            return None
        rng = s.rng("epr", s.corpus.examples[row].id, epoch)
        positive = best[0] if s.config.positive_sampling == "top1" else best[int(rng.integers(len(best)))]
        negatives = rng.choice(worst, s.config.hard_negatives, replace=False).tolist()
        return TrainingRow(row, (positive, *negatives))

    def loss(self, config: EPRConfig, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """InfoNCE over all documents of the batch (section 3.2)."""
        from iclkit.trainers._losses import info_nce, similarities

        return info_nce(similarities(queries, documents) / config.temperature, mask=batch.mask)


def extremes(ranked: list[tuple[int, float]], positives: int, negatives: int) -> tuple[list[int], list[int]]:
    """The best ``positives`` and the worst ``negatives`` candidates, never overlapping.

    Where there are fewer, both numbers shrink in proportion. A candidate that ties with the other end is in neither: a
    tie is no preference.

    >>> extremes([(7, -1.0), (8, -2.0), (9, -3.0)], 2, 2)
    ([7], [9])
    """
    n = len(ranked)
    if positives + negatives > n:
        positives, negatives = (max(1, int(n * part / (positives + negatives))) for part in (positives, negatives))
    if n < 2 or positives + negatives > n:
        return [], []
    worst = ranked[n - negatives :]
    best = [rv for rv in ranked[:positives] if rv[1] > worst[-1][1] + 1e-9]
    worst = [rv for rv in worst if best and rv[1] < best[-1][1] - 1e-9]
    return [r for r, _ in best], [r for r, _ in worst]


def ranks_of(values: list[float]) -> list[int]:
    """LM ranks from 1, equal for equal values (to 1e-6); values come best first.

    >>> ranks_of([-1.0, -1.0, -3.0])
    [1, 1, 3]
    """
    ranks: list[int] = []
    for n, v in enumerate(values):
        ranks.append(ranks[-1] if n and abs(v - values[n - 1]) < 1e-6 else n + 1)
    return ranks
