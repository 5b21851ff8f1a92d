"""The ledger: every score that an LM gave to a prompt of demonstrations, in one SQLite file that survives a kill."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iclkit.database import MEMORY, Connection, Database, Explain, Failure, Format
from iclkit.errors import DataError, ModelError, RunError
from iclkit.prompts import Template
from iclkit.records import canonical_json

_ONE = struct.Struct("<dI")


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The LM's scores of one prompt: for each option the summed log-probability (nats) and its number of tokens.

    ``gold`` is the index of the right option; a generated answer is the only option.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class ScoreScope:
    """The LM, template and answer options that scores hold for; the scores of one scope can be compared."""

    lm: str
    """The LM's fingerprint."""
    template: Template
    options: tuple[str, ...]
    """The label set; empty for free answers and for choices that belong to a query."""

    @property
    def key_text(self) -> str:
        """Canonical text that names the scope in the file."""
        return canonical_json([self.lm, self.template.identity(), [*self.options]])


FORMAT = Format(
    migrations=(
        (
            "CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, mark TEXT UNIQUE NOT NULL)",
            "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, query TEXT NOT NULL,"
            " shown TEXT NOT NULL, gold INTEGER NOT NULL, told BLOB NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS failed (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, query TEXT NOT NULL,"
            " shown TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID",
        ),
        ("CREATE TABLE IF NOT EXISTS begun (key BLOB PRIMARY KEY, scope INTEGER NOT NULL, prompts TEXT NOT NULL)",),
    ),
    tables={
        "scopes": ("id", "mark"),
        "scores": ("key", "scope", "query", "shown", "gold", "told"),
        "failed": ("key", "scope", "query", "shown", "reason"),
        "begun": ("key", "scope", "prompts"),
    },
    proves_writable=True,
)
PromptKey = tuple[str, Sequence[str]]
"""A query's id, and demonstrations' ids in prompt order."""


