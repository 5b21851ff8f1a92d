"""Runs on disk: what a kill leaves behind is cut to whole chunks, and damage is named."""

from __future__ import annotations

import json
import multiprocessing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, RunBusy, RunError
from iclkit.eval._runs import CHUNK, RunStore, batches, load_run, load_runs
from iclkit.records import Dropped, Row

from .worlds import run_spec

SPEC = run_spec(200)


def row(n: int) -> Row:
    return Row(f"q{n}", "yes", "no", {"accuracy": 0.0}, (("a", 0.1 + n),), ("a",), (Dropped("b", "budget"),))


ROWS = [row(n) for n in range(200)]
ASKED = [(row.query_id, row.gold) for row in ROWS]


@given(st.integers(0, 1000))
def test_chunks_tile_the_queries_and_none_is_tiny(total):
    parts = batches(total)
    assert [i for p in parts for i in p] == list(range(total))
    assert all(len(p) >= min(total, CHUNK / 2) for p in parts)


def test_rows_come_back_as_they_were_written(tmp_path):
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        folder.append(ROWS[:64])
        folder.append(ROWS[64:128])
        folder.append(ROWS[128:])
        folder.usage = {"calls": 3}
        folder.save(done=True)
    run = load_run(tmp_path / SPEC.id)
    assert run.rows == tuple(ROWS)
    assert (run.id, run.spec, run.usage, run.facts["done"]) == (SPEC.id, SPEC, {"calls": 3}, True)
    assert [r.id for r in load_runs(tmp_path)] == [run.id]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000_000))
def test_a_file_cut_at_any_byte_opens_with_whole_chunks_only(tmp_path_factory, cut):
    out = tmp_path_factory.mktemp("runs")
    with RunStore(out).open(SPEC, ASKED) as folder:
        folder.append(ROWS)
        folder.save(done=True)
    file = out / SPEC.id / "rows.jsonl"
    raw = file.read_bytes()
    file.write_bytes(raw[: cut % len(raw)])
    with RunStore(out).open(SPEC, ASKED) as folder:
        assert not folder.done
        assert len(folder.rows) in (0, 64, 128)
        assert folder.rows == ROWS[: len(folder.rows)]
        folder.append(ROWS[len(folder.rows) :])
    assert file.read_bytes() == raw


def test_a_finished_run_whose_rows_are_gone_is_not_finished(tmp_path):
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        folder.append(ROWS)
        folder.save(done=True)
    (tmp_path / SPEC.id / "rows.jsonl").unlink()
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        assert (folder.done, folder.rows) == (False, [])


def test_a_damaged_row_is_named_by_file_and_line(tmp_path):
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        folder.append(ROWS)
        folder.save(done=True)
    file = tmp_path / SPEC.id / "rows.jsonl"
    lines = file.read_text().split("\n")
    lines[16] = lines[16][:20]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 17: not JSON .*; delete the folder"):
        load_run(file.parent)


def test_a_damaged_state_says_what_to_do(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"x/run\.json: not JSON .*; delete this file and give the same iclkit eval"):
        load_runs(tmp_path)


def hold(out, held, let_go):
    with RunStore(out).open(SPEC, ASKED):
        held.set()
        let_go.wait(120)


def test_who_does_not_wait_is_refused_a_run_until_the_other_process_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, let_go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, let_go))
    other.start()
    assert held.wait(120)
    with pytest.raises(RunBusy, match="another process"), RunStore(tmp_path).open(SPEC, ASKED, wait=False):
        pass
    other.kill()
    other.join()
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        assert folder.rows == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot write runs"), RunStore(blocked).open(SPEC, ASKED):
        pass


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_runs_says_how_to_make_some(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="iclkit eval"):
        load_runs(tmp_path / name)


def test_texts_hold_queries_and_shown_examples(tmp_path):
    from iclkit.eval._runs import load_texts
    from iclkit.records import Example, Query

    with RunStore(tmp_path).open(SPEC, ()) as folder:
        folder.save(done=True, texts=[Query("wie?", id="q"), Example({"a": "x"}, "y", id="e")])
    texts = load_texts(tmp_path / SPEC.id)
    assert texts["q"]["input"] == "wie?"
    assert texts["e"] == {"id": "e", "input": {"a": "x"}, "output": "y"}
    assert json.loads((tmp_path / SPEC.id / "run.json").read_text())["done"] is True


def test_a_full_disk_stops_the_run_with_what_was_finished_kept(tmp_path, monkeypatch):
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        folder.append(ROWS[:64])

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(RunError, match=r"No space left .* kept"):
            folder.append(ROWS[64:128])
    monkeypatch.undo()
    with RunStore(tmp_path).open(SPEC, ASKED) as folder:
        assert folder.rows in (ROWS[:64], ROWS[:128])
