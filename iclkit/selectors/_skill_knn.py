"""Nearest neighbours by key texts: the skills an input needs, a rewriting of it, or one of its fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from iclkit.embed import encode_checked
from iclkit.pool import CandidateBatch, FieldKey, KeyTransform, RetrievalKeys
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs, SelectorCost
from iclkit.selectors._maths import SCORE_DECIMALS
from iclkit.selectors._rewriter import LMRewriter, RewriteStyle
from iclkit.settings import setting

VARIANTS = ("distinctiveness", "consistency", "base")
_FEW_KEYS = 0.5  # share of different keys below which a note says so
_ROUGH = 1e-5  # more than a float32 sum of products of unit rows is off by
_BLOCK = 1 << 22  # similarities of keys computed at a time


def key_scores(query: FloatArray, pool: FloatArray, variant: str) -> FloatArray:
    """(q, n) similarities of sets of keys (An et al. 2023, Skill-KNN, arXiv 2305.14210).

    query (q, m, d), pool (n, m, d): unit rows. base: cosine of the first keys. consistency: cosine of the sums of all
    keys. distinctiveness: the largest cosine of any key of one and any key of the other.
    """
    if variant == "base":
        scores = query[:, 0] @ pool[:, 0].T
    elif variant == "consistency":
        scores = _unit(query.sum(1)) @ _unit(pool.sum(1)).T
    else:
        (q, m, d), n = query.shape, len(pool)
        scores = (query.reshape(q * m, d) @ pool.reshape(n * m, d).T).reshape(q, m, n, m).max(axis=(1, 3))
    return np.asarray(scores)


def _unit(rows: FloatArray) -> FloatArray:
    # keys that cancel each other have no direction and are as near to one thing as to another
    unit: FloatArray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return unit


@dataclass
class _KeyedSelector(BaseSelector, ABC):
    """Keys by ``transform_``; equal key similarities are told apart by the similarity of the inputs themselves."""

    source: ClassVar[str] = "Skill-KNN; An et al. 2023, arXiv 2305.14210"
    _variant: ClassVar[str] = "base"

    @abstractmethod
    def transform(self) -> KeyTransform:
        """What writes the keys."""

    def prepare(self) -> None:
        """Vectors of the inputs; keys are written when the first query comes, since an LM may be asked."""
        self.transform_ = self.transform()
        self._vectors()
        for learnt in ("keys_", "key_vectors_"):
            self.__dict__.pop(learnt, None)

    @cached_property
    def keys_(self) -> RetrievalKeys:
        """The pool's keys; those that it does not have yet are written."""
        return self.pool_.keys(self.transform_)

    @cached_property
    def key_vectors_(self) -> FloatArray:
        """(n, keys, dim) float32, unit rows."""
        assert self.kit_.embedder is not None
        return self._sets(self.keys_, self.pool_.text_vectors(self.kit_.embedder, _flat(self.keys_)))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Write the keys of the queries together, then compare; scores are similarities of keys."""
        assert self.kit_.embedder is not None
        keys = self.pool_.keys_of_queries(self.transform_, [q.input for q in batch.queries])
        vectors = self._sets(keys, encode_checked(self.kit_.embedder, _flat(keys), "query"))
        plain, choices = batch.query_vectors, list[Choice]()
        for block in self._blocks(len(batch)):
            rough = key_scores(vectors[block], self.key_vectors_, self._kind())
            for near, number in zip(rough, range(len(batch))[block], strict=True):
                positions = self._inside(batch[number].scope)
                best, scores = self._best(vectors[number], plain[number], near, positions, k)
                choices.append(
                    Choice(self.pool_.rows[best], scores, notes=self._key_notes(keys.fallback_counts[number]))
                )
        return choices

    def _best(
        self, keys: FloatArray, plain_query: FloatArray, rough: FloatArray, rows: IntArray, k: int
    ) -> tuple[IntArray, FloatArray]:
        """The best k of ``rows`` (positions in the pool), and their scores.

        What is near the k-th in float32 is compared again in float64, because the last bits of a product of matrices
        change with the number of queries in it.
        """
        if k < len(rows):
            rows = rows[rough[rows] >= np.partition(rough[rows], -k)[-k] - _ROUGH]
        exact = key_scores(keys[None].astype(np.float64), self.key_vectors_[rows].astype(np.float64), self._kind())
        scores = np.round(exact[0], SCORE_DECIMALS)
        plain = np.round(self._vectors()[rows].astype(np.float64) @ plain_query.astype(np.float64), SCORE_DECIMALS)
        order = np.lexsort((rows, -plain, -scores))[:k]
        return rows[order], scores[order]

    def _key_notes(self, missing: int) -> tuple[str, ...]:
        """When the keys say little; ``missing`` of the query's could not be written."""
        notes = []
        if missing:
            notes.append(f"{missing} keys of the query could not be written; its own text stands in")
        if self.keys_.fallbacks:
            notes.append(f"{self.keys_.fallbacks} keys of the pool could not be written; the inputs stand in")
        if self.keys_.distinct_share < _FEW_KEYS and len(self.pool_) > 1:
            share = f"{self.keys_.distinct_share:.0%}"
            notes.append(f"only {share} of the pool's keys differ from each other: they tell little apart")
        return tuple(notes)

    def _kind(self) -> str:
        return self._variant

    def _sets(self, keys: RetrievalKeys, vectors: FloatArray) -> FloatArray:
        return vectors.reshape(len(keys.texts), self.transform_.count, -1)

    def _blocks(self, queries: int) -> Iterator[slice]:
        step = max(1, _BLOCK // (len(self.pool_) * self.transform_.count**2))
        return (slice(at, at + step) for at in range(0, queries, step))


def _flat(keys: RetrievalKeys) -> list[str]:
    return [text for texts in keys.texts for text in texts]


@dataclass
class SkillKNNSelector(_KeyedSelector):
    """Compares what an LM writes about the inputs, not the inputs.

    A few annotated pairs show the LM how to write a key: the skills that an input needs, a search query, a
    translation. Several keys per input come from several orders of the pairs; `variant` says how two sets of keys are
    compared. Keys are stored in the pool, and outputs are never shown to the LM.
    Use it where inputs that look alike need different skills (text-to-SQL, mathematics). A weak LM writes keys that
    tell little apart; a note says so.
    Cost: one generation per key, once per pool example and once per query.
    """

    name: ClassVar[str] = "skill-knn"
    example: ClassVar[str] = "skill-knn,style=parsing --lm smollm2-135m"
    summary: ClassVar[str] = (
        "the nearest by what an LM writes about the inputs: the skills they need, a rewriting, a translation"
    )
    needs: ClassVar[Needs] = Needs(
        embedder=True, lm=True, lm_calls_per_query="rewrites", lm_calls_per_task="n * rewrites"
    )

    style: str = setting(
        "classification", "parsing, classification, query, english, or a TOML file with instruction, stem and pairs"
    )
    variant: str = setting(
        "distinctiveness",
        "distinctiveness: largest similarity of any two keys; consistency: of their sums; base: one key",
        choices=VARIANTS,
    )
    rewrites: int = setting(
        5, "keys per input, each after seeing the annotated pairs in another order; base uses one", ge=1
    )

    def transform(self) -> KeyTransform:
        """The kit's LM with the annotated pairs of the style."""
        assert self.kit_.lm is not None
        return LMRewriter(self.kit_.lm, RewriteStyle.load(self.style), self._count())

    def cost(self, k: int) -> SelectorCost:  # noqa: ARG002
        """One text per key; keys that the pool has already cost nothing."""
        return SelectorCost(len(self.pool_) * self._count(), self._count())

    def _kind(self) -> str:
        return self.variant

    def _count(self) -> int:
        return 1 if self.variant == "base" else self.rewrites


@dataclass
class FieldKNNSelector(_KeyedSelector):
    """Ranks as `knn` does, by one field of the input.

    Use it where inputs have named fields and one of them decides, e.g. the question and not its long context.
    Cost: as `knn`, with the field embedded too.
    """

    name: ClassVar[str] = "field-knn"
    summary: ClassVar[str] = "the nearest by one named field of the inputs, e.g. the question without its long context"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "key transforms as in Skill-KNN; An et al. 2023, arXiv 2305.14210"
    example: ClassVar[str] = "field-knn,field=question"

    field: str = setting("", "name of the field; the whole input when not given")

    def prepare(self) -> None:
        """DataError for an example without the field, at once."""
        super().prepare()
        assert len(self.keys_.texts) == len(self.pool_)

    def transform(self) -> KeyTransform:
        """The field, or the input as it is."""
        return FieldKey(self.field)
