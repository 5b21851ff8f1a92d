"""Exact inner-product search, and the derived file that saves reading every vector from the database again.

The only module that imports faiss.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.pool._embedder import FloatArray
from iclkit.pool._export import write_whole

MAGIC = b"iclkit vector index 1\n"
DIGITS = 6
MARGIN = 5e-6  # more than a rounded score and FAISS's float32 sum of products of unit rows can differ by
MANY = 256  # excluded rows beyond which over-fetching gives way to a scan of the allowed rows
SLACK = 8  # candidates fetched beyond k, so that ties at the border seldom need a second look
BLOCK = 1 << 26  # bytes of candidate vectors looked at in one go


@cache
def faiss_module() -> Any:
    """faiss, set up. Its own threshold (128,000 in 1.15) keeps batches of queries from ever using BLAS."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss


@dataclass(frozen=True, slots=True)
class Header:
    """What an index file holds. ``texts`` is the hash of the row's text hashes in order."""

    fingerprint: str
    dim: int
    rows: int
    texts: str
    revision: int
    crc: int = 0


class VectorIndex:
    """A flat FAISS index whose rows are the rows of a view."""

    def __init__(self, flat: Any) -> None:
        self._flat = flat

    @classmethod
    def of(cls, vectors: FloatArray) -> VectorIndex:
        """vectors (n, dim) float32."""
        flat = faiss_module().IndexFlatIP(vectors.shape[1])
        flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(flat)

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    def extend(self, vectors: FloatArray) -> None:
        """Append rows."""
        self._flat.add(np.ascontiguousarray(vectors, dtype=np.float32))

    @property
    def vectors(self) -> FloatArray:
        """(n, dim), read-only, without a copy. Not to be kept across ``extend``."""
        n, dim = self._flat.ntotal, self._flat.d
        if not n:
            return np.empty((0, dim), np.float32)
        return np.asarray(_Memory(self._flat))

    def search(
        self, queries: FloatArray, k: int, allowed: Sequence[NDArray[np.bool_]] | None
    ) -> list[tuple[NDArray[np.int64], FloatArray]]:
        """See ``PoolView.search``.

        FAISS proposes candidates in float32; their scores are computed again in float64, one row at a time, because
        the last bits of a matrix product change with the number of queries in it. A query is asked again with more
        candidates until every row left out is certainly worse than the k-th.
        """
        out = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        if not len(self) or k <= 0:
            return out
        masked = [0] * len(queries) if allowed is None else [len(self) - int(np.count_nonzero(a)) for a in allowed]
        many = np.array([m > MANY for m in masked], dtype=np.bool_)
        wanted = np.array([k + m + SLACK for m in masked], dtype=np.int64)
        while len(few := np.flatnonzero(~many & (wanted > 0))):
            # one call per power of two of candidates: a query that excludes more than others does not slow them
            fetch = min(len(self), 1 << int(wanted[few].min() - 1).bit_length())
            now = few[wanted[few] <= fetch] if fetch < len(self) else few
            step = max(1, BLOCK // (fetch * self._flat.d * 8))
            for some in (now[start : start + step] for start in range(0, len(now), step)):
                near, rows = self._flat.search(queries[some], fetch)
                masks = None if allowed is None else [allowed[int(q)] for q in some]
                found = self._best(queries[some], near, rows, k, masks, more=fetch < len(self))
                for q, best in zip(some, found, strict=True):
                    wanted[q] = 2 * fetch if best is None else 0
                    out[q] = best or out[q]
        for q in map(int, np.flatnonzero(many)):
            assert allowed is not None
            out[q] = self._search_within(queries[q : q + 1], k, allowed[q])
        return out

    def _search_within(
        self, query: FloatArray, k: int, allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], FloatArray]:
        faiss, there = faiss_module(), int(np.count_nonzero(allowed))
        bits = np.packbits(allowed, bitorder="little")
        within = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        fetch = min(there, k + SLACK)
        while fetch:
            near, rows = self._flat.search(query, fetch, params=within)
            (best,) = self._best(query, near, rows, k, None, more=fetch < there)
            if best is not None:
                return best
            fetch = min(there, 2 * fetch)
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def _best(
        self,
        queries: FloatArray,
        near: FloatArray,
        rows: NDArray[np.int64],
        k: int,
        masks: Sequence[NDArray[np.bool_]] | None,
        *,
        more: bool,
    ) -> list[tuple[NDArray[np.int64], FloatArray] | None]:
        """The best k of the candidates ``rows`` (q, m), or None where a row that is not among them might belong there.

        near (q, m): float32 scores, falling. more: whether the index holds rows beyond the candidates.
        """
        scores = np.einsum("qmd,qd->qm", self.vectors[rows].astype(np.float64), queries.astype(np.float64))
        scores = np.round(scores, DIGITS)
        if masks is not None:
            scores[~np.stack([mask[r] for mask, r in zip(masks, rows, strict=True)])] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        worst = scores[:, k - 1] if scores.shape[1] >= k else np.full(len(scores), -np.inf)
        sure = (near[:, -1] + MARGIN < worst) | (not more)
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
    def load(cls, path: Path, fingerprint: str, dim: int) -> tuple[VectorIndex, Header]:
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
