"""Test rows that stand in the pool: exact, normalized, and near-duplicates.

Two texts are near-duplicates when the Jaccard similarity of their sets of character 4-grams, taken on the normalized
text and its two ends, reaches ``near``. Characters and not words, so that a typo costs little, and languages without
spaces work. The measure is strict on short texts: exchanging a word of 6 letters loses about 9 4-grams on each side, so
that at 0.9 only texts of more than 170 characters get over it; "what is the capital of texas" and "… of ohio" have
0.61. A short text is caught when it is equal after normalization. Grams that more than half of the texts hold (an
instruction repeated in every input) tell nothing about one of them and do not count, where there are texts enough (20)
to judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.overlap import meeting_keys
from iclkit.records import Example, Query, clean_text, fold_text

GRAM = 4
_PAIRS_AT_ONCE = 200_000
_ROWS_AT_ONCE = 50_000  # pool rows: about 0.6 GB of arrays
_MEETINGS_AT_ONCE = 20_000_000
_ENOUGH_TEXTS = 20


@dataclass(frozen=True, slots=True)
class Leak:
    """A test row and a pool example with (nearly) the same input. ``kind``: exact, normalized or near."""

    test_id: str
    example_id: str
    kind: str
    similarity: float


def find_leaks(
    pool_examples: Sequence[Example], test_examples: Sequence[Example | Query], near: float | None = 0.9
) -> list[Leak]:
    """Every pair of a test row and a pool example whose inputs are the same, or nearly; in test order, then pool order.

    exact: equal but for Unicode form and outer white space. normalized: equal under ``records.fold_text``. near:
    similarity of at least ``near`` (0 < near <= 1; None leaves the search out). Inputs alone count: outputs may differ.
    The search is complete, not a sample: keys that all near rows share (``iclkit.overlap``) name the candidates, and
    each is checked.
    """
    if near is not None and not 0 < near <= 1:
        raise UsageError(f"near is {near}; it must lie above 0 and at most at 1, or be None")
    pool_clean, test_clean = [clean_text(e.text) for e in pool_examples], [clean_text(q.text) for q in test_examples]
    pool_fold, test_fold = [fold_text(t) for t in pool_clean], [fold_text(t) for t in test_clean]
    leaks: list[tuple[int, int, str, float]] = []
    same_fold, same_clean = _rows_by_text(pool_fold), _rows_by_text(pool_clean)
    for i, (clean, fold) in enumerate(zip(test_clean, test_fold, strict=True)):
        # a text of nothing but punctuation folds to nothing: equal only when it is exactly equal
        for j in same_fold.get(fold, ()) if fold else same_clean.get(clean, ()):
            leaks.append((i, j, "exact" if pool_clean[j] == clean else "normalized", 1.0))
    if near is not None:
        for start in range(0, len(pool_fold), _ROWS_AT_ONCE):
            rows, columns, similarity = near_pairs(test_fold, pool_fold[start : start + _ROWS_AT_ONCE], near)
            pairs = zip(rows.tolist(), (columns + start).tolist(), similarity.tolist(), strict=True)
            leaks += [(i, j, "near", s) for i, j, s in pairs if test_fold[i] != pool_fold[j]]
    return [Leak(test_examples[i].id, pool_examples[j].id, kind, s) for i, j, kind, s in sorted(leaks)]


def _rows_by_text(texts: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    return rows


def near_pairs(
    left: Sequence[str], right: Sequence[str], near: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All (left row, right row, Jaccard similarity of 4-gram sets) with similarity >= near. Texts are normalized.

    Empty texts match nothing, nor does a text of nothing but grams that more than half of at least 20 texts hold.
    """
    import scipy.sparse

    grams, owners = gram_ids([*left, *right])
    if len(left) + len(right) >= _ENOUGH_TEXTS:
        telling = np.bincount(grams)[grams] <= (len(left) + len(right)) / 2
        grams, owners = grams[telling], owners[telling]
    if not len(grams):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    n, split = len(left) + len(right), len(left)
    order = np.lexsort((grams, owners))
    grams, owners = grams[order], owners[order]
    sizes = np.bincount(owners, minlength=n)
    everything = scipy.sparse.csr_matrix(
        (np.ones(len(grams), np.int32), grams, np.concatenate([[0], np.cumsum(sizes)])), shape=(n, int(grams.max()) + 1)
    )
    left_all, right_all = everything[:split], everything[split:]
    left_sizes, right_sizes = sizes[: len(left)], sizes[len(left) :]
    found: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for rows, columns in _meeting(grams, sizes, split, near):
        small = np.minimum(left_sizes[rows], right_sizes[columns])
        large = np.maximum(left_sizes[rows], right_sizes[columns])
        fits = small >= near * large - 1e-9
        rows, columns = rows[fits], columns[fits]
        for at in range(0, len(rows), _PAIRS_AT_ONCE):
            r, c = rows[at : at + _PAIRS_AT_ONCE], columns[at : at + _PAIRS_AT_ONCE]
            shared = np.asarray(left_all[r].multiply(right_all[c]).sum(axis=1)).ravel()
            similarity = shared / (left_sizes[r] + right_sizes[c] - shared)
            hit = similarity >= near - 1e-9
            found.append((r[hit], c[hit], similarity[hit]))
    return (
        np.concatenate([f[0] for f in found]) if found else np.empty(0, np.int64),
        np.concatenate([f[1] for f in found]) if found else np.empty(0, np.int64),
        np.concatenate([f[2] for f in found]) if found else np.empty(0),
    )


