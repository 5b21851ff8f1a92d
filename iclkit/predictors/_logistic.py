"""Logistic regression on embeddings, trained on the pool, never on what must not be shown to the query."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import encode_checked
from iclkit.predictors._base import BasePredictor, answer_by_shares
from iclkit.predictors._protocol import Prediction
from iclkit.records import Query, fold_text
from iclkit.selectors import Needs
from iclkit.settings import setting

_FLOOR = 1e-6  # share of the probability that is given to all labels alike, so that none is impossible


@dataclass
class LogisticRegression(BasePredictor):
    """A linear classifier of the embeddings (scikit-learn), cross-fitted.

    A query that must not see an example of the pool, since it is that example or its double, is answered by a model
    that was trained without the example's fold. Examples of equal text share a fold, which their text alone decides.
    """

    name: ClassVar[str] = "logreg"
    summary: ClassVar[str] = "logistic regression on embeddings, cross-fitted"
    needs: ClassVar[Needs] = Needs(embedder=True, labels=True)

    strength: float = setting(1.0, "inverse of the penalty on the weights (scikit-learn's C)", gt=0)
    folds: int = setting(5, "parts of the pool, one of which is left out where an example must not be seen", ge=2)

    def prepare(self) -> None:
        """Forget the models of another task."""
        self._models: dict[bytes, Any] = {}

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """Encode all queries together; those that leave out the same folds share a model."""
        view, labels = self.context.view, self.context.labels
        vectors = encode_checked(self.embedder, [q.text for q in queries], "query")
        parts = np.array([zlib.crc32((fold_text(e.text) or e.text).encode()) % self.folds for e in view.examples])
        predictions = []
        for candidates, vector in zip(view.candidates(queries), vectors, strict=True):
            allowed = candidates.allowed(view.rows)
            trained_on = ~np.isin(parts, np.unique(parts[~allowed]))
            # where every fold holds something that must not be seen, only these examples themselves are left out
            shares = self._shares(trained_on if trained_on.any() else allowed, vector)
            answer = labels[int(np.argmax(shares))]
            predictions.append(answer_by_shares(candidates.query.id, labels, shares, answer))
        return predictions

    def _shares(self, trained_on: NDArray[np.bool_], vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """(labels,) log-probabilities, in the task's order."""
        labels, key = self.context.labels, np.packbits(trained_on).tobytes()
        if key not in self._models:
            self._models[key] = self._train(trained_on)
        model = self._models[key]
        probabilities = np.zeros(len(labels))
        if isinstance(model, str):
            probabilities[labels.index(model)] = 1.0
        elif model is not None:
            at = [labels.index(label) for label in model.classes_]
            probabilities[at] = model.predict_proba(vector[None].astype(np.float64))[0]
        mixed = (1 - _FLOOR) * probabilities + _FLOOR / len(labels)
        return np.asarray(np.log(mixed / mixed.sum()))

    def _train(self, trained_on: NDArray[np.bool_]) -> Any:
        """A model of these examples; the label itself where they have one only, None where they have none."""
        from sklearn.linear_model import LogisticRegression as Model

        view, labels = self.context.view, self.context.labels
        outputs = np.array([e.output for e in view.examples])
        rows = np.flatnonzero(trained_on & np.isin(outputs, labels))
        known = sorted(set(outputs[rows].tolist()))
        if len(known) < 2:
            return known[0] if known else None
        model = Model(C=self.strength, max_iter=1000)
        return model.fit(view.vectors(self.embedder)[rows].astype(np.float64), outputs[rows])
