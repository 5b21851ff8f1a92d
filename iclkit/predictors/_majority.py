"""The most frequent label: what any other predictor has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.predictors._base import BasePredictor, answer_by_shares
from iclkit.predictors._protocol import Prediction
from iclkit.records import Query
from iclkit.selectors import Needs


@dataclass
class Majority(BasePredictor):
    """The label that most of the examples allowed for a query have; on a tie the first of the task's labels."""

    name: ClassVar[str] = "majority"
    summary: ClassVar[str] = "the most frequent label of the pool"
    needs: ClassVar[Needs] = Needs(labels=True)

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """Count the labels of the pool for each query, without what must not be shown to it."""
        view, labels = self.context.view, self.context.labels
        outputs = np.array(view.outputs(view.rows))
        of_label = np.stack([outputs == label for label in labels])  # (labels, n)
        predictions = []
        for candidates in view.candidates(queries):
            counts = (of_label & candidates.allowed(view.rows)).sum(axis=1)
            shares = np.log(counts + 1.0) - np.log(counts.sum() + len(labels))
            predictions.append(answer_by_shares(candidates.query.id, labels, shares, labels[int(np.argmax(counts))]))
        return predictions
