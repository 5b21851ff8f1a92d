"""Duplicates: exact ones by folded text, near ones by the Jaccard overlap of four-character pieces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.records import Example, clean_text, fold_text

PIECE = 4
PARTS_FROM = 0.6
"""Overlap from which on near rows may be found by parts of their pieces; below it most parts would be empty."""
_CLASS_WIDTH = 1.25  # sizes in one class differ by no more than this factor
_PIECES_PER_PART = 0.6  # times near / (1 - near): few parts are single pieces, which many rows have in common
_ROUNDING = 1e-9  # keeps 0.7 * 10 = 7.000000000000001 from being rounded up to 8
Pieces = NDArray[np.uint64]


def fold_input(example: Example) -> str:
    """The input as duplicate search sees it; a text of punctuation alone stays as it is."""
    return fold_text(example.text) or clean_text(example.text)


def duplicate_rows(examples: Sequence[Example], near: float | None = None) -> list[list[int]]:
    """Groups of rows that say the same, in order; the first row of each is the oldest and the one to keep.

    Only examples with equal task and equal folded output are compared: the same input with another output is a
    contradiction, not a duplicate. Going from old to new, a row joins the oldest kept row it equals or, with
    ``near``, the kept row it overlaps most with (ties: the oldest), if by at least ``near``. UsageError unless
    0 < near <= 1.
    """
    if near is not None and not 0 < near <= 1:
        raise UsageError(f"near is {near}; give an overlap above 0 and up to 1, e.g. 0.8")
    texts = [fold_input(e) for e in examples]
    kinds = [(e.task, fold_text(e.output) or clean_text(e.output)) for e in examples]
    kept: dict[tuple[tuple[str, str], str], list[int]] = {}
    for row, key in enumerate(zip(kinds, texts, strict=True)):
        kept.setdefault(key, []).append(row)
    groups = {rows[0]: rows for rows in kept.values()}
    if near is not None and near < 1:
        firsts = list(groups)
        pairs, _ = near_pairs([texts[r] for r in firsts], [kinds[r] for r in firsts], near)
        for new, old in pairs:
            groups[firsts[old]] = sorted(groups[firsts[old]] + groups.pop(firsts[new]))
    return [rows for rows in groups.values() if len(rows) > 1]


def ngram_hashes(text: str) -> Pieces:
    """Hashes of the distinct four-character pieces of a text with a space at either end; sorted."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    width = min(PIECE, len(codes))
    mixed = np.zeros(len(codes) - width + 1, np.uint64)
    for offset in range(width):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(mixed)] + np.uint64(1)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def near_pairs(texts: Sequence[str], kinds: Sequence[Hashable], near: float) -> tuple[list[tuple[int, int]], int]:
    """(new row, kept row) pairs of the rule in ``duplicate_rows``, exact, and how many pairs of rows were compared."""
    sets = [ngram_hashes(t) for t in texts]
    if not sets:
        return [], 0
    sizes = np.array([len(s) for s in sets])
    kind = np.unique([hash(k) for k in kinds], return_inverse=True)[1]  # a collision costs a comparison
    unique, numbers, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    pieces = np.split(numbers, np.cumsum(sizes)[:-1])
    keys = _rare_piece_keys(pieces, counts, kind, near)
    if near >= PARTS_FROM:
        keys = min(keys, _part_keys(sets, sizes, kind, near), key=_Keys.meetings)
    holders: dict[int, list[int]] = {}
    pairs, compared = list[tuple[int, int]](), 0
    mine = np.zeros(len(unique), dtype=np.bool_)  # marks the pieces of the current row
    for row, (stored, asked) in enumerate(zip(keys.stored, keys.asked, strict=True)):
        meetings = Counter(chain.from_iterable(holders.get(key, ()) for key in asked))
        others = np.array(sorted(o for o, count in meetings.items() if count >= keys.shared), dtype=np.int64)
        if len(others):
            small, large = np.minimum(sizes[others], sizes[row]), np.maximum(sizes[others], sizes[row])
            others = others[(small >= near * large - _ROUNDING) & [kinds[o] == kinds[row] for o in others]]
        if len(others):
            compared += len(others)
            mine[pieces[row]] = True
            starts = np.concatenate([[0], np.cumsum(sizes[others])[:-1]])
            common = np.add.reduceat(mine[np.concatenate([pieces[o] for o in others])], starts, dtype=np.int64)
            mine[pieces[row]] = False
            overlap = common / (sizes[others] + sizes[row] - common)
            best = int(np.argmax(overlap))  # the first, that is the oldest, of equals
            if overlap[best] >= near - 1e-12:
                pairs.append((row, int(others[best])))
                continue
        for key in stored:
            holders.setdefault(key, []).append(row)
    return pairs, compared


