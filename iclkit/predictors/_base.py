"""What predictors without a prompt share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder
from iclkit.errors import DataError, NeedError
from iclkit.predictors._protocol import Prediction, TaskContext
from iclkit.predictors._tools import Tools
from iclkit.records import CostEstimate, Json, Query, Selection, Spec
from iclkit.selectors import Needs
from iclkit.settings import check_settings


@dataclass
class BasePredictor(ABC):
    """Settings, identity and checks of a predictor; what is left is ``predict``.

    Subclasses are dataclasses whose fields are the settings; ``name``, ``summary``, ``needs`` and ``version`` are class
    attributes. ``version`` is raised when answers change.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs()
    version: ClassVar[int] = 1

    _tools: Tools = field(default_factory=Tools, init=False, repr=False, compare=False)
    _context: TaskContext | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self, f"predictor {self.name!r}")

    def use(self, tools: Tools) -> Self:
        """Take the models to work with."""
        self._tools = tools
        return self

    @property
    def spec(self) -> Spec:
        """Name and settings: enough to build this predictor again."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return Spec(self.name, settings, self.version)

    @property
    def parts(self) -> dict[str, Json]:
        """The models that it needs; its settings stand in ``spec``."""
        return self._tools.identities(self.needs, self.context)

    @property
    def facts(self) -> Mapping[str, Json]:
        """Its name on a board, and how the task's rows are written out for people."""
        defaults = {f.name: f.default for f in fields(self) if f.init}
        given = {name: value for name, value in self.spec.settings.items() if value != defaults[name]}
        return {"selector": str(Spec(self.name, given)), "template": self.context.template.identity()}

    @property
    def usage(self) -> Mapping[str, float]:
        """Nothing that is counted."""
        return {}

    @property
    def embedder(self) -> Embedder:
        """The embedder that ``needs`` has made sure is there, with the task's instruction where it reads one."""
        embedder = self._tools.embedder
        assert embedder is not None
        return embedder.for_task(self.context.name)

    @property
    def context(self) -> TaskContext:
        """The task. DataError before ``fit``."""
        if self._context is None:
            raise DataError(f"predictor {self.name!r} has not seen a task yet; call fit(context) first")
        return self._context

    def fit(self, context: TaskContext) -> Self:
        """Get to know a task. NeedError for a model or labels that are missing."""
        self._tools.check(self.needs, f"predictor {self.name!r}")
        if self.needs.labels and not context.labels:
            raise NeedError(f"predictor {self.name!r} answers with a label, and task {context.name!r} has no labels")
        if not len(context.view):
            raise DataError(f"the pool is empty and predictor {self.name!r} has nothing to learn from; add examples")
        self._context = context
        self.prepare()
        return self

    def prepare(self) -> None:  # noqa: B027
        """Hook: forget what was learned of another task. What takes long waits for the first ``predict``."""

    def cost(self, queries: Sequence[Query]) -> CostEstimate:  # noqa: ARG002
        """Nothing: no LM is asked."""
        return CostEstimate()

    @abstractmethod
    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """One prediction for each query, which depends on that query alone."""

    @property
    def finishes(self) -> bool:
        """Nothing is seen together."""
        return False

    def finish(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """As they are."""
        return [*predictions]


def answer_by_shares(
    query_id: str,
    labels: Sequence[str],
    shares: NDArray[np.float64],
    output: str,
    selection: Selection | None = None,
) -> Prediction:
    """The prediction of a label whose log-probabilities (labels,) sum to 1."""
    by_label = {label: float(share) for label, share in zip(labels, shares, strict=True)}
    return Prediction(query_id, output, output, by_label, by_label, selection=selection)
