"""EPR: the best and the worst candidates of each training query, told apart by a bi-encoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import FeedbackPrompt
from iclkit.trainers._method import (
    TRIED,
    HeldOutQueries,
    Method,
    RankedCandidates,
    Session,
    asks_of,
    candidate_gain,
    held_out,
    in_batches,
    mined,
    score_candidates,
)
from iclkit.trainers._processes import batches_for

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from iclkit.trainers._fit import Loss, TrainingRow


class CandidateMethod(Method):
    """What EPR, UDR and LLM-R share: candidates scored one at a time; later iterations add the retriever's own."""

    power: ClassVar[float] = 1.0
    """How a task's share of the batches grows with its share of the queries."""

    wants: ClassVar[tuple[str, ...]] = ("positives", "negatives", "hard_negatives")
    """Settings that say how many candidates a query must have to teach."""

    def __init__(self) -> None:
        self._candidates: dict[int, list[int]] = {}
        self._held_out: list[HeldOutQueries] | None = None

    def plan(self, s: Session) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """All candidates of all training and held-out queries."""
        out = []
        for course in s.corpus.courses:
            queries = [s.corpus.examples[int(r)] for r in (*course.queries, *course.held_out)]
            out.append((course, asks_of(s, queries, mined(s, course, queries))))
        return out

    def check(self, s: Session) -> None:
        """That some of the training queries have candidates enough for a lesson; some of each course are tried."""
        most = 0
        for course in s.corpus.courses:
            rows = course.queries[:TRIED].tolist()
            for row, found in zip(rows, mined(s, course, [s.corpus.examples[r] for r in rows]), strict=True):
                if self.teaches(s, row, [(r, -float(n)) for n, r in enumerate(found)]):
                    return
                most = max(most, len(found))
        wanted = ", ".join(f"{name}={getattr(s.config, name)}" for name in self.wants)
        raise DataError(
            f"no training query has candidates enough for {self.name}: at most {most} are found by "
            f"candidates={s.config.candidates}, with {wanted}; lower these, mine more, or add examples"
        )

    def teaches(self, s: Session, row: int, ranked: list[tuple[int, float]]) -> bool:
        """Whether a query's candidates, ranked somehow without ties, can make what is trained on."""
        return self.lesson(s, row, ranked, 0) is not None

    def gather(self, s: Session, iteration: int, retriever: Embedder | None) -> RankedCandidates:
        """Every training query's candidates with their values, best first; candidates of all iterations together."""
        ranked: RankedCandidates = {}
        for course in s.corpus.courses:
            rows = course.queries.tolist()
            queries = [s.corpus.examples[r] for r in rows]
            for row, found in zip(rows, mined(s, course, queries, retriever), strict=True):
                known = self._candidates.setdefault(row, [])
                known += [r for r in found if r not in {*known}]
            own = [self._candidates[r] for r in rows]
            title = f"{course.name}: feedback" + (f", iteration {iteration + 1}" if iteration else "")
            ranked |= dict(zip(rows, score_candidates(s, course, queries, own, title), strict=True))
        return ranked

    def measure(self, s: Session, model: SentenceTransformer) -> float:
        """Choosing among scored candidates of the held-out queries; no LM call after the first time."""
        if self._held_out is None:
            self._held_out = held_out(s)
        return candidate_gain(s, model, self._held_out)

    def batches(self, s: Session, gathered: RankedCandidates) -> list[list[TrainingRow]]:
        """Epoch after epoch of lessons, drawn anew in each."""
        out: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(out) < wanted) if wanted else (epoch < s.config.epochs):
            made: dict[str, list[TrainingRow]] = {}
            for row, own in gathered.items():
                if lesson := self.lesson(s, row, own, epoch):
                    made.setdefault(s.course_of(row).name, []).append(lesson)
            s.facts["queries"] = {"scored": len(gathered), "used": sum(map(len, made.values()))}
            if not made:
                break
            out += in_batches(s, made, s.config.batch_size, epoch, power=self.power)
            epoch += 1
        return out[: wanted or None]

    @abstractmethod
    def lesson(self, s: Session, row: int, ranked: list[tuple[int, float]], epoch: int) -> TrainingRow | None:
        """What one query teaches in an epoch; None when too few of its candidates could be scored."""


class EPR(CandidateMethod):
    """one positive of the best k candidates against hard negatives of the worst k and the batch"""

    name: ClassVar[str] = "epr"
    source: ClassVar[str] = "Rubin, Herzig & Berant 2022, NAACL, arXiv 2112.08633"

    def lesson(self, s: Session, row: int, ranked: list[tuple[int, float]], epoch: int) -> TrainingRow | None:
        """A positive drawn from the best, hard negatives from the worst; the two never overlap."""
        from iclkit.trainers._fit import TrainingRow

        best, worst = extremes(ranked, s.config.positives, s.config.negatives)
        if not best or len(worst) < s.config.hard_negatives:
            return None
        rng = s.rng("epr", s.corpus.examples[row].id, epoch)
        first = best[0] if s.config.positive_sampling == "top1" else best[int(rng.integers(len(best)))]
        against = rng.choice(worst, s.config.hard_negatives, replace=False).tolist()
        return TrainingRow(row, (first, *against))

    def objective(self, config: TrainConfig) -> Loss:
        """InfoNCE over all documents of the batch (section 3.2)."""
        from iclkit.trainers._losses import info_nce, similarities

        def loss(queries: Any, documents: Any, values: Any, mask: Any) -> Any:  # noqa: ARG001
            return info_nce(similarities(queries, documents) / config.temperature, mask=mask)

        return loss


def extremes(ranked: list[tuple[int, float]], positives: int, negatives: int) -> tuple[list[int], list[int]]:
    """The best ``positives`` and the worst ``negatives`` candidates, never overlapping: few candidates are shared out
    in proportion. What ties with the other end stands in neither: a tie is no preference.

    >>> ends([(7, -1.0), (8, -2.0), (9, -3.0)], 2, 2)
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
    out: list[int] = []
    for n, v in enumerate(values):
        out.append(out[-1] if n and abs(v - values[n - 1]) < 1e-6 else n + 1)
    return out
