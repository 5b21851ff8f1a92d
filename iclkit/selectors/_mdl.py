"""Of several ordered subsets of the nearest, the one after which the LM is surest of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import CandidateBatch
from iclkit.prompts import NORMALIZATIONS
from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs, SelectorCost
from iclkit.selectors._label_scorer import LabelScorer, entropy
from iclkit.selectors._maths import hash_keys, rounded, shuffled_keys
from iclkit.settings import setting

_PREFER = {"lowest": -1.0, "highest": 1.0}
_UNANSWERED = "the LM cannot answer after any of the subsets: these are the nearest"


def ordered_subsets(ids: Sequence[str], k: int, window: int, *salt: str | int) -> IntArray:
    """(window, min(k, n)) positions: first 0, 1, 2 …, then random ordered subsets, each a keyed shuffle of the ids.

    ids (n,): candidates, best first. A subset depends on nothing but ids, salt and its number.
    """
    keys = hash_keys(ids)
    plain = np.arange(min(k, len(ids)))
    drawn = [np.argsort(shuffled_keys(keys, *salt, n), kind="stable")[:k] for n in range(1, window)]
    return np.stack([plain, *drawn])


@dataclass
class MDLSelector(BaseSelector):
    """Of several ordered subsets of the nearest, takes the one after which the LM is surest of its answer.

    Subsets are drawn at random from the `candidates` nearest; what is compared is the entropy of the label
    distribution. The order found is the order shown.
    Use it for classification with an LM that is cheap to ask; a sure LM may be wrong, so measure.
    Cost: window * labels scores per query.
    """

    name: ClassVar[str] = "mdl"
    summary: ClassVar[str] = (
        "the ordered subset of the nearest that leaves the LM least unsure of the label (minimum description length)"
    )
    needs: ClassVar[Needs] = Needs(
        embedder=True, lm=True, labels=True, log_probs=True, seed_scope="query", lm_calls_per_query="window * labels"
    )
    source: ClassVar[str] = "Wu et al. 2023, arXiv 2212.10375"
    example: ClassVar[str] = "mdl,window=5 --lm smollm2-135m"

    candidates: int = setting(30, "how many of the nearest subsets are drawn from; k when k is larger", ge=1)
    window: int = setting(10, "how many ordered subsets are tried, the plain k nearest among them; 1 = knn", ge=1)
    prefer: str = setting(
        "lowest", "lowest or highest label entropy; highest is the switch of the authors' code", choices=(*_PREFER,)
    )
    normalize: str = setting("mean", "log-probability of a label: mean per token, or sum", choices=NORMALIZATIONS)

    def prepare(self) -> None:
        """Vectors of the pool, and the prompts' ingredients."""
        self._embed()
        self.scorer_ = LabelScorer.of(self.pool_, self.kit_)

    def cost(self, k: int) -> SelectorCost:  # noqa: ARG002
        """Each subset with each label, for each query."""
        return SelectorCost(per_query=self.window * len(self.scorer_.labels))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Encode and search together, then ask about all subsets of all queries in one call of the LM.

        The choice is the best subset in its order; every score is that subset's negative label entropy in nats.
        """
        nearest = batch.nearest(max(k, self.candidates))
        subsets = [near.rows[self._subsets(c.query, near.rows, k)] for c, near in zip(batch, nearest, strict=True)]
        examples = batch.examples([rows for tried in subsets for rows in tried])
        asking = [query for query, tried in zip(batch.queries, subsets, strict=True) for _ in tried]
        prompts = [*zip(asking, examples, strict=True)]
        logprobs = self.scorer_.label_logprobs(prompts, self.normalize)
        entropies = np.array([np.nan if values is None else float(entropy(values)) for values in logprobs])
        entropies = entropies.reshape(len(batch), self.window)
        return [self._best(rows, values) for rows, values in zip(subsets, entropies, strict=True)]

    def _subsets(self, query: Query, rows: IntArray, k: int) -> IntArray:
        return ordered_subsets(self.pool_.ids_at(rows), k, self.window, "mdl", self.kit_.seed, query.id)

    def _best(self, subsets: IntArray, entropies: FloatArray) -> Choice:
        """Ties go to the plain list, which comes first; so does the choice where the LM can answer after none (NaN)."""
        failed = np.isnan(entropies)
        best = int(np.argmax(np.where(failed, -np.inf, _PREFER[self.prefer] * rounded(entropies))))
        left_out = f"{failed.sum()} of {len(subsets)} subsets were left out: the LM cannot answer after them"
        notes = () if not failed.any() else (_UNANSWERED,) if failed.all() else (left_out,)
        score = 0.0 if failed.all() else -entropies[best]
        return Choice(subsets[best], np.full(subsets.shape[1], score), notes=notes)
