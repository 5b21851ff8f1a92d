"""What is worth labeling: vote-k picks a budget of examples, and queries are served from those alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from iclkit.embed import Embedder, vector_key
from iclkit.lm import ask_each
from iclkit.pool import CandidateBatch, Candidates, PoolView
from iclkit.prompts import answer_stops
from iclkit.records import Example, GenerateRequest, Query, ScoreRequest
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, FloatArray, IntArray, Kit, Needs, SelectorCost
from iclkit.selectors._label_scorer import LabelScorer
from iclkit.selectors._maths import SCORE_DECIMALS, hash_keys, shuffled_keys, smallest_rows, top_rows
from iclkit.settings import setting

_ANSWER_TOKENS = 64  # length of an answer where nothing says how long answers are


def neighbor_rows(vectors: FloatArray, k: int) -> IntArray:
    """(n, min(k, n - 1)): for each row the rows nearest to it, itself left out, nearest first; ties to the lower row.

    vectors (n, d): unit rows.
    """
    n = len(vectors)
    nearest = np.empty((n, min(k, n - 1)), dtype=np.int64)
    for at in range(0, n, 512):
        near = vectors[at : at + 512] @ vectors.T
        for row, scores in enumerate(near, start=at):
            scores[row] = -np.inf
            nearest[row] = top_rows(scores, k)
    return nearest


def fast_vote_order(
    neighbors: IntArray, m: int, density: FloatArray, first: IntArray | None = None, among: BoolArray | None = None
) -> list[int]:
    """Fast vote-k (Su et al. 2023, arXiv 2209.01975): what many others vote for, and those not yet heard.

    neighbors (n, v): the rows that each row votes for. Each step takes the row u with the largest sum, over voters w
    of u that are not taken, of 10 ** -h(w), where h(w) counts the rows taken so far that w voted for. Ties go to the
    row of larger ``density`` (n,), then to the lower. ``first``: rows that are already taken; ``among`` (n,): rows that
    may be. Returns at most m new rows in pick order.
    """
    n = len(neighbors)
    free = np.ones(n, dtype=np.bool_) if among is None else among.copy()
    voting, heard = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    order = list[int]()

    def take(row: int) -> None:
        free[row] = voting[row] = False
        heard[(neighbors == row).any(axis=1)] += 1

    for row in [] if first is None else first.tolist():
        take(row)
    while len(order) < m and free.any():
        tied = _most_votes(neighbors, np.flatnonzero(free), voting, heard)
        row = int(tied[top_rows(density[tied], 1)[0]])
        order.append(row)
        take(row)
    return order


def _most_votes(neighbors: IntArray, rows: IntArray, voting: BoolArray, heard: IntArray) -> IntArray:
    """Those of ``rows`` whose sum of 10 ** -heard over their voters is largest, ascending, compared exactly.

    Votes fade tenfold with each pick, so sums are soon far below 1 and may differ in any digit: floats only sort out
    what cannot win, and what is left is compared as decimal numbers.
    """
    fewest = heard[voting].min(initial=heard.max())
    votes = np.power(10.0, fewest - heard, out=np.zeros(len(heard)), where=voting)
    sums = np.bincount(neighbors.ravel(), np.repeat(votes, neighbors.shape[1]), minlength=len(neighbors))[rows]
    if sums.max() > 1e-280:  # below that floats lose digits, and all are compared
        rows = rows[sums >= sums.max() * (1 - 1e-9)]  # more than a float64 sum can be off by
    if len(rows) == 1:
        return rows
    place = np.full(len(neighbors), -1)
    place[rows] = np.arange(len(rows))
    held = place[neighbors]
    counted = (held >= 0) & voting[:, None]
    width = int(heard.max()) + 1
    digit = np.broadcast_to(heard[:, None], held.shape)[counted]
    digits = np.bincount(held[counted] * width + digit, minlength=len(rows) * width).reshape(len(rows), width)
    for at in range(width - 1, 0, -1):  # carry, so that equal sums have equal digits
        carry, digits[:, at] = np.divmod(digits[:, at], 10)
        digits[:, at - 1] += carry
    kept = np.arange(len(rows))
    for at in range(width):
        column = digits[kept, at]
        kept = kept[column == column.max()]
    return rows[kept]


@dataclass
class _AnnotationSelector(BaseSelector, ABC):
    budget: int = setting(100, "how many examples of the pool are to be labeled", ge=1)
    neighbors: int = setting(150, "how many others each example votes for", ge=1)
    center: bool = setting(True, "subtract the pool's mean vector first, as the source does")

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the annotated examples."""
        return ()

    @abstractmethod
    def annotation_order(self, near: IntArray, density: FloatArray) -> list[int]:
        """At most ``budget`` rows, in the order in which to label them."""

    def prepare(self) -> None:
        """Vectors of the pool, about its mean."""
        vectors = self._vectors()
        self.mean_ = vectors.mean(axis=0, dtype=np.float64).astype(np.float32) if self.center else np.float32(0)
        self.vectors_ = _unit(vectors - self.mean_)
        self.__dict__.pop("annotated_", None)

    @cached_property
    def annotated_(self) -> IntArray:
        """Positions worth a label, in the order of choice; decided when first asked for, since an LM may be asked."""
        assert self.kit_.embedder is not None
        graph = f"neighbors {vector_key(self.kit_.embedder, 'document')} {self.neighbors} {self.center}"
        near = self.pool_.derived(graph, lambda: neighbor_rows(self.vectors_, self.neighbors))
        density = np.round(self.vectors_ @ self.vectors_.mean(axis=0), SCORE_DECIMALS)
        rows = np.array(self.annotation_order(near, density), dtype=np.int64)
        assert len(rows) <= self.budget
        return rows

    def capacity(self, k: int) -> int:
        """No more than are worth a label."""
        return min(k, self.budget)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """The nearest among what is labeled; scores are cosines about the pool's mean."""
        positions = np.sort(self.annotated_)
        rows, vectors, choices = self.pool_.rows[positions], self.vectors_[positions], []
        for candidates, vector in zip(batch, _unit(batch.query_vectors - self.mean_), strict=True):
            scores = np.round(vectors @ vector, SCORE_DECIMALS)
            best = top_rows(scores, k, candidates.allowed(rows))
            choices.append(Choice(rows[best], scores[best], notes=self.notes))
        return choices

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        if got == k:
            return ()
        allowed = int(candidates.allowed(self.pool_.rows[self.annotated_]).sum())
        size = len(self.annotated_)
        return (f"{got} of {k} demonstrations: {allowed} of the {size} labeled examples were allowed",)


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: FloatArray = vectors / np.maximum(norms, 1e-12)
    return result


