"""What may be shown for a query: row handles, and vectors, scores, outputs and examples of them on demand.

How a selector uses it::

    batch = view.candidates(queries, embedder)        # embedder: None for a selector that needs no vectors
    for candidates, near in zip(batch, batch.nearest(100)):   # queries are encoded once, and searched together
        near.rows, near.scores                        # handles (m,) and cosines (m,), best first; allowed rows only
        candidates.vectors(near.rows)                 # (m, dim) float32, unit rows
        candidates.outputs(near.rows), candidates.examples(near.rows)
        candidates.allowed(rows)                      # which of any handles may be shown for this query
        candidates.within(rows).nearest(5)            # the same query among these rows only
        len(candidates)                               # how many may be shown
        candidates.rows()                             # all of them: O(pool), for ``needs.whole_pool`` alone
    batch.examples([near.rows for near in batch.nearest(8)])      # those of many queries, read in one go

A *row* is a handle: an int64 that belongs to one example of one pool, ascending by insertion, never changed and never
reused. Handles have holes, so they index nothing: an array with one entry per example of a view is indexed by
``view.positions(rows)``. ``view.rows`` are all handles of a view, ``view.row_of(id)`` is one.

A query's exclusions, its filter (``Query.where``) and the rule that an example is not shown beside a trace made of it
(see ``PoolView.families``) become a ``Scope`` before a strategy runs; the index searches in that scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import encode_checked
from iclkit.errors import DataError, UsageError
from iclkit.pool._arrays import distinct
from iclkit.records import Example, Query

if TYPE_CHECKING:
    from iclkit.embed import Embedder, FloatArray
    from iclkit.pool._view import PoolView

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Row handles, best first, and their scores: float32, rounded to 1e-6 in float64; ties go to the lower handle."""

    rows: IntArray
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """Which rows a search may return: those of ``within`` (ascending handles; None for all) less ``exclude``.

    ``within`` is one array for all queries that have it in common, so an index prepares it once; nothing as long as the
    pool is made per query.
    """

    exclude: frozenset[int] = frozenset()
    within: IntArray | None = None

    def allowed(self, rows: IntArray) -> BoolArray:
        """(len(rows),): which of these rows are in the scope."""
        inside = np.ones(len(rows), dtype=np.bool_) if self.within is None else is_member(rows, self.within)
        if self.exclude:
            inside &= ~np.isin(rows, [*self.exclude])
        return inside


EVERYTHING = Scope()

_NOTES: ContextVar[dict[str, None] | None] = ContextVar("search notes", default=None)


@contextmanager
def search_notes() -> Iterator[dict[str, None]]:
    """What the user should know of the searches that are made inside, by parts of parts too: that they are approximate.

    Each as a key, in order.
    """
    outside, found = _NOTES.get(), dict[str, None]()
    token = _NOTES.set(found)
    try:
        yield found
    finally:
        _NOTES.reset(token)
        if outside is not None:
            outside.update(found)


