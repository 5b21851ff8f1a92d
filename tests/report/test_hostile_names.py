"""Names that a user did not choose (of tasks, models, selectors) on boards that people open, paste and import."""

from __future__ import annotations

import csv
import io
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from iclkit.report import leaderboard, to_csv, to_latex, to_markdown, write_harness
from iclkit.report._text import COLUMNS

from .worlds import make_run, respec

HOSTILE = ("<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "a|b", "`code`", "**bold**", "=1+1", "@SUM(A1)",
           "-2+3", "+1", "\\input{x} $ % &", "a\nb", "\x1b[2J", "../../x", "x" * 400)  # fmt: skip


def board_of(name: str):
    rng = np.random.default_rng(0)
    runs = [make_run(s, rng.random(60) < p) for s, p in (("random", 0.5), ("knn", 0.9))]
    named = []
    for run in runs:
        named.append(respec(run, task={"name": name}, lm={**run.spec.parts["lm"], "name": name}))
    return named, leaderboard(named)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: n[:12].encode("unicode_escape").decode())
def test_markdown_shows_a_name_and_nothing_else(name: str) -> None:
    text = to_markdown(board_of(name)[1])
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "\x1b" not in text
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) == 1


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: n[:12].encode("unicode_escape").decode())
def test_no_cell_of_a_csv_board_is_a_formula_and_figures_stay_numbers(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(board_of(name)[1]))))
    for row in rows:
        for column in ("task", "lm", "selector", "order", "metric"):
            assert row[column][:1] not in ("=", "+", "-", "@", "\t", "\r")
    differences = [row for row in rows if row[COLUMNS[10]]]
    assert differences
    assert all(isinstance(float(row[COLUMNS[10]]), float) for row in differences)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: n[:12].encode("unicode_escape").decode())
def test_latex_has_no_command_of_a_name(name: str) -> None:
    text = to_latex(board_of(name)[1])
    assert "\\input" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: n[:12].encode("unicode_escape").decode())
def test_files_of_the_harness_layout_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    written = write_harness(board_of(name)[0], tmp_path / "out", date=datetime(2026, 1, 2))
    assert written
    for file in written:
        assert file.resolve().is_relative_to((tmp_path / "out").resolve())
        assert not any(ord(c) < 32 for c in file.name)
