"""Foreign SQL on a foreign SQLite file, without harm: read-only, SELECT only, within a budget of steps."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from iclkit.errors import DataError

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_STEPS_AT_ONCE = 10_000
_LONGEST = 1_000_000  # bytes of a value: a query may not build a gigabyte in one step


def run_read_only(
    database: str | Path, sql: str, *, budget: int = 50_000_000, max_rows: int = 100_000
) -> list[tuple[Any, ...]]:
    """The rows that one SELECT returns. DataError when it is no single SELECT, fails, or exceeds a bound.

    ``budget``: steps of SQLite's virtual machine, about 50 million a second. Nothing but reading is allowed: no other
    file can be attached, no extension loaded, nothing written.
    """
    uri = f"{Path(database).resolve().as_uri()}?mode=ro"
    spent = 0

    def step() -> int:
        nonlocal spent
        spent += _STEPS_AT_ONCE
        return spent > budget

    def authorise(action: int, *names: str | None) -> int:
        denied = action == sqlite3.SQLITE_FUNCTION and names[1] == "load_extension"
        return sqlite3.SQLITE_OK if action in _ALLOWED and not denied else sqlite3.SQLITE_DENY

    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            connection.set_authorizer(authorise)
            connection.set_progress_handler(step, _STEPS_AT_ONCE)
            cursor = connection.execute(sql)
            rows = cursor.fetchmany(max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        reason = f"needs more than {budget:,} steps" if spent > budget else str(error)
        raise DataError(f"{database}: {reason}") from error
    if cursor.description is None:
        raise DataError(f"{database}: {sql!r} is no query")
    if len(rows) > max_rows:
        raise DataError(f"{database}: the query returns more than {max_rows:,} rows")
    return rows