class Candidates:
    """The candidates of one query. Made by ``PoolView.candidates``; see the top of this module."""

    __slots__ = ("_batch", "_number", "scope")

    def __init__(self, batch: CandidateBatch, number: int, scope: Scope) -> None:
        self._batch, self._number, self.scope = batch, number, scope

    @property
    def query(self) -> Query:
        """The query they are for."""
        return self._batch.queries[self._number]

    def __len__(self) -> int:
        view, within = self._batch.view, self.scope.within
        if not self.scope.exclude:
            return len(view) if within is None else len(within)
        excluded = np.array(sorted(self.scope.exclude), dtype=np.int64)
        among = view.rows if within is None else within
        return len(among) - int(is_member(excluded, among).sum())

    def rows(self) -> IntArray:
        """All of them, ascending. O(pool): UsageError unless the strategy has declared ``whole_pool``."""
        if not self._batch.whole_pool:
            raise UsageError(
                "a selector asked for all candidate rows without declaring it; give it needs = Needs(whole_pool=True)"
            )
        among = self._batch.view.rows if self.scope.within is None else self.scope.within
        if not self.scope.exclude:
            return among
        return among[~np.isin(among, [*self.scope.exclude])]

    def allowed(self, rows: IntArray) -> BoolArray:
        """(len(rows),): which of these rows of the view may be shown."""
        return self.scope.allowed(np.asarray(rows, dtype=np.int64))

    def within(self, rows: IntArray) -> Candidates:
        """Those of the candidates that are among ``rows``."""
        chosen = distinct(np.asarray(rows, dtype=np.int64))
        among = self._batch.view.rows if self.scope.within is None else self.scope.within
        return Candidates(self._batch, self._number, Scope(self.scope.exclude, chosen[is_member(chosen, among)]))

    def nearest(self, k: int) -> Ranked:
        """The k candidates of highest cosine with the query, fewer where there are fewer."""
        batch = self._batch
        number = slice(self._number, self._number + 1)
        return batch.search(batch.query_vectors[number], k, [self.scope])[0]

    def vectors(self, rows: IntArray) -> FloatArray:
        """(len(rows), dim) float32: unit vectors of these rows."""
        return self._batch.view.index(self._batch.embedder).vectors(rows)

    def outputs(self, rows: IntArray) -> list[str]:
        """The output of each of these rows."""
        return self._batch.view.outputs(rows)

    def examples(self, rows: IntArray) -> list[Example]:
        """The example of each of these rows."""
        return self._batch.view.examples_at(rows)


class CandidateBatch:
    """The candidates of queries that are asked together, in their order."""

    def __init__(
        self,
        view: PoolView,
        queries: Sequence[Query],
        scopes: Sequence[Scope],
        embedder: Embedder | None,
        whole_pool: bool,
    ) -> None:
        self.view, self.queries, self.whole_pool = view, queries, whole_pool
        self._embedder, self._scopes = embedder, scopes
        self._vectors: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, number: int) -> Candidates:
        return Candidates(self, range(len(self))[number], self._scopes[number])

    def __iter__(self) -> Iterator[Candidates]:
        return (self[n] for n in range(len(self)))

    @property
    def embedder(self) -> Embedder:
        """What encodes queries and candidates. UsageError when the batch was made without one."""
        if self._embedder is None:
            raise UsageError("a selector asked for vectors without declaring it; give it needs = Needs(embedder=True)")
        return self._embedder

    @property
    def query_vectors(self) -> FloatArray:
        """(queries, dim) float32, unit rows; made when first asked for."""
        # not a cached_property: that of Python 3.11 makes threads wait for each other, whatever their batches
        if self._vectors is None:
            self._vectors = encode_checked(self.embedder, [q.text for q in self.queries], "query")
        return self._vectors

    def nearest(self, k: int) -> list[Ranked]:
        """For each query what ``Candidates.nearest`` gives."""
        return self.search(self.query_vectors, k, self._scopes) if self.queries else []

    def examples(self, rows_of: Sequence[IntArray]) -> list[list[Example]]:
        """For each of some arrays of row handles their examples; all of them are read in one go."""
        rows = distinct(np.concatenate([np.empty(0, np.int64), *rows_of]))
        found = self.view.examples_at(rows)
        return [[found[at] for at in np.searchsorted(rows, some).tolist()] for some in rows_of]

    def search(self, vectors: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """The k nearest of any vectors (s, dim), e.g. of search states, each within a scope such as
        ``candidates.scope``."""
        index = self.view.index(self.embedder)
        notes = _NOTES.get()
        if index.approximate and notes is not None:
            notes[str(index.approximate)] = None
        return index.nearest(vectors, k, scopes)


def is_member(rows: IntArray, ascending: IntArray) -> BoolArray:
    """(len(rows),): which rows stand in an ascending array; O(len(rows) * log)."""
    if not len(ascending):
        return np.zeros(len(rows), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    inside: BoolArray = ascending[at] == rows
    return inside


def positions_of(rows: IntArray, ascending: IntArray) -> IntArray:
    """(len(rows),): where each of these handles stands in an ascending array. DataError for one that is not in it."""
    rows = np.asarray(rows, dtype=np.int64)
    here = is_member(rows, ascending)
    if not here.all():
        raise DataError(f"row {int(rows[~here][0])} is not in this view of the pool")
    return np.searchsorted(ascending, rows)
