"""An embedder without a model: texts that share words are near each other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import BaseEmbedder

_WORD = re.compile(r"\w+|[^\w\s]")


@cache
def _word_vector(word: str, dim: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dim)


class HashEmbedder(BaseEmbedder):
    """Each word is a fixed random direction, a text the sum of its words; lower-cased, order ignored.

    Deterministic on every machine, independent of how texts are batched. ``calls`` counts the texts of each side.
    """

    gives_token_vectors = True

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim
        self.name = "hash"
        self.fingerprint = f"hash-{dim}-1"
        self.calls = {"queries": 0, "documents": 0}

    def encode_queries(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, dim) float32, unit rows."""
        return self._encode("queries", texts, progress)

    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, dim) float32, unit rows."""
        return self._encode("documents", texts, progress)

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], NDArray[np.float32]]]:
        """Per text its words and their vectors (words, dim), unit rows."""
        words = [_WORD.findall(t.lower()) or [""] for t in texts]
        return [(w, np.stack([_unit(_word_vector(x, self.dim)) for x in w]).astype(np.float32)) for w in words]

    def _encode(
        self, side: str, texts: Sequence[str], progress: Callable[[int, int], None] | None
    ) -> NDArray[np.float32]:
        self.calls[side] += len(texts)
        rows = np.empty((len(texts), self.dim), np.float32)
        for n, text in enumerate(texts):
            words = _WORD.findall(text.lower()) or [""]
            rows[n] = _unit(np.sum([_word_vector(w, self.dim) for w in words], axis=0))
        if progress:
            progress(len(texts), len(texts))
        return rows


class OverlapReranker:
    """Scores a pair by the share of words that the two texts have in common, in place of a model.

    A thousandth of it is a hash of the pair, so that no two examples tie.
    """

    name = "overlap"
    fingerprint = "overlap-1"

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(n,) in [0, 1.001]."""
        return np.array([self._score(*pair) for pair in pairs])

    @staticmethod
    def _score(query: str, text: str) -> float:
        one, other = {*_WORD.findall(query.lower())}, {*_WORD.findall(text.lower())}
        luck = hashlib.blake2b(f"{query}\x1f{text}".encode(), digest_size=4).digest()
        return len(one & other) / max(1, len(one | other)) + int.from_bytes(luck, "little") / 2**32 / 1000


class TableEmbedder(BaseEmbedder):
    """The vectors of a table, scaled to unit length: for tests that want exact geometry.

    KeyError for a text that is not in the table.
    """

    def __init__(self, table: Mapping[str, Sequence[float]]) -> None:
        self._table = {text: np.asarray(vector, dtype=np.float64) for text, vector in table.items()}
        self.dim = len(next(iter(self._table.values())))
        self.name = "table"
        content = repr(sorted((text, vector.tolist()) for text, vector in self._table.items()))
        self.fingerprint = f"table-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"

    def encode_queries(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, dim) float32, unit rows."""
        if progress:
            progress(len(texts), len(texts))
        return np.array([_unit(self._table[t]) for t in texts], dtype=np.float32).reshape(len(texts), self.dim)

    encode_documents = encode_queries


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return result
