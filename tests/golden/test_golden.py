"""Nothing in the golden record changes unless a change means it to (``python -m tests.golden.record --write``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .record import FILE, differences, picks, runs


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return dict(json.loads(FILE.read_text()))


def test_every_selector_picks_what_it_picked(golden: dict[str, object]) -> None:
    assert differences(golden["picks"], json.loads(json.dumps(picks()))) == []


def test_runs_have_the_ids_rows_and_board_they_had(golden: dict[str, object], tmp_path: Path, home: Path) -> None:
    assert differences(golden["runs"], json.loads(json.dumps(runs(tmp_path)))) == []


def test_a_difference_is_named_by_its_path() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["/a/b: 1 -> 3"]
