"""Runs of the first format are read, ranked and explained as they always were; they are not gone on with.

``tests/stores/runs`` holds runs that version 0.1.0 made before the format was changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import DataError
from iclkit.eval import evaluate_task, explain, load_run, load_runs, load_texts, predictor_of, upgrade_spec
from iclkit.predictors import Tools
from iclkit.records import RUN_FORMAT, Run, Spec
from iclkit.report import leaderboard
from iclkit.selectors import make_selector
from iclkit.testing import HashEmbedder

from .worlds import classification, copying_lm

STORE = Path(__file__).parent.parent / "stores" / "runs"
VOTE_K = "vote-k,neighbors=3,center=false"


def again(out: Path) -> list[Run]:
    """The same runs by today's code."""
    task, tools = classification(45, 6), {"embedder": HashEmbedder(), "out": out}
    runs = [evaluate_task(task, s, copying_lm(), k=2, **tools) for s in ("random", VOTE_K, "knn")]
    runs.append(evaluate_task(task, "knn", copying_lm(), k=2, calibrate="batch", normalize="mean", **tools))
    return [*runs, evaluate_task(task, "knn-vote,k=3", **tools)]


def place(run: Run) -> str:
    return f"{run.spec.selector} {run.spec.calibrate}"


def test_an_old_run_keeps_its_id_and_says_what_it_said() -> None:
    runs = {run.id: run for run in load_runs(STORE)}
    assert {*runs} == {folder.name for folder in STORE.iterdir()}
    for run in runs.values():
        old = json.loads((STORE / run.id / "run.json").read_text())["spec"]
        spec = run.spec
        assert (spec.task.name, spec.task.labels, spec.k) == ("things", ("animal", "food", "tool"), old["k"])
        assert (spec.normalize, spec.calibrate) == (old["normalise"], old.get("calibrate", "none"))
        assert (spec.selector.name, spec.selector.version <= 1) == (old["selector"]["name"], True)
        assert run.facts["iclkit"] == "0.1.0"
        assert (spec.lm is None) == (old["lm"] is None)


def test_todays_code_writes_the_rows_of_old_runs_byte_for_byte_under_new_ids(tmp_path: Path, home: Path) -> None:
    made = {place(run): run for run in again(tmp_path)}
    for old in load_runs(STORE):
        new = made[place(old)]
        assert new.id != old.id
        assert (tmp_path / new.id / "rows.jsonl").read_bytes() == (STORE / old.id / "rows.jsonl").read_bytes()
        assert json.loads((tmp_path / new.id / "run.json").read_text())["spec"]["format"] == RUN_FORMAT


def test_an_old_run_is_not_resumed_and_of_twins_the_newer_counts_with_a_note(tmp_path: Path, home: Path) -> None:
    out = shutil.copytree(STORE, tmp_path / "runs")
    before = {run.id for run in load_runs(out)}
    again(out)
    both = load_runs(out)
    assert len(both) == 2 * len(before)
    board = leaderboard(both)
    assert not {i for group in board.groups for x in group.lines for i in x.runs} & before
    assert any("repeated by a newer one, which counts" in note for group in board.groups for note in group.notes)
    old = leaderboard(load_runs(STORE))
    figures = [[(x.name, x.figure, x.diff, x.verdict) for x in g.lines] for b in (old, board) for g in b.groups]
    assert figures[: len(old.groups)] == figures[len(old.groups) :]


def test_an_old_run_is_explained_with_its_settings_by_their_names_of_today(home: Path) -> None:
    run = next(r for r in load_runs(STORE) if r.spec.selector.name == "vote-k")
    assert make_selector(Spec(run.spec.selector.name, run.spec.selector.settings)) == make_selector(VOTE_K)
    assert predictor_of(run, Tools(copying_lm(), HashEmbedder())).settings.k == 2
    assert len(explain(run, load_texts(STORE / run.id), copying_lm())) == 6


def test_settings_inside_the_parts_of_a_selector_get_their_names_of_today() -> None:
    (folder,) = (STORE / r.id for r in load_runs(STORE) if r.spec.selector.name == "random")
    old = json.loads((folder / "run.json").read_text())["spec"]
    old["selector"] = {"name": "rrf", "settings": {"of": "[vote-k,neighbours=3,mdl,normalise=sum]"}, "version": "0.1.0"}
    spec, _ = upgrade_spec(old)
    assert spec.selector.settings == {"of": "[vote-k,neighbors=3,mdl,normalize=sum]"}


def changed(folder: Path, **spec: Any) -> Path:
    file = folder / "run.json"
    state = json.loads(file.read_text())
    state["spec"] |= spec
    from iclkit.records import digest

    file.write_text(json.dumps(state | {"id": digest(state["spec"], 8)}))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [({"normalise": None}, "spec: normalise should be a text"), ({"lm": None}, "lm should be an object"),
     ({"format": 3}, "format 3 is of a newer iclkit"), ({"k": "2"}, "spec: k should be a whole number"),
     ({"selector": {"name": "knn"}}, r"spec: selector.(settings|version) should be there")],
)  # fmt: skip
def test_a_damaged_old_run_is_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run = next(r for r in load_runs(STORE) if r.spec.selector.name == "random")
    folder = changed(shutil.copytree(STORE / run.id, tmp_path / "run"), **change)
    with pytest.raises(DataError, match=says) as caught:
        load_run(folder)
    assert len(str(caught.value).splitlines()) == 1
