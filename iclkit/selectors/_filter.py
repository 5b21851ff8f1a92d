"""Another selector on part of the pool: by metadata, or by task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.errors import DataError, UsageError
from iclkit.pool import CandidateBatch, Candidates
from iclkit.records import Json, Query
from iclkit.selectors._base import Choice
from iclkit.selectors._composite import CompositeSelector


@dataclass
class FilterSelector(CompositeSelector):
    """another selector on the part of the pool with given metadata or task"""

    name: ClassVar[str] = "filter"
    source: ClassVar[str] = "plain selection"
    keeps_fill: ClassVar[bool] = True

    of: str = "knn"  # the selector
    where: str = "{}"  # metadata the examples must have, e.g. where={"language":"de"}
    task: str = ""  # the task they must belong to; any if empty

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts_) != 1:
            raise UsageError(f"filter: of is {self.of!r}; give one selector, e.g. of=knn or of=[mmr,trade_off=0.3]")
        try:
            self.conditions_: Mapping[str, Json] = json.loads(self.where)
        except json.JSONDecodeError as error:
            raise UsageError(f'filter: where is {self.where!r}; give JSON, e.g. where={{"language":"de"}}') from error
        if not isinstance(self.conditions_, dict):
            raise UsageError(f'filter: where is {self.where!r}; give a JSON object, e.g. where={{"language":"de"}}')
        self.where = json.dumps(self.conditions_, sort_keys=True, ensure_ascii=False)

    def part_specs(self) -> Sequence[str]:
        """The selector."""
        return [self.of]

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
