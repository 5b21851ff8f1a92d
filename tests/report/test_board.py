"""Boards: what is joined, what is compared, what is said."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from iclkit.errors import DataError, UsageError
from iclkit.eval import Estimate, difference, estimate, holm
from iclkit.records import PoolPart, Spec
from iclkit.report import bar, group_notes, leaderboard, plain_words, to_csv, to_json, to_latex, to_markdown
from iclkit.report._records import baseline_of

from .worlds import draw, make_run, make_runs, respec


def line(board, name, group=0):
    return next(x for x in board.groups[group].lines if x.name == name)


def values(runs, name):
    return np.array([[r.metrics["accuracy"] for r in run.rows] for run in runs if run.spec.selector.name == name])


def test_a_line_joins_the_seeds_and_is_compared_with_random():
    runs = make_runs()
    board = leaderboard(runs)
    knn = line(board, "knn")
    assert line(board, "random").figure == estimate(values(runs, "random"), scope="query")
    assert line(board, "random").seeds == (0, 1, 2)
    expected = difference(values(runs, "knn"), values(runs, "random"), scopes=("none", "query"), key=0)
    assert (knn.diff.value, knn.diff.low, knn.diff.p) == (expected.value, expected.low, expected.p)
    assert knn.diff.smallest_gain > expected.smallest_gain  # at the level that Holm asks for
    assert (knn.verdict, line(board, "bm25").verdict) == ("better", "no difference shown")


def test_the_order_of_runs_changes_nothing():
    runs = make_runs()
    assert leaderboard(runs) == leaderboard(reversed(runs))


def test_p_values_are_corrected_within_a_task_and_over_the_board_if_asked():
    runs = [*make_runs(task="a"), *make_runs(task="b", key=1), *make_runs(task="b", k=4, key=2)]
    board = leaderboard(runs)
    lines = [(g.task, x) for g in board.groups for x in g.lines if x.diff]
    assert board.comparisons == len(lines) == 9
    for task, number in (("a", 3), ("b", 6)):
        own = [x for t, x in lines if t == task]
        assert len(own) == number
        assert [x.p for x in own] == pytest.approx(holm([x.diff.p for x in own]))
    whole = leaderboard(runs, correction="board")
    pooled = [x.p for o in whole.overall for x in o.lines if x.diff]
    every = [x for g in whole.groups for x in g.lines if x.diff]
    assert [x.p for x in every] >= holm([x.diff.p for x in every])
    assert len(pooled) == 3


def test_a_task_alone_is_corrected_as_if_no_other_stood_beside_it():
    own = make_runs(task="a")
    alone, beside = leaderboard(own), leaderboard([*own, *make_runs(task="b", key=1)])
    assert alone.groups[0].lines == beside.groups[0].lines


def test_a_declared_question_keeps_its_p_whatever_else_is_on_the_board():
    own = make_runs(task="a", lift=0.08)
    more = [*make_runs(task="a", k=4, key=3), *(r for r in make_runs(task="a", key=9) if "bm25" in str(r.spec))]
    others = [respec(r, selector=Spec(f"s{n}").identity())
              for n, r in enumerate(more) if r.spec.selector.name == "bm25"]  # fmt: skip
    alone = line(leaderboard(own, primary=["knn@8"]), "knn")
    crowd = leaderboard([*own, *others, *more[:6]], primary=["knn@8"])
    beside = next(x for g in crowd.groups if g.k == 8 for x in g.lines if x.name == "knn")
    assert alone.p == beside.p == alone.diff.p
    assert (alone.kind, beside.kind) == ("declared", "declared")
    assert {x.kind for g in crowd.groups for x in g.lines if x.diff and (x.name, g.k) != ("knn", 8)} == {"explored"}


def test_a_question_declared_of_one_task_keeps_its_p_beside_unrelated_tasks():
    own, others = make_runs(task="a", lift=0.08), [*make_runs(task="b", key=1, lift=0.0), *make_runs(task="c", key=2)]
    alone = line(leaderboard(own, primary=["knn@8 on a"]), "knn")
    beside = line(leaderboard([*own, *others], primary=["knn@8 on a"]), "knn")
    assert (alone.p, alone.kind, alone.verdict) == (beside.p, "declared", beside.verdict)
    assert alone.diff == beside.diff  # the smallest effects as well
    with pytest.raises(UsageError, match="nothing here answers --primary knn@8 on z"):
        leaderboard(own, primary=["knn@8 on z"])


def test_a_question_that_nothing_answers_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match=r"nothing here answers --primary knn@5.*knn@8"):
        leaderboard(make_runs(), primary=["knn@5"])
    with pytest.raises(UsageError, match="expected NAME or NAME@K"):
        leaderboard(make_runs(), primary=["knn@many"])


def test_several_tasks_have_one_answer_over_all_their_queries():
    runs = [r for n in range(4) for r in make_runs(60, task=f"t{n}", key=n, lift=0.2)]
    board = leaderboard(runs)
    (overall,) = board.overall
    assert overall.tasks == ("t0", "t1", "t2", "t3")
    knn = next(x for x in overall.lines if x.name == "knn")
    mean = np.mean([x.diff.value for g in board.groups for x in g.lines if x.name == "knn"])
    assert (knn.queries, knn.diff.value) == (240, pytest.approx(mean))
    assert knn.verdict == "better"
    assert knn.better + knn.open + knn.worse == 4
    assert knn.p < max(x.p for g in board.groups for x in g.lines if x.name == "knn")
    assert knn.new.low < knn.new.value < knn.new.high
    assert knn.by_task is None  # equal sizes
    assert sum(x.rank.value for x in overall.lines) == pytest.approx(10)  # four lines, ranks 1 to 4
    assert "| 8 |" in to_markdown(board)
    assert "all tasks" in to_markdown(board)


def test_with_several_tasks_the_declared_question_is_the_one_over_all_tasks():
    runs = [r for n in range(3) for r in make_runs(60, task=f"t{n}", key=n)]
    board = leaderboard(runs, primary=["knn"])
    (overall,) = board.overall
    assert [x.kind for x in overall.lines if x.name == "knn"] == ["declared"]
    assert {x.kind for g in board.groups for x in g.lines if x.diff} == {"explored"}


def test_sizes_that_differ_twofold_are_told_both_ways():
    runs = [r for n, size in enumerate((40, 200, 60)) for r in make_runs(size, task=f"t{n}", key=n)]
    knn = next(x for x in leaderboard(runs).overall[0].lines if x.name == "knn")
    assert knn.by_task is not None
    assert "with each task weighed alike" in to_markdown(leaderboard(runs))


def test_calibrations_are_compared_along_their_own_axis():
    rng = np.random.default_rng(0)
    chance = np.full(80, 0.4)
    runs = [make_run("knn", draw(rng, chance)), make_run("knn", draw(rng, chance + 0.4), calibrate="batch"),
            make_run("bm25", draw(rng, chance)), make_run("bm25", draw(rng, chance), calibrate="batch")]  # fmt: skip
    board = leaderboard(runs, compare=["calibrate"])
    assert [(g.title, [x.name for x in g.lines]) for g in board.groups] == [
        ("toy · fake · k = 8 · bm25", [x.name for x in board.groups[0].lines]),
        ("toy · fake · k = 8 · knn", ["batch", "none"]),
    ]
    assert line(board, "batch", 1).verdict == "better"
    assert line(board, "none", 1).verdict == "baseline"


def test_templates_that_differ_have_groups_that_say_how():
    runs = [make_run("random", [1, 0] * 9), make_run("random", [1, 0] * 9, template={"demo": "Q: {input} A: {output}"})]
    titles = [g.title for g in leaderboard(runs).groups]
    assert any("template “Q: {input} A: {output}”" in t for t in titles)
    compared = leaderboard(runs, compare=["template"])
    assert len(compared.groups) == 1
    assert compared.groups[0].title == "toy · fake · k = 8 · random"


def test_an_axis_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match=r"cannot compare along 'colour'; choose from task, lm, k"):
        leaderboard(make_runs(), compare=["colour"])


def test_a_selector_that_draws_once_is_noted_with_one_seed():
    runs = [*make_runs(80), make_run("random-fixed", [1, 0] * 40)]
    assert "of this one set of demonstrations" in " ".join(line(leaderboard(runs), "random-fixed").notes)


def test_two_identical_selectors_never_differ():
    runs = make_runs(200)
    twin = respec(runs[0], selector=Spec("twin").identity())
    found = line(leaderboard([*runs[:1], twin]), "twin")
    assert (found.diff.value, found.p, found.verdict) == (0, 1, "no difference shown")


def test_zero_stands_beside_every_k():
    board = leaderboard([*make_runs(k=4), *[r for r in make_runs(k=16, key=1) if r.spec.k]])
    assert [(g.k, len(g.lines)) for g in board.groups] == [(4, 4), (16, 4)]


@pytest.mark.parametrize("axis", ["k", "order", "calibrate", "chat", "template", "lm", "selector"])
def test_what_lacks_an_axis_has_a_name_whatever_is_compared(axis: str):
    lacking = make_run("zero", [1, 0] * 40, k=0)
    board = leaderboard([*make_runs(80, k=4), *make_runs(80, k=8, key=1), lacking], compare=[axis])
    names = [x.name for g in board.groups for x in g.lines]
    assert all(names)
    if axis == "k":
        assert {"k = 4", "k = 8", "zero"} <= {*names}


def test_zero_alone_is_a_group():
    board = leaderboard([make_run("zero", [1, 0, 1], k=0)])
    assert [(g.k, [x.verdict for x in g.lines]) for g in board.groups] == [(0, ["not compared"])]


def test_without_the_baseline_nothing_is_compared_and_it_says_so():
    board = leaderboard([r for r in make_runs() if r.spec.selector.name != "random"])
    assert {x.verdict for x in board.groups[0].lines} == {"not compared"}
    assert "no run of 'random'" in board.notes[0]
    assert "Nothing can be said" in plain_words(board, board.groups[0])


def test_another_baseline_can_be_named():
    board = leaderboard(make_runs(), baseline="bm25")
    assert line(board, "bm25").verdict == "baseline"
    assert line(board, "random").diff is not None


def test_a_baseline_can_be_named_by_the_full_name_of_a_line():
    rng, runs = np.random.default_rng(0), []
    for name in ("small", "large"):
        model = {"name": name, "fingerprint": name}
        runs.append(make_run("knn", draw(rng, np.full(60, 0.5)), embedder=model))
    board = leaderboard(runs, baseline="knn (small)")
    assert line(board, "knn (small)").verdict == "baseline"
    assert line(board, "knn (large)").diff is not None


def test_a_baseline_that_no_line_is_called_is_refused_with_the_names_there_are():
    with pytest.raises(UsageError, match=r"no line is called 'knnn'.*bm25, knn, random, zero"):
        leaderboard(make_runs(), baseline="knnn")


def test_a_note_of_several_lines_stands_once():
    rng = np.random.default_rng(0)
    runs = [make_run(name, draw(rng, np.full(40, 0.5))) for name in ("random-fixed", "kmeans", "random")]
    notes = [n for n in group_notes(leaderboard(runs).groups[0]) if "one seed: the figure" in n]
    assert len(notes) == 1
    assert "kmeans" in notes[0]
    assert "random-fixed" in notes[0]


def test_settings_orders_and_calibrations_are_lines_of_their_own():
    rng = np.random.default_rng(0)
    chance = np.full(50, 0.5)
    runs = [
        make_run("random", draw(rng, chance)),
        make_run("random", draw(rng, chance), order="best-first"),
        make_run("mmr,trade_off=0.3", draw(rng, chance)),
        make_run("mmr,trade_off=0.7", draw(rng, chance), order="best-first"),
        make_run("knn", draw(rng, chance), calibrate="batch"),
    ]
    board = leaderboard(runs)
    group = board.groups[0]
    assert {x.name for x in group.lines} == {
        "random", "random + best-first", "mmr,trade_off=0.3", "mmr,trade_off=0.7 + best-first", "knn + batch",
    }  # fmt: skip
    assert baseline_of(line(board, "mmr,trade_off=0.7 + best-first"), group.lines, "random").order == "best-first"
    assert baseline_of(line(board, "knn + batch"), group.lines, "random").order == "best-last"
    assert board.comparisons == 3


def test_runs_that_cannot_be_compared_are_groups_with_names_of_their_own():
    runs = [make_run("random", [1, 0] * 9), make_run("random", [1, 0] * 9, pool=PoolPart("other", 9))]
    titles = [g.title for g in leaderboard(runs).groups]
    assert len(set(titles)) == 2
    assert all("pool" in t for t in titles)


def test_the_same_run_by_a_newer_version_counts_once():
    old, new = make_run("random", [1] * 20), with_facts(make_run("random", [0] * 20), iclkit="0.10.0")
    board = leaderboard([new, old])
    assert (board.groups[0].lines[0].seeds, board.groups[0].lines[0].figure.value) == ((0,), 0)
    assert not board.groups[0].notes  # it has one id: the same run in two folders


@pytest.mark.parametrize("parts", [{"selector": Spec("random", version=2).identity()}, {"prior": "all rows"}])
def test_of_twins_the_newer_counts_and_a_note_names_the_other(parts):
    old = make_run("random", [1] * 20)
    new = with_facts(respec(make_run("random", [0] * 20), **parts), date="2030-01-01T00:00:00+00:00")
    (group,) = leaderboard([new, old]).groups
    assert (group.lines[0].seeds, group.lines[0].figure.value) == ((0,), 0)
    assert group.notes == (f"1 run repeated by a newer one, which counts: {old.id} by {new.id}",)


def test_lines_are_told_apart_by_the_models_that_chose_and_not_taken_for_twins():
    def chosen_by(fingerprint):
        return respec(make_run("rerank", [1, 0] * 10), reranker={"name": "cross", "fingerprint": fingerprint})

    (group,) = leaderboard([make_run("random", [1, 0] * 10), chosen_by("fp32"), chosen_by("bf16")]).groups
    assert len({x.name for x in group.lines}) == 3


def test_a_condition_is_an_axis_of_its_own():
    runs = [respec(r, conditions={"noise": n}) for n in (0, 0.2) for r in make_runs(60, key=int(n * 10))]
    assert [g.title.split(" · ")[-1] for g in leaderboard(runs).groups] == ["noise 0", "noise 0.2"]
    board = leaderboard([r for r in runs if r.spec.selector.name == "knn"], "0", compare=["noise"])
    assert [x.name for x in board.groups[0].lines] in (["0", "0.2"], ["0.2", "0"])
    assert board.comparisons == 1
    with pytest.raises(UsageError, match=r"cannot compare along 'loudness'; choose from task, .*, noise"):
        leaderboard(runs, compare=["loudness"])


def test_unfinished_runs_are_left_out_and_noted():
    runs = make_runs()
    half = replace(runs[3], facts={"done": False})
    board = leaderboard([*runs[:3], half, *runs[4:]])
    assert "knn" not in {x.name for x in board.groups[0].lines}
    assert board.notes == ("1 unfinished run is left out",)
    with pytest.raises(DataError, match="no finished run"):
        leaderboard([half])


def reasons(board):
    return {one.run: one.reason for one in board.left_out}


def test_a_run_with_other_queries_than_the_others_of_its_task_is_left_out():
    runs = make_runs()
    torn = replace(respec(runs[0], seed=9), rows=runs[0].rows[:-1])
    doubled = replace(respec(runs[0], seed=8), rows=(runs[0].rows[1], *runs[0].rows[1:]))
    flipped = replace(runs[0].rows[0], gold=runs[0].rows[1].gold, metrics={"accuracy": 1.0}, output="yes")
    golds = replace(respec(runs[0], seed=7), rows=(flipped, *runs[0].rows[1:]))
    board = leaderboard([*runs, torn, doubled, golds])
    assert line(board, "random").seeds == (0, 1, 2)
    assert {*reasons(board)} == {torn.id, doubled.id, golds.id}
    assert all("queries or gold answers are not those of the other runs" in r for r in reasons(board).values())
    assert board.groups == leaderboard(runs).groups
    with pytest.raises(DataError, match=r"no finished run to rank.*2 runs cannot be used"):
        leaderboard([runs[0], torn])  # nobody knows which is right


def with_facts(run, **facts):
    return replace(run, facts={**run.facts, **facts})


def with_rows(run, change, **spec):
    return respec(replace(run, rows=tuple(change(row) for row in run.rows)), **spec)


def test_a_run_whose_values_are_not_what_its_answers_are_worth_is_left_out():
    runs = make_runs()
    edited = with_rows(runs[3], lambda row: replace(row, metrics={"accuracy": 1.0}))
    board = leaderboard([edited if r is runs[3] else r for r in runs])
    assert [*reasons(board)] == [edited.id]
    assert "has accuracy 1, and its answer" in reasons(board)[edited.id]
    assert "gets 0 against" in reasons(board)[edited.id]
    assert f"run {edited.id} is left out" in " ".join(board.notes)
    assert [x.name for g in board.groups for x in g.lines if x.name == "knn"] == []
    assert json.loads(to_json(board))["left_out"][0]["run"] == edited.id


@pytest.mark.parametrize("value", [1e9, -1e300, 1.5, -0.5, 0.5])
def test_a_value_out_of_its_bounds_or_wrong_neither_hangs_a_board_nor_counts(value):
    runs = make_runs()
    edited = with_rows(runs[3], lambda row: replace(row, metrics={"accuracy": value}))
    board = leaderboard([*runs[:3], edited, *runs[4:]])
    assert [*reasons(board)] == [edited.id]


@pytest.mark.parametrize("value", [1e9, 1e60])
def test_large_values_of_a_metric_without_bounds_end_in_a_board(value, monkeypatch):
    monkeypatch.setattr("iclkit.eval._metrics.METRICS._builtins", {"gain": "tests.report.test_board:gain"})
    right = [0.0, 1.0, 1.0, 0.0, 1.0] * 8
    runs = [make_run(name, right) for name in ("random", "knn")]
    runs = [with_rows(r, lambda row: replace(row, metrics={"gain": value * row.metrics["accuracy"]}),
                      task={"metric": "gain"}) for r in runs]  # fmt: skip
    wild = with_rows(runs[1], lambda row: replace(row, metrics={"gain": row.metrics["gain"] * 0.7 + 3}))
    board = leaderboard([runs[0], wild])
    assert line(board, "knn").diff is not None
    assert "as they were recorded" in " ".join(board.notes)
    json.loads(to_json(board))
    endless = with_rows(runs[1], lambda row: replace(row, metrics={"gain": 1e300}))
    assert "beyond what can be averaged" in reasons(leaderboard([runs[0], endless]))[endless.id]


def gain(output, gold):
    return 0.0


def test_values_by_the_rules_of_another_version_are_taken_anew():
    runs = make_runs()
    old = with_rows(runs[3], lambda row: replace(row, metrics={"accuracy": 1.0}))
    old = with_facts(old, iclkit="0.0.1")
    board = leaderboard([*runs[:3], old, *runs[4:]])
    assert board.left_out == ()
    assert line(board, "knn").figure == line(leaderboard(runs), "knn").figure
    assert "1 run of iclkit 0.0.1: accuracy is by the rules of" in " ".join(board.notes)


def test_an_answer_or_a_log_probability_that_label_scores_speak_against_is_told():
    def scored(row, gold_logprob, output=None):
        other = "no" if row.gold == "yes" else "yes"
        scores = {row.gold: -1.0, other: -3.0}
        said = output or row.gold
        values = {"accuracy": float(said == row.gold), "gold_logprob": gold_logprob}
        return replace(row, output=said, label_logprobs=scores, metrics=values)

    right = float(-np.log1p(np.exp(-2.0)))
    runs = [with_rows(r, lambda row: scored(row, right)) for r in make_runs(60)]
    assert leaderboard(runs).left_out == ()
    for change, told in (
        (lambda row: scored(row, -0.5), "has gold_logprob -0.5, and its label scores say -0.126928"),
        (lambda row: scored(row, 1e9), "gold_logprob 1e[+]09, which is above 0"),
        (lambda row: scored(row, right, "yes"), "has the answer 'yes', which is not its likeliest label"),
    ):
        board = leaderboard([*runs[:3], with_rows(runs[3], change)])
        (reason,) = reasons(board).values()
        assert re.search(told, reason)


def test_a_metric_that_is_not_at_hand_here_has_its_recorded_values_and_a_note(tmp_path):
    name = f"sql_execution,database={tmp_path / 'gone.db'}"
    runs = [with_rows(r, lambda row: replace(row, metrics={name: row.metrics["accuracy"]}),
                      task={"metric": name}) for r in make_runs(60)]  # fmt: skip
    board = leaderboard(runs)
    assert line(board, "knn").figure == line(leaderboard(make_runs(60)), "knn").figure
    assert f"values of {name} are as they were recorded" in " ".join(board.notes)


def test_leaks_are_told():
    runs = [replace(r, facts={**r.facts, "leaks": {"queries": 2, "pairs": {"near": 3}}}) for r in make_runs()]
    assert "2 of 300 test rows stand in the pool (3 near)" in to_markdown(leaderboard(runs))


def test_markdown_shows_every_line_and_how_to_read_it():
    text = to_markdown(leaderboard(make_runs()))
    assert "### toy · fake · k = 8" in text
    assert "| **1** | **knn** |" in text
    assert "no difference shown" in text
    assert "bm25 a gain of" in text or "no true difference" in text
    assert all(line.count("|") == 11 for line in text.splitlines() if line.startswith("|"))


def test_figures_by_k_stand_in_one_table():
    from iclkit.report import curves

    board = leaderboard([*make_runs(k=4), *make_runs(k=16, key=1), *make_runs(task="other")])
    (curve,) = curves(board)
    assert (curve.title, curve.ks) == ("toy · fake", (4, 16))
    assert curve.rows["knn"] == tuple(line(board, "knn", g).figure for g in (1, 2))
    assert "### toy · fake: by k" in to_markdown(board)
    gone = curves(
        leaderboard([r for r in [*make_runs(k=4), *make_runs(k=16)] if r.spec.k != 4 or "knn" not in str(r.spec)])
    )
    assert gone[0].rows["knn"][0] is None


def test_json_and_csv_hold_the_same_numbers():
    board = leaderboard(make_runs())
    data = json.loads(to_json(board))
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [float(r["value"]) for r in rows] == [x["figure"]["value"] for x in data["groups"][0]["lines"]]
    assert [r["p_corrected"] for r in rows if r["selector"] == "random"] == [""]
    assert next(x for x in data["groups"][0]["lines"] if x["selector"] == "random")["p"] is None


def test_latex_escapes_what_latex_reads():
    runs = [respec(r, task={"name": "50%_a&b"}) for r in make_runs()]
    text = to_latex(leaderboard(runs))
    assert r"50\%\_a\&b" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert "−" not in text
    assert "…" not in text


def test_plain_words_say_what_the_board_says():
    board = leaderboard(make_runs())
    text = plain_words(board, board.groups[0])
    assert "knn beats random" in text
    assert "bm25" in text.split("no difference was shown")[0]
    assert text.startswith("With 8 demonstrations drawn")
    one = leaderboard([respec(r, k=min(1, r.spec.k)) for r in make_runs()])
    assert plain_words(one, one.groups[0]).startswith("With 1 demonstration drawn")
    calm = leaderboard(make_runs(lift=0.0))
    assert "No way of choosing was shown to beat random" in plain_words(calm, calm.groups[0])


def test_a_metric_of_whole_runs_is_compared_by_bootstrap():
    runs = [respec(r, task={"metric": "macro_f1"}) for r in make_runs(120, lift=0.25)]
    board = leaderboard(runs)
    knn = line(board, "knn")
    assert knn.figure.low < knn.figure.value < knn.figure.high
    assert knn.verdict == "better"
    assert abs(knn.figure.value - knn.figure.low) < 0.15


def test_a_bar_marks_figure_and_interval():
    assert bar(Estimate(0.5, 0.25, 0.75), 21) == "     ─────●─────     "


def test_ten_thousand_queries_by_twenty_selectors_make_a_board_in_ten_seconds():
    rng = np.random.default_rng(0)
    chance = rng.beta(2, 2, 10_000)
    runs = [make_run("random", draw(rng, chance), seed=s) for s in range(3)]
    runs += [make_run(f"mmr,trade_off=0.{n:02}", draw(rng, chance)) for n in range(10, 29)]
    start = time.perf_counter()
    board = leaderboard(runs)
    assert len(board.groups[0].lines) == 20
    assert time.perf_counter() - start < 10


@pytest.mark.slow
def test_a_board_under_the_null_declares_differences_at_most_at_the_nominal_rate():
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(1000):
        chance = np.clip(rng.beta(1.2, 0.8, 150), 0.02, 0.98)
        runs = [make_run("random", draw(rng, chance), seed=s) for s in range(3)]
        runs += [make_run(name, draw(rng, chance)) for name in ("knn", "bm25", "mmr")]
        runs += [make_run("balanced", draw(rng, chance), seed=s) for s in range(3)]
        false += any(x.verdict in ("better", "worse") for x in leaderboard(runs).groups[0].lines)
    assert false / 1000 <= 0.05 + 1.65 * (0.05 * 0.95 / 1000) ** 0.5


def test_a_board_of_few_queries_claims_no_power():
    board = leaderboard(make_runs(6))
    assert "a gain of" not in to_markdown(board)
    assert "So few queries that no true difference was sure to be declared" in to_markdown(board)
    assert "with so few queries any could have been missed" in plain_words(board, board.groups[0])
