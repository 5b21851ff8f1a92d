"""Sets of pieces that overlap: keys under which near sets meet, so that not every two sets have to be compared.

Near is a Jaccard overlap of at least ``near``. Whoever looks up the keys of one set among those of others finds every
near one, and some that are not: the overlap itself is left to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PARTS_FROM = 0.6
"""Overlap from which on near rows may be found by parts of their pieces; below it most parts would be empty."""
ROUNDING = 1e-9  # keeps 0.7 * 10 = 7.000000000000001 from being rounded up to 8
_CLASS_WIDTH = 1.25  # sizes in one class differ by no more than this factor
_PIECES_PER_PART = 0.6  # times near / (1 - near): few parts are single pieces, which many rows have in common
Pieces = NDArray[np.uint64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Keys:
    """(rows, keys), each pair once: what rows are stored under and what they ask for. Near rows of a kind have
    ``shared`` keys in common."""

    stored: tuple[IntArray, IntArray]
    asked: tuple[IntArray, IntArray]
    shared: int

    def meetings(self) -> int:
        """How often rows would come together under a key."""
        last = max((int(keys.max()) for _, keys in (self.stored, self.asked) if len(keys)), default=0)
        stored, asked = (np.bincount(keys, minlength=last + 1) for _, keys in (self.stored, self.asked))
        return int(stored @ asked)


def by_row(pairs: tuple[IntArray, IntArray], count: int) -> list[list[int]]:
    """The keys of each of ``count`` rows."""
    rows, keys = pairs
    order = np.argsort(rows, kind="stable")
    return [part.tolist() for part in np.split(keys[order], np.cumsum(np.bincount(rows, minlength=count))[:-1])]


def meeting_keys(
    pieces: IntArray,
    sizes: IntArray,
    kind: IntArray,
    near: float,
    hashes: Pieces | None = None,
    *,
    stores: BoolArray | None = None,
    asks: BoolArray | None = None,
) -> Keys:
    """Keys by which near rows of a kind meet: of the two ways here, those under which fewer rows do.

    pieces: numbers of the distinct pieces of one row after the other; sizes: how many each row has, at least one;
    hashes: of the pieces, where their numbers are not to be hashed. ``stores``, ``asks``: the rows that are looked up,
    and those that look; all where None.
    """
    everyone = np.ones(len(sizes), np.bool_)
    stores, asks = everyone if stores is None else stores, everyone if asks is None else asks
    owner = np.repeat(np.arange(len(sizes)), sizes)
    keys = _rare_piece_keys(pieces, owner, sizes, kind, near, stores, asks)
    if near >= PARTS_FROM:
        hashes = pieces.astype(np.uint64) if hashes is None else hashes
        keys = min(keys, _part_keys(hashes, owner, sizes, kind, near, stores, asks), key=Keys.meetings)
    return keys


def _rare_piece_keys(
    pieces: IntArray, owner: IntArray, sizes: IntArray, kind: IntArray, near: float, stores: BoolArray, asks: BoolArray
) -> Keys:
    """Prefix filtering (Bayardo, Ma & Srikant, WWW 2007; Xiao et al., WWW 2008).

    With pieces ordered from rare to common, two sets that overlap by ``near`` share one of the first
    |x| - ceil(near |x|) + 1 pieces of each. A piece of a fixed vocabulary is in a fixed share of all rows, so the rows
    that hold one grow with the pool.
    """
    counts = np.bincount(pieces)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ranked = np.sort(owner * len(counts) + rank[pieces]) % len(counts)
    place = np.arange(len(pieces)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = place < np.repeat(sizes - np.ceil(near * sizes - ROUNDING).astype(np.int64) + 1, sizes)
    rows = owner[first]
    keys = ranked[first] * (int(kind.max()) + 1) + kind[rows]
    keys = np.unique(keys, return_inverse=True)[1]
    stored, asked = ((rows[side[rows]], keys[side[rows]]) for side in (stores, asks))
    return Keys(stored, asked, 1)


def _part_keys(
    hashes: Pieces, owner: IntArray, sizes: IntArray, kind: IntArray, near: float, stores: BoolArray, asks: BoolArray
) -> Keys:
    """Prefix filtering of parts: keys so rare that the rows with one in common do not grow with the pool.

    Pieces are dealt into m parts by their hash (Arasu, Ganti & Kaushik, VLDB 2006, PartEnum). Sets that overlap by
    ``near`` differ in at most d = (1 - near) / (1 + near) * (|x| + |y|) pieces, so in at most d parts; of the others
    each holds the same pieces in both. With a set's parts ordered from rare to common, two of these equal parts are
    among the first d + 2 of both (Wang, Li & Feng, SIGMOD 2012). m depends on the sizes, so rows are stored by size
    class, and ask every class that may hold a near row.
    """
    none = np.empty(0, np.int64)
    stored, asked, offset = [(none, none)], [(none, none)], 0
    size_class = np.floor(np.log(sizes) / math.log(_CLASS_WIDTH) + ROUNDING).astype(np.int64)
    for number in np.unique(size_class[stores]):
        own = stores & (size_class == number)
        low, high = int(sizes[own].min()), int(sizes[own].max())
        asking = asks & (sizes >= near * low - ROUNDING) & (near * sizes <= high + ROUNDING)
        inside = own | asking
        rows, inner = np.flatnonzero(inside), inside[owner]
        parts = max(int(high * (1 - near) / near / _PIECES_PER_PART) + 2, 2)
        local = np.cumsum(inside)[owner[inner]] - 1
        signatures = _signatures(hashes[inner], local, kind[rows], parts)
        _, inverse, counts = np.unique(signatures, return_inverse=True, return_counts=True)
        order = np.argsort(counts, kind="stable")
        rank = np.empty(len(counts), np.int64)
        rank[order] = np.arange(len(counts))
        ranked, common = rank[inverse].reshape(signatures.shape), counts[order] > 1
        for side in (own[rows], asking[rows]):  # a key that no row of the other side has leads nowhere
            common &= np.bincount(ranked[side].ravel(), minlength=len(counts)) > 0
        ranked = np.sort(ranked, axis=1)
        # parts that differ at most: from any row of the class, and from any row that asks it
        own_most = np.floor((1 - near) / near * sizes[rows] + ROUNDING)
        most = np.floor((1 - near) / (1 + near) * (sizes[rows] + np.minimum(high, sizes[rows] / near)) + ROUNDING)
        for keys, chosen, reach in ((stored, own[rows], own_most), (asked, asking[rows], most)):
            at, column = np.nonzero(common[ranked] & (np.arange(parts) <= reach[:, None] + 1) & chosen[:, None])
            keys.append((rows[at], ranked[at, column] + offset))
        offset += len(counts)
    (stored_rows, stored_keys), (asked_rows, asked_keys) = (map(np.concatenate, zip(*side, strict=True))
                                                            for side in (stored, asked))  # fmt: skip
    return Keys((stored_rows, stored_keys), (asked_rows, asked_keys), 2)


def _signatures(hashes: Pieces, owner: IntArray, kind: IntArray, parts: int) -> Pieces:
    """(rows, parts): a hash of the pieces of a row that fall into each part, of its kind and of the part's number."""
    content = np.zeros((len(kind), parts), np.uint64)
    np.add.at(content, (owner, (_mixed(hashes) % np.uint64(parts)).astype(np.int64)), _mixed(hashes + np.uint64(1)))
    return _mixed(content + _mixed(np.arange(parts, dtype=np.uint64)) + _mixed(~kind.astype(np.uint64))[:, None])


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
