"""Damaged run folders: each is named in one line, in ``eval`` and in ``leaderboard``, and hides no other run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclkit.records import digest

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]

Damage = Callable[[Path], Any]


def text(content: str | bytes) -> Damage:
    """Another content for a file."""
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A change in ``run.json``; the id stays that of the changed spec, so that types alone are wrong."""

    def damage(file: Path) -> None:
        value = json.loads(file.read_text())
        change(value)
        if isinstance(value.get("spec"), dict):
            value["id"] = digest(value["spec"], 8)
        file.write_text(json.dumps(value))

    return damage


def put(*path: str, value: Any) -> Damage:
    """Another value for a field of ``run.json``."""

    def change(found: dict[str, Any]) -> None:
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = value

    return state(change)


def drop(*path: str) -> Damage:
    """``run.json`` without a field."""

    def change(found: dict[str, Any]) -> None:
        for step in path[:-1]:
            found = found[step]
        del found[path[-1]]

    return state(change)


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    """Other lines for ``rows.jsonl``."""
    return lambda file: file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))


def row(**fields: Any) -> Damage:
    """Other values for fields of the third row; functions are given the old value."""

    def change(found: list[bytes]) -> list[bytes]:
        value = json.loads(found[2])
        for name, new in fields.items():
            value[name] = new(value.get(name)) if callable(new) else new
        return [*found[:2], json.dumps(value).encode() + b"\n", *found[3:]]

    return lines(change)


def directory(file: Path) -> None:
    """A folder where the file should be."""
    file.unlink()
    file.mkdir()


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
STATES: dict[str, Damage] = {
    "empty": text(""),
    "no JSON": text("{oops"),
    "a list": text("[]"),
    "a number": text("5"),
    "null": text("null"),
    "not UTF-8": text(b'{"id": "\xff"}'),
    "UTF-16": text('{"id": "x"}'.encode("utf-16")),
    "deep": text(DEEP),
    "a long number": text('{"id": ' + "9" * 5000 + "}"),
    "half a surrogate": text('{"id": "\\ud800"}'),
    "a folder": directory,
    "no id": lambda file: file.write_text(file.read_text().replace('"id":', '"ID":', 1)),
    "another id": lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"id": "0" * 16})),
    "spec a text": put("spec", value="x"),
    "spec a list": put("spec", value=[]),
    "spec empty": put("spec", value={}),
    "task a text": put("spec", "task", value="x"),
    "no task": drop("spec", "task"),
    "labels a text": put("spec", "task", "labels", value="ab"),
    "labels of numbers": put("spec", "task", "labels", value=[1, 2]),
    "queries a text": put("spec", "task", "queries", value="30"),
    "k a text": put("spec", "parts", "k", value="2"),
    "k true": put("spec", "parts", "k", value=True),
    "k huge": put("spec", "parts", "k", value=10**30),
    "seed null": put("spec", "parts", "seed", value=None),
    "selector a list": put("spec", "parts", "selector", value=["bm25"]),
    "settings null": put("spec", "parts", "selector", "settings", value=None),
    "version a text": put("spec", "parts", "selector", "version", value="1"),
    "no k": drop("spec", "parts", "k"),
    "no LM": drop("spec", "parts", "lm"),
    "parts a list": put("spec", "parts", value=[]),
    "no predictor": drop("spec", "predictor"),
    "conditions a text": put("spec", "conditions", value="noise"),
    "format a text": put("spec", "format", value="2"),
    "format 0": put("spec", "format", value=0),
    "no format": drop("spec", "format"),
    "made by a number": put("facts", "iclkit", value=1.0),
    "template a text": put("spec", "parts", "template", value="{input}"),
    "template without a field": put("spec", "parts", "template", "demo", value="x"),
    "template with more": put("spec", "parts", "template", "colour", value="red"),
    "policy unknown": put("spec", "on_leak", value="perhaps"),
    "facts null": put("facts", value=None),
    "leaks null": put("facts", "leaks", value=None),
    "leak pairs a list": put("facts", "leaks", value={"pairs": [], "queries": 1}),
    "note a number": put("facts", "note", value=5),
    "dropped a text": put("facts", "dropped", value="1"),
    "spent a list": put("spent", value=[]),
    "spent a text": put("spent", value={"calls": "3"}),
    "spent NaN": put("spent", value={"calls": float("nan")}),
    "done a number": put("done", value=1),
    "done missing": drop("done"),
}
ROWS: dict[str, Damage] = {
    "empty line": lines(lambda found: [*found[:2], b"\n", *found[2:-1]]),
    "no JSON": lines(lambda found: [*found[:2], b"{oops\n", *found[3:]]),
    "a list": lines(lambda found: [*found[:2], b"[]\n", *found[3:]]),
    "not UTF-8": lines(lambda found: [*found[:2], found[2][:30] + b"\xff" + found[2][30:], *found[3:]]),
    "deep": lines(lambda found: [*found[:2], DEEP.encode() + b"\n", *found[3:]]),
    "one row twice, one more": lines(lambda found: [*found[:3], found[2], *found[3:]]),
    "a folder": directory,
    "a metric a text": row(metrics={"accuracy": "x"}),
    "a metric NaN": row(metrics={"accuracy": float("nan")}),
    "a metric infinite": row(metrics={"accuracy": float("inf")}),
    "a metric true": row(metrics={"accuracy": True}),
    "a metric huge": row(metrics={"accuracy": 10**400}),
    "metrics null": row(metrics=None),
    "metrics a list": row(metrics=[1.0]),
    "output null": row(output=None),
    "output a number": row(output=5),
    "gold a list": row(gold=["animal"]),
    "picks of texts": row(picks=["a", "b"]),
    "picks of three": row(picks=[["a", 1.0, 2]]),
    "shown a text": row(shown="ab"),
    "dropped a text": row(dropped=["a"]),
    "tokens a text": row(prompt_tokens="9"),
    "tokens huge": row(prompt_tokens=10**400),
    "label scores NaN": row(label_logprobs=lambda old: dict.fromkeys(old, float("nan"))),
    "label scores texts": row(label_logprobs={"animal": "x"}),
    "notes a text": row(notes="x"),
    "greedy a number": row(greedy=1),
    "an unknown field": row(colour="red"),
    "a field missing": row(query_id=None),
}
RESUMED: dict[str, Damage] = {  # what a kill can leave behind: eval goes on, and the board leaves it out until then
    "rows cut in a line": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "rows cut at a line": lines(lambda found: found[:-1]),
    "rows empty": text(""),
    "rows gone": Path.unlink,
}


