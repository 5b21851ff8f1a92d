"""Examples of a pool, read when they are shown: what views of large pools ask instead of holding every one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from iclkit.database import Database
from iclkit.errors import PoolError
from iclkit.pool._candidates import IntArray, is_member
from iclkit.records import Example

COLUMNS = "seq, id, input, output, task, choices, meta, text"
READ = 1 << 12  # examples read at a time where all are gone through
_TRACES = "instr(meta, '\"generated_from\"')"


def example_of(row: tuple[Any, ...]) -> Example:
    """The example of a stored row, which begins with ``COLUMNS``."""
    _, id_, input_, output, task, choices, meta, *_ = row
    return Example(
        json.loads(input_),
        output,
        task,
        tuple(json.loads(choices)) if choices != "[]" else (),
        json.loads(meta) if meta != "{}" else {},
        id_,
    )


class ExampleReader(Protocol):
    """Examples by row handle, as they were at a revision. PoolError where that is not known any more."""

    def at(self, rows: IntArray, revision: int) -> list[Example]:
        """The examples of these handles."""
        ...

    def each(self, rows: IntArray, revision: int) -> Iterator[Example]:
        """The examples of these handles, some at a time."""
        ...

    def row_of(self, example_id: str, revision: int) -> int | None:
        """The handle of an example id."""
        ...

    def changed(self, rows: IntArray, since: int) -> bool:
        """Whether any of the examples of these handles is another one than at a revision."""
        ...

    def of_task(self, task: str, revision: int) -> IntArray:
        """Handles of the examples that have this task, ascending."""
        ...

    def traces(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """Those of the examples with provenance (``generated_from``), by handle."""
        ...

    def unlabeled(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """Those of the examples with an empty output, by handle."""
        ...


class StoredExamples:
    """Examples of an SQLite file by row handle, as they were at a revision.

    What this process changes or removes is kept in memory for the views that were taken before (``keep``). What another
    process has changed since is refused.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self.in_use = False
        """Whether any view relies on it."""
        # by handle: the revision from which on the example is another one or gone, and what it was
        self._before: dict[int, list[tuple[int, Example]]] = {}
        self._rows: dict[str, list[int]] = {}  # handles in ``_before``, by id

    def keep(self, rows: Iterable[tuple[Any, ...]], revision: int) -> None:
        """Rows, as stored, that change with this revision."""
        for row in rows:
            example = example_of(row)
            self._before.setdefault(int(row[0]), []).append((revision, example))
            self._rows.setdefault(example.id, []).append(int(row[0]))

    def at(self, rows: IntArray, revision: int) -> list[Example]:
        """The examples of these handles. PoolError for one that another process has changed or removed."""
        found: dict[int, Example] = {}
        wanted = dict.fromkeys(rows.tolist())
        for row in wanted:
            then = next((e for until, e in self._before.get(row, ()) if revision < until), None)
            if then is not None:
                found[row] = then
        asked = [row for row in wanted if row not in found]
        for stored in self._db.read_each(f"SELECT {COLUMNS}, revision FROM examples WHERE seq IN ({{values}})", asked):
            if stored[-1] <= revision:
                found[stored[0]] = example_of(stored)
        for row in wanted:
            if row not in found:
                raise PoolError(
                    f"row {row} of {self._db.path} was changed by another process after it was looked at; run it again"
                )
        return [found[row] for row in rows.tolist()]

    def each(self, rows: IntArray, revision: int) -> Iterator[Example]:
        """The examples of these handles, some at a time."""
        for start in range(0, len(rows), READ):
            yield from self.at(rows[start : start + READ], revision)

    def row_of(self, example_id: str, revision: int) -> int | None:
        """The handle of an example id."""
        for row in self._rows.get(example_id, ()):
            if any(e.id == example_id and revision < until for until, e in self._before[row]):
                return row
        found = self._db.read("SELECT seq FROM examples WHERE id = ?", (example_id,))
        return int(found[0][0]) if found else None

    def changed(self, rows: IntArray, since: int) -> bool:
        """Whether any of the examples of these handles is another one than at a revision."""
        if not self._db.read("SELECT 1 FROM log WHERE revision > ? AND action != 'add' LIMIT 1", (since,)):
            return False
        found = [row for (row,) in self._db.read("SELECT seq FROM examples WHERE revision > ?", (since,))]
        return bool(is_member(np.array(found, dtype=np.int64), rows).any())

    def of_task(self, task: str, revision: int) -> IntArray:  # noqa: ARG002
        """Handles of the examples that have this task now, ascending."""
        found = self._db.read("SELECT seq FROM examples WHERE task = ? ORDER BY seq", (task,))
        return np.array([row for (row,) in found], dtype=np.int64)

    def traces(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """Those of the examples with provenance (``generated_from``), by handle."""
        return [(r, e) for r, e in self._those(_TRACES, rows, revision) if "generated_from" in e.meta]

    def unlabeled(self, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """Those of the examples with an empty output, by handle."""
        return [(r, e) for r, e in self._those("output = ''", rows, revision) if not e.output]

    def _those(self, condition: str, rows: IntArray, revision: int) -> list[tuple[int, Example]]:
        """Those of the examples for which a condition holds, and what has changed since; found by an index."""
        known = {row for (row,) in self._db.read(f"SELECT seq FROM examples WHERE {condition}")} | {*self._before}
        inside = np.array(sorted(known), dtype=np.int64)
        inside = inside[is_member(inside, rows)]
        return [*zip(inside.tolist(), self.at(inside, revision), strict=True)]


def stored_rows(connection: Any, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of these ids, as ``StoredExamples.keep`` takes them."""
    query = f"SELECT {COLUMNS} FROM examples WHERE id IN (SELECT value FROM json_each(?))"
    rows: list[tuple[Any, ...]] = connection.execute(query, (json.dumps([*ids]),)).fetchall()
    return rows
