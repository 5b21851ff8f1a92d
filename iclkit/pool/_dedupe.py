"""Duplicates: exact ones by folded text, near ones by the Jaccard overlap of four-character pieces."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain

import numpy as np

from iclkit.errors import UsageError
from iclkit.overlap import ROUNDING, Pieces, by_row, meeting_keys
from iclkit.records import Example, clean_text, digest, fold_text

PIECE = 4


def fold_input(example: Example) -> str:
    """The input as duplicate search sees it; a text of punctuation alone stays as it is."""
    return fold_text(example.text) or clean_text(example.text)


def duplicate_rows(examples: Iterable[Example], near: float | None = None) -> list[list[int]]:
    """Groups of rows that say the same, in order; the first row of each is the oldest and the one to keep.

    Only examples with equal task and equal folded output are compared: the same input with another output is a
    contradiction, not a duplicate. Going from old to new, a row joins the oldest kept row it equals or, with
    ``near``, the kept row it overlaps most with (ties: the oldest), if by at least ``near``. UsageError unless
    0 < near <= 1.
    """
    if near is not None and not 0 < near <= 1:
        raise UsageError(f"near is {near}; give an overlap above 0 and up to 1, e.g. 0.8")
    looks_near = near is not None and near < 1
    first: dict[int, int] = {}  # by a hash of what is compared, so that no text is held
    groups: dict[int, list[int]] = {}  # of rows that others repeat
    firsts = list[tuple[int, str, tuple[str, str]]]()
    for row, example in enumerate(examples):
        text = fold_input(example)
        kind = sys.intern(example.task), sys.intern(fold_text(example.output) or clean_text(example.output))
        kept = first.setdefault(int(digest([*kind, text]), 16), row)
        if kept != row:
            groups.setdefault(kept, [kept]).append(row)
        elif looks_near:
            firsts.append((row, text, kind))
    if near is not None and looks_near:
        pairs, _ = near_pairs([text for _, text, _ in firsts], [kind for *_, kind in firsts], near)
        for new, old in pairs:
            kept, gone = firsts[old][0], firsts[new][0]
            groups[kept] = sorted(groups.get(kept, [kept]) + groups.pop(gone, [gone]))
    return [groups[kept] for kept in sorted(groups)]


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
    hashes = np.concatenate(sets)
    unique, numbers = np.unique(hashes, return_inverse=True)
    pieces = np.split(numbers, np.cumsum(sizes)[:-1])
    keys = meeting_keys(numbers, sizes, kind, near, hashes)
    sides = [by_row(side, len(sets)) for side in (keys.stored, keys.asked)]
    holders: dict[int, list[int]] = {}
    pairs, compared = list[tuple[int, int]](), 0
    mine = np.zeros(len(unique), dtype=np.bool_)  # marks the pieces of the current row
    for row, (stored, asked) in enumerate(zip(*sides, strict=True)):
        meetings = Counter(chain.from_iterable(holders.get(key, ()) for key in asked))
        others = np.array(sorted(o for o, count in meetings.items() if count >= keys.shared), dtype=np.int64)
        if len(others):
            small, large = np.minimum(sizes[others], sizes[row]), np.maximum(sizes[others], sizes[row])
            others = others[(small >= near * large - ROUNDING) & [kinds[o] == kinds[row] for o in others]]
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
