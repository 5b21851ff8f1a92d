"""The protocol that callers rely on, and the base class in which the checks live once."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import as_embedder, load_reranker
from iclkit.errors import DataError, NeedError, UsageError
from iclkit.lm import as_lm, ranks_only
from iclkit.pool import as_view, search_notes
from iclkit.prompts import Template
from iclkit.records import Json, Pick, Query, QueryLike, SeedScope, Selection, Spec
from iclkit.settings import check_settings, describe_settings, recorded_settings

if TYPE_CHECKING:
    from iclkit.embed import Embedder, EmbedderLike, Reranker
    from iclkit.lm import LM
    from iclkit.pool import CandidateBatch, Candidates, Pool, PoolView, Scope
    from iclkit.records import Example

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[Any]
"""float32 or float64."""
RANDOM_FILL = "random"
"""``Pick.why`` of a pick that nothing speaks for."""
_SHORT = 60  # characters of an input in a line for people


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy returns for one query: row handles of the pool, best first, and their scores.

    ``random``: how many of the last picks were drawn, since nothing distinguished the remaining candidates. ``notes``:
    what the user should know of this choice.
    """

    rows: IntArray
    scores: FloatArray
    random: int = 0
    notes: tuple[str, ...] = ()


NOTHING = Choice(np.empty(0, np.int64), np.empty(0))

SEED_SCOPES: tuple[SeedScope, ...] = ("none", "query", "task")  # weakest first


def strongest(scopes: Iterable[SeedScope]) -> SeedScope:
    """The scope of a selector made of parts with these.

    >>> strongest(["none", "task", "query"])
    'task'
    """
    return max(scopes, key=SEED_SCOPES.index, default="none")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a selector must be given, and what its results depend on."""

    embedder: bool = False
    lm: bool = False
    labels: bool = False
    reranker: bool = False
    log_probs: bool = False
    """Whether it computes with the LM's log-probabilities, so that an LM that only ranks answers will not do."""
    token_vectors: bool = False
    """Whether the embedder has to give a vector per token (``encode_tokens``)."""
    pool: bool = True
    """False for a selector that has an answer on an empty pool."""
    whole_pool: bool = False
    """Whether it is defined on all candidates at once and asks for ``Candidates.rows``, which costs O(pool) a query."""
    seed_scope: SeedScope = "none"
    """What a seed draws: nothing, something for each query by itself, or something once for all queries of a task."""
    random_fill: bool = False
    """Whether it fills up with random picks where it has nothing to go by: then, and then only, seeds differ too."""
    lm_calls_per_query: str = "0"
    """A number or a formula in k, n (pool size), labels and the selector's settings; "0" for none."""
    lm_calls_per_task: str = "0"


@dataclass(frozen=True, slots=True)
class SelectorCost:
    """Texts that the LM is asked to read, at most: once for the task, and for each query."""

    per_task: int = 0
    per_query: int = 0


