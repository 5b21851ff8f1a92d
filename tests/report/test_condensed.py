"""Boards of stored runs hold one run's rows at a time, and say what boards of runs in memory say."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from iclkit.cli._runs import read_runs as read_stored
from iclkit.cli._runs import run_jobs
from iclkit.errors import DataError
from iclkit.eval import PlannedRun, RunStore, StoredTexts, load_run, load_runs, load_texts
from iclkit.integrations import tracking
from iclkit.records import Example, Query, Row, Run
from iclkit.report import leaderboard, read_runs, run_texts, to_html, to_json, usable_runs, without_rows
from tests.report.worlds import make_runs, respec

WORDS = "a sentence that no statistic needs, and which stands in no array; " * 20


def wordy(run: Run) -> Run:
    """The run with picks, and with a text in every row that only a reader of single queries wants to see."""
    shown = tuple(f"d{n}" for n in range(8))

    def more(row: Row) -> Row:
        picks = tuple((i, 0.5) for i in shown)
        return replace(row, shown=shown, picks=picks, notes=(f"{row.query_id}: {WORDS}",))

    return replace(run, rows=tuple(map(more, run.rows)))


def store(out: Path, runs: Sequence[Run]) -> Path:
    for run in runs:
        with RunStore(out).open(run.spec, [(row.query_id, row.gold) for row in run.rows]) as folder:
            folder.append(run.rows)
            folder.usage = dict(run.usage)
            folder.facts = {name: value for name, value in run.facts.items() if name != "done"}
            texts = [Query(f"{row.query_id} {WORDS}", id=row.query_id) for row in run.rows]
            folder.save(done=True, texts=[*texts, *(Example(f"{n} {WORDS}", "yes", id=f"d{n}") for n in range(8))])
    return out


def bytes_held(work: Callable[[], object]) -> tuple[int, int]:
    """What is held when the work is done, and the most that was held meanwhile."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return held, peak


def of_rows(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("rows.jsonl"))


def test_more_runs_add_their_arrays_to_what_a_board_holds_and_not_their_rows(tmp_path: Path) -> None:
    runs = [wordy(respec(run, order=order)) for order in ("best-last", "best-first") for run in make_runs(60)]
    few, many = store(tmp_path / "few", runs[:6]), store(tmp_path / "many", runs)

    def read(folder: Path) -> Callable[[], list[Run]]:
        return lambda: read_runs([RunStore(folder)])[0]

    found = read(many)()  # what is imported and prepared once, too
    small, large = bytes_held(read(few)), bytes_held(read(many))
    assert large[1] - small[1] < (of_rows(many) - of_rows(few)) / 4
    assert large[0] < of_rows(many) / 4
    assert len(found) == 12


def rows_held() -> int:
    gc.collect()
    return sum(type(thing) is Row for thing in gc.get_objects())


def test_runs_that_were_just_made_hold_no_rows_and_make_the_same_board_and_page(tmp_path: Path) -> None:
    runs = [wordy(run) for run in make_runs(20)]
    folder = store(tmp_path / "runs", runs)
    board, page = leaderboard(runs), to_html(leaderboard(runs), runs)
    others = rows_held() - sum(len(run.rows) for run in runs)
    runs = [without_rows(run, folder) for run in runs]
    assert rows_held() == others
    assert to_json(leaderboard(runs)) == to_json(board)
    assert to_html(board, runs) == page


def test_the_command_line_holds_no_rows_of_runs_that_are_in_a_folder(tmp_path: Path) -> None:
    folder = store(tmp_path / "runs", [wordy(run) for run in make_runs(20)])
    before = rows_held()

    @dataclass
    class Stored:
        id: str
        title = "stored"
        tools = SimpleNamespace(lm=None)
        bench = SimpleNamespace(queries=())

        def run(self, out: Path, *_: object, wait: bool) -> Run:
            return load_run(out / self.id)

    made = run_jobs([cast(PlannedRun, Stored(run.id)) for run in load_runs(folder)], folder)
    assert len(made) == 6
    assert rows_held() == before
    assert [*made[0].rows] == [*load_run(folder / made[0].id).rows]


