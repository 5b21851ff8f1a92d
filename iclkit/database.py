"""SQLite files: opened, migrated, read and written in transactions; what goes wrong comes out as one kind of failure.

The only room that imports ``sqlite3``, but for the process that runs foreign SQL. Who keeps something in a file says
what is in it (``Format``) and how a ``Failure`` is put to the user; the rest is the same for all.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar

Connection: TypeAlias = sqlite3.Connection
T = TypeVar("T")

MEMORY = ":memory:"
BUSY_SECONDS = 60.0
_HEADER = b"SQLite format 3\0"
_SMALLEST = 512  # bytes of an SQLite file
_LOOKUP = 500  # values per statement: under SQLite's oldest limit of 999 variables


@dataclass(frozen=True, slots=True)
class Format:
    """What a file of one kind holds. ``PRAGMA user_version`` says how many of ``migrations`` it has seen."""

    migrations: tuple[tuple[str, ...], ...]
    application_id: int = 0
    """Marks files of this kind; 0 for kinds that are told by their ``tables``."""
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns of each table; a file with other tables is of another kind. Empty where ``application_id`` tells."""
    pragmas: Mapping[str, str | int] = field(default_factory=dict)
    """Set on every connection."""
    pragmas_of_new: Mapping[str, str | int] = field(default_factory=dict)
    """Set before the first table is made."""
    readable_from: int | None = None
    """The oldest format that can be read as it is, since what came later changes no table; None for the current one."""
    proves_writable: bool = False
    """Whether a file that cannot be written is found out when it is opened, at the price of waiting for a writer."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file cannot be used.

    ``foreign``: of another kind. ``newer``, ``older``: of a format that this version does not know, or that would have
    to be migrated and may not be written. ``damaged``; ``busy``: held by another process for too long; ``denied``: may
    not be written; ``full``: the disk is. ``closed``: by us. ``gone``: while it was open, something else came to stand
    where it was opened, or nothing. ``reason`` is what SQLite, the system or this room says.
    """

    kind: Literal["foreign", "newer", "older", "damaged", "busy", "denied", "full", "closed", "gone", "other"]
    reason: str
    opening: bool = False


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        self.failure = failure


Explain = Callable[[Failure], Exception]
"""Makes the error that the user sees."""