@dataclass
class VoteKSelector(_AnnotationSelector):
    """Serves queries from the few examples that are the first to label.

    Each example votes for its nearest neighbors; votes count less the more of a voter's choices are taken, so that what
    is taken represents the pool and its members differ. Queries get the nearest of these.
    Use it before labels exist: it says which `budget` examples to annotate.
    Cost: the neighbors of every example (O(n²) products, once), then as `knn` on `budget` rows.
    """

    name: ClassVar[str] = "vote-k"
    summary: ClassVar[str] = (
        "the nearest among a budget of labeled examples that vote-k found representative and unlike each other"
    )
    needs: ClassVar[Needs] = Needs(embedder=True, whole_pool=True)
    source: ClassVar[str] = "fast vote-k; Su et al. 2023, arXiv 2209.01975"
    example: ClassVar[str] = "vote-k,budget=50"

    def annotation_order(self, near: IntArray, density: FloatArray) -> list[int]:
        """Fast vote-k over the whole pool."""
        return fast_vote_order(near, self.budget, density)


@dataclass
class _NextLabels(VoteKSelector):
    """Vote-k among the inputs that wait for a label; those that have one are heard already."""

    def annotation_order(self, near: IntArray, density: FloatArray) -> list[int]:
        waiting = np.array([not e.output for e in self.pool_.examples], dtype=np.bool_)
        return fast_vote_order(near, self.budget, density, first=np.flatnonzero(~waiting), among=waiting)


def worth_labeling(view: PoolView, embedder: Embedder, count: int) -> list[Example]:
    """At most ``count`` inputs of a pool that wait for a label, those most worth one first, by fast vote-k.

    ``view``: all of the pool (``pool.view(labeled=None)``), so that inputs near labeled ones come last.
    """
    if not len(view.unlabeled):
        return []
    chooser = _NextLabels(budget=count)
    chooser.fit(view, Kit(embedder=embedder))
    return [view.examples[position] for position in chooser.annotated_.tolist()]


