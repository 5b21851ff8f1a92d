"""scikit-learn: in-context learning as a classifier of texts.

from iclkit.integrations.sklearn import ICLClassifier

model = ICLClassifier(selector="knn", k=8, lm="smollm2-135m").fit(texts, labels)
model.predict_proba(["my parcel is late"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from iclkit.embed import Embedder, load_embedder
from iclkit.errors import DataError, UsageError
from iclkit.integrations._demonstrations import as_chooser
from iclkit.lm import LM, load_lm
from iclkit.pool import Pool
from iclkit.predictors import Prediction, Predictor, Settings, TaskContext, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Example, Query, Selection, Spec, clean_text

_TEMPLATE = "Input: {input}\nLabel: {output}"


class ICLClassifier(ClassifierMixin, BaseEstimator):
    """Texts to labels: demonstrations chosen from the training rows, an LM that scores the labels after them.

    ``selector``: a selector's name with settings (``mmr,trade_off=0.3``), the folder of a saved one, whose settings and
    template are used, or a predictor that asks no LM (``knn-vote``, ``logreg``, ``majority``). ``lm``, ``embedder``:
    names, or objects; with ``n_jobs`` and ``joblib.dump`` give names, which every process loads for itself.
    ``template``: ``Input: {input}\\nLabel: {output}`` where None. ``label_names``: the words that the LM reads for
    labels that are none (``{0: "negative", 1: "positive"}``). ``calibrate``: none, contextual, domain or pool.
    ``seed``: for whatever is random.

    Training rows are what can be shown: a text that was trained on may be shown its own label when it is asked about.
    """

    def __init__(
        self,
        selector: str | Path = "knn",
        *,
        k: int = 8,
        lm: str | LM | None = None,
        embedder: str | Embedder = "all-minilm-l6-v2",
        template: str | Template | None = None,
        label_names: Mapping[Any, str] | None = None,
        order: str = "best-last",
        calibrate: str = "none",
        seed: int = 0,
    ) -> None:
        self.selector = selector
        self.k = k
        self.lm = lm
        self.embedder = embedder
        self.template = template
        self.label_names = label_names
        self.order = order
        self.calibrate = calibrate
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> Self:
        """Keep the rows to choose from. Loads models; asks no LM.

        DataError for rows that are no texts, for lengths that differ, and for labels that are written the same.
        """
        texts, labels = _texts(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise DataError(f"there are {len(texts)} texts, and y has the shape {labels.shape}; give a label for each")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        names = tuple(clean_text(str((self.label_names or {}).get(c, c))) for c in self.classes_.tolist())
        if len(set(names)) < len(names):
            raise DataError(f"two labels are written the same to the LM: {', '.join(sorted(names))}; set label_names")
        self.names_ = names
        self.examples_ = tuple(Example(t, names[c]) for t, c in zip(texts, codes.tolist(), strict=True))
        self._predictor = self._make_predictor()
        return self

    def predict(self, X: Sequence[str]) -> NDArray[Any]:
        """(n,) the most probable label of each text."""
        best = np.argmax(self.predict_log_proba(X), axis=1)
        answers: NDArray[Any] = self.classes_[best]
        return answers

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float64]:
        """(n, labels) probabilities in the order of ``classes_``; each row sums to 1."""
        shares = np.exp(self.predict_log_proba(X))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def predict_log_proba(self, X: Sequence[str]) -> NDArray[np.float64]:
        """(n, labels) log-probabilities in the order of ``classes_``. DataError for a text that got no answer."""
        shares = [self._shares(p, row) for row, p in enumerate(self._predict(X), 1)]
        return np.array(shares).reshape(-1, len(self.names_))

    def select(self, X: Sequence[str]) -> list[Selection]:
        """The demonstrations of each text, best first; the LM is asked all the same, or its cache."""
        found = []
        for prediction in self._predict(X):
            if prediction.selection is None:
                raise UsageError(f"{self.selector!r} shows no demonstrations")
            found.append(prediction.selection)
        return found

    # ---- what scikit-learn asks

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    def __sklearn_clone__(self) -> Self:
        """A copy that is not fitted. Models given as objects are shared: scikit-learn would copy their weights."""
        given = self.get_params(deep=False)
        return type(self)(**{n: v if n in ("lm", "embedder") else clone(v, safe=False) for n, v in given.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of models, which is made again when it is asked for."""
        state: dict[str, Any] = super().__getstate__()
        return {k: v for k, v in state.items() if k != "_predictor"}

    # ---- the work

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        check_is_fitted(self, "classes_")
        if "_predictor" not in self.__dict__:
            self._predictor = self._make_predictor()
        rows = _texts(texts)
        different = [*dict.fromkeys(rows)]  # what is drawn for a text depends on the text, not on its row
        found = dict(zip(different, self._predictor.predict([Query(t) for t in different]), strict=True))
        return [found[t] for t in rows]

    def _shares(self, prediction: Prediction, row: int) -> list[float]:
        if prediction.failure:
            raise DataError(f"row {row} of X has no answer: {prediction.failure}")
        return [prediction.shares[name] for name in self.names_]

    def _make_predictor(self) -> Predictor:
        folder = Path(self.selector)
        what: Spec | str = str(self.selector)
        template = Template.parse(self.template) if isinstance(self.template, str) else self.template
        embedder = self.embedder
        if folder.is_dir():
            kept = as_chooser(folder)
            what, embedder = kept.spec, kept.kit.embedder or embedder
            template = template or kept.kit.template
        tools = Tools(lm=load_lm(self.lm) if isinstance(self.lm, str) else self.lm)
        settings = Settings(k=self.k, seed=self.seed, order=self.order, calibrate=self.calibrate)
        needs = make_predictor(what, tools, settings).needs
        if needs.embedder:
            tools = Tools(tools.lm, load_embedder(embedder) if isinstance(embedder, str) else embedder)
        return make_predictor(what, tools, settings).fit(
            TaskContext(
                name="",
                kind="classification",
                labels=self.names_,
                template=template or Template(_TEMPLATE),
                view=Pool.of(self.examples_).view(),
                answers=frozenset(self.names_),
            )
        )


def _texts(rows: Sequence[str]) -> list[str]:
    """The rows as texts. DataError, with the row's number, for what is none."""
    if isinstance(rows, str):
        raise DataError("X is a text; give a list of texts")
    texts = [*rows]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(f"row {number} of X is no text but {type(text).__name__}; a row is one text")
    return [str(t) for t in texts]