@dataclass(frozen=True, slots=True)
class _Keys:
    """Per row the keys that it is stored under and those that it asks for: near rows have ``shared`` in common."""

    stored: list[list[int]]
    asked: list[list[int]]
    shared: int

    def meetings(self) -> int:
        """How often rows would come together under a key."""
        stored, asked = (Counter(chain.from_iterable(side)) for side in (self.stored, self.asked))
        return sum(count * asked[key] for key, count in stored.items())


def _rare_piece_keys(
    pieces: Sequence[NDArray[np.int64]], counts: NDArray[np.int64], kind: NDArray[np.int64], near: float
) -> _Keys:
    """Prefix filtering (Bayardo, Ma & Srikant, WWW 2007; Xiao et al., WWW 2008).

    With pieces ordered from rare to common, two sets that overlap by ``near`` share one of the first
    |x| - ceil(near |x|) + 1 pieces of each. A piece of a fixed vocabulary is in a fixed share of all rows, so the rows
    that hold one grow with the pool.
    """
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    keys = []
    for row, own in enumerate(pieces):
        first = np.sort(rank[own])[: len(own) - math.ceil(near * len(own) - _ROUNDING) + 1]
        keys.append((first * (int(kind.max()) + 1) + kind[row]).tolist())
    return _Keys(keys, keys, 1)


def _part_keys(sets: Sequence[Pieces], sizes: NDArray[np.int64], kind: NDArray[np.int64], near: float) -> _Keys:
    """Prefix filtering of parts: keys so rare that the rows with one in common do not grow with the pool.

    Pieces are dealt into m parts by their hash (Arasu, Ganti & Kaushik, VLDB 2006, PartEnum). Sets that overlap by
    ``near`` differ in at most d = (1 - near) / (1 + near) * (|x| + |y|) pieces, so in at most d parts; of the others
    each holds the same pieces in both. With a set's parts ordered from rare to common, two of these equal parts are
    among the first d + 2 of both (Wang, Li & Feng, SIGMOD 2012). m depends on the sizes, so rows are stored by size
    class, and ask every class that may hold a near row.
    """
    stored: list[list[int]] = [[] for _ in sets]
    asked: list[list[int]] = [[] for _ in sets]
    size_class = np.floor(np.log(sizes) / math.log(_CLASS_WIDTH) + _ROUNDING).astype(np.int64)
    offset = 0
    for number in np.unique(size_class):
        own = size_class == number
        low, high = int(sizes[own].min()), int(sizes[own].max())
        rows = np.flatnonzero((sizes >= near * low - _ROUNDING) & (near * sizes <= high + _ROUNDING))
        parts = max(int(high * (1 - near) / near / _PIECES_PER_PART) + 2, 2)
        signatures = _signatures([sets[r] for r in rows.tolist()], kind[rows], parts)
        _, inverse, counts = np.unique(signatures, return_inverse=True, return_counts=True)
        order = np.argsort(counts, kind="stable")
        rank = np.empty(len(counts), np.int64)
        rank[order] = np.arange(len(counts))
        ranked, common = np.sort(rank[inverse].reshape(signatures.shape), axis=1), counts[order] > 1
        # parts that differ at most: from any row of the class, and from any row that asks it
        own_most = np.floor((1 - near) / near * sizes[rows] + _ROUNDING)
        most = np.floor((1 - near) / (1 + near) * (sizes[rows] + np.minimum(high, sizes[rows] / near)) + _ROUNDING)
        for keys, chosen, reach in ((stored, own[rows], own_most), (asked, np.ones(len(rows), np.bool_), most)):
            # a key that no second row has leads nowhere
            wanted = common[ranked] & (np.arange(parts) <= reach[:, None] + 1) & chosen[:, None]
            at, column = np.nonzero(wanted)
            for row, key in zip(rows[at].tolist(), (ranked[at, column] + offset).tolist(), strict=True):
                keys[row].append(key)
        offset += len(counts)
    return _Keys(stored, asked, 2)


def _signatures(sets: Sequence[Pieces], kind: NDArray[np.int64], parts: int) -> NDArray[np.uint64]:
    """(rows, parts): a hash of the pieces of a row that fall into each part, of its kind and of the part's number."""
    pieces = np.concatenate(sets)
    owner = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    content = np.zeros((len(sets), parts), np.uint64)
    np.add.at(content, (owner, (_mixed(pieces) % np.uint64(parts)).astype(np.int64)), _mixed(pieces + np.uint64(1)))
    return _mixed(content + _mixed(np.arange(parts, dtype=np.uint64)) + _mixed(~kind.astype(np.uint64))[:, None])


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
