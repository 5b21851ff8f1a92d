"""A snapshot of a pool: rows in insertion order, their vectors, and exact search over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder, FloatArray, as_embedder, vector_key
from iclkit.engines import Engine
from iclkit.errors import DataError, UsageError
from iclkit.pool._arrays import distinct
from iclkit.pool._candidates import EVERYTHING, CandidateBatch, Scope, is_member, positions_of
from iclkit.pool._examples import READ, ExampleReader
from iclkit.pool._index import FlatIndex, VectorIndex
from iclkit.pool._key_transforms import KeyTransform, RetrievalKeys
from iclkit.pool._keys import KeyStore
from iclkit.pool._lists import ApproximateIndex
from iclkit.pool._table import in_parts
from iclkit.pool._terms import TermIndex, Terms, TermStore
from iclkit.pool._vectors import VectorStore
from iclkit.records import Example, Fields, Json, Progress, Query, canonical_json, clean_text, digest, meta_value

IntArray = NDArray[np.int64]
T = TypeVar("T")
MadeBy: TypeAlias = "tuple[Callable[..., PoolView], tuple[Any, ...]]"
"""A function and its arguments that give a view again."""


@dataclass(frozen=True, slots=True)
class PoolReader:
    """What a view asks of the pool it was taken of."""

    vectors: VectorStore
    keys: KeyStore
    terms: TermStore
    examples: ExampleReader
    save_copy: Callable[[Path], None]
    """Write all that the pool holds to a new SQLite file."""

    def in_memory(self) -> PoolReader:
        """One that reads the same and keeps what is made in memory."""
        return replace(self, vectors=self.vectors.in_memory(), keys=self.keys.in_memory(), terms=self.terms.in_memory())


@dataclass(frozen=True, slots=True)
class PoolOrigin:
    """Which part of which pool a view was taken of: ``task`` and ``where`` as ``Pool.view`` takes them.

    ``path`` is None for a pool in memory; ``uid`` is the pool's own, which stays with a copy.
    """

    path: Path | None
    uid: str
    task: str | None = None
    where: Mapping[str, Json] = field(default_factory=dict)


class PoolView:
    """An immutable snapshot: what a selector sees. Changes to the pool after it was taken do not show in it.

    ``rows`` (n,) are the handles of its examples, ascending (see ``iclkit.pool._candidates``). ``examples`` and ``ids``
    are all of them in that order, for what goes through the whole pool; ``positions`` says where a handle stands there.

    A view is pickled and copied as the path of its pool and the revision. It comes back from a pool that is still as it
    was; PoolError from one that has changed. A view of a pool in memory takes its examples along.
    """

    def __init__(
        self,
        reader: PoolReader,
        revision: int,
        rows: IntArray,
        examples: tuple[Example, ...] | None,
        texts: IntArray,
        *,
        whole: bool,
        made_by: MadeBy,
        origin: PoolOrigin | None = None,
        keeps: bool = False,
    ) -> None:
        if examples is not None:  # of a large pool they are read when they are asked for
            self.examples = examples
        self.revision = revision
        rows.flags.writeable = False
        self.rows = rows
        # texts (n,): number of each row's text in the pool; rows with equal texts have equal numbers.
        # whole: these are all rows of the pool; keeps: all that can be shown, so what is learnt of them is kept
        self._reader, self._texts, self._whole, self._made_by = reader, texts, whole, made_by
        self._keeps = whole or keeps
        self.origin = origin
        """What to ask of the pool for this view again; None for rows or examples that somebody has put together."""
        self._indexes: dict[str, VectorIndex] = {}
        self._derived: dict[str, Any] = {}
        self._some: tuple[int, list[Example]] = (-1, [])

    def __reduce__(self) -> MadeBy:
        return self._made_by

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """All of them, in the order of ``rows``. Of a large pool they are read when first asked for, and held."""
        return tuple(self._reader.examples.each(self.rows, self.revision))

    @property
    def _held(self) -> tuple[Example, ...] | None:
        """The examples, if they are in memory."""
        held: tuple[Example, ...] | None = self.__dict__.get("examples")
        return held

    def each(self) -> Iterable[Example]:
        """All examples in order. Those of a large pool are read some at a time, and not held."""
        return self._held or self._reader.examples.each(self.rows, self.revision)

    def _text_at(self, position: int) -> str:
        """The input at a position. Where one is asked for after the other, ever more are read at a time."""
        if self._held is not None:
            return self._held[position].text
        start, some = self._some
        if not start <= position < start + len(some):
            goes_on = 0 <= position - (start + len(some)) <= len(some)  # over some, which have the text of others
            step = min(READ, 2 * len(some)) if goes_on else 1
            start, some = position, self._reader.examples.at(self.rows[position : position + step], self.revision)
            self._some = start, some
        return some[position - start].text

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Example ids, one per row."""
        return tuple(e.id for e in self.each())

    @cached_property
    def hash(self) -> str:
        """Hash of the ids in order: equal hashes, equal content."""
        return digest([*self.ids])

    def shows_the_same(self, earlier: PoolView) -> bool:
        """Whether it has the same examples, with the same metadata, as an earlier view of this pool."""
        if not np.array_equal(self.rows, earlier.rows):
            return False
        if self._held is not None and earlier._held is not None:
            return self._held == earlier._held
        return not self._reader.examples.changed(self.rows, earlier.revision)

    def stored_keys(self) -> Iterator[tuple[Example, list[tuple[str, int, str]]]]:
        """Each example with (transform, number, key) of all keys that were ever written for its input."""
        for part in in_parts(self.each(), READ):
            yield from zip(part, self._reader.keys.written_for([e.input for e in part]), strict=True)

    @cached_property
    def _row_of(self) -> Mapping[str, int]:
        return dict(zip(self.ids, self.rows.tolist(), strict=True))

    def row_of(self, example_id: str) -> int | None:
        """The row handle of an example id, or None when it is not in this view."""
        if self._held is not None:
            return self._row_of.get(example_id)
        row = self._reader.examples.row_of(example_id, self.revision)
        return row if row is not None and is_member(np.array([row]), self.rows)[0] else None

    def positions(self, rows: IntArray) -> IntArray:
        """(len(rows),): where these handles stand in ``rows``. DataError for a handle that is not in this view."""
        return positions_of(rows, self.rows)

    def examples_at(self, rows: IntArray) -> list[Example]:
        """The examples of these row handles."""
        at, held = self.positions(rows), self._held
        if held is None:
            return self._reader.examples.at(self.rows[at], self.revision)
        return [held[p] for p in at.tolist()]

    def ids_at(self, rows: IntArray) -> list[str]:
        """The ids of these row handles."""
        return [e.id for e in self.examples_at(rows)]

    def outputs(self, rows: IntArray) -> list[str]:
        """The outputs of these row handles."""
        return [e.output for e in self.examples_at(rows)]

    def examples_of(self, ids: Iterable[str]) -> list[Example]:
        """The examples of these ids, in their order. DataError for an id that is not in this view."""
        wanted = [*ids]
        rows = [self.row_of(i) for i in wanted]
        for example_id, row in zip(wanted, rows, strict=True):
            if row is None:
                raise DataError(f"example {example_id!r} is not in this view of the pool ({len(self)} examples)")
        return self.examples_at(np.array(rows, dtype=np.int64))

    def positions_of_ids(self, ids: Iterable[str]) -> list[int]:
        """Where those of the ids that are in this view stand in ``rows``, in their order."""
        rows = [row for i in ids if (row := self.row_of(i)) is not None]
        return [int(p) for p in self.positions(np.array(rows, dtype=np.int64))]

    @property
    def is_whole(self) -> bool:
        """Whether every example of the pool is in it."""
        return self._whole

    def only(self, rows: IntArray, *, origin: PoolOrigin | None = None, keeps: bool = False) -> PoolView:
        """A view of these row handles of this one, ascending; vectors are shared through the pool.

        ``keeps``: of all rows that can be shown, so what is learnt of them is kept beside the pool.
        """
        kept = distinct(np.asarray(rows, dtype=np.int64))
        at = self.positions(kept)
        held = self._held
        examples = None if held is None else tuple(held[p] for p in at.tolist())
        made_by = (_part, (self, kept, origin))
        return PoolView(
            self._reader, self.revision, kept, examples, self._texts[at], whole=False, made_by=made_by, origin=origin,
            keeps=keeps,
        )  # fmt: skip

    def overlay(self, examples: Iterable[Example] = ()) -> PoolView:
        """This view with more examples, of which nothing is stored: what is made on it stays in memory.

        For examples that are made during a run, and for dry runs, whose keys are blank. Vectors and keys that the pool
        has are used. Examples whose ids are in the view already change nothing.
        """
        new = tuple({e.id: e for e in examples if self.row_of(e.id) is None}.values())
        last = int(self.rows[-1]) if len(self) else 0
        rows = np.concatenate([self.rows, np.arange(last + 1, last + 1 + len(new), dtype=np.int64)])
        number_of = dict(zip((e.text for e in self.examples), self._texts.tolist(), strict=True)) if new else {}
        unused = min([0, *number_of.values()])  # below 0: no number of the pool's
        for example in new:
            number_of.setdefault(example.text, unused - 1 - len(number_of))
        texts = np.array([number_of[e.text] for e in new], dtype=np.int64)
        view = PoolView(
            self._reader.in_memory(),
            self.revision,
            rows,
            self.examples + new if new else self._held,
            np.concatenate([self._texts, texts]),
            whole=self._whole and not new,
            keeps=self._keeps and not new,
            made_by=(PoolView.overlay, (self, new)),
            origin=None if new else self.origin,
        )
        if not new:
            view._indexes, view._derived = {**self._indexes}, {**self._derived}
        return view

    def derived(self, key: str, make: Callable[[], T]) -> T:
        """What is learnt from this view alone (a term index, a neighbor graph), made once under ``key``.

        Selectors of any k and seed share it, so ``key`` has to name every setting that it depends on, and nobody may
        change it.
        """
        if key not in self._derived:
            self._derived.setdefault(key, make())  # where two threads have made it, all use the first
        made: T = self._derived[key]
        return made

    @cached_property
    def unlabeled(self) -> IntArray:
        """Ascending handles of the inputs that wait for a label: those with an empty output."""
        if self._held is None:
            return np.array([r for r, _ in self._reader.examples.unlabeled(self.rows, self.revision)], dtype=np.int64)
        return self.rows[np.array([not e.output for e in self._held], dtype=np.bool_)]

    def matching(self, where: Mapping[str, Json]) -> IntArray:
        """Ascending handles of the examples with this metadata; one array per filter.

        Names with dots reach into values (see ``meta_value``). A value matches when it is equal, or when both are
        written the same (``3`` matches ``"3"``).
        """

        if not where:
            return self.rows

        def find() -> IntArray:
            hits = [all(matches_value(meta_value(e.meta, k, _NONE), v) for k, v in where.items()) for e in self.each()]
            return self.rows[np.array(hits, dtype=np.bool_)] if hits else self.rows

        return self.derived(f"where {canonical_json(dict(where))}", find)

    @cached_property
    def families(self) -> Mapping[int, tuple[int, ...]]:
        """{row: its family, the one that is shown first}: an example and the traces that an LM made of it.

        A trace has the input of one example of this view and says so in its provenance (``generated_from``). Only the
        first trace of a family is shown. A query that excludes one of a family gets none of it. Rows that stand alone
        are left out.
        """
        made_from: dict[int, int] = {}
        for row, example in self._traces():
            source = self.row_of(name) if (name := _source(example)) else None
            if source is not None and len({*self._texts[self.positions(np.array([source, row]))].tolist()}) == 1:
                made_from[row] = source
        members: dict[int, list[int]] = {}
        for row, source in made_from.items():
            seen = {row}
            while source in made_from and source not in seen:  # a trace of a trace
                seen.add(source)
                source = made_from[source]
            members.setdefault(source, []).append(row)
        whole = [tuple(dict.fromkeys((*traces, original))) for original, traces in members.items()]
        return {row: family for family in whole for row in family}

    def _traces(self) -> list[tuple[int, Example]]:
        """The examples that may be traces, by handle."""
        if self._held is None:
            return self._reader.examples.traces(self.rows, self.revision)
        return [(r, e) for r, e in zip(self.rows.tolist(), self._held, strict=True) if "generated_from" in e.meta]

    @cached_property
    def _representatives(self) -> IntArray | None:
        """One row per family, and all rows that stand alone; None where that is every row."""
        hidden = [row for row, family in self.families.items() if row != family[0]]
        return self.rows[~np.isin(self.rows, hidden)] if hidden else None

    def candidates(
        self, queries: Sequence[Query], embedder: Embedder | None = None, *, whole_pool: bool = False
    ) -> CandidateBatch:
        """What may be shown for each query; see ``iclkit.pool._candidates``.

        ``embedder``: for selectors that ask for vectors. ``whole_pool``: whether ``Candidates.rows`` may be asked.
        """
        completed = as_embedder(embedder) if embedder is not None else None
        return CandidateBatch(self, queries, [self._scope(q) for q in queries], completed, whole_pool)

    def _scope(self, query: Query) -> Scope:
        within = self._within(query.where)
        if not query.exclude:
            return EVERYTHING if within is None else Scope(frozenset(), within)
        excluded = {row for i in query.exclude if (row := self.row_of(i)) is not None}
        excluded |= {member for row in excluded for member in self.families.get(row, ())}
        return Scope(frozenset(excluded), within)

    def _within(self, where: Mapping[str, Json]) -> IntArray | None:
        if not where:
            return self._representatives
        if self._representatives is None:
            return self.matching(where)
        among = self._representatives
        key = f"representatives where {canonical_json(dict(where))}"
        return self.derived(key, lambda: np.intersect1d(self.matching(where), among, assume_unique=True))

    def index(self, embedder: Embedder, progress: Progress | None = None) -> VectorIndex:
        """Search over this view's vectors; exact, unless the view is of a whole pool that has an approximate index.

        Texts that the pool has no vector of yet are embedded and stored.
        """
        embedder = as_embedder(embedder)
        key = vector_key(embedder, "document")
        if key not in self._indexes:
            self._indexes.setdefault(key, self._new_index(embedder, progress))
        return self._indexes[key]

    def _new_index(self, embedder: Embedder, progress: Progress | None) -> VectorIndex:
        if not embedder.documents_are_inputs:
            texts = [embedder.document_text(e) for e in self.examples]
            return FlatIndex.of(self.text_vectors(embedder, texts, progress), self.rows)
        return self._reader.vectors.index(
            self.rows,
            self._texts,
            self._text_at,
            embedder,
            whole=self._keeps,
            progress=progress,
        )

    def approximate(self, embedder: Embedder) -> ApproximateIndex | None:
        """What is approximate about search in this view, without embedding anything; None where it is exact."""
        completed = as_embedder(embedder)
        if not self._keeps or not completed.documents_are_inputs:
            return None
        return self._reader.vectors.approximate(completed)

    def build_index(
        self, embedder: Embedder, *, recall: float, lists: int | None, seed: int, progress: Progress | None = None
    ) -> ApproximateIndex:
        """See ``Pool.build_index``; of a view of all that can be shown. UsageError for an embedder whose vectors are of
        more than the input."""
        completed = as_embedder(embedder)
        if not completed.documents_are_inputs:
            raise UsageError(
                f"embedder {completed.name!r} reads more than inputs; its vectors are not kept in an index"
            )
        self._indexes.pop(vector_key(completed, "document"), None)
        return self._reader.vectors.build_lists(
            self.rows, self._texts, self._text_at, completed,
            recall=recall, lists=lists, seed=seed, progress=progress,
        )  # fmt: skip

    def fill(
        self, embedder: Embedder, engine: Engine[tuple[str, ...], FloatArray], progress: Progress | None = None
    ) -> None:
        """Embed the texts that the pool has no vector of, by an engine (``iclkit.embed.embedding_engine``).

        UsageError for an embedder that writes documents of its own, such as a retriever.
        """
        if not embedder.documents_are_inputs:
            raise UsageError(
                f"{embedder.name} writes documents of its own; --engine is for those that embed the inputs"
            )
        self._reader.vectors.fill(self._texts, self._text_at, embedder, engine, progress)

    def vectors(self, embedder: Embedder, progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows, read-only. Texts that the pool has no vector of yet are embedded and stored."""
        return self.index(embedder, progress).matrix

    def term_index(self, tokenizer: str, stemmer: str, k1: float, b: float) -> TermIndex:
        """BM25 weights of the words of the inputs; words are counted once per pool, and kept beside it."""

        def count() -> Terms:
            return self._reader.terms.terms(
                self.rows, self._texts, self._text_at, tokenizer, stemmer, whole=self._keeps
            )

        def weigh() -> TermIndex:
            return TermIndex(self.derived(f"words {tokenizer} {stemmer}", count), k1, b)

        return self.derived(f"terms {tokenizer} {stemmer} {k1!r} {b!r}", weigh)

    def count_missing(self, embedder: Embedder) -> int:
        """How many texts of this view have no stored vector of this embedder."""
        return self._reader.vectors.count_missing(as_embedder(embedder), self._texts)

    def keys(
        self, transform: KeyTransform, progress: Progress | None = None, numbers: Sequence[int] | None = None
    ) -> RetrievalKeys:
        """The keys of each row's input; those the pool has not stored yet are written, and stored.

        ``numbers``: which of an input's keys; all that the transform writes where this is None.
        """
        return self._reader.keys.keys(transform, [e.input for e in self.examples], progress, numbers)

    def keys_of_queries(
        self,
        transform: KeyTransform,
        inputs: Sequence[Fields],
        progress: Progress | None = None,
        numbers: Sequence[int] | None = None,
    ) -> RetrievalKeys:
        """The keys of queries; kept in the pool like those of examples. ``numbers``: as for ``keys``."""
        return self._reader.keys.keys(transform, inputs, progress, numbers)

    def text_vectors(self, embedder: Embedder, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(len(texts), dim) float32, unit rows: document vectors of any texts, e.g. keys; made once, stored."""
        return self._reader.vectors.of_texts(texts, as_embedder(embedder), progress)


_NONE: Any = object()


def _part(view: PoolView, rows: IntArray, origin: PoolOrigin | None) -> PoolView:
    """A part of a view, after it was pickled."""
    return view.only(rows, origin=origin)


def matches_value(value: Json, wanted: Json) -> bool:
    """Whether a metadata value is there and is the wanted one, or is written the same."""
    if value is _NONE:
        return False
    return (value == wanted and type(value) is type(wanted)) or _as_text(value) == _as_text(wanted)


def _as_text(value: Json) -> str:
    return clean_text(value if isinstance(value, str) else canonical_json(value))


def _source(example: Example) -> str:
    """The id of the one example that an example was made from; "" for one that was not, or from several."""
    sources = example.meta.get("generated_from")
    return str(sources[0]) if isinstance(sources, list) and len(sources) == 1 else ""
