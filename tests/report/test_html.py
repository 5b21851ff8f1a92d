"""The page as a file: what it says at its top, what it holds, and that nothing in the data gets out of its place."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iclkit.cli import main
from iclkit.eval import difference
from iclkit.records import Run, Spec
from iclkit.report import headline, leaderboard, methods, to_csv, to_html
from iclkit.report._slices import slices

from .pages import NASTY_TASK, make
from .worlds import draw, make_run, make_runs, respec


def block(page: str, name: str) -> str:
    return re.search(rf'<script type="[\w/]+" id="{name}">(.*?)</script>', page, re.S).group(1)


def unpacked(page: str, name: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(block(page, name))))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        return make(tmp_path_factory.mktemp("runs"))


def test_the_page_asks_for_nothing_from_outside(made):
    page = to_html(leaderboard(made[0]), *made)
    own = re.sub(r'<script type="[^"]+" id="[\w-]+">.*?</script>', "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(|fetch\(|XMLHttp""", own)


def test_the_policy_allows_just_the_style_and_script_that_are_there(made):
    page = to_html(leaderboard(made[0]), *made)
    for kind in ("style", "script"):
        content = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page


def test_hostile_names_cannot_leave_the_data(made):
    page = to_html(leaderboard(made[0]), *made, title="</script><script>bad()</script>")
    data = json.loads(block(page, "board"))
    assert "<" not in block(page, "board")
    assert data["title"] == "</script><script>bad()</script>"
    assert {g["task"] for g in data["groups"]} == {NASTY_TASK}
    assert page.count("<script") == 1 + 1 + 2 + 1  # the code, the board, a package per k, one sheet of texts


def test_the_same_runs_give_the_same_bytes(made):
    runs, texts = made
    assert to_html(leaderboard(runs), runs, texts) == to_html(leaderboard(runs[::-1]), runs[::-1], texts)


def test_rows_of_the_page_are_the_rows_of_the_runs(made):
    runs, texts = made
    board = leaderboard(runs)
    page = to_html(board, runs, texts)
    known = {run.id: run for run in runs}
    for g, group in enumerate(board.groups):
        rows = unpacked(page, f"rows-{g}")
        sheet = unpacked(page, f"sheet-{rows['sheet']}")
        for line, packed in zip(group.lines, rows["lines"], strict=True):
            for run_id, columns in zip(line.runs, packed, strict=True):
                assert columns["id"] == run_id
                for q, row in enumerate(known[run_id].rows):
                    assert sheet["queryIds"][rows["queries"][q]] == row.query_id
                    assert rows["answers"][columns["output"][q]] == row.output
                    assert rows["answers"][rows["gold"][q]] == row.gold
                    assert columns["value"][q] == row.metrics["accuracy"]
                    assert [sheet["demoIds"][d] for d in columns["shown"][q]] == [i[:12] for i in row.shown]
                    ranks = [[i for i, _ in row.picks].index(shown) + 1 for shown in row.shown]
                    assert columns["rank"][q] == ranks


@pytest.mark.parametrize("limit", [6_000, 20_000])
def test_queries_that_do_not_fit_are_left_out_evenly(limit):
    runs = make_runs(3000)
    page = to_html(leaderboard(runs), runs, limit=limit)
    rows = unpacked(page, "rows-0")
    sheet = unpacked(page, "sheet-0")
    packed = len(block(page, "rows-0")) + len(block(page, "sheet-0"))
    kept = [int(sheet["queryIds"][q][1:]) for q in rows["queries"]]
    gaps = np.diff([*kept, 3000])
    assert limit / 3 < packed <= limit
    assert 0 < len(kept) < 3000
    assert gaps.max() - gaps.min() <= 1


def test_the_headline_says_yes_with_size_and_cost():
    said = headline(leaderboard(make_runs()))
    assert said["answer"].startswith("Yes: knn gains ")
    assert re.search(r"gains \d+\.\d points over random \(\d+\.\d … \d+\.\d\) on toy", said["answer"])
    assert "for as many prompt tokens as random" in said["answer"]
    board = leaderboard(make_runs())
    counts = "1 came out better, 2 showed no difference, 0 came out worse"
    assert said["detail"] == f"Of {board.comparisons} comparisons with random, {counts}."


def test_the_headline_names_the_setting_that_gained_most():
    runs = [*make_runs(task="a", lift=0.3), *make_runs(task="b", key=1), *make_runs(task="c", lift=0.0, key=3)]
    said = headline(leaderboard(runs))
    assert said["answer"].startswith("Yes: over 3 tasks knn gains ")
    assert "For new tasks like these the gain is +" in said["detail"]
    assert "comparisons with random on single tasks, 2 came out better" in said["detail"]
    ks = [*make_runs(k=4, lift=0.3), *(r for r in make_runs(k=8, lift=0.0, key=3) if r.spec.k)]
    said = headline(leaderboard(ks))
    assert said["answer"] == "Yes in 1 of 2 settings; not shown in the others."
    assert "Most: knn gains " in said["detail"]
    assert "on toy with fake and 4 demonstrations" in said["detail"]


def test_the_headline_over_tasks_is_of_a_line_that_stands_on_all_of_them():
    few = [r for r in make_runs(task="a", lift=0.5) + make_runs(task="b", key=1, lift=0.5)
           if r.spec.selector.name == "knn"]  # fmt: skip
    few = [respec(r, selector=Spec("mmr").identity()) for r in few]
    runs = [*few, *(r for n, t in enumerate("abc") for r in make_runs(task=t, lift=0.2, key=n))]
    assert headline(leaderboard(runs))["answer"].startswith("Yes: over 3 tasks knn gains ")


