"""One place opens SQLite files; what goes wrong with one is a failure of a kind, whoever keeps the file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from iclkit.database import MEMORY, Database, Failure, Format, is_damage, is_sqlite

ONE = Format((("CREATE TABLE thing (name TEXT PRIMARY KEY)",),), tables={"thing": ("name",)})
TWO = Format(
    (*ONE.migrations, ("ALTER TABLE thing ADD COLUMN size INTEGER NOT NULL DEFAULT 0",)), application_id=0x7E57
)


class Said(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.reason}")
        self.kind, self.opening = failure.kind, failure.opening


def opened(path: Path | str, form: Format = ONE, **options: bool) -> Database:
    return Database.open(path, form, Said, **options)


def add(database: Database, *names: str) -> None:
    with database.writing() as connection:
        connection.executemany("INSERT INTO thing (name) VALUES (?)", ((n,) for n in names))


def kind_of(path: Path, form: Format = ONE, **options: bool) -> str:
    with pytest.raises(Said) as error:
        opened(path, form, **options)
    assert error.value.opening
    return error.value.kind


def test_what_is_written_is_read_by_another_connection_and_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "a.db"), opened(tmp_path / "a.db")
    add(one, "x", "y")
    with pytest.raises(Said):
        add(two, "z", "x")  # one of them is there already
    with pytest.raises(ZeroDivisionError), two.writing() as connection:
        connection.execute("INSERT INTO thing VALUES (?)", (f"w{1 / 0}",))
    assert one.read("SELECT name FROM thing ORDER BY name") == [("x",), ("y",)]


def test_reads_inside_one_block_see_one_state_of_the_file(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "a.db"), opened(tmp_path / "a.db")
    with one.reading() as connection:
        before = connection.execute("SELECT count(*) FROM thing").fetchone()
        add(two, "x")
        assert connection.execute("SELECT count(*) FROM thing").fetchone() == before == (0,)
    assert one.read("SELECT count(*) FROM thing") == [(1,)]


def test_many_values_are_looked_up_a_few_hundred_at_a_time(tmp_path: Path) -> None:
    database = opened(MEMORY)
    add(database, *map(str, range(1200)))
    wanted = [*map(str, range(500, 1800)), "500"]
    rows = database.read_each("SELECT name FROM thing WHERE name IN ({values})", wanted)
    assert sorted(int(n) for (n,) in rows) == [*range(500, 1200)]


def test_an_older_file_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    old = Format(ONE.migrations, TWO.application_id)
    add(opened(tmp_path / "a.db", old), "x")
    assert kind_of(tmp_path / "a.db", TWO, read_only=True) == "older"
    assert opened(tmp_path / "a.db", TWO).read("SELECT * FROM thing") == [("x", 0)]
    assert kind_of(tmp_path / "a.db", old) == "newer"


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    opened(tmp_path / "a.db").close()
    broken = Format((*ONE.migrations, ("CREATE TABLE more (x)", "CREATE TABLE thing (x)")))
    assert kind_of(tmp_path / "a.db", broken) == "damaged"
    assert opened(tmp_path / "a.db").read("SELECT name FROM sqlite_master WHERE name = 'more'") == []


@pytest.mark.parametrize("form", [ONE, TWO])
def test_a_file_of_another_kind_is_refused_and_left_alone(form: Format, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello, I am no database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE other (x)")
    with sqlite3.connect(tmp_path / "columns.db") as other:
        other.execute("CREATE TABLE thing (x)")
    for file in sorted(tmp_path.iterdir()):
        before = file.read_bytes()
        assert kind_of(file, form) == "foreign"
        assert file.read_bytes() == before
    assert len([*tmp_path.iterdir()]) == 3


def test_a_copy_has_all_and_touches_nothing(tmp_path: Path) -> None:
    kept = opened(tmp_path / "a.db")
    add(kept, "x")
    add(Database.copy(tmp_path / "a.db", ONE, Said), "y")  # while another writes
    kept.close()
    before = (tmp_path / "a.db").read_bytes()
    copy = Database.copy(tmp_path / "a.db", ONE, Said)
    add(copy, "z")
    assert copy.read("SELECT name FROM thing ORDER BY name") == [("x",), ("z",)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.db"]
    assert (tmp_path / "a.db").read_bytes() == before


def test_read_only_serves_what_is_there_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(tmp_path / "a.db")
    add(writer, "x")
    reader = opened(tmp_path / "a.db", read_only=True)
    assert reader.read("SELECT name FROM thing") == [("x",)], "also from a log that another process has not folded in"
    with pytest.raises(Said, match="denied"):
        add(reader, "y")
    reader.close()
    writer.close()
    monkeypatch.setattr("os.access", lambda *_: False)  # media where no file can be made
    before = sorted(p.name for p in tmp_path.iterdir())
    assert opened(tmp_path / "a.db", read_only=True).read("SELECT name FROM thing") == [("x",)]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX's")
def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    database = opened(tmp_path / "deep" / "a.db", private=True, parents=True)
    add(database, "x")
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in (tmp_path / "deep").iterdir()} == {0}


def test_a_full_disk_and_a_closed_file_have_names(tmp_path: Path) -> None:
    database = opened(tmp_path / "a.db")
    (pages,) = database.read("PRAGMA page_count")[0]
    database.read(f"PRAGMA max_page_count = {pages}")  # to SQLite the same as a disk that is full
    with pytest.raises(Said, match="full: database or disk is full"):
        add(database, *("long" * n for n in range(1, 900)))
    assert database.read("SELECT count(*) FROM thing") == [(0,)]
    database.close()
    with pytest.raises(Said, match="closed"):
        database.read("SELECT 1")


def _use_and_leave(path: Path) -> None:
    database = opened(path)
    add(database, "other")
    database.close()


@pytest.mark.parametrize("private", [False, True])
def test_what_is_looked_at_again_keeps_its_log_from_other_processes(private: bool, tmp_path: Path) -> None:
    # a process that closes a file which it opened by hand loses its locks, and who leaves last takes the log away
    path = tmp_path / "a.db"
    first = opened(path, private=private)
    add(first, "x")
    again = opened(path, private=private)
    assert is_sqlite(path)
    other = multiprocessing.get_context("spawn").Process(target=_use_and_leave, args=(path,))
    other.start()
    other.join(60)
    assert other.exitcode == 0
    add(first, "y")
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as stranger:
        assert stranger.execute("SELECT name FROM thing ORDER BY name").fetchall() == [("other",), ("x",), ("y",)]
    assert len(again.read("SELECT name FROM thing")) == 3


@pytest.mark.parametrize(
    "content", [b"", b"x", b"SQLite", b"a,b\n1,2\n" * 1000, b"\0" * 4096, b"SQLite format 3 is a format"]
)
def test_other_files_are_no_sqlite_files_and_stay_as_they_are(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    file.write_bytes(content)
    assert not is_sqlite(file)
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == content


@pytest.mark.parametrize("what", ["moved", "removed", "replaced"])
def test_a_file_that_is_another_while_it_is_open_is_no_longer_used(what: str, tmp_path: Path) -> None:
    path, other = tmp_path / "a.db", tmp_path / "b.db"
    database = opened(path)
    add(database, "x")
    if what == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "old.db")
    if what == "replaced":
        opened(other).close()
        other.rename(path)
    for use in (lambda: database.read("SELECT name FROM thing"), lambda: add(database, "y"), database.compact):
        with pytest.raises(Said) as error:
            use()
        assert error.value.kind == "gone"
    if what == "moved":
        (tmp_path / "old.db").rename(path)
        assert database.read("SELECT name FROM thing") == [("x",)]


def test_a_process_may_go_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = opened("a.db")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    add(database, "x")
    assert database.read("SELECT name FROM thing") == [("x",)]


def test_a_mistake_in_a_statement_is_no_failure_of_the_file() -> None:
    with pytest.raises(sqlite3.ProgrammingError):
        opened(MEMORY).read("SELECT ?", (1, 2))


def test_damage_is_told_from_what_passes() -> None:
    assert is_damage(sqlite3.DatabaseError("malformed"))
    assert not is_damage(sqlite3.OperationalError("locked"))
    assert not is_damage(ValueError())


def _write_for_ever(path: Path) -> None:
    database = opened(path)
    number = 0
    while True:
        add(database, *(f"{number}-{part}" for part in range(10)))
        number += 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_each_transaction_whole_or_not_at_all(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(tmp_path / "a.db",))
    reader = opened(tmp_path / "a.db")
    process.start()
    while len(reader.read("SELECT name FROM thing")) < 200:
        assert process.exitcode is None, "the writer has ended"
    process.kill()
    process.join()
    rows = [name for (name,) in reader.read("SELECT name FROM thing")]
    assert len(rows) % 10 == 0
    add(reader, "after")
