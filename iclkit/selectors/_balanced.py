"""Random demonstrations, equally many of every label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates
from iclkit.selectors._base import BaseSelector, Choice, IntArray, Needs
from iclkit.selectors._maths import SortKeys, hash_keys, shuffled_keys

_ODD = np.uint64(0x9E3779B97F4A7C15)


def balanced_rows(labels: IntArray, order: SortKeys, label_keys: SortKeys, k: int, rows: IntArray) -> IntArray:
    """At most k of ``rows``, dealt round by round: one of each label that has any left, labels shuffled every round.

    rows: ascending numbers of rows. labels (n,): a label number per row. order (n,): rows of a label come in ascending
    order of it. label_keys (labels,): decide the order of the labels within a round, so which of them a last,
    incomplete round shows. Counts differ by at most 1 while no label runs out; k is a prefix of k + 1.
    """
    rows = rows[np.lexsort((order[rows], labels[rows]))]
    drawn = labels[rows]
    starts = np.flatnonzero(np.r_[True, drawn[1:] != drawn[:-1]]) if len(drawn) else np.empty(0, np.int64)
    turn = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    early = turn < k
    rows, drawn, turn = rows[early], drawn[early], turn[early]
    with np.errstate(over="ignore"):
        deal = shuffled_keys(label_keys[drawn] + turn.astype(np.uint64) * _ODD, "deal")
    return rows[np.lexsort((deal, turn))[:k]]


@dataclass
class BalancedSelector(BaseSelector):
    """Draws as `random` does, with equally many examples of every label, give or take one.

    Labels are dealt round by round in a shuffled order, so that an incomplete round favors none.
    Use it for classification where labels are skewed: a prompt full of one label makes an LM repeat it.
    Cost: one pass over the pool's labels per query; no model.
    """

    name: ClassVar[str] = "balanced"
    summary: ClassVar[str] = "random, with equal counts of every label (give or take one)"
    needs: ClassVar[Needs] = Needs(labels=True, whole_pool=True, seed_scope="query")
    source: ClassVar[str] = "baseline"

    def prepare(self) -> None:
        """Labels of the pool as numbers, and keys for examples and labels."""
        names, self.labels_ = np.unique([e.output for e in self.pool_.examples], return_inverse=True)
        self.label_keys_ = hash_keys(map(str, names))
        self.keys_ = hash_keys(self.pool_.ids)

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """A draw determined by seed, query id, example ids and labels; every score is 0."""
        salt = ("balanced", self.kit_.seed, candidates.query.id)
        order, label_keys = shuffled_keys(self.keys_, *salt), shuffled_keys(self.label_keys_, *salt)
        drawn = balanced_rows(self.labels_, order, label_keys, k, self._inside(candidates.scope))
        return Choice(self.pool_.rows[drawn], np.zeros(len(drawn)))
