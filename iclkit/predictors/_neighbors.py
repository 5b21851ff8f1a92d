"""The neighbors' vote: what the labels of similar examples say, without an LM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates, Ranked
from iclkit.predictors._base import BasePredictor, answer_by_shares
from iclkit.predictors._protocol import Prediction
from iclkit.records import Example, Pick, Query, Selection
from iclkit.selectors import Needs
from iclkit.settings import setting


@dataclass
class KNNVote(BasePredictor):
    """The label that most of the k nearest examples have; on a tie the one whose example is nearest.

    The probability of a label is its share of the votes with one vote more for each label, so that none is impossible.
    """

    name: ClassVar[str] = "knn-vote"
    summary: ClassVar[str] = "the label that most of the nearest examples have"
    needs: ClassVar[Needs] = Needs(embedder=True, labels=True)

    k: int = setting(8, "neighbors that vote", ge=1)

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """Search for all queries together, then count."""
        batch = self.context.view.candidates(queries, self.embedder)
        nearest = batch.nearest(self.k)
        examples = batch.examples([near.rows for near in nearest])
        return [self._vote(*one) for one in zip(batch, nearest, examples, strict=True)]

    def _vote(self, candidates: Candidates, near: Ranked, examples: Sequence[Example]) -> Prediction:
        picks = tuple(
            Pick(example.id, float(score), rank)
            for rank, (example, score) in enumerate(zip(examples, near.scores, strict=True), 1)
        )
        selection = Selection(candidates.query, picks, self.spec)
        labels = self.context.labels
        votes = Counter(example.output for example in examples if example.output in labels)
        if not votes:
            return Prediction(
                candidates.query.id, selection=selection, failure="none of its neighbors has a label of the task"
            )
        shares = np.log([votes[label] + 1.0 for label in labels]) - np.log(votes.total() + len(labels))
        # most_common is stable: of equal counts the label that was met first, which is the nearest example's
        return answer_by_shares(candidates.query.id, labels, shares, votes.most_common(1)[0][0], selection)
