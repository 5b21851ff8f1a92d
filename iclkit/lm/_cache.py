"""The persistent cache: every score and generation an LM ever gave, in one SQLite file.

A row is 20 bytes of key (a hash of fingerprint, kind, settings and exact token ids) and a small value, in a
WITHOUT ROWID table: one B-tree look-up per entry, about 60 bytes per score. Write-ahead logging lets many processes
read while one writes; a batch is one transaction, so a killed run has a batch whole or not at all.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from iclkit.database import Database, Failure, Format
from iclkit.errors import RunError

FORMAT = Format(
    migrations=(("CREATE TABLE IF NOT EXISTS entry (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",),),
    tables={"entry": ("key", "value")},
    pragmas={"synchronous": "NORMAL"},
    proves_writable=True,
)
_SCORE = struct.Struct("<dIB")  # logprob, tokens, greedy


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
    except CannotWrite:
        note = f"the LM cache {path} cannot be written: what is computed now is not kept (set ICLKIT_HOME to keep it)"
    try:
        return Cache(path, read_only=True, notes=(note,)) if path.is_file() else NoCache(note)
    except (OSError, RunError):
        return NoCache(note)


class CannotWrite(RunError):
    """The cache is not ours to write: a read-only disk, or another user's file."""


class Cache:
    """A key-value store in one SQLite file for many threads and processes. RunError when it cannot be used.

    Only its owner may read the file: prompts may be guessed from it. ``read_only`` serves what is there and keeps
    nothing.
    """

    def __init__(self, path: Path, *, read_only: bool = False, notes: tuple[str, ...] = ()) -> None:
        self.path, self.read_only, self.notes = path, read_only, notes
        self._db = Database.open(path, FORMAT, self._error, read_only=read_only, parents=not read_only, private=True)

    def _error(self, failure: Failure) -> RunError:
        if failure.kind == "newer":
            return RunError(
                f"LM cache {self.path} has {failure.reason}: upgrade iclkit, move the file away, or pass --no-cache"
            )
        if failure.kind in ("damaged", "foreign"):
            remedy = "move the file away to begin a new one"
        elif failure.kind == "busy":
            remedy = "wait for the process that holds it"
        elif failure.kind == "gone":
            remedy = "put it back, or give the same command again to begin a new one"
        else:
            remedy = "free space or make it writable, set ICLKIT_HOME to another folder"
        kind = CannotWrite if failure.kind == "denied" else RunError
        return kind(f"LM cache {self.path} cannot be used ({failure.reason}): {remedy}, or pass --no-cache")

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        return dict(self._db.read_each("SELECT key, value FROM entry WHERE key IN ({values})", keys))

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Store all entries in one transaction; a key that is already there keeps its first value."""
        if entries and not self.read_only:
            with self._db.writing() as connection:
                connection.executemany("INSERT OR IGNORE INTO entry VALUES (?, ?)", entries.items())

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forget these keys."""
        if keys and not self.read_only:
            with self._db.writing() as connection:
                connection.executemany("DELETE FROM entry WHERE key = ?", ((key,) for key in keys))

    def __len__(self) -> int:
        return int(self._db.read("SELECT count(*) FROM entry")[0][0])

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in by the last process that does."""
        self._db.close()
