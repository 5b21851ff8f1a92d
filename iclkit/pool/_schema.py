"""The file format of a pool: every migration, in order, in this one place.

``PRAGMA application_id`` says that a file is a pool, ``PRAGMA user_version`` how many migrations it has seen.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from iclkit.errors import PoolError

APPLICATION_ID = 0x69636C70  # "iclp"
BUSY_SECONDS = 60.0
MEMORY = ":memory:"
T = TypeVar("T")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # One row per change of content; its largest number is the pool's revision. Rows are only ever appended.
        """CREATE TABLE log (
            revision INTEGER PRIMARY KEY AUTOINCREMENT,
            at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            action TEXT NOT NULL,
            rows INTEGER NOT NULL
        )""",
        # uid: tells an index file of this pool from one of another pool that stood at the same path.
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "INSERT INTO facts VALUES ('uid', lower(hex(randomblob(16))))",
        # Texts that were embedded or rewritten, by hash: equal texts share vectors and keys. Numbers are never reused.
        "CREATE TABLE texts (number INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB NOT NULL UNIQUE)",
        # seq is the insertion order and never reused.
        """CREATE TABLE examples (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            input TEXT NOT NULL,
            output TEXT NOT NULL,
            task TEXT NOT NULL,
            choices TEXT NOT NULL,
            meta TEXT NOT NULL,
            text INTEGER NOT NULL REFERENCES texts(number),
            revision INTEGER NOT NULL
        )""",
        "CREATE INDEX examples_by_text ON examples(text)",
        # What was removed: ids and reasons, no content.
        """CREATE TABLE tombstones (
            id TEXT NOT NULL,
            revision INTEGER NOT NULL,
            reason TEXT NOT NULL,
            replaced_by TEXT,
            PRIMARY KEY (id, revision)
        ) WITHOUT ROWID""",
        """CREATE TABLE embedders (
            number INTEGER PRIMARY KEY,
            fingerprint TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            side TEXT NOT NULL,
            dim INTEGER NOT NULL
        )""",
        # little-endian float32, unit length
        """CREATE TABLE vectors (
            embedder INTEGER NOT NULL REFERENCES embedders(number),
            text INTEGER NOT NULL REFERENCES texts(number),
            vector BLOB NOT NULL,
            PRIMARY KEY (embedder, text)
        )""",
    ),
    (
        """CREATE TABLE transforms (
            number INTEGER PRIMARY KEY,
            fingerprint TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL
        )""",
        # source: hash of the input, of an example or of a query. fallback: the input stands in for a key.
        """CREATE TABLE keys (
            transform INTEGER NOT NULL REFERENCES transforms(number),
            source TEXT NOT NULL,
            number INTEGER NOT NULL,
            text TEXT NOT NULL,
            fallback INTEGER NOT NULL,
            PRIMARY KEY (source, transform, number)
        ) WITHOUT ROWID""",
    ),
)


def connect(path: Path | str, *, create: bool, read_only: bool) -> sqlite3.Connection:
    """Open a pool file and bring it to the current format. PoolError, in one line, when that cannot be done."""
    if path == MEMORY:
        return _prepare(sqlite3.connect(MEMORY, isolation_level=None, check_same_thread=False), MEMORY, create=True)
    path = Path(path)
    exists = path.exists() and path.stat().st_size > 0
    if path.is_dir():
        raise PoolError(f"{path} is a folder; a pool is a file, e.g. {path / 'demos.db'}")
    if not exists and (read_only or not create):
        raise PoolError(f"no pool at {path}; make one with: iclkit pool add {path} FILE")
    if not exists and not path.parent.is_dir():
        raise PoolError(f"cannot make the pool {path}: there is no folder {path.parent}")
    try:
        if exists:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise PoolError(f"{path} is not a pool: it is not an SQLite file")
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?{_read_only_mode(path) if read_only else 'mode=rwc'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except (OSError, sqlite3.Error) as error:
        raise PoolError(f"cannot open the pool {path}: {error}") from error
    try:
        return _prepare(connection, path, create=not read_only)
    except sqlite3.Error as error:
        connection.close()
        raise PoolError(f"cannot use the pool {path}: {error}") from error
    except PoolError:
        connection.close()
        raise


def _read_only_mode(path: Path) -> str:
    # WAL needs its -shm file; in a folder that cannot be written, and with nothing left in the log, the file is
    # opened as one that nobody changes.
    wal = path.with_name(path.name + "-wal")
    if os.access(path.parent, os.W_OK) or (wal.exists() and wal.stat().st_size):
        return "mode=ro"
    return "immutable=1"


def _prepare(connection: sqlite3.Connection, path: Path | str, *, create: bool) -> sqlite3.Connection:
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    if not _version(connection, path) and create:
        connection.execute("PRAGMA page_size = 16384")  # about ten 384-d vectors per page, little waste
        retry_busy(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")  # KiB
    if _version(connection, path) < len(MIGRATIONS):
        if not create:
            raise PoolError(f"{path} has an older pool format; open it once for writing to bring it up to date")
        _migrate(connection, path)
    return connection


def _migrate(connection: sqlite3.Connection, path: Path | str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[_version(connection, path) :]:  # read again: another process may have been faster
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that failed. An error of the roll-back must not hide the first one.

    SQLite itself has rolled back already when the disk is full.
    """
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def is_writable(path: Path) -> bool:
    """Whether a pool there, and the log that SQLite keeps beside it, can be written: False on read-only media."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _version(connection: sqlite3.Connection, path: Path | str) -> int:
    """How many migrations the file has seen; PoolError when it is not a pool or has seen more than are known here."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if mark != APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if mark or version or tables:
            # another process may have made the pool between these reads; what it made became visible all at once
            if connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,):
                return _version(connection, path)
            raise PoolError(f"{path} is an SQLite file but not a pool")
        return 0
    if version > len(MIGRATIONS):
        raise PoolError(
            f"{path} was written by a newer iclkit (pool format {version}, this one knows {len(MIGRATIONS)}); "
            "upgrade iclkit"
        )
    return int(version)


def retry_busy(call: Callable[[], T]) -> T:
    """Run ``call`` until the file is not busy: changing to WAL does not wait by itself."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
