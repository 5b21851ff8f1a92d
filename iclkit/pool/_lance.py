"""A pool in LanceDB (extra ``lance``): for pools larger than memory, on a disk or an object store.

A folder or URI holds LanceDB tables: ``examples``, with a row for each example and for each that was removed (its id
and the reason, no content), ``vectors_…`` for each embedder and ``keys``. Every change of examples is one commit of
``examples``, and its version is the pool's revision, so that a view reads its own version whatever others change
meanwhile. Vectors and keys follow: what a kill leaves undone there is made again, or is not looked at.

A text's number is 63 bits of its hash, so no table of texts is needed. Among 10^8 texts the chance that any two share a
number is 1 in 2,000.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np

from iclkit.errors import PoolError
from iclkit.files import try_lock
from iclkit.models import home
from iclkit.pool._arrays import appended
from iclkit.pool._candidates import IntArray, is_member
from iclkit.pool._examples import example_of
from iclkit.pool._find import ExamplePage, words_filter
from iclkit.pool._key_transforms import KeyTransform, input_hash
from iclkit.pool._keys import KeyStore, StoredKeys
from iclkit.pool._lance_io import (
    ASKED,
    batches,
    connect,
    explained,
    facts_of,
    number_of,
    one_of,
    quoted,
    reason,
    rows_of,
    table_names,
)
from iclkit.pool._lance_vectors import LanceVectors
from iclkit.pool._sqlite import LARGE, SQLiteTable
from iclkit.pool._table import (
    Column,
    Contents,
    ExampleRow,
    Removal,
    Snapshot,
    StoredExample,
    StoredKey,
    content_id,
    in_parts,
)
from iclkit.pool._terms import TermStore
from iclkit.pool._view import PoolReader
from iclkit.records import Example, Fields

FORMAT = 1
EXAMPLES, KEYS = "examples", "keys"
_WAIT = 60.0  # seconds that a writer waits for another, as with SQLite
_AT_ONCE = 4_000  # rows in a batch
_TIDY = 64  # commits after which small fragments are put together
_HISTORY = timedelta(days=7)  # that versions are kept for views of other processes
_STORED = ("seq", "id", "input", "output", "task", "choices", "meta")


# ---- examples


class LanceTable:
    """See ``iclkit.pool._table.Table``.

    One process writes at a time: on a disk the others wait; on an object store, where nothing can be locked, a change
    that met another one is taken back and refused.
    """

    def __init__(self, place: Path | str, database: Any, table: Any, *, read_only: bool) -> None:
        self.place, self.read_only, self.database = place, read_only, database
        facts = facts_of(table)
        self.uid, self._base = str(facts["uid"]), int(facts["base"])
        self._table, self._versions = table, dict[int, Any]()
        # the last snapshot, and the revision of the last change of each of its rows
        self._seen: tuple[Snapshot, IntArray] | None = None
        self._highest = 0  # the highest handle that is known to have been given
        # versions from the first to the last of which all changes were made here
        self._own = -1, -1
        self._lock, self._depth, self._open = threading.RLock(), 0, True
        self.vectors = LanceVectors(place, database, writes=not read_only)
        beside = place if isinstance(place, Path) else home() / "pools" / f"{self.uid}.lance"
        with suppress(OSError):  # words are then counted each time
            beside.parent.mkdir(parents=True, exist_ok=True)
        self.reader = PoolReader(
            self.vectors,
            LanceKeys(place, database, writes=not read_only),
            TermStore(beside, lambda: self.uid, not read_only and beside.parent.is_dir()),
            LanceExamples(self),
            self._save_copy,
        )

    @classmethod
    def open(cls, place: Path | str, *, create: bool, read_only: bool) -> LanceTable:
        """PoolError when there is no pool (and none is to be made), or it is of something else or a newer version."""
        if isinstance(place, Path):
            if place.is_file():
                raise PoolError(f"{place} is a file; a pool whose name ends in .lance is a folder")
            if not place.exists() and create and not read_only and not place.parent.is_dir():
                raise PoolError(f"cannot make the pool {place}: there is no folder {place.parent}")
        there = not isinstance(place, Path) or place.is_dir()
        missing = PoolError(f"no pool at {place}; make one with: iclkit pool add {place} FILE")
        if not there and (read_only or not create):
            raise missing
        database = connect(place)
        with explained(place):
            names = table_names(database) if there else []
            if EXAMPLES in names:
                table = database.open_table(EXAMPLES)
                _check(place, table)
                return cls(place, database, table, read_only=read_only)
            if read_only or not create:
                raise missing
            if [n for n in names if n != KEYS and not n.startswith("vectors_")]:
                raise PoolError(f"{place} is not a pool: it holds tables of something else ({', '.join(names[:3])})")
            return cls(place, database, _new(database, secrets.token_hex(16), 0, []), read_only=False)

    def close(self) -> None:
        """Let go of the tables."""
        self._open = False
        self._versions.clear()

    # ---- states

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """See ``Table``: gives the table at its last version."""
        with self._latest() as table, explained(self.place):
            yield table

    @contextmanager
    def _latest(self) -> Iterator[Any]:
        """The same for others, whose errors are their own."""
        with self._lock:
            if not self._open:
                raise PoolError(f"the pool {self.place} is closed")
            if not self._depth:
                with explained(self.place):
                    self._table.checkout_latest()
            self._depth += 1
            try:
                yield self._table
            finally:
                self._depth -= 1

    @contextmanager
    def at(self, revision: int) -> Iterator[Any]:
        """The table as it was at a revision. PoolError where that is not kept any more."""
        with self._lock, explained(self.place):
            if not self._open:
                raise PoolError(f"the pool {self.place} is closed")
            if revision not in self._versions:
                table = self.database.open_table(EXAMPLES)
                try:
                    table.checkout(revision - self._base)
                except ValueError as error:
                    raise PoolError(
                        f"revision {revision} of {self.place} is not kept any more ({reason(error)}); run it again"
                    ) from error
                while len(self._versions) >= 4:
                    self._versions.pop(next(iter(self._versions)))
                self._versions[revision] = table
            yield self._versions[revision]

    def revision(self) -> int:
        """See ``Table``."""
        with self.reading() as table:
            return self._base + int(table.version)

    # ---- reading

    def count(self) -> int:
        """See ``Table``."""
        with self.reading() as table:
            return int(table.count_rows("NOT removed"))

    def count_removed(self) -> int:
        """See ``Table``."""
        with self.reading() as table:
            gone = {r["id"] for r in rows_of(table, ["id"], "removed")}
            return len(gone) - len(self._known(table, gone))

    @staticmethod
    def _known(table: Any, ids: Iterable[str], state: str = "NOT removed") -> set[str]:
        return {
            row["id"]
            for part in in_parts(ids, ASKED)
            for row in rows_of(table, ["id"], f"{one_of('id', part)} AND {state}")
        }

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """See ``Table``."""
        with self.reading() as table:
            return {
                row["id"]: _example(row)
                for part in in_parts(ids, ASKED)
                for row in rows_of(table, _STORED, f"{one_of('id', part)} AND NOT removed")
            }

    def beginning(self, prefix: str, limit: int) -> list[Example]:
        """See ``Table``."""
        with self.reading() as table:
            where = f"starts_with(id, {quoted(prefix)}) AND NOT removed"
            ids = sorted(row["id"] for row in rows_of(table, ["id"], where))[:limit]
            rows = rows_of(table, _STORED, f"{one_of('id', ids)} AND NOT removed")
        return sorted(map(_example, rows), key=lambda e: e.id)

    def replaced(self, example_id: str) -> tuple[bool, str | None]:
        """See ``Table``."""
        with self.reading() as table:
            rows = rows_of(table, ["revision", "replaced_by"], f"id = {quoted(example_id)} AND removed")
        last = max(rows, key=lambda r: int(r["revision"]), default=None)
        return last is not None, (last["replaced_by"] or None) if last else None

    def page(
        self, text: str, task: str | None, output: str | None, newest_first: bool, start: int, limit: int
    ) -> ExamplePage:
        """See ``Table``. Task and output are filtered by LanceDB; words are looked for in what that leaves."""
        holds = words_filter(text)
        where = [
            "NOT removed",
            *(f"{c} = {quoted(v)}" for c, v in (("task", task), ("output", output)) if v is not None),
        ]
        with self.reading() as table:
            found = [
                row["seq"]
                for batch in batches(table, _STORED if holds else ["seq"], " AND ".join(where))
                for row in batch.to_pylist()
                if not holds
                or holds(row["input"] + row["meta"] + row["choices"], f"{row['output']}\n{row['task']}", row["id"])
            ]
            found.sort(reverse=newest_first)
            shown = found[start : start + limit]
            rows = {r["seq"]: r for p in in_parts(shown, ASKED) for r in rows_of(table, _STORED, one_of("seq", p))}
            return ExamplePage(tuple(_example(rows[s]) for s in shown), len(found), start, self.revision())

    def count_values(self, column: Column, limit: int) -> list[tuple[str, int]]:
        """See ``Table``."""
        with self.reading() as table:
            counts = Counter(v for b in batches(table, [column], "NOT removed") for v in b[column].to_pylist())
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]

    def snapshot(self, old: Snapshot | None) -> Snapshot:
        """See ``Table``. PoolError for a table in which a handle stands twice."""
        with self.reading() as table:
            revision = self.revision()
            if old is not None and old.revision == revision:
                return old
            if old is not None and old.examples is None:
                first, last = self._own
                ours = first <= old.revision - self._base and last == int(table.version)
                if ours and (found := self._extended(table, old, revision)):
                    return found
            rows, texts, changed = _numbers(table)
            if len(rows) and not (np.diff(rows) > 0).all():
                twice = int(rows[:-1][np.diff(rows) == 0][0])
                raise PoolError(
                    f"the pool {self.place} was changed by another program: row {twice} stands twice; go back to a "
                    "version before that with LanceDB (table.restore)"
                )
            examples = None if len(rows) >= LARGE else self._read(table, rows, changed, old)
            found = Snapshot(revision, rows, examples, texts)
            self._seen = None if examples is None else (found, changed)
            return found

    def _extended(self, table: Any, old: Snapshot, revision: int) -> Snapshot | None:
        """A snapshot of a large pool by what has been changed here since the last one; None where that does not explain
        it all, as when another program wrote meanwhile. What others change is read whole: they may have gone back to an
        earlier version, in which the revisions of rows are lower."""
        since = f"revision > {old.revision}"
        gone = [b["seq"].to_numpy() for b in batches(table, ["seq"], f"{since} AND seq <= {int(old.rows[-1])}")]
        stays = ~is_member(old.rows, np.sort(np.concatenate([np.empty(0, np.int64), *gone])))
        rows, texts = (old.rows, old.texts) if stays.all() else (old.rows[stays], old.texts[stays])
        new_rows, new_texts, _ = _numbers(table, since)
        if len(new_rows) and len(rows) and new_rows[0] < rows[-1]:  # in the place of others
            at = np.searchsorted(rows, new_rows)
            rows, texts = np.insert(rows, at, new_rows), np.insert(texts, at, new_texts)
        else:
            rows, texts = appended(rows, new_rows), appended(texts, new_texts)
        accounted = bool((np.diff(rows) > 0).all()) and int(table.count_rows("NOT removed")) == len(rows)
        return Snapshot(revision, rows, None, texts) if accounted and len(rows) >= LARGE else None

    def _read(self, table: Any, rows: IntArray, changed: IntArray, old: Snapshot | None) -> tuple[Example, ...]:
        """The examples of these handles, of which those are read that the last snapshot does not hold as they are."""
        known = dict[int, Example]()
        if old is not None and self._seen is not None and self._seen[0] is old and old.examples is not None:
            before = dict(zip(old.rows.tolist(), zip(self._seen[1].tolist(), old.examples, strict=True), strict=True))
            now = zip(rows.tolist(), changed.tolist(), strict=True)
            known = {row: before[row][1] for row, at in now if row in before and before[row][0] == at}
        missing = [row for row in rows.tolist() if row not in known]
        every = len(missing) > len(known)
        for part in in_parts(missing, max(len(missing), 1) if every else ASKED):
            where = "NOT removed" if every else f"{one_of('seq', part)} AND NOT removed"
            known.update((int(row["seq"]), _example(row)) for row in rows_of(table, _STORED, where))
        return tuple(known[row] for row in rows.tolist())

    def embedded(self, example: Example) -> list[str]:
        """See ``Table``."""
        row = ExampleRow.of(example, 1)
        with explained(self.place):
            return self.vectors.names_with(row.text_hash)

    def size(self) -> int:
        """Bytes of the folder; 0 on an object store, which is not asked."""
        if not isinstance(self.place, Path):
            return 0
        return sum(f.stat().st_size for f in self.place.rglob("*") if f.is_file())

    def damage(self) -> list[str]:
        """See ``Table``."""
        try:
            with self.reading() as table:
                for _ in batches(table, table.schema.names):
                    pass
        except PoolError as error:
            return [f"{error}; export what can still be read and make a new pool"]
        return []

    def broken_references(self) -> list[str]:
        """See ``Table``."""
        with self.reading() as table:
            ids = Counter(i for b in batches(table, ["id"], "NOT removed") for i in b["id"].to_pylist())
        return [f"the id {i} stands {n} times" for i, n in ids.items() if n > 1]

    def content_id_as_stored(self, example_id: str) -> str:
        """See ``Table``: there have been no other rules."""
        found = self.examples([example_id])
        return content_id(found[example_id]) if found else ""

    # ---- writing

    @contextmanager
    def writing(self, action: str) -> Iterator[_Changes]:  # noqa: ARG002
        """See ``Table``."""
        with self._locked(), self._latest() as table, ExitStack() as stack:
            with explained(self.place):
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            changes = stack.enter_context(closing(_Changes(self, table, Path(folder))))
            yield changes
            with explained(self.place):
                self._commit(table, changes)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not isinstance(self.place, Path) or self._depth:
            yield
            return
        with explained(self.place):
            file = (self.place / ".lock").open("a")
        with file:
            until = time.monotonic() + _WAIT
            while not try_lock(file):
                if time.monotonic() > until:
                    raise PoolError(f"the pool {self.place} is being written by another process; try again")
                time.sleep(0.05)
            yield

    def _commit(self, table: Any, changes: _Changes) -> None:
        if changes.is_empty:
            return
        import pyarrow as pa

        before, mark = int(table.version), secrets.randbits(62)
        revision, self._highest = self._base + before + 1, _last(table, self._highest)
        last = self._highest
        schema = _schema()
        added = _added(changes.inserted(), last, revision, mark, schema)
        changed, texts, sources = self._changed(table, changes, revision, mark, schema)
        if changed is None:
            table.add(pa.RecordBatchReader.from_batches(schema, added))
        else:
            every = pa.Table.from_batches([changed, *added], schema)
            table.merge_insert("seq").when_matched_update_all().when_not_matched_insert_all().execute(every)
        if int(table.version) != before + 1 and not isinstance(self.place, Path):
            if changed is None:
                table.delete(f"mark = {mark}")
                raise PoolError(
                    f"another process wrote to {self.place} at the same moment; nothing was added: try again"
                )
            remedy = f"look at it with: iclkit pool check {self.place}"
            raise PoolError(f"another process wrote to {self.place} at the same moment; {remedy}")
        if texts:
            self._drop_orphans(table, texts, sources)
        self._tidy(table)
        self._own = self._own[0] if self._own[1] == before else before, int(table.version)

    def _changed(
        self, table: Any, changes: _Changes, revision: int, mark: int, schema: Any
    ) -> tuple[Any, list[int], dict[str, int]]:
        """A batch of the rows that are put in the place of stored ones (None for none), the numbers of texts that go
        from some row, and the hashes of inputs that do."""
        import pyarrow as pa

        ids = [*changes.replaced, *changes.removals]
        if not ids:
            return None, [], {}
        columns = [*_STORED, "text"]
        state = "NOT removed"
        old = [r for p in in_parts(ids, ASKED) for r in rows_of(table, columns, f"{one_of('id', p)} AND {state}")]
        rows, texts, sources = list[dict[str, Any]](), list[int](), dict[str, int]()
        for stored in old:
            texts.append(int(stored["text"]))
            if (row := changes.replaced.get(stored["id"])) is not None:
                made = StoredExample.of(int(stored["seq"]), row, revision)
                rows.append(_live(made, mark))
            else:
                sources[input_hash(_example(stored).input)] = int(stored["text"])
                rows.append(_gone(int(stored["seq"]), changes.removals[stored["id"]], revision, mark))
        return pa.RecordBatch.from_pylist(rows, schema), texts, sources

    def _drop_orphans(self, table: Any, texts: Sequence[int], sources: Mapping[str, int]) -> None:
        """Drop vectors and keys of those of the texts that no example has any more."""
        live = {
            int(r["text"])
            for p in in_parts(texts, ASKED)
            for r in rows_of(table, ["text"], f"{one_of('text', p)} AND NOT removed")
        }
        gone = [t for t in dict.fromkeys(texts) if t not in live]
        self.vectors.drop(gone)
        keys = [source for source, text in sources.items() if text not in live]
        if keys and KEYS in table_names(self.database):
            stored = self.database.open_table(KEYS)
            for part in in_parts(keys, ASKED):
                stored.delete(one_of("source", part))

    def _tidy(self, table: Any) -> None:
        """Indexes that find rows by handle and id, and few fragments, once there are many rows."""
        if table.count_rows() < LARGE:
            return
        indexed = {column for index in table.list_indices() for column in index.columns}
        if missing := [c for c in ("seq", "id") if c not in indexed]:
            from lancedb.index import BTree

            for column in missing:
                table.create_index(column, config=BTree())
        elif int(table.version) % _TIDY == 0:
            table.optimize(cleanup_older_than=_HISTORY)

    def compact(self) -> None:
        """See ``Table``. Views that were taken before cannot be read any more."""
        with self._locked(), self.reading() as table:
            self.vectors.compact()
            for name in (KEYS, EXAMPLES):
                if name in table_names(self.database):
                    self.database.open_table(name).optimize(cleanup_older_than=timedelta(milliseconds=1))
            table.checkout_latest()

    # ---- to and from other back ends

    @contextmanager
    def contents(self) -> Iterator[Contents]:
        """See ``Table``."""
        with self._latest() as table:
            with explained(self.place):
                rows, *_ = _numbers(table)
                names = table_names(self.database)
                removals = sorted(
                    (r["revision"], r["id"], r["reason"], r["replaced_by"])
                    for r in rows_of(table, ["revision", "id", "reason", "replaced_by"], "removed")
                )
            yield Contents(
                self.uid,
                self.revision(),
                self.vectors.contents(),
                _keys_of(self.place, self.database) if KEYS in names else [],
                ((Removal(i, why, by or None), int(revision)) for revision, i, why, by in removals),
                self._stored(table, rows),
            )

    def _stored(self, table: Any, rows: IntArray) -> Iterator[StoredExample]:
        columns = [*_STORED, "hash", "revision"]
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            between = f"seq >= {int(some[0])} AND seq <= {int(some[-1])} AND NOT removed"
            with explained(self.place):
                found = sorted(rows_of(table, columns, between), key=lambda row: int(row["seq"]))
            yield from (StoredExample(*(r[c] for c in columns)) for r in found)

    @classmethod
    def make(cls, place: Path | str, contents: Contents) -> LanceTable:
        """A new pool with everything that another one holds. It is there once its examples are, which come last."""
        database = connect(place)
        with explained(place):
            LanceVectors(place, database, writes=True).take_in(contents.vectors)
            _fill_keys(database, contents.keys)
            last = contents.revision
            gone = ((n, r, revision) for n, (r, revision) in enumerate(contents.removals, start=1))
            removed = (_gone(-n, removal, revision, 0) for n, removal, revision in gone)
            live = (_live(row, 0) for row in contents.examples)
            table = _new(database, contents.uid, max(0, last - 1), (removed, live))
            made = cls(place, database, table, read_only=False)
            made._tidy(table)
            return made

    def _save_copy(self, path: Path) -> None:
        """A new SQLite file with everything that is here."""
        made = SQLiteTable.open(path, create=True, read_only=False)
        try:
            with self.contents() as contents:
                made.fill(contents)
        finally:
            made.close()


class _Changes:
    """See ``iclkit.pool._table.Changes``. What is inserted waits in a file of its own, so that it takes no memory."""

    def __init__(self, owner: LanceTable, table: Any, folder: Path) -> None:
        self._owner, self._table, self._folder = owner, table, folder
        self._waiting: SQLiteTable | None = None
        self.replaced: dict[str, ExampleRow] = {}
        self.removals: dict[str, Removal] = {}

    @property
    def is_empty(self) -> bool:
        return self._waiting is None and not self.replaced and not self.removals

    def known(self, ids: Sequence[str]) -> set[str]:
        """See ``Changes``."""
        with explained(self._owner.place):
            found = self._owner._known(self._table, ids)
        if self._waiting is not None:
            with self._waiting.writing("add") as waiting:
                found |= waiting.known(ids)
        return found

    def removed(self, ids: Sequence[str]) -> set[str]:
        """See ``Changes``."""
        with explained(self._owner.place):
            return self._owner._known(self._table, ids, "removed")

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """See ``Changes``."""
        return self._owner.examples(ids) | (self._waiting.examples(ids) if self._waiting is not None else {})

    def insert(self, rows: Sequence[ExampleRow]) -> None:
        """See ``Changes``."""
        if self._waiting is None:
            self._waiting = SQLiteTable.open(self._folder / "added.db", create=True, read_only=False)
        with self._waiting.writing("add") as waiting:
            waiting.insert(rows)

    def replace(self, rows: Sequence[ExampleRow]) -> None:
        """See ``Changes``."""
        self.replaced.update((row.id, row) for row in rows)

    def remove(self, removals: Sequence[Removal]) -> None:
        """See ``Changes``."""
        self.removals.update((r.id, r) for r in removals)

    def inserted(self) -> Iterator[StoredExample]:
        """What waits, in order."""
        if self._waiting is not None:
            with self._waiting.contents() as contents:
                yield from contents.examples

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.close()


class LanceExamples:
    """See ``iclkit.pool._examples.ExampleReader``."""

    def __init__(self, owner: LanceTable) -> None:
        self._owner = owner

    def at(self, rows: IntArray, revision: int) -> list[Example]:
        """See ``ExampleReader``."""
        found: dict[int, Example] = {}
        with self._owner.at(revision) as table:
            for part in in_parts(dict.fromkeys(rows.tolist()), ASKED):
                where = f"{one_of('seq', part)} AND NOT removed"
                found.update((int(r["seq"]), _example(r)) for r in rows_of(table, _STORED, where))
        for row in rows.tolist():
            if row not in found:
                raise PoolError(f"row {row} of {self._owner.place} is not there any more; run it again")
        return [found[row] for row in rows.tolist()]

    def each(self, rows: IntArray, revision: int) -> Iterator[Example]:
        """See ``ExampleReader``."""
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            with self._owner.at(revision) as table:
                between = f"seq >= {int(some[0])} AND seq <= {int(some[-1])} AND NOT removed"
                found = {int(r["seq"]): r for r in rows_of(table, _STORED, between)}
            yield from (_example(found[row]) for row in some.tolist())

    def changed(self, rows: IntArray, since: int) -> bool:
        """See ``ExampleReader``."""
        with self._owner.reading() as table:
            found = [b["seq"].to_numpy() for b in batches(table, ["seq"], f"revision > {since}")]
        return bool(is_member(np.concatenate([np.empty(0, np.int64), *found]), rows).any())

    def row_of(self, example_id: str, revision: int) -> int | None:
        """See ``ExampleReader``."""
        with self._owner.at(revision) as table:
            rows = rows_of(table, ["seq"], f"id = {quoted(example_id)} AND NOT removed")
        return int(rows[0]["seq"]) if rows else None

    def of_task(self, task: str, revision: int) -> IntArray:
        """See ``ExampleReader``."""
        with self._owner.at(revision) as table:
            rows = rows_of(table, ["seq"], f"task = {quoted(task)} AND NOT removed")
        return np.sort(np.array([r["seq"] for r in rows], dtype=np.int64))

    def traces(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """See ``ExampleReader``."""
        found = self._those("contains(meta, '\"generated_from\"')", rows, revision)
        return [(r, e) for r, e in found if "generated_from" in e.meta]

    def unlabeled(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """See ``ExampleReader``."""
        return self._those("output = ''", rows, revision)

    def _those(self, where: str, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        with self._owner.at(revision) as table:
            found = rows_of(table, _STORED, f"{where} AND NOT removed")
        found.sort(key=lambda r: int(r["seq"]))
        inside = is_member(np.array([r["seq"] for r in found], dtype=np.int64), rows)
        return [(int(r["seq"]), _example(r)) for r, here in zip(found, inside, strict=True) if here]


# ---- keys


class LanceKeys(KeyStore):
    """Keys in a LanceDB table."""

    def __init__(self, place: Path | str, database: Any, writes: bool) -> None:
        super().__init__(writes)
        self._place, self._database = place, database

    def _read_only(self) -> Self:
        return type(self)(self._place, self._database, writes=False)

    def _table(self) -> Any:
        return self._database.open_table(KEYS) if KEYS in table_names(self._database) else None

    def _written(self, sources: Sequence[str]) -> list[tuple[str, str, int, str]]:
        columns = ["source", "name", "number", "text"]
        with explained(self._place):
            if (table := self._table()) is None:
                return []
            rows = [r for p in in_parts(sources, ASKED) for r in rows_of(table, columns, one_of("source", p))]
        return sorted((r["source"], r["name"], r["number"], r["text"]) for r in rows)

    def _stored(self, transform: KeyTransform, input_of: Mapping[str, Fields]) -> StoredKeys:
        found: StoredKeys = {}
        with explained(self._place):
            if (table := self._table()) is None:
                return found
            for part in in_parts(input_of, ASKED):
                where = f"fingerprint = {quoted(transform.fingerprint)} AND {one_of('source', part)}"
                for r in rows_of(table, ["source", "number", "text", "fallback"], where):
                    found[r["source"], r["number"]] = r["text"], r["fallback"]
        return found

    def _store(self, transform: KeyTransform, keys: StoredKeys) -> None:
        made = (
            StoredKey(transform.fingerprint, transform.name, source, number, text, fell)
            for (source, number), (text, fell) in keys.items()
        )
        with explained(self._place):
            import pyarrow as pa

            rows = pa.Table.from_pylist([_key_row(k) for k in made], _key_schema())
            if (table := self._table()) is None:
                self._database.create_table(KEYS, rows, mode="create")
            else:  # what another process wrote meanwhile stays: all see the same keys
                table.merge_insert(["fingerprint", "source", "number"]).when_not_matched_insert_all().execute(rows)


def _key_row(key: StoredKey) -> dict[str, Any]:
    return {"fingerprint": key.fingerprint, "name": key.name, "source": key.source, "number": key.number,
            "text": key.text, "fallback": key.fallback}  # fmt: skip


def _key_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [(n, pa.string()) for n in ("fingerprint", "name", "source")]
        + [("number", pa.int64()), ("text", pa.string()), ("fallback", pa.bool_())]
    )


def _keys_of(place: Path | str, database: Any) -> Iterator[StoredKey]:
    names = ("fingerprint", "name", "source", "number", "text", "fallback")
    with explained(place):
        for batch in batches(database.open_table(KEYS), names):
            yield from (StoredKey(*(r[n] for n in names)) for r in batch.to_pylist())


def _fill_keys(database: Any, keys: Iterable[StoredKey]) -> None:
    import pyarrow as pa

    made = (pa.RecordBatch.from_pylist([_key_row(k) for k in p], _key_schema()) for p in in_parts(keys, _AT_ONCE))
    if KEYS in table_names(database):
        database.drop_table(KEYS)
    database.create_table(KEYS, pa.RecordBatchReader.from_batches(_key_schema(), made), mode="create")


# ---- rows


def _schema(facts: Mapping[str, Any] | None = None) -> Any:
    import pyarrow as pa

    texts = [(c, pa.string()) for c in ("id", "input", "output", "task", "choices", "meta")]
    rest = [("text", pa.int64()), ("hash", pa.binary(16)), ("revision", pa.int64()), ("removed", pa.bool_())]
    ends = [("reason", pa.string()), ("replaced_by", pa.string()), ("mark", pa.int64())]
    told = {b"iclkit": json.dumps(facts).encode()} if facts else None
    return pa.schema([("seq", pa.int64()), *texts, *rest, *ends], metadata=told)


def _check(place: Path | str, table: Any) -> None:
    """PoolError for a table that is none of ours, or of a newer version."""
    facts = facts_of(table)
    if not facts:
        raise PoolError(f"{place} is not a pool: its table 'examples' was not made by iclkit")
    if facts.get("format") != FORMAT:
        raise PoolError(
            f"{place} was written by a newer iclkit (format {facts.get('format')}, this iclkit knows {FORMAT}); "
            "upgrade iclkit"
        )
    if not table.schema.equals(_schema()):
        ours, theirs = {*_schema().names}, {*table.schema.names}
        what = ", ".join(sorted(ours ^ theirs)) or "their types"
        raise PoolError(f"the table of {place} was changed by another program: its columns differ ({what})")


def _new(database: Any, uid: str, base: int, rows: Iterable[Iterable[dict[str, Any]]]) -> Any:
    """The table of a new pool, whose first version is revision ``base`` + 1."""
    import pyarrow as pa

    schema = _schema({"format": FORMAT, "uid": uid, "base": base})
    made = (pa.RecordBatch.from_pylist(part, schema) for several in rows for part in in_parts(several, _AT_ONCE))
    return database.create_table(EXAMPLES, pa.RecordBatchReader.from_batches(schema, made), mode="create")


def _added(rows: Iterator[StoredExample], last: int, revision: int, mark: int, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    for part in in_parts(rows, _AT_ONCE):
        made = [_live(row, mark) | {"seq": last + row.row, "revision": revision} for row in part]
        yield pa.RecordBatch.from_pylist(made, schema)


def _live(row: StoredExample, mark: int) -> dict[str, Any]:
    return {"seq": row.row, "id": row.id, "input": row.input, "output": row.output, "task": row.task,
            "choices": row.choices, "meta": row.meta, "text": number_of(row.text_hash), "hash": row.text_hash,
            "revision": row.revision, "removed": False, "reason": "", "replaced_by": "", "mark": mark}  # fmt: skip


def _gone(seq: int, removal: Removal, revision: int, mark: int) -> dict[str, Any]:
    """What stays of an example that was removed."""
    blank = dict.fromkeys(("input", "output", "task", "choices", "meta"), "")
    return {**blank, "seq": seq, "id": removal.id, "text": 0, "hash": bytes(16), "revision": revision, "removed": True,
            "reason": removal.reason, "replaced_by": removal.replaced_by or "", "mark": mark}  # fmt: skip


def _example(row: Mapping[str, Any]) -> Example:
    return example_of(tuple(row[c] for c in _STORED))


def _numbers(table: Any, where: str = "") -> tuple[IntArray, IntArray, IntArray]:
    """Of examples: handles, ascending, the numbers of their texts, and the revisions of their last changes."""
    columns = ("seq", "text", "revision")
    found = [
        [b[c].to_numpy() for c in columns]
        for b in batches(table, columns, f"{where} AND NOT removed" if where else "NOT removed")
    ]
    none = np.empty(0, np.int64)
    rows, texts, changed = (np.concatenate([none, *(b[n] for b in found)]) for n in range(len(columns)))
    order = np.argsort(rows, kind="stable")
    return rows[order], texts[order], changed[order]


def _last(table: Any, known: int) -> int:
    """The highest handle ever given; ``known``: one that was, of which higher ones are looked for."""
    where = f"seq > {known}" if known else ""
    return max([known, *(int(b["seq"].to_numpy().max()) for b in batches(table, ["seq"], where) if b.num_rows)])
