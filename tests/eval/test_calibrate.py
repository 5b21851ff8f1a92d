"""Calibration: its invariants, a plain second implementation, and what it does to a biased LM."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iclkit import evaluate
from iclkit.errors import UsageError
from iclkit.predictors._calibrate import (
    CONTENT_FREE,
    DOMAIN_TEXTS,
    content_free_query,
    divide_by_prior,
    domain_texts,
    label_prior,
    mean_prior,
)
from iclkit.prompts import log_softmax
from iclkit.records import Example, Query
from iclkit.testing import FakeLM, ScriptedLM

from .worlds import LABELS, classification, generation

SCORES = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(-12, 0))


@given(SCORES, SCORES)
def test_dividing_by_a_prior_equals_the_plain_arithmetic(scores, free):
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    raw = np.exp(free).mean(axis=0)  # probabilities averaged raw, then normed
    expected = shares / (raw / raw.sum())
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.exp(divide_by_prior(scores, label_prior(free))) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(SCORES)
def test_a_uniform_prior_changes_nothing(scores):
    assert divide_by_prior(scores, np.full(4, -math.log(4))) == pytest.approx(log_softmax(scores))


@given(SCORES, st.floats(-5, 5))
def test_a_factor_common_to_all_labels_has_no_effect(scores, shift):
    assert mean_prior(scores + shift) == pytest.approx(mean_prior(scores), abs=1e-9)
    assert label_prior(scores + shift) == pytest.approx(label_prior(scores), abs=1e-9)


@given(SCORES, st.permutations(range(4)))
def test_labels_may_come_in_any_order(scores, order):
    assert mean_prior(scores[:, order]) == pytest.approx(mean_prior(scores)[order], abs=1e-9)


@given(arrays(np.float64, 4, elements=st.floats(-8, 0)))
def test_a_single_content_free_input_itself_becomes_uniform(free):
    assert divide_by_prior(free, label_prior(free[None])) == pytest.approx(np.full(4, -math.log(4)))


@given(SCORES)
def test_a_batch_of_one_becomes_uniform(scores):
    assert divide_by_prior(scores[0], mean_prior(scores[:1])) == pytest.approx(np.full(4, -math.log(4)), abs=1e-6)


@given(SCORES, st.randoms())
def test_the_mean_prior_is_bit_for_bit_the_same_in_any_order(scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    assert mean_prior(scores).tolist() == mean_prior(scores[order]).tolist()


def test_a_prior_of_nothing_is_guarded():
    assert np.isfinite(divide_by_prior(np.array([-1.0, -2.0]), np.array([0.0, -np.inf]))).all()


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
    assert content_free_query(query, "N/A") == Query({"a": "N/A", "b": "N/A"}, ("u", "v"), frozenset({"e"}), id="q")


def biased() -> ScriptedLM:
    """Knows the answer, but leans so far towards the first label that it always says it."""
    from .worlds import WORDS

    def logprob(context: str, continuation: str) -> float:
        label, words = continuation.strip(), context.split("\n\n")[-1].split("\n")[0].split()
        shown = [d for d in context.split("\n\n")[:-1] if d.endswith(continuation)]
        return 4.0 * (label == LABELS[0]) + 2.0 * any(w in WORDS[label] for w in words) + 0.1 * len(shown) - 12

    return ScriptedLM(logprob)


@pytest.mark.parametrize("kind", ["contextual", "domain", "batch", "pool"])
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
        expected = divide_by_prior(np.array([*row.label_logprobs.values()]), label_prior(free))
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
    [
        (generation, "contextual", "no labels"),
        (classification, "context", "none, contextual, domain, batch, pool, given"),
        (classification, "given", "needs a prior"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(task, kind, text):
    with pytest.raises(UsageError, match=text):
        evaluate(task(), "random", biased(), calibrate=kind)


def sorted_by_label():
    """A test file whose rows stand label by label, as many files are."""
    task = classification(test=150)
    return replace(task, test=tuple(sorted(task.test, key=lambda e: e.output)))


@pytest.mark.parametrize("normalize", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["batch", "pool"])
def test_the_order_of_the_rows_changes_nothing(kind, normalize):
    rng, whole = random.Random(3), sorted_by_label()
    shuffled = replace(whole, test=tuple(rng.sample(whole.test, len(whole.test))))
    runs = [evaluate(t, "bm25", biased(), k=2, calibrate=kind, normalize=normalize) for t in (whole, shuffled)]
    by_query = [{r.query_id: r for r in run.rows} for run in runs]
    assert by_query[0] == by_query[1]
    assert runs[0].facts["prior"] == runs[1].facts["prior"]


def test_a_file_sorted_by_label_is_calibrated_as_well_as_a_mixed_one():
    accuracy = {}
    for kind in ("none", "batch"):
        rows = evaluate(sorted_by_label(), "bm25", biased(), k=2, calibrate=kind).rows
        accuracy[kind] = np.mean([r.metrics["accuracy"] for r in rows])
    assert accuracy["batch"] > accuracy["none"] + 0.3


def test_the_prior_is_the_mean_over_all_rows_and_answers_are_recomputed_from_it():
    task = classification(test=150)
    run = evaluate(task, "random", biased(), k=3, calibrate="batch")
    scores = np.array([[r.label_logprobs[label] for label in LABELS] for r in run.rows])
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert [*run.facts["prior"].values()] == pytest.approx(shares.mean(axis=0))
    expected = shares / shares.mean(axis=0)
    assert [r.output for r in run.rows] == [LABELS[i] for i in expected.argmax(axis=1)]
    gold = [expected[n, LABELS.index(r.gold)] / expected[n].sum() for n, r in enumerate(run.rows)]
    assert np.exp([r.metrics["gold_logprob"] for r in run.rows]) == pytest.approx(gold)


def test_length_is_divided_out_before_a_prior_over_all_rows():
    run = evaluate(classification(test=40), "random", biased(), k=3, calibrate="batch", normalize="mean")
    scores = np.array([[r.label_logprobs[x] / r.label_tokens[x] for x in LABELS] for r in run.rows])
    assert [*run.facts["prior"].values()] == pytest.approx(np.exp(mean_prior(scores)))
    assert not any(r.label_tokens for r in evaluate(classification(test=9), "random", biased(), normalize="mean").rows)


def test_the_prior_of_pool_rows_sees_no_test_row_and_no_row_sees_itself():
    task, lm = classification(test=70), biased()
    run = evaluate(task, "bm25", lm, k=2, calibrate="pool")
    asked = {r.context.split("\n\n")[-1].split("\n")[0].removeprefix("Text: ") for r in lm.scored}
    pool_inputs = {e.text for e in task.train}
    assert asked == {e.text for e in task.test} | pool_inputs
    for r in lm.scored:
        *demos, query = (block.split("\n")[0] for block in r.context.split("\n\n"))
        assert query not in demos
    other = evaluate(replace(task, test=task.test[:30]), "bm25", biased(), k=2, calibrate="pool")
    assert other.rows == run.rows[:30]  # what else is asked does not matter
    assert other.facts["prior"] == run.facts["prior"]


def test_a_given_prior_is_divided_out_and_is_part_of_the_run():
    task = classification(test=30)
    batch = evaluate(task, "random", biased(), k=3, calibrate="batch")
    given = evaluate(task, "random", biased(), k=3, calibrate="given", prior=batch.facts["prior"])
    assert [r.output for r in given.rows] == [r.output for r in batch.rows]
    flat = evaluate(task, "random", biased(), k=3, calibrate="given", prior=dict.fromkeys(LABELS, 1 / 3))
    assert {r.output for r in flat.rows} == {LABELS[0]}
    assert len({given.id, flat.id, batch.id}) == 3


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ({"animal": 0.5, "food": 0.5}, "'tool' has no probability"),
        (dict.fromkeys([*LABELS, "plant"], 0.2), "'plant' is no label"),
        (dict.fromkeys(LABELS, 0.0), "'animal' has 0.0"),
        (dict.fromkeys(LABELS, math.nan), "has nan"),
        (dict.fromkeys(LABELS, "a"), "has 'a'"),
    ],
)
def test_a_prior_that_is_none_is_refused(prior, text):
    with pytest.raises(UsageError, match=text):
        evaluate(classification(test=3), "random", biased(), calibrate="given", prior=prior)
    with pytest.raises(UsageError, match="for the calibration 'given'"):
        evaluate(classification(test=3), "random", biased(), prior=prior)


@pytest.mark.parametrize("kind", ["batch", "pool"])
def test_a_kill_between_the_last_row_and_the_end_changes_no_byte(kind, tmp_path):
    task = classification()
    run = evaluate(task, "random", biased(), k=2, calibrate=kind, out=tmp_path)
    folder = tmp_path / run.id
    rows, state = (folder / "rows.jsonl").read_bytes(), json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(state | {"done": False}))  # killed after rows.jsonl was replaced
    again = evaluate(task, "random", biased(), k=2, calibrate=kind, out=tmp_path)
    assert (folder / "rows.jsonl").read_bytes() == rows
    assert again.facts["prior"] == run.facts["prior"]


def test_one_query_alone_is_left_as_it_is():
    run = evaluate(classification(test=1), "random", biased(), k=2, calibrate="batch")
    raw = evaluate(classification(test=1), "random", biased(), k=2)
    assert run.rows[0].output == raw.rows[0].output
    assert "prior" not in run.facts


def test_content_free_prompts_fit_the_budget_as_every_prompt_does():
    lm, task = FakeLM(context_size=90), classification(test=6)
    run = evaluate(task, "random", lm, k=8, calibrate="domain")
    assert all(r.dropped for r in run.rows)
    assert max(lm.count_tokens(r.context + r.continuation) for r in lm.scored) <= 90
    free = [r.context for r in lm.scored if r.context.rstrip().endswith(".\nKind:")]
    assert len(free) == 6 * DOMAIN_TEXTS * len(LABELS)
    assert all("\n\n" in context for context in free)  # whole demonstrations were dropped, not all of them


def test_an_lm_that_only_ranks_is_not_calibrated_nor_averaged():
    lm = biased()
    lm.scoring = "generate"
    for arguments in ({"calibrate": "contextual"}, {"calibrate": "batch"}, {"normalize": "mean"}):
        with pytest.raises(UsageError, match="tells no log-probabilities"):
            evaluate(classification(test=3), "random", lm, **arguments)