class Ledger:
    """Scores by scope, query id and ids of the demonstrations in prompt order, and prompts that an LM refused.

    A stored score that is damaged or not finite (an earlier version let NaN in) counts as not there: it is
    computed again and replaced. DataError for a file that is no ledger, is damaged or cannot be written.
    """

    def __init__(self, path: Path | str, database: Database | None = None) -> None:
        self.path = Path(path)
        self._unusable: set[bytes] = set()
        self._db = database or Database.open(path, FORMAT, _explain(self.path), parents=path != MEMORY)

    @classmethod
    def copy(cls, path: Path) -> Ledger:
        """A ledger in memory with what a file holds, empty where there is none; the file stays as it is."""
        return cls(path, Database.copy(path, FORMAT, _explain(path))) if path.is_file() else cls(MEMORY)

    def close(self) -> None:
        """Close the file; what was put stays."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._db.read("SELECT count(*) FROM scores")[0][0])

    @property
    def unusable(self) -> int:
        """How many of the scores looked up so far are damaged or not finite."""
        return len(self._unusable)

    def get(self, scope: ScoreScope, prompts: Sequence[PromptKey]) -> dict[int, LabelScores]:
        """The scores that are known, by position in ``prompts``."""
        key_text = scope.key_text
        keys = [_key(key_text, query, shown) for query, shown in prompts]
        known = dict[bytes, LabelScores]()
        for key, gold, data in self._db.read_each("SELECT key, gold, told FROM scores WHERE key IN ({values})", keys):
            if (scores := _unpack(data, gold)) is None:
                self._unusable.add(key)
            else:
                known[key] = scores
        return {n: known[key] for n, key in enumerate(keys) if key in known}

    def put(self, scope: ScoreScope, rows: Iterable[tuple[str, Sequence[str], LabelScores]]) -> None:
        """Store scores in one transaction; a score that is there already stays, unless it is unusable.

        ModelError, with nothing stored, for one that is not finite. RunError, with what was stored before kept, where
        the disk is full or the file cannot be written.
        """
        key_text, kept = scope.key_text, list[tuple[bytes, str, str, int, bytes]]()
        for query, shown, scores in rows:
            if not all(map(math.isfinite, scores.logprobs)):
                raise ModelError(f"example {query} got the score {scores.logprobs}, and a log-probability is finite")
            kept.append((_key(key_text, query, shown), query, json.dumps([*shown]), scores.gold, _pack(scores)))
        with self._db.writing() as connection:
            number = _number(connection, key_text)
            for key, *rest in kept:
                how = "REPLACE" if key in self._unusable else "IGNORE"
                connection.execute(f"INSERT OR {how} INTO scores VALUES (?, ?, ?, ?, ?, ?)", (key, number, *rest))
            connection.executemany("DELETE FROM failed WHERE key = ?", [(key,) for key, *_ in kept])
        self._unusable -= {key for key, *_ in kept}

    def fail(self, scope: ScoreScope, rows: Iterable[tuple[str, Sequence[str], str]]) -> None:
        """Record prompts that the LM refused, with its reasons.

        They count as not known, so that they are tried again; a score takes the record's place.
        """
        key_text = scope.key_text
        with self._db.writing() as connection:
            number = _number(connection, key_text)
            connection.executemany(
                "INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, ?)",
                [(_key(key_text, q, s), number, q, json.dumps([*s]), reason) for q, s, reason in rows],
            )

    @contextmanager
    def together(self, scope: ScoreScope, prompts: Sequence[PromptKey]) -> Iterator[None]:
        """A block in which prompts are read together by an LM; where a kill ends it, ``begun`` knows of them."""
        text = json.dumps([[query, [*shown]] for query, shown in prompts])
        key = _key(scope.key_text, text, ())
        with self._db.writing() as connection:
            number = _number(connection, scope.key_text)
            connection.execute("INSERT OR IGNORE INTO begun VALUES (?, ?, ?)", (key, number, text))
        yield
        with self._db.writing() as connection:
            connection.execute("DELETE FROM begun WHERE key = ?", (key,))

    def begun(self, scope: ScoreScope) -> list[list[tuple[str, tuple[str, ...]]]]:
        """The prompts that were being read together when a process ended."""
        rows = self._db.read(
            "SELECT prompts FROM begun JOIN scopes ON scopes.id = scope WHERE mark = ? ORDER BY key", (scope.key_text,)
        )
        with self._parsed():
            return [[(query, tuple(shown)) for query, shown in json.loads(text)] for (text,) in rows]

    def failures(self, scope: ScoreScope) -> list[tuple[str, tuple[str, ...], str]]:
        """(query id, demonstration ids in prompt order, reason) of the prompts that were refused and have no score."""
        rows = self._db.read(
            "SELECT query, shown, reason FROM failed JOIN scopes ON scopes.id = scope WHERE mark = ? "
            "ORDER BY query, shown",
            (scope.key_text,),
        )
        with self._parsed():
            return [(query, tuple(json.loads(shown)), reason) for query, shown, reason in rows]

    @contextmanager
    def _parsed(self) -> Iterator[None]:
        """DataError for texts that are not what was written."""
        try:
            yield
        except ValueError as error:
            raise _explain(self.path)(Failure("damaged", str(error))) from error

    def scopes(self) -> list[ScoreScope]:
        """The scopes that scores were put under, oldest first."""
        rows = self._db.read("SELECT mark FROM scopes ORDER BY id")
        with self._parsed():
            return [_scope(key_text) for (key_text,) in rows]

    def rows(self, scope: ScoreScope) -> Iterator[tuple[str, tuple[str, ...], LabelScores]]:
        """(query id, demonstration ids in prompt order, scores), by query, then by demonstrations."""
        rows = self._db.read(
            "SELECT key, query, shown, gold, told FROM scores JOIN scopes ON scopes.id = scope WHERE mark = ? "
            "ORDER BY query, shown",
            (scope.key_text,),
        )
        for key, query, shown, gold, data in rows:
            if (scores := _unpack(data, gold)) is None:
                self._unusable.add(key)
                continue
            with self._parsed():
                ids = tuple(json.loads(shown))
            yield query, ids, scores


def _explain(path: Path) -> Explain:
    """What is wrong with the file: DataError where it is damaged or no ledger, else RunError."""

    def error(failure: Failure) -> DataError | RunError:
        if failure.opening:
            return DataError(
                f"{path} cannot be used as a ledger ({failure.reason}); give another file, or move it away"
            )
        if failure.kind == "damaged":
            return DataError(
                f"the ledger {path} is damaged ({failure.reason}); put a copy in its place, or move it away: what it "
                f"held is then computed again"
            )
        remedy = "put it back" if failure.kind == "gone" else "free space or make it writable"
        return RunError(
            f"the ledger {path} cannot be used ({failure.reason}); {remedy}, then give the same command again: what "
            f"was scored is kept"
        )

    return error


def _number(connection: Connection, key_text: str) -> int:
    """The scope's number in the file, given to it with its first score."""
    connection.execute("INSERT OR IGNORE INTO scopes (mark) VALUES (?)", (key_text,))
    (number,) = connection.execute("SELECT id FROM scopes WHERE mark = ?", (key_text,)).fetchone()
    return int(number)


def _key(key_text: str, query: str, shown: Sequence[str]) -> bytes:
    return hashlib.blake2b(canonical_json([key_text, query, [*shown]]).encode(), digest_size=20).digest()


def _pack(scores: LabelScores) -> bytes:
    return b"".join(_ONE.pack(v, t) for v, t in zip(scores.logprobs, scores.tokens, strict=True))


def _unpack(data: object, gold: object) -> LabelScores | None:
    """A stored score; None for one that is damaged or not finite."""
    if not isinstance(data, bytes) or not isinstance(gold, int) or not data or len(data) % _ONE.size:
        return None
    values = [*_ONE.iter_unpack(data)]
    if not 0 <= gold < len(values) or not all(math.isfinite(v) for v, _ in values):
        return None
    return LabelScores(tuple(v for v, _ in values), tuple(t for _, t in values), gold)


def _scope(key_text: str) -> ScoreScope:
    """ValueError for a text that names no scope."""
    try:
        lm, template, options = json.loads(key_text)
        fields: Mapping[str, object] = {**template, "stop": tuple(template.get("stop") or ())}
        return ScoreScope(lm, Template(**fields), tuple(options))  # type: ignore[arg-type]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{key_text[:60]!r} names no scope of scores") from error
