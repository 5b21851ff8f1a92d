"""Nearest neighbours by key texts: the skills an input needs, a rewriting of it, or one of its fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from iclkit.embed import encode_checked
from iclkit.errors import DataError, UsageError
from iclkit.files import read_jsonl
from iclkit.lm import as_lm
from iclkit.pool import CandidateBatch, FieldKey, KeyTransform, RetrievalKeys
from iclkit.records import Spec, digest
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs, PaperSetup, SelectorCost
from iclkit.selectors._maths import SCORE_DECIMALS
from iclkit.selectors._rewriter import LMRewriter, RewriteStyle, second_lm
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
        self._embed()
        for learnt in ("keys_", "key_vectors_"):
            self.__dict__.pop(learnt, None)

    @cached_property
    def keys_(self) -> RetrievalKeys:
        """The pool's keys; those that it does not have yet are written."""
        return self.pool_.keys(self.transform_, numbers=self._numbers())

    @cached_property
    def key_vectors_(self) -> FloatArray:
        """(n, keys, dim) float32, unit rows."""
        assert self.kit_.embedder is not None
        return self._sets(self.keys_, self.pool_.text_vectors(self.kit_.embedder, _flat(self.keys_)))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Write the keys of the queries together, then compare; scores are similarities of keys."""
        assert self.kit_.embedder is not None
        keys = self.pool_.keys_of_queries(self.transform_, [q.input for q in batch.queries], numbers=self._numbers())
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

    def _numbers(self) -> Sequence[int]:
        """Which keys of an input are compared."""
        return range(self.transform_.count)

    def _sets(self, keys: RetrievalKeys, vectors: FloatArray) -> FloatArray:
        return vectors.reshape(len(keys.texts), self.transform_.count, -1)

    def _blocks(self, queries: int) -> Iterator[slice]:
        step = max(1, _BLOCK // (len(self.pool_) * self.transform_.count**2))
        return (slice(at, at + step) for at in range(0, queries, step))


def read_keys(path: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """{(example id, number of the key): (key, line)} of a JSONL file of ``{"id": …, "number": 0, "key": "…"}``.

    DataError names the line that is something else, has an empty key, or repeats one.
    """
    keys = dict[tuple[str, int], tuple[str, int]]()
    for line, row in read_jsonl(path):
        where = f"{path}:{line}"
        data = row if isinstance(row, dict) else {}
        example, number, key = data.get("id"), data.get("number", 0), data.get("key")
        if not isinstance(example, str) or type(number) is not int or number < 0 or not isinstance(key, str):
            raise DataError(f'{where}: give {{"id": "an example\'s id", "number": 0, "key": "its text"}}')
        if not key.strip():
            raise DataError(f"{where}: `key` is empty; write one, or take the line out and the LM writes it")
        if (example, number) in keys:
            raise DataError(f"{where}: key {number} of example {example} stands in line {keys[example, number][1]} too")
        keys[example, number] = " ".join(key.split()), line
    return keys


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
    The paper's setup is a strong rewriter for a weaker task LM: `rewriter` names one. Its base variant is the mean over
    several orders of the pairs: variant=base,order=-1 takes another with each seed.
    Cost: one generation per key, once per pool example and once per query.
    """

    name: ClassVar[str] = "skill-knn"
    summary: ClassVar[str] = (
        "the nearest by what an LM writes about the inputs: the skills they need, a rewriting, a translation"
    )
    example: ClassVar[str] = "skill-knn,style=parsing --lm smollm2-135m"
    paper: ClassVar[PaperSetup | None] = PaperSetup(
        {"variant": "distinctiveness", "rewrites": 5},
        4,
        "all-mpnet-base-v2",
        ("in the paper a stronger LM writes the keys than the one that answers: skill-knn,rewriter=NAME",),
    )

    style: str = setting(
        "classification",
        "parsing, classification, query, english, or a TOML file with instruction, stem and pairs "
        "(`iclkit keys annotate` begins one)",
    )
    variant: str = setting(
        "distinctiveness",
        "distinctiveness: largest similarity of any two keys; consistency: of their sums; base: one key",
        choices=VARIANTS,
    )
    rewrites: int = setting(
        5, "keys per input, each after seeing the annotated pairs in another order; base uses one", ge=1
    )
    rewriter: str = setting("", "the LM that writes the keys, also a served one; the run's LM if empty", added=True)
    order: int = setting(
        0,
        "base: which order of the pairs; -1: the seed, so that seeds give the paper's mean",
        ge=-1,
        added=True,
    )
    key_tokens: int = setting(48, "most tokens of a key", ge=1, added=True)
    keys: str = setting(
        "", "a JSONL file of keys, as `iclkit keys export` prints them; the LM writes those it lacks", added=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order and self.variant != "base":
            raise UsageError(f"selector {self.name!r}: order is {self.order}, which is for variant=base")

    @property
    def needs(self) -> Needs:
        """An LM, unless a rewriter is named."""
        return Needs(
            embedder=True,
            lm=not self.rewriter,
            seed_scope="task" if self.order < 0 else "none",
            lm_calls_per_query="rewrites",
            lm_calls_per_task="n * rewrites",
        )

    @property
    def spec(self) -> Spec:
        """Name and settings; the content is that of the files that are named."""
        return replace(super().spec, content=self.content_)

    @cached_property
    def content_(self) -> str:
        """Hash of a style that is a file and of the file of keys; "" without any."""
        style = RewriteStyle.load(self.style)
        keys = [[i, n, key] for (i, n), (key, _) in self.given_keys_.items()]
        if not style.is_file and not keys:
            return ""
        return digest([style.digest() if style.is_file else self.style, keys], 8)

    @cached_property
    def given_keys_(self) -> dict[tuple[str, int], tuple[str, int]]:
        """{(example id, number): (key, line)} of the file of keys."""
        return read_keys(Path(self.keys)) if self.keys else {}

    def prepare(self) -> None:
        """DataError for examples without a field that the pairs show, and for keys of examples that are gone."""
        super().prepare()
        RewriteStyle.load(self.style).check(e.input for e in self.pool_.examples)
        gone = [(line, i) for (i, _), (_, line) in self.given_keys_.items() if self.pool_.row_of(i) is None]
        if gone and self.pool_.is_whole:
            raise DataError(
                f"{self.keys}:{gone[0][0]}: example {gone[0][1]} is not in the pool (lines like this: {len(gone)}); "
                f"take them out, or write the file again: iclkit keys export POOL > {self.keys}"
            )

    def transform(self) -> KeyTransform:
        """The rewriter, or the kit's LM, with the annotated pairs of the style."""
        lm = (self.kit_.load_lm or second_lm)(self.rewriter) if self.rewriter else self.kit_.lm
        assert lm is not None
        return LMRewriter(as_lm(lm), RewriteStyle.load(self.style), self._count(), self.key_tokens)

    @cached_property
    def keys_(self) -> RetrievalKeys:
        """The pool's keys: those of the file; the others are written where the pool does not have them."""
        numbers, given = self._numbers(), self.given_keys_
        if not given:
            return self.pool_.keys(self.transform_, numbers=numbers)
        texts = {key: (text, 0) for key, (text, _) in given.items()}
        for number in numbers:
            missing = [e for e in self.pool_.examples if (e.id, number) not in given]
            made = self.pool_.keys_of_queries(self.transform_, [e.input for e in missing], numbers=[number])
            for example, (text,), fallback in zip(missing, made.texts, made.fallback_counts, strict=True):
                texts[example.id, number] = text, fallback
        rows = [[texts[i, number] for number in numbers] for i in self.pool_.ids]
        fallbacks = tuple(sum(f for _, f in row) for row in rows)
        return RetrievalKeys(tuple(tuple(text for text, _ in row) for row in rows), fallbacks)

    def cost(self, k: int) -> SelectorCost:  # noqa: ARG002
        """One text per key; keys that the pool has already cost nothing."""
        return SelectorCost(max(0, len(self.pool_) * self._count() - len(self.given_keys_)), self._count())

    def _kind(self) -> str:
        return self.variant

    def _count(self) -> int:
        return 1 if self.variant == "base" else self.rewrites

    def _numbers(self) -> Sequence[int]:
        if self.variant != "base":
            return range(self.rewrites)
        return [self.kit_.seed if self.order < 0 else self.order]


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
