"""The persistent cache: every score and generation an LM ever gave, in one SQLite file.

A row is 20 bytes of key (a hash of fingerprint, kind, settings and exact token ids) and a small value, in a
WITHOUT ROWID table: one B-tree look-up per entry, about 60 bytes per score. Write-ahead logging lets many processes
read while one writes; a batch is one transaction, so a killed run has a batch whole or not at all.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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


class Cache:
    """A key-value store in one SQLite file for many threads and processes. RunError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA busy_timeout = 60000")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA_VERSION:
                raise RunError(
                    f"LM cache {path} has format {found}, this iclkit knows {SCHEMA_VERSION}: upgrade iclkit, move the "
                    "file away, or pass --no-cache"
                )
            self._db.execute("BEGIN IMMEDIATE")  # also proves that the file can be written
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS entry (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> RunError:
        return RunError(
            f"LM cache {self.path} cannot be used ({error}): free space or make it writable, set ICLKIT_HOME to "
            "another folder, or pass --no-cache"
        )

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
        if not entries:
            return
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany("INSERT OR IGNORE INTO entry VALUES (?, ?)", entries.items())
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                        self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM entry").fetchone()[0])

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in by the last process that does."""
        with self._lock:
            self._db.close()
