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
from functools import cached_property
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
_MANY = 500_000  # rows of a pool in which only those are scored that can be among the best; of fewer all are: faster
_SEEK = 256  # rows of one in so many are few: words are looked for in them, row by row
_TIE = 4e-6  # scores that differ by less may tie (``iclkit.selectors._maths.top_rows``)
_NO_TEXT = 2**31 - 1
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


class _Part:
    """Postings, and where in a view their texts stand, ascending; -1 for one that is not in it."""

    def __init__(self, postings: Postings, at: IntArray | None = None, first: int = 0) -> None:
        """``at``: None where all are there and follow each other, from ``first`` on."""
        in_a_row = at is not None and len(at) > 0 and at[0] >= 0 and bool((np.diff(at) == 1).all())
        self.postings = postings
        self._at, self._first = (None, int(at[0])) if at is not None and in_a_row else (at, first)
        self._facts: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        """How many of the texts are in the view."""
        return len(self.postings) if self._at is None else len(self._there[0])

    def place(self, number: int) -> tuple[int, int]:
        """The text with this number among those in the view, and where it stands."""
        if self._at is None:
            return number, self._first + number
        there, at = self._there
        return int(there[number]), int(at[number])

    @property
    def at(self) -> IntArray:
        """Where each text stands."""
        every: IntArray = np.arange(self._first, self._first + len(self.postings))
        return every if self._at is None else self._at

    @cached_property
    def _there(self) -> tuple[IntArray, IntArray]:
        """The texts that are in the view, and where."""
        there = np.flatnonzero(self.at >= 0)
        return there, self.at[there]

    def put_lengths(self, lengths: NDArray[np.int32]) -> None:
        """The words of each text, where it stands in the view."""
        if self._at is None:
            lengths[self._first : self._first + len(self.postings)] = self.postings.lengths
        else:
            there, at = self._there
            lengths[at] = self.postings.lengths[there]

    def column(self, word: str) -> tuple[IntArray, NDArray[np.int32]]:
        """The positions of the view that hold a word, and how often."""
        docs, counts = self.postings.column(word)
        if self._at is None:
            return docs + np.int64(self._first), counts
        at = self._at[docs]
        return at[at >= 0], counts[at >= 0]

    def facts(self, word: str) -> tuple[int, int]:
        """How many of the view's texts hold a word, and a number that it stands in none of them more often."""
        if word not in self._facts:
            docs, counts = self.postings.column(word)
            held = len(docs) if self._at is None else int((self._at[docs] >= 0).sum())
            self._facts[word] = held, int(counts.max()) if held else 0
        return self._facts[word]

    def counts(self, word: str, rows: IntArray) -> NDArray[np.int32]:
        """(len(rows),): how often a word stands at these positions of the view; 0 for those of other parts."""
        docs, often = self.postings.column(word)
        if self._at is None:
            texts = rows - self._first
        else:
            there, at = self._there
            near = np.minimum(np.searchsorted(at, rows), len(at) - 1)
            texts = np.where(at[near] == rows, there[near], -1) if len(at) else np.full(len(rows), -1)
        if not len(docs):
            return np.zeros(len(rows), np.int32)
        # of one type, or all of docs would be converted; no text has the highest number, which stands for none
        texts = np.where((texts >= 0) & (texts < len(self.postings)), texts, _NO_TEXT).astype(docs.dtype)
        near = np.minimum(np.searchsorted(docs, texts), len(docs) - 1)
        return np.where(docs[near] == texts, often[near], 0)


class Terms:
    """The words of a view's inputs. Rows are positions in the view."""

    def __init__(self, cut: Tokenizer, size: int, parts: Sequence[_Part]) -> None:
        self.cut, self._parts = cut, parts
        self.lengths = np.zeros(size, np.int32)
        for part in parts:
            part.put_lengths(self.lengths)

    @classmethod
    def of(cls, texts: Sequence[str], cut: Tokenizer) -> Self:
        """Of texts that are not a pool's."""
        return cls(cut, len(texts), [_Part(Postings.of(map(cut, texts)))])

    def column(self, word: str) -> tuple[IntArray, NDArray[np.int32]]:
        """The rows that hold a word and how often."""
        rows, counts = zip(*(part.column(word) for part in self._parts), strict=True)
        return np.concatenate(rows), np.concatenate(counts)

    def facts(self, word: str) -> tuple[int, int]:
        """How many rows hold a word, and a number that it stands in none of them more often."""
        held, most = zip(*(part.facts(word) for part in self._parts), strict=True)
        return sum(held), max(most)

    def counts(self, word: str, rows: IntArray) -> NDArray[np.int32]:
        """(len(rows),): how often a word stands in these rows."""
        counts = np.zeros(len(rows), np.int32)
        for part in self._parts:
            counts += part.counts(word, rows)
        return counts


