"""What an LM adds to a line that asks none: on a task, over tasks, in words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from iclkit.eval import difference, holm
from iclkit.records import Spec
from iclkit.report import headline, leaderboard, lm_words, plain_words, to_csv, to_json, to_markdown

from .worlds import draw, make_run, make_runs


def without_lm(name, right, task="toy"):
    run = make_run(name, right, k=0, task=task)
    return replace(run, spec=replace(run.spec, predictor=Spec(name), parts={}))


def world(queries=200, lift=0.2, vote=0.5, task="toy", key=0):
    rng = np.random.default_rng([key, queries])
    return [*make_runs(queries, lift=lift, task=task, key=key),
            without_lm("majority", draw(rng, np.full(queries, 0.3)), task),
            without_lm("knn-vote", draw(rng, np.full(queries, vote)), task)]  # fmt: skip


def right(runs, name):
    return np.array([[x.metrics["accuracy"] for x in r.rows] for r in runs if r.spec.selector.name == name])


def test_every_line_that_asks_the_lm_is_compared_with_the_vote():
    runs = world()
    (group,) = leaderboard(runs).groups
    assert [x.name for x in group.lm_adds] == [x.name for x in group.lines if x.asks_lm]
    assert {x.reference for x in group.lm_adds} == {"knn-vote"}
    knn = next(x for x in group.lm_adds if x.name == "knn")
    expected = difference(right(runs, "knn"), right(runs, "knn-vote"), scopes=("none", "none"))
    assert (knn.diff.value, knn.diff.low, knn.diff.p) == (expected.value, expected.low, expected.p)
    assert [x.p for x in group.lm_adds] == pytest.approx(holm([x.diff.p for x in group.lm_adds]))
    a, b = right(runs, "knn")[0], right(runs, "knn-vote")[0]
    assert (knn.only_lm, knn.only_reference) == (int((a > b).sum()), int((b > a).sum()))


def test_lines_without_an_lm_take_nothing_from_the_other_comparisons():
    with_rules, alone = leaderboard(world()), leaderboard(make_runs(200, lift=0.2))
    assert with_rules.comparisons == alone.comparisons
    theirs = {x.name: (x.p, x.verdict, x.diff) for x in alone.groups[0].lines}
    assert {x.name: (x.p, x.verdict, x.diff) for x in with_rules.groups[0].lines if x.asks_lm} == theirs
    assert {x.verdict for x in with_rules.groups[0].lines if not x.asks_lm} == {"asks no LM"}


def test_a_line_without_an_lm_can_be_the_baseline_of_all():
    lines = {x.name: x for x in leaderboard(world(), "knn-vote").groups[0].lines}
    assert lines["knn-vote"].verdict == "baseline"
    assert all(x.diff for name, x in lines.items() if name != "knn-vote")


@pytest.mark.parametrize(
    ("vote", "words"),
    [
        (0.1, "The LM adds "),
        (0.7, "That the LM adds anything is not shown: knn is right on "),
        (1.0, "The LM adds nothing, a plain rule does better: "),
    ],
)
def test_what_the_lm_adds_is_said_as_far_as_it_is_shown(vote, words):
    board = leaderboard(world(vote=vote))
    (group,) = board.groups
    said = lm_words(group.lm_adds)
    assert said.startswith(words)
    assert "knn-vote, which asks no LM" in said
    assert said in plain_words(board, group)
    assert said in headline(board)["lm"]
    assert words.split(":")[0] in to_markdown(board)
    assert json.loads(to_json(board))["groups"][0]["lm_adds"][0]["reference"] == "knn-vote"
    assert "asks no LM" in to_csv(board)


def test_a_better_line_without_an_lm_than_the_reference_is_named():
    rng = np.random.default_rng(0)
    runs = [*world(vote=0.4), without_lm("logreg", draw(rng, np.full(200, 0.95)))]
    assert "The best without an LM is logreg: 9" in lm_words(leaderboard(runs).groups[0].lm_adds)


def test_without_such_a_line_nothing_is_said():
    board = leaderboard(make_runs())
    assert board.groups[0].lm_adds == ()
    assert headline(board)["lm"] == ""


def test_over_tasks_the_lm_is_compared_with_the_same_rule_on_all_of_them():
    runs = [r for n in range(3) for r in world(80, task=f"t{n}", key=n, vote=0.2)]
    board = leaderboard(runs)
    (overall,) = board.overall
    assert {x.reference for x in overall.lm_adds} == {"knn-vote"}
    best = overall.lm_adds[0]
    assert best.diff.tasks == 3
    assert best.diff.value == pytest.approx(
        np.mean([x.diff.value for g in board.groups for x in g.lm_adds if x.name == best.name])
    )
    assert headline(board)["lm"].startswith("The LM adds ")
    assert "over 3 tasks" in headline(board)["lm"]
    assert {x.verdict for x in overall.lines if x.name in ("majority", "knn-vote")} == {"asks no LM"}
