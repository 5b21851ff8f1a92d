"""Exact inner-product search, and the derived file that saves reading every vector from the database again.

The only module that imports faiss.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import FloatArray
from iclkit.errors import DataError
from iclkit.models import supports_bf16
from iclkit.pool._candidates import IntArray, Ranked, Scope, is_member, positions_of
from iclkit.pool._export import write_whole

MAGIC = b"iclkit vector index 1\n"
SCORE_DECIMALS = 6
FLOAT32_ERROR = 5e-6  # more than a rounded score and FAISS's float32 sum of products of unit rows can differ by
MAX_OVERFETCH = 256  # excluded rows beyond which over-fetching gives way to a scan of the allowed rows
EXTRA_CANDIDATES = 8  # candidates fetched beyond k, so that ties at the border seldom need a second look
FEW_ROWS = 1024  # rows of a scope up to which all are compared in float64, without the index
KEPT_SPACES = 8
BF16_MIN_ROWS = 1024  # rows from which on bf16 saves time
BF16_MAX_CANDIDATES = 256  # candidates beyond which float32 is asked instead
BF16_STEP = 2.0**-8  # relative error of a number rounded to bf16
BLOCK = 1 << 26  # bytes of candidate vectors looked at in one go


@cache
def faiss_module() -> Any:
    """faiss, set up. Its own threshold (128,000 in 1.15) keeps batches of queries from ever using BLAS."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss


_NONE = np.empty(0, np.int64)
_Best = tuple[IntArray, NDArray[np.float32]]
"""Positions in an index, best first, and their scores."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an index file holds. ``texts`` is the hash of the row's text hashes in order."""

    fingerprint: str
    dim: int
    rows: int
    texts: str
    revision: int
    crc: int = 0


