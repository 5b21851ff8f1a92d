"""Words of texts, and the BM25 weight of every word in every example of a pool (an index by bm25s)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.registry import Registry
from iclkit.selectors._base import IntArray
from iclkit.selectors._maths import SortKeys, smallest_rows, top_rows
from iclkit.text import characters, search_terms

if TYPE_CHECKING:
    from iclkit.pool import PoolView

Tokenizer = Callable[[str], list[str]]
TOKENIZERS = Registry(
    "tokenizer",
    "iclkit.tokenizers",
    {
        "words": "iclkit.text:search_terms",
        "split": "iclkit.selectors._terms:split",
        "trigrams": "iclkit.selectors._terms:trigrams",
    },
)
_DENSE = 8  # a word in more than 1/8 of the pool is kept as a dense column: adding that is faster than scattering

words = search_terms


def split(text: str) -> list[str]:
    """What stands between white space, as it is (in NFC): for code, or text that is already tokenised."""
    return unicodedata.normalize("NFC", text).split()


def trigrams(text: str) -> list[str]:
    """Runs of three characters within words, against misspellings and word endings; short words whole.

    Where a script puts no spaces between words the terms are those of ``words``: single characters and pairs.
    """
    grams = list[str]()
    for word in words(text):
        signs = characters(word)
        grams += ["".join(signs[n : n + 3]) for n in range(max(1, len(signs) - 2))]
    return grams


def tokenizer(name: str, stemmer: str) -> Tokenizer:
    """The named tokenizer, followed by a Snowball stemmer when one is named ("english", "german" …).

    UsageError for a stemmer that Snowball has not got.
    """
    cut: Tokenizer = TOKENIZERS.get(name)
    if not stemmer:
        return cut
    import Stemmer

    if stemmer not in Stemmer.algorithms():
        raise UsageError(f"no stemmer named {stemmer!r}; known: {', '.join(sorted(Stemmer.algorithms()))}")
    return _Stemmed(cut, stemmer)


class _Stemmed:
    """A tokenizer followed by a stemmer, which is made anew where this is copied to: it cannot be copied itself."""

    def __init__(self, cut: Tokenizer, stemmer: str) -> None:
        import Stemmer

        self._given, self._cut, self._stem = (cut, stemmer), cut, Stemmer.Stemmer(stemmer)

    def __call__(self, text: str) -> list[str]:
        return list(self._stem.stemWords(self._cut(text)))

    def __reduce__(self) -> tuple[type[_Stemmed], tuple[Tokenizer, str]]:
        return _Stemmed, self._given


def term_index(pool: PoolView, tokenizer_name: str, stemmer: str, k1: float, b: float) -> TermIndex:
    """The term index of a pool's inputs, made once for all selectors with these settings."""

    def make() -> TermIndex:
        return TermIndex([e.text for e in pool.examples], tokenizer(tokenizer_name, stemmer), k1, b)

    return pool.derived(f"terms {tokenizer_name} {stemmer} {k1!r} {b!r}", make)


class TermIndex:
    """BM25 weights of a pool's words as sparse columns; inverse document frequencies are the pool's own."""

    def __init__(self, texts: Sequence[str], cut: Tokenizer, k1: float, b: float) -> None:
        import bm25s

        self._cut, self._n = cut, len(texts)
        self.vocabulary: dict[str, int] = {}
        number = self.vocabulary.setdefault
        ids = [[number(w, len(self.vocabulary)) for w in cut(text)] for text in texts]
        self._columns: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[Any]] | None = None
        self._dense: dict[int, NDArray[np.float32]] = {}
        if not self.vocabulary:
            return
        index = bm25s.BM25(method="lucene", k1=k1, b=b, csc_backend="scipy")
        index.index((ids, dict(self.vocabulary)), create_empty_token=False, show_progress=False)
        self._columns = index.scores["data"], index.scores["indices"], index.scores["indptr"]

    def term_ids(self, text: str) -> list[int]:
        """Numbers of the text's words that the pool knows, repeats included."""
        return [t for w in self._cut(text) if (t := self.vocabulary.get(w)) is not None]

    def weights(self, terms: Sequence[int], rows: IntArray) -> NDArray[np.float32]:
        """(rows, terms): the BM25 weight of each word in each of these rows."""
        weights = np.zeros((len(rows), len(terms)), np.float32)
        if self._columns is None:
            return weights
        data, holders, starts = self._columns
        place = np.full(self._n, -1)
        place[rows] = np.arange(len(rows))
        for part, term in enumerate(terms):
            here = slice(int(starts[term]), int(starts[term + 1]))
            at = place[holders[here]]
            weights[at[at >= 0], part] = data[here][at >= 0]
        return weights

    def nearest(self, text: str, k: int, outside: IntArray, shuffled: SortKeys) -> tuple[IntArray, NDArray[np.float64]]:
        """The k rows of highest score with their scores, best first, leaving the rows ``outside`` out.

        Where fewer share a word with the text, the rest come in the order of the keys ``shuffled`` (n,) and score 0.
        """
        scores = self.scores(text)
        scores[outside] = 0
        rows = top_rows(scores, k, above=0.0, significant=True)
        best = scores[rows].astype(np.float64)
        if len(rows) < k:
            left = np.delete(np.arange(self._n), np.r_[outside, rows])
            fill = smallest_rows(shuffled, k - len(rows), left)
            rows, best = np.r_[rows, fill], np.r_[best, np.zeros(len(fill))]
        return rows, best

    def scores(self, text: str) -> NDArray[np.float32]:
        """(n,): sum over the text's words of their weight in each example; a word said twice counts twice."""
        total = np.zeros(self._n, np.float32)
        if self._columns is None:
            return total
        data, rows, starts = self._columns
        for term in self.term_ids(text):
            begin, end = int(starts[term]), int(starts[term + 1])
            if (end - begin) * _DENSE <= self._n:
                total[rows[begin:end]] += data[begin:end]
            else:
                if term not in self._dense:
                    self._dense[term] = np.zeros(self._n, np.float32)
                    self._dense[term][rows[begin:end]] = data[begin:end]
                total += self._dense[term]
        return total
