"""``iclkit demo``: the table, one prompt, plain words, and what to type next."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .eval_worlds import call, fakes

__all__ = ["fakes"]


def test_the_demo_tells_its_story(tmp_path, fakes, capsys):
    code, stdout, stderr = call("demo", "-k", "4", "--limit", "24", "--out", str(tmp_path / "runs"), capsys=capsys)
    assert code == 0
    for name in ("zero", "random", "bm25", "knn", "zero + batch", "knn-vote", "logreg", "majority"):
        assert name in stdout
    for heading in ("One query, and what knn showed", "What was found", "Go on"):
        assert heading in stdout
    assert "The model's answer:" in stdout
    assert "24 queries" in stdout
    assert "which asks no LM" in stdout
    assert "Without any labeled message there is nothing to vote with" in " ".join(stdout.split())
    assert f"iclkit leaderboard {tmp_path / 'runs'}" in stdout
    assert "6 runs" in stderr or "runs" in stderr


def test_the_prompt_of_the_demo_is_the_one_that_was_scored(tmp_path, fakes, capsys):
    from iclkit.datasets import load_task
    from iclkit.eval import load_runs, make_bench
    from iclkit.predictors import recorded_prompt

    call("demo", "-k", "4", "--limit", "8", "--out", str(tmp_path / "runs"), capsys=capsys)
    bench = make_bench(load_task("support"), limit=8)
    examples = {e.id: e for e in bench.view.examples}
    runs = load_runs(tmp_path / "runs")
    assert sum(run.spec.lm is None for run in runs) == 3
    for run in (run for run in runs if run.spec.lm is not None):
        for row, query in zip(run.rows, bench.queries, strict=True):
            again = recorded_prompt(bench.task.template, query, [examples[i] for i in row.shown])
            assert again.hash == row.prompt_hash


def test_json_is_the_board_alone(tmp_path, fakes, capsys):
    _, stdout, _ = call("demo", "--limit", "8", "--json", "--out", str(tmp_path / "runs"), capsys=capsys)
    assert {x["selector"] for x in json.loads(stdout)["groups"][0]["lines"]} == {
        "zero",
        "random",
        "bm25",
        "knn",
        "knn-vote",
        "logreg",
        "majority",
    }


@pytest.mark.models
@pytest.mark.slow
def test_the_demo_with_real_models_finds_that_choosing_helps(tmp_path, smollm2_path, minilm_path):
    command = [sys.executable, "-m", "iclkit", "demo", "--limit", "60", "--out", str(tmp_path / "runs"), "--json"]
    board = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    verdicts = {x["selector"]: x["verdict"] for x in board["groups"][0]["lines"]}
    assert verdicts["knn"] == "better"
