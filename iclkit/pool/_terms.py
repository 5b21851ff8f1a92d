"""Words of texts, which examples hold them, and their BM25 weights; kept in a file beside the pool.

The file holds counts, so that one file serves every ``k1`` and ``b``, every part of the pool, and a pool that has grown
or shrunk since: document frequencies and mean lengths are those of the view that asks.
"""

from __future__ import annotations

import json
import logging
import math
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.pool._arrays import begins_with
from iclkit.pool._candidates import IntArray
from iclkit.pool._export import write_whole
from iclkit.records import digest
from iclkit.registry import Registry
from iclkit.text import characters, search_terms

log = logging.getLogger(__name__)
Tokenizer = Callable[[str], list[str]]
OWN = {
    "words": "iclkit.text:search_terms",
    "split": "iclkit.pool._terms:split",
    "trigrams": "iclkit.pool._terms:trigrams",
}
TOKENIZERS = Registry("tokenizer", "iclkit.tokenizers", OWN)
VERSION = 1
"""Raised with every change of what our own tokenizers give: kept files are made anew then."""
MAGIC = b"iclkit term index 1\n"
_DENSE = 8  # a word in more than 1/8 of the rows is kept as a dense column: adding that is faster than scattering
_SMALL = 4096  # rows of a file that is cheap to write
_GROWTH = 8  # a larger file is written anew when the rows it lacks are this part of it: each row is written few times
_DEAD = 4  # or when this part of its rows is no longer in the pool
_SAMPLE = 4  # rows at the end, and as many in between, whose words are counted again before a file is believed

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


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Which of n texts hold which words, and how often. Words are in the order of their bytes.

    The letters of word w are ``letters[ends[w] : ends[w + 1]]``; the texts that hold it ``docs[starts[w] :
    starts[w + 1]]``, ascending, and how often each does stands beside them in ``counts``. ``lengths`` (n,): words of
    each text.
    """

    lengths: NDArray[np.int32]
    ends: IntArray
    starts: IntArray
    docs: NDArray[np.int32]
    counts: NDArray[np.int32]
    letters: NDArray[np.uint8]

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> Self:
        """Of texts, each as its words."""
        vocabulary: dict[str, int] = {}
        terms, lengths = array("i"), array("i")
        for text in texts:
            terms.extend([vocabulary.setdefault(w, len(vocabulary)) for w in text])
            lengths.append(len(text))
        sizes = np.array(lengths, dtype=np.int32)
        docs = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        pairs, counts = np.unique(np.array(terms, dtype=np.int64) * max(len(sizes), 1) + docs, return_counts=True)
        found, docs = np.divmod(pairs, max(len(sizes), 1))
        return cls._sorted(list(vocabulary), sizes, found, docs, counts)

    @classmethod
    def _sorted(
        cls, vocabulary: Sequence[str], lengths: NDArray[np.int32], terms: IntArray, docs: IntArray, counts: IntArray
    ) -> Self:
        """Of entries (term, text, count) whose terms are numbers in a vocabulary without order."""
        spelled = [_letters(word) for word in vocabulary]
        order = sorted(range(len(spelled)), key=spelled.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        terms = rank[terms]
        by_word = np.lexsort((docs, terms))
        used = np.bincount(terms, minlength=len(order))
        return cls(
            lengths,
            np.concatenate([[0], np.cumsum([len(spelled[n]) for n in order], dtype=np.int64)]).astype(np.int64),
            np.concatenate([[0], np.cumsum(used)]).astype(np.int64),
            docs[by_word].astype(np.int32),
            counts[by_word].astype(np.int32),
            np.frombuffer(b"".join(spelled[n] for n in order), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def word(self, number: int) -> bytes:
        """The letters of a word, as UTF-8."""
        return self.letters[int(self.ends[number]) : int(self.ends[number + 1])].tobytes()

    def column(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The texts that hold a word and how often; found by halving."""
        wanted, low, high = _letters(word), 0, len(self.ends) - 1
        while low < high:
            middle = (low + high) // 2
            if self.word(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self.ends) - 1 or self.word(low) != wanted:
            return self.docs[:0], self.counts[:0]
        here = slice(int(self.starts[low]), int(self.starts[low + 1]))
        return self.docs[here], self.counts[here]

    def holds(self, row: int, text: Sequence[str]) -> bool:
        """Whether a row has just these words."""
        if int(self.lengths[row]) != len(text):
            return False
        for word, count in Counter(text).items():
            docs, counts = self.column(word)
            at = int(np.searchsorted(docs, docs.dtype.type(row)))  # of one type, or all of docs would be converted
            if at == len(docs) or docs[at] != row or counts[at] != count:
                return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Postings, and where in a view their texts stand; -1 for one that is not in it.

    ``first``: where the first stands, if all are there and follow each other; None where they do not.
    """

    postings: Postings
    at: IntArray
    first: int | None

    @classmethod
    def of(cls, postings: Postings, at: IntArray) -> Self:
        in_a_row = len(at) > 0 and at[0] >= 0 and bool((np.diff(at) == 1).all())
        return cls(postings, at, int(at[0]) if in_a_row else None)


class Terms:
    """The words of a view's inputs. Rows are positions in the view."""

    def __init__(self, cut: Tokenizer, size: int, parts: Sequence[_Part]) -> None:
        self.cut, self._parts = cut, parts
        self.lengths = np.zeros(size, np.int64)
        for part in parts:
            if part.first is not None:
                self.lengths[part.first : part.first + len(part.at)] = part.postings.lengths
                continue
            inside = part.at >= 0
            self.lengths[part.at[inside]] = part.postings.lengths[inside]

    @classmethod
    def of(cls, texts: Sequence[str], cut: Tokenizer) -> Self:
        """Of texts that are not a pool's."""
        postings = Postings.of(map(cut, texts))
        return cls(cut, len(texts), [_Part.of(postings, np.arange(len(texts)))])

    def column(self, word: str) -> tuple[IntArray, NDArray[np.int32]]:
        """The rows that hold a word and how often."""
        rows, counts = list[IntArray](), list[NDArray[np.int32]]()
        for part in self._parts:
            docs, often = part.postings.column(word)
            if part.first is not None:
                rows.append(docs + np.int64(part.first))
                counts.append(often)
                continue
            at = part.at[docs]
            inside = at >= 0
            rows.append(at[inside])
            counts.append(often[inside])
        return np.concatenate(rows), np.concatenate(counts)


