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
from iclkit.models import supports_bf16
from iclkit.pool._export import write_whole

MAGIC = b"iclkit vector index 1\n"
SCORE_DECIMALS = 6
FLOAT32_ERROR = 5e-6  # more than a rounded score and FAISS's float32 sum of products of unit rows can differ by
MAX_OVERFETCH = 256  # excluded rows beyond which over-fetching gives way to a scan of the allowed rows
EXTRA_CANDIDATES = 8  # candidates fetched beyond k, so that ties at the border seldom need a second look
ROUGH_LEAST = 1024  # rows from which on bf16 saves time
ROUGH_MOST = 256  # candidates beyond which float32 is asked instead
BF16_STEP = 2.0**-8  # relative error of a number rounded to bf16
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


class FlatIndex:
    """A flat FAISS index whose rows are the rows of a view."""

    def __init__(self, flat: Any) -> None:
        self._flat = flat
        self._half: tuple[Any, float, float] | None = None

    @classmethod
    def of(cls, vectors: FloatArray) -> FlatIndex:
        """vectors (n, dim) float32."""
        flat = faiss_module().IndexFlatIP(vectors.shape[1])
        flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(flat)

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    def extend(self, vectors: FloatArray) -> None:
        """Append rows."""
        self._half = None
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

        Candidates are shortlisted with scores that may be off by a known amount (``_shortlist``); their scores are then
        computed again in float64, one row at a time, because the last bits of a matrix product change with the number
        of queries in it. A query is asked again with more candidates until every row left out is certainly worse than
        the k-th, so the result does not depend on how the candidates were found.
        """
        out = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        if not len(self) or k <= 0:
            return out
        masked = [0] * len(queries) if allowed is None else [len(self) - int(np.count_nonzero(a)) for a in allowed]
        many = np.array([m > MAX_OVERFETCH for m in masked], dtype=np.bool_)
        wanted = np.array([k + m + EXTRA_CANDIDATES for m in masked], dtype=np.int64)
        while len(few := np.flatnonzero(~many & (wanted > 0))):
            # one call per power of two of candidates: a query that excludes more than others does not slow them
            fetch = min(len(self), 1 << int(wanted[few].min() - 1).bit_length())
            now = few[wanted[few] <= fetch] if fetch < len(self) else few
            step = max(1, BLOCK // (fetch * self._flat.d * 8))
            for some in (now[start : start + step] for start in range(0, len(now), step)):
                rows, limit = self._shortlist(queries[some], fetch)
                masks = None if allowed is None else [allowed[int(q)] for q in some]
                found = self._rescore(queries[some], rows, limit, k, masks)
                for q, best in zip(some, found, strict=True):
                    wanted[q] = 4 * fetch if best is None else 0
                    out[q] = best or out[q]
        for q in map(int, np.flatnonzero(many)):
            assert allowed is not None
            out[q] = self._search_allowed(queries[q : q + 1], k, allowed[q])
        return out

    def _search_allowed(
        self, query: FloatArray, k: int, allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], FloatArray]:
        faiss, there = faiss_module(), int(np.count_nonzero(allowed))
        bits = np.packbits(allowed, bitorder="little")
        within = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        fetch = min(there, k + EXTRA_CANDIDATES)
        while fetch:
            near, rows = self._flat.search(query, fetch, params=within)
            limit = near[:, -1].astype(np.float64) + FLOAT32_ERROR if fetch < there else np.array([-np.inf])
            (best,) = self._rescore(query, rows, limit, k, None)
            if best is not None:
                return best
            fetch = min(there, 2 * fetch)
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def _shortlist(self, queries: FloatArray, fetch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Candidate rows (q, fetch), and for each query a score that no other row reaches (q,).

        On hardware that computes in bf16 the first looks are taken with a copy of the rows in bf16: four times faster
        than float32, and off by no more than the rounded rows, the rounded query and the rounded score can be.
        """
        if fetch == len(self):
            return np.tile(np.arange(fetch), (len(queries), 1)), np.full(len(queries), -np.inf)
        if fetch <= ROUGH_MOST and (half := self._bf16_copy()):
            import torch

            rows, norm, lost = half
            asked = torch.from_numpy(queries)
            rough = asked.bfloat16()
            values, found = torch.topk(torch.nn.functional.linear(rough, rows), fetch, dim=1)
            last = values[:, -1].double().numpy()
            length, gone = (torch.linalg.norm(x, dim=1).double().numpy() for x in (asked, asked - rough.float()))
            off = lost * (length + gone) + norm * gone + abs(last) * BF16_STEP + 1e-5 * norm * length
            return found.numpy(), last + off
        near, found_rows = self._flat.search(queries, fetch)
        return found_rows, near[:, -1].astype(np.float64) + FLOAT32_ERROR

    def _bf16_copy(self) -> tuple[Any, float, float] | None:
        """The rows in bf16, the largest norm of a row, and the largest norm of what a row lost; None where no gain."""
        if self._half is None and len(self) >= ROUGH_LEAST and "torch" in sys.modules:
            import torch

            if supports_bf16(torch.device("cpu")):
                rows = torch.tensor(self.vectors)
                rough = rows.bfloat16()
                norm, lost = (float(torch.linalg.norm(x, dim=1).max()) for x in (rows, rows - rough.float()))
                self._half = rough, norm, lost
        return self._half

    def _rescore(
        self,
        queries: FloatArray,
        rows: NDArray[np.int64],
        limit: NDArray[np.float64],
        k: int,
        masks: Sequence[NDArray[np.bool_]] | None,
    ) -> list[tuple[NDArray[np.int64], FloatArray] | None]:
        """The best k of the candidates ``rows`` (q, m), or None where a row that is not among them might belong there.

        limit (q,): a score that no row outside the candidates reaches.
        """
        scores = np.einsum("qmd,qd->qm", self.vectors[rows].astype(np.float64), queries.astype(np.float64))
        scores = np.round(scores, SCORE_DECIMALS)
        if masks is not None:
            scores[~np.stack([mask[r] for mask, r in zip(masks, rows, strict=True)])] = -np.inf
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
