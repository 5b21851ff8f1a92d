"""A set chosen as a whole: CEIL's determinantal point process over a retriever trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.records import Query
from iclkit.selectors._base import FloatArray, PaperSetup
from iclkit.selectors._dpp import dpp_order, dpp_steps
from iclkit.selectors._maths import SCORE_DECIMALS, argmax_row
from iclkit.selectors._nearest_reorder import NearestReorderSelector
from iclkit.settings import setting


@dataclass
class CEILSelector(NearestReorderSelector):
    """Chooses a set as a whole, in a space that was trained for it.

    The search is that of `dpp`. What CEIL adds is the retriever: it is trained so that sets after which the LM gives
    the right answer have large determinants.
    Use it with a retriever of `iclkit train ceil`, given as --embedder; with another embedder it is `dpp`.
    Cost: as `dpp`. The training asks an LM about many sets; `iclkit train ceil --dry-run` says how much.
    """

    # The maths of ``dpp``; what CEIL adds is the space. With another embedder it is ``dpp``.

    name: ClassVar[str] = "ceil"
    summary: ClassVar[str] = "relevance against volume, by greedy MAP of a DPP, with a retriever of `iclkit train ceil`"
    source: ClassVar[str] = "CEIL; Ye et al. 2023, ICML, arXiv 2302.05698"
    example: ClassVar[str] = "ceil --embedder retrievers/ceil"
    paper: ClassVar[PaperSetup | None] = PaperSetup({"candidates": 100}, 50)

    trade_off: float = setting(0.1, "lambda; small: relevance only, large: diversity only; best as in training", gt=0)
    candidates: int = setting(100, "how many of the nearest are looked at; k when k is larger", ge=1)

    @property
    def depth(self) -> int:
        """The setting ``candidates``."""
        return self.candidates

    def reorder(self, sim: FloatArray, near: FloatArray, k: int) -> tuple[Sequence[int], FloatArray]:
        """Greedy set of the candidates, most relevant first; scores are cosines with the query."""
        order = sorted(dpp_order(sim, near, k, self.trade_off))  # candidates come nearest first
        return order, sim[order]

    def explain(self, query: Query, k: int) -> tuple[str, ...]:
        """The steps of the greedy search: what was added, what it added to the log-determinant, what came next."""
        (candidates,) = self.pool_.candidates([query], self.kit_.embedder)
        nearest = candidates.nearest(max(k, self.candidates))
        rows, vectors = nearest.rows, candidates.vectors(nearest.rows)
        near = np.round(vectors @ vectors.T, SCORE_DECIMALS)
        lines = [f"greedy over the {len(rows)} nearest, trade-off {self.trade_off:g}; then in order of relevance"]
        steps = dpp_steps(np.asarray(nearest.scores, np.float64), near, k, self.trade_off)
        for n, (row, gains) in enumerate(steps, 1):
            line = f"step {n}: log-determinant {gains[row]:+.4f}: {self._label(int(rows[row]))}"
            gains[row] = -np.inf
            if np.isfinite(gains.max()):
                second = argmax_row(gains)
                line += f"; runner-up {gains[second]:+.4f}: {self._label(int(rows[second]))}"
            lines.append(line)
        return tuple(lines)
