"""What turns texts into vectors: the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import ModelError
from iclkit.records import Progress, digest

FloatArray = NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    """Texts to unit rows. Queries and documents may be encoded differently (prompts, examples on the query side).

    ``document_fingerprint`` may be given as well; without it ``fingerprint`` stands for both sides. Equal fingerprints
    mean equal vectors.
    """

    name: str
    fingerprint: str
    dim: int

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        ...

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        ...


def vector_key(embedder: Embedder, side: str) -> str:
    """What vectors of one side (``"document"`` or ``"query"``) are stored under: 16 hex digits."""
    own = getattr(embedder, "document_fingerprint", None) if side == "document" else None
    return digest([own or embedder.fingerprint, side], 8)


def encode_checked(embedder: Embedder, texts: Sequence[str], side: str) -> FloatArray:
    """(n, dim) float32 vectors of one side (``"document"`` or ``"query"``), checked as ``check_rows`` does."""
    call = embedder.encode_documents if side == "document" else embedder.encode_queries
    vectors = np.ascontiguousarray(call(texts), dtype=np.float32)
    check_rows(embedder.name, vectors, texts, embedder.dim)
    return vectors


def are_unit(vectors: FloatArray) -> NDArray[np.bool_]:
    """(n,): which rows are of unit length; none with NaN or infinity in it is."""
    sound: NDArray[np.bool_] = np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
    return sound


def check_rows(
    name: str, vectors: FloatArray, texts: Sequence[str], dim: int | None = None, *, unit: bool = True
) -> None:
    """ModelError, naming the first bad text, unless vectors are (n, dim), finite and, with ``unit``, of unit length."""
    if vectors.ndim != 2 or len(vectors) != len(texts) or dim not in (None, vectors.shape[1]):
        raise ModelError(
            f"embedder {name!r} says it has {dim} dimensions and gave an array of shape {vectors.shape} for "
            f"{len(texts)} texts"
        )
    sound = are_unit(vectors) if unit else np.isfinite(vectors).all(axis=1)
    if sound.all():
        return
    bad = np.flatnonzero(~sound)
    first = float(np.linalg.norm(vectors[bad[0]]))
    if not np.isfinite(vectors[bad[0]]).all():
        what = "no numbers (NaN or infinite): its weights are damaged, or do not fit its settings"
    elif first == 0:
        what = "a vector of zeros, which has no direction: it knows nothing in that text; leave the text out"
    else:
        what = f"a vector of length {first:.4g}, not of unit length"
    raise ModelError(
        f"embedder {name!r} gave {what}; {len(bad)} of {len(texts)} texts, the first is {_short(texts[int(bad[0])])}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
