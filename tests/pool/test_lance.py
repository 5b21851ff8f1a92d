"""Pools in LanceDB: the same answers as a pool in a file, and one line for what goes wrong."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit.cli import main
from iclkit.errors import ChangedElsewhere, DataError, NeedError, PoolError, UsageError
from iclkit.pool import (
    FieldKey,
    Pool,
    Scope,
    _lance,
    _lance_vectors,
    _sqlite,
    _vectors,
    as_place,
    copy_view,
    in_lance,
    migrate,
)
from iclkit.pool._index import FlatIndex
from iclkit.pool._lance_vectors import LanceIndex
from iclkit.records import Example, Query
from iclkit.selectors import BUILTINS, Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder, OverlapReranker

lancedb = pytest.importorskip("lancedb", reason="needs the extra lance")
EMBEDDER = HashEmbedder(16)


def examples(*numbers: int) -> list[Example]:
    colors = ("red", "green", "blue", 'it\'s "old"')
    return [
        Example(
            f"{colors[n % 4]} fish {n}", "xy"[n % 2], f"task {n % 2}'s", meta={"half": n % 2, "of": {"third": n % 3}}
        )
        for n in numbers
    ]


FISH = [e.id for e in examples(*range(60))]


def fill(pool: Pool) -> Pool:
    pool.add(examples(*range(30)))
    pool.add([Example("red fish 0", "z"), *examples(*range(25, 40)), Example("chosen", "x", id="my id's")])
    pool.embed(EMBEDDER)
    pool.view().keys(FieldKey())
    pool.remove(FISH[3:6])
    return pool


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools")
    for name in ("a.db", "b.lance"):
        fill(Pool.open(folder / name)).close()
    return folder


@pytest.fixture
def both(filled: Path, tmp_path: Path) -> Iterator[tuple[Pool, Pool]]:
    shutil.copytree(filled, tmp_path / "pools")
    with Pool.open(tmp_path / "pools" / "a.db") as file, Pool.open(tmp_path / "pools" / "b.lance") as lance:
        yield file, lance


def state(pool: Pool) -> object:
    view = pool.view(labeled=None)
    stats = pool.stats()
    texts = {t: n for n, t in enumerate(dict.fromkeys(view._texts.tolist()))}
    return (
        [*view.examples],
        view.rows.tolist(),
        [texts[t] for t in view._texts.tolist()],
        view.vectors(EMBEDDER).tolist(),
        (stats.examples, stats.removed, stats.tasks, stats.outputs, [*stats.vectors.values()]),
        pool.count_values("task"),
        [
            pool.find(t, newest_first=new, start=1, limit=3) and pool.find(t).total
            for t in ("", "red 1")
            for new in (0, 1)
        ],
        [e.id for e in pool.find("old", task="task 1's", limit=2).examples],
        pool.check(),
        [pool.stored_keys(i) for i in view.ids[:2]],
    )


CHANGES: dict[str, Callable[[Pool], object]] = {
    "nothing": lambda pool: len(pool),
    "add": lambda pool: pool.add(examples(3, 38, 50, 51)),
    "add what is there": lambda pool: pool.add(examples(8, 9)),
    "add one twice": lambda pool: pool.add(examples(55, 55)),
    "update": lambda pool: pool.update(FISH[7], output="new"),
    "update metadata": lambda pool: pool.update(FISH[7], meta={"a": [1, None]}),
    "annotate": lambda pool: pool.annotate(FISH[8:11], {"of.third": 7}, ["half"]),
    "remove": lambda pool: pool.remove(["my id", FISH[0]]),
    "put back": lambda pool: pool.exchange(None, examples(3)[0]),
    "exchange": lambda pool: pool.exchange(examples(9)[0], examples(58)[0]),
    "label": lambda pool: (pool.add([Example("open", "")]), pool.label({Example("open", "").id: "x"})),
    "dedupe": lambda pool: (pool.add([Example("RED fish, 0!", "z")]), pool.dedupe()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_does_what_it_does_to_a_file(change: str, both: tuple[Pool, Pool]) -> None:
    file, lance = both
    for pool in both:
        pool.view()
    before = lance.revision
    assert CHANGES[change](lance) == CHANGES[change](file)
    assert state(lance) == state(file)
    assert (lance.revision > before) == (change not in ("nothing", "add what is there"))
    for example_id in (FISH[3], FISH[7], FISH[9], Example("open", "").id):
        assert was(lance, example_id) == was(file, example_id)


def was(pool: Pool, example_id: str) -> object:
    try:
        return pool.became(example_id)
    except DataError as error:
        return str(error).replace(str(pool.path), "POOL")


REFUSED: dict[str, Callable[[Pool], object]] = {
    "unknown id": lambda pool: pool.remove([FISH[7], "nowhere"]),
    "several ids": lambda pool: pool.get(""),
    "another content": lambda pool: pool.add([*examples(57), Example("else", "x", id="my id's")]),
    "another content, twice": lambda pool: pool.add([Example("1", "x", id="new"), Example("2", "x", id="new")]),
    "no text": lambda pool: pool.add([*examples(57), Example(3, "x")]),  # type: ignore[arg-type]
    "changed": lambda pool: pool.exchange(Example("red fish 0", "x", "else", id=FISH[0]), None),
    "equal": lambda pool: pool.exchange(examples(9)[0], examples(10)[0]),
    "no label": lambda pool: pool.label({FISH[8]: "x"}),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_refused_changes_nothing(change: str, both: tuple[Pool, Pool]) -> None:
    said = []
    for pool in both:
        before = state(pool), pool.revision
        with pytest.raises((DataError, ChangedElsewhere)) as error:
            REFUSED[change](pool)
        said.append(str(error.value).replace(str(pool.path), "POOL"))
        assert (state(pool), pool.revision) == before
    assert said[0] == said[1]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held: examples are read when they are shown, and LanceDB searches."""
    monkeypatch.setattr(_lance, "LARGE", 1)
    monkeypatch.setattr(_lance_vectors, "HELD", 0)


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize(
    "names",
    [("knn", "bm25", "mmr", "vote-k", "skill-knn"), pytest.param(BUILTINS, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_every_selector_picks_the_same(names: tuple[str, ...], both: tuple[Pool, Pool]) -> None:
    queries = [
        Query("red fish 3"),
        Query("a blue one", where={"half": 1}, exclude=frozenset(FISH[6:20])),
        Query("nothing like it", where={"of.third": 2}),
    ]
    kit = Kit(EMBEDDER, FakeLM(), labels=("x", "y", "z"), seed=3, reranker=OverlapReranker())
    for name in names:
        if name != "fixed":
            ours, theirs = (make_selector(name).fit(p.view(), kit).select_many(queries, 4) for p in both)
            assert ours == theirs, name


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("seed", range(3))
def test_search_is_exact_with_ties_exclusions_and_filters(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with Pool.open(tmp_path / "p.lance") as pool:  # many texts are alike but for case, and have one vector
        pool.add(Example(f"{'word' if n % 2 else 'Word'} {n % 7} {n % 3}", f"{n}") for n in range(300))
        pool.view().text_vectors(EMBEDDER, [f"key {n}" for n in range(50)])  # which no row has
        view = pool.view()
        index, flat = view.index(EMBEDDER), FlatIndex.of(view.vectors(EMBEDDER), view.rows)
        assert isinstance(index, LanceIndex)
        queries = EMBEDDER.encode_queries([f"word {n}" for n in range(12)])
        scopes = [
            Scope(
                frozenset(rng.choice(view.rows, int(rng.integers(0, 290))).tolist()),
                np.sort(rng.choice(view.rows, 100, replace=False)) if n % 2 else None,
            )
            for n in range(12)
        ]
        for k in (1, 10, 400):
            for ours, theirs in zip(index.nearest(queries, k, scopes), flat.nearest(queries, k, scopes), strict=True):
                assert ours.rows.tolist() == theirs.rows.tolist()
                assert ours.scores.tolist() == theirs.scores.tolist()


@pytest.mark.usefixtures("searched")
def test_a_view_stays_as_it_was_whatever_is_changed_by_whomever(tmp_path: Path) -> None:
    with fill(Pool.open(tmp_path / "p.lance")) as pool, Pool.open(tmp_path / "p.lance") as other:
        view = pool.view()
        before, rows = [*view.examples], view.rows
        copied = copy.copy(view)  # by its path and revision
        other.remove(FISH[10:20])
        other.annotate([FISH[20]], {"half": 9})
        other.add(examples(52))
        assert view.examples_at(rows) == before == [*copied.examples]
        assert view.row_of(FISH[12]) is not None
        assert len(pool.view()) == len(before) - 9
        assert pool.add(examples(52)).known == 1
        pool.compact()
        assert len(pool) == len(before) - 9
        with pytest.raises(PoolError, match="not kept any more"):
            Pool.open(tmp_path / "p.lance")._reader.examples.at(rows, view.revision)


@pytest.mark.usefixtures("searched")
def test_an_approximate_index_says_its_recall_and_is_refused_where_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lance_vectors, "SAMPLE", 16)
    with Pool.open(tmp_path / "p.lance") as pool:
        pool.add(Example(f"text {n} of {n % 9}", "x") for n in range(300))
        built = pool.build_index(EMBEDDER, lists=8, recall=0.9)
        assert built.levels[0].recall >= 0.9
        assert pool.stats().indexes == {EMBEDDER.name: str(built)}
        with Pool.open(tmp_path / "p.lance") as again:
            selection = make_selector("knn").fit(again.view(), Kit(EMBEDDER)).select(Query("text 5 of 5"), 5)
        assert any("recall" in note for note in selection.notes)
        pool.add([Example("text 300 of 5", "y")])
        near = make_selector("knn").fit(pool.view(), Kit(EMBEDDER)).select(Query("text 300 of 5"), 1)
        assert near.picks[0].example_id == Example("text 300 of 5", "y").id
        lancedb.connect(tmp_path / "p.lance").open_table(pool._reader.vectors._names()[0]).drop_index("vector_idx")
        with pytest.raises(PoolError, match="removed by another program; make it again"):
            pool.view().approximate(EMBEDDER)
        assert pool.drop_index(EMBEDDER)
        assert pool.view().approximate(EMBEDDER) is None


def test_a_pool_is_moved_there_and_back_with_all_that_is_in_it(tmp_path: Path) -> None:
    with fill(Pool.open(tmp_path / "a.db")) as pool:
        pool.update(FISH[7], output="new")
        before, uid = state(pool), pool.uid
        with pool._table.contents() as contents:
            stored = [[*contents.keys], [*contents.removals], [*contents.examples]]
            vectors = {v.key: sorted(v.vectors) for v in contents.vectors}
    report = migrate(tmp_path / "a.db", tmp_path / "b.lance")
    assert (report.examples, report.removed, report.keys) == (len(before[0]), 4, len(stored[0]))  # type: ignore[index]
    migrate(tmp_path / "b.lance", tmp_path / "c.db")
    for name in ("b.lance", "c.db"):
        with Pool.open(tmp_path / name, create=False) as moved:
            with moved._table.contents() as contents:
                assert {v.key: sorted(v.vectors) for v in contents.vectors} == vectors
                assert sorted(contents.keys, key=str) == sorted(stored[0], key=str)
                assert [[*contents.removals], [*contents.examples]] == stored[1:]
                assert (contents.uid, contents.revision) == (uid, moved.revision)
            assert state(moved) == before
            assert moved.became(FISH[7]) == Example(examples(7)[0].input, "new", "task 1's").id
            assert moved.add(examples(3)).revived == 1
    for taken in ("b.lance", "c.db"):
        source = tmp_path / ("a.db" if taken == "b.lance" else "b.lance")
        with pytest.raises(PoolError, match="is there already"):
            migrate(source, tmp_path / taken)
    with pytest.raises(UsageError, match="both a file"):
        migrate(tmp_path / "a.db", tmp_path / "d.db")


@pytest.mark.parametrize("names", [("a.db", "b.lance"), ("a.lance", "b.db")])
def test_a_move_that_fails_leaves_no_pool_and_is_begun_again(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (tmp_path / n for n in names)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with fill(Pool.open(source)) as pool:
        before = state(pool)
    with monkeypatch.context() as patch:
        patch.setattr(_lance, "_new", fail)
        patch.setattr(_sqlite, "in_parts", fail)
        with pytest.raises(KeyboardInterrupt):
            migrate(source, target)
    with pytest.raises(PoolError, match="no pool at"):
        Pool.open(target, create=False)
    migrate(source, target)
    with Pool.open(target, create=False) as pool:
        assert state(pool) == before


_KILLED = """
import os, sys
from iclkit.pool import migrate, _lance, _sqlite
def stop(*_, **__): os._exit(9)
_lance._new = stop
_sqlite.in_parts = stop
migrate(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [("a.db", "b.lance"), ("a.lance", "b.db")])
def test_a_move_that_is_killed_leaves_no_pool_and_is_begun_again(names: tuple[str, str], tmp_path: Path) -> None:
    source, target = (tmp_path / n for n in names)
    fill(Pool.open(source)).close()
    killed = subprocess.run([sys.executable, "-c", _KILLED, source, target], timeout=60, check=False)
    assert killed.returncode == 9
    with pytest.raises(PoolError, match="no pool at"):
        Pool.open(target, create=False)
    migrate(source, target)
    with Pool.open(source) as old, Pool.open(target, create=False) as new:
        assert state(new) == state(old)


def test_a_copy_for_a_kept_selector_is_a_file(tmp_path: Path) -> None:
    with fill(Pool.open(tmp_path / "a.lance")) as pool:
        view = pool.view(where={"half": 1})
        copy_view(view, tmp_path / "copy.db")
        with Pool.open(tmp_path / "copy.db") as copied:
            assert copied.view().ids == view.ids
            assert copied.view().rows.tolist() == view.rows.tolist()
            assert copied.stats().vectors == {k: len({*view._texts.tolist()}) for k in pool.stats().vectors}


@pytest.mark.parametrize("error", [ValueError("of the caller"), OSError("of its disk"), NotImplementedError("of its")])
def test_an_error_of_whoever_gives_the_examples_is_not_taken_for_the_pools(error: Exception, tmp_path: Path) -> None:
    def given() -> Iterator[Example]:
        yield from examples(1, 2)
        raise error

    for name in ("a.db", "b.lance"):
        with Pool.open(tmp_path / name) as pool:
            pool.add(examples(0))
            with pytest.raises(type(error)) as caught:
                pool.add(given())
            assert caught.value is error
            assert pool.ids == (FISH[0],)
            assert pool.add(examples(1)).added == 1


def test_what_is_read_only_is_not_changed(tmp_path: Path) -> None:
    fill(Pool.open(tmp_path / "a.lance")).close()
    with Pool.open(tmp_path / "a.lance", read_only=True) as pool:
        with pytest.raises(PoolError, match="for reading only"):
            pool.add(examples(50))
        assert len(pool.view().vectors(HashEmbedder(8))) == len(pool)
        assert len(pool.stats().vectors) == 1
    with pytest.raises(PoolError, match="is closed"):
        len(pool)


def folder(path: Path) -> None:
    path.mkdir()


def foreign(path: Path) -> None:
    lancedb.connect(path).create_table("examples", [{"a": 1}])


def other(path: Path) -> None:
    lancedb.connect(path).create_table("films", [{"a": 1}])


def newer(path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("seq", pa.int64())], metadata={b"iclkit": b'{"format": 9, "uid": "u", "base": 0}'})
    lancedb.connect(path).create_table("examples", schema=schema)


def changed(path: Path) -> None:
    fill(Pool.open(path)).close()
    lancedb.connect(path).open_table("examples").drop_columns(["meta"])


def twice(path: Path) -> None:
    fill(Pool.open(path)).close()
    table = lancedb.connect(path).open_table("examples")
    table.add(table.search().where("seq = 8").to_arrow())


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda _: None, "no pool at"),
    "a file": (lambda path: path.write_text("x"), "is a file; a pool whose name ends in .lance is a folder"),
    "a folder": (folder, "no pool at"),
    "a table of something else": (foreign, "was not made by iclkit"),
    "tables of something else": (other, "no pool at"),
    "a newer version": (newer, "newer iclkit"),
    "other columns": (changed, r"changed by another program: its columns differ \(meta\)"),
    "a row twice": (twice, "changed by another program: row 9 stands twice|changed by another program: row 8"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_pool_is_one_line(what: str, tmp_path: Path) -> None:
    make, said = BROKEN[what]
    make(tmp_path / "p.lance")
    with pytest.raises(PoolError, match=said) as error:
        Pool.open(tmp_path / "p.lance", create=False).view()
    assert "\n" not in str(error.value)


def test_a_store_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a",
                        "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(PoolError, match=r"s3://bucket/p\.lance cannot be used: .*[Cc]onnect") as error:
        Pool.open(Path("s3://bucket/p.lance"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(NeedError, match=r"pip install .*lance"):
        Pool.open(tmp_path / "p.lance")
    assert not (tmp_path / "p.lance").exists()


def test_names_say_where_a_pool_is() -> None:
    assert as_place(Path("gs://a/b.lance")) == "gs://a/b.lance"
    files = ("a.db", ":memory:", "dir.lance/a.db", "https://example.org/a.db", "hf://datasets/a/b", "file:///tmp/a.db")
    assert not any(in_lance(as_place(p)) for p in files)
    for address in files[3:]:
        with pytest.raises(UsageError, match="is an address where no pool can be; give a file, a folder"):
            Pool.open(address)
    assert all(in_lance(as_place(p)) for p in ("a.lance", "s3://b/c", "s3+ddb://b/c", "az://b/c"))


def test_the_commands_work_as_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "late parcel", "output": "delivery"}\n{"input": "card refused", "output": "billing"}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "no output"}\n')
    pool = str(tmp_path / "p.lance")

    def run(*args: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
        said = "".join(capsys.readouterr())
        assert stop.value.code == code, said
        return said

    run("pool", "add", pool, bad, code=1)
    assert not Path(pool).exists()
    assert "holds 2" in run("pool", "add", pool, rows)
    run("pool", "add", pool, bad, code=1)
    assert "delivery" in run("pool", "ls", pool)
    assert "late parcel" in run("select", pool, "a parcel that is late", "-s", "bm25", "-k", "1")
    assert "2 examples" in run("pool", "migrate", pool, tmp_path / "q.db")
    assert "is there already" in run("pool", "migrate", pool, tmp_path / "q.db", code=1)
    assert "removed 1" in run("pool", "rm", pool, Example("late parcel", "delivery").id)
    assert "no problems" in run("pool", "check", pool)
    assert "MB" in run("pool", "compact", pool)


def test_embedding_reads_texts_one_after_another_and_no_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lance, "LARGE", 1)
    monkeypatch.setattr(_lance_vectors, "HELD", 1)
    asked, vectors_read = list[int](), list[int]()
    at, plain = _lance.LanceExamples.at, _lance_vectors.batches

    def counted_at(reader: _lance.LanceExamples, rows: np.ndarray, revision: int) -> list[Example]:
        asked.append(len(rows))
        return at(reader, rows, revision)

    def counted_batches(table: Any, columns: Sequence[str], where: str = "") -> Iterator[Any]:
        for batch in plain(table, columns, where):
            vectors_read.append(batch.num_rows if "vector" in columns else 0)
            yield batch

    with Pool.open(tmp_path / "demos.lance") as pool:
        pool.add(Example(f"text {n - n % 3 if n % 7 else n}", f"y{n}") for n in range(900))  # many say the same
        monkeypatch.setattr(_lance.LanceExamples, "at", counted_at)
        monkeypatch.setattr(_lance_vectors, "batches", counted_batches)
        assert pool.embed(EMBEDDER) > 300
        assert len(asked) < 20
        assert sum(vectors_read) == 0
        assert pool.embed(EMBEDDER) == 0


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_what_was_embedded_stays_when_the_embedder_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(_vectors, "BATCH", 10)
    monkeypatch.setattr(_vectors, "SECONDS_PER_COMMIT", seconds)
    commits, plain = list[int](), _lance_vectors.LanceVectors._store

    def counted(self: Any, embedder: Any, numbers: Any, hashes: Any, vectors: Any) -> None:
        commits.append(len(numbers))
        plain(self, embedder, numbers, hashes, vectors)

    monkeypatch.setattr(_lance_vectors.LanceVectors, "_store", counted)

    class Failing(HashEmbedder):
        times = 0

        def encode_documents(self, texts: Sequence[str], progress: Any = None) -> Any:
            self.times += 1
            if self.times == 4:
                raise OSError("the embedder is gone")
            return super().encode_documents(texts, progress)

    with Pool.open(tmp_path / "demos.lance") as pool:
        pool.add(Example(f"text {n}", "y") for n in range(100))
        with pytest.raises(Exception, match="the embedder is gone"):
            pool.embed(Failing(8))
        assert commits == ([10, 10, 10] if seconds == 0 else [30])
        assert pool.embed(HashEmbedder(8)) == 70


def test_some_vectors_of_many_are_not_found_by_reading_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lance_vectors, "_FEW", 10)
    vectors_read, plain = list[int](), _lance_vectors.batches

    def counted(table: Any, columns: Sequence[str], where: str = "") -> Iterator[Any]:
        for batch in plain(table, columns, where):
            vectors_read.append(batch.num_rows if "vector" in columns else 0)
            yield batch

    with Pool.open(tmp_path / "demos.lance") as pool:
        pool.add(Example(f"text {n}", "y") for n in range(800))

        pool.embed(EMBEDDER)
        view = pool.view()
        monkeypatch.setattr(_lance_vectors, "batches", counted)
        some = view.only(view.rows[::20])
        assert np.array_equal(some.vectors(EMBEDDER), EMBEDDER.encode_documents([e.text for e in some.examples]))
        assert sum(vectors_read) == 40


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("lists", [0, 8])
def test_many_queries_are_asked_together_and_their_picks_read_in_one_go(
    lists: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, read = list[int](), list[int]()
    ask, at = LanceIndex._ask, _lance.LanceExamples.at

    def counted_ask(index: LanceIndex, queries: np.ndarray, plan: Any) -> Any:
        asked.append(len(queries))
        return ask(index, queries, plan)

    def counted_at(reader: _lance.LanceExamples, rows: np.ndarray, revision: int) -> list[Example]:
        read.append(len(rows))
        return at(reader, rows, revision)

    with Pool.open(tmp_path / "p.lance") as pool:
        pool.add(Example(f"text {n} of {n % 9}", "x", id=f"e{n}") for n in range(300))
        if lists:
            pool.build_index(EMBEDDER, lists=lists)
        knn = make_selector("knn").fit(pool.view(), Kit(EMBEDDER))
        queries = [Query(f"text {n} of 4", exclude=frozenset({f"e{n}"} if n % 2 else ())) for n in range(40)]
        alone = [knn.select(query, 5) for query in queries]
        monkeypatch.setattr(LanceIndex, "_ask", counted_ask)
        monkeypatch.setattr(_lance.LanceExamples, "at", counted_at)
        assert knn.select_many(queries, 5) == alone
        assert sorted(asked[:2]) == [20, 20]  # those that exclude a row ask for one more
        assert len(asked) <= 4
        assert len(read) == 1
        assert not any(pick.example_id in q.exclude for q, s in zip(queries, alone, strict=True) for pick in s.picks)


def test_lancedb_says_nothing_of_its_own(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from iclkit.pool import Pool
        from iclkit.records import Example
        from iclkit.testing import HashEmbedder
        with Pool.open(sys.argv[1]) as pool:
            pool.add(Example(f"word{n % 20}" + " and" * n, "x") for n in range(600))  # it warns of empty lists
            pool.build_index(HashEmbedder(16), lists=16)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "p.lance"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
