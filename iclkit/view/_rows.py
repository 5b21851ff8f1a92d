"""The pool as a table: pages of it, and changes that can be undone."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from iclkit.errors import ChangedElsewhere, DataError
from iclkit.pool import Pool, example_dict
from iclkit.records import Example, digest
from iclkit.text import visible
from iclkit.view._workbench import short

PAGE = 50
MOST = 200
"""Rows of a page, at most."""
_METADATA = 4  # of a row, in the table
_SHORT = 40
_FIELDS = ("input", "output", "task", "choices", "meta")


@dataclass(frozen=True, slots=True)
class _Change:
    words: str
    old: Example | None
    new: Example | None


class Rows:
    """Pages of a pool, and the changes made through them, the last of which can be undone, one after the other.

    A change names the example as it was shown; where it is another one by now, nothing is changed.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._changes: list[_Change] = []
        self._lock = threading.Lock()
        self._counted: tuple[int, dict[str, Any]] = (-1, {})  # at a revision

    def page(
        self, text: str, task: str | None, output: str | None, newest_first: bool, start: int, limit: int
    ) -> dict[str, Any]:
        """Rows that hold the words of a text, with outputs and tasks to filter by."""
        page = self.pool.find(
            text, task=task, output=output, newest_first=newest_first, start=max(0, start), limit=min(limit, MOST)
        )
        rows = [
            {"id": e.id, "mark": _mark(e), "task": e.task, "meta": _short_meta(e), **short(e)} for e in page.examples
        ]
        return {
            "rows": rows,
            "total": page.total,
            "start": page.start,
            "revision": page.revision,
            "undo": self.undo_words,
            **self._counts(page.revision),
        }

    def _counts(self, revision: int) -> dict[str, Any]:
        """What is counted of the whole pool, once for all pages of a revision."""
        if self._counted[0] != revision:
            self._counted = (
                revision,
                {
                    "all": len(self.pool),
                    "outputs": self.pool.count_values("output", 100),
                    "tasks": self.pool.count_values("task", 100),
                },
            )
        return self._counted[1]

    def row(self, example_id: str) -> dict[str, Any]:
        """One example whole. ChangedElsewhere for one that is gone, DataError for an id that never was there."""
        try:
            example = self.pool.get(example_id)
        except DataError:
            raise ChangedElsewhere(example_id, self.pool.became(example_id)) from None
        return example_dict(example) | {"mark": _mark(example), "embedded": self.pool.embedded(example.id)}

    @property
    def undo_words(self) -> str | None:
        """What would be undone."""
        return self._changes[-1].words if self._changes else None

    def change(self, was: Any, now: Any) -> dict[str, Any]:
        """Put ``now`` in the place of ``was``, both as ``row`` gives them; None adds, or removes."""
        old = None if was is None else read_example(was, keep_id=True)
        new = None if now is None else read_example(now)
        if old is None and new is None:
            raise DataError("nothing to change: `was` and `now` are both missing")
        with self._lock:
            stands = self.pool.exchange(old, new)
            verb = "added" if old is None else "removed" if new is None else "changed"
            shown = stands or old
            assert shown is not None
            if stands != old:
                self._changes.append(_Change(f"{verb} “{visible(shown.text)[:60]}”", old, stands))
            return self._told(stands)

    def undo(self) -> dict[str, Any]:
        """Undo the last change. ChangedElsewhere, and it is forgotten, where its example is not as it left it."""
        with self._lock:
            if not self._changes:
                raise DataError("there is nothing to undo")
            last = self._changes.pop()
            try:
                stands = self.pool.exchange(last.new, last.old)
            except ChangedElsewhere:
                raise
            except BaseException:
                self._changes.append(last)
                raise
            return self._told(stands)

    def _told(self, stands: Example | None) -> dict[str, Any]:
        return {
            "id": stands.id if stands else None,
            "undo": self.undo_words,
            "revision": self.pool.revision,
            "all": len(self.pool),
        }


def _mark(example: Example) -> str:
    """Tells whether an example is still as it was when it was listed, its metadata included."""
    return digest(example_dict(example), 8)


def _short_meta(example: Example) -> list[list[str]]:
    """The first of the metadata as they stand in a line."""
    values = [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in example.meta.items()]
    return [[k[:_SHORT], v if len(v) <= _SHORT else v[: _SHORT - 1] + "…"] for k, v in values[:_METADATA]]


def read_example(given: Any, *, keep_id: bool = False) -> Example:
    """An example as the page sends it. DataError names the field at fault."""
    if not isinstance(given, Mapping):
        raise DataError("an example is an object with input, output, task, choices and meta")
    if missing := [name for name in _FIELDS if name not in given]:
        raise DataError(f"`{missing[0]}` is missing")
    if not isinstance(given["choices"], list) or not isinstance(given["meta"], dict):
        raise DataError("`choices` is a list of texts, and `meta` an object")
    for name in ("output", "task"):
        if not isinstance(given[name], str):
            raise DataError(f"`{name}` is a text")
    example = Example(given["input"], given["output"], given["task"], tuple(given["choices"]), given["meta"])
    if keep_id:
        return replace(example, id=str(given.get("id", "")))
    if not visible(example.text):
        raise DataError("`input` is empty: an example needs something to show")
    return example
