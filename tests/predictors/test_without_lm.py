"""Predictors that ask no LM: each against a plain second implementation, and on one board with prompts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.errors import NeedError, UnknownName, UsageError
from iclkit.eval import load_runs, make_bench
from iclkit.predictors import PREDICTORS, Settings, Tools, make_predictor
from iclkit.records import Example
from iclkit.report import leaderboard, to_json
from iclkit.testing import FakeLM, HashEmbedder

from ..eval.worlds import LABELS, classification, generation


@pytest.fixture(autouse=True)
def _own_home(home):
    return home


def tools():
    return Tools(embedder=HashEmbedder())


def test_the_vote_equals_a_plain_loop_over_all_examples():
    task, k = classification(test=40), 5
    run = evaluate(task, f"knn-vote,k={k}", embedder=HashEmbedder())
    embedder = HashEmbedder()
    pool = embedder.encode_documents([e.text for e in task.train]).astype(np.float64)
    for row, example in zip(run.rows, task.test, strict=True):
        cosines = pool @ embedder.encode_queries([example.text])[0].astype(np.float64)
        nearest = sorted(range(len(pool)), key=lambda n: (-round(float(cosines[n]), 6), n))[:k]
        votes = [task.train[n].output for n in nearest]
        assert row.output == max(votes, key=lambda label: (votes.count(label), -votes.index(label)))
        assert [i for i, _ in row.picks] == [task.train[n].id for n in nearest]
        for label in LABELS:
            assert row.label_logprobs[label] == pytest.approx(math.log((votes.count(label) + 1) / (k + len(LABELS))))
        assert row.metrics["gold_logprob"] == row.label_logprobs[row.gold]


def test_the_majority_counts_only_what_may_be_shown():
    train = [Example(f"a {n}", "yes") for n in range(3)] + [Example(f"b {n}", "no") for n in range(2)]
    task = make_task("few", train, [Example("a 0", "yes"), Example("c", "no")], labels=("no", "yes"))
    run = evaluate(task, "majority")
    # the first query stands in the pool, which leaves two of each; a tie goes to the first label
    assert [row.output for row in run.rows] == ["no", "yes"]


def test_logistic_regression_never_learns_from_what_the_query_must_not_see():
    base = classification(train=60, test=6)
    wrong = [Example(e.text, "tool" if e.output != "tool" else "food") for e in base.test]
    mislabeled = make_task("leaky", [*base.train, *wrong], base.test, template=base.template)
    kept, shown = (
        evaluate(make_bench(mislabeled, on_leak=policy), "logreg,strength=100.0", embedder=HashEmbedder())
        for policy in ("exclude", "ignore")
    )
    assert all(row.metrics["gold_logprob"] < 0 for row in kept.rows)
    assert sum(r.metrics["gold_logprob"] for r in kept.rows) > sum(r.metrics["gold_logprob"] for r in shown.rows)


def test_logistic_regression_equals_scikit_learn_on_the_whole_pool():
    from sklearn.linear_model import LogisticRegression

    task, embedder = classification(test=9), HashEmbedder()
    run = evaluate(task, "logreg", embedder=embedder)
    x = embedder.encode_documents([e.text for e in task.train]).astype(np.float64)
    model = LogisticRegression(max_iter=1000).fit(x, [e.output for e in task.train])
    expected = model.predict_log_proba(embedder.encode_queries([e.text for e in task.test]).astype(np.float64))
    for row, of_labels in zip(run.rows, expected, strict=True):
        assert [row.label_logprobs[label] for label in model.classes_] == pytest.approx(of_labels, abs=1e-3)


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_a_prediction_does_not_depend_on_the_queries_beside_it(name):
    bench = make_bench(classification(test=12))
    together = make_predictor(name, tools()).fit(bench.context).predict(bench.queries)
    alone = [make_predictor(name, tools()).fit(bench.context).predict([query])[0] for query in bench.queries]
    assert [(p.query_id, p.output) for p in together] == [(p.query_id, p.output) for p in alone]
    for one, other in zip(together, alone, strict=True):
        assert dict(one.shares) == pytest.approx(dict(other.shares))
        assert sum(math.exp(share) for share in one.shares.values()) == pytest.approx(1)


def test_predictors_and_prompts_stand_on_one_board(tmp_path):
    task = classification(test=30)
    for k in (2, 4):
        evaluate(task, "random", FakeLM(), k=k, out=tmp_path)
    for name in PREDICTORS.names():
        evaluate(task, name, embedder=HashEmbedder(), out=tmp_path)
    groups = json.loads(to_json(leaderboard(load_runs(tmp_path))))["groups"]
    assert [sorted(line["selector"] for line in group["lines"]) for group in groups] == [
        ["knn-vote", "logreg", "majority", "random"]
    ] * 2


def test_a_board_of_predictors_alone_needs_no_lm(tmp_path):
    run = evaluate(classification(test=8), "majority", out=tmp_path)
    board = leaderboard(load_runs(tmp_path))
    assert [line.selector for group in board.groups for line in group.lines] == ["majority"]
    assert evaluate(classification(test=8), "majority", out=tmp_path).rows == run.rows


def test_what_a_predictor_lacks_is_said():
    with pytest.raises(NeedError, match="--embedder"):
        evaluate(classification(test=2), "knn-vote")
    with pytest.raises(NeedError, match="has no labels"):
        evaluate(generation(), "majority")
    with pytest.raises(UnknownName, match="k"):
        make_predictor("knn-vote,q=3", tools())
    with pytest.raises(UsageError, match="k is 0"):
        make_predictor("knn-vote,k=0", tools())
    with pytest.raises(NeedError, match="--lm"):
        evaluate(make_bench(classification(test=2)), "random", k=2)


def test_settings_of_prompts_leave_predictors_alone():
    bench = make_bench(classification(test=4))
    parts = [make_predictor("majority", tools(), s).fit(bench.context).parts for s in (None, Settings(k=3, seed=2))]
    assert parts[0] == parts[1]
