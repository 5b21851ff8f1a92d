"""``iclkit task``, and a user's own file in every command that takes a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iclkit.cli import main

ROWS = [f"row {n} says {['up', 'down'][n % 2]} {n * 7 % 11},{['yes', 'no'][n % 2]},x" for n in range(30)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.csv").write_text("body,verdict,extra\n" + "\n".join(ROWS) + "\n")
    return tmp_path


@pytest.fixture
def iclkit(capsys: pytest.CaptureFixture[str]):
    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


MINE = ("--input", "body", "--output", "verdict")


def test_a_task_is_made_once_and_then_has_a_name(iclkit, here: Path) -> None:
    code, out, err = iclkit(
        "task", "new", "mine", "mine.csv", *MINE, "--test-size", "10", "--template", "{input} => {output}"
    )
    assert (code, out) == (0, "mine.toml: classification, 2 labels, 20 train and 10 test rows, accuracy\n")
    assert "note: kind classification, 2 labels, metric accuracy (--kind, --labels, --metric)" in err
    assert "note: left out: column extra (--keep extra keeps it as metadata)" in err
    assert "try it: iclkit eval mine" in err
    code, out, _ = iclkit("task", "show", "mine", "--json")
    facts = json.loads(out)
    assert (facts["rows"], facts["template"]) == ({"train": 20, "dev": 0, "test": 10}, "{input} => {output}")
    code, out, err = iclkit("diagnose", "mine", "-s", "bm25", "-k", "2", "--embedder", "none", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["task"] == "mine"


def test_the_same_flags_work_without_a_task_file(iclkit) -> None:
    code, out, err = iclkit("diagnose", "mine.csv", *MINE, "-s", "bm25", "-k", "2", "--embedder", "none", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["queries"] == 6
    assert "split: 6 of 30 rows drawn as test rows by seed 0 (--test FILE, --test-size, --split-by)" in err


def test_a_pool_is_a_task(iclkit) -> None:
    assert iclkit("pool", "add", "tk.db", "mine.csv", *MINE)[0] == 0
    code, out, err = iclkit("diagnose", "tk.db", "-s", "bm25", "-k", "2", "--embedder", "none", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["task"] == "tk"


def test_check_names_what_it_finds_and_ends_with_code_1(iclkit, here: Path) -> None:
    assert iclkit("task", "check", "mine.csv", *MINE) == (0, "", iclkit("task", "check", "mine.csv", *MINE)[2])
    (here / "bad.csv").write_text(
        "body,verdict\n" + "\n".join(r.rpartition(",")[0] for r in ROWS) + "\nRow 0 says UP 0!,no\n"
    )
    code, out, err = iclkit("task", "check", "bad.csv", *MINE, "--test", "mine.csv")
    assert code == 1
    assert out.startswith("leak: 30 test rows stand among the train rows: mine.csv, line 2")
    assert "contradiction: 2 train rows have the input of another and a different output" in out
    assert err.splitlines()[-1] == "error: task 'bad': 3 things to look at"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("new", "mine", "-"), 2, "write standard input to one first"),
        (("new", "sst2", "mine.csv"), 2, "is the name of a data set"),
        (("new", "mine", "none.csv"), 2, "no task named 'none.csv'"),
        (("new", "mine", "mine.csv"), 1, "no field 'input'; the row has: body, verdict, extra. Name the field with"),
        (("new", "mine", "mine.csv", "--input", "bdy", "--output", "verdict"), 1, "Did you mean 'body'"),
        (("new", "no/mine", "mine.csv", *MINE), 1, "no folder no"),
        (("new", "mine", "mine.csv", *MINE, "--kind", "guess"), 2, "no task kind 'guess'"),
        (("new", "mine", "mine.csv", *MINE, "--labels", "yes,perhaps"), 1, "unknown label 'no'"),
        (("new", "mine", "mine.csv", *MINE, "--test-size", "30"), 1, "nothing would be left to show"),
        (("new", "mine", "mine.csv", *MINE, "--label-names", "0=a,b"), 2, "name all of them as ID=NAME"),
        (("show", "nothing"), 2, "no task named 'nothing'"),
        (("check", "mine.toml"), 1, "make one with: iclkit task new mine FILE"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    iclkit, here: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    got, out, err = iclkit("task", *words)
    assert (got, out) == (code, "")
    assert told in err.splitlines()[-1]
    assert sorted(p.name for p in here.iterdir()) == ["mine.csv"]


def test_a_task_file_is_not_replaced_unless_asked(iclkit, here: Path) -> None:
    (here / "mine.toml").write_text("mine")
    assert "there is a mine.toml already" in iclkit("task", "new", "mine", "mine.csv", *MINE)[2]
    assert (here / "mine.toml").read_text() == "mine"
    assert iclkit("task", "new", "mine", "mine.csv", *MINE, "--again")[0] == 0


def test_a_template_may_be_a_file_and_braces_are_written_twice(iclkit, here: Path) -> None:
    (here / "words.txt").write_text('Answer as {{"a": …}}.\n\nQ: {input}\nA: {output}\n')
    assert (
        iclkit("task", "new", "mine", "mine.csv", *MINE, "--template", "words.txt", "--separator", "\\n---\\n")[0] == 0
    )
    facts = json.loads(iclkit("task", "show", "mine", "--json")[1])
    assert facts["template"].endswith("Q: {input}\nA: {output}")


def test_select_takes_a_file_a_task_and_queries_by_their_columns(iclkit, here: Path) -> None:
    words = ("-s", "bm25", "-k", "2", "--prompt")
    code, out, _ = iclkit("select", "mine.csv", "up 3", *MINE, *words)
    assert code == 0
    assert out.endswith("\n\nInput: up 3\nLabel:\n")
    assert iclkit("task", "new", "mine", "mine.csv", *MINE, "--template", "{input} => {output}")[0] == 0
    assert iclkit("select", "mine", "up 3", *words)[1].endswith("\n\nup 3 =>\n")
    assert iclkit("pool", "add", "tk.db", "mine.csv", *MINE)[0] == 0
    code, out, _ = iclkit(
        "select", "tk.db", "--queries", "mine.csv", "--input", "body", "-s", "bm25", "-k", "1", "--json"
    )
    assert (code, len(json.loads(out))) == (0, 30)
    code, _, err = iclkit("select", "tk.db", "up 3", "--input", "body", "-s", "bm25")
    assert (code, err) == (2, "error: --input says how a task or --queries is read; tk.db is a pool\n")
    code, _, err = iclkit("select", "none", "up 3", "-s", "bm25")
    assert (code, "no task named 'none'" in err) == (2, True)
