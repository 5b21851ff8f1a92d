"""What turns texts into vectors: the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import ModelError
from iclkit.records import digest

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with (done, total) units of work; a room below ``cli`` never prints."""


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


def side_fingerprint(embedder: Embedder, side: str) -> str:
    """What vectors of one side (``"document"`` or ``"query"``) are stored under: 16 hex digits."""
    own = getattr(embedder, "document_fingerprint", None) if side == "document" else None
    return digest([own or embedder.fingerprint, side], 8)


def encode(embedder: Embedder, texts: Sequence[str], side: str) -> FloatArray:
    """Encode one side and check what came back. ModelError unless it is (n, dim), finite and of unit length."""
    call = embedder.encode_documents if side == "document" else embedder.encode_queries
    vectors = np.ascontiguousarray(call(texts), dtype=np.float32)
    if vectors.shape != (len(texts), embedder.dim):
        raise ModelError(
            f"embedder {embedder.name!r} says it has {embedder.dim} dimensions and gave an array of shape "
            f"{vectors.shape} for {len(texts)} texts"
        )
    norms = np.linalg.norm(vectors, axis=1)
    if bad := int(np.count_nonzero(~(np.abs(norms - 1) < 1e-3))):  # "not <" also catches NaN
        raise ModelError(f"embedder {embedder.name!r} gave {bad} of {len(texts)} vectors that are not of unit length")
    return vectors
