"""The pool: examples in one SQLite file, their vectors, and what was done to them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from iclkit.database import MEMORY, Connection, Database, is_writable
from iclkit.embed import Embedder, FloatArray, as_embedder
from iclkit.engines import Engine
from iclkit.errors import ChangedElsewhere, DataError, PoolError
from iclkit.pool._arrays import appended
from iclkit.pool._dedupe import duplicate_rows, fold_input
from iclkit.pool._examples import COLUMNS, StoredExamples, example_of, stored_rows
from iclkit.pool._export import write_examples
from iclkit.pool._find import ExamplePage, count_values, find_examples
from iclkit.pool._key_transforms import input_hash
from iclkit.pool._keys import KeyStore
from iclkit.pool._lists import RECALL, ApproximateIndex
from iclkit.pool._rows import examples_of
from iclkit.pool._schema import open_database
from iclkit.pool._terms import TermStore
from iclkit.pool._vectors import VectorStore, text_hash
from iclkit.pool._view import IntArray, MadeBy, PoolOrigin, PoolReader, PoolView
from iclkit.records import Example, Json, Progress, Query, clean_text, digest, set_meta


@dataclass(frozen=True, slots=True)
class AddReport:
    """``ids`` are those of the examples given, in order, where they were to be kept; ``revived`` of the ``added`` had
    been removed earlier."""

    added: int
    known: int
    ids: tuple[str, ...]
    revived: int = 0


@dataclass(frozen=True, slots=True)
class DedupeReport:
    """Groups of ids that say the same, oldest first; the oldest of each is kept. ``removed`` is 0 in a dry run."""

    groups: tuple[tuple[str, ...], ...]
    removed: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds. ``tasks`` and ``outputs`` count examples, ``vectors`` stored vectors per embedder."""

    examples: int
    removed: int
    revision: int
    size: int
    """Bytes of the file, with its write-ahead log."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)
    indexes: Mapping[str, str] = field(default_factory=dict)
    """Approximate indexes, by embedder."""


class Pool:
    """Examples that may be shown, in insertion order. Also a context manager that closes itself.

    Two processes may use one file; writers wait for each other. Every change is one transaction. A pool is pickled and
    copied as its path, and one in memory as its examples.
    """

    def __init__(self, path: Path | str, database: Database, read_only: bool = False) -> None:
        self.path, self.read_only, self._db = path, read_only, database
        writes = not read_only
        self._reader = PoolReader(
            VectorStore(database, writes),
            KeyStore(database, writes),
            TermStore(database, writes),
            StoredExamples(database),
        )
        self._snapshot: PoolView | None = None

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True, read_only: bool = False) -> Pool:
        """Open the pool at ``path`` and bring it to the current format; ``":memory:"`` makes one that is not kept.

        A pool that is there but cannot be written (read-only media) is opened for reading: vectors and keys that are
        made for it stay in memory, and what would change it is refused.
        PoolError when the file is missing (and not to be created), is not a pool, or was written by a newer version.
        """
        where = path if path == MEMORY else Path(path)
        if isinstance(where, Path) and not create and where.exists() and not is_writable(where):
            read_only = True
        return cls(where, open_database(where, create=create, read_only=read_only), read_only)

    @classmethod
    def of(
        cls,
        data: object,
        *,
        input: str | Sequence[str] | None = None,
        output: str | None = None,
        task: str = "",
        keep: Sequence[str] = (),
    ) -> Pool:
        """A pool in memory: of examples, or of rows as ``examples_of`` reads them.

        >>> len(Pool.of([{"ticket": "late parcel", "team": "delivery"}], input="ticket", output="team"))
        1
        """
        pool = cls.open(MEMORY)
        pool.add(examples_of(data, input=input, output=output, task=task, keep=keep))
        return pool

    def __reduce__(self) -> tuple[Callable[..., Pool], tuple[Any, ...]]:
        if self.path == MEMORY:
            return Pool.of, (self.view(labeled=None).examples,)
        return _pool_of_file, (str(Path(self.path).resolve()), self.uid, self.read_only)

    def close(self) -> None:
        """Close the file. Views stay usable for what they have loaded."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading

    @property
    def revision(self) -> int:
        """Grows with every change of content; never falls."""
        return int(self._read("SELECT coalesce(max(revision), 0) FROM log")[0][0])

    def __len__(self) -> int:
        return int(self._read("SELECT count(*) FROM examples")[0][0])

    def __iter__(self) -> Iterator[Example]:
        return iter(self.view(labeled=None).examples)

    @property
    def ids(self) -> tuple[str, ...]:
        """Example ids in insertion order."""
        return self.view(labeled=None).ids

    def get(self, example_id: str) -> Example:
        """The example of an id or of a prefix that only one id has. DataError otherwise, with the nearest ids."""
        rows = self._read(BY_ID, (example_id,)) or self._read(
            f"SELECT {COLUMNS} FROM examples WHERE {BEGINS} ORDER BY id LIMIT 4", (example_id,)
        )
        if len(rows) == 1 and example_id:
            return example_of(rows[0])
        if rows:
            several = ", ".join(r[1] for r in rows[:3]) + (", …" if len(rows) > 3 else "")
            raise DataError(f"{example_id!r} begins several ids: {several}; give more of it")
        for size in range(len(example_id) - 1, 0, -1):
            near = self._read(f"SELECT id FROM examples WHERE {BEGINS} LIMIT 1", (example_id[:size],))
            if near:
                raise DataError(f"no example {example_id!r} in {self.path}; the nearest id is {near[0][0]}")
        raise DataError(f"no example {example_id!r} in {self.path}; list them with: iclkit pool ls {self.path}")

    def find(
        self,
        text: str = "",
        *,
        task: str | None = None,
        output: str | None = None,
        newest_first: bool = False,
        start: int = 0,
        limit: int = 50,
    ) -> ExamplePage:
        """A page of the examples that hold every word of ``text``, whatever its case, and have this task and output.

        Words are looked for in inputs, outputs, metadata and tasks, and at the beginning of ids. All is looked through,
        and only the page is held.
        """
        with self._db.reading() as connection:
            return find_examples(connection, self.revision, text, task, output, newest_first, start, limit)

    def count_values(self, column: Literal["task", "output"], limit: int = 200) -> list[tuple[str, int]]:
        """The commonest tasks or outputs, with how many examples have each."""
        with self._db.reading() as connection:
            return count_values(connection, column, limit)

    def embedded(self, example_id: str) -> list[str]:
        """Names of the embedders that have a vector of this example."""
        rows = self._read(
            "SELECT name FROM embedders JOIN vectors ON embedder = number "
            "WHERE text = (SELECT text FROM examples WHERE id = ?) ORDER BY number",
            (self.get(example_id).id,),
        )
        return [r[0] for r in rows]

    def view(
        self,
        *,
        task: str | None = None,
        where: Mapping[str, Json] | None = None,
        labeled: bool | None = True,
    ) -> PoolView:
        """A snapshot, of all examples or of those of a task and with the given metadata.

        Inputs that wait for a label (an empty output) are left out: they can be shown to nobody. ``labeled=False``
        gives them alone, None gives all.

        A metadata value matches when it is equal, or when both are written the same (``3`` matches ``"3"``). A name
        with dots reaches into values: ``attrs.tenant`` is ``tenant`` in what stands under ``attrs``.
        """
        full, stale = self._load()
        if stale and not self.read_only and not self._db.in_transaction:
            self._renumber(stale)
            full, _ = self._load()
        elif len(full) >= LARGE and full._held is not None and not stale:
            self._note_spelling()
        waiting = full.unlabeled
        if task is None and not where and labeled is not False:
            if not len(waiting):
                return full
            # vectors and words are kept for what can be shown
            rows = full.rows if labeled is None else full.rows[~np.isin(full.rows, waiting)]
            return full.only(rows, origin=self._origin(None, {}), keeps=labeled is not None)
        chosen = labeled is None or not (len(waiting) or labeled is False)
        rows = full.matching(where or {})
        if not chosen:
            rows = rows[np.isin(rows, waiting) != labeled]
        if task is not None:
            wanted = clean_text(task)
            if full._held is None:
                rows = np.intersect1d(rows, self._reader.examples.of_task(wanted))
            else:
                rows = rows[np.array([e.task == wanted for e in full.examples_at(rows)], dtype=np.bool_)]
        return full.only(rows, origin=self._origin(task, where or {}))

    def _load(self) -> tuple[PoolView, dict[int, bytes]]:
        """The snapshot of all examples and, of those just read, {row: hash} of the texts numbered as another one.

        Where examples were only added since the last snapshot, they alone are read. Pools written before texts had one
        spelling number an input by the text it then had: with outer white space, or with its fields in the row's order.
        Vectors of such a text are not those of the example.
        """
        with self._db.reading() as connection:
            revision, old = self.revision, self._snapshot
            if old is not None and old.revision == revision:
                return old, {}
            if old is not None:
                changes = "SELECT count(*) FROM log WHERE revision > ? AND action != 'add'"
                old = None if connection.execute(changes, (old.revision,)).fetchone()[0] else old
            last = int(old.rows[-1]) if old is not None and len(old) else 0
            if self._is_large(connection, old):
                self._snapshot = self._large_view(connection, revision, old, last)
                return self._snapshot, {}
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
            lowest = 0 if old is None else min([0, *old._texts.tolist()])
            for n in odd:
                expected = text_hash(new[n].text)
                if hashes.get(stored[n][-1]) != expected:
                    stale[stored[n][0]] = expected
                    texts[n] = unstored.setdefault(expected, lowest - 1 - len(unstored))
            if old is not None:
                rows, texts = appended(old.rows, rows), appended(old._texts, texts)
                new = old.examples + new
            self._snapshot = self._whole_view(revision, rows, new, texts)
            return self._snapshot, stale

    def _is_large(self, connection: Connection, old: PoolView | None) -> bool:
        """Whether there are so many examples that a view should not hold them.

        Only where all texts are known to be spelled as they are now: others have to be looked at one by one, once.
        """
        if self.path == MEMORY or old is not None:
            return old is not None and old._held is None
        known = connection.execute("SELECT 1 FROM facts WHERE name = ?", (SPELLED,)).fetchone()
        return known is not None and connection.execute("SELECT count(*) FROM examples").fetchone()[0] >= LARGE

    def _large_view(self, connection: Connection, revision: int, old: PoolView | None, last: int) -> PoolView:
        """A view that holds row handles and numbers of texts."""
        # of all rows, an index that holds both numbers is read instead of the examples
        query = "SELECT seq, text FROM examples"
        stored = connection.execute(f"{query} WHERE seq > ?", (last,)) if last else connection.execute(query)
        numbers = np.fromiter(itertools.chain.from_iterable(stored), np.int64).reshape(-1, 2)
        rows, texts = numbers[np.argsort(numbers[:, 0])].T
        if old is not None:
            rows, texts = appended(old.rows, rows), appended(old._texts, texts)
        self._reader.examples.in_use = True
        return self._whole_view(revision, np.ascontiguousarray(rows), None, np.ascontiguousarray(texts))

    def _whole_view(
        self, revision: int, rows: IntArray, examples: tuple[Example, ...] | None, texts: IntArray
    ) -> PoolView:
        made_by: MadeBy = _view_in_memory, (revision, rows, examples)
        if self.path != MEMORY:
            made_by = _view_of_file, (str(Path(self.path).resolve()), self.uid, revision, self.read_only)
        origin = self._origin(None, {})
        return PoolView(self._reader, revision, rows, examples, texts, whole=True, made_by=made_by, origin=origin)

    def _origin(self, task: str | None, where: Mapping[str, Json]) -> PoolOrigin:
        path = None if self.path == MEMORY else Path(self.path).resolve()
        return PoolOrigin(path, self.uid, task, dict(where))

    @property
    def uid(self) -> str:
        """What tells this pool from all others, wherever it is moved or copied to."""
        ((uid,),) = self._read("SELECT value FROM facts WHERE name = 'uid'")
        return str(uid)

    def _note_spelling(self) -> None:
        """Note that all texts are spelled as they are now, so that they need not be looked at again."""
        if not self.read_only and self.path != MEMORY and not self._db.in_transaction:
            with self._writing() as connection:
                connection.execute(_NOTE_SPELLING, (SPELLED,))

    def _renumber(self, stale: Mapping[int, bytes]) -> None:
        """Number the texts of these examples (by seq) anew: keys stay, vectors that no example has any more go."""
        with self._writing() as connection:
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
        self._snapshot = None

    # ---- writing

    def add(self, examples: Iterable[Example], *, keep_ids: bool = True) -> AddReport:
        """Add what is not there yet, in one transaction: all or nothing. DataError names the example at fault.

        An example whose id is known is left as it is, its metadata too; see ``update``. Examples are taken a few
        thousand at a time; with ``keep_ids=False`` nothing is held that grows with their number.
        """
        ids: list[str] = []
        given = added = revived = revision = 0
        rows = (_ExampleRow.of(e, n) for n, e in enumerate(examples, start=1))
        with self._writing() as connection:
            if not connection.execute("SELECT 1 FROM log LIMIT 1").fetchone():  # the first rows ever
                connection.execute(_NOTE_SPELLING, (SPELLED,))
            while part := [*itertools.islice(rows, _ADDED_AT_ONCE)]:
                before = _known(connection, [r.id for r in part], "examples")
                revived += len(_known(connection, [r.id for r in part if r.id not in before], "tombstones"))
                new: dict[str, _ExampleRow] = {}
                for row in part:
                    if row.id in before and row.chosen_id:
                        _refuse_other_content(row, example_of(connection.execute(BY_ID, (row.id,)).fetchone()))
                    elif row.id in new and row.chosen_id:
                        _refuse_other_content(row, new[row.id].example)
                    elif row.id not in before:
                        new.setdefault(row.id, row)
                if new:
                    revision = self._insert(connection, list(new.values()), "add", revision)
                if keep_ids:
                    ids += [row.id for row in part]
                given += len(part)
                added += len(new)
        return AddReport(added, given - added, tuple(ids), revived)

    def update(
        self,
        example_id: str,
        *,
        input: Any = None,
        output: str | None = None,
        task: str | None = None,
        choices: tuple[str, ...] | None = None,
        meta: Mapping[str, Json] | None = None,
    ) -> Example:
        """Change an example and return it as it is now; ``meta`` replaces all metadata.

        New content has a new id: the old one gets a tombstone that names it, and the new example stands last.
        DataError when the new content is in the pool already.
        """
        with self._writing() as connection:
            old = self.get(example_id)
            given = {"input": input, "output": output, "task": task, "choices": choices, "meta": meta}
            return self._put(connection, old, replace(old, **{k: v for k, v in given.items() if v is not None}, id=""))

    def exchange(self, old: Example | None, new: Example | None) -> Example | None:
        """Put ``new`` in the place of ``old``, which has to be here still as it is given; returns what stands there.

        ``new`` None removes, ``old`` None puts back what was removed, and undoing is the same call the other way round.
        For whoever showed an example to somebody before it is changed. As in ``update``, other metadata changes an
        example in place, and other content makes it another one, which stands last.
        ChangedElsewhere when ``old`` is not here any more as given; DataError when ``new`` is in the pool already.
        """
        with self._writing() as connection:
            if old is not None:
                found = connection.execute(BY_ID, (old.id,)).fetchone()
                if found is None or example_of(found) != old:
                    raise ChangedElsewhere(old.id, self._became(connection, old.id) if found is None else old.id)
            if new is not None:
                return self._put(connection, old, new)
            if old is not None:
                _log(connection, "remove", 1)
                self._delete(connection, [old.id], "removed")
            return None

    def _put(self, connection: Connection, old: Example | None, new: Example) -> Example:
        row = _ExampleRow.of(new, 1)
        if old is not None and _content_id(old) == _content_id(new):
            revision = _log(connection, "update", 1)
            self._keep(connection, [old.id], revision)
            connection.execute(
                "UPDATE examples SET input = ?, output = ?, meta = ?, revision = ? WHERE id = ?",
                (row.input, row.output, row.meta, revision, old.id),
            )
            return replace(new, id=old.id)
        if _known(connection, [row.id], "examples"):
            if old is None:
                raise DataError(f"{row.id} is in the pool already")
            raise DataError(f"{old.id} would become equal to {row.id}; remove one of them instead")
        self._insert(connection, [row], "add" if old is None else "update")
        if old is not None:
            self._delete(connection, [old.id], f"updated to {row.id}", replaced_by=row.id)
        return new

    def label(self, outputs: Mapping[str, str]) -> int:
        """Give inputs that wait for a label (an empty output) theirs, by id, all or none; returns how many are new.

        An input that was given this label before is passed over. DataError for an id that waits for none, and for a
        label that is none of the input's choices.
        """
        with self._writing() as connection:
            rows: dict[str, _ExampleRow] = {}
            for position, (example_id, output) in enumerate(outputs.items(), start=1):
                found = connection.execute(BY_ID, (example_id,)).fetchone()
                waiting = example_of(found) if found else None
                if waiting is None or waiting.output:
                    if self._became(connection, example_id) is None:
                        raise DataError(f"no input {example_id[:40]!r} of {self.path} waits for a label")
                    continue
                labeled = replace(waiting, output=output, id="")
                if labeled.choices and labeled.output not in labeled.choices:
                    raise DataError(f"{output!r} is none of the choices of {example_id}: {', '.join(labeled.choices)}")
                rows[example_id] = _ExampleRow.of(labeled, position)
            known = _known(connection, [row.id for row in rows.values()], "examples")
            if new := {row.id: row for row in rows.values() if row.id not in known}:
                self._insert(connection, list(new.values()), "label")
            elif rows:
                _log(connection, "label", len(rows))
            for example_id, row in rows.items():
                self._delete(connection, [example_id], f"labeled as {row.id}", replaced_by=row.id)
        return len(rows)

    def became(self, example_id: str) -> str | None:
        """What an example that is gone was updated to or labelled as; None for one that was removed.

        DataError for an id that never stood here.
        """
        with self._db.reading() as connection:
            if not connection.execute("SELECT 1 FROM tombstones WHERE id = ?", (example_id,)).fetchone():
                return self.get(example_id).id
            return self._became(connection, example_id)

    @staticmethod
    def _became(connection: Connection, example_id: str) -> str | None:
        """What an example that is gone was updated to or labeled as."""
        query = "SELECT replaced_by FROM tombstones WHERE id = ? ORDER BY revision DESC LIMIT 1"
        found = connection.execute(query, (example_id,)).fetchone()
        return str(found[0]) if found and found[0] else None

    def annotate(self, ids: Iterable[str], new: Mapping[str, Json], unset: Iterable[str] = ()) -> int:
        """Change metadata of examples in one transaction, all or none; says how many of them are different now.

        Names with dots reach into values, as in ``view(where=…)``: ``{"attrs.tenant": "acme"}`` changes ``tenant`` in
        what stands under ``attrs``. Ids, content and vectors stay. DataError for an unknown id, and for a value that
        cannot be stored.
        """
        gone, changes = [*unset], list[tuple[str, str]]()
        with self._writing() as connection:
            for number, example_id in enumerate(dict.fromkeys(ids), 1):
                old = self.get(example_id)
                meta: dict[str, Any] = json.loads(json.dumps(dict(old.meta)))
                for path in gone:
                    set_meta(meta, path)
                for path, value in new.items():
                    set_meta(meta, path, value)
                if meta != dict(old.meta):
                    changes.append((_ExampleRow.of(replace(old, meta=meta), number).meta, old.id))
            if changes:
                revision = _log(connection, "update", len(changes))
                connection.executemany(
                    "UPDATE examples SET meta = ?, revision = ? WHERE id = ?", ((m, revision, i) for m, i in changes)
                )
        return len(changes)

    def remove(self, ids: Iterable[str], *, reason: str = "removed") -> int:
        """Remove examples by id or unique prefix, all or none, and say how many. What stays is the id and the reason.

        Vectors and keys of texts that no example has any more go too. DataError for an unknown id.
        """
        with self._writing() as connection:
            full = list(dict.fromkeys(self.get(i).id for i in ids))
            if full:
                _log(connection, "remove", len(full))
                self._delete(connection, full, reason)
        return len(full)

    def _insert(self, connection: Connection, rows: Sequence[_ExampleRow], action: str, revision: int = 0) -> int:
        """Insert rows as a revision of their own, or as more rows of one; which it is."""
        if revision:
            connection.execute("UPDATE log SET rows = rows + ? WHERE revision = ?", (len(rows), revision))
        else:
            revision = _log(connection, action, len(rows))
        connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((r.text_hash,) for r in rows))
        connection.executemany(
            "INSERT INTO examples (id, input, output, task, choices, meta, text, revision) "
            "VALUES (?, ?, ?, ?, ?, ?, (SELECT number FROM texts WHERE hash = ?), ?)",
            ((r.id, r.input, r.output, r.task, r.choices, r.meta, r.text_hash, revision) for r in rows),
        )
        return revision

    def _delete(self, connection: Connection, ids: Sequence[str], reason: str, replaced_by: str | None = None) -> None:
        revision = connection.execute("SELECT max(revision) FROM log").fetchone()[0]
        self._keep(connection, ids, revision)
        removed = [connection.execute("SELECT text, input FROM examples WHERE id = ?", (i,)).fetchone() for i in ids]
        connection.executemany(
            "INSERT OR REPLACE INTO tombstones (id, revision, reason, replaced_by) VALUES (?, ?, ?, ?)",
            ((i, revision, reason, replaced_by) for i in ids),
        )
        connection.executemany("DELETE FROM examples WHERE id = ?", ((i,) for i in ids))
        connection.executemany(
            f"DELETE FROM keys WHERE source = ?2 AND {_ORPHAN}", ((t, _key_source(stored)) for t, stored in removed)
        )
        _drop_orphans(connection, [t for t, _ in removed])

    def _keep(self, connection: Connection, ids: Sequence[str], revision: int) -> None:
        """Keep what is about to change for views that were taken before."""
        if self._reader.examples.in_use:
            self._reader.examples.keep(stored_rows(connection, ids), revision)

    # ---- duplicates, files, health

    def dedupe(self, *, near: float | None = None, apply: bool = True) -> DedupeReport:
        """Find examples of one task and with one output whose inputs say the same, and keep the oldest of each.

        Inputs are compared with case, punctuation and white space folded; with ``near`` in (0, 1], also those whose
        sets of four-character pieces overlap by at least that much (Jaccard) with an older one that is kept. From about
        0.75 on the pairs of inputs compared grow with the pool; below, with many words in common, faster.
        """
        examples = self.view(labeled=None).examples
        groups = tuple(tuple(examples[r].id for r in rows) for rows in duplicate_rows(examples, near))
        if not groups or not apply:
            return DedupeReport(groups, 0)
        with self._writing() as connection:
            # the one to keep may have been removed since the groups were formed: then its copies stay
            present = _known(connection, [i for group in groups for i in group], "examples")
            copies = {kept: [i for i in others if i in present] for kept, *others in groups if kept in present}
            removed = sum(map(len, copies.values()))
            if removed:
                _log(connection, "dedupe", removed)
            for kept, ids in copies.items():
                self._delete(connection, ids, f"duplicate of {kept}", replaced_by=kept)
        return DedupeReport(groups, removed)

    def export(self, path: str | Path, format: str | None = None) -> int:
        """Write all examples as ``jsonl``, ``csv`` or ``parquet`` (by the suffix when not said); returns how many.

        The file appears whole or not at all, and ``read_examples`` (``iclkit pool add``) gives back equal examples. In
        CSV and Parquet, choices, metadata and inputs with fields are JSON.
        """
        return write_examples(self.view(labeled=None).examples, Path(path), format)

    def stats(self) -> PoolStats:
        """Counts per task, output and embedder, and the size on disk."""
        files = [] if self.path == MEMORY else [Path(self.path), Path(f"{self.path}-wal")]
        examples = self.view(labeled=None).examples
        return PoolStats(
            examples=len(examples),
            removed=int(self._read("SELECT count(*) FROM tombstones WHERE id NOT IN (SELECT id FROM examples)")[0][0]),
            revision=self.revision,
            size=sum(f.stat().st_size for f in files if f.exists()),
            tasks=_counts(e.task for e in examples),
            outputs=_counts(e.output for e in examples),
            vectors=self._reader.vectors.counts(),
            indexes={index.embedder: str(index) for index in self._reader.vectors.approximations()},
        )

    def check(self) -> list[str]:
        """What is wrong with the file or the data, one line each; empty when all is well."""
        damage = " ".join(r[0] for r in self._read("PRAGMA integrity_check(3)") if r[0] != "ok")
        if damage:  # nothing else that is read can be relied on
            return [
                f"the file is damaged; export what can still be read and make a new pool ({' '.join(damage.split())})"
            ]
        problems = [
            f"table {r[0]} row {r[1]} refers to nothing in {r[2]}" for r in self._read("PRAGMA foreign_key_check")
        ]
        by_input: dict[tuple[str, str], list[Example]] = {}
        for example in self.view(labeled=None).examples:
            if len(example.id) == 32 and _content_id(example) != example.id != self._content_id_as_stored(example.id):
                problems.append(f"example {example.id} does not have the content its id was made of")
            if not example.text.strip():
                problems.append(f"example {example.id} has an empty input")
            by_input.setdefault((example.task, fold_input(example)), []).append(example)
        for examples in by_input.values():
            outputs = list(dict.fromkeys(e.output for e in examples))
            if len(outputs) > 1:
                first = " and ".join(f"{o!r}" for o in outputs[:3])
                problems.append(f"the input of {examples[0].id} stands with {len(outputs)} outputs: {first}")
        return problems + self._reader.vectors.problems()

    def _content_id_as_stored(self, example_id: str) -> str:
        """The content id before options, tasks and names of fields were cleaned: old pools hold such ids."""
        ((given, output, task, choices),) = self._read(
            "SELECT input, output, task, choices FROM examples WHERE id = ?", (example_id,)
        )
        fields = json.loads(given)
        cleaned = clean_text(fields) if isinstance(fields, str) else {k: clean_text(v) for k, v in fields.items()}
        return digest([cleaned, clean_text(output), task, json.loads(choices)])

    # ---- vectors and keys

    def embed(
        self,
        embedder: Embedder,
        progress: Progress | None = None,
        *,
        engine: Engine[tuple[str, ...], FloatArray] | None = None,
    ) -> int:
        """Embed every text that has no vector of this embedder yet; returns how many texts that were.

        Committed in batches: a kill loses at most one, and the same call again goes on. ``engine`` makes the vectors
        elsewhere (``iclkit.embed.embedding_engine``).
        """
        view = self.view(labeled=None)
        missing = view.count_missing(embedder)
        if engine is not None:
            view.fill(embedder, engine, progress)
        view.index(embedder, progress)
        return missing

    def build_index(
        self,
        embedder: Embedder,
        *,
        recall: float = RECALL,
        lists: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ApproximateIndex:
        """An approximate index of all that can be shown, kept beside the pool: searches in the whole pool then use it.

        ``recall``: the share of the nearest rows that is to be found, measured on rows of the pool; as few of the
        ``lists`` (4 times the root of the rows where None) are looked at as that takes. What is added later is sorted
        in. PoolError for a pool in memory or one that cannot be written, DataError for fewer than 256 rows.
        """
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        return self.view().build_index(embedder, recall=recall, lists=lists, seed=seed, progress=progress)

    def drop_index(self, embedder: Embedder) -> bool:
        """Remove the approximate index, so that search is exact; whether there was one."""
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        self._snapshot = None
        return self._reader.vectors.drop_lists(as_embedder(embedder))

    def stored_keys(self, example_id: str) -> list[tuple[str, int, str]]:
        """(transform, number, key) of all keys that were ever written for an example's input."""
        return self._reader.keys.written_for(self.get(example_id).input)

    # ---- the connection

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.read(statement, values)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        with self._db.writing() as connection:
            yield connection


def _view_in_memory(revision: int, rows: IntArray, examples: tuple[Example, ...]) -> PoolView:
    """A view of a pool in memory, after it was pickled."""
    pool = Pool.of(examples)
    texts = pool.view()._texts
    saved = (_view_in_memory, (revision, rows, examples))
    return PoolView(pool._reader, revision, rows, examples, texts, whole=True, made_by=saved)


def _pool_of_file(path: str, uid: str, read_only: bool) -> Pool:
    """A pool's file, after it was pickled. PoolError when another pool stands there now."""
    pool = Pool.open(path, create=False, read_only=read_only)
    if pool.uid != uid:
        raise PoolError(f"{path} is another pool than the one that this was made with; make it again")
    return pool


def _view_of_file(path: str, uid: str, revision: int, read_only: bool) -> PoolView:
    """A view of a pool's file, after it was pickled. PoolError when the pool is not as it was."""
    pool = _pool_of_file(path, uid, read_only)
    view = pool.view()
    if view.revision != revision:
        raise PoolError(
            f"the pool {path} has changed since this was made (revision {revision}, now {view.revision}); make it again"
        )
    return view


def as_view(source: PoolView | Pool | Iterable[object]) -> PoolView:
    """A view of whatever examples stand in: a view itself, all of a pool, or examples, which are kept in memory.

    UsageError for anything else.
    """
    if isinstance(source, PoolView):
        return source
    return source.view() if isinstance(source, Pool) else Pool.of(source).view()


def copy_view(view: PoolView, path: Path) -> None:
    """Write a new pool file of a view's examples alone, with the vectors and keys that their pool has stored.

    It keeps the pool's uid and the rows' handles, so that whatever is picked from it is picked as from the view.
    PoolError where the file cannot be written, or is there already.
    """
    if path.exists():
        raise PoolError(f"{path} is there already; name another file")
    view._reader.vectors.database.save_copy(path)
    with Pool.open(path) as pool:
        kept, here = {*view.ids}, {*pool.ids}
        if here - kept:
            pool.remove(here - kept, reason="not in the part that was copied")
        if kept - here:
            pool.add(e for e in view.examples if e.id not in here)
        pool._db.compact()


LARGE = 20_000
"""Examples from which on views read them when they are asked for."""
SPELLED = "texts are spelled"
"""The fact that every text is numbered by the spelling that texts have now."""
_NOTE_SPELLING = "INSERT OR IGNORE INTO facts VALUES (?, '1')"
BY_ID = f"SELECT {COLUMNS} FROM examples WHERE id = ?"
BEGINS = "id >= ?1 AND id < ?1 || char(0x10FFFF)"
"""An id that begins with a text, in a form that the index of ids answers."""


@dataclass(frozen=True, slots=True)
class _ExampleRow:
    """An example as it is stored."""

    example: Example
    chosen_id: bool
    """The id is not a hash of the content, but was chosen by somebody."""
    input: str
    choices: str
    meta: str
    text_hash: bytes

    @classmethod
    def of(cls, example: Example, position: int) -> _ExampleRow:
        """DataError, naming the position, when a part of the example cannot be stored."""
        e = example
        try:
            if not isinstance(e.input, str | Mapping) or not isinstance(e.output, str):
                raise TypeError("input has to be a text or named fields, and output a text")
            if isinstance(e.input, Mapping) and not all(isinstance(v, str) for v in e.input.values()):
                raise TypeError("every field of an input has to be a text")
            parts = [e.input if isinstance(e.input, str) else dict(e.input), [*e.choices], dict(e.meta)]
            # the order of an input's fields is part of it, so keys are not sorted
            texts = [json.dumps(p, ensure_ascii=False, separators=(",", ":"), allow_nan=False) for p in parts]
            for text in (*texts, e.output, e.task, e.id):
                text.encode()
            hash_of_text = text_hash(e.text)
        except (TypeError, ValueError) as error:
            raise DataError(f"example {position} ({e.id}) cannot be stored: {error}") from error
        return cls(e, e.id != _content_id(e), texts[0], texts[1], texts[2], hash_of_text)

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def output(self) -> str:
        return self.example.output

    @property
    def task(self) -> str:
        return self.example.task


def _content_id(example: Example) -> str:
    return replace(example, id="").id


def _refuse_other_content(new: _ExampleRow, old: Example) -> None:
    if _content_id(new.example) != _content_id(old):
        raise DataError(
            f"id {old.id!r} stands for another example already ({old.text[:40]!r}); leave ids empty, or use update"
        )


_ADDED_AT_ONCE = 5_000
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


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name is there, the commonest first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _known(connection: Connection, ids: Sequence[str], table: str) -> set[str]:
    query = f"SELECT DISTINCT value FROM json_each(?) AS t WHERE EXISTS (SELECT 1 FROM {table} WHERE id = t.value)"
    return {row[0] for row in connection.execute(query, (json.dumps([*ids]),))}


def _log(connection: Connection, action: str, rows: int) -> int:
    cursor = connection.execute("INSERT INTO log (action, rows) VALUES (?, ?)", (action, rows))
    return int(cursor.lastrowid or 0)
