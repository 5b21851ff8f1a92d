"""Foreign SQL can read one file and do nothing else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iclkit.errors import DataError
from iclkit.pool import run_read_only


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a file?.db"  # signs that a URI would read otherwise
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("create table t (x); insert into t values (1), ('two'), (null), (4.5);")
    return path


def test_a_select_gives_its_rows(database: Path) -> None:
    assert run_read_only(database, "SELECT x FROM t") == [(1,), ("two",), (None,), (4.5,)]
    assert run_read_only(database, "WITH n AS (SELECT 2 AS i) SELECT max(i, 1), upper('a') FROM n") == [(2, "A")]


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE t",
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE u (x)",
        "CREATE TEMP TABLE u (x)",
        "ATTACH DATABASE '{other}' AS other",
        "VACUUM INTO '{other}'",
        "PRAGMA journal_mode = DELETE",
        "SELECT load_extension('x')",
        "SELECT 1; SELECT 2",
        "SELECT zeroblob(2000000)",
        "SELECT x FROM missing",
        "BEGIN",
        "",
        "-- a comment",
        "SELECT '\0'",
    ],
)
def test_anything_else_is_refused_and_changes_nothing(database: Path, tmp_path: Path, sql: str) -> None:
    before = database.read_bytes()
    with pytest.raises(DataError, match="a file"):
        run_read_only(database, sql.format(other=tmp_path / "other.db"))
    assert database.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [database.name]


def test_a_query_has_a_budget_of_steps_and_rows(database: Path) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"
    assert len(run_read_only(database, many.format(1000))) == 1000
    with pytest.raises(DataError, match="needs more than 100,000 steps"):
        run_read_only(database, many.format(10**9), budget=100_000)
    with pytest.raises(DataError, match="returns more than 10 rows"):
        run_read_only(database, many.format(11), max_rows=10)


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unable to open"):
        run_read_only(tmp_path / "none.db", "SELECT 1")
    assert list(tmp_path.iterdir()) == []
