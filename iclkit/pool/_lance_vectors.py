"""Vectors in LanceDB tables, one for each embedder, and search in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from iclkit.embed import Embedder, FloatArray, are_unit, vector_key
from iclkit.errors import DataError, PoolError
from iclkit.pool._arrays import appended, begins_with, distinct
from iclkit.pool._candidates import IntArray, Ranked, Scope, is_member, positions_of
from iclkit.pool._index import (
    EXTRA_CANDIDATES,
    FLOAT32_ERROR,
    MAX_OVERFETCH,
    NOTHING,
    SCORE_DECIMALS,
    FlatIndex,
    VectorIndex,
    checked,
)
from iclkit.pool._lance_io import ASKED, batches, explained, facts_of, number_of, one_of, quoted, rows_of, table_names
from iclkit.pool._lists import PER_LIST, SAMPLE, UNMEASURED, ApproximateIndex, count_lists, info_of, measured
from iclkit.pool._table import StoredVectors, in_parts
from iclkit.pool._vectors import VectorStore, text_hash
from iclkit.records import Progress

HELD = 20_000
"""Rows up to which vectors are taken into memory and searched there, exactly."""
INDEXES = "vectors_indexes"
_INDEX = "vector_idx"
_READ = 1 << 13  # vectors read at a time
_TIDY = 64  # commits after which small fragments are put together
_FEW = 500  # texts that are asked for one by one
_PART = 4  # of texts that are more than this part of all, vectors are read by ranges of their numbers
_PUSHED = 2_000  # excluded texts up to which LanceDB leaves them out itself
_FOUND = 1 << 15  # vectors that are found at once, for several queries


def schema_of(dim: int, facts: dict[str, Any] | None = None) -> Any:
    """Of a table of vectors."""
    import pyarrow as pa

    told = {b"iclkit": json.dumps(facts).encode()} if facts else None
    fields = [("text", pa.int64()), ("hash", pa.binary(16)), ("vector", pa.list_(pa.float32(), dim))]
    return pa.schema(fields, metadata=told)


def batch_of(hashes: Sequence[bytes], vectors: FloatArray) -> Any:
    """Rows for a table of vectors (n, dim)."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns = [
        pa.array([number_of(h) for h in hashes], pa.int64()),
        pa.array(hashes, pa.binary(16)),
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(pa.list_(pa.float32(), vectors.shape[1])),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema_of(vectors.shape[1]))


def matrix_of(batch: Any) -> FloatArray:
    """(n, dim): the vectors of a batch."""
    column = batch["vector"]
    flat: FloatArray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