def _meeting(
    grams: NDArray[np.int64], sizes: NDArray[np.int64], split: int, near: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(left rows, right rows) among which all near pairs are, some at a time. grams: of one row after the other; the
    first ``split`` rows are left ones."""
    import scipy.sparse

    held = np.flatnonzero(sizes)
    if not len(held):
        return
    is_left, alike = held < split, np.zeros(len(held), np.int64)
    keys = meeting_keys(grams, sizes[held], alike, near, stores=~is_left, asks=is_left)
    last = max((int(k.max()) for _, k in (keys.stored, keys.asked) if len(k)), default=0)
    asked, stored = (
        scipy.sparse.csr_matrix((np.ones(len(key), np.int32), (row, key)), shape=(len(held), last + 1))
        for row, key in (keys.asked, keys.stored)
    )
    stored = stored.T.tocsr()
    meetings = np.cumsum(asked @ np.diff(stored.indptr))  # bounds the entries of the product
    first = 0
    while first < len(held):
        done = int(meetings[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(meetings, done + _MEETINGS_AT_ONCE, side="right")))
        found = (asked[first:end] @ stored).tocoo()
        enough = found.data >= keys.shared
        yield held[found.row[enough] + first], held[found.col[enough]] - split
        first = end


def gram_ids(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(gram number, text number) of every distinct character 4-gram of every text; equal grams, equal numbers."""
    edge = "\0" * (GRAM - 1)  # so that the ends of a text weigh as much as its middle
    padded = [f"{edge}{t}{edge}" if t else "" for t in texts]
    lengths = np.array([len(t) for t in padded], np.int64)
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    if len(codes) < GRAM:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    # a 4-gram as a pair of pairs; each stage is renumbered densely, so nothing is hashed and nothing can collide
    pairs = _dense(codes[:-1] * 0x110000 + codes[1:])
    quads = pairs[:-2] * (int(pairs.max()) + 1) + pairs[2:]
    inside = owner[: len(quads)] == owner[GRAM - 1 :]
    grams, owners = _dense(quads[inside]), owner[: len(quads)][inside]
    size = int(grams.max()) + 1
    keys = np.sort(owners * size + grams)  # sorting beats np.unique, which hashes
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return keys % size, keys // size


def _dense(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
