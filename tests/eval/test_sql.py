"""Text-to-SQL judged by what the queries return, on real SQLite files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iclkit.errors import DataError
from iclkit.eval import METRICS

COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 900000)"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "geo.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table state (name text, people integer, area real);"
            "insert into state values ('ohio', 11, 0.1), ('texas', 29, 0.7), ('iowa', 3, 0.1);"
        )
    return path


@pytest.mark.parametrize(
    ("output", "gold", "value"),
    [
        ("SELECT name FROM state WHERE people > 5", "select s.name from state s where not people <= 5", 1),
        ("SELECT name FROM state", "SELECT name FROM state WHERE people > 5", 0),
        ("SELECT name FROM state ORDER BY people DESC", "SELECT name FROM state", 1),  # the gold sets no order
        ("SELECT name FROM state ORDER BY people", "SELECT name FROM state ORDER BY people DESC", 0),
        ("SELECT area FROM state", "SELECT DISTINCT area FROM state", 0),  # repeated rows count
        ("SELECT 0.1 + 0.2", "SELECT 0.3", 1),
        ("SELECT 3.0", "SELECT 3", 1),
        ("SELECT nothing FROM state", "SELECT name FROM state", 0),
        ("", "SELECT name FROM state", 0),
        ("", "SELECT name FROM state WHERE people < 0", 0),
        ("it is texas", "SELECT name FROM state", 0),
        ("SELECT name FROM state; DROP TABLE state", "SELECT name FROM state", 0),
        ("DELETE FROM state RETURNING name", "SELECT name FROM state", 0),
        ("PRAGMA table_info(state)", "SELECT name FROM state", 0),
        ("SELECT name FROM state;", "SELECT name FROM state", 1),
        ("SELECT '\x00'", "SELECT ''", 0),
        ("```sql\nSELECT name FROM state;\n```", "SELECT name FROM state", 1),
        ("SELECT name FROM state WHERE people != 3 -- not iowa", "SELECT name FROM state WHERE people <> 3", 1),
        ("SELECT 1234567890123.0", "SELECT 1234567890123", 1),
        ("SELECT 1234567890123.0", "SELECT 1234567890124", 0),
        ("SELECT 1234567890123", "SELECT 1234567890124", 0),
        ("SELECT 9e999", "SELECT 9e999", 1),
        # the gold orders only inside a bracket, where it means nothing
        ("SELECT name FROM state ORDER BY people DESC", "SELECT name FROM (SELECT name FROM state ORDER BY people)", 1),
        (f"{COUNT} SELECT zeroblob(1000000) FROM n", "SELECT name FROM state", 0),
        (f"{COUNT} SELECT randomblob(900) FROM n ORDER BY 1", "SELECT name FROM state", 0),
    ],
)
def test_queries_are_judged_by_their_rows(database: Path, output: str, gold: str, value: float) -> None:
    before = database.read_bytes()
    metric = METRICS.get(f"sql_execution,database={database}")
    assert metric.figure([output], [gold]) == value
    assert database.read_bytes() == before


def test_a_query_without_end_is_wrong_and_does_not_hang(database: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    metric = METRICS.get(f"sql_execution,database={database},budget=1000000")
    assert metric.figure([endless], ["SELECT 1"]) == 0
    with pytest.raises(DataError, match=r"the gold query .* needs more than 1,000,000 steps"):
        metric.figure(["SELECT 1"], [endless])


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        (f"{COUNT} SELECT zeroblob(1000000) FROM n", "more than 16,000,000 bytes"),
        (f"{COUNT} SELECT randomblob(900) FROM n ORDER BY 1", "more than 256 MB of memory"),
        ("SELECT '" + "x" * 5_000_000 + "'", "too big|too large"),
        ("ATTACH 'x' AS y", "not authorized"),
    ],
)
def test_a_gold_query_that_does_harm_is_told_in_a_line(database: Path, gold: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        METRICS.get(f"sql_execution,database={database}").figure(["SELECT 1"], [gold])
    assert len(str(error.value)) < 1000


def test_a_missing_database_and_a_gold_query_that_fails_are_told(database: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no database .*none\.db"):
        METRICS.get(f"sql_execution,database={tmp_path / 'none.db'}")
    with pytest.raises(DataError, match=r"the gold query 'SELECT x FROM state' fails: .*no such column: x"):
        METRICS.get(f"sql_execution,database={database}").figure(["SELECT 1"], ["SELECT x FROM state"])
