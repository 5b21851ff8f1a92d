"""One demonstration after another, each given those before it: beam search over sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.embed import encode_checked
from iclkit.pool import CandidateBatch, Candidates, Scope
from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs, PaperSetup
from iclkit.selectors._maths import SCORE_DECIMALS, top_rows
from iclkit.settings import setting

_NORMS = ("none", "log-softmax")
_ENCODED = 8192  # queries whose states are encoded together
_SPARE = 8  # rows fetched beyond those wanted, whose inner products are then compared more finely
_FAR = 50.0  # nats

BeamState = tuple[int, tuple[int, ...]]
"""Number of a query, and the rows chosen for it so far, first chosen first."""


@dataclass(frozen=True, slots=True)
class Beam:
    """A sequence of rows, first chosen first, and the score of each step."""

    rows: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Sum of the steps' scores."""
        return round(sum(self.scores), SCORE_DECIMALS)

    def then(self, row: int, score: float) -> Beam:
        """One step further."""
        return Beam((*self.rows, row), (*self.scores, score))


def beam_search(
    queries: int,
    extend: Callable[[Sequence[BeamState], int], Sequence[tuple[Iterable[int], Iterable[float]]]],
    width: int,
    depth: int,
    state_key: Callable[[BeamState], object] = lambda state: state,
) -> list[list[Beam]]:
    """The sequences that beam search finds for each query, best first: highest sum of scores, then lowest rows.

    ``extend(states, limit)``: for each state at most ``limit`` rows that are not chosen yet, best first, with their
    scores; all queries and beams of a step are asked together. States of one ``state_key`` are one beam. Sequences
    end at ``depth`` rows, or where nothing is left to add.

    Plain beam search can end worse with more beams, because a beam that looks good early can crowd out one that is
    better later. So the searches of all widths up to ``width`` go on side by side, sharing what they ask, and the best
    sequence of any is returned: a wider search is never worse. Width 1 is greedy; a width that holds all sequences
    finds the best there is.
    """
    nested = [[[Beam()] for _ in range(width)] for _ in range(queries)]
    for _ in range(depth):
        states = list(
            dict.fromkeys((q, b.rows) for q, searches in enumerate(nested) for beams in searches for b in beams)
        )
        longer = {
            state: [(int(r), float(s)) for r, s in zip(*extensions, strict=True)]
            for state, extensions in zip(states, extend(states, width), strict=True)
        }
        if not any(longer.values()):
            break
        for q, searches in enumerate(nested):
            if any(longer[q, b.rows] for b in searches[0]):
                nested[q] = [
                    _best(q, (b.then(r, s) for b in beams for r, s in longer[q, b.rows][:v]), v, state_key)
                    for v, beams in enumerate(searches, 1)
                ]
    every = [[b for beams in searches for b in beams] for searches in nested]
    return [_best(q, beams, len(beams), state_key) for q, beams in enumerate(every)]


def _best(q: int, beams: Iterable[Beam], limit: int, state_key: Callable[[BeamState], object]) -> list[Beam]:
    """The best of some beams of a query, one of those that are the same."""
    kept: dict[object, Beam] = {}
    for beam in sorted(beams, key=lambda b: (-b.total, b.rows)):
        kept.setdefault(state_key((q, beam.rows)), beam)
        if len(kept) == limit:
            break
    return [*kept.values()]


