"""The classifier keeps scikit-learn's contract, with fakes in the place of models."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from iclkit.errors import DataError, UsageError
from iclkit.integrations.sklearn import ICLClassifier
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM

X = [f"{word} {thing} {n}" for n in range(6) for word in ("good", "bad") for thing in ("film", "meal")]
Y = [int(x.startswith("good")) for x in X]


def lower(texts: list[str]) -> list[str]:
    return [t.lower() for t in texts]


def nearest_label(context: str, continuation: str) -> float:
    """An LM that says what the last demonstration says."""
    return -0.1 if context.rsplit("Label:", 2)[1].split("\n")[0] == continuation else -3.0


def model(**given: object) -> ICLClassifier:
    return ICLClassifier(k=3, lm=ScriptedLM(nearest_label), embedder=HashEmbedder(), **given)  # type: ignore[arg-type]


def test_it_answers_with_the_labels_it_was_given() -> None:
    fitted = model().fit(X, Y)
    assert fitted.classes_.tolist() == [0, 1]
    assert fitted.predict(["good cake", "bad cake"]).tolist() == [1, 0]
    words = model().fit(X, ["yes" if y else "no" for y in Y])
    assert words.predict(["good cake", "bad cake"]).tolist() == ["yes", "no"]
    assert fitted.score(X[:4], Y[:4]) == 1.0


def test_probabilities_stand_in_the_order_of_the_classes_and_sum_to_one() -> None:
    shares = ICLClassifier(k=2, lm=FakeLM(), embedder=HashEmbedder()).fit(X, Y).predict_proba(["good cake", "ice"])
    assert shares.shape == (2, 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    fitted = model().fit(X, Y)
    assert (fitted.predict_proba(["good cake"])[0] > 0.5).tolist() == [False, True]


def test_parameters_are_as_given_and_clones_share_the_models() -> None:
    lm, template = FakeLM(), "Text: {input}\nMood: {output}"
    one = ICLClassifier("mmr,trade_off=0.3", k=5, lm=lm, template=template, seed=2)
    other = clone(one)
    assert other.get_params() == one.get_params()
    assert other.lm is lm
    assert other.set_params(k=1).k == 1
    with pytest.raises(NotFittedError):
        other.predict(["x"])


def test_neither_rows_nor_labels_are_changed() -> None:
    texts, labels = np.array(X, dtype=object), np.array(Y)
    before = (texts.copy(), labels.copy())
    model().fit(texts, labels).predict(texts)
    assert (texts == before[0]).all()
    assert (labels == before[1]).all()


def test_it_works_in_a_pipeline_a_grid_and_cross_validation() -> None:
    pipe = Pipeline([("lower", FunctionTransformer(lower)), ("icl", model())])
    assert cross_val_score(pipe, X, Y, cv=3).mean() == 1.0
    grid = GridSearchCV(model(), {"k": [1, 2]}, cv=2, n_jobs=2).fit(X, Y)
    assert grid.best_score_ > 0.9
    assert not np.isnan(grid.cv_results_["mean_test_score"]).any()


def test_a_fitted_one_is_dumped_and_loaded(tmp_path: Path) -> None:
    fitted = ICLClassifier(k=2, lm=FakeLM(), embedder=HashEmbedder()).fit(X, Y)
    joblib.dump(fitted, tmp_path / "model.joblib")
    again = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(again.predict_proba(["good cake"]), fitted.predict_proba(["good cake"]))


def test_scikit_learns_own_check_passes() -> None:
    results = check_estimator(model(), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


def test_predictors_that_ask_no_lm_serve_too() -> None:
    for name in ("knn-vote", "logreg"):
        assert ICLClassifier(name, embedder=HashEmbedder()).fit(X, Y).predict(["good cake"]).tolist() == [1]
    with pytest.raises(UsageError, match="shows no demonstrations"):
        ICLClassifier("majority").fit(X, Y).select(["x"])


def test_a_saved_selector_lends_its_settings(world) -> None:
    fitted = ICLClassifier(world.kept, k=4, lm=FakeLM()).fit(X, Y)
    assert fitted.select(["good cake"])[0].spec == world.chooser.spec


def test_rows_and_labels_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="row 2 of X is no text but int"):
        model().fit(["a", 3], [0, 1])  # type: ignore[list-item]
    with pytest.raises(DataError, match="there are 2 texts, and y has the shape"):
        model().fit(["a", "b"], [0])
    with pytest.raises(DataError, match="X is a text; give a list"):
        model().fit(X, Y).predict("good")
    with pytest.raises(DataError, match="two labels are written the same to the LM: x, x; set label_names"):
        model().fit(["a", "b"], ["x", "x "])
    with pytest.raises(UsageError, match="needs an LM"):
        ICLClassifier("knn", embedder=HashEmbedder()).fit(X, Y).predict(["x"])


def test_labels_can_have_words() -> None:
    lm = FakeLM()
    ICLClassifier(k=1, lm=lm, embedder=HashEmbedder(), label_names={0: "sad", 1: "happy"}).fit(X, Y).predict(["good"])
    assert {r.continuation for r in lm.scored} == {" sad", " happy"}
