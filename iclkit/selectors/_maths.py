"""What several selectors share: the best rows under a mask, and random numbers that belong to an example."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from iclkit.selectors._base import BoolArray, FloatArray, IntArray

SCORE_DECIMALS = 6
"""Cosines and other scores of order one that agree to this many decimals tie: the last bits depend on the machine."""

_BLOCK = 256

SortKeys = NDArray[np.uint64]


def top_rows(
    scores: FloatArray,
    k: int,
    allowed: BoolArray | None = None,
    above: float = -np.inf,
    *,
    digits: int = SCORE_DECIMALS,
    significant: bool = False,
) -> IntArray:
    """The k rows of highest score, best first; ties go to the lower row.

    scores (n,); allowed (n,) masks rows; rows must score more than ``above``, so -inf marks rows that cannot be had.
    Scores tie when they agree to ``digits`` decimals; with ``significant``, for scores that may be far below 1, those
    that are have to agree in as many significant digits (see ``rounded``). At most k rows, fewer when fewer qualify.
    >>> top_rows(np.array([.1, .5, .5, .3]), 3).tolist()
    [1, 2, 3]
    """
    scores = scores if allowed is None else np.where(allowed, scores, -np.inf)
    if k <= 0:
        return np.empty(0, np.int64)
    slack = 2 * 10.0**-digits
    low = _kth_or_less(scores, k) - slack
    near = np.flatnonzero(scores >= low) if low > above else np.flatnonzero(scores > above)
    values = scores[near].astype(np.float64)
    if k < len(near):
        kept = values >= np.partition(values, -k)[-k] - slack
        near, values = near[kept], values[kept]
    values = rounded(values, digits) if significant else np.round(values, digits)
    return near[np.lexsort((near, -values))[:k]]


def _kth_or_less(scores: FloatArray, k: int) -> float:
    """A number that at least k scores reach, cheap on long arrays: the k-th largest of the maxima of groups.

    A group is every so-manieth score, so that maxima are taken of whole stretches at once.
    """
    blocks = len(scores) // _BLOCK
    if k > blocks // 4:
        return -np.inf
    maxima = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
    return float(np.partition(maxima, -k)[-k])


def argmax_row(scores: FloatArray, digits: int = SCORE_DECIMALS) -> int:
    """The row of highest score, the lowest of those within 10 ** -digits of it; a greedy step.

    scores (n,), at least one finite; -inf marks rows that are gone.
    """
    return int(np.argmax(scores >= scores.max() - 10.0**-digits))


def rounded(scores: FloatArray, digits: int = SCORE_DECIMALS) -> FloatArray:
    """Scores without the digits that depend on the machine: to ``digits`` decimals, and small ones to ``digits``
    significant digits, so that probabilities, entropies and sums of ranks of any size stay apart.

    >>> rounded(np.array([0.12345678, 0.00012345678, -np.inf])).tolist()
    [0.123457, 0.000123457, -inf]
    """
    scores = np.asarray(scores, dtype=np.float64)
    result = scores.copy()
    plain = np.isfinite(scores) & (scores != 0)
    leading = np.floor(np.log10(np.abs(scores[plain]))).astype(np.int64)
    places = digits - np.minimum(leading + 1, 0)
    for number in np.unique(places):
        here = np.flatnonzero(plain)[places == number]
        result[here] = np.round(scores[here], min(int(number), 300))
    return result


def stable_key(*parts: str | int) -> int:
    """64 bits determined by the parts, the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_keys(texts: Iterable[str]) -> SortKeys:
    """(n,) uint64: a key per text, e.g. per example id."""
    return np.array([stable_key(t) for t in texts], dtype=np.uint64)


def shuffled_keys(keys: SortKeys, *salt: str | int) -> SortKeys:
    """(n,) uint64 that look random and are determined by key and salt: sorting by them is a keyed shuffle.

    Each number belongs to its own key, so leaving rows out or moving them changes nothing for the others
    (the finaliser of SplitMix64; Steele, Lea & Flood, OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        z = keys ^ np.uint64(stable_key(*salt))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def smallest_rows(keys: SortKeys, k: int, rows: IntArray) -> IntArray:
    """The k of ``rows`` (ascending) with the smallest key, smallest first: k of a keyed shuffle, a prefix of k + 1."""
    values = keys[rows]
    if k < len(rows):
        near = np.argpartition(values, k)[:k]
        rows, values = rows[near], values[near]
    return rows[np.argsort(values, kind="stable")[:k]]