@dataclass
class Se2Selector(BaseSelector):
    """Chooses one example after another, each given those before it, by beam search.

    A state is the query with the examples chosen so far; the retriever encodes it and the nearest examples extend it.
    The first chosen has rank 1, and the default order policy puts rank 1 next to the query: the layout that Se² is
    trained on. Another policy shows the same demonstrations in an order that the retriever has not seen.
    Use it with a retriever of `iclkit train se2`, given as --embedder.
    Cost: up to width * k encodings per query, and a search for each.
    """

    # The first chosen has rank 1, and the default order policy puts rank 1 next to the query: the layout that Se2 is
    # trained on. Another policy shows the same demonstrations in an order that the retriever has not seen.

    name: ClassVar[str] = "se2"
    summary: ClassVar[str] = (
        "one after another, each given those chosen before it, by beam search with a retriever of `iclkit train se2`"
    )
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "Se²; Liu et al. 2024, Findings of ACL, arXiv 2402.13874"
    example: ClassVar[str] = "se2,width=1 --embedder retrievers/se2"
    paper: ClassVar[PaperSetup | None] = PaperSetup({"width": 3, "normalize": "none"}, 3)

    width: int = setting(3, "beams; 1 is greedy", ge=1)
    normalize: str = setting(
        "none", "none: sum of the trained similarities; log-softmax: of log-probabilities over the pool", choices=_NORMS
    )
    temperature: float = setting(0.05, "divides similarities before the softmax", gt=0)

    def prepare(self) -> None:
        """Vectors of the pool."""
        self.vectors_ = self._vectors()

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """The best sequence found for each query, first chosen first; scores are those of the steps.

        All queries and beams of a step are encoded and searched together.
        """
        choices = list[Choice]()
        for at in range(0, len(batch), _ENCODED):
            beams = self.beams([batch[n] for n in range(len(batch))[at : at + _ENCODED]], batch, k)
            choices += [
                Choice(np.array(best.rows, np.int64), np.array(best.scores), notes=self._temperature_note())
                for best, *_ in beams
            ]
        return choices

    def beams(self, candidates: Sequence[Candidates], batch: CandidateBatch, k: int) -> list[list[Beam]]:
        """For each of some queries of a batch the sequences found, best first."""
        queries = [c.query for c in candidates]

        def extend(states: Sequence[BeamState], limit: int) -> list[tuple[IntArray, FloatArray]]:
            # as many more than wanted as there are chosen rows to skip
            vectors, sizes = self._encode(queries, states)
            wanted = limit + max(len(rows) for _, rows in states) + (_SPARE if self._products else 0)
            nearest = batch.search(vectors, wanted, [candidates[q].scope for q, _ in states])
            out = []
            for (q, chosen), vector, size, near in zip(states, vectors, sizes, nearest, strict=True):
                new = ~np.isin(near.rows, chosen)
                rows, scores = self._compared(vector, float(size), near.rows[new], near.scores[new])
                rows, scores = rows[:limit], scores[:limit]
                if self.normalize == "log-softmax" and len(rows):
                    mass = self._log_partition(vector, float(size), chosen, candidates[q].scope)
                    scores = np.round(scores / self.temperature - mass, SCORE_DECIMALS)
                out.append((rows, scores))
            return out

        return beam_search(len(queries), extend, self.width, k, lambda state: (state[0], self._text(queries, state)))

    def _temperature_note(self) -> tuple[str, ...]:
        """When the softmax is not the one of the training."""
        assert self.kit_.embedder is not None
        trained = self.kit_.embedder.training.get("temperature")
        if self.normalize == "none" or not isinstance(trained, int | float) or trained == self.temperature:
            return ()
        return (f"temperature is {self.temperature:g}, and the retriever was trained with {trained:g}",)

    def explain(self, query: Query, k: int) -> tuple[str, ...]:
        """The sequence with its score by step, and the beams that came next."""
        batch = self.pool_.candidates([query], self.kit_.embedder)
        best, *others = self.beams([*batch], batch, k)[0][: self.width]
        lines = [f"{self.width} beams, best sum of scores {best.total:.4f}; the first chosen stands next to the query"]
        for n, (row, score) in enumerate(zip(best.rows, best.scores, strict=True), 1):
            lines.append(f"step {n}: score {score:.4f}, sum {sum(best.scores[:n]):.4f}: {self._label(row)}")
        for n, beam in enumerate(others, 1):
            steps = ", then ".join(map(self._label, beam.rows))
            lines.append(f"runner-up beam {n}: sum {beam.total:.4f}: {steps}")
        return tuple(lines)

    @property
    def _products(self) -> bool:
        """Whether the embedder was trained on inner products."""
        return self.kit_.embedder is not None and self.kit_.embedder.similarity == "dot"

    def _encode(self, queries: Sequence[Query], states: Sequence[BeamState]) -> tuple[FloatArray, FloatArray]:
        """(s, dim) unit rows to search with, and (s,) what makes their cosines the embedder's own similarities."""
        assert self.kit_.embedder is not None
        vectors = encode_checked(self.kit_.embedder, [self._text(queries, state) for state in states], "state")
        if not self._products:
            return vectors, np.ones(len(states))
        sizes = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return (vectors / np.maximum(sizes, 1e-12)[:, None]).astype(np.float32), sizes

    def _compared(
        self, vector: FloatArray, size: float, rows: IntArray, near: FloatArray
    ) -> tuple[IntArray, FloatArray]:
        """The rows found with their similarities, best first: cosines as they were found, inner products anew.

        Cosines are found to 1e-6, which is too rough for the inner products of long vectors.
        """
        if not self._products:
            return rows, near.astype(np.float64)
        scores = size * (self.vectors_[self.pool_.positions(rows)].astype(np.float64) * vector.astype(np.float64)).sum(
            axis=1
        )
        best = top_rows(scores, len(rows))
        return rows[best], np.round(scores[best], SCORE_DECIMALS)

    def _text(self, queries: Sequence[Query], state: BeamState) -> str:
        """What the embedder reads of a state."""
        assert self.kit_.embedder is not None
        chosen = self.pool_.examples_at(np.array(state[1], dtype=np.int64))
        return self.kit_.embedder.state_text(queries[state[0]].text, chosen)

    def _log_partition(self, vector: FloatArray, size: float, chosen: Sequence[int], scope: Scope) -> float:
        """Log of the sum of exp(similarity / temperature) over all rows that could be added."""
        logits = (self.vectors_ @ vector).astype(np.float64) * (size / self.temperature)
        logits[self._outside(scope)] = -np.inf
        logits[self.pool_.positions(np.array(chosen, dtype=np.int64))] = -np.inf
        if self._products:  # float32 is too rough for long vectors; what lies far below the top does not count
            near = np.flatnonzero(logits > logits.max() - _FAR)
            exact = (self.vectors_[near].astype(np.float64) * vector.astype(np.float64)).sum(axis=1)
            logits[near] = exact * (size / self.temperature)
        top = logits.max()
        return float(top + np.log(np.exp(logits - top).sum()))
