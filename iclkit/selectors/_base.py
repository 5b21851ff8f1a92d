"""The protocol that callers rely on, and the base class in which the checks live once."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iclkit import __version__
from iclkit.errors import DataError, NeedError
from iclkit.lm import LM
from iclkit.pool import Embedder, PoolView
from iclkit.prompts import Template
from iclkit.records import Json, Pick, Query, Selection, Spec

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a selector must be given, and what it costs to ask it."""

    embedder: bool = False
    lm: bool = False
    labels: bool = False
    lm_calls_per_query: str = "0"
    """A number or a formula in k, n (pool size) and the selector's settings; "0" for none."""
    lm_calls_per_task: str = "0"


@dataclass(frozen=True, slots=True)
class Kit:
    """What a selector may use: handed to ``fit``; a missing part that is needed raises NeedError there."""

    embedder: Embedder | None = None
    lm: LM | None = None
    template: Template | None = None
    labels: tuple[str, ...] = ()
    seed: int = 0


@runtime_checkable
class Selector(Protocol):
    """All that eval, trainers and the command line rely on."""

    needs: ClassVar[Needs]

    @property
    def spec(self) -> Spec:
        """Name and settings."""
        ...

    def fit(self, pool: PoolView, kit: Kit) -> Self:
        """Look at the pool once; touches models and indexes as needed."""
        ...

    def select(self, query: Query, k: int) -> Selection:
        """The best k demonstrations for a query, best first."""
        ...

    def select_many(self, queries: Sequence[Query], k: int) -> list[Selection]:
        """Equal to ``[select(q, k) for q in queries]``, faster."""
        ...


@dataclass
class BaseSelector(ABC):
    """Checks needs, turns ``query.exclude`` into a mask, builds the Selection. A strategy is its ``choose``.

    Subclasses are dataclasses whose fields are the settings; what ``fit`` learns ends in ``_``. ``name``, ``needs`` and
    ``source`` are class attributes.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs()
    source: ClassVar[str] = ""
    """Where the method comes from: authors, venue or arXiv number."""

    pool_: PoolView = field(init=False, repr=False, compare=False)
    kit_: Kit = field(init=False, repr=False, compare=False)

    @property
    def spec(self) -> Spec:
        """Name and settings: enough to build this selector again."""
        settings: dict[str, Json] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return Spec(self.name, settings, __version__)

    def fit(self, pool: PoolView, kit: Kit) -> Self:
        """Remember pool and kit, then ``prepare``. NeedError names what is missing and the flag that gives it."""
        for part, flag in (("embedder", "--embedder"), ("lm", "--lm")):
            if getattr(self.needs, part) and getattr(kit, part) is None:
                raise NeedError(f"selector {self.name!r} needs an {part}; give one with {flag}")
        if self.needs.labels and not (kit.labels or len({e.output for e in pool.examples}) > 1):
            raise NeedError(f"selector {self.name!r} needs labelled examples, and the pool has one output only")
        self.pool_, self.kit_ = pool, kit
        self.prepare()
        return self

    def prepare(self) -> None:
        """Hook: learn from ``self.pool_`` and ``self.kit_`` whatever ``choose`` needs."""

    @abstractmethod
    def choose(self, query: Query, k: int, allowed: BoolArray) -> tuple[IntArray, FloatArray]:
        """At most k row numbers of the pool, best first, with their scores. ``allowed`` (n,) masks the pool's rows."""

    def choose_many(
        self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]
    ) -> list[tuple[IntArray, FloatArray]]:
        """Batched ``choose``; the default is the loop."""
        return [self.choose(q, k, a) for q, a in zip(queries, allowed, strict=True)]

    def select(self, query: Query, k: int) -> Selection:
        """The best k demonstrations for a query. DataError before ``fit``, for k < 0."""
        return self.select_many([query], k)[0]

    def select_many(self, queries: Sequence[Query], k: int) -> list[Selection]:
        """One Selection per query, each as ``select`` would give it."""
        if not hasattr(self, "pool_"):
            raise DataError(f"selector {self.name!r} has not seen a pool yet; call fit(pool, kit) first")
        if k < 0:
            raise DataError(f"k is {k}; give 0 or more")
        masks = [self._allowed(q) for q in queries]
        chosen = self.choose_many(queries, k, masks) if k else [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        return [self._selection(q, k, m, *c) for q, m, c in zip(queries, masks, chosen, strict=True)]

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator determined by the kit's seed and ``key``, e.g. the query id; never global."""
        return np.random.default_rng([self.kit_.seed, *(k if isinstance(k, int) else zlib.crc32(k.encode()) for k in key)])

    def _allowed(self, query: Query) -> BoolArray:
        mask = np.ones(len(self.pool_), dtype=np.bool_)
        rows = [r for i in query.exclude if (r := self.pool_.row_of(i)) is not None]
        mask[rows] = False
        return mask

    def _selection(self, query: Query, k: int, allowed: BoolArray, rows: IntArray, scores: FloatArray) -> Selection:
        chosen = [int(r) for r in rows]
        assert len(chosen) <= k, f"{self.name}: {len(chosen)} picks for k={k}"
        assert len(set(chosen)) == len(chosen), f"{self.name}: an example was picked twice"
        assert all(allowed[r] for r in chosen), f"{self.name}: an excluded example was picked"
        picks = tuple(
            Pick(self.pool_.ids[r], float(s), n) for n, (r, s) in enumerate(zip(chosen, scores, strict=True), start=1)
        )
        return Selection(query, picks, self.spec, self._notes(k, len(picks), allowed))

    def _notes(self, k: int, got: int, allowed: BoolArray) -> tuple[str, ...]:
        if got == k:
            return ()
        return (f"{got} of {k} demonstrations: {int(allowed.sum())} of the pool's {len(allowed)} examples were allowed",)


def describe(cls: Any) -> dict[str, Json]:
    """Name, needs, cost per query, settings with defaults, and source of a selector class: one row of the table."""
    settings = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
    return {
        "name": cls.name,
        "needs": [p for p in ("embedder", "lm", "labels") if getattr(cls.needs, p)],
        "lm_calls_per_query": cls.needs.lm_calls_per_query,
        "lm_calls_per_task": cls.needs.lm_calls_per_task,
        "settings": {k: v for k, v in settings.items() if v is not dataclasses.MISSING},
        "source": cls.source,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
    }
