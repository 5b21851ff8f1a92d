"""The ledger: every score that an LM gave to a prompt of demonstrations, in one SQLite file that survives a kill."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iclkit.errors import DataError, ModelError, RunError
from iclkit.prompts import Template
from iclkit.records import canonical_json

_ONE = struct.Struct("<dI")
_LOOKUP = 500  # keys per statement: under SQLite's oldest limit of 999 variables


@dataclass(frozen=True, slots=True)
class LabelScores:
    """What the LM said of one prompt: for each option the summed log-probability (nats) and the tokens it has.

    ``gold`` is the index of the right option; a generated answer is the only option.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class ScoreScope:
    """Under which LM, template and answer options scores hold; those of one scope can be compared."""

    lm: str
    """The LM's fingerprint."""
    template: Template
    options: tuple[str, ...]
    """The label set; empty for free answers and for choices that belong to a query."""

    @property
    def mark(self) -> str:
        """Canonical text that names the scope in the file."""
        return canonical_json([self.lm, self.template.identity(), [*self.options]])


_TABLES = {
    "scopes": ("id", "mark"),
    "scores": ("key", "scope", "query", "shown", "gold", "told"),
    "failed": ("key", "scope", "query", "shown", "reason"),
}
_CREATE = (
    "CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, mark TEXT UNIQUE NOT NULL)",
    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, query TEXT NOT NULL,"
    " shown TEXT NOT NULL, gold INTEGER NOT NULL, told BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS failed (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, query TEXT NOT NULL,"
    " shown TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID",
)
Asked = tuple[str, Sequence[str]]
"""A query's id, and demonstrations' ids in prompt order."""


