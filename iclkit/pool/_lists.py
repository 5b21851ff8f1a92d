"""Approximate search: the rows of a pool in lists about centers, of which a query looks at the few nearest (IVF).

Only *which* rows are looked at is approximate. Their scores are computed from the pool's own vectors as those of exact
search are, so a pick's score is right, and the picks depend on nothing but the query, its scope and the index: not on
the number of threads, nor on the queries beside it. The centers are FAISS's k-means; the lists hold row numbers and no
copy of the vectors. How many lists are looked at is found out by comparing with exact search on rows of the pool.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import FloatArray
from iclkit.errors import DataError, UsageError
from iclkit.pool._arrays import appended
from iclkit.pool._candidates import EVERYTHING, BoolArray, IntArray, Ranked, Scope, is_member
from iclkit.pool._export import write_whole
from iclkit.pool._index import EXTRA_CANDIDATES, FLOAT32_ERROR, NOTHING, FlatIndex, checked, faiss_module
from iclkit.records import Json, digest

log = logging.getLogger(__name__)
EXACT_UP_TO = 1_000_000
"""Examples up to which ``iclkit pool index`` builds nothing by itself."""
RECALL = 0.99
FEWEST = 256
"""Rows below which lists save nothing."""
MAGIC = b"iclkit lists 1\n"
DEPTHS = (10, 100)  # k for which recall is measured; selectors that rerank ask for a hundred
SAMPLE = 256  # rows that recall is measured on
PER_LIST = 39  # rows per center that k-means learns from (FAISS warns below)
_PASSES = 10
_ASSIGNED_AT_ONCE = 1 << 13
_TAIL = 1024  # rows that lists may lack before they are written anew
_TAIL_PART = 256  # or this part of all, where that is more: each row is written few times
_COMPARED = 8  # rows at the end, and as many in between, that are assigned again before lists are believed
_Lists = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Level:
    """To find up to ``k`` rows, ``probes`` lists are looked at; ``recall`` of the exact k nearest is found so."""

    k: int
    probes: int
    recall: float


@dataclass(frozen=True, slots=True)
class ApproximateIndex:
    """What an approximate index is, for run records and for people.

    ``sample``: rows of the pool that recall was measured on, each as a query that does not find itself. ``digest``: of
    the centers. ``faiss``: the version that made them; of an index in LanceDB, its name and version.
    """

    embedder: str
    rows: int
    lists: int
    sample: int
    levels: tuple[Level, ...]
    seed: int
    faiss: str
    digest: str

    def level(self, k: int) -> Level:
        """What is looked at for k rows; recall beyond what was measured is not known (nan)."""
        for level in self.levels:
            if k <= level.k:
                return level
        last = self.levels[-1]
        return Level(k, min(self.lists, math.ceil(last.probes * k / last.k)), math.nan)

    @property
    def probes_share(self) -> float:
        """Share of the lists that is looked at for a few rows."""
        return self.levels[0].probes / self.lists

    def identity(self) -> dict[str, Json]:
        """For a run's identity: what decides which rows are looked at, and the recall that was measured."""
        levels: list[Json] = [[v.k, v.probes, v.recall] for v in self.levels]
        return {"kind": "ivf", "lists": self.lists, "k, lists, recall": levels, "faiss": self.faiss,
                "digest": self.digest}  # fmt: skip

    def __str__(self) -> str:
        recall = ", ".join(f"recall@{v.k} {v.recall:.3f} ({v.probes:,})" for v in self.levels)
        return f"approximate index of {self.lists:,} lists: {recall}, measured on {self.sample:,} rows of the pool"