def test_an_export_holds_the_rows_of_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(tmp_path / "runs", [wordy(run) for run in make_runs(20)])
    found, _, _ = read_stored([folder], whole=True)
    board, before, held = leaderboard(found), rows_held(), []

    class Tracker:
        def has(self, entry_id: str) -> bool:
            held.append(rows_held() - before)
            return False

        def write(self, entry: Any) -> None:
            assert entry.table.rows

        def upload(self) -> None:
            pass

    monkeypatch.setattr(tracking, "_tracker", lambda *_: nullcontext(Tracker()))
    assert len(tracking.export_runs(found, "mlflow", board=board)) == len(found) + 1
    assert max(held) <= 20


def test_a_page_reads_the_rows_and_texts_that_it_shows_from_their_files(tmp_path: Path) -> None:
    runs = [wordy(run) for run in make_runs(60)]
    folder = store(tmp_path / "runs", runs)
    found, _ = read_runs([RunStore(folder)])
    notes: list[str] = []
    run_texts([folder], found, notes.append)
    held, _ = bytes_held(lambda: run_texts([folder], found, notes.append))
    assert held < sum(file.stat().st_size for file in folder.rglob("texts.jsonl")) / 10
    board = leaderboard(found)
    whole = {"htoy": {i: text for run in runs for i, text in load_texts(folder / run.id).items()}}
    assert to_html(board, found, run_texts([folder], found, notes.append)) == to_html(board, load_runs(folder), whole)
    assert notes == []


def test_a_board_and_page_of_files_are_those_of_runs_in_memory(tmp_path: Path) -> None:
    runs = [wordy(run) for run in make_runs(60)]
    failed = replace(runs[0].rows[5], failure="the server refused it", metrics={})
    runs[0] = replace(runs[0], rows=(*runs[0].rows[:5], failed, *runs[0].rows[6:]))
    old = tuple(replace(row, metrics={"accuracy": 1.0}) for row in runs[3].rows)  # by other rules
    runs[3] = replace(runs[3], rows=old, facts={**runs[3].facts, "iclkit": "0.0.1"})
    runs[4] = replace(runs[4], rows=old)  # wrong, and left out
    folder = store(tmp_path / "runs", runs)
    found, problems = read_runs([RunStore(folder)])
    assert problems == []
    board, whole = leaderboard(found), leaderboard(runs)
    assert to_json(board) == to_json(whole)
    assert [one.run for one in board.left_out] == [runs[4].id]
    kept, of_memory = usable_runs(found)[0], usable_runs(runs)[0]
    assert to_html(board, kept) == to_html(whole, of_memory)
    judged = next(run for run in kept if run.id == runs[3].id)
    assert [row.metrics["accuracy"] for row in judged.rows] == [float(row.output == row.gold) for row in old]
    assert judged.rows[7] == judged.rows[:8][-1] == [*judged.rows][7]


def test_a_file_that_changes_under_a_page_is_an_error_and_no_other_row(tmp_path: Path) -> None:
    folder = store(tmp_path / "runs", make_runs(60))
    found, _ = read_runs([RunStore(folder)])
    board = leaderboard(found)
    file = folder / found[0].id / "rows.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"q3"', b'"q04"'))
    with pytest.raises(DataError, match=r"rows\.jsonl was changed while it was read; give the command again"):
        to_html(board, found)


def test_of_texts_in_several_runs_the_last_counts_and_damaged_ones_add_nothing(tmp_path: Path) -> None:
    for name, content in {
        "a": '{"id": "q1", "input": "one"}\n\n{"id": "q2", "input": "two"}',  # no end of the last line
        "b": '{"id": "q2", "input": "another two", "meta": {"x": 1}}\n',
        "c": '{"id": "q1", "input": "three"}\n{"id": 4}\n',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "texts.jsonl").write_text(content, encoding="utf-8")
    texts = StoredTexts()
    texts.add(tmp_path / "a")
    texts.add(tmp_path / "b")
    with pytest.raises(DataError, match=r"texts\.jsonl, line 2.*id should be a text"):
        texts.add(tmp_path / "c")
    texts.add(tmp_path / "none")
    assert dict(texts) == {"q1": {"id": "q1", "input": "one"},
                           "q2": {"id": "q2", "input": "another two", "meta": {"x": 1}}}  # fmt: skip
    assert texts.get("q9") is None