class LanceVectors(VectorStore):
    """Vectors of one pool in LanceDB."""

    texts_per_commit = 4096  # a commit reads the numbers of all texts

    def __init__(self, place: Path | str, database: Any, writes: bool) -> None:
        super().__init__(writes)
        self.place, self._database = place, database
        self._opened: dict[str, Any] = {}
        # by embedder: the vectors of all that can be shown as they were last taken into memory, and their texts
        self._kept: dict[str, tuple[FlatIndex, IntArray]] = {}
        # by embedder: a version of its table and the numbers of the texts in it, ascending; the last index made of it
        self._numbers: dict[str, tuple[int, IntArray]] = {}
        self._last: dict[str, LanceIndex] = {}

    def _read_only(self) -> Self:
        return type(self)(self.place, self._database, writes=False)

    def _table(self, name: str) -> Any:
        """A table at its last version; None where there is none."""
        if name not in self._opened:
            if name not in table_names(self._database):
                return None
            self._opened[name] = self._database.open_table(name)
        self._opened[name].checkout_latest()
        return self._opened[name]

    def _of(self, embedder: Embedder) -> Any:
        """The table of an embedder. PoolError for one that is not as we make it."""
        name = f"vectors_{vector_key(embedder, 'document')}"
        table = self._table(name)
        if table is not None and not table.schema.equals(schema_of(embedder.dim)):
            raise PoolError(f"the table {name} of {self.place} was changed by another program: its columns differ")
        return table

    def count_missing(self, embedder: Embedder, texts: IntArray) -> int:
        """See ``VectorStore``."""
        return int((~is_member(distinct(texts), self._texts_with(embedder))).sum())

    def _texts_with(self, embedder: Embedder) -> IntArray:
        """Numbers of all texts that have a vector, ascending; read again where another has written."""
        key = vector_key(embedder, "document")
        with explained(self.place):
            if (table := self._of(embedder)) is None:
                return np.empty(0, np.int64)
            version, numbers = self._numbers.get(key, (0, None))
            if numbers is None or version != int(table.version):
                found = [b["text"].to_numpy() for b in batches(table, ["text"])]
                version, numbers = int(table.version), distinct(np.concatenate([np.empty(0, np.int64), *found]))
            self._numbers[key] = version, numbers
            return numbers

    def of_texts(self, texts: Sequence[str], embedder: Embedder, progress: Progress | None = None) -> FloatArray:
        """See ``VectorStore``."""
        numbers = np.array([number_of(text_hash(t)) for t in texts], dtype=np.int64)
        return self.of_numbers(numbers, lambda at: texts[at], embedder, progress)

    def _stored(self, embedder: Embedder, texts: IntArray) -> list[tuple[int, bytes]]:
        with explained(self.place):
            table = self._of(embedder)
            if table is None or not len(texts):
                return []
            found = list[tuple[int, bytes]]()
            wanted = distinct(texts)
            for where in _filters(wanted, int(table.count_rows())):
                for batch in batches(table, ["text", "vector"], where):
                    numbers = batch["text"].to_numpy()
                    here = np.flatnonzero(is_member(numbers, wanted))
                    vectors = matrix_of(batch)
                    found += [(int(numbers[n]), vectors[n].astype("<f4").tobytes()) for n in here.tolist()]
            return [*dict(found).items()]

    def _store(self, embedder: Embedder, texts: IntArray, hashes: Sequence[bytes], vectors: FloatArray) -> None:  # noqa: ARG002
        import pyarrow as pa

        key = vector_key(embedder, "document")
        with explained(self.place):
            batch, table = batch_of(hashes, vectors), self._of(embedder)
            if table is None:
                facts = {"key": key, "name": embedder.name, "dim": embedder.dim}
                schema = schema_of(embedder.dim, facts)
                rows = pa.RecordBatchReader.from_batches(schema, iter([batch.cast(schema)]))
                self._database.create_table(f"vectors_{key}", rows, mode="create")
                return
            rows = pa.Table.from_batches([batch])
            table.merge_insert("text").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            version, numbers = self._numbers.pop(key, (0, None))
            if numbers is not None and int(table.version) == version + 1:  # nobody else has written
                self._numbers[key] = (
                    version + 1,
                    _inserted(numbers, np.array(sorted({number_of(h) for h in hashes}), np.int64)),
                )
            self._tidy(table)

    def _tidy(self, table: Any) -> None:
        if int(table.version) % _TIDY == 0:
            if table.count_rows() >= HELD and not any("text" in index.columns for index in table.list_indices()):
                from lancedb.index import BTree

                table.create_index("text", config=BTree())
            table.optimize(cleanup_older_than=timedelta(days=7))

    def compact(self) -> None:
        """Let go of what was removed."""
        for name in self._names():
            if (table := self._table(name)) is not None:
                table.optimize(cleanup_older_than=timedelta(milliseconds=1))

    def drop(self, texts: Sequence[int]) -> None:
        """Drop the vectors of texts that no example has any more."""
        for name in self._names() if texts else ():
            if (table := self._table(name)) is not None:
                for part in in_parts(texts, ASKED):
                    table.delete(one_of("text", part))

    # ---- search

    def index(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        whole: bool,
        progress: Progress | None = None,
    ) -> VectorIndex:
        """See ``VectorStore``. Of few rows vectors are taken into memory; of many, or where there is an approximate
        index, LanceDB reads what it needs."""
        info = self.approximate(embedder) if whole else None
        if len(rows) <= HELD and info is None:
            return self._in_memory(rows, texts, text_at, embedder, progress, keeps=whole)
        if not self.writes and self.count_missing(embedder, texts):  # nothing can be written, so they are held
            return FlatIndex.of(self.of_numbers(texts, text_at, embedder, progress), rows)
        key, known = vector_key(embedder, "document"), 0
        last = self._last.get(key)
        if last is not None and last.is_start_of(rows, texts):
            version, _ = self._numbers.get(key, (0, None))
            known = len(last) if version == last.version and int(self._of(embedder).version) == version else 0
        self._complete(texts[known:], lambda at: text_at(known + at), embedder, progress)
        index = LanceIndex(self, embedder, rows, texts, info, last)
        if whole:
            self._last[key] = index
        return index

    def _in_memory(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        progress: Progress | None,
        *,
        keeps: bool,
    ) -> FlatIndex:
        """An exact index; with ``keeps`` it is the last one with what has changed, where rows have been added to it or
        taken away."""
        if not keeps:
            return FlatIndex.of(self.of_numbers(texts, text_at, embedder, progress), rows)
        key, index = vector_key(embedder, "document"), None
        if key in self._kept:
            index, known = self._kept[key]
            alive = is_member(index.handles, rows)
            held = int(alive.sum())
            same = np.array_equal(rows[:held], index.handles[alive]) and np.array_equal(texts[:held], known[alive])
            behind = held == len(rows) or not len(index.handles) or rows[held] > index.handles[-1]
            fits = same and behind and 2 * held >= len(index.handles)
            index = index.without(np.flatnonzero(~alive)) if fits else None
        if index is None:
            index, held = FlatIndex.of(self.of_numbers(texts, text_at, embedder, progress), rows), len(rows)
            known = texts
        if held < len(rows):
            new = np.arange(held, len(rows))
            index = index.extended(rows[new], self.of_numbers(texts[new], _at(text_at, new), embedder, progress))
            known = appended(known, texts[new])
        self._kept[key] = index, known
        return index

    def _complete(
        self, texts: IntArray, text_at: Callable[[int], str], embedder: Embedder, progress: Progress | None
    ) -> None:
        """Make and store the vectors that are missing, some thousands at a time."""
        missing = np.flatnonzero(~is_member(texts, self._texts_with(embedder)))
        for start in range(0, len(missing), _READ):
            part = missing[start : start + _READ]
            self.of_numbers(texts[part], _at(text_at, part), embedder, all_missing=True)
            if progress:
                progress(start + len(part), len(missing))

    def at_now(self, embedder: Embedder) -> Any:
        """The table of an embedder at its version now, which stays."""
        with explained(self.place):
            now = int(self._of(embedder).version)
            table = self._database.open_table(f"vectors_{vector_key(embedder, 'document')}")
            table.checkout(now)
            return table

    def approximate(self, embedder: Embedder) -> ApproximateIndex | None:
        """See ``VectorStore``."""
        key = vector_key(embedder, "document")
        with explained(self.place):
            table = self._table(INDEXES)
            told = rows_of(table, ["info"], f"key = {quoted(key)}") if table is not None else []
            if not told:
                return None
            stored = self._of(embedder)
            uuids = [i.index_uuid for i in stored.list_indices() if i.name == _INDEX] if stored is not None else []
        again = f"iclkit pool index {self.place} --embedder {embedder.name} --kind"
        remedy = f"make it again: {again} ivf, or search exactly: {again} exact"
        if not uuids:
            raise PoolError(f"the approximate index of {self.place} was removed by another program; {remedy}")
        try:
            return info_of(json.loads(told[0]["info"]))
        except ValueError as error:
            raise PoolError(f"the approximate index of {self.place} {error}; {remedy}") from error

    def approximations(self) -> list[ApproximateIndex]:
        """See ``VectorStore``."""
        with explained(self.place):
            table = self._table(INDEXES)
            told = rows_of(table, ["info"], "true") if table is not None else []
        return [info_of(json.loads(row["info"])) for row in told]

    def build_lists(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        recall: float,
        lists: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> ApproximateIndex:
        """See ``VectorStore``: LanceDB's IVF with whole vectors, whose recall is measured as for a pool in a file."""
        import lancedb
        from lancedb.index import IvfFlat

        count = count_lists(len(rows), recall, lists)
        key = vector_key(embedder, "document")
        self._complete(texts, text_at, embedder, progress)
        with explained(self.place):
            self._forget(key)
            table = self._of(embedder)
            config = IvfFlat(distance_type="dot", num_partitions=count, sample_rate=PER_LIST)
            table.create_index("vector", config=config, replace=True)
            (made,) = (i for i in table.list_indices() if i.name == _INDEX)
        sample = np.sort(np.random.default_rng(seed).permutation(len(rows))[: min(SAMPLE, len(rows))])
        info = ApproximateIndex(
            embedder.name, len(rows), count, len(sample), UNMEASURED, seed,
            f"lancedb {lancedb.__version__}", str(made.index_uuid),
        )  # fmt: skip
        index = LanceIndex(self, embedder, rows, texts, info)
        exact = partial(index.search, probes=0)
        vectors = index.vectors(rows[sample])
        info = replace(info, levels=measured(exact, index.search, vectors, rows[sample], count, recall))
        with explained(self.place):
            import pyarrow as pa

            row = pa.Table.from_pylist([{"key": key, "info": json.dumps(asdict(info))}])
            if (known := self._table(INDEXES)) is None:
                self._database.create_table(INDEXES, row, mode="create")
            else:
                known.add(row)
        return info

    def drop_lists(self, embedder: Embedder) -> bool:
        """See ``VectorStore``."""
        with explained(self.place):
            forgotten = self._forget(vector_key(embedder, "document"))
            table = self._of(embedder)
            there = table is not None and any(i.name == _INDEX for i in table.list_indices())
            if there:
                table.drop_index(_INDEX)
        return forgotten or there

    def _forget(self, key: str) -> bool:
        table = self._table(INDEXES)
        if table is None or not table.count_rows(f"key = {quoted(key)}"):
            return False
        table.delete(f"key = {quoted(key)}")
        return True

    # ---- all of them

    def _names(self) -> list[str]:
        return [n for n in table_names(self._database) if n.startswith("vectors_") and n != INDEXES]

    def names_with(self, hash_: bytes) -> list[str]:
        """Names of the embedders that have a vector of a text."""
        tables = [t for n in self._names() if (t := self._table(n)) is not None]
        return [str(facts_of(t).get("name")) for t in tables if t.count_rows(f"text = {number_of(hash_)}")]

    def counts(self) -> dict[str, int]:
        """See ``VectorStore``."""
        with explained(self.place):
            tables = [t for n in self._names() if (t := self._table(n)) is not None]
            told = [(facts_of(t), int(t.count_rows())) for t in tables]
        return {f"{f['name']} (document, {f['dim']}-d, {f['key'][:8]})": n for f, n in told}

    def problems(self) -> list[str]:
        """See ``VectorStore``."""
        lines = []
        with explained(self.place):
            for name in self._names():
                table = self._table(name)
                damaged = sum(int((~are_unit(matrix_of(b))).sum()) for b in batches(table, ["vector"]) if b.num_rows)
                if damaged:
                    lines.append(f"{damaged} vectors of embedder {facts_of(table).get('name')!r} are damaged")
        return lines

    def contents(self) -> Iterator[StoredVectors]:
        """The vectors of all embedders."""
        with explained(self.place):
            for name in self._names():
                table = self._table(name)
                facts = facts_of(table)
                yield StoredVectors(facts["key"], facts["name"], facts["dim"], _pairs(self.place, table))

    def take_in(self, contents: Iterable[StoredVectors]) -> None:
        """Take in the vectors of another pool, in the place of what a killed move has left."""
        import pyarrow as pa

        for name in [*self._names(), *([INDEXES] if INDEXES in table_names(self._database) else [])]:
            self._database.drop_table(name)
        for embedder in contents:
            facts = {"key": embedder.key, "name": embedder.name, "dim": embedder.dim}
            schema = schema_of(embedder.dim, facts)
            made = (b.cast(schema) for b in _made(embedder.vectors, embedder.dim))
            table = self._database.create_table(
                f"vectors_{embedder.key}", pa.RecordBatchReader.from_batches(schema, made), mode="create"
            )
            if table.count_rows() >= HELD:
                from lancedb.index import BTree

                table.create_index("text", config=BTree())


def _filters(texts: IntArray, size: int) -> Iterator[str]:
    """Filters that together find texts with these numbers, ascending, in a table of so many rows, and little else."""
    if len(texts) * _PART < size or len(texts) <= _FEW:
        yield from (one_of("text", part) for part in in_parts(texts.tolist(), ASKED))
        return
    # numbers are spread evenly, so between two of many there are few others
    yield from (f"text >= {part[0]} AND text <= {part[-1]}" for part in in_parts(texts.tolist(), _READ))


def _inserted(ascending: IntArray, more: IntArray) -> IntArray:
    """Both, ascending, each number once; ``more`` are few."""
    new = more[~is_member(more, ascending)]
    return np.insert(ascending, np.searchsorted(ascending, new), new)


def _at(text_at: Callable[[int], str], positions: IntArray) -> Callable[[int], str]:
    """The texts of some positions, by where those stand."""
    return lambda at: text_at(int(positions[at]))


def _pairs(place: Path | str, table: Any) -> Iterator[tuple[bytes, bytes]]:
    with explained(place):
        for batch in batches(table, ["hash", "vector"]):
            hashes, vectors = batch["hash"].to_pylist(), matrix_of(batch)
            yield from ((h, v.astype("<f4").tobytes()) for h, v in zip(hashes, vectors, strict=True))


def _made(pairs: Iterable[tuple[bytes, bytes]], dim: int) -> Iterator[Any]:
    for some in in_parts(pairs, _READ):
        vectors = np.frombuffer(b"".join(v for _, v in some), "<f4").reshape(len(some), dim)
        yield batch_of([h for h, _ in some], vectors)


class _Plan(NamedTuple):
    """What LanceDB is asked for a query: so many texts, none of ``gone``, in so many lists (0: exactly)."""

    fetch: int
    gone: tuple[int, ...] = ()
    lists: int = 0


_DONE = _Plan(0)


class LanceIndex:
    """Search in a table of vectors, as it was when this was made; exact where ``info`` is None.

    Rows are known by handle; rows with equal texts have one vector.
    """

    def __init__(
        self,
        store: LanceVectors,
        embedder: Embedder,
        rows: IntArray,
        texts: IntArray,
        info: ApproximateIndex | None,
        last: LanceIndex | None = None,
    ) -> None:
        """``last``: an index of rows that these may begin with."""
        self._store, self._rows, self._texts = store, rows, texts
        self._table, self._dim, self.approximate = store.at_now(embedder), embedder.dim, info
        self.version = int(self._table.version)
        start = len(last) if last is not None and last.is_start_of(rows, texts) else 0
        order = start + np.lexsort((rows[start:], texts[start:]))
        self._by_text, self._ordered = texts[order], rows[order]
        if last is not None and start:
            at = np.searchsorted(last._by_text, self._by_text, "right")
            self._by_text = np.insert(last._by_text, at, self._by_text)
            self._ordered = np.insert(last._ordered, at, self._ordered)
        self._few: tuple[IntArray, FlatIndex] | None = None
        with explained(store.place):
            self._size = int(self._table.count_rows())  # texts of keys among them, which no row has

    def __len__(self) -> int:
        return len(self._rows)

    def is_start_of(self, rows: IntArray, texts: IntArray) -> bool:
        """Whether these rows begin with all of the index."""
        return begins_with(rows, self._rows) and begins_with(texts, self._texts)

    @property
    def lists(self) -> int:
        """Parts that the vectors are sorted into."""
        return self.approximate.lists if self.approximate else 0

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._dim

    @property
    def rows(self) -> IntArray:
        """(n,): the handles that may be found, ascending."""
        return self._rows

    @property
    def matrix(self) -> FloatArray:
        """(n, dim), read-only: all vectors, read into memory."""
        matrix = self.vectors(self._rows)
        matrix.flags.writeable = False
        return matrix

    def vectors(self, rows: IntArray) -> FloatArray:
        """(len(rows), dim) float32: the vectors of these handles. DataError for one that is not in the index."""
        texts = self._texts[positions_of(rows, self._rows)]
        numbers, of_each = np.unique(texts, return_inverse=True)
        vectors, found = np.zeros((len(numbers), self._dim), np.float32), np.zeros(len(numbers), dtype=np.bool_)
        with explained(self._store.place):
            for where in _filters(numbers, self._size):
                for batch in batches(self._table, ["text", "vector"], where):
                    known = batch["text"].to_numpy()
                    inside = is_member(known, numbers)
                    at = np.searchsorted(numbers, known[inside])
                    vectors[at], found[at] = matrix_of(batch)[inside], True
        if not found.all():
            raise DataError(f"a row of {self._store.place} has lost its vector; embed the pool again")
        return vectors[of_each]

    def nearest(self, queries: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """For each query (q, dim) the k rows of its scope with the highest inner product, fewer where there are fewer.

        Scores are computed again in float64 and rounded to 1e-6, and ties go to the lower row, as in ``FlatIndex``. A
        filter that few rows pass is searched exactly.
        """
        return self.search(queries, k, scopes, self.approximate.level(k).probes if self.approximate else 0)

    def search(self, queries: FloatArray, k: int, scopes: Sequence[Scope], probes: int) -> list[Ranked]:
        """The same in that many lists; 0: exactly. LanceDB is asked for many queries at once, which share a scan."""
        queries = checked(queries, scopes, self._dim)
        found = [NOTHING] * len(queries)
        if k <= 0 or not len(self):
            return found
        plans, few = dict[int, _Plan](), dict[int, list[int]]()
        for number, scope in enumerate(scopes):
            if scope.within is not None and len(scope.within) <= HELD:
                few.setdefault(id(scope.within), []).append(number)
            else:
                plans[number] = self._first_plan(k, scope, probes)
        for numbers in few.values():
            within, rest = scopes[numbers[0]].within, [Scope(scopes[n].exclude) for n in numbers]
            assert within is not None
            for number, ranked in zip(numbers, self._held(within).nearest(queries[numbers], k, rest), strict=True):
                found[number] = ranked
        while plans:
            together = dict[_Plan, list[int]]()
            for number, plan in plans.items():
                together.setdefault(plan, []).append(number)
            for plan, numbers in together.items():
                step = max(1, _FOUND // plan.fetch)
                for part in (numbers[start : start + step] for start in range(0, len(numbers), step)):
                    for number, (texts, vectors, limit) in zip(part, self._ask(queries[part], plan), strict=True):
                        scope = scopes[number]
                        found[number] = self._ranked(queries[number], texts, vectors, k, scope)
                        plans[number] = self._next_plan(plan, k, scope, found[number], len(texts), limit)
            plans = {number: plan for number, plan in plans.items() if plan is not _DONE}
        return found

    def _size_of(self, scope: Scope) -> int:
        return len(self) if scope.within is None else len(scope.within)

    def _first_plan(self, k: int, scope: Scope, probes: int) -> _Plan:
        size, gone = self._size_of(scope), self._texts_gone(scope.exclude)
        fetch = math.ceil((k + EXTRA_CANDIDATES + len(scope.exclude)) * len(self) / max(size, 1))
        fetch -= min(len(gone), fetch - k - EXTRA_CANDIDATES)
        return _Plan(fetch, gone, min(self.lists, math.ceil(probes * len(self) / max(size, 1))))

    def _next_plan(self, plan: _Plan, k: int, scope: Scope, ranked: Ranked, found: int, limit: float) -> _Plan:
        """What to ask after ``ranked``, of so many texts that were found; ``_DONE`` where nothing is missing."""
        everything, lists = found < plan.fetch, plan.lists
        short = len(ranked) < min(k, self._size_of(scope) - len(scope.exclude))
        sure = bool(lists) or everything or (len(ranked) == k and limit < ranked.scores[-1])
        if (sure and not short) or (everything and not lists):
            return _DONE
        if everything:
            lists = 0 if 4 * lists >= self.lists else 4 * lists  # the lists do not hold so many
        return _Plan(min(4 * plan.fetch, self._size + 1), plan.gone, lists)

    def _ask(self, queries: FloatArray, plan: _Plan) -> list[tuple[IntArray, FloatArray, float]]:
        """For each query (q, dim) texts, their vectors, and a score that no text left out reaches (of those looked
        at)."""
        with explained(self._store.place):
            asked = self._table.search([*queries]).distance_type("dot").limit(plan.fetch)
            asked = asked.select(["text", "vector", "_distance"])
            if plan.gone:
                asked = asked.where(f"NOT ({one_of('text', plan.gone)})")
            asked = asked.nprobes(plan.lists) if plan.lists else asked.bypass_vector_index()
            found = asked.to_arrow().combine_chunks()
        if not found.num_rows:
            return [(np.empty(0, np.int64), np.empty((0, self._dim), np.float32), -math.inf)] * len(queries)
        vectors = found["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, self._dim)
        texts, scores = found["text"].to_numpy(), 1 - found["_distance"].to_numpy()
        # of a single query LanceDB does not say which one it was
        of_each = found["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(texts), np.int32)
        order = np.argsort(of_each, kind="stable")
        parts = np.split(order, np.searchsorted(of_each[order], np.arange(1, len(queries))))
        return [(texts[p], vectors[p], float(scores[p].min(initial=math.inf)) + FLOAT32_ERROR) for p in parts]

    def _ranked(self, query: FloatArray, texts: IntArray, vectors: FloatArray, k: int, scope: Scope) -> Ranked:
        """The best k rows that have these texts and are in a scope, by scores in float64."""
        scores = np.round(np.einsum("md,d->m", vectors.astype(np.float64), query.astype(np.float64)), SCORE_DECIMALS)
        first, last = (np.searchsorted(self._by_text, texts, side) for side in ("left", "right"))
        many = last - first
        at = np.repeat(first, many) + np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        rows, scores = self._ordered[at], np.repeat(scores, many)
        inside = scope.allowed(rows)
        rows, scores = rows[inside], scores[inside]
        order = np.lexsort((rows, -scores))[:k]
        return Ranked(rows[order], scores[order].astype(np.float32))

    def _texts_gone(self, exclude: frozenset[int]) -> tuple[int, ...]:
        """Texts that only excluded rows have, for LanceDB to leave out; none where they are too many for a filter, or
        so few that they are found and left out here, so that queries with others are asked with it."""
        if not MAX_OVERFETCH < len(exclude) <= _PUSHED:
            return ()
        rows = np.array(sorted(exclude), dtype=np.int64)
        rows = rows[is_member(rows, self._rows)]
        texts, counts = np.unique(self._texts[positions_of(rows, self._rows)], return_counts=True)
        have = np.searchsorted(self._by_text, texts, "right") - np.searchsorted(self._by_text, texts, "left")
        return tuple(texts[have == counts].tolist())

    def _held(self, within: IntArray) -> FlatIndex:
        """The vectors of a filter's rows; those of the last one are kept, since many searches have it in common."""
        if self._few is None or self._few[0] is not within:
            self._few = within, FlatIndex.of(self.vectors(within), within)
        return self._few[1]
