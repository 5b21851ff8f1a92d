"""Views of large pools read examples when they are asked for, and are otherwise as views of small ones."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, PoolError
from iclkit.pool import Pool, PoolView, _sqlite
from iclkit.pool._examples import StoredExamples
from iclkit.pool._index import FlatIndex
from iclkit.records import Example, Query
from iclkit.selectors import BUILTINS, Kit, make_selector
from iclkit.testing import HashEmbedder

EMBEDDER = HashEmbedder(16)
QUERIES = [Query("red fish 3"), Query("a blue one", where={"half": 1}), Query("nothing like it")]


def examples(*numbers: int) -> list[Example]:
    colors = ("red", "green", "blue", "old")
    return [
        Example(f"{colors[n % 4]} {'fish' if n % 3 else 'bird'} {n}", "xy"[n % 2], f"task{n % 2}", meta={"half": n % 2})
        for n in numbers
    ]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite, "LARGE", 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(examples(*range(40)))
        first = pool.view().examples[7]
        pool.add([Example(first.text, "x thought through", meta={"generated_from": [first.id]})])
        pool.add([Example("waits for a label", "")])
    return tmp_path / "demos.db"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples are read, each time."""
    counts: list[int] = []
    plain = StoredExamples.at
    monkeypatch.setattr(StoredExamples, "at", lambda s, rows, rev: counts.append(len(rows)) or plain(s, rows, rev))
    return counts


def same(one: PoolView, other: PoolView) -> None:
    assert len(one) == len(other)
    assert one.rows.tolist() == other.rows.tolist()
    assert one._texts.tolist() == other._texts.tolist()
    some = one.rows[::3]
    assert one.examples_at(some) == other.examples_at(some)
    assert one.ids_at(some) == other.ids_at(some)
    assert one.outputs(some) == other.outputs(some)
    assert one.families == other.families
    assert one.unlabeled.tolist() == other.unlabeled.tolist()
    assert one.matching({"half": 1}).tolist() == other.matching({"half": 1}).tolist()
    assert [one.row_of(i) for i in (*other.ids[:3], "nowhere")] == [
        other.row_of(i) for i in (*other.ids[:3], "nowhere")
    ]
    assert one.hash == other.hash
    assert one.examples == other.examples


@pytest.mark.usefixtures("large")
def test_a_view_of_a_large_pool_is_as_one_of_a_small_pool(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ({}, {"task": "task1"}, {"where": {"half": 0}}, {"task": "task0", "where": {"half": 0}}, {"labeled": None},
             {"labeled": False})  # fmt: skip
    for options in asked:
        with Pool.open(path) as pool:
            lazy = pool.view(**options)  # type: ignore[arg-type]
            assert lazy._held is None
            with monkeypatch.context() as patch, Pool.open(path) as other:
                patch.setattr(_sqlite, "LARGE", 10**6)
                same(lazy, other.view(**options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", [n for n in BUILTINS if n != "fixed" and not make_selector(n).needs.reranker
                                  and not make_selector(n).needs.lm])  # fmt: skip
def test_every_selector_picks_the_same(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = Kit(EMBEDDER, labels=("x", "y"))
    chosen = []
    for size in (5, 10**6):
        monkeypatch.setattr(_sqlite, "LARGE", size)
        with Pool.open(path) as pool:
            view = pool.view()
            excluded = frozenset(i for i in pool.ids[:3])
            asked = [*QUERIES, Query("red fish", exclude=excluded, id="less")]
            chosen.append(make_selector(name).fit(view, kit).select_many(asked, 4))
    assert chosen[0] == chosen[1]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", ["knn", "mmr", "bm25"])
def test_selecting_reads_what_is_shown(path: Path, name: str, read: list[int]) -> None:
    with Pool.open(path) as pool:  # what is counted once
        pool.add(examples(*range(1000, 3000)))
        make_selector(name).fit(pool.view(), Kit(EMBEDDER))
    with Pool.open(path) as pool:
        read.clear()
        pool.add(examples(9000))
        chooser = make_selector(name).fit(pool.view(), Kit(EMBEDDER))
        chooser.select_many([Query("red fish 3"), Query("red bird", exclude=frozenset(["nowhere"]), id="q")], 4)
    assert sum(read) <= 60


def test_selecting_after_rows_were_removed_copies_no_matrix(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool.open(path) as pool:
        make_selector("knn").fit(pool.view(), Kit(EMBEDDER))
        pool.remove(pool.ids[3:6])
        monkeypatch.delattr(FlatIndex, "matrix")
        for name in ("knn", "mmr"):
            assert len(make_selector(name).fit(pool.view(), Kit(EMBEDDER)).select(QUERIES[0], 3)) == 3


CHANGE = st.tuples(
    st.sampled_from(["add", "remove", "update", "meta", "label"]), st.lists(st.integers(0, 50), max_size=5)
)


@settings(max_examples=50, deadline=None)
@given(changes=st.lists(CHANGE, min_size=1, max_size=6))
def test_earlier_views_still_show_what_they_showed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, list[int]]]
) -> None:
    before, _sqlite.LARGE = _sqlite.LARGE, 1
    try:
        pool, views = Pool.open(tmp_path_factory.mktemp("pool") / "demos.db"), []
        pool.add([*examples(*range(10)), Example("waits", "")])
        for change, numbers in changes:
            view = pool.view(labeled=None)
            expected = [*pool]
            views.append((view, expected))
            chosen = list(dict.fromkeys(expected[n % len(expected)].id for n in numbers)) if expected else []
            if change == "add":
                pool.add(examples(*numbers))
            elif change == "remove":
                pool.remove(chosen)
            elif change == "label":
                pool.label({e.id: "y" for e in expected if not e.output})
            for example_id in chosen[:2]:
                if change == "update":
                    pool.update(example_id, input=f"changed {example_id}")
                elif change == "meta":
                    pool.update(example_id, meta={"changed": len(views)})
        for view, expected in views:
            fresh = view.only(view.rows)
            assert fresh.examples_at(view.rows) == [*fresh.examples]
            assert sorted(fresh.ids) == sorted(e.id for e in expected)
    finally:
        _sqlite.LARGE = before


