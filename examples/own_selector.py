"""A selector of one's own: the examples whose length is nearest to the query's.

On the command line, from this folder: iclkit eval support --selector own_selector:NearLength -k 4
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit import BaseSelector, Kit, Needs, Pool, Query, load_task, make_selector
from iclkit.selectors import Choice, top_rows


@dataclass
class NearLength(BaseSelector):
    """Ranks examples by how little their length differs from the query's."""

    name: ClassVar[str] = "near-length"
    summary: ClassVar[str] = "the inputs whose length is nearest to the query's"
    needs: ClassVar[Needs] = Needs(whole_pool=True)
    source: ClassVar[str] = "this example"

    def prepare(self):
        self.sizes_ = np.array([len(e.text) for e in self.pool_.examples], dtype=np.float64)

    def choose(self, candidates, k):
        rows = candidates.rows()
        scores = -np.abs(self.sizes_[self.pool_.positions(rows)] - len(candidates.query.text))
        best = top_rows(scores, k)  # best first, ties to the lower row
        return Choice(rows[best], scores[best])


if __name__ == "__main__":
    pool = Pool.of(load_task("support").train)
    query = Query("my parcel is late")
    for selector in (NearLength(), make_selector("bm25")):
        picked = selector.fit(pool.view(), Kit()).select(query, k=3)
        print(selector.name, [pool.get(pick.example_id).text for pick in picked])
