"""The other half of ``_readonly``: a script of its own that runs foreign SQL inside limits it cannot leave.

Run as ``python -I -S _readonly_worker.py MEGABYTES``; imports nothing but the standard library, so that it is up at
once. A line of JSON comes in for each query, a line goes out: ``{"rows": [...]}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import sys
from contextlib import closing
from typing import Any

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_STEPS_AT_ONCE = 10_000
_LONGEST = 1_000_000  # bytes of a value: a query may not build a gigabyte in one step


def confine(megabytes: int) -> None:
    """Bound what the process may take, where the system knows such bounds: memory, files, core dumps."""
    with contextlib.suppress(ImportError):  # Windows: SQLite's own bound stands alone
        import resource

        # a database in WAL mode needs a small file beside it, also for reading
        bounds = {"RLIMIT_AS": (megabytes + 512) << 20, "RLIMIT_FSIZE": 1 << 20, "RLIMIT_CORE": 0}
        for name, size in bounds.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (size, size))


def alarm(seconds: int) -> None:
    """End this process after so many seconds (0: not at all), where the system can."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def answer(asked: dict[str, Any], megabytes: int) -> dict[str, Any]:
    """The rows of one query, or what is wrong with it."""
    spent = 0

    def step() -> bool:
        nonlocal spent
        spent += _STEPS_AT_ONCE
        return bool(spent > asked["budget"])

    def authorize(action: int, *names: str | None) -> int:
        denied = action == sqlite3.SQLITE_FUNCTION and names[1] == "load_extension"
        return sqlite3.SQLITE_OK if action in _ALLOWED and not denied else sqlite3.SQLITE_DENY

    rows: list[list[Any]] = []
    left = asked["max_bytes"]
    try:
        with closing(sqlite3.connect(asked["uri"], uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.execute(f"PRAGMA hard_heap_limit = {megabytes << 20}")
            connection.execute("PRAGMA temp_store = MEMORY")  # what is sorted counts too, and fills no disk
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            connection.set_authorizer(authorize)
            connection.set_progress_handler(step, _STEPS_AT_ONCE)
            cursor = connection.execute(asked["sql"])
            if cursor.description is None:
                return {"error": f"{asked['sql']!r} is no query"}
            for row in cursor:
                left -= sum(len(v) if isinstance(v, str | bytes) else 8 for v in row)
                if left < 0:
                    return {"error": f"the query returns more than {asked['max_bytes']:,} bytes"}
                rows.append([{"blob": v.hex()} if isinstance(v, bytes) else v for v in row])
                if len(rows) > asked["max_rows"]:
                    return {"error": f"the query returns more than {asked['max_rows']:,} rows"}
    except MemoryError:
        rows.clear()
        return {"error": f"needs more than {megabytes:,} MB of memory"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return {"error": f"needs more than {asked['budget']:,} steps" if spent > asked["budget"] else str(error)}
    return {"rows": rows}


def main() -> None:
    """Answer line by line until the other side has gone."""
    megabytes = int(sys.argv[1])
    confine(megabytes)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        alarm(int(asked["seconds"]) + 5)  # the other side ends this process before, if it is still there
        try:
            reply = json.dumps(answer(asked, megabytes))
        except MemoryError:
            reply = json.dumps({"error": f"needs more than {megabytes:,} MB of memory"})
        alarm(0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