UNMEASURED = (Level(DEPTHS[0], 1, math.nan),)
"""What is known of an index that was not searched yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Which list each row of a pool is in. ``centers`` (lists, dim), unit rows; ``handles``, ``texts`` and ``assigned``
    (n,): row handle, number of the text and list of each row; ``order`` (n,): rows by list."""

    info: ApproximateIndex
    centers: FloatArray
    handles: IntArray
    texts: IntArray
    assigned: _Lists
    order: IntArray

    @classmethod
    def build(
        cls, index: FlatIndex, texts: IntArray, embedder: str, recall: float, lists: int | None, seed: int
    ) -> Lists:
        """Of an exact index whose rows have these text numbers, dead ones included.

        Errors as of ``count_lists``.
        """
        alive = np.delete(np.arange(len(index.handles)), index.dead)
        count = count_lists(len(alive), recall, lists)
        rng = np.random.default_rng(seed)
        learnt_from = np.sort(rng.permutation(alive)[: PER_LIST * count])
        centers = _centers(index.raw[learnt_from], count, seed)
        assigned = assign(FlatIndex.of(centers), index.raw)
        info = ApproximateIndex(
            embedder, len(alive), count, min(SAMPLE, len(alive)), UNMEASURED, seed,
            str(faiss_module().__version__), digest([centers.astype("<f4").tobytes().hex()], 8),
        )  # fmt: skip
        made = cls(info, centers, index.handles, texts, assigned, by_list(assigned))
        sample, listed = np.sort(rng.permutation(alive)[: info.sample]), ListIndex.of(index, made)
        rows = index.handles[sample]
        levels = measured(index.nearest, listed.search, listed.vectors(rows), rows, count, recall)
        return cls(replace(info, levels=levels), centers, index.handles, texts, assigned, made.order)

    def _arrays(self) -> list[NDArray[Any]]:
        return [self.handles, self.texts, self.order, self.assigned, self.centers.reshape(-1)]

    def write(self, path: Path, key: str) -> None:
        """In one step: a reader sees the old file or the new one. OSError when that cannot be done."""
        arrays = [np.ascontiguousarray(a, dtype=t) for a, t in zip(self._arrays(), _TYPES, strict=True)]
        crc = 0
        for part in arrays:
            crc = zlib.crc32(part.data, crc)
        told = {"key": key, "info": asdict(self.info), "dim": self.centers.shape[1], "crc": crc}
        header = json.dumps({**told, "sizes": [len(a) for a in arrays]}).encode() + b"\n"
        header = header.rjust(-(-(len(MAGIC) + len(header)) // 8) * 8 - len(MAGIC))  # arrays begin at multiples of 8
        with write_whole(path) as file:
            file.write(MAGIC + header)
            for part in arrays:
                part.tofile(file)

    @classmethod
    def read(cls, path: Path, key: str) -> Lists:
        """ValueError that says what is wrong with the file; OSError when it cannot be read."""
        told, start = _header(path)
        if told["key"] != key:
            raise ValueError("belongs to another pool or embedder")
        body = np.asarray(np.memmap(path, np.uint8, "r", start))
        try:
            ends = np.cumsum([0, *(n * np.dtype(t).itemsize for n, t in zip(told["sizes"], _TYPES, strict=True))])
            if int(ends[-1]) != len(body) or zlib.crc32(body.data) != told["crc"]:
                raise ValueError("is damaged")
            handles, texts, order, assigned, centers = (
                body[first:last].view(t) for first, last, t in zip(ends[:-1], ends[1:], _TYPES, strict=True)
            )
            return cls(info_of(told["info"]), centers.reshape(-1, told["dim"]), handles, texts, assigned, order)
        except (KeyError, TypeError) as error:
            raise ValueError("is damaged") from error


_TYPES: tuple[np.dtype[Any], ...] = (
    np.dtype("<i8"),
    np.dtype("<i8"),
    np.dtype("<i8"),
    np.dtype("<i4"),
    np.dtype("<f4"),
)


def read_info(path: Path) -> ApproximateIndex:
    """What a file says of its index. ValueError and OSError as ``Lists.read``."""
    return info_of(_header(path)[0]["info"])


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        if (magic := file.readline(64)) != MAGIC:
            version = magic.startswith(MAGIC.rsplit(b" ", 1)[0])
            raise ValueError("was written by another version of iclkit" if version else "is damaged")
        try:
            told = json.loads(file.readline())
            return {name: told[name] for name in ("key", "info", "dim", "crc", "sizes")}, file.tell()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("is damaged") from error


def info_of(told: Any) -> ApproximateIndex:
    """Of what was written of it. ValueError for anything else."""
    try:
        return ApproximateIndex(**{**told, "levels": tuple(Level(**level) for level in told["levels"])})
    except (KeyError, TypeError) as error:
        raise ValueError("is damaged") from error


def _centers(vectors: FloatArray, count: int, seed: int) -> FloatArray:
    """(count, dim) unit rows: spherical k-means. On one thread, so that the same pool has the same centers anywhere."""
    faiss = faiss_module()
    threads, faiss.cvar.distance_compute_blas_threshold = faiss.omp_get_max_threads(), 1
    faiss.omp_set_num_threads(1)
    try:
        means = faiss.Kmeans(vectors.shape[1], count, niter=_PASSES, spherical=True, seed=seed,
                             min_points_per_centroid=1, max_points_per_centroid=PER_LIST)  # fmt: skip
        means.train(np.ascontiguousarray(vectors))
    finally:
        faiss.omp_set_num_threads(threads)
    centers: FloatArray = means.centroids
    return centers


def assign(centers: FlatIndex, vectors: FloatArray) -> _Lists:
    """(len(vectors),): the nearest center of each, whatever others are assigned with it."""
    lists = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), _ASSIGNED_AT_ONCE):
        block = vectors[start : start + _ASSIGNED_AT_ONCE]
        near = centers.nearest(block, 1, [EVERYTHING] * len(block))
        lists[start : start + len(block)] = [int(r.rows[0]) for r in near]
    return lists


