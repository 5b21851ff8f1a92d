"""Calibration: its invariants, a plain second implementation, and what it does to a biased LM."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iclkit.errors import UsageError
from iclkit.eval import evaluate
from iclkit.eval._calibrate import (
    CONTENT_FREE,
    DOMAIN_TEXTS,
    blank,
    by_batch,
    divide,
    domain_texts,
    log_shares,
    prior,
)
from iclkit.records import Example, Query
from iclkit.testing import ScriptedLM

from .worlds import LABELS, classification, generation

SCORES = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(-12, 0))


@given(SCORES, SCORES)
def test_dividing_by_a_prior_equals_the_plain_arithmetic(scores, free):
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    raw = np.exp(free).mean(axis=0)  # probabilities averaged raw, then normed
    expected = shares / (raw / raw.sum())
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.exp(divide(scores, prior(free))) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(SCORES)
def test_a_uniform_prior_changes_nothing(scores):
    assert divide(scores, np.full(4, -math.log(4))) == pytest.approx(log_shares(scores))


@given(SCORES, st.floats(-5, 5))
def test_a_factor_common_to_all_labels_has_no_effect(scores, shift):
    assert by_batch(scores + shift) == pytest.approx(by_batch(scores), abs=1e-9)
    assert prior(scores + shift) == pytest.approx(prior(scores), abs=1e-9)


@given(SCORES, st.permutations(range(4)))
def test_labels_may_come_in_any_order(scores, order):
    assert by_batch(scores[:, order]) == pytest.approx(by_batch(scores)[:, order], abs=1e-9)


@given(arrays(np.float64, 4, elements=st.floats(-8, 0)))
def test_a_single_content_free_input_itself_becomes_uniform(free):
    assert divide(free, prior(free[None])) == pytest.approx(np.full(4, -math.log(4)))


@given(SCORES)
def test_a_batch_of_one_becomes_uniform(scores):
    assert by_batch(scores[:1]) == pytest.approx(np.full((1, 4), -math.log(4)), abs=1e-6)


def test_a_prior_of_nothing_is_guarded():
    assert np.isfinite(divide(np.array([-1.0, -2.0]), np.array([0.0, -np.inf]))).all()


def test_domain_texts_are_random_words_of_the_pool_of_average_length():
    examples = [Example("One two three", "a"), Example("Four five six seven eight", "b")]
    texts = domain_texts(examples, 0)
    assert len(texts) == DOMAIN_TEXTS
    assert all(len(t.split()) == 5 and t.endswith(" .") for t in texts)
    words = [w for e in examples for w in e.text.lower().split()]
    assert {w for t in texts for w in t.split()} <= {*words, "."}
    assert texts == domain_texts(examples, 0) != domain_texts(examples, 1)


def test_a_blank_query_keeps_its_fields_choices_and_id():
    query = Query({"a": "x", "b": "y"}, ("u", "v"), frozenset({"e"}), id="q")
    assert blank(query, "N/A") == Query({"a": "N/A", "b": "N/A"}, ("u", "v"), frozenset({"e"}), id="q")


def biased() -> ScriptedLM:
    """Knows the answer, but leans so far towards the first label that it always says it."""
    from .worlds import WORDS

    def logprob(context: str, continuation: str) -> float:
        label, words = continuation.strip(), context.split("\n\n")[-1].split("\n")[0].split()
        shown = [d for d in context.split("\n\n")[:-1] if d.endswith(continuation)]
        return 4.0 * (label == LABELS[0]) + 2.0 * any(w in WORDS[label] for w in words) + 0.1 * len(shown) - 12

    return ScriptedLM(logprob)


@pytest.mark.parametrize("kind", ["contextual", "domain", "batch"])
def test_calibration_takes_out_a_bias_and_keeps_the_raw_figure(kind):
    task = classification(test=128)
    run = evaluate(task, "random", biased(), k=3, calibrate=kind)
    raw = evaluate(task, "random", biased(), k=3)
    assert {r.output for r in raw.rows} == {LABELS[0]}
    calibrated = np.mean([r.metrics["accuracy"] for r in run.rows])
    assert calibrated > np.mean([r.metrics["accuracy"] for r in raw.rows]) + 0.2
    assert [r.metrics["accuracy_raw"] for r in run.rows] == [r.metrics["accuracy"] for r in raw.rows]
    assert [r.label_logprobs for r in run.rows] == [r.label_logprobs for r in raw.rows]


def test_the_prior_is_taken_again_for_each_querys_demonstrations():
    lm, task = biased(), classification(test=4)
    run = evaluate(task, "random", lm, k=3, calibrate="contextual")
    contexts = list(dict.fromkeys(r.context for r in lm.scored))
    assert len(contexts) == 4 * (1 + len(CONTENT_FREE))
    for row, at in zip(run.rows, range(0, 16, 4), strict=True):
        own, frees = contexts[at], contexts[at + 1 : at + 4]
        head = own.rsplit("\n\n", 1)[0]
        assert [f.rsplit("\n\n", 1)[0] for f in frees] == [head] * 3
        assert [f.rsplit("Text:", 1)[1] for f in frees] == [" N/A\nKind:", " \nKind:", " [MASK]\nKind:"]
        free = np.array([[lm._score(f, f" {label}").logprob for label in LABELS] for f in frees])
        expected = divide(np.array([*row.label_logprobs.values()]), prior(free))
        assert row.output == LABELS[int(np.argmax(expected))]
        assert row.metrics["gold_logprob"] == pytest.approx(expected[LABELS.index(row.gold)])


def test_a_calibrated_run_cut_anywhere_ends_in_the_same_bytes(tmp_path):
    task = classification()
    run = evaluate(task, "random", biased(), k=2, calibrate="batch", out=tmp_path)
    file = tmp_path / run.id / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    evaluate(task, "random", biased(), k=2, calibrate="batch", out=tmp_path)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [(generation, "contextual", "no labels"), (classification, "context", "none, contextual, domain, batch")],
)
def test_what_cannot_be_calibrated_is_refused(task, kind, text):
    with pytest.raises(UsageError, match=text):
        evaluate(task(), "random", biased(), calibrate=kind)
