"""``iclkit eval --primary``: a question is recorded before its runs, and boards say when it was declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import DataError
from iclkit.eval import RunStore

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


@pytest.fixture
def args(tmp_path: Path, fakes: Any) -> list[str]:
    return ["eval", str(write_task(tmp_path / "things")), "-s", "random", "-s", "knn", "-s", "bm25", "-k", "2,4",
            "--seeds", "1", "--predictor", "none", "--out", str(tmp_path / "runs")]  # fmt: skip


def board(capsys: Any, *words: str) -> dict[str, Any]:
    code, stdout, stderr = call(*words, "--json", capsys=capsys)
    assert code == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_a_question_is_recorded_before_its_runs_and_every_board_of_the_folder_tests_it(
    args: list[str], tmp_path: Path, capsys: Any
) -> None:
    made = board(capsys, *args, "--primary", "knn@4")
    date = RunStore(tmp_path / "runs").declared()["knn@4"]
    assert made["declared"] == {"knn@4": f"declared on {date[:10]}, before its runs"}
    again = board(capsys, "leaderboard", str(tmp_path / "runs"))
    assert again["declared"] == made["declared"]
    kinds = {(g["k"], x["selector"]): x["kind"] for g in again["groups"] for x in g["lines"]}
    assert (kinds[4, "knn"], kinds[2, "knn"], kinds[4, "bm25"]) == ("declared", "explored", "explored")
    text = call("leaderboard", str(tmp_path / "runs"), "--markdown", capsys=capsys)[1]
    assert f"Declared questions (knn@4: declared on {date[:10]}, before its runs)" in text
    board(capsys, *args, "--primary", "knn@4")
    assert RunStore(tmp_path / "runs").declared() == {"knn@4": date}  # the first time stands


def test_what_was_asked_after_a_look_is_told_apart(args: list[str], tmp_path: Path, capsys: Any) -> None:
    assert board(capsys, *args)["declared"] == {}
    for file in (tmp_path / "runs").glob("*/run.json"):  # made a year ago
        state = json.loads(file.read_text())
        state["facts"]["date"] = "2020-01-01T00:00:00+00:00"
        file.write_text(json.dumps(state))
    (when,) = board(capsys, *args, "--primary", "knn")["declared"].values()
    assert when.endswith("after 2 of its 2 runs")
    only_here = board(capsys, "leaderboard", str(tmp_path / "runs"), "--primary", "bm25@2")
    assert only_here["declared"] == {"bm25@2": "no record of when"}


def test_a_question_that_nothing_answers_here_is_a_note_and_hides_no_board(
    args: list[str], tmp_path: Path, capsys: Any
) -> None:
    board(capsys, *args)
    RunStore(tmp_path / "runs").declare(["mmr@4", "knn@4"])
    code, stdout, stderr = call("leaderboard", str(tmp_path / "runs"), "--json", capsys=capsys)
    assert (code, [*json.loads(stdout)["declared"]]) == (0, ["knn@4"])
    assert "note: the question 'mmr@4', declared on " in stderr


@pytest.mark.parametrize(
    ("primary", "code", "says"),
    [("mmr", 2, "no line of --primary named 'mmr'"), ("knn@8", 2, "k is not among 2, 4"),
     ("random", 2, "named 'random'"), ("knn@x", 2, "expected NAME or NAME@K"),
     ("knn on trec", 2, "no task of --primary named 'trec'")],
)  # fmt: skip
def test_a_question_that_could_never_be_answered_is_refused_before_anything_is_asked(
    args: list[str], tmp_path: Path, fakes: Any, capsys: Any, primary: str, code: int, says: str
) -> None:
    got, stdout, stderr = call(*args, "--primary", primary, capsys=capsys)
    assert (got, stdout) == (code, "")
    assert says in stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_declares_nothing(args: list[str], tmp_path: Path, capsys: Any) -> None:
    assert call(*args, "--primary", "knn", "--dry-run", capsys=capsys)[0] == 0
    assert not (tmp_path / "runs" / "questions.jsonl").exists()


@pytest.mark.parametrize("line", ["{oops", '{"question": "knn"}', '{"question": "knn", "date": "soon"}', "[]"])
def test_a_damaged_record_is_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"questions\.jsonl, line 1.*correct the line or take it out") as caught:
        RunStore(tmp_path).declared()
    assert len(str(caught.value).splitlines()) == 1
