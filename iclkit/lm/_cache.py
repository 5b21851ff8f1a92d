"""The persistent cache: every score and generation an LM ever gave, in one SQLite file.

A row is 20 bytes of key (a hash of fingerprint, kind, settings and exact token ids) and a small value, in a
WITHOUT ROWID table: one B-tree look-up per entry, about 60 bytes per score. Write-ahead logging lets many processes
read while one writes; a batch is one transaction, so a killed run has a batch whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from iclkit.errors import RunError

SCHEMA_VERSION = 1
_SCORE = struct.Struct("<dIB")  # logprob, tokens, greedy
_LOOKUP = 500  # keys per statement: under SQLite's oldest limit of 999 variables


def cache_key(*parts: str | int | float | Sequence[int]) -> bytes:
    """20 bytes (blake2b) that differ whenever any part does: parts are typed and length-prefixed, so none run over."""
    h = hashlib.blake2b(digest_size=20)
    for part in parts:
        if isinstance(part, str):
            tag, data = b"s", part.encode("utf-8", "surrogatepass")
        elif isinstance(part, (int, float)):
            tag, data = b"n", repr(part).encode()
        else:
            tag, data = b"i", struct.pack(f"<{len(part)}q", *part)
        h.update(tag + len(data).to_bytes(8, "little") + data)
    return h.digest()


def pack_score(logprob: float, tokens: int, greedy: bool) -> bytes:
    """A score as 13 bytes; the float is kept exactly."""
    return _SCORE.pack(logprob, tokens, greedy)


def unpack_score(value: bytes) -> tuple[float, int, bool]:
    """Inverse of ``pack_score``."""
    logprob, tokens, greedy = _SCORE.unpack(value)
    return logprob, tokens, bool(greedy)


class Store(Protocol):
    """Where answers are kept. ``notes`` say what the user should know of it."""

    notes: tuple[str, ...]

    def get(self, keys: Iterable[bytes], /) -> dict[bytes, bytes]: ...
    def put(self, entries: Mapping[bytes, bytes], /) -> None: ...
    def drop(self, keys: Sequence[bytes], /) -> None: ...


class NoCache:
    """Nothing is kept."""

    def __init__(self, *notes: str) -> None:
        self.notes = notes

    def get(self, _: Iterable[bytes]) -> dict[bytes, bytes]:
        """Nothing is known."""
        return {}

    def put(self, _: Mapping[bytes, bytes]) -> None:
        """Nothing is stored."""

    def drop(self, _: Sequence[bytes]) -> None:
        """Nothing is there."""


def open_cache(path: Path) -> Store:
    """The cache that nobody asked for by name: where it cannot be written, LMs work without, and a note says so.

    RunError for a cache that is damaged or newer, and for a full disk: what an LM computes must not be lost unseen.
    """
    try:
        return Cache(path)
    except RunError as error:
        if not _not_ours_to_write(error.__cause__):
            raise
    note = f"the LM cache {path} cannot be written: what is computed now is not kept (set ICLKIT_HOME to keep it)"
    try:
        return Cache(path, read_only=True, notes=(note,)) if path.is_file() else NoCache(note)
    except (OSError, RunError):
        return NoCache(note)


def _not_ours_to_write(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return isinstance(error, sqlite3.Error) and _code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error, 0 when Python itself raised it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Cache:
    """A key-value store in one SQLite file for many threads and processes. RunError when it cannot be used.

    The file is its owner's alone: prompts may be told from it. ``read_only`` serves what is there and keeps nothing.
    """

    def __init__(self, path: Path, *, read_only: bool = False, notes: tuple[str, ...] = ()) -> None:
        self.path, self.read_only, self.notes = path, read_only, notes
        self._lock = threading.Lock()
        try:
            if read_only:
                self._db = self._open_read_only()
                self._check_version()
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_private(path)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA busy_timeout = 60000")
            self._check_version()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():  # also proves that the file can be written
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS entry (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
                )
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _open_read_only(self) -> sqlite3.Connection:
        address = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        db = sqlite3.connect(address, uri=True, timeout=60.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("SELECT key FROM entry LIMIT 1")
        except sqlite3.OperationalError:
            # a write-ahead log needs a file beside it; where none can be made and no log is left, nobody writes
            db.close()
            log = self.path.with_name(f"{self.path.name}-wal")
            if log.exists() and log.stat().st_size:
                raise
            db = sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None, check_same_thread=False)
        return db

    def _check_version(self) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise RunError(
                f"LM cache {self.path} has format {found}, this iclkit knows {SCHEMA_VERSION}: upgrade iclkit, move "
                "the file away, or pass --no-cache"
            )

    def _unusable(self, error: Exception) -> RunError:
        code = _code(error) if isinstance(error, sqlite3.Error) else 0
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            remedy = "move the file away to begin a new one"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            remedy = "wait for the process that holds it"
        else:
            remedy = "free space or make it writable, set ICLKIT_HOME to another folder"
        return RunError(f"LM cache {self.path} cannot be used ({error}): {remedy}, or pass --no-cache")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite itself rolls back when the disk is full; an error of the roll-back must not hide the first one
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, bytes] = {}
        try:
            with self._lock:
                for at in range(0, len(wanted), _LOOKUP):
                    part = wanted[at : at + _LOOKUP]
                    marks = ",".join("?" * len(part))
                    found.update(self._db.execute(f"SELECT key, value FROM entry WHERE key IN ({marks})", part))
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Store all entries in one transaction; a key that is already there keeps its first value."""
        if not entries or self.read_only:
            return
        try:
            with self._lock, self._transaction():
                self._db.executemany("INSERT OR IGNORE INTO entry VALUES (?, ?)", entries.items())
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forget these keys."""
        if not keys or self.read_only:
            return
        try:
            with self._lock, self._transaction():
                self._db.executemany("DELETE FROM entry WHERE key = ?", ((key,) for key in keys))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM entry").fetchone()[0])

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in by the last process that does."""
        with self._lock:
            self._db.close()


def _make_private(path: Path) -> None:
    """Make the file, readable by its owner alone, or take an older one's away from strangers; SQLite's log follows."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    mode = path.stat().st_mode
    if mode & stat.S_IRWXO:
        with suppress(PermissionError):  # another user's file, who shares it
            path.chmod(stat.S_IMODE(mode) & ~stat.S_IRWXO)
