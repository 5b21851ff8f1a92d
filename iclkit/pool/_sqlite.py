"""A pool in one SQLite file, or in memory: the default back end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.database import MEMORY, Connection, Database, is_writable
from iclkit.pool._arrays import appended
from iclkit.pool._examples import COLUMNS, StoredExamples, example_of, stored_rows
from iclkit.pool._find import ExamplePage, count_values, find_examples
from iclkit.pool._key_transforms import input_hash
from iclkit.pool._keys import FileKeys
from iclkit.pool._schema import open_database
from iclkit.pool._table import (
    Column,
    Contents,
    ExampleRow,
    Removal,
    Snapshot,
    StoredExample,
    StoredKey,
    StoredVectors,
    in_parts,
)
from iclkit.pool._terms import TermStore
from iclkit.pool._vectors import FileVectors, text_hash
from iclkit.pool._view import PoolReader
from iclkit.records import Example, Query, clean_text, digest


class SQLiteTable:
    """See ``iclkit.pool._table.Table``. Two processes may use one file; writers wait for each other."""

    def __init__(self, place: Path | str, database: Database, read_only: bool = False) -> None:
        self.place, self.database, self.read_only = place, database, read_only
        writes = not read_only
        self._examples = StoredExamples(database)
        beside = None if place == MEMORY else Path(place)
        self.reader = PoolReader(
            FileVectors(database, writes),
            FileKeys(database, writes),
            TermStore(beside, lambda: self.uid, writes),
            self._examples,
            database.save_copy,
        )

    @classmethod
    def open(cls, place: Path | str, *, create: bool, read_only: bool) -> SQLiteTable:
        """PoolError when the file is missing (and not to be created), is not a pool, or is of a newer version."""
        where = place if place == MEMORY else Path(place)
        if isinstance(where, Path) and not create and where.exists() and not is_writable(where):
            read_only = True
        return cls(where, open_database(where, create=create, read_only=read_only), read_only)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def compact(self) -> None:
        """See ``Table``."""
        self.database.compact()

    def reading(self) -> AbstractContextManager[object]:
        """See ``Table``."""
        return self.database.reading()

    @contextmanager
    def writing(self, action: str) -> Iterator[_Changes]:
        """See ``Table``."""
        with self.database.writing() as connection:
            yield _Changes(connection, action, self._examples)

    # ---- reading

    @property
    def uid(self) -> str:
        """See ``Table``."""
        ((uid,),) = self.database.read("SELECT value FROM facts WHERE name = 'uid'")
        return str(uid)

    def revision(self) -> int:
        """See ``Table``."""
        return int(self.database.read("SELECT coalesce(max(revision), 0) FROM log")[0][0])

    def count(self) -> int:
        """See ``Table``."""
        return int(self.database.read("SELECT count(*) FROM examples")[0][0])

    def count_removed(self) -> int:
        """See ``Table``."""
        query = "SELECT count(*) FROM tombstones WHERE id NOT IN (SELECT id FROM examples)"
        return int(self.database.read(query)[0][0])

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """See ``Table``."""
        return {row[1]: example_of(row) for row in self.database.read(BY_ID, (json.dumps([*ids]),))}

    def beginning(self, prefix: str, limit: int) -> list[Example]:
        """See ``Table``."""
        query = f"SELECT {COLUMNS} FROM examples WHERE {BEGINS} ORDER BY id LIMIT ?2"
        return [example_of(row) for row in self.database.read(query, (prefix, limit))]

    def replaced(self, example_id: str) -> tuple[bool, str | None]:
        """See ``Table``."""
        query = "SELECT replaced_by FROM tombstones WHERE id = ? ORDER BY revision DESC LIMIT 1"
        rows = self.database.read(query, (example_id,))
        return bool(rows), (str(rows[0][0]) if rows and rows[0][0] else None)

    def page(
        self, text: str, task: str | None, output: str | None, newest_first: bool, start: int, limit: int
    ) -> ExamplePage:
        """See ``Table``."""
        with self.database.reading() as connection:
            return find_examples(connection, self.revision(), text, task, output, newest_first, start, limit)

    def count_values(self, column: Column, limit: int) -> list[tuple[str, int]]:
        """See ``Table``."""
        with self.database.reading() as connection:
            return count_values(connection, column, limit)

    def embedded(self, example: Example) -> list[str]:
        """See ``Table``."""
        rows = self.database.read(
            "SELECT name FROM embedders JOIN vectors ON embedder = number "
            "WHERE text = (SELECT text FROM examples WHERE id = ?) ORDER BY number",
            (example.id,),
        )
        return [name for (name,) in rows]

    def size(self) -> int:
        """Bytes of the file, with its write-ahead log."""
        files = [] if self.place == MEMORY else [Path(self.place), Path(f"{self.place}-wal")]
        return sum(f.stat().st_size for f in files if f.exists())

    def damage(self) -> list[str]:
        """See ``Table``."""
        damage = " ".join(r[0] for r in self.database.read("PRAGMA integrity_check(3)") if r[0] != "ok")
        if damage:  # nothing else that is read can be relied on
            return [
                f"the file is damaged; export what can still be read and make a new pool ({' '.join(damage.split())})"
            ]
        return []

    def broken_references(self) -> list[str]:
        """See ``Table``."""
        rows = self.database.read("PRAGMA foreign_key_check")
        return [f"table {r[0]} row {r[1]} refers to nothing in {r[2]}" for r in rows]

    def content_id_as_stored(self, example_id: str) -> str:
        """The content id before options, tasks and names of fields were cleaned: old pools hold such ids."""
        ((given, output, task, choices),) = self.database.read(
            "SELECT input, output, task, choices FROM examples WHERE id = ?", (example_id,)
        )
        fields = json.loads(given)
        cleaned = clean_text(fields) if isinstance(fields, str) else {k: clean_text(v) for k, v in fields.items()}
        return digest([cleaned, clean_text(output), task, json.loads(choices)])

    # ---- all examples

    def snapshot(self, old: Snapshot | None) -> Snapshot:
        """See ``Table``."""
        found, stale = self._load(old)
        if self.read_only or self.database.in_transaction:
            return found
        if stale:
            self._renumber(stale)
            found, stale = self._load(None)
        elif found is not old and found.examples is not None and len(found.rows) >= LARGE and self.place != MEMORY:
            with self.database.writing() as connection:  # all texts are spelled as they are now
                connection.execute(_NOTE_SPELLING, (SPELLED,))
        return found

    def _load(self, old: Snapshot | None) -> tuple[Snapshot, dict[int, bytes]]:
        """The snapshot of all examples and, of those just read, {row: hash} of the texts numbered as another one.

        Where examples were only added since the last snapshot, they alone are read. Pools written before texts had one
        spelling number an input by the text it then had: with outer white space, or with its fields in the row's order.
        Vectors of such a text are not those of the example.
        """
        with self.database.reading() as connection:
            revision = self.revision()
            if old is not None and old.revision == revision:
                return old, {}
            if old is not None:
                changes = "SELECT count(*) FROM log WHERE revision > ? AND action != 'add'"
                old = None if connection.execute(changes, (old.revision,)).fetchone()[0] else old
            last = int(old.rows[-1]) if old is not None and len(old.rows) else 0
            if self._is_large(connection, old):
                return self._numbers(connection, revision, old, last), {}
            stored = connection.execute(
                f"SELECT {COLUMNS} FROM examples WHERE seq > ? ORDER BY seq", (last,)
            ).fetchall()
            new = tuple(map(example_of, stored))
            odd = [n for n, (row, e) in enumerate(zip(stored, new, strict=True)) if not _is_canonical(row[2], e)]
            hashes = dict(
                connection.execute(
                    "SELECT number, hash FROM texts WHERE number IN (SELECT value FROM json_each(?))",
                    (json.dumps([stored[n][-1] for n in odd]),),
                )
            )
            rows, texts = (np.array([r[column] for r in stored], dtype=np.int64) for column in (0, -1))
            stale, unstored = dict[int, bytes](), dict[bytes, int]()
            lowest = 0 if old is None else min([0, *old.texts.tolist()])
            for n in odd:
                expected = text_hash(new[n].text)
                if hashes.get(stored[n][-1]) != expected:
                    stale[stored[n][0]] = expected
                    texts[n] = unstored.setdefault(expected, lowest - 1 - len(unstored))
            if old is not None and old.examples is not None:
                rows, texts = appended(old.rows, rows), appended(old.texts, texts)
                new = old.examples + new
            return Snapshot(revision, rows, new, texts), stale

    def _is_large(self, connection: Connection, old: Snapshot | None) -> bool:
        """Whether there are so many examples that a view should not hold them.

        Only where all texts are known to be spelled as they are now: others have to be looked at one by one, once.
        """
        if self.place == MEMORY or old is not None:
            return old is not None and old.examples is None
        known = connection.execute("SELECT 1 FROM facts WHERE name = ?", (SPELLED,)).fetchone()
        return known is not None and connection.execute("SELECT count(*) FROM examples").fetchone()[0] >= LARGE

    def _numbers(self, connection: Connection, revision: int, old: Snapshot | None, last: int) -> Snapshot:
        """Row handles and numbers of texts alone."""
        if last:
            stored = connection.execute("SELECT seq, text FROM examples WHERE seq > ?", (last,))
            numbers = np.fromiter(itertools.chain.from_iterable(stored), np.int64).reshape(-1, 2).T
        else:
            numbers = _all_numbers(connection)
        rows, texts = numbers[:, np.argsort(numbers[0])]
        if old is not None:
            rows, texts = appended(old.rows, rows), appended(old.texts, texts)
        self._examples.in_use = True
        return Snapshot(revision, np.ascontiguousarray(rows), None, np.ascontiguousarray(texts))

    def _renumber(self, stale: Mapping[int, bytes]) -> None:
        """Number the texts of these examples (by seq) anew: keys stay, vectors that no example has any more go."""
        with self.database.writing() as connection:
            old = connection.execute(
                "SELECT text, input, seq FROM examples WHERE seq IN (SELECT value FROM json_each(?))",
                (json.dumps([*stale]),),
            ).fetchall()
            connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((h,) for h in stale.values()))
            connection.executemany(
                "UPDATE examples SET text = (SELECT number FROM texts WHERE hash = ?) WHERE seq = ?",
                ((stale[seq], seq) for _, _, seq in old),
            )
            connection.executemany(
                "UPDATE OR IGNORE keys SET source = ? WHERE source = ?",
                ((_key_source(given), input_hash(json.loads(given))) for _, given, _ in old),
            )
            _drop_orphans(connection, [text for text, _, _ in old])

    # ---- to and from other back ends

    @contextmanager
    def contents(self) -> Iterator[Contents]:
        """See ``Table``."""
        with self.database.reading() as connection:
            yield Contents(
                self.uid,
                self.revision(),
                [*_vectors_of(connection)],
                (
                    StoredKey(fingerprint, name, source, number, text, bool(fallback))
                    for fingerprint, name, source, number, text, fallback in connection.execute(
                        "SELECT fingerprint, name, k.source, k.number, k.text, k.fallback FROM keys AS k "
                        "JOIN transforms AS t ON t.number = k.transform ORDER BY t.number, k.source, k.number"
                    )
                ),
                (
                    (Removal(id_, reason, replaced_by), revision)
                    for id_, revision, reason, replaced_by in connection.execute(
                        "SELECT id, revision, reason, replaced_by FROM tombstones ORDER BY revision, id"
                    )
                ),
                (
                    StoredExample.of(row[0], ExampleRow.of(example_of(row), row[0]), row[-1])
                    for row in connection.execute(f"SELECT {COLUMNS}, revision FROM examples ORDER BY seq")
                ),
            )

    def fill(self, contents: Contents) -> None:
        """Take in everything that another pool holds, in one transaction; this one is new."""
        with self.database.writing() as connection:
            connection.execute("UPDATE facts SET value = ? WHERE name = 'uid'", (contents.uid,))
            connection.execute(_NOTE_SPELLING, (SPELLED,))
            for embedder in contents.vectors:
                ((number,),) = connection.execute(
                    "INSERT INTO embedders (fingerprint, name, side, dim) VALUES (?, ?, 'document', ?) "
                    "RETURNING number",
                    (embedder.key, embedder.name, embedder.dim),
                )
                for part in in_parts(embedder.vectors, _AT_ONCE):
                    connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((h,) for h, _ in part))
                    connection.executemany(
                        "INSERT INTO vectors (embedder, text, vector) SELECT ?, number, ? FROM texts WHERE hash = ?",
                        ((number, vector, h) for h, vector in part),
                    )
            for key in contents.keys:
                connection.execute(
                    "INSERT OR IGNORE INTO transforms (fingerprint, name) VALUES (?, ?)", (key.fingerprint, key.name)
                )
                connection.execute(
                    "INSERT INTO keys (transform, source, number, text, fallback) "
                    "SELECT number, ?, ?, ?, ? FROM transforms WHERE fingerprint = ?",
                    (key.source, key.number, key.text, int(key.fallback), key.fingerprint),
                )
            connection.executemany(
                "INSERT INTO tombstones (id, revision, reason, replaced_by) VALUES (?, ?, ?, ?)",
                ((r.id, revision, r.reason, r.replaced_by) for r, revision in contents.removals),
            )
            count = 0
            for rows in in_parts(contents.examples, _AT_ONCE):
                count += len(rows)
                connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((r.text_hash,) for r in rows))
                connection.executemany(
                    "INSERT INTO examples (seq, id, input, output, task, choices, meta, text, revision) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT number FROM texts WHERE hash = ?), ?)",
                    ((r.row, r.id, r.input, r.output, r.task, r.choices, r.meta, r.text_hash, r.revision)
                     for r in rows),
                )  # fmt: skip
            if contents.revision:
                connection.execute(
                    "INSERT INTO log (revision, action, rows) VALUES (?, 'migrate', ?)", (contents.revision, count)
                )


class _Changes:
    """See ``iclkit.pool._table.Changes``. What a transaction changes is one revision."""

    def __init__(self, connection: Connection, action: str, examples: StoredExamples) -> None:
        self._connection, self._action, self._examples = connection, action, examples
        self._number = 0

    def _revision(self, rows: int) -> int:
        """The revision that these rows change with."""
        if self._number:
            return self._number
        first = not self._connection.execute("SELECT 1 FROM log LIMIT 1").fetchone()
        if first and self._action == "add":  # the first rows ever
            self._connection.execute(_NOTE_SPELLING, (SPELLED,))
        cursor = self._connection.execute("INSERT INTO log (action, rows) VALUES (?, ?)", (self._action, rows))
        self._number = int(cursor.lastrowid or 0)
        return self._number

    def known(self, ids: Sequence[str]) -> set[str]:
        """See ``Changes``."""
        return self._among(ids, "examples")

    def removed(self, ids: Sequence[str]) -> set[str]:
        """See ``Changes``."""
        return self._among(ids, "tombstones")

    def _among(self, ids: Sequence[str], table: str) -> set[str]:
        query = f"SELECT DISTINCT value FROM json_each(?) AS t WHERE EXISTS (SELECT 1 FROM {table} WHERE id = t.value)"
        return {row[0] for row in self._connection.execute(query, (json.dumps([*ids]),))}

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """See ``Changes``."""
        return {row[1]: example_of(row) for row in self._connection.execute(BY_ID, (json.dumps([*ids]),))}

    def insert(self, rows: Sequence[ExampleRow]) -> None:
        """See ``Changes``."""
        more = bool(self._number)
        revision = self._revision(len(rows))
        if more:
            self._connection.execute("UPDATE log SET rows = rows + ? WHERE revision = ?", (len(rows), revision))
        self._connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((r.text_hash,) for r in rows))
        self._connection.executemany(
            "INSERT INTO examples (id, input, output, task, choices, meta, text, revision) "
            "VALUES (?, ?, ?, ?, ?, ?, (SELECT number FROM texts WHERE hash = ?), ?)",
            ((r.id, r.input, r.output, r.task, r.choices, r.meta, r.text_hash, revision) for r in rows),
        )

    def replace(self, rows: Sequence[ExampleRow]) -> None:
        """See ``Changes``."""
        revision, run = self._revision(len(rows)), self._connection.execute
        self._keep([r.id for r in rows], revision)
        self._connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((r.text_hash,) for r in rows))
        before = [run("SELECT text FROM examples WHERE id = ?", (r.id,)).fetchone()[0] for r in rows]
        self._connection.executemany(
            "UPDATE examples SET input = ?, output = ?, meta = ?, revision = ?, "
            "text = (SELECT number FROM texts WHERE hash = ?) WHERE id = ?",
            ((r.input, r.output, r.meta, revision, r.text_hash, r.id) for r in rows),
        )
        _drop_orphans(self._connection, before)

    def remove(self, removals: Sequence[Removal]) -> None:
        """See ``Changes``."""
        revision, ids = self._revision(len(removals)), [r.id for r in removals]
        self._keep(ids, revision)
        run = self._connection.execute
        gone = [run("SELECT text, input FROM examples WHERE id = ?", (i,)).fetchone() for i in ids]
        self._connection.executemany(
            "INSERT OR REPLACE INTO tombstones (id, revision, reason, replaced_by) VALUES (?, ?, ?, ?)",
            ((r.id, revision, r.reason, r.replaced_by) for r in removals),
        )
        self._connection.executemany("DELETE FROM examples WHERE id = ?", ((i,) for i in ids))
        self._connection.executemany(
            f"DELETE FROM keys WHERE source = ?2 AND {_ORPHAN}", ((t, _key_source(stored)) for t, stored in gone)
        )
        _drop_orphans(self._connection, [t for t, _ in gone])

    def _keep(self, ids: Sequence[str], revision: int) -> None:
        """Keep what is about to change for views that were taken before."""
        if self._examples.in_use:
            self._examples.keep(stored_rows(self._connection, ids), revision)


LARGE = 20_000
"""Examples from which on views read them when they are asked for."""
_ROWS_READ = 1 << 20  # whose numbers are read at a time
SPELLED = "texts are spelled"
"""The fact that every text is numbered by the spelling that texts have now."""
_NOTE_SPELLING = "INSERT OR IGNORE INTO facts VALUES (?, '1')"


def _all_numbers(connection: Connection) -> NDArray[np.int64]:
    """(2, n): handle and text number of every row, by text. They come as lists in digits, many rows at a time: half of
    the time of a row at a time. An index that holds both numbers is read instead of the examples."""
    bound = "SELECT text FROM examples WHERE text > ? ORDER BY text LIMIT 1 OFFSET ?"
    query = "SELECT group_concat(seq), group_concat(text) FROM examples WHERE text > ? AND text <= ?"
    read, start, most = [np.empty((2, 0), np.int64)], -1, np.iinfo(np.int64).max
    while start < most:
        (end,) = connection.execute(bound, (start, _ROWS_READ)).fetchone() or (int(most),)
        part = connection.execute(query, (start, end)).fetchone()
        read.append(np.stack([np.fromstring(digits or "", np.int64, sep=",") for digits in part]))
        start = end
    return np.concatenate(read, axis=1)


BY_ID = f"SELECT {COLUMNS} FROM examples WHERE id IN (SELECT value FROM json_each(?))"
BEGINS = "id >= ?1 AND id < ?1 || char(0x10FFFF)"
"""An id that begins with a text, in a form that the index of ids answers."""
_ORPHAN = "NOT EXISTS (SELECT 1 FROM examples WHERE text = ?1)"


def _drop_orphans(connection: Connection, texts: Sequence[int]) -> None:
    """Drop those of the texts that no example has any more, with their vectors."""
    connection.executemany(f"DELETE FROM vectors WHERE text = ?1 AND {_ORPHAN}", ((t,) for t in texts))
    connection.executemany(f"DELETE FROM texts WHERE number = ?1 AND {_ORPHAN}", ((t,) for t in texts))


def _key_source(stored_input: str) -> str:
    """What the keys of an example are kept under, from its input as it is stored."""
    return input_hash(Query(json.loads(stored_input), id="-").input)


def _is_canonical(stored: str, example: Example) -> bool:
    """Whether the stored input is spelled as the example's, with fields in the order of its text."""
    if isinstance(example.input, str):
        return bool(json.loads(stored) == example.input)
    return [*json.loads(stored).items()] == sorted(example.input.items())


def _vectors_of(connection: Connection) -> Iterator[StoredVectors]:
    for number, key, name, dim in connection.execute(
        "SELECT number, fingerprint, name, dim FROM embedders ORDER BY number"
    ).fetchall():
        stored = connection.execute(
            "SELECT hash, vector FROM vectors JOIN texts ON number = text WHERE embedder = ? AND length(vector) = ? "
            "ORDER BY text",
            (number, 4 * dim),
        )
        yield StoredVectors(key, name, dim, stored)


_AT_ONCE = 5_000
