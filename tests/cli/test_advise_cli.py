"""``iclkit advise``: figures, reasons, and the command that confirms them."""

from __future__ import annotations

import json

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


def test_advice_comes_with_its_evidence(tmp_path, fakes, capsys):
    task = write_task(tmp_path / "things")
    code, stdout, stderr = call("advise", str(task), "--prompts", "500", "-k", "2,4", capsys=capsys)
    assert code == 0
    assert "Pilot: 40 train rows as queries" in stdout
    assert "Confirm it on the test rows: iclkit eval" in stdout
    assert "at most 500 prompts" in stderr


def test_advice_as_json(tmp_path, fakes, capsys):
    task = write_task(tmp_path / "things")
    _, stdout, _ = call("advise", str(task), "--prompts", "500", "-k", "2,4", "--json", capsys=capsys)
    found = json.loads(stdout)
    assert {(f["way"], f["k"]) for f in found["figures"]} >= {("zero", 0), ("random", 2), ("random", 4)}
    assert {f["verdict"] for f in found["findings"]} <= {"better", "worse", "no difference shown"}
    assert found["confirm"].startswith(f"iclkit eval {task}")


def test_too_small_a_budget_is_one_line(tmp_path, fakes, capsys):
    task = write_task(tmp_path / "things")
    code, stdout, stderr = call("advise", str(task), "--prompts", "20", capsys=capsys)
    assert (code, stdout) == (2, "")
    assert "give at least" in stderr.splitlines()[-1]