class TermIndex:
    """BM25 weights of words, as Lucene has them; inverse document frequencies are the view's own.

    A word's weights are computed when it is first asked for.
    """

    def __init__(self, terms: Terms, k1: float, b: float) -> None:
        self._terms, self._n = terms, len(terms.lengths)
        lengths = terms.lengths[:0] if not self._n else np.arange(int(terms.lengths.max()) + 1)
        mean = int(terms.lengths.sum()) / max(self._n, 1)
        self._norms = k1 * ((1 - b) + b * lengths / mean) if mean else np.full(1, np.nan)  # by length
        self._shortest = int(terms.lengths.min()) if self._n else 0
        self._facts: dict[str, tuple[int, int]] = {}  # of words: see Terms.facts
        self._columns: dict[str, tuple[IntArray, NDArray[np.float32]]] = {}
        self._dense: dict[str, NDArray[np.float32]] = {}
        self._idle: list[NDArray[np.float32]] = []  # (n,) zeros that sums are made in; every thread takes its own

    def __len__(self) -> int:
        return self._n

    def known(self, text: str) -> list[str]:
        """The text's words that the pool has, repeats included."""
        return [w for w in self._terms.cut(text) if self._facts_of(w)[0]]

    def weights(self, known: Sequence[str], rows: IntArray) -> NDArray[np.float32]:
        """(rows, words): the BM25 weight of each word in each of these rows."""
        weights = np.zeros((len(rows), len(known)), np.float32)
        for part, word in enumerate(known):
            weights[:, part] = self._weights_at(word, rows)
        return weights

    def scores(self, text: str) -> NDArray[np.float32]:
        """(n,): sum over the text's words of their weight in each example; a word said twice counts twice."""
        total = np.zeros(self._n, np.float32)
        for word in self._terms.cut(text):
            if self._is_rare(word):
                rows, own = self._column(word)
                total[rows] += own
            else:
                total += self._dense_column(word)
        return total

    def contenders(self, text: str, k: int, outside: IntArray) -> tuple[IntArray | None, NDArray[np.float32]]:
        """Rows, ascending, and their ``scores``: among them are all that can be one of the k best, or tie with one,
        when the rows ``outside`` are left out. Those have score 0. None stands for all rows.
        """
        words = self._terms.cut(text)
        found = self._promising(words, k, outside) if k > 0 and self._n >= _MANY else None
        if found is None:
            scores = self.scores(text)
            scores[outside] = 0
            return None, scores
        weights = {word: self._weights_at(word, found) for word in dict.fromkeys(words)}
        scores = np.zeros(len(found), np.float32)
        for word in words:  # in the order in which ``scores`` adds them: another gives other last bits
            scores += weights[word]
        return found, scores

    def _promising(self, words: Sequence[str], k: int, outside: IntArray) -> IntArray | None:
        """The rows of ``contenders``; None where they would be many.

        What frequent words can add to a row is at most the sum of their highest weights. Where that is little beside
        what k rows have by their other words (MaxScore; Turtle & Flood 1995), the weights of frequent words are
        computed for the rows that they can still lift, and not for all.
        """
        held = {w: self._facts_of(w)[0] for w in words}
        bounds = sorted((self._highest(w) * n, w, n) for w, n in Counter(words).items() if held[w])
        frequent = [b for b in bounds if not self._is_rare(b[1])]
        doubt = sum(bound for bound, *_ in bounds) * len(words) * 2.0**-22 + _TIE  # other order, other last bits
        try:
            total = self._idle.pop()
        except IndexError:
            total = np.empty(self._n, np.float32)
        total.fill(0)
        for word in words:
            if self._is_rare(word):
                rows, own = self._column(word)
                total[rows] += own
        total[outside] = -np.inf
        rarest = [self._column(w)[0] for w in held if held[w] * _SEEK <= self._n]  # the best have some of these
        some = np.concatenate([np.empty(0, np.int64), *rarest])
        if len(some) > (most := k * len(rarest)):  # each row stands here once for each of the words, at most
            some = some[np.argpartition(total[some], -most)[-most:]]
        some = np.unique(some)
        found = None
        while len(some) >= k:
            low = float(np.partition(total[some], -k)[-k]) - doubt
            rest = sum(bound for bound, *_ in frequent)
            if 2 * rest <= low:
                found = np.flatnonzero(total >= np.float32(low - rest))
                if not frequent or len(found) * _SEEK <= self._n:
                    break
            if not frequent:
                break
            _, word, times = frequent.pop()
            for _ in range(times):
                total += self._dense_column(word)
        if found is not None and frequent:
            sums = total[found]
            for _, word, times in frequent:
                sums += np.float32(times) * self._weights_at(word, found)
            found = found[sums >= np.partition(sums, -k)[-k] - doubt]
        self._idle.append(total)
        return found if found is not None and len(found) * _SEEK <= self._n else None

    def _dense_column(self, word: str) -> NDArray[np.float32]:
        """(n,): the weight of a word in each row."""
        dense = self._dense.get(word)
        if dense is None:
            rows, own = self._column(word)
            dense = np.zeros(self._n, np.float32)
            dense[rows] = own
            self._dense[word] = dense  # when it is whole: other threads look here too
        return dense

    def _weights_at(self, word: str, rows: IntArray) -> NDArray[np.float32]:
        """(len(rows),): the weights of a word in these rows."""
        if word in self._dense:
            return self._dense[word][rows]
        if word not in self._columns:
            return self._weigh(word, rows, self._terms.counts(word, rows))
        holders, own = self._columns[word]
        if not len(holders):
            return np.zeros(len(rows), np.float32)
        near = np.minimum(np.searchsorted(holders, rows), len(holders) - 1)
        return np.where(holders[near] == rows, own[near], np.float32(0))

    def _facts_of(self, word: str) -> tuple[int, int]:
        """How many rows hold a word, and a number that it stands in none of them more often."""
        if word not in self._facts:
            self._facts[word] = self._terms.facts(word)
        return self._facts[word]

    def _is_rare(self, word: str) -> bool:
        return self._facts_of(word)[0] * _DENSE <= self._n

    def _rarity(self, word: str) -> np.float32:
        held = self._facts_of(word)[0]
        return np.float32(math.log(1 + (self._n - held + 0.5) / (held + 0.5)))

    def _weigh(self, word: str, rows: IntArray, counts: NDArray[np.int32]) -> NDArray[np.float32]:
        """The weights of a word in rows that have it so often."""
        often = np.maximum(counts, 1)  # where there is none, whatever k1 is, the weight is 0
        weights = np.float64(self._rarity(word)) * (often / (self._norms[self._terms.lengths[rows]] + often))
        return np.where(counts > 0, weights, 0).astype(np.float32)

    def _highest(self, word: str) -> float:
        """A weight that the word has in no row more than."""
        most = self._facts_of(word)[1]
        return float(self._rarity(word)) * most / (float(self._norms[self._shortest]) + most)

    def _column(self, word: str) -> tuple[IntArray, NDArray[np.float32]]:
        if word not in self._columns:
            rows, counts = self._terms.column(word)
            self._columns[word] = rows, self._weigh(word, rows, counts)
        return self._columns[word]


