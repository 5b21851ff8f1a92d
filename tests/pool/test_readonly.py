"""Foreign SQL can read one file and do nothing else."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iclkit.errors import DataError
from iclkit.pool import run_read_only

from ..subprocesses import run_python


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


MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) "


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        (MANY + "SELECT zeroblob(1000000) FROM n", "returns more than 16,000,000 bytes"),
        (MANY + "SELECT randomblob(1000) FROM n ORDER BY 1", "needs more than 256 MB of memory"),
        (MANY + "SELECT count(*) FROM (SELECT DISTINCT zeroblob(10000) || i FROM n)", "needs more than 256 MB"),
        (MANY + "SELECT group_concat(zeroblob(100000)) FROM (SELECT i FROM n LIMIT 11)", "too big"),
        (MANY + "SELECT sum(i) OVER (ORDER BY i DESC) FROM n", "returns more than 100,000 rows"),
        ("SELECT " + "(" * 100_000 + "1" + ")" * 100_000, "stack overflow|too large"),
        ("SELECT '" + "a" * 5_000_000 + "'", "too big|too large"),
        ("SELECT '\ud800'", "surrogates not allowed"),
        ("SELECT * FROM pragma_table_info('t')", "not authorized"),
    ],
)
def test_memory_bytes_and_rows_are_bounded_and_the_next_query_is_answered(database: Path, sql: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        run_read_only(database, sql)
    assert run_read_only(database, "SELECT x FROM t LIMIT 1") == [(1,)]


def test_a_single_step_that_takes_for_ever_is_ended(database: Path) -> None:
    endless = MANY + "SELECT sum(length(printf('%.*c', 1000000000, 'x'))) FROM n"  # a second for each of few steps
    with pytest.raises(DataError, match=r"takes longer than 0\.5 s"):
        run_read_only(database, endless, seconds=0.5)
    assert run_read_only(database, "SELECT x FROM t LIMIT 1") == [(1,)]


def test_every_kind_of_value_comes_back(database: Path) -> None:
    sql = "SELECT NULL, 1, 9223372036854775807, 0.1, 9e999, x'00ff', 'a' || char(10, 8232, 0) || '\u00e9'"
    assert run_read_only(database, sql) == [
        (None, 1, 2**63 - 1, 0.1, float("inf"), b"\x00\xff", "a\n\u2028\x00\u00e9"),
    ]


FORK = """
import multiprocessing
import sys
from iclkit.pool._readonly import run_read_only
database = sys.argv[1]
assert run_read_only(database, "SELECT 1") == [(1,)]
with multiprocessing.get_context("fork").Pool(3) as pool:
    asked = [(database, f"SELECT {n}") for n in range(30)]
    assert pool.starmap_async(run_read_only, asked).get(60) == [[(n,)] for n in range(30)]
assert run_read_only(database, "SELECT 2") == [(2,)]
"""


def test_a_forked_process_has_a_reader_of_its_own(database: Path) -> None:
    """In a process without other threads: a fork takes along whatever lock another thread holds just then."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    done = run_python(FORK, database)
    assert done.returncode == 0, done.stderr
