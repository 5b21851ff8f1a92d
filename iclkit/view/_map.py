"""A pool as points in a plane: where its examples lie by meaning, or by their words where there is no embedder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.datasets import sample_rows
from iclkit.embed import Embedder
from iclkit.pool import PoolView
from iclkit.records import Example

SAMPLE = 3_000
"""Examples that are drawn; of larger pools as many at random."""
GROUPS = 8
"""Outputs that have a color of their own."""
_PART = 512  # characters of an input that its words are taken from
_COMPONENTS = 50
_HOVER = 120  # characters of a point's text

Floats = NDArray[np.float64]


class PoolMap:
    """The two directions in which a pool's examples differ most, and where examples and queries lie along them.

    By an embedder's vectors (principal components), else by words (TF-IDF, latent semantic analysis, then principal
    components). The directions are found once, so that the map stays as it is while rows are changed.
    """

    def __init__(self, embedder: Embedder | None) -> None:
        self.embedder = embedder
        self._words: Any = None
        self._plane: Any = None
        self._share = 0.0
        self._scale = (np.zeros(2), 1.0)
        self._drawn: tuple[int, dict[str, Any]] = (-1, {})

    def points(self, view: PoolView) -> dict[str, Any]:
        """Points with places in about -1 to 1, ids, texts and groups; how much of the differences the plane shows."""
        if self._drawn[0] == view.revision:
            return self._drawn[1]
        rows = np.array(sample_rows(view.rows.tolist(), SAMPLE, seed=0), dtype=np.int64)
        examples = view.examples_at(rows)
        self._fit(view, rows)
        groups = _groups(examples)
        number = {name: n for n, name in enumerate(groups)}
        places = self.place(view, rows)
        drawn = {
            "revision": view.revision,
            "total": len(view),
            "by": self.embedder.name if self.embedder else None,
            "share": self._share,
            "groups": groups,
            "points": [
                {
                    "id": e.id,
                    "at": at,
                    "group": number.get(e.output),
                    "output": e.output[:_HOVER],
                    "input": e.text[:_HOVER],
                }
                for e, at in zip(examples, places, strict=True)
            ],
        }
        self._drawn = view.revision, drawn
        return drawn

    def place(self, view: PoolView, rows: NDArray[np.int64]) -> list[list[float]]:
        """Where rows of a view lie."""
        if not len(rows):
            return []
        self._fit(view, rows)
        return self._places(self._features(view, rows))

    def place_query(self, text: str, view: PoolView) -> list[float] | None:
        """Where a query lies; None on an empty pool."""
        if not len(view) or not text.strip():
            return None
        if self._plane is None:
            self.points(view)
        if self.embedder is not None:
            return self._places(np.asarray(self.embedder.encode_queries([text]), dtype=np.float64))[0]
        return self._places(self._of_words([text]))[0]

    def _fit(self, view: PoolView, rows: NDArray[np.int64]) -> None:
        if self._plane is not None or not len(view):
            return
        if len(rows) < min(len(view), SAMPLE):  # asked for some before it was drawn
            rows = np.array(sample_rows(view.rows.tolist(), SAMPLE, seed=0), dtype=np.int64)
        if self.embedder is None:
            self._words = _fit_words(_texts(view.examples_at(rows)))
        features = self._features(view, rows)
        if np.ptp(features, axis=0).any():
            from sklearn.decomposition import PCA

            self._plane = PCA(min(2, *features.shape), random_state=0).fit(features)
            self._share = float(self._plane.explained_variance_ratio_.sum())
        else:
            self._plane = _OneSpot()
        padded = _padded(self._plane.transform(features))
        middle = np.median(padded, axis=0)
        # what lies far off must not press all others into one spot
        reach = float(np.quantile(np.abs(padded - middle), 0.98)) or float(np.abs(padded - middle).max())
        self._scale = middle, reach or 1.0

    def _features(self, view: PoolView, rows: NDArray[np.int64]) -> Floats:
        if self.embedder is not None:
            return np.asarray(view.index(self.embedder).vectors(rows), dtype=np.float64)
        return self._of_words(_texts(view.examples_at(rows)))

    def _of_words(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self._words.transform([t[:_PART] for t in texts]), dtype=np.float64)

    def _places(self, features: Floats) -> list[list[float]]:
        middle, reach = self._scale
        places = (_padded(self._plane.transform(features)) - middle) / reach
        return [[round(float(x), 4) for x in np.clip(place, -1.5, 1.5)] for place in places]


def _texts(examples: Sequence[Example]) -> list[str]:
    return [e.text[:_PART] for e in examples]


def _fit_words(texts: Sequence[str]) -> Any:
    """Words of texts to a few directions: a fitted pipeline."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, Normalizer

    # characters stand for words: scripts without spaces have places too, and no text is without any
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=20_000)
    found = words.fit_transform(texts).shape[1]
    directions = min(_COMPONENTS, found - 1, len(texts))
    differ = directions > 0 and len({*texts}) > 1
    steps = (
        [TruncatedSVD(directions, random_state=0), Normalizer(copy=False)]
        if differ
        else [FunctionTransformer(_dense, accept_sparse=True)]
    )
    return make_pipeline(words, *steps).fit(texts)


def _dense(matrix: Any) -> Floats:
    return np.asarray(matrix.toarray(), dtype=np.float64)


class _OneSpot:
    """The plane of examples that do not differ."""

    def transform(self, given: Floats) -> Floats:
        """All in one place."""
        return np.zeros((len(given), 2))


def _padded(places: Floats) -> Floats:
    """(n, 2), also of what differs in fewer directions."""
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def _groups(examples: Sequence[Example]) -> list[str]:
    """The commonest outputs, if outputs are labels: each shared by two examples on average."""
    counts = Counter(e.output for e in examples)
    if 2 * len(counts) > len(examples):
        return []
    return [name for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:GROUPS] if count > 1]