def test_a_part_of_the_queries_has_the_statistics_of_the_table():
    runs = make_runs(200, lift=0.3)
    board = leaderboard(runs)
    known = {r.id: r for r in runs}
    texts = {f"q{i}": {"id": f"q{i}", "input": "w " * (1 + i % 9), "meta": {"language": "de" if i < 10 else "en"}}
             for i in range(200)}  # fmt: skip
    found = slices(board, board.groups[0], known, texts)
    assert [(s.kind, s.value.split()[0]) for s in found] == [
        ("label", "no"), ("label", "yes"), ("length", "short"), ("length", "middle"), ("length", "long"),
        ("language", "de"), ("language", "en"),
    ]  # fmt: skip
    yes = next(x for s in found if s.value == "yes" for x in s.lines if x.name == "knn")
    part = {
        name: np.array([[r.metrics["accuracy"] for r in run.rows if r.gold == "yes"] for run in runs
                        if run.spec.selector.name == name])
        for name in ("knn", "random")
    }  # fmt: skip
    expected = difference(part["knn"], part["random"], scopes=("none", "query"))
    assert (yes.diff.value, yes.diff.p) == (expected.value, expected.p)
    assert yes.q >= yes.diff.p
    assert yes.verdict == "better"
    assert all(x.diff is None for s in found if s.value == "de" for x in s.lines)  # ten queries are too few
    assert sum(s.queries for s in found if s.kind == "length") == 200


def test_the_page_holds_what_made_its_runs_and_the_board_as_csv():
    facts = {"source": {"command": "iclkit eval toy -s knn"}, "date": "2026-11-27T08:00:00+00:00"}
    runs = [replace(r, facts={**r.facts, **facts}) for r in make_runs()]
    data = json.loads(block(to_html(leaderboard(runs), runs), "board"))
    assert data["made"] == [
        {"command": "iclkit eval toy -s knn", "version": "0.1.0", "days": ["2026-11-27"], "runs": 6}
    ]
    assert data["csv"] == to_csv(leaderboard(runs))
    assert data["groups"][0]["queries"] == 300
    assert "on 2026-11-27" in data["methods"]
    assert "    iclkit eval toy -s knn" in data["methods"]


def test_the_paragraph_for_a_paper_says_what_was_done():
    runs = [r for n in range(2) for r in make_runs(60, task=f"t{n}", key=n)]
    said = methods(leaderboard(runs))
    for words in ("We compared bm25, knn and zero with random on t0 (60 test queries, 50 examples in the pool) and t1",
                  "with fake and k = 8 demonstrations", "random (3 seeds) draws anew for each query", "sign-flip tests",
                  "corrected by Holm's method within each task and within the table over all tasks",
                  "iclkit 0.1.0"):  # fmt: skip
        assert words in said, said
    declared = methods(leaderboard(runs, primary=["knn@8"]))
    assert "The question knn@8 (no record of when) was corrected among the declared ones alone" in declared


def test_the_headline_says_no_and_what_could_have_been_missed():
    said = headline(leaderboard(make_runs(lift=0.0)))
    assert said["answer"] == "No: no way of choosing was shown to beat random in the one setting."
    assert re.search(r"less than [^p]* points could have been missed", said["detail"])


def test_zero_and_other_random_draws_do_not_count_as_choosing():
    rng = np.random.default_rng(0)
    names = [("random", 8), ("zero", 0), ("random-fixed", 8)]
    runs = [make_run(name, draw(rng, np.full(50, 0.5)), k=k) for name, k in names]
    assert headline(leaderboard(runs))["answer"] == "Nothing can be said yet."


def test_cost_is_told_as_a_ratio_of_tokens():
    def dear(run: Run) -> Run:
        return replace(run, rows=tuple(replace(r, prompt_tokens=2 * 108) for r in run.rows))

    runs = [dear(r) if r.spec.selector.name == "knn" else r for r in make_runs()]
    assert "for 2.00 times the prompt tokens of random" in headline(leaderboard(runs))["answer"]


def test_equal_answers_show_no_difference_and_are_no_tie():
    right = [1.0, 0.0] * 40
    runs = [make_run("random", right), make_run("knn", right)]
    data = json.loads(block(to_html(leaderboard(runs), runs), "board"))
    assert {x["name"]: x["verdict"] for x in data["groups"][0]["lines"]} == {
        "random": "baseline",
        "knn": "no difference shown",
    }


def test_the_command_writes_the_page_and_the_harness_layout(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    out = tmp_path / "runs"
    runs, texts = make(out, ks=(2,))
    page, folder = tmp_path / "new" / "board.html", tmp_path / "harness"
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", str(out), "--html", str(page), "--harness", str(folder), "--title", "Mine", "--json"])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["baseline"] == "random"
    assert f"wrote {page}" in printed.err
    assert page.read_text(encoding="utf-8") == to_html(leaderboard(runs), runs, texts, title="Mine")
    assert len([*folder.glob("*/results_*.json")]) == len(runs)


def test_a_page_that_cannot_be_written_is_one_line(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    make(tmp_path / "runs", ks=(2,), test=6)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", str(tmp_path / "runs"), "--html", str(Path(tmp_path, "file", "board.html"))])
    assert stop.value.code == 2
    assert "cannot write" in capsys.readouterr().err
