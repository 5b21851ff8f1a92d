"""The pool: what goes in comes out, once; changes are whole or not at all; foreign files are refused in one line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iclkit.datasets import read_examples
from iclkit.errors import DataError, ModelError, PoolError, UnknownName, UsageError
from iclkit.pool import Pool, example_dict
from iclkit.pool._key_transforms import input_hash
from iclkit.pool._schema import MIGRATIONS, READABLE
from iclkit.records import Example, clean_text, digest
from iclkit.testing import HashEmbedder

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
inputs = st.one_of(texts, st.dictionaries(st.sampled_from("abc"), texts, min_size=1, max_size=3))
values = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), texts, st.lists(texts, max_size=2))
examples = st.builds(
    Example,
    inputs,
    texts,
    st.sampled_from(["", "sst2", "trec"]),
    st.lists(texts, max_size=3).map(tuple),
    st.dictionaries(texts, values, max_size=2),
)


def some(n: int, task: str = "") -> list[Example]:
    return [Example(f"input number {i}", f"output {i % 3}", task, meta={"n": i}) for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.lists(examples, max_size=8))
def test_what_is_added_comes_out_as_it_was_in_the_order_given(given_: list[Example]) -> None:
    first = {e.id: e for e in reversed(given_)}
    order = list(dict.fromkeys(e.id for e in given_))
    with Pool.of(given_) as pool:
        assert list(pool) == [first[i] for i in order]
        assert [e.meta for e in pool] == [dict(first[i].meta) for i in order]
        assert [list(e.input) for e in pool] == [list(first[i].input) for i in order]  # fields keep their order
        assert pool.ids == tuple(order)
        assert len(pool) == len(order)


@settings(max_examples=50, deadline=None)
@given(st.lists(examples, max_size=6))
def test_adding_twice_adds_nothing(given_: list[Example]) -> None:
    with Pool.of(given_) as pool:
        before = pool.revision, list(pool)
        report = pool.add(given_)
        assert (report.added, report.known) == (0, len(given_))
        assert report.ids == tuple(e.id for e in given_)
        assert (pool.revision, list(pool)) == before


class AgainstAList(RuleBasedStateMachine):
    """Random changes to a pool and to a plain list leave both equal."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.model = Pool.open(":memory:"), {}
        self.revision, self.embedder = 0, HashEmbedder(8)

    @rule(number=st.integers(0, 12), output=st.sampled_from("xy"))
    def add(self, number: int, output: str) -> None:
        example = Example(f"text {number}", output)
        self.pool.add([example])
        self.model.setdefault(example.id, example)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            chosen = data.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1))
            assert self.pool.remove(chosen) == len(set(chosen))
            for i in set(chosen):
                del self.model[i]

    @rule(data=st.data(), output=st.sampled_from("xyz"))
    def update(self, data: st.DataObject, output: str) -> None:
        if self.model:
            old = data.draw(st.sampled_from(sorted(self.model)))
            new = Example(self.model[old].input, output)
            if new.id != old and new.id in self.model:
                with pytest.raises(DataError, match="would become equal"):
                    self.pool.update(old, output=output)
            else:
                assert self.pool.update(old, output=output) == new
                if new.id != old:
                    del self.model[old]
                    self.model[new.id] = new

    @rule()
    def embed(self) -> None:
        self.pool.embed(self.embedder)

    @invariant()
    def same_content(self) -> None:
        assert list(self.pool) == list(self.model.values())
        assert self.pool.revision >= self.revision
        self.revision = self.pool.revision
        assert not [p for p in self.pool.check() if "outputs" not in p]

    @invariant()
    def same_vectors(self) -> None:
        view = self.pool.view()
        expected = self.embedder.encode_documents([e.text for e in view.examples])
        np.testing.assert_array_equal(view.vectors(self.embedder), expected)


AgainstAList.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestAgainstAList = AgainstAList.TestCase