class Ledger:
    """Scores by scope, query id and ids of the demonstrations in prompt order, and prompts that an LM refused.

    A stored score that is damaged or not finite (an earlier version let NaN in) counts as not there: it is asked again
    and replaced. DataError for a file that is no ledger, is damaged or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._unusable: set[bytes] = set()
        with self._errors(opening=True):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            try:
                self._check_tables(self._db)
                self._db.execute("PRAGMA journal_mode = WAL")
                for statement in _CREATE:
                    self._db.execute(statement)
                self._db.execute("BEGIN IMMEDIATE")  # found out now, not when the first scores are there
                self._db.execute("ROLLBACK")
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def copy(cls, path: Path) -> Ledger:
        """A ledger in memory with what a file holds, empty where there is none; the file stays as it is."""
        ledger = cls(":memory:")
        if not path.is_file():
            return ledger
        ledger.path = path  # what an error names
        with ledger._errors(opening=True):
            with closing(_read_only(path)) as saved:
                ledger._check_tables(saved)
                saved.backup(ledger._db)
            for statement in _CREATE:
                ledger._db.execute(statement)
        return ledger

    def close(self) -> None:
        """Close the file; what was put stays."""
        self._db.close()

    def __len__(self) -> int:
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM scores").fetchone()[0])

    @property
    def unusable(self) -> int:
        """How many of the scores looked up so far are damaged or not finite."""
        return len(self._unusable)

    def get(self, scope: ScoreScope, asked: Sequence[Asked]) -> dict[int, LabelScores]:
        """What is known, by position in ``asked``, a list of (query id, demonstration ids in prompt order)."""
        mark = scope.mark
        keys = [_key(mark, query, shown) for query, shown in asked]
        every, found = [*dict.fromkeys(keys)], dict[bytes, LabelScores]()
        for at in range(0, len(every), _LOOKUP):
            some = every[at : at + _LOOKUP]
            marks = ",".join("?" * len(some))
            with self._errors():
                rows = self._db.execute(f"SELECT key, gold, told FROM scores WHERE key IN ({marks})", some).fetchall()
            for key, gold, data in rows:
                if (told := _unpack(data, gold)) is None:
                    self._unusable.add(key)
                else:
                    found[key] = told
        return {n: found[key] for n, key in enumerate(keys) if key in found}

    def put(self, scope: ScoreScope, rows: Iterable[tuple[str, Sequence[str], LabelScores]]) -> None:
        """Store scores in one transaction; a score that is there already stays, unless it is unusable.

        ModelError, with nothing stored, for one that is not finite. RunError, with what was stored before kept, where
        the disk is full or the file cannot be written.
        """
        mark, kept = scope.mark, list[tuple[bytes, str, str, int, bytes]]()
        for query, shown, told in rows:
            if not all(map(math.isfinite, told.logprobs)):
                raise ModelError(f"example {query} got the score {told.logprobs}, and a log-probability is finite")
            kept.append((_key(mark, query, shown), query, json.dumps([*shown]), told.gold, _pack(told)))
        with self._transaction():
            number = self._number(mark)
            for key, *rest in kept:
                how = "REPLACE" if key in self._unusable else "IGNORE"
                self._db.execute(f"INSERT OR {how} INTO scores VALUES (?, ?, ?, ?, ?, ?)", (key, number, *rest))
            self._db.executemany("DELETE FROM failed WHERE key = ?", [(key,) for key, *_ in kept])
        self._unusable -= {key for key, *_ in kept}

    def fail(self, scope: ScoreScope, rows: Iterable[tuple[str, Sequence[str], str]]) -> None:
        """Record prompts that the LM refused, with its reasons. They count as not known, so that they are asked again
        when the same is wanted once more; a score takes the record's place."""
        mark = scope.mark
        with self._transaction():
            number = self._number(mark)
            self._db.executemany(
                "INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, ?)",
                [(_key(mark, q, s), number, q, json.dumps([*s]), reason) for q, s, reason in rows],
            )

    def failures(self, scope: ScoreScope) -> list[tuple[str, tuple[str, ...], str]]:
        """(query id, demonstration ids in prompt order, reason) of the prompts that were refused and have no score."""
        with self._errors():
            return [
                (query, tuple(json.loads(shown)), reason)
                for query, shown, reason in self._db.execute(
                    "SELECT query, shown, reason FROM failed JOIN scopes ON scopes.id = scope WHERE mark = ? "
                    "ORDER BY query, shown",
                    (scope.mark,),
                )
            ]

    def _number(self, mark: str) -> int:
        self._db.execute("INSERT OR IGNORE INTO scopes (mark) VALUES (?)", (mark,))
        (number,) = self._db.execute("SELECT id FROM scopes WHERE mark = ?", (mark,)).fetchone()
        return int(number)

    def _check_tables(self, db: sqlite3.Connection) -> None:
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            columns = tuple(c for (c,) in db.execute("SELECT name FROM pragma_table_info(?)", (name,)))
            if not name.startswith("sqlite_") and columns != _TABLES.get(name):
                raise DataError(
                    f"{self.path} cannot be used as a ledger (it holds a table {name!r} of something else); "
                    f"give another file"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                    with suppress(sqlite3.Error):  # the cause is what is told
                        self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self, *, opening: bool = False) -> Iterator[None]:
        """What SQLite raises, in one line: DataError for a file that is damaged or no ledger, else RunError."""
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake of ours, not of the file
            raise
        except (sqlite3.Error, OSError, ValueError) as error:
            if opening:
                raise DataError(
                    f"{self.path} cannot be used as a ledger ({error}); give another file, or move it away"
                ) from error
            why = getattr(error, "sqlite_errorname", "")  # none: what was read is not what was written
            if not why or why.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise DataError(
                    f"the ledger {self.path} is damaged ({error}); put a copy in its place, or move it away: what it "
                    f"held is then asked again"
                ) from error
            raise RunError(
                f"the ledger {self.path} cannot be used ({error}); free space or make it writable, then give the same "
                f"command again: what was scored is kept"
            ) from error

    def scopes(self) -> list[ScoreScope]:
        """The scopes that scores were put under, oldest first."""
        with self._errors():
            return [_scope(mark) for (mark,) in self._db.execute("SELECT mark FROM scopes ORDER BY id")]

    def rows(self, scope: ScoreScope) -> Iterator[tuple[str, tuple[str, ...], LabelScores]]:
        """(query id, demonstration ids in prompt order, what was told), by query, then by demonstrations."""
        with self._errors():
            found = self._db.execute(
                "SELECT key, query, shown, gold, told FROM scores JOIN scopes ON scopes.id = scope WHERE mark = ? "
                "ORDER BY query, shown",
                (scope.mark,),
            )
            for key, query, shown, gold, data in found:
                if (told := _unpack(data, gold)) is None:
                    self._unusable.add(key)
                else:
                    yield query, tuple(json.loads(shown)), told


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes neither the file nor what stands beside it. sqlite3.Error where it cannot be read."""
    # without a log beside it nobody writes, and the file alone is all there is; SQLite would make one to share
    used = path.with_name(f"{path.name}-wal").exists()
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro{'' if used else '&immutable=1'}", uri=True, timeout=60.0
    )  # fmt: skip
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except BaseException:
        db.close()
        raise
    return db


def _key(mark: str, query: str, shown: Sequence[str]) -> bytes:
    return hashlib.blake2b(canonical_json([mark, query, [*shown]]).encode(), digest_size=20).digest()


def _pack(told: LabelScores) -> bytes:
    return b"".join(_ONE.pack(v, t) for v, t in zip(told.logprobs, told.tokens, strict=True))


def _unpack(data: object, gold: object) -> LabelScores | None:
    """A stored score; None for one that is damaged or not finite."""
    if not isinstance(data, bytes) or not isinstance(gold, int) or not data or len(data) % _ONE.size:
        return None
    values = [*_ONE.iter_unpack(data)]
    if not 0 <= gold < len(values) or not all(math.isfinite(v) for v, _ in values):
        return None
    return LabelScores(tuple(v for v, _ in values), tuple(t for _, t in values), gold)


def _scope(mark: str) -> ScoreScope:
    """ValueError for a text that names no scope."""
    try:
        lm, template, options = json.loads(mark)
        told: Mapping[str, object] = {**template, "stop": tuple(template.get("stop") or ())}
        return ScoreScope(lm, Template(**told), tuple(options))  # type: ignore[arg-type]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{mark[:60]!r} names no scope of scores") from error