@dataclass
class VoteKConfidenceSelector(_AnnotationSelector):
    """vote-k that also asks the LM how sure it is of each example not yet labeled.

    After `seeds` examples of fast vote-k, the others are sorted by the LM's confidence and cut into as many buckets as
    labels are left to give; vote-k takes one of each, the surest tenth left out.
    Use it as `vote-k`, where the LM can afford to read the pool once.
    Cost: each example of the pool with each label, once.
    """

    name: ClassVar[str] = "vote-k-confidence"
    summary: ClassVar[str] = "vote-k that also asks the LM, so that sure and unsure examples are both labeled"
    needs: ClassVar[Needs] = Needs(
        embedder=True,
        lm=True,
        log_probs=True,
        whole_pool=True,
        seed_scope="task",
        lm_calls_per_task="(n - seeds) * labels",
    )
    source: ClassVar[str] = "vote-k; Su et al. 2023, arXiv 2209.01975"
    example: ClassVar[str] = "vote-k-confidence,budget=50,seeds=10 --lm smollm2-135m"

    unread_: int = field(init=False, repr=False, compare=False, default=0)
    seeds: int = setting(10, "how many are labeled by fast vote-k before the LM is asked about the rest", ge=1)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many examples the LM could not be asked about."""
        note = f"{self.unread_} examples were not considered for a label: the LM cannot read them"
        return (note,) if self.unread_ else ()

    def cost(self, k: int) -> SelectorCost:  # noqa: ARG002
        """Each unlabeled example with each label, once."""
        labels = len(LabelScorer.of(self.pool_, self.kit_).labels) or 2  # without labels: one generation, one score
        return SelectorCost(per_task=max(0, len(self.pool_) - self.seeds) * labels)

    def annotation_order(self, near: IntArray, density: FloatArray) -> list[int]:
        """Seeds by fast vote-k; then one of each bucket of the rest, from the least to the most confident.

        The most confident tenth is never labeled; buckets are of equal size, and what is missing in the end is random.
        """
        order = fast_vote_order(near, min(self.seeds, self.budget), density)
        rest = np.setdiff1d(np.arange(len(near)), order)
        wanted = self.budget - len(order)
        if not wanted or not len(rest):
            return order
        confidence = self._confidence(rest, np.array(order))
        answered = ~np.isnan(confidence)
        self.unread_ = int(np.count_nonzero(~answered))
        rest, confidence = rest[answered], confidence[answered]
        rest = rest[np.lexsort((rest, np.round(confidence, SCORE_DECIMALS)))]
        size = int(0.9 * len(rest) / wanted)
        for bucket in range(wanted if size else 0):
            among = np.zeros(len(near), dtype=np.bool_)
            among[rest[bucket * size : (bucket + 1) * size]] = True
            order += fast_vote_order(near, 1, density, first=np.array(order), among=among)
        left = np.setdiff1d(rest, order)
        keys = shuffled_keys(hash_keys(self.pool_.ids), "vote-k-confidence", self.kit_.seed)
        return [*order, *smallest_rows(keys, self.budget - len(order), left).tolist()]

    def _confidence(self, rows: IntArray, seeds: IntArray) -> FloatArray:
        """(rows,): the LM's highest label log-probability, or the mean token log-probability of what it generates,
        -inf where that is nothing, NaN where the LM cannot read the prompt.

        Each example is asked about after the seeds, the nearest of them last.
        """
        scorer = LabelScorer.of(self.pool_, self.kit_)
        queries, shots = list[Query](), list[IntArray]()
        for row in rows.tolist():
            example = self.pool_.examples[row]
            queries.append(Query(example.input, example.choices, id=example.id))
            shots.append(seeds[top_rows(self.vectors_[seeds] @ self.vectors_[row], len(seeds))])
        pairs = [(q, [self.pool_.examples[p] for p in s.tolist()]) for q, s in zip(queries, shots, strict=True)]
        if scorer.labels or all(q.choices for q in queries):
            logprobs = scorer.label_logprobs(pairs, "mean")
            return np.array([np.nan if values is None else values.max() for values in logprobs])
        prompts = {n: p.text for n, one in enumerate(pairs) if (p := scorer.prompt_or_none(*one)) is not None}
        stop = answer_stops(scorer.template, {e.output for e in self.pool_.examples})
        tokens = scorer.reserve or _ANSWER_TOKENS
        generations, _ = ask_each(scorer.lm.generate, [GenerateRequest(p, tokens, stop) for p in prompts.values()])
        texts = {[*prompts][position]: answer.text for position, answer in generations.items()}
        confidence = np.full(len(rows), np.nan)
        confidence[[n for n, text in texts.items() if not text.strip()]] = -np.inf
        written = [n for n, text in texts.items() if text.strip()]
        scores, _ = ask_each(scorer.lm.score, [ScoreRequest(prompts[n], texts[n]) for n in written])
        for position, score in scores.items():
            confidence[written[position]] = score.logprob / max(1, score.tokens)
        return confidence
