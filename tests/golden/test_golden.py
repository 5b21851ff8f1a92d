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
    assert differences({"a": [1, [0.5]]}, {"a": [1, [0.50001]]}) == ["/a/1/0: 0.5 -> 0.50001"]
    assert differences([0.3], []) == [": [0.3] -> []"]


def test_numbers_differ_by_more_than_processors_round() -> None:
    assert differences([0.604631, -512.0], [0.604632, -512.0001]) == []
    assert differences([0.604631, -512.0], [0.604635, -512.01]) == ["/0: 0.604631 -> 0.604635", "/1: -512.0 -> -512.01"]
