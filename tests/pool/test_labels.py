"""Inputs that wait for a label: kept, shown to nobody, labeled all or none."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import pytest

from iclkit.cli import main
from iclkit.datasets import load_task, read_examples
from iclkit.errors import DataError
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import worth_labeling
from iclkit.testing import HashEmbedder

WAITING = [Example(f"{word} {n}", "") for word in ("cats", "dogs", "owls") for n in range(4)]
LABELED = [Example("cats 9", "cat"), Example("dogs 9", "dog")]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.chdir(tmp_path)
    store = Pool.open(tmp_path / "p.db")
    store.add([*WAITING[:6], *LABELED, *WAITING[6:]])
    return store


def iclkit(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


def test_a_view_leaves_out_what_waits_unless_asked(pool: Pool) -> None:
    assert list(pool.view().examples) == LABELED
    assert list(pool.view(labeled=False).examples) == WAITING
    assert len(pool.view(labeled=None)) == len(pool) == 14
    assert list(pool.view(labeled=False, where={"x": 1}).examples) == []
    assert list(pickle.loads(pickle.dumps(pool.view())).examples) == LABELED  # noqa: S301


def test_a_pool_without_such_inputs_is_seen_whole(tmp_path: Path) -> None:
    store = Pool.open(tmp_path / "q.db")
    store.add(LABELED)
    assert store.view() is store.view(labeled=None)
    assert len(store.view(labeled=False)) == 0


def test_labels_are_given_all_or_none_and_once(pool: Pool) -> None:
    with pytest.raises(DataError, match=r"no input 'nothing' of .* waits for a label"):
        pool.label({WAITING[0].id: "cat", "nothing": "dog"})
    with pytest.raises(DataError, match="waits for a label"):
        pool.label({LABELED[0].id: "dog"})
    assert len(pool.view(labeled=False)) == 12
    given = {WAITING[0].id: "cat", WAITING[4].id: "dog"}
    assert (pool.label(given), pool.label(given)) == (2, 0)
    assert [e.output for e in pool.view().examples] == ["cat", "dog", "cat", "dog"]
    assert pool.view(labeled=None).unlabeled.size == 10
    assert pool.check() == []


def test_a_label_that_is_no_choice_is_refused_and_one_that_is_known_already_adds_nothing(tmp_path: Path) -> None:
    store = Pool.open(tmp_path / "c.db")
    store.add([Example("q", "", choices=("a", "b")), Example("same", ""), Example("same", "x")])
    first, second = (e.id for e in store.view(labeled=False).examples)
    with pytest.raises(DataError, match=r"'c' is none of the choices of .*: a, b"):
        store.label({first: "c"})
    assert store.label({second: "x"}) == 1
    assert [e.output for e in store] == ["", "x"]


def test_vectors_of_an_input_stay_when_it_is_labeled(pool: Pool) -> None:
    embedder = HashEmbedder()
    pool.embed(embedder)
    pool.label({WAITING[0].id: "cat"})
    assert pool.view(labeled=None).count_missing(embedder) == 0


def test_the_inputs_most_worth_a_label_are_unlike_each_other_and_unlike_labeled_ones(pool: Pool) -> None:
    embedder = HashEmbedder()
    chosen = worth_labeling(pool.view(labeled=None), embedder, 5)
    assert len(chosen) == 5
    assert not {e.id for e in chosen} & {e.id for e in LABELED}
    assert worth_labeling(pool.view(), embedder, 5) == []


def test_a_sheet_goes_out_and_comes_back(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool.close()
    assert iclkit("pool", "label", "p.db", "--write", "sheet.csv", "-n", "4", "--embedder", "none") == 0
    with (tmp_path / "sheet.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["id", "output", "input", "choices"]
    assert [r[2] for r in rows[1:]] == [e.text for e in WAITING[:4]]
    rows[1][1], rows[3][1] = "cat", "cat"
    with (tmp_path / "sheet.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    capsys.readouterr()
    assert iclkit("pool", "label", "p.db", "sheet.csv") == 0
    assert capsys.readouterr().out == "labeled 2 inputs; 10 of p.db wait for a label\n"
    assert iclkit("pool", "label", "p.db", "sheet.csv") == 0
    assert capsys.readouterr().out == "labeled 0 inputs; 10 of p.db wait for a label\n"
    assert iclkit("pool", "label", "p.db", "--write", "sheet.csv") == 2
    assert "there is a sheet.csv already" in capsys.readouterr().err


def test_inputs_come_from_files_with_and_without_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("one\n\ntwo\n")
    (tmp_path / "in.csv").write_text("text,label\nthree,x\nfour,\n")
    assert iclkit("pool", "add", "u.db", "in.txt", "--format", "lines", "--unlabeled") == 0
    assert iclkit("pool", "add", "u.db", "in.csv", "--unlabeled") == 0
    assert iclkit("pool", "add", "u.db", "in.csv", "--unlabeled", "--output", "lable") == 1
    with Pool.open("u.db") as store:
        assert [(e.input, e.output) for e in store] == [("one", ""), ("two", ""), ("three", "x"), ("four", "")]
        store.export("u.jsonl")
        assert read_examples("u.jsonl") == list(store)


def test_a_pool_of_inputs_alone_is_no_task_and_says_what_to_do(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "w.db") as store:
        store.add(WAITING)
    with pytest.raises(DataError, match=r"the 12 inputs of .* have no labels; see: iclkit pool label"):
        load_task(tmp_path / "w.db")
