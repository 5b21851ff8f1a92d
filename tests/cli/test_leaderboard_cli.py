"""``iclkit leaderboard``: the same board in every format."""

from __future__ import annotations

import json

import pytest

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


@pytest.fixture
def runs(tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    for name in ("one", "two"):
        args = ["-s", "random", "-s", "bm25", "-k", "2", "--limit", "30", "--out", str(out)]
        assert call("eval", str(write_task(tmp_path / name)), *args, capsys=capsys)[0] == 0
    return out


def test_the_table_shows_both_tasks(runs, capsys):
    code, stdout, stderr = call("leaderboard", str(runs), capsys=capsys)
    assert (code, stderr) == (0, "")
    assert "one · voting · k = 2" in stdout
    assert "two · voting · k = 2" in stdout


@pytest.mark.parametrize(
    ("flag", "begins"),
    [("--markdown", "### all tasks"), ("--json", "{"), ("--csv", "task,lm,k"), ("--latex", r"\begin{table}")],
)
def test_each_format_begins_as_it_should(runs, capsys, flag, begins):
    code, stdout, _ = call("leaderboard", str(runs), flag, capsys=capsys)
    assert code == 0
    assert stdout.startswith(begins)


def test_one_task_and_another_baseline_can_be_asked_for(runs, capsys):
    _, stdout, _ = call("leaderboard", str(runs), "--task-name", "two", "--baseline", "bm25", "--json", capsys=capsys)
    board = json.loads(stdout)
    assert [g["task"] for g in board["groups"]] == ["two"]
    assert {x["selector"]: x["verdict"] for x in board["groups"][0]["lines"]}["bm25"] == "baseline"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["{runs}", "--task-name", "three"], 2, "there are: one, two"),
        (["{runs}", "--json", "--csv"], 2, "choose one"),
        (["{runs}/none"], 1, "iclkit eval"),
        ([], 2, "RUNS"),
    ],
)
def test_what_cannot_be_shown_is_one_line(runs, capsys, args, code, text):
    found, stdout, stderr = call("leaderboard", *(a.format(runs=runs) for a in args), capsys=capsys)
    assert (found, stdout) == (code, "")
    assert len(stderr.splitlines()) == 1
    assert text in stderr


def test_a_narrow_terminal_still_shows_what_decides(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "92")
    _, stdout, _ = call("leaderboard", str(runs), capsys=capsys)
    assert all(len(line) <= 92 for line in stdout.splitlines())
    assert "verdict" in stdout
    assert "tokens" not in stdout.split("30 queries")[0]