def test_inputs_that_wait_for_a_label_do_not_keep_files_from_being_used(path: Path) -> None:
    with Pool.open(path) as pool:
        for _ in range(2):
            view = pool.view()
            assert view.vectors(EMBEDDER).shape == (41, 16)
            view.term_index("words", "", 1.5, 0.75)
            everything = pool.view(labeled=None)
            assert everything.vectors(EMBEDDER).shape == (42, 16)
            everything.term_index("words", "", 1.5, 0.75)
            sizes = {f.suffix: f.stat().st_size for f in path.parent.iterdir()}
            assert sizes[".vectors"] == 41 * 16 * 4
        assert sizes[".terms"]
        pool.label({pool.get(pool.ids[-1]).id: "x"})
        assert pool.view().vectors(EMBEDDER).shape == (42, 16)
        assert len([*pool.path.parent.glob("*.vectors")]) == 1  # type: ignore[union-attr]


@pytest.mark.usefixtures("large")
def test_what_another_process_has_changed_is_refused_in_one_line(path: Path) -> None:
    with Pool.open(path) as pool, Pool.open(path) as other:
        view = pool.view()
        other.remove([pool.ids[3]])
        other.update(pool.ids[5], meta={"half": 7})
        assert view.examples_at(view.rows[:3])
        for row in (3, 6):
            with pytest.raises(PoolError, match="changed by another process after it was looked at; run it again"):
                view.examples_at(view.rows[row : row + 1])
        assert len(pool.view().examples) == len(view) - 1


@pytest.mark.usefixtures("large")
def test_a_handle_or_id_that_is_not_in_the_view_is_refused(path: Path) -> None:
    with Pool.open(path) as pool:
        part = pool.view(where={"half": 1})
        out = pool.view(where={"half": 0})
        assert part.row_of(out.ids[0]) is None
        with pytest.raises(DataError, match="not in this view"):
            part.examples_at(out.rows[:1])
        with pytest.raises(DataError, match="not in this view"):
            part.examples_of(out.ids[:1])


@pytest.mark.usefixtures("large")
def test_a_pool_whose_texts_were_spelled_otherwise_is_looked_through_once(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM facts WHERE name = ?", (_sqlite.SPELLED,))
        (text,) = raw.execute("SELECT max(number) + 1 FROM texts").fetchone()
        raw.execute("INSERT INTO texts VALUES (?, x'00')", (text,))
        raw.execute("UPDATE examples SET text = ?, input = '\"  red   \"' WHERE seq = 3", (text,))
    for held in (True, True, False):  # numbered anew, found to be well, believed
        with Pool.open(path) as pool:
            view = pool.view()
            assert (view._held is not None) == held
            assert view.examples_at(np.array([3]))[0].text == "red"
            assert view._texts.min() > 0


def test_the_indexes_of_large_pools_are_used(path: Path) -> None:
    from iclkit.pool._examples import _TRACES

    with sqlite3.connect(path) as raw:
        for condition, index in ((_TRACES, "traces"), ("output = ''", "unlabelled")):
            (line,) = raw.execute(f"EXPLAIN QUERY PLAN SELECT seq FROM examples WHERE {condition}").fetchall()
            assert f"USING COVERING INDEX {index}" in line[3] or f"USING INDEX {index}" in line[3]
        (line,) = raw.execute("EXPLAIN QUERY PLAN SELECT seq, text FROM examples").fetchall()
        assert "COVERING INDEX examples_by_text" in line[3]
