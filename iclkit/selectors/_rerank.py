"""The candidates of another selector, put in order by a model that reads query and example together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.embed import score_checked
from iclkit.pool import CandidateBatch
from iclkit.selectors._base import Choice, Needs, SelectorCost
from iclkit.selectors._composite import CompositeSelector
from iclkit.selectors._maths import top_rows
from iclkit.settings import setting


@dataclass
class RerankSelector(CompositeSelector):
    """Reads another selector's candidates together with the query in a cross-encoder, and ranks them by that.

    Use it where a good reranker of the domain exists, and a few tens of forward passes per query are affordable.
    Cost: `depth` pairs per query through the reranker.
    """

    name: ClassVar[str] = "rerank"
    summary: ClassVar[str] = "another selector's candidates in the order of a cross-encoder"
    own_needs: ClassVar[Needs] = Needs(reranker=True)
    source: ClassVar[str] = "Nogueira & Cho 2019, arXiv 1901.04085"
    example: ClassVar[str] = "rerank,of=bm25,depth=20 --reranker cross-encoder/ms-marco-MiniLM-L6-v2"

    of: str = setting("knn", "the selector of the candidates")
    depth: int = setting(50, "how many of them are read; k when k is larger", ge=1)

    def cost(self, k: int) -> SelectorCost:
        """What the inner selector asks for lists of ``depth``."""
        return super().cost(max(k, self.depth))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """All pairs in one call; scores are the reranker's."""
        assert self.kit_.reranker is not None
        rows_of = [np.sort(self._rows(s)) for s in self.parts_[0].select_many(batch.queries, max(k, self.depth))]
        examples = batch.examples(rows_of)
        texts = [(q.text, e.text) for q, some in zip(batch.queries, examples, strict=True) for e in some]
        scores = score_checked(self.kit_.reranker, texts)
        choices = []
        for rows, values in zip(rows_of, np.split(scores, np.cumsum([len(r) for r in rows_of])[:-1]), strict=True):
            # ties go to the lower row; a reranker may give probabilities, most of them tiny
            best = top_rows(values, k, significant=True)
            choices.append(Choice(rows[best], values[best]))
        return choices