def test_a_pool_is_kept_in_its_file(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(some(5))
    with Pool.open(tmp_path / "demos.db", create=False) as pool:
        assert list(pool) == some(5)
        assert pool.revision == 1


def test_a_bad_example_leaves_nothing_behind() -> None:
    with Pool.open(":memory:") as pool:
        pool.add(some(2))
        for bad in (
            Example("x", "y", meta={"n": float("nan")}),
            Example("lone \ud800 surrogate", "y", id="0"),
            Example({"a": 3}, "y", id="0"),  # type: ignore[dict-item]
            Example("x", "y", meta={"n": {1, 2}}),  # type: ignore[dict-item]
        ):
            with pytest.raises(DataError, match=r"^example 4 .* cannot be stored"):
                pool.add([*some(3), bad])
            assert list(pool) == some(2)
            assert pool.revision == 1


def test_one_id_cannot_stand_for_two_contents() -> None:
    with Pool.of([Example("a", "b", id="mine")]) as pool:
        pool.add([Example("a", "b", id="mine")])
        with pytest.raises(DataError, match="stands for another example"):
            pool.add([Example("a", "c", id="mine")])
        with pytest.raises(DataError, match="stands for another example"):
            pool.add([Example("new", "c", id="n"), Example("other", "c", id="n")])
        assert len(pool) == 1


def test_get_takes_a_unique_prefix_and_offers_the_nearest_id() -> None:
    with Pool.of([Example("a", "1", id="abc1"), Example("b", "1", id="abc2"), Example("c", "1", id="xyz")]) as pool:
        assert pool.get("x").input == "c"
        assert pool.get("abc2").input == "b"
        with pytest.raises(DataError, match="begins several ids: abc1, abc2"):
            pool.get("ab")
        with pytest.raises(DataError, match="the nearest id is xyz"):
            pool.get("xyq")
        for nothing in ("q", "", "%", "_bc1"):
            with pytest.raises(DataError):
                pool.get(nothing)


def test_remove_is_all_or_nothing_and_leaves_a_tombstone_without_content(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add(some(4))
        pool.embed(HashEmbedder(8))
        with pytest.raises(DataError, match="no example"):
            pool.remove([pool.ids[0], "nowhere"])
        assert len(pool) == 4
        gone = pool.ids[1]
        assert pool.remove([gone, gone[:20]]) == 1
        assert gone not in pool.ids
        assert pool.stats().removed == 1
        assert pool.add([some(4)[1]]).revived == 1
        assert pool.ids[-1] == gone
        pool.remove([gone])
    with sqlite3.connect(tmp_path / "p.db") as raw:
        assert raw.execute("SELECT id, reason FROM tombstones").fetchall()[0] == (gone, "removed")
        assert raw.execute("SELECT count(*) FROM vectors").fetchone() == (3,)


def test_update_of_metadata_keeps_the_id_and_of_content_gives_a_new_one() -> None:
    with Pool.of(some(3)) as pool:
        old = pool.ids[0]
        assert pool.update(old, meta={"checked": True}).id == old
        assert pool.get(old).meta == {"checked": True}
        new = pool.update(old, output="better")
        assert new == Example("input number 0", "better", meta={"checked": True})
        assert pool.ids[-1] == new.id
        assert old not in pool.ids
        with pytest.raises(DataError, match="would become equal"):
            pool.update(pool.ids[0], input="input number 0", output="better")


def test_views_filter_by_task_and_metadata_and_do_not_change() -> None:
    with Pool.of([*some(4, "a"), *some(4, "b")]) as pool:
        view = pool.view()
        pool.add([Example("later", "x")])
        assert len(view) == 8
        assert view.revision < pool.revision
        assert [e.task for e in pool.view(task="b").examples] == ["b"] * 4
        assert [e.task for e in pool.view(where={"n": 2}).examples] == ["a", "b"]
        assert pool.view(where={"n": "2"}).ids == pool.view(where={"n": 2}).ids
        assert len(pool.view(where={"n": True})) == 0  # True is not 1
        assert len(pool.view(where={"missing": None})) == 0
        part = pool.view(task="b", where={"n": 3})
        assert part.row_of(part.ids[0]) == view.row_of(part.ids[0]) == part.rows[0]
        assert part.row_of(view.ids[0]) is None
        assert part.hash != view.hash
        assert pool.view(task="b", where={"n": 3}).hash == part.hash


def test_equal_texts_are_embedded_once_and_known_ones_not_again(tmp_path: Path) -> None:
    embedder = HashEmbedder(8)
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([Example("same", str(i)) for i in range(5)])
        pool.add([Example({"a": "sa", "b": "me"}, "x"), Example("sa\nme", "x")])  # the same text in another form
        assert pool.embed(embedder) == 2
        assert embedder.calls["documents"] == 2
        pool.update(pool.ids[0], output="another")
        assert pool.embed(embedder) == 0
    with Pool.open(tmp_path / "p.db") as pool:
        assert pool.view().vectors(embedder).shape == (7, 8)
        assert pool.embed(HashEmbedder(16)) == 2
    assert embedder.calls["documents"] == 2


@pytest.mark.parametrize("fault", ["shape", "norm", "nan"])
def test_vectors_that_are_no_unit_rows_are_refused(fault: str) -> None:
    class Broken(HashEmbedder):
        def encode_documents(self, texts, progress=None):
            rows = super().encode_documents(texts)
            return {"shape": rows[:, :-1], "norm": rows * 1.01, "nan": rows * np.nan}[fault]

    with Pool.of(some(3)) as pool, pytest.raises(ModelError, match="embedder 'hash'"):
        pool.embed(Broken())


def test_files_that_are_no_pools_are_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    text, other, folder = tmp_path / "a.txt", tmp_path / "b.db", tmp_path / "c.db"
    text.write_text("hello, I am not a database")
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE mine (x)")
    folder.mkdir()
    for path, why in ((text, "not an SQLite file"), (other, "not a pool"), (folder, "is a folder")):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(PoolError, match=why) as caught:
            Pool.open(path)
        assert "\n" not in str(caught.value)
        assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_missing_pool_is_not_made_unless_asked(tmp_path: Path) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(PoolError, match="iclkit pool add"):
            Pool.open(tmp_path / "no.db", **options)
    with pytest.raises(PoolError, match="there is no folder"):
        Pool.open(tmp_path / "nowhere" / "p.db")
    assert not list(tmp_path.iterdir())


def test_a_pool_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    Pool.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(PoolError, match=rf"newer iclkit \(pool format {len(MIGRATIONS) + 1}.*upgrade"):
        Pool.open(path)


@pytest.mark.parametrize("seen", range(len(MIGRATIONS)))
def test_an_older_pool_is_brought_up_to_date_with_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    from iclkit.pool import _schema

    path = tmp_path / "p.db"
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "MIGRATIONS", MIGRATIONS[:seen])
        with Pool.open(path) as pool:
            if seen:
                pool.add(some(3))
    if 0 < seen < READABLE:
        with pytest.raises(PoolError, match="older pool format"):
            Pool.open(path, read_only=True)
    with Pool.open(path) as pool:
        assert list(pool) == (some(3) if seen else [])
        pool.add(some(4))
        assert pool.embed(HashEmbedder(4)) == 4
        assert pool.check() == []


def test_a_damaged_file_is_found_and_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add(some(500))
    whole = path.read_bytes()
    path.write_bytes(whole[:20000] + b"\xff" * 60000 + whole[80000:])
    with Pool.open(path) as pool:
        (problem,) = pool.check()
        assert problem.startswith("the file is damaged")
        assert "\n" not in problem
    path.write_bytes(whole[:16384] + b"\xff" * (len(whole) - 16384))
    with Pool.open(path) as pool, pytest.raises(PoolError, match=r"cannot be used: .*malformed"):
        list(pool)
    path.write_bytes(whole[:100])
    with pytest.raises(PoolError, match="cannot use the pool"):
        Pool.open(path)


def test_a_read_only_pool_answers_and_refuses_changes(tmp_path: Path) -> None:
    path, embedder = tmp_path / "p.db", HashEmbedder(8)
    with Pool.open(path) as pool:
        pool.add(some(3))
    before = {f.name for f in tmp_path.iterdir()}
    with Pool.open(path, read_only=True) as pool:
        assert pool.view().vectors(embedder).shape == (3, 8)
        for change in (lambda: pool.add(some(4)), lambda: pool.remove([pool.ids[0]])):
            with pytest.raises(PoolError, match="for reading only"):
                change()
    assert {f.name for f in tmp_path.iterdir() if f.suffix in (".vectors", ".rows")} <= before


def test_a_closed_pool_says_so() -> None:
    pool = Pool.of(some(2))
    view = pool.view()
    pool.close()
    assert len(view) == 2
    with pytest.raises(PoolError, match="is closed"):
        len(pool)


def test_check_finds_what_was_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add([*some(3), Example("", "x"), Example("Twice!", "a"), Example("twice", "b")])
        pool.embed(HashEmbedder(8))
        first = pool.ids[0]
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE examples SET output = 'forged' WHERE id = ?", (first,))
        raw.execute("UPDATE vectors SET vector = zeroblob(32) WHERE text = 2")
        raw.execute("UPDATE vectors SET vector = zeroblob(3) WHERE text = 3")
    with Pool.open(path) as pool:
        found = "\n".join(pool.check())
        for expected in (f"{first} does not have", "empty input", "2 outputs: 'a' and 'b'", "2 vectors of embedder"):
            assert expected in found
        assert pool.embed(HashEmbedder(8)) == 1  # a vector of the wrong size is made again


def test_stats_count(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([*some(4, "a"), *some(2, "b")])
        pool.embed(HashEmbedder(8))
        pool.remove(pool.ids[:1])
        stats = pool.stats()
        assert (stats.examples, stats.removed, stats.revision) == (5, 1, 2)
        assert stats.tasks == {"a": 3, "b": 2}
        assert stats.outputs == {"output 1": 2, "output 0": 2, "output 2": 1}
        assert list(stats.vectors.values()) == [4]  # both tasks share their texts
        assert stats.size > 0


hard = [
    Example("plain", "out", "t", meta={"n": 1}),
    Example('quotes " and, commas\nand lines', "a\tb"),
    Example({"premise": "p {x}", "hypothesis": "h"}, "yes", choices=("yes", "no")),
    Example("émoji 🦊 \u2028 separators", "ü"),
]


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
hostile = st.one_of(
    any_text,
    st.sampled_from(
        ["", "=1+1", "+cmd", "-2", "@x", '"', '""', "a\nb\n\nc", "\0", "a\u2028b\u2029c\u0085d", "\ufeffx", "007",
         "1e5", "true", "null", "NaN", "[]", "{}", '{"a": "b"}', '{"a": 1}', '"quoted"', '["a"]', "\\", ",;\t|",
         "\x1b[2J", "1" * 5000, "{" * 2000, "nicht's", "\U0001f469\u200d\U0001f469", "'=1"]
    ),
)  # fmt: skip
metadata = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(-1e308, 1e308), hostile
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(hostile, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
names = st.one_of(any_text, st.sampled_from(["a.b", "input", "id", "", "caf\u00e9", "two words"])).map(clean_text)
hostile_examples = st.builds(
    Example,
    st.one_of(hostile, st.dictionaries(names, hostile, max_size=3)),
    hostile,
    hostile,
    st.lists(hostile, max_size=3).map(tuple),
    st.dictionaries(hostile, metadata, max_size=3),
    st.one_of(st.just(""), st.sampled_from(["mine", "row-1", "0", "=1", "caf\u00e9 "])),
)


@pytest.mark.parametrize("kind", ["jsonl", "json-lines-on-stdout", "csv", "tsv", "parquet"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(given_=st.lists(hostile_examples, min_size=1, max_size=5, unique_by=lambda e: e.id))
def test_every_export_reads_back_equal(
    given_: list[Example], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Pool.of(given_) as pool:
        rows = list(pool)
        path = tmp_path_factory.mktemp("export") / "out.jsonl"
        if kind == "json-lines-on-stdout":
            path.write_text("".join(json.dumps(example_dict(e)) + "\n" for e in rows))
        elif kind == "tsv":  # as a spreadsheet writes it
            pool.export(path.with_suffix(".csv"))
            table = path.with_suffix(".csv").read_text("utf-8")
            path = path.with_suffix(".tsv")
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(
                    csv.reader(io.StringIO(table, newline=""))
                )
        else:
            path = path.with_suffix(f".{kind}")
            assert pool.export(path) == len(rows)
    back = read_examples(path)
    assert back == rows
    assert [e.meta for e in back] == [e.meta for e in rows]
    assert [list(e.input) for e in back] == [list(e.input) for e in rows]  # fields keep their order
    with Pool.of(back) as again:
        assert list(again) == rows


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_has_a_column_for_each_part_of_an_example(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    with Pool.of(hard) as pool:
        pool.export(path)
    if kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [r["input"] for r in rows] == [e.input if isinstance(e.input, str) else json.dumps(e.input) for e in hard]
    assert [r["id"] for r in rows] == [e.id for e in hard]
    assert [r["choices"] for r in rows] == [json.dumps([*e.choices]) for e in hard]


def test_a_row_of_an_export_that_was_edited_is_another_example(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with Pool.of(hard) as pool:
        pool.export(path)
        path.write_text(path.read_text().replace("plain", "edited"))
        edited = read_examples(path)
        assert edited[0] == Example("edited", "out", "t", meta={"n": 1})
        assert edited[1:] == hard[1:]
        assert pool.add(edited).added == 1
        assert pool.check() == []
        path.write_text(path.read_text().replace(",out,", ",,"))
        with pytest.raises(DataError, match="line 2: field 'output' is empty"):
            read_examples(path)


def test_columns_added_to_an_export_are_kept_on_request_and_a_task_replaces_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({**example_dict(e), "note": "n"}) + "\n" for e in hard))
    assert read_examples(path) == hard
    assert [e.meta for e in read_examples(path, meta=["note"])] == [{**e.meta, "note": "n"} for e in hard]
    assert read_examples(path, task="other") == [replace(e, task="other", id="") for e in hard]


def test_a_cell_over_the_limit_of_the_csv_module_reads_back(tmp_path: Path) -> None:
    long = Example("x" * 140_000, "y", meta={"long": "z" * 140_000})
    with Pool.of([long]) as pool:
        pool.export(tmp_path / "out.csv")
    assert read_examples(tmp_path / "out.csv") == [long]


def test_an_export_may_go_into_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with Pool.of(hard) as pool:
        pool.export(pipe, "csv")
        reader.join()
        pool.export(tmp_path / "out.csv")
    assert read == [(tmp_path / "out.csv").read_bytes()]
    assert pipe.is_fifo()


def test_an_export_takes_the_longest_name_a_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".csv")
    with Pool.of(hard) as pool:
        pool.export(path)
        with pytest.raises(DataError, match="cannot write"):
            pool.export(tmp_path / ("x" * 300 + ".csv"))
    assert read_examples(path) == hard


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with Pool.of(hard) as pool:
        with pytest.raises(UnknownName, match="Did you mean 'jsonl'"):
            pool.export(path, "jsonnl")
        with pytest.raises(DataError, match="cannot write"):
            pool.export(tmp_path / "nowhere" / "x.csv")
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["out.jsonl"]


def test_dedupe_keeps_the_oldest_and_dry_run_changes_nothing() -> None:
    same = [
        Example("Hello, world", "a"),
        Example("hello world!", "A"),
        Example("hello world", "b"),
        Example("?!", "a"),
        Example("!?", "a"),
    ]
    with Pool.of(same) as pool:
        assert pool.dedupe(apply=False).groups == ((same[0].id, same[1].id),)
        assert len(pool) == 5
        assert pool.dedupe().removed == 1
        assert pool.ids == tuple(e.id for n, e in enumerate(same) if n != 1)
        assert pool.dedupe().removed == 0
        with pytest.raises(UsageError, match="above 0"):
            pool.dedupe(near=1.5)


def old_pool(path: Path, rows: Sequence[tuple[str, str, str, str, str]]) -> Path:
    """A pool as it was written when inputs were numbered by the text they came with: (id, input, output, choices,
    the text that was embedded)."""
    with Pool.open(path) as pool:
        pool.add([Example("kept", "y")])
        pool.embed(HashEmbedder(8))
    with sqlite3.connect(path) as raw:
        for id_, given_, output, choices, text in rows:
            number = raw.execute(
                "INSERT INTO texts (hash) VALUES (?)", (hashlib.blake2b(text.encode(), digest_size=16).digest(),)
            ).lastrowid
            raw.execute(
                "INSERT INTO examples (id, input, output, task, choices, meta, text, revision) "
                "VALUES (?, ?, ?, 'nli', ?, '{}', ?, 1)",
                (id_, given_, output, choices, number),
            )
            raw.execute(
                "INSERT INTO vectors VALUES (1, ?, ?)", (number, HashEmbedder(8).encode_documents([text])[0].tobytes())
            )
    return path


def test_an_old_pool_is_searched_by_the_texts_its_examples_have_now(tmp_path: Path) -> None:
    pair, named = (
        '{"premise":"It rains.","hypothesis":"It is wet."}',
        {"hypothesis": "It is wet.", "premise": "It rains."},
    )
    path = old_pool(
        tmp_path / "old.db",
        [
            (Example(named, "yes", "nli").id, pair, "yes", "[]", "It rains.\nIt is wet."),
            (Example("cafe\u0301 ", "yes ", "nli").id, '"cafe\u0301 "', "yes ", "[]", "cafe\u0301 "),
            ("d1ac1c40b5d5b0e1a1e0bd6a5b8d8d10", '"q"', "a ", '["a ","b"]', "q"),
        ],
    )
    embedder = HashEmbedder(8)
    with Pool.open(path, read_only=True) as pool:
        want = embedder.encode_documents(["kept", "It is wet.\nIt rains.", "caf\u00e9", "q"])
        assert np.allclose(pool.view().vectors(embedder), want)
    with Pool.open(path) as pool:
        examples = list(pool)
        assert [e.text for e in examples] == ["kept", "It is wet.\nIt rains.", "caf\u00e9", "q"]
        assert [e.output for e in examples] == ["y", "yes", "yes", "a"]
        assert np.allclose(pool.view().vectors(embedder), want)
        assert pool.embed(embedder) == 0
        assert pool.stats().outputs == {"yes": 2, "a": 1, "y": 1}
        assert pool.add([Example(named, "yes", "nli"), Example("caf\u00e9", "yes", "nli")]).known == 2
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM texts").fetchone() == (4,)
        assert raw.execute("SELECT count(*) FROM vectors").fetchone() == (4,)


def test_ids_of_an_old_pool_stay_and_are_no_problem(tmp_path: Path) -> None:
    old = digest(["q", "a", "nli", ["a ", "b"]])  # options were hashed as they came
    path = old_pool(tmp_path / "old.db", [(old, '"q"', "a ", '["a ","b"]', "q")])
    with Pool.open(path) as pool:
        assert pool.get(old).choices == ("a", "b")
        assert pool.check() == []
        pool.update(old, meta={"seen": True})
        assert pool.get(old).meta == {"seen": True}


def test_keys_an_lm_wrote_stay_when_texts_are_numbered_anew(tmp_path: Path) -> None:
    given_ = '{"premise":"It rains.","hypothesis":"It is wet."}'
    path = old_pool(tmp_path / "old.db", [("x", given_, "yes", "[]", "It rains.\nIt is wet.")])
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO transforms VALUES (1, 'f', 'skills')")
        raw.execute("INSERT INTO keys VALUES (1, ?, 0, 'entailment', 0)", (input_hash(json.loads(given_)),))
    with Pool.open(path) as pool:
        pool.view()
        assert pool.stored_keys("x") == [("skills", 0, "entailment")]
        pool.remove(["x"])
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM keys").fetchone() == (0,)