class TermIndex:
    """BM25 weights of words, as Lucene has them; inverse document frequencies are the view's own.

    A word's weights are computed when it is first asked for.
    """

    def __init__(self, terms: Terms, k1: float, b: float) -> None:
        self._terms, self._n = terms, len(terms.lengths)
        mean = int(terms.lengths.sum()) / max(self._n, 1)
        self._norms = k1 * ((1 - b) + b * terms.lengths / mean) if mean else np.full(self._n, np.nan)
        self._columns: dict[str, tuple[IntArray, NDArray[np.float32]]] = {}
        self._dense: dict[str, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return self._n

    def known(self, text: str) -> list[str]:
        """The text's words that the pool has, repeats included."""
        return [w for w in self._terms.cut(text) if len(self._column(w)[0])]

    def weights(self, known: Sequence[str], rows: IntArray) -> NDArray[np.float32]:
        """(rows, words): the BM25 weight of each word in each of these rows."""
        weights = np.zeros((len(rows), len(known)), np.float32)
        place = np.full(self._n, -1)
        place[rows] = np.arange(len(rows))
        for part, word in enumerate(known):
            holders, own = self._column(word)
            at = place[holders]
            weights[at[at >= 0], part] = own[at >= 0]
        return weights

    def scores(self, text: str) -> NDArray[np.float32]:
        """(n,): sum over the text's words of their weight in each example; a word said twice counts twice."""
        total = np.zeros(self._n, np.float32)
        for word in self._terms.cut(text):
            rows, own = self._column(word)
            if len(rows) * _DENSE <= self._n:
                total[rows] += own
            else:
                dense = self._dense.get(word)
                if dense is None:
                    dense = np.zeros(self._n, np.float32)
                    dense[rows] = own
                    self._dense[word] = dense  # when it is whole: other threads look here too
                total += dense
        return total

    def _column(self, word: str) -> tuple[IntArray, NDArray[np.float32]]:
        if word not in self._columns:
            rows, counts = self._terms.column(word)
            rarity = np.float32(math.log(1 + (self._n - len(rows) + 0.5) / (len(rows) + 0.5)))
            weights = np.float64(rarity) * (counts / (self._norms[rows] + counts))
            self._columns[word] = rows, weights.astype(np.float32)
        return self._columns[word]


class TermStore:
    """Terms of one pool, kept in files beside ``beside``; None for a pool in memory. ``uid`` gives the pool's."""

    def __init__(self, beside: Path | None, uid: Callable[[], str], writes: bool) -> None:
        self._beside, self._uid, self._writes = beside, uid, writes
        # what was read of a file, and what the file was then
        self._read: dict[Path, tuple[tuple[int, int], _KeptTerms]] = {}

    def in_memory(self) -> TermStore:
        """One that reads the same files and does not write."""
        return TermStore(self._beside, self._uid, writes=False)

    def terms(
        self, rows: IntArray, texts: IntArray, text_at: Callable[[int], str], name: str, stemmer: str, *, whole: bool
    ) -> Terms:
        """The terms of examples with these handles and text numbers (below 0: of no text of the pool's).

        ``whole``: they are all of the pool's, so what is counted is kept in a file, which is never believed over the
        pool: rows that it lacks are counted now, and those that are gone are left out.
        """
        cut, file = tokenizer(name, stemmer), self._file(name, stemmer)
        kept = self._kept(file) if file else None
        at = kept.positions(rows, texts) if kept else None
        if kept is None or at is None or not self._agrees(kept, at, text_at, cut):
            kept, at = None, np.empty(0, np.int64)
        inside = at[at >= 0]
        only_more = not len(inside) or len(inside) == len(at) == inside[-1] + 1
        missing = np.arange(len(inside), len(rows)) if only_more else np.delete(np.arange(len(rows)), inside)
        parts = [_Part.of(Postings.of(cut(text_at(int(n))) for n in missing), missing)]
        if kept is not None:
            parts.insert(0, _Part.of(kept.postings, at))
        grown = len(missing) and (len(rows) <= _SMALL or len(missing) * _GROWTH >= len(inside))
        if whole and file and self._writes and (grown or (len(at) - len(inside)) * _DEAD > len(at)):
            merged = parts[0].postings if kept is None else _merged(parts, len(rows))
            try:
                _KeptTerms(rows, texts, merged).write(file)
            except OSError as error:
                log.warning("could not write %s (%s); words will be counted again next time", file, error)
        return Terms(cut, len(rows), parts)

    def _kept(self, file: Path) -> _KeptTerms | None:
        """What a file holds, read again only when it has changed."""
        try:
            told = file.stat()
        except OSError:
            return None
        stamp = told.st_size, told.st_mtime_ns
        if file not in self._read or self._read[file][0] != stamp:
            kept = _KeptTerms.read(file)
            if kept is None:
                return None
            self._read[file] = stamp, kept
        return self._read[file][1]

    def _agrees(self, kept: _KeptTerms, at: IntArray, text_at: Callable[[int], str], cut: Tokenizer) -> bool:
        """Whether some rows have the words that the file says: the last ones, which differ in a pool that was restored
        from a copy and went on, and some in between."""
        inside = np.flatnonzero(at >= 0)
        between = np.linspace(0, len(inside) - 1, min(len(inside), _SAMPLE)).astype(np.int64)
        sample = np.unique(np.concatenate([inside[-_SAMPLE:], inside[between]]))
        return all(kept.postings.holds(int(row), cut(text_at(int(at[row])))) for row in sample)

    def _file(self, name: str, stemmer: str) -> Path | None:
        """None for a pool in memory, and for a tokenizer of another package, whose changes cannot be seen."""
        if self._beside is None or name not in OWN:
            return None
        version = ""
        if stemmer:
            import Stemmer

            version = Stemmer.version()
        key = digest([VERSION, name, stemmer, version, unicodedata.unidata_version, self._uid()], 4)
        return self._beside.with_suffix(f".{key}.terms")


@dataclass(frozen=True, slots=True, eq=False)
class _KeptTerms:
    """A file of postings: the handle and the number of the text of each row, and the postings."""

    rows: IntArray
    texts: IntArray
    postings: Postings

    def positions(self, rows: IntArray, texts: IntArray) -> IntArray | None:
        """Where each of the file's rows stands among these; -1 for one that does not. None for a file of other texts
        under the same handles."""
        if begins_with(rows, self.rows) and begins_with(texts, self.texts):
            return np.arange(len(self.rows))
        at = np.searchsorted(rows, self.rows)
        here = at < len(rows)
        here[here] = rows[at[here]] == self.rows[here]
        here[here] = texts[at[here]] >= 0
        if (texts[at[here]] != self.texts[here]).any():
            return None
        return np.where(here, at, -1)

    def _arrays(self) -> list[NDArray[Any]]:
        p = self.postings
        return [self.rows, self.texts, p.ends, p.starts, p.lengths, p.docs, p.counts, p.letters]

    def write(self, path: Path) -> None:
        """In one step: a reader sees the old file or the new one. OSError when that cannot be done."""
        arrays = [np.ascontiguousarray(a) for a in self._arrays()]
        crc = 0
        for part in arrays:
            crc = zlib.crc32(part.data if len(part) else b"", crc)
        header = json.dumps({"sizes": [len(a) for a in arrays], "crc": crc}).encode() + b"\n"
        header = header.rjust(-(-(len(MAGIC) + len(header)) // 8) * 8 - len(MAGIC))  # arrays begin at multiples of 8
        with write_whole(path) as file:
            file.write(MAGIC + header)
            for part in arrays:
                part.tofile(file)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The file, mapped into memory; None, with a warning, for one that is damaged, and for none."""
        try:
            with path.open("rb") as file:
                if file.readline() != MAGIC:
                    raise ValueError("is not a term index of this version")
                told = json.loads(file.readline())
                start = file.tell()
            body = np.asarray(np.memmap(path, np.uint8, "r", start)) if path.stat().st_size > start else _NOTHING
            types = (np.int64, np.int64, np.int64, np.int64, np.int32, np.int32, np.int32, np.uint8)
            ends = np.cumsum([0, *(n * np.dtype(t).itemsize for n, t in zip(told["sizes"], types, strict=True))])
            if int(ends[-1]) != len(body) or zlib.crc32(body.data) != told["crc"]:
                raise ValueError("is damaged")
            rows, texts, *rest = (
                body[first:last].view(t) for first, last, t in zip(ends[:-1], ends[1:], types, strict=True)
            )
            spelled, starts, lengths, docs, counts, letters = rest
            return cls(rows, texts, Postings(lengths, spelled, starts, docs, counts, letters))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s %s; counting the words again", path, error)
            return None


def _merged(parts: Sequence[_Part], size: int) -> Postings:
    """The postings of all texts of a view, by position."""
    vocabulary: dict[str, int] = {}
    lengths = np.zeros(size, np.int32)
    entries: list[tuple[IntArray, IntArray, IntArray]] = []
    for part in parts:
        p = part.postings
        numbers = [vocabulary.setdefault(p.word(n).decode(errors="surrogatepass"), len(vocabulary))
                   for n in range(len(p.ends) - 1)]  # fmt: skip
        at = part.at[p.docs]
        terms = np.repeat(np.array(numbers, dtype=np.int64), np.diff(p.starts))
        entries.append((terms[at >= 0], at[at >= 0], p.counts[at >= 0].astype(np.int64)))
        lengths[part.at[part.at >= 0]] = p.lengths[part.at >= 0]
    terms, docs, counts = (np.concatenate(column) for column in zip(*entries, strict=True))
    used, terms = np.unique(terms, return_inverse=True)
    names = list(vocabulary)
    return Postings._sorted([names[n] for n in used.tolist()], lengths, terms, docs, counts)


_NOTHING = np.empty(0, np.uint8)


def _letters(word: str) -> bytes:
    return word.encode(errors="surrogatepass")
