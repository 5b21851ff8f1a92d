"""UDR: one retriever for many tasks, trained on the LM's ranking of lists of candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from iclkit.trainers._config import TrainConfig
from iclkit.trainers._epr import CandidateMethod, ranks_of
from iclkit.trainers._method import Session

if TYPE_CHECKING:
    from iclkit.trainers._fit import Loss, TrainingRow


class UDR(CandidateMethod):
    """the LM's whole ranking of sampled candidates, several tasks in one model, mined again by the model itself"""

    name: ClassVar[str] = "udr"
    source: ClassVar[str] = "Li et al. 2023, ACL, arXiv 2305.04320"
    power: ClassVar[float] = 0.5
    wants: ClassVar[tuple[str, ...]] = ("positives", "negatives", "list_size")

    def lesson(self, s: Session, row: int, ranked: list[tuple[int, float]], epoch: int) -> TrainingRow | None:
        """Some of the best, one of the worst and some of the middle, in the LM's order, with their ranks."""
        from iclkit.trainers._fit import TrainingRow

        size, best, worst = s.config.list_size, s.config.positives, s.config.negatives
        if len(ranked) < max(size, best + worst):
            return None
        rng = s.rng("udr", s.corpus.examples[row].id, epoch)
        n, top = len(ranked), min(s.config.top_sampled, best, size - 1)
        low = n - worst
        some = [*rng.choice(best, top, replace=False), low + int(rng.integers(worst))]
        middle = range(best, low)
        rest = [i for i in (middle if len(middle) >= size - len(some) else range(n)) if i not in some]
        some += [*rng.choice(rest, size - len(some), replace=False)]
        own = [ranked[i] for i in sorted(map(int, some))]
        ranks = ranks_of([v for _, v in own])
        return TrainingRow(row, tuple(r for r, _ in own), tuple(map(float, ranks))) if ranks[-1] > 1 else None

    def objective(self, config: TrainConfig) -> Loss:
        """0.8 of the rank-weighted pairwise loss and 0.2 of the in-batch one (equations 4 to 6)."""
        from iclkit.trainers._losses import similarities, udr_loss

        def loss(queries: Any, documents: Any, values: Any, mask: Any) -> Any:
            scores = similarities(queries, documents) / config.temperature
            return udr_loss(scores, values, variant=config.rank_loss, weight=config.rank_weight, mask=mask)

        return loss
