"""The ledger: every score that an LM gave to a prompt of demonstrations, in one SQLite file that survives a kill."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from iclkit.errors import DataError, RunError
from iclkit.prompts import Template
from iclkit.records import canonical_json

_ONE = struct.Struct("<dI")
_LOOKUP = 500  # keys per statement: under SQLite's oldest limit of 999 variables


@dataclass(frozen=True, slots=True)
class Told:
    """What the LM said of one prompt: for each option the summed log-probability (nats) and the tokens it has.

    ``gold`` is the index of the right option; a generated answer is the only option.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Under which LM, template and answer options scores hold; those of one scope can be compared."""

    lm: str
    """The LM's fingerprint."""
    template: Template
    options: tuple[str, ...]
    """The label set; empty for free answers and for choices that belong to a query."""

    @property
    def mark(self) -> str:
        """Canonical text that names the scope in the file."""
        return canonical_json([self.lm, asdict(self.template), [*self.options]])


class Ledger:
    """Scores by scope, query id and ids of the demonstrations in prompt order. DataError for a file that is none."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, mark TEXT UNIQUE NOT NULL)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, query TEXT NOT NULL,"
                " shown TEXT NOT NULL, gold INTEGER NOT NULL, told BLOB NOT NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path} cannot be used as a ledger ({error}); give another --out, or remove it") from error

    @classmethod
    def copy(cls, path: Path) -> Ledger:
        """A ledger in memory with what a file holds, empty where there is none; the file stays as it is."""
        ledger = cls(":memory:")
        if path.is_file():
            saved = cls(path)
            saved._db.backup(ledger._db)
            saved.close()
        return ledger

    def close(self) -> None:
        """Close the file; what was put stays."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM scores").fetchone()[0])

    def get(self, scope: Scope, asked: Sequence[tuple[str, Sequence[str]]]) -> dict[int, Told]:
        """What is known, by position in ``asked``, a list of (query id, demonstration ids in prompt order)."""
        keys = {_key(scope.mark, query, shown): n for n, (query, shown) in reversed([*enumerate(asked)])}
        every, found = [*keys], dict[bytes, Told]()
        for at in range(0, len(every), _LOOKUP):
            some = every[at : at + _LOOKUP]
            marks = ",".join("?" * len(some))
            with self._errors():
                rows = self._db.execute(f"SELECT key, gold, told FROM scores WHERE key IN ({marks})", some).fetchall()
            for key, gold, told in rows:
                found[key] = _unpack(told, gold)
        return {n: found[k] for n, (q, s) in enumerate(asked) if (k := _key(scope.mark, q, s)) in found}

    def put(self, scope: Scope, rows: Iterable[tuple[str, Sequence[str], Told]]) -> None:
        """Store scores in one transaction; a score that is there already stays. RunError, with what was stored before
        kept, where the disk is full or the file cannot be written."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("INSERT OR IGNORE INTO scopes (mark) VALUES (?)", (scope.mark,))
                (number,) = self._db.execute("SELECT id FROM scopes WHERE mark = ?", (scope.mark,)).fetchone()
                self._db.executemany(
                    "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?)",
                    ((_key(scope.mark, q, s), number, q, json.dumps([*s]), t.gold, _pack(t)) for q, s, t in rows),
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"the ledger {self.path} cannot be used ({error}); free space or make it writable, then give the same "
                f"command again: what was scored is kept"
            ) from error

    def scopes(self) -> list[Scope]:
        """The scopes that scores were put under, oldest first."""
        return [_scope(mark) for (mark,) in self._db.execute("SELECT mark FROM scopes ORDER BY id")]

    def rows(self, scope: Scope) -> Iterator[tuple[str, tuple[str, ...], Told]]:
        """(query id, demonstration ids in prompt order, what was told), by query, then by demonstrations."""
        found = self._db.execute(
            "SELECT query, shown, gold, told FROM scores JOIN scopes ON scopes.id = scope WHERE mark = ? "
            "ORDER BY query, shown",
            (scope.mark,),
        )
        for query, shown, gold, told in found:
            yield query, tuple(json.loads(shown)), _unpack(told, gold)


def _key(mark: str, query: str, shown: Sequence[str]) -> bytes:
    return hashlib.blake2b(canonical_json([mark, query, [*shown]]).encode(), digest_size=20).digest()


def _pack(told: Told) -> bytes:
    return b"".join(_ONE.pack(v, t) for v, t in zip(told.logprobs, told.tokens, strict=True))


def _unpack(data: bytes, gold: int) -> Told:
    values = [*_ONE.iter_unpack(data)]
    return Told(tuple(v for v, _ in values), tuple(t for _, t in values), gold)


def _scope(mark: str) -> Scope:
    lm, template, options = json.loads(mark)
    told: Mapping[str, object] = {**template, "stop": tuple(template.get("stop") or ())}
    return Scope(lm, Template(**told), tuple(options))  # type: ignore[arg-type]