class TermStore:
    """Terms of one pool, kept in files beside ``beside``; None for a pool in memory. ``uid`` gives the pool's."""

    def __init__(self, beside: Path | None, uid: Callable[[], str], writes: bool) -> None:
        self._beside, self._uid, self._writes = beside, uid, writes
        # what was read of a file, and what the file was then
        self._read: dict[Path, tuple[tuple[int, int], _KeptTerms]] = {}
        # and where that stands in which examples
        self._placed: dict[Path, tuple[_KeptTerms, IntArray, IntArray, _Part]] = {}

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
        part = self._part(file, kept, rows, texts) if file and kept else None
        if part is None or not self._agrees(part, text_at, cut):
            kept, part = None, None
        known = 0 if part is None else len(part)
        if part is None or not known or part.place(known - 1)[1] == known - 1:
            missing = np.arange(known, len(rows))
        else:
            missing = np.delete(np.arange(len(rows)), part.at[part.at >= 0])
        parts = [_Part(Postings.of(cut(text_at(int(n))) for n in missing), missing)]
        gone = 0
        if part is not None:
            parts.insert(0, part)
            gone = len(part.postings) - known
        grown = len(missing) and (len(rows) <= _SMALL or len(missing) * _GROWTH >= known)
        if whole and file and self._writes and (grown or gone * _DEAD > known + gone):
            merged = parts[0].postings if part is None else _merged(parts, len(rows))
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

    def _part(self, file: Path, kept: _KeptTerms, rows: IntArray, texts: IntArray) -> _Part | None:
        """What a file holds of these examples; None for a file of other texts under the same handles.

        That of the last view is used again where only rows have been added that the file does not know.
        """
        last = self._placed.get(file)
        if last is not None and last[0] is kept and begins_with(rows, last[1]) and begins_with(texts, last[2]):
            _, before, _, part = last
            if not len(kept.rows) or (len(before) and kept.rows[-1] <= before[-1]):
                return part
        at = kept.positions(rows, texts)
        if at is None:
            return None
        self._placed[file] = kept, rows, texts, _Part(kept.postings, at)
        return self._placed[file][3]

    def _agrees(self, part: _Part, text_at: Callable[[int], str], cut: Tokenizer) -> bool:
        """Whether some rows have the words that the file says: the last ones, which differ in a pool that was restored
        from a copy and went on, and some in between."""
        last = len(part) - 1
        between = np.linspace(0, last, min(len(part), _SAMPLE)).astype(np.int64).tolist()
        sample = {*range(max(0, last - _SAMPLE + 1), last + 1), *between}
        return all(part.postings.holds(text, cut(text_at(at))) for text, at in map(part.place, sorted(sample)))

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