class Database:
    """A connection to one file for all threads of a process; each transaction is one thread's.

    Any number of processes may use the file: readers never wait, writers wait for each other (write-ahead logging).
    A file that is moved, removed or replaced while it is open is a ``Failure``: SQLite would go on with the old one,
    out of everybody's sight.
    """

    def __init__(self, connection: Connection, path: Path | str, form: Format, explain: Explain) -> None:
        self.path, self.form = path, form
        self._explain, self._connection = explain, connection
        self._open = True
        self._lock = threading.RLock()
        self._place = None if path == MEMORY else Path(path).absolute()  # whatever folder the process goes to later
        self._file = _identity(self._place)

    @classmethod
    def open(
        cls,
        path: Path | str,
        form: Format,
        explain: Explain,
        *,
        read_only: bool = False,
        parents: bool = False,
        private: bool = False,
    ) -> Self:
        """Open a file, make it where it is missing, and bring it to the current format; ``:memory:`` is kept nowhere.

        ``parents``: make its folder too. ``private``: only its owner may read it. ``read_only``: changes nothing.
        """
        with _explained(explain, opening=True):
            if path != MEMORY:
                path = Path(path)
                if parents:
                    path.parent.mkdir(parents=True, exist_ok=True)
                if private and not read_only:
                    _make_private(path)
                _check_header(path)
            connection = _connect_read_only(Path(path), trace=True) if read_only else _connect(path)
            try:
                _prepare(connection, form, path=path, read_only=read_only)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path, form, explain)

    @classmethod
    def copy(cls, path: Path, form: Format, explain: Explain) -> Self:
        """A database in memory with what a file holds; neither the file nor what stands beside it changes."""
        made = cls.open(MEMORY, form, explain)
        made.path = path
        with _explained(explain, opening=True):
            _check_header(path)
            with closing(_connect_read_only(path, trace=False)) as saved:
                _version(saved, form)
                saved.backup(made._connection)
            _migrate(made._connection, form)
        return made

    def save_copy(self, path: Path) -> None:
        """Write what the file holds now to a new file."""
        with self._lock, _explained(self._explain), closing(sqlite3.connect(path)) as made:
            self._connected().backup(made)

    def compact(self) -> None:
        """Rewrite the file without what was removed from it."""
        with self._lock, _explained(self._explain):
            self._connected().execute("VACUUM")

    def close(self) -> None:
        """Close the file; the last process that does folds the write-ahead log in."""
        with self._lock:
            self._open = False
            self._connection.close()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is under way on this connection."""
        return self._open and self._connection.in_transaction

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows that a statement gives."""
        with self.reading() as connection:
            return connection.execute(statement, values).fetchall()

    def read_each(self, statement: str, values: Iterable[Any]) -> list[Any]:
        """The rows of a statement for many values, a few hundred at a time; ``{values}`` stands where they go."""
        every, rows = list(dict.fromkeys(values)), list[Any]()
        with self.reading() as connection:
            for start in range(0, len(every), _LOOKUP):
                part = every[start : start + _LOOKUP]
                rows += connection.execute(statement.format(values=",".join("?" * len(part))), part)
        return rows

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent state of the file for all reads inside; within ``writing`` its own."""
        with self._lock, _explained(self._explain):
            connection = self._connected()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: all of it or nothing. Waits for other writers."""
        with self._lock, _explained(self._explain), _transaction(self._connected()) as connection:
            yield connection

    def _connected(self) -> Connection:
        if not self._open:
            raise _Failed(Failure("closed", "it is closed"))
        if _identity(self._place) != self._file:
            raise _Failed(Failure("gone", "it was moved, removed or replaced while it was open"))
        return self._connection


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite, met through another library, says that the file itself is broken."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def is_writable(path: Path) -> bool:
    """Whether a file there, and the log that SQLite keeps beside it, can be written: False on read-only media."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


# ---- opening


def _identity(path: Path | None) -> tuple[int, int]:
    """What tells a file from another that is put in its place. Zeros where there is none, or none can be seen."""
    if path is None:
        return 0, 0
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def is_sqlite(path: Path) -> bool:
    """Whether a file that is there is an SQLite file.

    SQLite itself is asked: when a process closes a file that it has opened by hand, the system drops all locks that the
    process holds on it, those of its open ``Database`` too, and another process may then take its log away.
    """
    if path.stat().st_size >= _SMALLEST:
        try:
            with closing(_connect(path, "mode=ro&immutable=1")) as connection:
                connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN:
                path.open("rb").close()  # fails as well, and says why
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                return True
        else:
            return True
    with path.open("rb") as file:  # of another kind, or damaged: nobody has that open
        return file.read(len(_HEADER)) == _HEADER


def _check_header(path: Path) -> None:
    if path.exists() and path.stat().st_size and not is_sqlite(path):
        raise _Failed(Failure("foreign", "it is not an SQLite file", opening=True))


def _make_private(path: Path) -> None:
    """Make the file, readable by its owner alone, or take an older one's away from strangers; SQLite's log follows."""
    with suppress(FileExistsError):  # which may be open here: see ``is_sqlite``
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    mode = path.stat().st_mode
    if mode & stat.S_IRWXO:
        with suppress(PermissionError):  # another user's file, who shares it
            path.chmod(stat.S_IMODE(mode) & ~stat.S_IRWXO)


def _connect(path: Path | str, options: str = "mode=rwc") -> Connection:
    address = MEMORY if path == MEMORY else f"{Path(path).resolve().as_uri()}?{options}"
    return sqlite3.connect(
        address, uri=path != MEMORY, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _connect_read_only(path: Path, *, trace: bool) -> Connection:
    """A connection that cannot write. ``trace``: SQLite's files for sharing the log may appear beside the file."""
    # A write-ahead log needs a file beside it, also for reading. Where none can be made and nothing is left in the
    # log, nobody writes, and the file is opened as one that does not change.
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and (not trace or log.stat().st_size > 0)
    if has_log or (trace and os.access(path.parent, os.W_OK)):
        connection = _connect(path, "mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if has_log:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    return _connect(path, "mode=ro&immutable=1")


def _prepare(connection: Connection, form: Format, *, path: Path | str, read_only: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    version = _version(connection, form)
    if not read_only:
        if not version:
            _set(connection, form.pragmas_of_new)
        if path != MEMORY:
            _retry_busy(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
    _set(connection, form.pragmas)
    oldest = len(form.migrations) if form.readable_from is None else form.readable_from
    if version < len(form.migrations) and not (read_only and version >= oldest):
        if read_only:
            raise _Failed(Failure("older", f"format {version}, this iclkit writes {len(form.migrations)}", True))
        _migrate(connection, form)
    elif form.proves_writable and not read_only:
        with _transaction(connection):
            pass


def _set(connection: Connection, pragmas: Mapping[str, str | int]) -> None:
    for name, value in pragmas.items():
        connection.execute(f"PRAGMA {name} = {value}")


def _version(connection: Connection, form: Format) -> int:
    """How many migrations the file has seen. Fails for a file of another kind or a newer format."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if mark != form.application_id:
        if not (mark or version or names):
            return 0
        # another process may have made the file between these reads; what it made became visible all at once
        if connection.execute("PRAGMA application_id").fetchone() == (form.application_id,):
            return _version(connection, form)
        raise _Failed(Failure("foreign", "it is an SQLite file of something else", opening=True))
    for name in names if form.tables else ():
        columns = tuple(c for (c,) in connection.execute("SELECT name FROM pragma_table_info(?)", (name,)))
        if not name.startswith("sqlite_") and columns != form.tables.get(name):
            raise _Failed(Failure("foreign", f"it holds a table {name!r} of something else", opening=True))
    if version > len(form.migrations):
        reason = f"format {version}, this iclkit knows {len(form.migrations)}"
        raise _Failed(Failure("newer", reason, opening=True))
    return int(version)


def _migrate(connection: Connection, form: Format) -> None:
    with _transaction(connection):
        for statements in form.migrations[_version(connection, form) :]:  # another process may have been faster
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {form.application_id}")
        connection.execute(f"PRAGMA user_version = {len(form.migrations)}")


# ---- transactions and errors


@contextmanager
def _transaction(connection: Connection) -> Iterator[Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: Connection) -> None:
    """End a transaction that failed. An error of the roll-back must not hide the first one.

    SQLite itself has rolled back already when the disk is full.
    """
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _retry_busy(call: Callable[[], T]) -> T:
    """Run ``call`` until the file is not busy: changing to WAL does not wait by itself."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def _explained(explain: Explain, *, opening: bool = False) -> Iterator[None]:
    """Every failure as the error that the user of the file makes of it."""
    try:
        yield
    except sqlite3.ProgrammingError:  # a mistake of ours, not of the file
        raise
    except _Failed as error:
        raise explain(error.failure) from error.__cause__
    except sqlite3.Error as error:
        raise explain(Failure(_kind(error), str(error), opening)) from error
    except OSError as error:
        if not opening:  # of what is done with the rows
            raise
        raise explain(Failure(_kind_of_system(error), str(error), opening)) from error


_KINDS: Mapping[int, Literal["damaged", "busy", "denied", "full"]] = {
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_ERROR: "damaged",  # a table or column that should be there is not
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_READONLY: "denied",
    sqlite3.SQLITE_PERM: "denied",
    sqlite3.SQLITE_FULL: "full",
}


def _kind(error: sqlite3.Error) -> Literal["damaged", "busy", "denied", "full", "other"]:
    code: int = vars(error).get("sqlite_errorcode", 0)  # none where Python itself raised it
    return _KINDS.get(code & 0xFF, "other")


def _kind_of_system(error: OSError) -> Literal["denied", "full", "other"]:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "denied"
    return "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "other"
