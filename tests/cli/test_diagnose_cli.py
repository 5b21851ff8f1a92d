"""``iclkit diagnose``: a table of picks without an LM."""

from __future__ import annotations

import json

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


def test_diagnose_asks_no_lm_and_shows_every_selector(tmp_path, fakes, capsys):
    task = write_task(tmp_path / "things")
    code, stdout, _ = call("diagnose", str(task), "-s", "random", "-s", "knn", "-k", "3", capsys=capsys)
    assert code == 0
    assert fakes.scored == []
    assert "things · k = 3 · 70 queries · 40 examples" in stdout
    assert all(name in stdout for name in ("random", "knn", "label recall", "exposure"))


def test_diagnose_json_has_a_row_per_task_and_selector(tmp_path, fakes, capsys):
    tasks = [str(write_task(tmp_path / name)) for name in ("one", "two")]
    code, stdout, _ = call(
        "diagnose", *tasks, "-s", "zero", "-s", "bm25", "--embedder", "none", "--limit", "9", "--json", capsys=capsys
    )
    rows = json.loads(stdout)
    assert code == 0
    assert [(r["task"], r["selector"], r["queries"]) for r in rows] == [
        ("one", "zero", 9), ("one", "bm25", 9), ("two", "zero", 9), ("two", "bm25", 9),
    ]  # fmt: skip
    assert rows[0]["label_match"] is None
    assert 0 <= rows[1]["label_match"] <= 1


def test_a_selector_that_needs_what_is_not_there_is_one_line(tmp_path, fakes, capsys):
    task = write_task(tmp_path / "things")
    code, _, stderr = call("diagnose", str(task), "-s", "knnn", capsys=capsys)
    assert (code, "Did you mean 'knn'" in stderr) == (2, True)
