"""The candidates of another selector, put in order by a model that reads query and example together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.embed import score_checked
from iclkit.errors import UsageError
from iclkit.pool import CandidateBatch
from iclkit.selectors._base import Choice, Needs, SelectorCost
from iclkit.selectors._composite import CompositeSelector
from iclkit.selectors._maths import top_rows


@dataclass
class RerankSelector(CompositeSelector):
    """another selector's candidates in the order of a cross-encoder"""

    name: ClassVar[str] = "rerank"
    own_needs: ClassVar[Needs] = Needs(reranker=True)
    source: ClassVar[str] = "Nogueira & Cho 2019, arXiv 1901.04085"

    of: str = "knn"  # the selector of the candidates
    depth: int = 50  # how many of them are read; k when k is larger

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts_) != 1 or self.depth < 1:
            raise UsageError(f"rerank: of is {self.of!r}, depth {self.depth}; give one selector, and depth 1 or more")

    def part_specs(self) -> Sequence[str]:
        """The selector."""
        return [self.of]

    def cost(self, k: int) -> SelectorCost:
        """What the inner selector asks for lists of ``depth``."""
        return super().cost(max(k, self.depth))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """All pairs in one call; scores are the reranker's."""
        assert self.kit_.reranker is not None
        rows_of = [np.sort(self._rows(s)) for s in self.parts_[0].select_many(batch.queries, max(k, self.depth))]
        texts = [(c.query.text, e.text) for c, rows in zip(batch, rows_of, strict=True) for e in c.examples(rows)]
        scores = score_checked(self.kit_.reranker, texts)
        choices = []
        for rows, values in zip(rows_of, np.split(scores, np.cumsum([len(r) for r in rows_of])[:-1]), strict=True):
            # ties go to the lower row; a reranker may give probabilities, most of them tiny
            best = top_rows(values, k, significant=True)
            choices.append(Choice(rows[best], values[best]))
        return choices