@dataclass(frozen=True, slots=True)
class PaperSetup:
    """How a selector is run in its paper: settings, number of demonstrations, and the embedder where it is no trained
    one. ``notes``: what this does not say and the user should know."""

    settings: Mapping[str, Json]
    k: int
    embedder: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kit:
    """What a selector may use: handed to ``fit``; a missing part that is needed raises NeedError there.

    Embedder, LM and reranker may be given by name (``embedder="all-minilm-l6-v2"``), and are then loaded.
    ``template``, ``labels`` and ``order`` are the task's, for selectors that ask an LM; ``reserve`` tokens of its
    context are kept for the answer.
    """

    embedder: Embedder | None = None
    lm: LM | None = None
    template: Template | None = None
    labels: tuple[str, ...] = ()
    seed: int = 0
    order: str = "best-last"
    reserve: int = 0
    reranker: Reranker | None = None
    task: str = ""
    """The task asked about, for retrievers that read an instruction per task."""
    load_lm: Callable[[str], LM] | None = None
    """Loads a second LM by name, for settings that name one; ``iclkit.lm.load_lm`` where this is None."""

    if TYPE_CHECKING:  # what may be given is more than what stands there afterwards

        def __init__(
            self,
            embedder: EmbedderLike | str | None = None,
            lm: LM | str | None = None,
            template: Template | None = None,
            labels: tuple[str, ...] = (),
            seed: int = 0,
            order: str = "best-last",
            reserve: int = 0,
            reranker: Reranker | str | None = None,
            task: str = "",
            load_lm: Callable[[str], LM] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        # a foreign embedder is completed here, once; what is given by name is loaded
        if self.embedder is not None:
            object.__setattr__(self, "embedder", as_embedder(self.embedder))
        if isinstance(self.lm, str):
            object.__setattr__(self, "lm", as_lm(self.lm))
        if isinstance(self.reranker, str):
            object.__setattr__(self, "reranker", load_reranker(self.reranker))


PoolLike: TypeAlias = "PoolView | Pool | Iterable[object]"
"""What a selector can be fitted on: a view, a pool, or what ``Pool.of`` takes (examples, rows, a DataFrame)."""


def as_queries(queries: Sequence[QueryLike]) -> list[Query]:
    """Each of them as a query. UsageError for one text in the place of several."""
    if isinstance(queries, str | Mapping | Query):
        raise UsageError("select_many takes a list of queries; for one, use select")
    return [Query.of(query) for query in queries]


class Selector(Protocol):
    """All that eval, trainers and the command line rely on. ``make_selector`` completes an object that has less."""

    @property
    def spec(self) -> Spec:
        """Name and settings: enough to build it again."""
        ...

    @property
    def needs(self) -> Needs:
        """What ``fit`` must be given, and what results depend on."""
        ...

    def fit(self, pool: PoolLike, kit: Kit | None = None) -> Self:
        """Look at the pool once; touches models and indexes as needed, and asks an LM nothing."""
        ...

    def select(
        self, query: QueryLike, k: int, *, where: Mapping[str, Json] | None = None, exclude: Iterable[str] = ()
    ) -> Selection:
        """The best k demonstrations for a query, best first; of those with some metadata, and without some ids."""
        ...

    def select_many(self, queries: Sequence[QueryLike], k: int) -> list[Selection]:
        """Equal to ``[select(q, k) for q in queries]``, faster."""
        ...

    def cost(self, k: int) -> SelectorCost:
        """How many texts the LM is asked to read, at most."""
        ...

    def shared(self, k: int) -> int:
        """How many of k picks are the same for every query, so that prompts can begin alike and that is read once."""
        ...

    def capacity(self, k: int) -> int:
        """How many of k it can pick, however large the pool."""
        ...

    def explain(self, query: Query, k: int) -> tuple[str, ...]:
        """How one choice came about, in lines for ``iclkit explain``: steps, their scores, what came next."""
        ...

    def template_for(self, given: Template | None) -> Template:
        """The template to show the picks with: the one given, changed where the selector has words of its own."""
        ...

    def save(self, folder: str | Path, *, k: int = 8, copy_pool: bool = False, follow: bool = False) -> Path:
        """Keep it, fitted, in a folder that ``load_selector`` reads."""
        ...


@dataclass
class BaseSelector:
    """Checks needs, makes the candidates, builds the Selection. A strategy is its ``choose`` or its ``choose_many``.

    Fitting asks an LM nothing: what it is asked once per task, it is asked with the first query, so that ``cost``
    is known before anything is spent.

    Subclasses are dataclasses whose fields are the settings, each declared by ``iclkit.settings.setting``, which checks
    it and explains it in ``iclkit selectors show``; what ``fit`` learns ends in ``_``. ``name``, ``summary``,
    ``needs``, ``source`` and ``example`` are class attributes. A subclass with a ``__post_init__`` calls this one's
    first. A strategy that works on many queries at once defines ``choose_many``; results must not depend on which
    queries come together.

    Rows are handles, which have holes. What is learnt from the whole pool is indexed by position instead: ``pool_.ids``
    and ``pool_.examples`` stand in the order of ``pool_.rows``, and ``pool_.positions(rows)`` says where handles stand.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """What it chooses, in a line of the table; the first line of the docstring where this is empty."""
    source: ClassVar[str] = ""
    """Where the method comes from: authors, venue or arXiv number."""
    version: ClassVar[int] = 1
    """Raised when the same settings pick others than before: runs of before are then not taken for those of now."""
    example: ClassVar[str] = ""
    """How to name it on the command line, with a setting that matters and the flags that it needs."""
    paper: ClassVar[PaperSetup | None] = None
    """What ``--preset paper`` means for it; None where there is no such set-up."""

    pool_: PoolView = field(init=False, repr=False, compare=False)
    kit_: Kit = field(init=False, repr=False, compare=False)
    fitted_: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        check_settings(self, f"selector {self.name!r}")

    @property
    def needs(self) -> Needs:
        """What ``fit`` must be given. Subclasses set a class attribute, ``needs: ClassVar[Needs] = Needs(…)``."""
        return Needs()

    @property
    def spec(self) -> Spec:
        """Name and settings: enough to build this selector again."""
        return Spec(self.name, recorded_settings(self), self.version)

    def fit(self, pool: PoolLike, kit: Kit | None = None) -> Self:
        """Remember pool and kit, then ``prepare``. Examples without a pool are kept in memory.

        NeedError names what is missing and the flag that gives it; DataError when the pool has no examples.
        """
        pool, kit = as_view(pool), kit or Kit()
        for part, label in (("embedder", "an embedder"), ("lm", "an LM"), ("reranker", "a reranker")):
            if getattr(self.needs, part) and getattr(kit, part) is None:
                raise NeedError(f"selector {self.name!r} needs {label}; give one with --{part}")
        if self.needs.log_probs and kit.lm is not None and ranks_only(kit.lm):
            raise NeedError(
                f"selector {self.name!r} computes with log-probabilities, and {kit.lm.name} tells none; use another LM"
            )
        if self.needs.token_vectors and not (kit.embedder and kit.embedder.gives_token_vectors):
            assert kit.embedder is not None
            raise NeedError(
                f"selector {self.name!r} needs token vectors, and embedder {kit.embedder.name!r} gives none"
            )
        if self.needs.pool and not len(pool):
            raise DataError(
                f"the pool is empty and selector {self.name!r} has nothing to choose from; add examples first"
            )
        if self.needs.labels and not self._has_labels(pool, kit):
            raise NeedError(f"selector {self.name!r} needs labeled examples, and the pool has one output only")
        if kit.embedder is not None and kit.task:
            kit = replace(kit, embedder=kit.embedder.for_task(kit.task))
        self.pool_, self.kit_ = pool, kit
        self.prepare()
        self.fitted_ = True
        return self

    def prepare(self) -> None:
        """Hook: learn from ``self.pool_`` and ``self.kit_`` whatever ``choose`` needs."""

    def choose(self, candidates: Candidates, k: int) -> Choice:  # noqa: ARG002
        """Hook: at most k of the candidates of one query, best first, with their scores."""
        raise TypeError(f"{type(self).__name__} has neither choose nor choose_many; a selector defines one of them")

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Hook: a choice for each query of a batch; one after the other by default."""
        return [self.choose(candidates, k) for candidates in batch]

    def explain(self, query: Query, k: int) -> tuple[str, ...]:  # noqa: ARG002
        """Hook: how one choice came about, in lines for ``iclkit explain``: steps, their scores, what came next."""
        return ()

    def template_for(self, given: Template | None) -> Template:
        """Hook: the template to show the picks with, where the selector brings words of its own (an instruction)."""
        return given or Template()

    def shared(self, k: int) -> int:  # noqa: ARG002
        """Hook: how many of k picks are the same for every query, so that prompts can begin alike."""
        return 0

    def capacity(self, k: int) -> int:
        """Hook: how many of k it can pick, however large the pool."""
        return k

    def cost(self, k: int) -> SelectorCost:  # noqa: ARG002
        """Hook: how many texts the LM is asked to read, at most."""
        return SelectorCost()

    def select(
        self, query: QueryLike, k: int, *, where: Mapping[str, Json] | None = None, exclude: Iterable[str] = ()
    ) -> Selection:
        """The best k demonstrations for a query: a text, named fields or a ``Query``.

        ``where``: metadata that they must have, ``{"attrs.tenant": "acme"}``; ``exclude``: ids of examples that they
        must not be. DataError before ``fit``, for k < 0.
        """
        return self.select_many([Query.of(query, where=where, exclude=exclude)], k)[0]

    def select_many(self, queries: Sequence[QueryLike], k: int) -> list[Selection]:
        """One Selection per query, each as ``select`` would give it."""
        if not self.fitted_:
            raise DataError(f"selector {self.name!r} has not seen a pool yet; call fit(pool, kit) first")
        if k < 0:
            raise DataError(f"k is {k}; give 0 or more")
        queries = as_queries(queries)
        if not queries:
            return []
        embedder = self.kit_.embedder if self.needs.embedder else None
        batch = self.pool_.candidates(queries, embedder, whole_pool=self.needs.whole_pool)
        with search_notes() as notes:
            choices = self.choose_many(batch, k) if k else [NOTHING] * len(queries)
        rows = [np.asarray(choice.rows, dtype=np.int64) for choice in choices]
        spec, told = self.spec, zip(batch, choices, batch.examples(rows), strict=True)
        return [self._selection(c, k, choice, tuple(shown), spec, tuple(notes)) for c, choice, shown in told]

    async def aselect(
        self, query: QueryLike, k: int, *, where: Mapping[str, Json] | None = None, exclude: Iterable[str] = ()
    ) -> Selection:
        """``select`` in a thread of its own, for programs that are asynchronous."""
        return await asyncio.to_thread(self.select, query, k, where=where, exclude=exclude)

    def save(self, folder: str | Path, *, k: int = 8, copy_pool: bool = False, follow: bool = False) -> Path:
        """Keep this fitted selector in a folder that ``iclkit.load_selector`` reads; see ``iclkit.selectors.Chooser``.

        ``copy_pool``: with the pool's examples and vectors, so that the folder can be moved to another machine; a pool
        in memory always goes along. ``follow``: once loaded, it is fitted anew whenever the pool has changed.
        """
        from iclkit.selectors._saved import Chooser

        if not self.fitted_:
            raise DataError(f"selector {self.name!r} has not seen a pool yet; call fit(pool, kit) before save")
        return Chooser(self, self.pool_, self.kit_, k=k, follow=follow).save(folder, copy_pool=copy_pool)

    def _selection(
        self,
        candidates: Candidates,
        k: int,
        choice: Choice,
        examples: tuple[Example, ...],
        spec: Spec,
        more_notes: tuple[str, ...],
    ) -> Selection:
        rows = np.asarray(choice.rows, dtype=np.int64)
        assert len(rows) <= k, f"{self.name}: {len(rows)} picks for k={k}"
        assert len(np.unique(rows)) == len(rows), f"{self.name}: an example was picked twice"
        assert candidates.allowed(rows).all(), f"{self.name}: an excluded example was picked"
        picks = tuple(
            Pick(example.id, float(score), rank, RANDOM_FILL if rank > len(rows) - choice.random else "")
            for rank, (example, score) in enumerate(zip(examples, choice.scores, strict=True), 1)
        )
        notes = self.shortfall_note(candidates, k, len(rows))
        if choice.random:
            notes += (f"{choice.random} picks have nothing in common with the query and are random",)
        return Selection(candidates.query, picks, spec, notes + choice.notes + more_notes, examples)

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        """Hook: why there are not k picks, or nothing where there are."""
        if got == k:
            return ()
        total = len(self.pool_)
        return (f"{got} of {k} demonstrations: {len(candidates)} of the pool's {total} examples were allowed",)

    @staticmethod
    def _has_labels(pool: PoolView, kit: Kit) -> bool:
        return len(kit.labels) > 1 or len({e.output for e in pool.examples}) > 1

    def _embed(self) -> None:
        """Embed what the pool has no vectors of yet: needs ``needs.embedder``, and copies nothing."""
        assert self.kit_.embedder is not None
        self.pool_.index(self.kit_.embedder)

    def _vectors(self) -> FloatArray:
        """(n, dim) float32: the pool's vectors by the kit's embedder, which ``needs`` has made sure is there."""
        assert self.kit_.embedder is not None
        return self.pool_.vectors(self.kit_.embedder)

    def _outside(self, scope: Scope) -> IntArray:
        """Positions of the rows that a scope leaves out; few, unless it holds only part of the pool."""
        excluded = self.pool_.positions(np.array(sorted(scope.exclude), dtype=np.int64))
        if scope.within is None:
            return excluded
        outside = np.ones(len(self.pool_), dtype=np.bool_)
        outside[self.pool_.positions(scope.within)] = False
        outside[excluded] = True
        return np.flatnonzero(outside)

    def _inside(self, scope: Scope) -> IntArray:
        """Positions of the rows in a scope, ascending; O(pool)."""
        return np.delete(np.arange(len(self.pool_)), self._outside(scope))

    def _label(self, row: int) -> str:
        """A row for people: its output and the beginning of its input, on one line."""
        (example,) = self.pool_.examples_at(np.array([row]))
        text = " ".join(example.text.split())
        return f"{example.output}: {text if len(text) <= _SHORT else text[: _SHORT - 1] + '…'}"


def selector_info(cls: Any) -> dict[str, Json]:
    """One row of the table: name, summary, needs, LM calls, settings with their defaults, source."""
    settings = {info.name: info.default for info in describe_settings(cls) if info.default is not dataclasses.MISSING}
    # the needs of a composite depend on its parts, so an instance is asked
    complete = len(settings) == len(describe_settings(cls))
    needs: Needs = cls().needs if complete else Needs()
    return {
        "name": cls.name,
        "summary": cls.summary or (inspect.getdoc(cls) or cls.name).splitlines()[0],
        "needs": [p for p in ("embedder", "lm", "labels", "reranker") if getattr(needs, p)],
        "lm_calls_per_query": needs.lm_calls_per_query,
        "lm_calls_per_task": needs.lm_calls_per_task,
        "settings": settings,
        "source": cls.source,
    }


def selector_help(cls: Any) -> dict[str, Json]:
    """All that a class says of itself: its row of the table, what it is and when to use it, an example, its settings.

    ``settings`` is a list here: name, default (missing where one has to be given), meaning, and what is allowed.
    """
    settings: list[Json] = []
    for info in describe_settings(cls):
        default = {} if info.default is dataclasses.MISSING else {"default": info.default}
        settings.append({"name": info.name, **default, "meaning": info.meaning, "allowed": info.allowed})
    spec, _, flags = (cls.example or cls.name).partition(" ")
    return {
        **selector_info(cls),
        "about": inspect.getdoc(cls) or "",
        "example": f"iclkit select demos.db 'a new text' -k 8 --selector {shlex.quote(spec)} {flags}".rstrip(),
        "settings": settings,
    }
