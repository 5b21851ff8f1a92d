"""Exact inner-product search over a matrix, which may be mapped from a file. The only module that imports faiss."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import FloatArray
from iclkit.errors import DataError
from iclkit.locks import Lock
from iclkit.models import supports_bf16
from iclkit.pool._arrays import appended
from iclkit.pool._candidates import BoolArray, IntArray, Ranked, Scope, is_member, positions_of

if TYPE_CHECKING:
    from iclkit.pool._lists import ApproximateIndex

SCORE_DECIMALS = 6
FLOAT32_ERROR = 5e-6  # more than a rounded score and FAISS's float32 sum of products of unit rows can differ by
MAX_OVERFETCH = 256  # excluded rows beyond which over-fetching gives way to a scan of the allowed rows
EXTRA_CANDIDATES = 8  # candidates fetched beyond k, so that ties at the border seldom need a second look
FEW_ROWS = 1024  # rows of a scope up to which all are compared in float64, without the index
KEPT_SPACES = 8
BLAS_QUERIES = 3  # from which on BLAS is faster
BF16_MIN_ROWS = 1024  # rows from which on bf16 saves time
BF16_MAX_CANDIDATES = 256  # candidates beyond which float32 is asked instead
BF16_STEP = 2.0**-8  # relative error of a number rounded to bf16
ROUGH_BLOCK = 1 << 14  # rows that are rounded to bf16 at a time
BLOCK = 1 << 26  # bytes of candidate vectors looked at in one go


@cache
def faiss_module() -> Any:
    """faiss, loaded when it is first needed."""
    import faiss

    return faiss


_NONE = np.empty(0, np.int64)
NOTHING = Ranked(np.empty(0, np.int64), np.empty(0, np.float32))
_Best = tuple[IntArray, NDArray[np.float32]]
"""Positions in an index, best first, and their scores."""


class VectorIndex(Protocol):
    """Search over the vectors of a view: exact (``FlatIndex``) or in lists (``iclkit.pool._lists.ListIndex``)."""

    def __len__(self) -> int: ...

    @property
    def approximate(self) -> ApproximateIndex | None:
        """What is approximate about it; None where search is exact."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def rows(self) -> IntArray:
        """(n,): the handles that may be found, ascending."""
        ...

    @property
    def matrix(self) -> FloatArray:
        """(n, dim), read-only: their vectors."""
        ...

    def vectors(self, rows: IntArray) -> FloatArray:
        """(len(rows), dim) float32: the vectors of these handles."""
        ...

    def nearest(self, queries: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """For each query (q, dim) the k rows of its scope with the highest inner product, best first."""
        ...


def checked(queries: FloatArray, scopes: Sequence[Scope], dim: int) -> FloatArray:
    """Queries as they are searched for. DataError for a wrong shape, or not one scope per query."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise DataError(f"query vectors have shape {queries.shape}; the index holds (n, {dim})")
    if len(scopes) != len(queries):
        raise DataError(f"give one scope per query: {len(scopes)} for {len(queries)} queries")
    return queries


class FlatIndex:
    """Exact search. Row n of ``matrix`` is the vector of row handle ``handles[n]``; handles ascend.

    An index never changes. ``extended`` and ``without`` give others, which share with it what is held in memory.
    ``dead``: ascending positions of rows that are in the matrix and no longer in the pool.
    """

    def __init__(self, matrix: FloatArray, handles: IntArray, dead: IntArray | None = None) -> None:
        self._matrix, self.handles, self.dead = matrix, handles, _NONE if dead is None else dead
        self._rough = _RoughCopy(len(handles))
        self._spaces: dict[int, tuple[IntArray, Space]] = {}
        self._lock = Lock()

    @classmethod
    def of(cls, vectors: FloatArray, rows: IntArray | None = None) -> FlatIndex:
        """vectors (n, dim) float32; rows (n,) their handles, ascending: 0 to n - 1 where none are given."""
        matrix = np.ascontiguousarray(vectors, dtype=np.float32)
        return cls(matrix, np.arange(len(matrix), dtype=np.int64) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.handles) - len(self.dead)

    @property
    def approximate(self) -> ApproximateIndex | None:
        """Search is exact."""
        return None

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._matrix.shape[1])

    @property
    def rows(self) -> IntArray:
        """(n,): the handles that may be found, ascending."""
        return np.delete(self.handles, self.dead) if len(self.dead) else self.handles

    def extended(self, rows: IntArray, vectors: FloatArray, matrix: FloatArray | None = None) -> FlatIndex:
        """With the vectors of these handles, which are higher than all others.

        ``matrix``: the whole, where it has been mapped from a file; otherwise it is put together in memory, in room
        that is kept for more.
        """
        matrix = appended(self._matrix, vectors) if matrix is None else matrix
        index = FlatIndex(matrix, appended(self.handles, rows), self.dead)
        if self._rough.length == len(self.handles):  # else another index was extended with other rows
            index._rough = self._rough
            index._rough.length = len(index.handles)
        return index

    def without(self, dead: IntArray) -> FlatIndex:
        """With just these positions dead."""
        if np.array_equal(dead, self.dead):
            return self
        index = FlatIndex(self._matrix, self.handles, dead)
        index._rough = self._rough
        return index

    @property
    def raw(self) -> FloatArray:
        """The vectors of ``handles``, dead ones included."""
        return self._matrix

    @property
    def matrix(self) -> FloatArray:
        """(n, dim), read-only: the vectors of ``rows``; without a copy unless rows are dead."""
        matrix = np.delete(self._matrix, self.dead, axis=0) if len(self.dead) else self._matrix.view()
        matrix.flags.writeable = False
        return matrix

    def vectors(self, rows: IntArray) -> FloatArray:
        """(len(rows), dim) float32: the vectors of these handles. DataError for one that is not in the index."""
        at = positions_of(rows, self.handles)
        gone = is_member(at, self.dead)
        if gone.any():
            raise DataError(f"row {int(np.asarray(rows)[gone][0])} is not in this view of the pool")
        return self._matrix[at]

    def nearest(self, queries: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """For each query (q, dim) the k rows of its scope with the highest inner product, fewer where there are fewer.

        Scores are rounded to 1e-6 and ties go to the lower row, so a result depends on nothing but its own query and
        scope. Queries whose scopes share one ``within`` array are searched together.
        """
        queries = checked(queries, scopes, self.dim)
        ranked = [NOTHING] * len(queries)
        if not len(self) or k <= 0:
            return ranked
        together: dict[int, list[int]] = {}
        for number, scope in enumerate(scopes):
            together.setdefault(id(scope.within), []).append(number)
        for numbers in together.values():
            space = self.space(scopes[numbers[0]].within)
            excluded = [space.positions([*scopes[n].exclude]) for n in numbers]
            for number, best in zip(numbers, self._search(space, queries[numbers], k, excluded), strict=True):
                ranked[number] = Ranked(self.handles[best[0]], best[1]) if best is not None else NOTHING
        return ranked

    def space(self, within: IntArray | None) -> Space:
        """What is to be searched. Filters are arrays that many searches have in common: the last few are kept ready."""
        if within is None:
            return Space(self)
        with self._lock:
            kept = self._spaces.pop(id(within), None)
            space = kept[1] if kept is not None and kept[0] is within else Space(self, within)
            self._spaces[id(within)] = within, space  # with the array, so that no other has its id
            if len(self._spaces) > KEPT_SPACES:
                self._spaces.pop(next(iter(self._spaces)))
        return space

    def _search(self, space: Space, queries: FloatArray, k: int, excluded: Sequence[IntArray]) -> list[_Best | None]:
        """The best positions of a space for each query, less those excluded for it (ascending), and their scores.

        Candidates are shortlisted with scores that may be off by a known amount (``Space.shortlist``); their scores
        are then computed again in float64, one row at a time, because the last bits of a matrix product change with
        the number of queries in it. A query is asked again with more candidates until every row left out is certainly
        worse than the k-th, so the result does not depend on how the candidates were found.
        """
        best: list[_Best | None] = [None] * len(queries)
        many = np.array([len(e) > MAX_OVERFETCH for e in excluded], dtype=np.bool_)
        wanted = np.array([k + len(e) + EXTRA_CANDIDATES for e in excluded], dtype=np.int64)
        while len(few := np.flatnonzero(~many & (wanted > 0))) and len(space):
            # one call per power of two of candidates: a query that excludes more than others does not slow them
            fetch = space.reach(int(wanted[few].min()))
            now = few[wanted[few] <= fetch] if fetch < len(space) else few
            step = max(1, BLOCK // (fetch * self.dim * 8))
            for part in (now[start : start + step] for start in range(0, len(now), step)):
                rows, limit = space.shortlist(queries[part], fetch)
                scored = self.rescore(queries[part], rows, limit, k, [excluded[int(q)] for q in part])
                for q, result in zip(part, scored, strict=True):
                    wanted[q] = 4 * fetch if result is None else 0
                    best[q] = result or best[q]
        for q in map(int, np.flatnonzero(many)):
            best[q] = self._search_less(space.without(excluded[q]), queries[q : q + 1], k)
        return best

    def _search_less(self, space: Space, query: FloatArray, k: int) -> _Best | None:
        """One query that excludes many rows: the index leaves them out itself."""
        fetch = space.reach(k + EXTRA_CANDIDATES)
        while fetch:
            rows, limit = space.shortlist(query, fetch)
            (best,) = self.rescore(query, rows, limit, k)
            if best is not None:
                return best
            fetch = min(len(space), 2 * fetch)
        return None

    def rescore(
        self, queries: FloatArray, rows: IntArray, limit: NDArray[np.float64], k: int, excluded: Sequence[IntArray] = ()
    ) -> list[_Best | None]:
        """The best k of the candidates ``rows`` (q, m) less those excluded, or None where a row that is not among the
        candidates might belong there; positions.

        limit (q,): a score that no row outside the candidates reaches.
        """
        scores = np.einsum("qmd,qd->qm", self._matrix[rows].astype(np.float64), queries.astype(np.float64))
        scores = np.round(scores, SCORE_DECIMALS)
        if len(self.dead):
            scores[is_member(rows, self.dead)] = -np.inf
        for q, out in enumerate(excluded):
            if len(out):
                scores[q, is_member(rows[q], out)] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        worst = scores[:, k - 1] if scores.shape[1] >= k else np.full(len(scores), -np.inf)
        sure = (limit < worst) | (limit == -np.inf)
        return [
            (r[np.isfinite(s)], s[np.isfinite(s)].astype(np.float32)) if ok else None
            for r, s, ok in zip(rows, scores, sure, strict=True)
        ]


class _RoughCopy:
    """Rows in bf16, made when first asked for and extended when there are more.

    Shared by indexes each of which begins with the rows of those before; ``length``: rows of the longest.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._rows: Any = None
        self._used, self._norm, self._lost = 0, 0.0, 0.0
        self._lock = Lock()

    def of(self, matrix: FloatArray) -> tuple[Any, float, float] | None:
        """The rows in bf16, a bound of their norms, and one of the norms of what they lost; None where no gain."""
        if len(matrix) < BF16_MIN_ROWS or "torch" not in sys.modules:
            return None
        import torch

        if not supports_bf16(torch.device("cpu")):
            return None
        with self._lock:
            if self._rows is None or len(self._rows) < len(matrix):
                # exact at first, since most pools do not grow while they are searched
                room = len(matrix) if self._rows is None else len(matrix) + len(matrix) // 4
                rows = torch.empty((room, matrix.shape[1]), dtype=torch.bfloat16)
                if self._used:
                    rows[: self._used] = self._rows[: self._used]
                self._rows = rows
            for start in range(self._used, len(matrix), ROUGH_BLOCK):
                exact = torch.tensor(matrix[start : start + ROUGH_BLOCK])
                rough = exact.bfloat16()
                self._rows[start : start + len(exact)] = rough
                self._norm, self._lost = (
                    max(bound, float(torch.linalg.norm(x, dim=1).max()))
                    for bound, x in ((self._norm, exact), (self._lost, exact - rough.float()))
                )
            self._used = max(self._used, len(matrix))
            return self._rows[: len(matrix)], self._norm, self._lost


class Space:
    """The part of an index that is searched: all of it, or the rows of a scope's ``within``; positions inside."""

    def __init__(self, index: FlatIndex, within: IntArray | None = None) -> None:
        self._index, self._size = index, len(index.handles)
        # which positions are inside: all where there is no array, and few enough to be compared one by one if few
        self._within: IntArray | None = None
        self.few = False
        self.inside: BoolArray | None = None
        """(n,): the same as a mask, where there is an array and it is not short."""
        self._selector: Any = None
        if within is not None:
            inside_at = np.searchsorted(index.handles, within[is_member(within, index.handles)])
            self._within = inside_at[~is_member(inside_at, index.dead)]
            self._size = len(self._within)
            self.few = len(self) <= FEW_ROWS
            if not self.few:
                self.inside = np.zeros(len(index.handles), dtype=np.bool_)
                self.inside[self._within] = True
                self._selector = faiss_module().IDSelectorBitmap(np.packbits(self.inside, bitorder="little"))

    def __len__(self) -> int:
        return self._size

    def positions(self, rows: Sequence[int]) -> IntArray:
        """Ascending positions of those of the handles that are in this space."""
        handles = np.unique(np.array(rows, dtype=np.int64))
        at = np.searchsorted(self._index.handles, handles[is_member(handles, self._index.handles)])
        return at if self._within is None else at[is_member(at, self._within)]

    def without(self, excluded: IntArray) -> Space:
        """This space less these of its positions."""
        rest = Space(self._index)
        rest._size = len(self) - len(excluded)
        if self.few and self._within is not None:
            rest.few, rest._within = True, self._within[~is_member(self._within, excluded)]
            return rest
        faiss = faiss_module()
        left_out = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
        rest._selector = left_out if self._selector is None else faiss.IDSelectorAnd(self._selector, left_out)
        return rest

    def reach(self, wanted: int) -> int:
        """How many candidates to fetch where so many are wanted: a power of two, so that queries go together."""
        return len(self) if self.few else min(len(self), 1 << (wanted - 1).bit_length())

    def shortlist(self, queries: FloatArray, fetch: int) -> tuple[IntArray, NDArray[np.float64]]:
        """Candidate positions (q, fetch), and for each query a score that no other row of the space reaches (q,).

        On hardware that computes in bf16 the first looks at a whole index are taken with a copy of the rows in bf16:
        four times faster than float32, and off by no more than the rounded rows, the rounded query and the rounded
        score can be.
        """
        matrix, never = self._index._matrix, np.full(len(queries), -np.inf)
        if self.few and self._within is not None:
            return np.tile(self._within, (len(queries), 1)), never
        if self._selector is not None:
            near, rows = _nearest(queries, matrix, fetch, self._selector)
            return rows, never if fetch == len(self) else near[:, -1].astype(np.float64) + FLOAT32_ERROR
        if fetch == len(self):
            return np.tile(np.arange(fetch), (len(queries), 1)), never
        if fetch <= BF16_MAX_CANDIDATES and (half := self._index._rough.of(matrix)):
            import torch

            vectors, norm, lost = half
            exact = torch.from_numpy(queries)
            rough = exact.bfloat16()
            values, numbers = torch.topk(torch.nn.functional.linear(rough, vectors), fetch, dim=1)
            last = values[:, -1].double().numpy()
            length, gone = (torch.linalg.norm(x, dim=1).double().numpy() for x in (exact, exact - rough.float()))
            off = lost * (length + gone) + norm * gone + abs(last) * BF16_STEP + 1e-5 * norm * length
            return numbers.numpy(), last + off
        near, rows = _nearest(queries, matrix, fetch)
        return rows, near[:, -1].astype(np.float64) + FLOAT32_ERROR


def _nearest(
    queries: FloatArray, matrix: FloatArray, k: int, selector: Any = None
) -> tuple[NDArray[np.float32], IntArray]:
    """FAISS's exact search: scores and positions (q, k), best first.

    As FAISS sets it (a threshold of 128,000 in 1.15), batches of queries would never use BLAS; with BLAS, one query
    takes three times as long.
    """
    faiss = faiss_module()
    faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= BLAS_QUERIES else 1 << 30
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    x, y, best, at = map(faiss.swig_ptr, (queries, matrix, scores, rows))
    faiss.knn_inner_product(x, y, matrix.shape[1], len(queries), len(matrix), k, best, at, selector)
    return scores, rows
