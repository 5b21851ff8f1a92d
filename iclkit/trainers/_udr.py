"""UDR: one retriever for many tasks, trained on the LM's ranking of lists of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from iclkit.records import Json
from iclkit.settings import setting
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import BERT, TrainConfig, other_default
from iclkit.trainers._epr import CandidateConfig, CandidateMethod, ranks_of
from iclkit.trainers._method import Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UDRConfig(CandidateConfig):
    """UDR (Li et al. 2023); defaults for a small machine, ``paper`` for the paper's."""

    method: ClassVar[str] = "udr"
    paper: ClassVar[Mapping[str, Any]] = {
        **BERT, "queries": 100_000, "candidates": "bm25:50", "value": "share", "positives": 5, "negatives": 5,
        "list_size": 8, "iterations": 3, "instruct": "both", "batch_size": 128, "learning_rate": 1e-4, "epochs": 30.0,
        "max_tokens": 256, "from_base": False, "patience": 0, "keep": "last", "checkpoints": 10,
        "warmup_steps": 500, "mini_batch": 128, "dtype": "bf16",
    }  # fmt: skip

    iterations: int = other_default(CandidateConfig, "iterations", 2)
    instruct: Literal["none", "both", "document"] = other_default(CandidateConfig, "instruct", "both")
    epochs: float = other_default(CandidateConfig, "epochs", 6.0)
    batch_size: int = other_default(CandidateConfig, "batch_size", 12)
    list_size: int = setting(6, "candidates of each training row", ge=2)
    top_sampled: int = setting(1, "of these, how many are among the best", ge=1)
    rank_loss: Literal["paper", "lambda-mrr"] = setting("paper", "the paper's, or that of the released code")
    rank_weight: float = setting(0.8, "of the rank loss; the rest is InfoNCE's", ge=0, le=1)

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "list_size": self.list_size, "top_sampled": self.top_sampled, "rank_loss": self.rank_loss,
            "rank_weight": self.rank_weight,
        }  # fmt: skip


class UDR(CandidateMethod[UDRConfig]):
    """the LM's whole ranking of sampled candidates, several tasks in one model, mined again by the model itself"""

    name: ClassVar[str] = "udr"
    source: ClassVar[str] = "Li et al. 2023, ACL, arXiv 2305.04320"
    config_class: ClassVar[type[TrainConfig]] = UDRConfig
    power: ClassVar[float] = 0.5
    needed: ClassVar[tuple[str, ...]] = ("positives", "negatives", "list_size")

    def training_row(
        self, s: Session[UDRConfig], row: int, ranked: list[tuple[int, float]], epoch: int
    ) -> TrainingRow | None:
        """Some of the best, one of the worst and some of the middle, in the LM's order, with their ranks."""
        size, best, worst = s.config.list_size, s.config.positives, s.config.negatives
        if len(ranked) < max(size, best + worst):
            return None
        rng = s.rng("udr", s.corpus.examples[row].id, epoch)
        n, top = len(ranked), min(s.config.top_sampled, best, size - 1)
        low = n - worst
        places = [*rng.choice(best, top, replace=False), low + int(rng.integers(worst))]
        middle = range(best, low)
        rest = [i for i in (middle if len(middle) >= size - len(places) else range(n)) if i not in places]
        places += [*rng.choice(rest, size - len(places), replace=False)]
        candidates = [ranked[i] for i in sorted(map(int, places))]
        ranks = ranks_of([v for _, v in candidates])
        if ranks[-1] == 1:
            return None
        return TrainingRow(row, tuple(r for r, _ in candidates), tuple(map(float, ranks)))

    def loss(self, config: UDRConfig, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """0.8 of the rank-weighted pairwise loss and 0.2 of the in-batch one (equations 4 to 6)."""
        from iclkit.trainers._losses import similarities, udr_loss

        scores = similarities(queries, documents) / config.temperature
        return udr_loss(scores, batch.values, variant=config.rank_loss, weight=config.rank_weight, mask=batch.mask)