@pytest.fixture
def runs(tmp_path: Path, fakes: Any, capsys: Any) -> tuple[list[str], Path, Path]:
    """A command, its folder of two finished runs, and the run of bm25 in it."""
    args = ["eval", str(write_task(tmp_path / "one")), "--predictor", "none", "-s", "random", "-s", "bm25", "-k", "2",
            "--seeds", "1", "--limit", "30", "--out", str(tmp_path / "runs")]  # fmt: skip
    assert call(*args, capsys=capsys)[0] == 0
    (found,) = (
        p.parent
        for p in (tmp_path / "runs").glob("*/run.json")
        if json.loads(p.read_text())["spec"]["parts"]["selector"]["name"] == "bm25"
    )
    return args, tmp_path / "runs", found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


CASES = [("run.json", name, damage) for name, damage in STATES.items()]
CASES += [("rows.jsonl", name, damage) for name, damage in ROWS.items()]


@pytest.mark.parametrize(("file", "damage"), [(f, d) for f, _, d in CASES], ids=[f"{f}: {n}" for f, n, _ in CASES])
def test_a_damaged_run_is_one_line_and_hides_no_other(runs: Any, capsys: Any, file: str, damage: Damage) -> None:
    args, out, folder = runs
    damage(folder / file)
    before = contents(out)
    code, stdout, stderr = call("leaderboard", str(out), "--json", capsys=capsys)
    board = json.loads(stdout)
    assert code == 0
    assert [line["selector"] for group in board["groups"] for line in group["lines"]] == ["random"]
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"note: run {folder.name} is left out: ")
    assert [one["run"] for one in board["left_out"]] == [folder.name]

    code, stdout, stderr = call(*args, capsys=capsys)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (code, stdout, len(errors)) == (1, "", 1)
    assert file in errors[0]
    assert "iclkit eval command again" in errors[0] or "cannot read" in errors[0]
    assert "Traceback" not in stderr
    assert contents(out) == before