class FlatIndex:
    """A flat FAISS index. Row n of it holds the vector of row handle ``rows[n]``; handles ascend."""

    def __init__(self, flat: Any, rows: IntArray | None = None) -> None:
        self._flat = flat
        self.rows = np.arange(flat.ntotal, dtype=np.int64) if rows is None else rows
        self._bf16: tuple[Any, float, float] | None = None
        self._spaces: dict[int, tuple[IntArray, _Space]] = {}

    @classmethod
    def of(cls, vectors: FloatArray, rows: IntArray | None = None) -> FlatIndex:
        """vectors (n, dim) float32; rows (n,) their handles, ascending: 0 to n - 1 where none are given."""
        flat = faiss_module().IndexFlatIP(vectors.shape[1])
        flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(flat, rows)

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    def add(self, rows: IntArray, vectors: FloatArray) -> None:
        """Append the vectors of these handles, which are higher than all others."""
        self._bf16 = None
        self._spaces.clear()
        self._flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self.rows = np.concatenate([self.rows, rows])

    @property
    def matrix(self) -> FloatArray:
        """(n, dim), read-only, without a copy. Not to be kept across ``add``."""
        n, dim = self._flat.ntotal, self._flat.d
        if not n:
            return np.empty((0, dim), np.float32)
        return np.asarray(_Memory(self._flat))

    def vectors(self, rows: IntArray) -> FloatArray:
        """(len(rows), dim) float32: the vectors of these handles. DataError for one that is not in the index."""
        return self.matrix[positions_of(rows, self.rows)]

    def nearest(self, queries: FloatArray, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        """For each query (q, dim) the k rows of its scope with the highest inner product, fewer where there are fewer.

        Scores are rounded to 1e-6 and ties go to the lower row, so a result depends on nothing but its own query and
        scope. Queries whose scopes share one ``within`` array are searched together.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self._flat.d:
            raise DataError(f"query vectors have shape {queries.shape}; the index holds (n, {self._flat.d})")
        if len(scopes) != len(queries):
            raise DataError(f"give one scope per query: {len(scopes)} for {len(queries)} queries")
        nothing = Ranked(np.empty(0, np.int64), np.empty(0, np.float32))
        ranked = [nothing] * len(queries)
        if not len(self) or k <= 0:
            return ranked
        together: dict[int, list[int]] = {}
        for number, scope in enumerate(scopes):
            together.setdefault(id(scope.within), []).append(number)
        for numbers in together.values():
            space = self._space(scopes[numbers[0]].within)
            excluded = [space.positions([*scopes[n].exclude]) for n in numbers]
            for number, best in zip(numbers, self._search(space, queries[numbers], k, excluded), strict=True):
                ranked[number] = Ranked(self.rows[best[0]], best[1]) if best is not None else nothing
        return ranked

    def _space(self, within: IntArray | None) -> _Space:
        """What is to be searched. Filters are arrays that many searches have in common: the last few are kept ready."""
        if within is None:
            return _Space(self)
        kept = self._spaces.pop(id(within), None)
        space = kept[1] if kept is not None and kept[0] is within else _Space(self, within)
        self._spaces[id(within)] = within, space  # with the array, so that no other has its id
        if len(self._spaces) > KEPT_SPACES:
            self._spaces.pop(next(iter(self._spaces)))
        return space

    def _search(self, space: _Space, queries: FloatArray, k: int, excluded: Sequence[IntArray]) -> list[_Best | None]:
        """The best positions of a space for each query, less those excluded for it (ascending), and their scores.

        Candidates are shortlisted with scores that may be off by a known amount (``_Space.shortlist``); their scores
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
            step = max(1, BLOCK // (fetch * self._flat.d * 8))
            for part in (now[start : start + step] for start in range(0, len(now), step)):
                rows, limit = space.shortlist(queries[part], fetch)
                scored = self._rescore(queries[part], rows, limit, k, [excluded[int(q)] for q in part])
                for q, result in zip(part, scored, strict=True):
                    wanted[q] = 4 * fetch if result is None else 0
                    best[q] = result or best[q]
        for q in map(int, np.flatnonzero(many)):
            best[q] = self._search_less(space.without(excluded[q]), queries[q : q + 1], k)
        return best

    def _search_less(self, space: _Space, query: FloatArray, k: int) -> _Best | None:
        """One query that excludes many rows: the index leaves them out itself."""
        fetch = space.reach(k + EXTRA_CANDIDATES)
        while fetch:
            rows, limit = space.shortlist(query, fetch)
            (best,) = self._rescore(query, rows, limit, k, [_NONE])
            if best is not None:
                return best
            fetch = min(len(space), 2 * fetch)
        return None

    def _bf16_copy(self) -> tuple[Any, float, float] | None:
        """The rows in bf16, the largest norm of a row, and the largest norm of what a row lost; None where no gain."""
        if self._bf16 is None and len(self) >= BF16_MIN_ROWS and "torch" in sys.modules:
            import torch

            if supports_bf16(torch.device("cpu")):
                rows = torch.tensor(self.matrix)
                rough = rows.bfloat16()
                norm, lost = (float(torch.linalg.norm(x, dim=1).max()) for x in (rows, rows - rough.float()))
                self._bf16 = rough, norm, lost
        return self._bf16

    def _rescore(
        self, queries: FloatArray, rows: IntArray, limit: NDArray[np.float64], k: int, excluded: Sequence[IntArray]
    ) -> list[_Best | None]:
        """The best k of the candidates ``rows`` (q, m) less those excluded, or None where a row that is not among the
        candidates might belong there.

        limit (q,): a score that no row outside the candidates reaches.
        """
        scores = np.einsum("qmd,qd->qm", self.matrix[rows].astype(np.float64), queries.astype(np.float64))
        scores = np.round(scores, SCORE_DECIMALS)
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

    def save(self, path: Path, header: Header) -> None:
        """Write the file in one step: a reader sees the old one or the new one. OSError when that cannot be done."""
        body = faiss_module().serialize_index(self._flat)
        line = json.dumps({**asdict(header), "crc": zlib.crc32(body.data)}).encode()
        with write_whole(path) as file:
            file.write(MAGIC + line + b"\n")
            body.tofile(file)

    @classmethod
    def load(cls, path: Path, fingerprint: str, dim: int) -> tuple[FlatIndex, Header]:
        """Read an index file. ValueError that says what is wrong with it; OSError when it cannot be read."""
        with path.open("rb") as file:
            if file.readline() != MAGIC:
                raise ValueError("is not an index file of this version")
            try:
                header = Header(**json.loads(file.readline()))
            except (TypeError, ValueError) as error:
                raise ValueError("has a broken header") from error
            body = np.fromfile(file, dtype=np.uint8)
        if (header.fingerprint, header.dim) != (fingerprint, dim):
            raise ValueError("belongs to another embedder")
        if zlib.crc32(body.data) != header.crc:
            raise ValueError("is damaged")
        flat = faiss_module().deserialize_index(body)
        if (flat.ntotal, flat.d) != (header.rows, dim):
            raise ValueError("is damaged")
        return cls(flat), header


class _Space:
    """The part of an index that is searched: all of it, or the rows of a scope's ``within``; positions inside."""

    def __init__(self, index: FlatIndex, within: IntArray | None = None) -> None:
        self._index, self._size = index, len(index)
        # which positions are inside: all where there is no array, and few enough to be compared one by one if _few
        self._within: IntArray | None = None
        self._few = False
        self._selector: Any = None
        if within is not None:
            self._within = np.searchsorted(index.rows, within[is_member(within, index.rows)])
            self._size = len(self._within)
            self._few = len(self) <= FEW_ROWS
            if not self._few:
                inside = np.zeros(len(index), dtype=np.bool_)
                inside[self._within] = True
                self._selector = faiss_module().IDSelectorBitmap(np.packbits(inside, bitorder="little"))

    def __len__(self) -> int:
        return self._size

    def positions(self, rows: Sequence[int]) -> IntArray:
        """Ascending positions of those of the handles that are in this space."""
        handles = np.unique(np.array(rows, dtype=np.int64))
        at = np.searchsorted(self._index.rows, handles[is_member(handles, self._index.rows)])
        return at if self._within is None else at[is_member(at, self._within)]

    def without(self, excluded: IntArray) -> _Space:
        """This space less these of its positions."""
        rest = _Space(self._index)
        rest._size = len(self) - len(excluded)
        if self._few and self._within is not None:
            rest._few, rest._within = True, self._within[~is_member(self._within, excluded)]
            return rest
        faiss = faiss_module()
        left_out = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
        rest._selector = left_out if self._selector is None else faiss.IDSelectorAnd(self._selector, left_out)
        return rest

    def reach(self, wanted: int) -> int:
        """How many candidates to fetch where so many are wanted: a power of two, so that queries go together."""
        return len(self) if self._few else min(len(self), 1 << (wanted - 1).bit_length())

    def shortlist(self, queries: FloatArray, fetch: int) -> tuple[IntArray, NDArray[np.float64]]:
        """Candidate positions (q, fetch), and for each query a score that no other row of the space reaches (q,).

        On hardware that computes in bf16 the first looks at a whole index are taken with a copy of the rows in bf16:
        four times faster than float32, and off by no more than the rounded rows, the rounded query and the rounded
        score can be.
        """
        flat, never = self._index._flat, np.full(len(queries), -np.inf)
        if self._few and self._within is not None:
            return np.tile(self._within, (len(queries), 1)), never
        if self._selector is not None:
            parameters = faiss_module().SearchParameters(sel=self._selector)
            near, rows = flat.search(queries, fetch, params=parameters)
            return rows, never if fetch == len(self) else near[:, -1].astype(np.float64) + FLOAT32_ERROR
        if fetch == len(self):
            return np.tile(np.arange(fetch), (len(queries), 1)), never
        if fetch <= BF16_MAX_CANDIDATES and (half := self._index._bf16_copy()):
            import torch

            vectors, norm, lost = half
            exact = torch.from_numpy(queries)
            rough = exact.bfloat16()
            values, numbers = torch.topk(torch.nn.functional.linear(rough, vectors), fetch, dim=1)
            last = values[:, -1].double().numpy()
            length, gone = (torch.linalg.norm(x, dim=1).double().numpy() for x in (exact, exact - rough.float()))
            off = lost * (length + gone) + norm * gone + abs(last) * BF16_STEP + 1e-5 * norm * length
            return numbers.numpy(), last + off
        near, rows = flat.search(queries, fetch)
        return rows, near[:, -1].astype(np.float64) + FLOAT32_ERROR


class _Memory:
    """The rows of a flat index as numpy sees them: read-only, and alive as long as any array made of it."""

    def __init__(self, flat: Any) -> None:
        self._flat = flat
        where = faiss_module().rev_swig_ptr(flat.get_xb(), 1).ctypes.data
        self.__array_interface__ = {
            "shape": (flat.ntotal, flat.d),
            "typestr": "<f4",
            "data": (where, True),
            "version": 3,
        }
