"""Duplicates: exact ones by folded text, near ones by the Jaccard overlap of four-character pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.records import Example, clean_text, fold_text

PIECE = 4


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
        joins = _near_pairs([texts[r] for r in firsts], [kinds[r] for r in firsts], near)
        for new, old in joins:
            groups[firsts[old]] = sorted(groups[firsts[old]] + groups.pop(firsts[new]))
    return [rows for rows in groups.values() if len(rows) > 1]


def ngram_hashes(text: str) -> NDArray[np.uint64]:
    """Hashes of the distinct four-character pieces of a text with a space at either end; sorted."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    width = min(PIECE, len(codes))
    mixed = np.zeros(len(codes) - width + 1, np.uint64)
    for offset in range(width):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(mixed)] + np.uint64(1)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _near_pairs(texts: Sequence[str], kinds: Sequence[object], near: float) -> list[tuple[int, int]]:
    """(new row, kept row) pairs, exact, by prefix filtering (Bayardo, Ma & Srikant, WWW 2007; Xiao et al., WWW 2008).

    With pieces ordered from rare to common, two sets that overlap by ``near`` share one of the first
    |x| - ceil(near |x|) + 1 pieces of each; so only kept rows that share such a piece are looked at.
    """
    sets = [ngram_hashes(t) for t in texts]
    if not sets:
        return []
    _, inverse, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    sizes = np.array([len(s) for s in sets])
    ranked = [np.sort(r) for r in np.split(rank[inverse], np.cumsum(sizes)[:-1])]
    holders: dict[tuple[object, int], list[int]] = {}
    mine = np.zeros(len(counts), dtype=np.bool_)  # marks the pieces of the current row
    joins = []
    for row, own in enumerate(ranked):
        # the small number keeps 0.7 * 10 = 7.000000000000001 from being rounded up to 8
        head = [(kinds[row], r) for r in own[: len(own) - math.ceil(near * len(own) - 1e-9) + 1].tolist()]
        others = np.array(sorted({o for key in head for o in holders.get(key, ())}), dtype=np.int64)
        small, large = np.minimum(sizes[others], len(own)), np.maximum(sizes[others], len(own))
        others = others[small >= near * large - 1e-9]
        if len(others):
            mine[own] = True
            starts = np.concatenate([[0], np.cumsum(sizes[others])[:-1]])
            common = np.add.reduceat(mine[np.concatenate([ranked[o] for o in others])], starts, dtype=np.int64)
            mine[own] = False
            overlap = common / (sizes[others] + len(own) - common)
            best = int(np.argmax(overlap))  # the first, that is the oldest, of equals
            if overlap[best] >= near - 1e-12:
                joins.append((row, int(others[best])))
                continue
        for key in head:
            holders.setdefault(key, []).append(row)
    return joins
