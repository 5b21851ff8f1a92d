"""Examples in front of every query of any embedder: ``icl:EMBEDDER@FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iclkit.embed._cuts import CutTexts
from iclkit.embed._formats import Pair
from iclkit.embed._protocol import BaseEmbedder, Embedder, FloatArray
from iclkit.errors import DataError
from iclkit.files import read_jsonl
from iclkit.records import Progress


class FewShotEmbedder(BaseEmbedder):
    """Queries are encoded by one embedder, which sees examples, documents by another, which does not."""

    def __init__(self, name: str, queries: Embedder, documents: Embedder) -> None:
        self.name, self.dim, self._queries, self._documents = name, documents.dim, queries, documents
        self.fingerprint = queries.fingerprint

    @property
    def document_fingerprint(self) -> str:
        """Of the embedder that sees no examples."""
        return self._documents.document_fingerprint

    @property
    def cut_texts(self) -> CutTexts:
        """Those of both embedders."""
        return self._queries.cut_texts | self._documents.cut_texts

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._queries.encode_queries(texts, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._documents.encode_documents(texts, progress)


def read_example_pairs(path: Path) -> tuple[Pair, ...]:
    """(input, output) of each line of JSON. DataError names the line that has not both as texts."""
    pairs = []
    for number, row in read_jsonl(path):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("input", "output")):
            raise DataError(f"{path}, line {number}: give `input` and `output`, both texts")
        pairs.append((row["input"], row["output"]))
    if not pairs:
        raise DataError(f"{path} holds no examples; give lines of JSON with `input` and `output`")
    return tuple(pairs)
