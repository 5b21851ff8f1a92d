"""Another selector on part of the pool: by metadata, or by task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.errors import DataError, UsageError
from iclkit.pool import CandidateBatch, Candidates
from iclkit.records import Json, Query
from iclkit.selectors._base import Choice
from iclkit.selectors._composite import CompositeSelector
from iclkit.settings import setting


@dataclass
class FilterSelector(CompositeSelector):
    """Lets another selector see only the examples with given metadata, or of one task.

    Unlike a filter on a query, this one is there when the selector learns from the pool (BM25's word counts, k-means).
    Use it where one pool holds several languages, sources or tasks.
    Cost: that of the inner selector on the part.
    """

    name: ClassVar[str] = "filter"
    summary: ClassVar[str] = "another selector on the part of the pool with given metadata or task"
    source: ClassVar[str] = "plain selection"
    example: ClassVar[str] = 'filter,of=bm25,where={"language":"de"}'
    keeps_fill: ClassVar[bool] = True

    of: str = setting("knn", "the selector")
    where: str = setting("{}", 'metadata the examples must have, e.g. where={"language":"de"}')
    task: str = setting("", "the task they must belong to; any if empty")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            conditions: Json = json.loads(self.where)
        except json.JSONDecodeError:
            conditions = None
        if not isinstance(conditions, dict):
            raise UsageError(
                f'selector {self.name!r}: where is {self.where}; give a JSON object, e.g. where={{"language":"de"}}'
            )
        self.conditions_: Mapping[str, Json] = conditions
        self.where = json.dumps(self.conditions_, sort_keys=True, ensure_ascii=False)

    def prepare(self) -> None:
        """Fit the selector on the part; DataError when nothing is left of the pool."""
        rows = self.pool_.matching(self.conditions_)
        if self.task:
            rows = rows[np.array([e.task == self.task for e in self.pool_.examples_at(rows)], dtype=np.bool_)]
        self.part_ = self.pool_.only(rows)
        if not len(self.part_):
            raise DataError(
                f"filter: none of the pool's {len(self.pool_)} examples has {self.where} {self.task}".rstrip()
            )
        self._fit_parts(self.part_, self.kit_)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """As the inner selector chooses; ids that a query excludes are excluded there too."""
        return [self._choice(s) for s in self.parts_[0].select_many(batch.queries, k)]

    def capacity(self, k: int) -> int:
        """As many as the inner selector."""
        return self.parts_[0].capacity(k)

    def shared(self, k: int) -> int:
        """As many as of the inner selector's."""
        return self.parts_[0].shared(k)

    def explain(self, query: Query, k: int) -> tuple[str, ...]:
        """As the inner selector explains itself."""
        return self.parts_[0].explain(query, k)

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        if got == k:
            return ()
        allowed = int(candidates.allowed(self.part_.rows).sum())
        return (f"{got} of {k} demonstrations: {allowed} of the {len(self.part_)} examples that fit were allowed",)