@pytest.mark.parametrize("damage", RESUMED.values(), ids=RESUMED.keys())
def test_missing_rows_of_a_finished_run_are_left_out_until_eval_has_made_them(
    runs: Any, capsys: Any, damage: Damage
) -> None:
    args, out, folder = runs
    whole = (folder / "rows.jsonl").read_bytes()
    damage(folder / "rows.jsonl")
    code, _, stderr = call("leaderboard", str(out), capsys=capsys)
    assert code == 0
    assert "give the same iclkit eval command again: it goes on from what is there" in stderr
    assert call(*args, capsys=capsys)[0] == 0
    assert (folder / "rows.jsonl").read_bytes() == whole
    assert call("leaderboard", str(out), capsys=capsys)[::2] == (0, "")


def test_where_no_run_can_be_read_the_exit_code_is_one(runs: Any, capsys: Any) -> None:
    _, out, _ = runs
    for file in out.glob("*/run.json"):
        file.write_text("{oops")
    code, stdout, stderr = call("leaderboard", str(out), capsys=capsys)
    assert (code, stdout) == (1, "")
    assert len(stderr.splitlines()) == 2  # a line for each
    assert stderr.splitlines()[-1].startswith("error: no run in ")


def test_rows_without_a_run_json_are_named_and_kept(runs: Any, capsys: Any) -> None:
    args, out, folder = runs
    rows = (folder / "rows.jsonl").read_bytes()
    (folder / "run.json").unlink()
    assert "it has no run.json, though it has rows" in call("leaderboard", str(out), capsys=capsys)[2]
    assert call(*args, capsys=capsys)[0] == 0
    assert (folder / "rows.jsonl").read_bytes() == rows


@pytest.mark.parametrize("content", [b"{oops\n", b"[]\n", b'{"id": 5, "input": "x"}\n', b"\xff\n", b'{"id": "x"}\n'])
def test_damaged_texts_cost_the_page_their_words_and_no_more(
    runs: Any, capsys: Any, tmp_path: Path, content: bytes
) -> None:
    _, out, folder = runs
    (folder / "texts.jsonl").write_bytes(content)
    page = tmp_path / "board.html"
    code, _, stderr = call("leaderboard", str(out), "--html", str(page), capsys=capsys)
    assert code == 0
    assert page.exists()
    assert sum("texts.jsonl" in line for line in stderr.splitlines()) == 1


def test_the_words_of_a_row_may_hold_what_other_readers_take_for_the_end_of_a_line(
    tmp_path: Path, fakes: Any, capsys: Any
) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    task = write_task(tmp_path / "one", extra=[{"input": f"train {odd} owl", "output": "animal"}])
    test = [json.dumps({"input": f"{odd} {n} owl", "output": "animal"}, ensure_ascii=False) for n in range(20)]
    (task / "test.jsonl").write_text("".join(f"{line}\n" for line in test), encoding="utf-8", newline="\n")
    args = [
        "eval",
        str(task),
        "--predictor",
        "none",
        "-s",
        "random",
        "-k",
        "2",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert call(*args, capsys=capsys)[0] == 0
    page = tmp_path / "board.html"
    assert call("leaderboard", str(tmp_path / "runs"), "--html", str(page), capsys=capsys)[0] == 0
    assert call(*args, capsys=capsys)[0] == 0


def test_a_copy_of_a_run_in_another_folder_is_the_same_run(runs: Any, capsys: Any) -> None:
    _, out, folder = runs
    shutil.copytree(folder, out / "a copy")
    code, stdout, _ = call("leaderboard", str(out), "--json", capsys=capsys)
    assert code == 0
    assert [len(group["lines"]) for group in json.loads(stdout)["groups"]] == [2]


def test_a_run_whose_values_were_edited_is_left_out_by_leaderboard_and_eval(runs: Any, capsys: Any) -> None:
    args, out, folder = runs
    file = folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    edited = [{**one, "metrics": {**one["metrics"], "accuracy": 1 - one["metrics"]["accuracy"]}} for one in rows]
    file.write_text("".join(json.dumps(one) + "\n" for one in edited))
    code, stdout, stderr = call("leaderboard", str(out), "--json", capsys=capsys)
    assert code == 0
    assert [x["selector"] for g in json.loads(stdout)["groups"] for x in g["lines"]] == ["random"]
    assert len(stderr.splitlines()) == 1
    assert re.search(r"has accuracy [01], and its answer '\w+' gets [01] against", stderr)
    code, stdout, _ = call(*args, "--json", capsys=capsys)
    assert code == 0
    assert [one["run"] for one in json.loads(stdout)["left_out"]] == [folder.name]
