"""Classification looked at closely, against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, precision_recall_fscore_support

from iclkit.errors import UsageError
from iclkit.eval import (
    calibration_error,
    confidences,
    label_log_likelihood,
    label_probabilities,
    label_scores,
    reliability,
)
from iclkit.records import Row

LABELS = st.sampled_from(["a", "b", "c", "d e"])


@settings(deadline=None)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30))
def test_label_scores_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    outputs, golds = zip(*pairs, strict=True)
    names = sorted({*outputs, *golds})
    expected = precision_recall_fscore_support(golds, outputs, labels=names, zero_division=0)
    found = label_scores(outputs, golds)
    assert [s.label for s in found] == names
    for got, want in zip(
        ([s.precision for s in found], [s.recall for s in found], [s.f1 for s in found]), expected, strict=False
    ):
        assert got == pytest.approx(list(want))
    assert [s.gold for s in found] == list(expected[3])
    assert [s.said for s in found] == [outputs.count(n) for n in names]


def scored_rows() -> list[Row]:
    """60 rows over four labels; gold labels drawn from the probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 4))
    golds = [rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits]
    return [
        Row(
            f"q{i}",
            f"l{gold}",
            f"l{row.argmax()}",
            {},
            label_logprobs={f"l{j}": float(v) - 7 for j, v in enumerate(row)},
        )
        for i, (row, gold) in enumerate(zip(logits, golds, strict=True))
    ]


# torchmetrics 1.9.0, multiclass_calibration_error(norm="l1") on the same rows (it computes in float32)
@pytest.mark.parametrize(("bins", "value"), [(1, 0.1199645), (5, 0.1399763), (10, 0.1399764), (15, 0.1399764)])
def test_calibration_error_equals_torchmetrics(bins: int, value: float) -> None:
    assert calibration_error(*confidences(scored_rows()), bins=bins) == pytest.approx(value, abs=2e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_calibration_error_equals_a_loop_over_bins(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in rows if edges[b] < c <= edges[b + 1] or (b == 0 and c == 0)]
        total += abs(sum(r for _, r in inside) - sum(c for c, _ in inside)) / len(rows)
    assert calibration_error(confidence, right, bins) == pytest.approx(total)
    assert sum(b.count for b in reliability(confidence, right, bins)) == len(rows)


def test_log_likelihood_equals_scikit_learn_s_log_loss() -> None:
    rows = scored_rows()
    shares = [[*label_probabilities(r.label_logprobs).values()] for r in rows]
    assert label_log_likelihood(rows) == pytest.approx(
        -log_loss([r.gold for r in rows], shares, labels=["l0", "l1", "l2", "l3"])
    )


def test_guessing_and_certainty_have_known_values() -> None:
    guess = [Row("q", "a", "a", {}, label_logprobs=dict.fromkeys("abcd", -900.0))]
    sure = [Row("q", "a", "a", {}, label_logprobs={"a": -1.0, "b": -2000.0})]
    assert label_log_likelihood(guess) == pytest.approx(-np.log(4))
    assert label_log_likelihood(sure) == 0
    assert calibration_error(*confidences(guess)) == pytest.approx(0.75)
    assert calibration_error(*confidences(sure)) == 0
    assert sum(label_probabilities(guess[0].label_logprobs).values()) == pytest.approx(1)


def test_no_rows_are_nan_and_generated_rows_are_refused() -> None:
    assert np.isnan(label_log_likelihood([]))
    assert np.isnan(calibration_error(*confidences([])))
    with pytest.raises(UsageError, match="no label log-probabilities"):
        confidences([Row("q", "a", "a", {})])
    with pytest.raises(UsageError, match="row q has no log-probability of its gold label 'a'"):
        label_log_likelihood([Row("q", "a", "b", {}, label_logprobs={"b": 0.0})])
    with pytest.raises(UsageError, match="bins is 0"):
        reliability(np.array([0.5]), np.array([True]), 0)