def by_list(assigned: _Lists) -> IntArray:
    """(n,): rows by list, ascending in each."""
    return np.argsort(assigned, kind="stable")


def count_lists(rows: int, recall: float, lists: int | None) -> int:
    """How many lists so many rows are sorted into, 4 times their root where None is asked for.

    UsageError for a recall or a number that makes no sense, DataError for too few rows.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"recall is {recall}; give a share above 0 and up to 1, e.g. 0.99")
    if rows < FEWEST:
        raise DataError(f"{rows} rows are searched exactly at once; an approximate index needs {FEWEST}")
    if lists is not None and not 1 < lists <= rows:
        raise UsageError(f"lists is {lists}; give 2 or more, and no more than there are rows ({rows:,})")
    return int(4 * math.sqrt(rows)) if lists is None else lists


def measured(
    exact: Callable[[FloatArray, int, Sequence[Scope]], list[Ranked]],
    search: Callable[[FloatArray, int, Sequence[Scope], int], list[Ranked]],
    vectors: FloatArray,
    rows: IntArray,
    lists: int,
    wanted: float,
) -> tuple[Level, ...]:
    """The fewest lists, in powers of two, that find the wanted share of the nearest to rows of the pool, at each depth.

    ``search`` takes the number of lists to look at last. ``vectors`` are those of ``rows``, of which none finds itself.
    """
    scopes, levels = [Scope(frozenset({int(row)})) for row in rows], list[Level]()
    deepest = [r.scores for r in exact(vectors, max(DEPTHS), scopes)]
    for k in DEPTHS:
        nearest, probes = [scores[:k] for scores in deepest], 1
        while True:
            found = search(vectors, k, scopes, probes)
            # what scores as the k-th does is as good as it
            shares = [float((f.scores >= e[-1]).sum()) / len(e) for f, e in zip(found, nearest, strict=True) if len(e)]
            recall = float(np.mean(shares))
            if recall >= wanted or probes >= lists:
                levels.append(Level(k, probes, round(recall, 4)))
                break
            probes = min(2 * probes, lists)
    return tuple(levels)


class ListIndex:
    """An exact index and the lists of its rows; made of both by ``of``, and extended with the index.

    ``nearest`` looks at the rows of some lists. All else is the exact index's.
    """

    def __init__(
        self, exact: FlatIndex, info: ApproximateIndex, centers: FlatIndex, sorted_: _Sorted, tail: _Lists
    ) -> None:
        self.exact, self.info, self.approximate = exact, info, info
        # rows beyond the sorted ones are the tail: their lists (m,) are looked through
        self._centers, self._sorted, self._tail = centers, sorted_, tail

    @classmethod
    def of(cls, exact: FlatIndex, lists: Lists, texts: IntArray | None = None) -> ListIndex:
        """``texts``: the text number of each row of the exact index; rows that the lists lack are assigned now.

        In a pool that was restored from a copy and went on, other rows have the same numbers: where some of the last
        rows, or of those between, are not in the list where they belong, all are assigned anew.
        """
        centers, known = FlatIndex.of(lists.centers), len(lists.handles)
        texts = lists.texts if texts is None else texts
        if np.array_equal(exact.handles[:known], lists.handles) and np.array_equal(texts[:known], lists.texts):
            assigned, order, same = lists.assigned, lists.order, np.ones(known, dtype=np.bool_)
        else:  # rows have gone from between
            at = np.minimum(np.searchsorted(lists.handles, exact.handles), known - 1)
            same = (lists.handles[at] == exact.handles) & (lists.texts[at] == texts)
            assigned, order = lists.assigned[at], None
        held = np.flatnonzero(same)
        between = np.linspace(0, len(held) - 1, min(len(held), _COMPARED)).astype(np.int64)
        some = np.unique(np.concatenate([held[-_COMPARED:], held[between]]))
        if not np.array_equal(assign(centers, exact.raw[some]), assigned[some]):
            log.warning("an approximate index does not agree with its pool; sorting all rows anew")
            assigned, order = assign(centers, exact.raw), None
        elif not same.all():
            assigned[~same] = assign(centers, exact.raw[~same])
        order = by_list(assigned) if order is None else order
        missing = exact.raw[len(assigned) :]
        tail = assign(centers, missing) if len(missing) else np.empty(0, np.int32)
        return cls(exact, lists.info, centers, _Sorted.of(assigned, order, lists.info.lists), tail)

    def extended(self, exact: FlatIndex) -> ListIndex:
        """For an exact index whose first rows are this one's."""
        tail = appended(self._tail, assign(self._centers, exact.raw[len(self._sorted) + len(self._tail) :]))
        sorted_ = self._sorted
        if len(tail) > max(_TAIL, len(exact.handles) // _TAIL_PART):
            assigned = np.concatenate([sorted_.assigned, tail])
            sorted_ = _Sorted.of(assigned, by_list(assigned), self.info.lists)
            tail = np.empty(0, np.int32)
        return ListIndex(exact, self.info, self._centers, sorted_, tail)

    def lists(self, texts: IntArray) -> Lists:
        """All of it, to be written."""
        assigned = np.concatenate([self._sorted.assigned, self._tail])
        return Lists(self.info, self._centers.raw, self.exact.handles, texts, assigned, by_list(assigned))

    def lacks(self, lists: Lists) -> bool:
        """Whether a file of lists should be written anew."""
        return len(self.exact.handles) - len(lists.handles) > max(_TAIL, len(self.exact.handles) // _TAIL_PART)

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.exact.dim

    @property
    def rows(self) -> IntArray:
        """See ``FlatIndex``."""
        return self.exact.rows

    @property
    def matrix(self) -> FloatArray:
        """See ``FlatIndex``."""
        return self.exact.matrix

    def vectors(self, rows: IntArray) -> FloatArray:
        """See ``FlatIndex``."""
        return self.exact.vectors(rows)

    def nearest(self, queries: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """As ``FlatIndex.nearest``, of the rows in the lists nearest to each query.

        A filter that few rows pass is searched exactly; with any other, more lists are looked at, so that as many rows
        come into question as without. A query that finds fewer than k rows looks at more lists.
        """
        return self.search(queries, k, scopes, self.info.level(k).probes)

    def search(self, queries: FloatArray, k: int, scopes: Sequence[Scope], probes: int) -> list[Ranked]:
        """The same with the number of lists to look at."""
        queries = checked(queries, scopes, self.dim)
        found = [NOTHING] * len(queries)
        if not len(self) or k <= 0:
            return found
        together: dict[int, list[int]] = {}
        for number, scope in enumerate(scopes):
            together.setdefault(id(scope.within), []).append(number)
        for numbers in together.values():
            space = self.exact.space(scopes[numbers[0]].within)
            share = len(space) / len(self.exact.handles)
            wanted = math.ceil(probes / share) if share else self.info.lists
            if space.few or wanted >= self.info.lists:
                ranked = self.exact.nearest(queries[numbers], k, [scopes[n] for n in numbers])
            else:
                ranked = self._nearest(queries[numbers], k, [scopes[n] for n in numbers], wanted, space.inside)
            for number, result in zip(numbers, ranked, strict=True):
                found[number] = result
        return found

    def _nearest(
        self, queries: FloatArray, k: int, scopes: Sequence[Scope], probes: int, inside: BoolArray | None
    ) -> list[Ranked]:
        lists = self._centers.nearest(queries, probes, [EVERYTHING] * len(queries))
        found, short = [NOTHING] * len(queries), list[int]()
        for n, (near, scope) in enumerate(zip(lists, scopes, strict=True)):
            rows = self._rows(near.rows)
            if inside is not None:
                rows = rows[inside[rows]]
            if len(self.exact.dead):
                rows = rows[~is_member(rows, self.exact.dead)]
            if scope.exclude:
                gone = np.array(sorted(scope.exclude), dtype=np.int64)
                rows = rows[~is_member(self.exact.handles[rows], gone)]
            found[n] = self._best(queries[n : n + 1], rows, k)
            if len(found[n]) < k:
                short.append(n)
        if short:
            more = 4 * probes
            few, own = queries[short], [scopes[n] for n in short]
            again = (
                self.exact.nearest(few, k, own) if more >= self.info.lists else self._nearest(few, k, own, more, inside)
            )
            for n, result in zip(short, again, strict=True):
                found[n] = result
        return found

    def _rows(self, lists: IntArray) -> IntArray:
        """The rows of these lists, as positions in the exact index."""
        rows = self._sorted.rows(lists)
        if not len(self._tail):
            return rows
        wanted = np.zeros(self.info.lists, dtype=np.bool_)
        wanted[lists] = True
        return np.concatenate([rows, len(self._sorted) + np.flatnonzero(wanted[self._tail])])

    def _best(self, query: FloatArray, rows: IntArray, k: int) -> Ranked:
        """The best k of these rows for one query (1, dim): scores in float32, of the best again in float64."""
        if not len(rows):
            return NOTHING
        faiss, matrix = faiss_module(), self.exact.raw
        scores = np.empty(len(rows), np.float32)
        out, asked, vectors, at = map(faiss.swig_ptr, (scores, query, matrix, rows))
        faiss.fvec_inner_products_by_idx(out, asked, vectors, at, matrix.shape[1], 1, len(rows))
        fetch = k + EXTRA_CANDIDATES
        while True:
            chosen, limit = rows, -np.inf
            if fetch < len(rows):
                best = np.argpartition(-scores, fetch - 1)[:fetch]
                chosen, limit = rows[best], float(scores[best].min()) + FLOAT32_ERROR
            (ranked,) = self.exact.rescore(query, chosen[None], np.array([limit]), k)
            if ranked is not None:
                return Ranked(self.exact.handles[ranked[0]], ranked[1])
            fetch *= 4


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """Rows by list: those of list n are ``order[starts[n] : starts[n + 1]]``."""

    assigned: _Lists
    order: IntArray
    starts: IntArray

    @classmethod
    def of(cls, assigned: _Lists, order: IntArray, lists: int) -> _Sorted:
        sizes = np.bincount(assigned, minlength=lists)
        return cls(assigned, order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.assigned)

    def rows(self, lists: IntArray) -> IntArray:
        return np.concatenate([self.order[self.starts[n] : self.starts[n + 1]] for n in lists.tolist()])
