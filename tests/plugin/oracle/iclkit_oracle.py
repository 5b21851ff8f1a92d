"""A selector and an order policy, written the way a package outside iclkit would write them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.selectors import BaseSelector, Choice, Needs, top_rows


@dataclass
class LongestSelector(BaseSelector):
    """the longest inputs, or the shortest"""

    name: ClassVar[str] = "longest"
    needs: ClassVar[Needs] = Needs(whole_pool=True)
    source: ClassVar[str] = "the tests of iclkit"

    sign: float = 1.0

    def prepare(self):
        self.lengths_ = self.sign * np.array([len(e.text) for e in self.pool_.examples], dtype=np.float64)

    def choose(self, candidates, k):
        rows = candidates.rows()
        lengths = self.lengths_[self.pool_.positions(rows)]
        best = top_rows(lengths, k)
        return Choice(rows[best], lengths[best])


def alphabetic(examples, *, seed, query_id):
    return sorted(examples, key=lambda e: e.text)
