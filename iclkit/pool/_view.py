"""A snapshot of a pool: rows in insertion order, their vectors, and exact search over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder, FloatArray, Retriever, vector_key
from iclkit.errors import DataError
from iclkit.pool._index import FlatIndex
from iclkit.pool._keys import KeyTransform, RetrievalKeys
from iclkit.records import Example, Fields, Progress, digest

if TYPE_CHECKING:
    from iclkit.pool._store import Pool

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


class PoolView:
    """An immutable snapshot: what a selector sees. Changes to the pool after it was taken do not show in it."""

    def __init__(self, pool: Pool, revision: int, examples: tuple[Example, ...], texts: IntArray, whole: bool) -> None:
        self.examples = examples
        self.revision = revision
        # texts (n,): number of each row's text in the pool; rows with equal texts have equal numbers
        self._pool, self._texts, self._whole = pool, texts, whole
        self._indexes: dict[str, FlatIndex] = {}

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Example ids, one per row."""
        return tuple(e.id for e in self.examples)

    @cached_property
    def hash(self) -> str:
        """Hash of the ids in order: equal hashes, equal content."""
        return digest([*self.ids])

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return MappingProxyType({i: row for row, i in enumerate(self.ids)})

    def row_of(self, example_id: str) -> int | None:
        """The row of an example id, or None when it is not in this view."""
        return self._rows.get(example_id)

    def only(self, rows: IntArray) -> PoolView:
        """A view of these rows of this one, in the order given; vectors are shared through the pool."""
        examples = tuple(self.examples[int(r)] for r in rows)
        return PoolView(self._pool, self.revision, examples, self._texts[rows], whole=False)

    def vectors(self, embedder: Embedder, progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows, read-only. Texts that the pool has no vector of yet are embedded and stored."""
        return self._index(embedder, progress).vectors

    def search(
        self, embedder: Embedder, query_vectors: FloatArray, k: int, allowed: Sequence[BoolArray] | None = None
    ) -> list[tuple[IntArray, FloatArray]]:
        """For each query the k rows of highest inner product, best first, and their scores; exact.

        query_vectors (q, dim) float32. ``allowed``: one mask (n,) per query; rows that are False never come back.
        Scores are rounded to 1e-6 and ties go to the lower row, so a result depends on nothing but its own query.
        Fewer than k rows come back when fewer are allowed. DataError when shapes do not fit.
        """
        index = self._index(embedder)
        queries = np.ascontiguousarray(query_vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != embedder.dim:
            raise DataError(
                f"query vectors have shape {queries.shape}; embedder {embedder.name!r} gives (q, {embedder.dim})"
            )
        if allowed is not None and (len(allowed) != len(queries) or any(a.shape != (len(self),) for a in allowed)):
            raise DataError(f"give one mask of shape ({len(self)},) per query, for {len(queries)} queries")
        return index.search(queries, k, allowed)

    def keys(self, transform: KeyTransform, progress: Progress | None = None) -> RetrievalKeys:
        """The keys of each row's input; those the pool has not stored yet are written, and stored."""
        return self._pool.keys(transform, [e.input for e in self.examples], progress)

    def keys_of_queries(
        self, transform: KeyTransform, inputs: Sequence[Fields], progress: Progress | None = None
    ) -> RetrievalKeys:
        """The keys of queries; kept in the pool like those of examples."""
        return self._pool.keys(transform, inputs, progress)

    def text_vectors(self, embedder: Embedder, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(len(texts), dim) float32, unit rows: document vectors of any texts, e.g. keys; made once, stored."""
        return self._pool._text_vectors(texts, embedder, progress)

    def _index(self, embedder: Embedder, progress: Progress | None = None) -> FlatIndex:
        key = vector_key(embedder, "document")
        if key not in self._indexes and isinstance(embedder, Retriever):
            texts = [embedder.document_text(e) for e in self.examples]
            self._indexes[key] = FlatIndex.of(self.text_vectors(embedder, texts, progress))
        if key not in self._indexes:
            self._indexes[key] = self._pool._build_index(self, embedder, self._whole, progress)
        return self._indexes[key]
