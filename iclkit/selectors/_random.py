"""Uniformly random demonstrations: fresh for every query, or one draw for the whole task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates
from iclkit.selectors._base import BaseSelector, Choice, Needs
from iclkit.selectors._maths import SortKeys, hash_keys, shuffled_keys, smallest_rows


@dataclass
class RandomSelector(BaseSelector):
    """Draws k examples for each query, uniformly and without replacement.

    A draw is decided by seed, query and example ids, not by what else is asked; k is a prefix of k + 1.
    Use it as the baseline: what a selector adds is its gain over random, taken over several seeds.
    Cost: one pass over the pool's keys per query; no model.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "uniform without replacement, fresh for every query"
    needs: ClassVar[Needs] = Needs(whole_pool=True, seed_scope="query")
    source: ClassVar[str] = "baseline"

    def prepare(self) -> None:
        """A key per example."""
        self.keys_ = hash_keys(self.pool_.ids)

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """A draw determined by seed, query id and example ids; every score is 0."""
        keys = shuffled_keys(self.keys_, "random", self.kit_.seed, candidates.query.id)
        return self._drawn(keys, candidates, k)

    def _drawn(self, keys: SortKeys, candidates: Candidates, k: int) -> Choice:
        drawn = smallest_rows(keys, k, self._inside(candidates.scope))
        return Choice(self.pool_.rows[drawn], np.zeros(len(drawn)))


@dataclass
class RandomFixedSelector(RandomSelector):
    """Draws once and shows the same k examples to every query.

    Prompts then begin alike, and an engine reads that prefix once, which is what makes hundreds of demonstrations
    affordable. A query that excludes one of them gets the next of the draw.
    Use it for many-shot prompts, and as their baseline.
    Cost: one shuffle of the pool.
    """

    name: ClassVar[str] = "random-fixed"
    summary: ClassVar[str] = "one uniform draw for all queries, so that prompts share a prefix; k=10 is part of k=20"
    needs: ClassVar[Needs] = Needs(whole_pool=True, seed_scope="task")
    source: ClassVar[str] = "baseline of many-shot work; Bertsch et al. 2024, arXiv 2405.00200"
    example: ClassVar[str] = "random-fixed"

    def prepare(self) -> None:
        """One shuffle of the pool."""
        super().prepare()
        self.shuffled_ = shuffled_keys(self.keys_, "random-fixed", self.kit_.seed)

    def shared(self, k: int) -> int:
        """All of them."""
        return k

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """The first k of the shuffle; a row that this query excludes makes room for the next."""
        return self._drawn(self.shuffled_, candidates, k)
