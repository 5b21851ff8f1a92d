"""``iclkit explain``: one query, and a whole run."""

from __future__ import annotations

import json
import shutil

import pytest

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


@pytest.fixture
def run(tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    code, _, err = call(
        "eval",
        str(write_task(tmp_path / "things")),
        "-s",
        "knn",
        "--predictor",
        "none",
        "-k",
        "3",
        "--out",
        str(out),
        capsys=capsys,
    )
    assert code == 0, err
    return next(out.glob("*/run.json")).parent


def test_one_query_is_explained(run, capsys):
    code, stdout, stderr = call("explain", str(run), "4", capsys=capsys)
    assert code == 0
    for word in ("Answer:", "Belief:", "position", "effect", "Runner-up:"):
        assert word in stdout
    assert "5 prompts" in stderr


def test_one_query_as_json_holds_every_demonstration(run, capsys):
    row = json.loads((run / "rows.jsonl").read_text().splitlines()[0])
    code, stdout, _ = call("explain", str(run), row["query_id"], "--json", capsys=capsys)
    found = json.loads(stdout)
    assert code == 0
    assert [s["id"] for s in found["shown"]] == row["shown"]
    assert [s["position"] for s in found["shown"]] == [1, 2, 3]
    assert found["runner_up"]["id"] not in row["shown"]
    assert found["gold"] == row["gold"]


def test_a_whole_run_names_what_helps_and_what_looks_mislabeled(run, capsys):
    code, stdout, _ = call("explain", str(run), "--limit", "20", capsys=capsys)
    assert code == 0
    for word in ("help most", "hurt most", "Labels to look at", "Over 20 queries"):
        assert word in stdout
    _, stdout, _ = call("explain", str(run), "--limit", "20", "--json", capsys=capsys)
    found = json.loads(stdout)
    assert sum(i["times"] for i in found["influence"]) == 60
    assert len(found["suspects"]) == len(found["influence"])
    owns = [s["own"] for s in found["suspects"]]
    assert owns == sorted(owns)


def test_a_task_that_has_gone_costs_only_the_runner_up(run, tmp_path, capsys):
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "things", tmp_path / "moved")
    code, stdout, stderr = call("explain", str(run), "0", capsys=capsys)
    assert (code, "Runner-up" in stdout) == (0, False)
    assert "give --task" in stderr
    code, stdout, _ = call("explain", str(run), "0", "--task", str(tmp_path / "moved" / "things"), capsys=capsys)
    assert (code, "Runner-up" in stdout) == (0, True)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["{run}", "nope"], 2, "is no query id"),
        (["{run}/none"], 1, "is no run"),
        (["{run}", "0", "--task", "{other}"], 1, "pool"),
    ],
)
def test_what_cannot_be_explained_is_one_line(run, tmp_path, capsys, args, code, text):
    other = write_task(tmp_path / "other", train=20)
    found, stdout, stderr = call("explain", *(a.format(run=run, other=other) for a in args), capsys=capsys)
    assert (found, stdout) == (code, "")
    assert text in stderr.splitlines()[-1]
