"""Near the query while covering the label space: for tasks with more labels than demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from iclkit.pool import CandidateBatch, Candidates
from iclkit.selectors._base import BaseSelector, Choice, Needs
from iclkit.settings import setting


def label_recall(shown: Sequence[Sequence[str]], gold: Sequence[str]) -> float:
    """Share of queries whose gold label is among the labels shown: the accuracy of a reader that answers with any
    shown label and picks the right one (Milios, Reddy & Bahdanau 2023, arXiv 2309.10954).

    shown (q,): labels of the demonstrations of each query. gold (q,): its label. 0 for no queries.
    """
    return sum(g in s for s, g in zip(shown, gold, strict=True)) / len(gold) if gold else 0.0


def label_cover_order(labels: Sequence[str], k: int, cap: int, minimum: int) -> list[int]:
    """Positions of at most k of the ranked candidates, best first, with a cap and a floor on labels.

    labels (n,): label of each candidate, nearest first. No label is taken more than ``cap`` times (0: no cap). Where
    the k nearest show fewer than ``minimum`` different labels, the nearest of each missing label, in order of nearness,
    take the places of the farthest whose label is shown more than once.
    """
    count, taken = Counter[str](), list[int]()
    for place, label in enumerate(labels):
        if len(taken) == k:
            break
        if not cap or count[label] < cap:
            taken.append(place)
            count[label] += 1
    for place, label in enumerate(labels):
        if len(count) >= min(minimum, k):
            break
        if count[label]:
            continue
        spare = next((t for t in reversed(taken) if count[labels[t]] > 1), None)
        if spare is None:
            break
        taken.remove(spare)
        count[labels[spare]] -= 1
        taken.append(place)
        count[label] += 1
    return sorted(taken)


@dataclass
class ManyLabelsSelector(BaseSelector):
    """Takes the nearest, with a cap on how often and a floor on how many labels are shown.

    Use it for tasks with more labels than demonstrations: an LM hardly ever answers with a label that it is not shown.
    Cost: as `knn`.
    """

    name: ClassVar[str] = "many-labels"
    summary: ClassVar[str] = "the nearest inputs, at most so many of a label and at minimum so many labels"
    needs: ClassVar[Needs] = Needs(embedder=True, labels=True)
    source: ClassVar[str] = "Milios, Reddy & Bahdanau 2023, arXiv 2309.10954 (nearest only); cap and floor are ours"
    example: ClassVar[str] = "many-labels,per_label_cap=2,min_labels=5"

    per_label_cap: int = setting(0, "at most so many of one label; 0: no cap", ge=0)
    min_labels: int = setting(0, "at least so many different labels, as far as k and the candidates allow", ge=0)
    candidates: int = setting(1000, "how many of the nearest are looked at; k when k is larger", ge=1)

    def prepare(self) -> None:
        """Vectors of the pool."""
        self._embed()

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Encode and search together; scores are cosines."""
        choices = []
        for candidates, near in zip(batch, batch.nearest(max(k, self.candidates)), strict=True):
            places = label_cover_order(candidates.outputs(near.rows), k, self.per_label_cap, self.min_labels)
            choices.append(Choice(near.rows[places], near.scores[places]))
        return choices

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        short = super().shortfall_note(candidates, k, got)
        if short and self.per_label_cap and got < len(candidates):
            return (f"{got} of {k} demonstrations: at most {self.per_label_cap} of a label are shown",)
        return short
