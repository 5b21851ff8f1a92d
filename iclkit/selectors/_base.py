"""The protocol that callers rely on, and the base class in which the checks live once."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from iclkit import __version__
from iclkit.embed import Retriever, encode_checked
from iclkit.errors import DataError, NeedError
from iclkit.lm import ranks_only
from iclkit.prompts import Template
from iclkit.records import Example, Json, Pick, Query, SeedScope, Selection, Spec

if TYPE_CHECKING:
    from iclkit.embed import Embedder
    from iclkit.lm import LM
    from iclkit.pool import PoolView

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[Any]
"""float32 or float64."""
Ranked = tuple[IntArray, FloatArray]
"""Row numbers of the pool, best first, and their scores."""

RANDOM_FILL = "random"
"""``Pick.why`` of a pick that nothing speaks for."""
_SHORT = 60  # characters of an input in a line for people
_MASK_BYTES = 1 << 26  # queries are handled in batches whose masks take no more than this


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy returns for one query: row numbers of the pool, best first, and their scores.

    ``random`` of the last picks were drawn because nothing told the remaining examples apart; ``notes`` are what the
    user should know of this choice.
    """

    rows: IntArray
    scores: FloatArray
    random: int = 0
    notes: tuple[str, ...] = ()


SEED_SCOPES: tuple[SeedScope, ...] = ("none", "query", "task")  # from what claims most to what claims least


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
class Kit:
    """What a selector may use: handed to ``fit``; a missing part that is needed raises NeedError there.

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


class Reranker(Protocol):
    """A model that reads query and example together, e.g. a cross-encoder (``iclkit.embed.load_reranker``)."""

    name: str
    fingerprint: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """(n,): how well the second text of each pair serves the first; the more the better."""
        ...


class TokenEmbedder(Protocol):
    """An embedder that also gives a vector per token, without the special ones at the ends."""

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        """Per text its tokens and their contextual vectors (tokens, dim), unit rows."""
        ...


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

    def fit(self, pool: PoolView, kit: Kit) -> Self:
        """Look at the pool once; touches models and indexes as needed, and asks an LM nothing."""
        ...

    def select(self, query: Query, k: int) -> Selection:
        """The best k demonstrations for a query, best first."""
        ...

    def select_many(self, queries: Sequence[Query], k: int) -> list[Selection]:
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


@dataclass
class BaseSelector(ABC):
    """Checks needs, turns ``query.exclude`` into a mask, builds the Selection. A strategy is its ``choose``.

    Fitting asks an LM nothing: what it is asked once per task, it is asked with the first query, so that ``cost``
    can be told before anything is spent.

    Subclasses are dataclasses whose fields are the settings; what ``fit`` learns ends in ``_``. ``name``, ``needs`` and
    ``source`` are class attributes. A strategy that works on many queries at once overrides ``choose_many`` and lets
    ``choose`` call it; results must not depend on which queries come together.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    """Where the method comes from: authors, venue or arXiv number."""

    pool_: PoolView = field(init=False, repr=False, compare=False)
    kit_: Kit = field(init=False, repr=False, compare=False)
    fitted_: bool = field(init=False, repr=False, compare=False, default=False)

    @property
    def needs(self) -> Needs:
        """What ``fit`` must be given. Subclasses set a class attribute, ``needs: ClassVar[Needs] = Needs(…)``."""
        return Needs()

    @property
    def spec(self) -> Spec:
        """Name and settings: enough to build this selector again."""
        settings: dict[str, Json] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return Spec(self.name, settings, __version__)

    def fit(self, pool: PoolView, kit: Kit) -> Self:
        """Remember pool and kit, then ``prepare``.

        NeedError names what is missing and the flag that gives it; DataError when the pool has no examples.
        """
        for part, label in (("embedder", "an embedder"), ("lm", "an LM"), ("reranker", "a reranker")):
            if getattr(self.needs, part) and getattr(kit, part) is None:
                raise NeedError(f"selector {self.name!r} needs {label}; give one with --{part}")
        if self.needs.log_probs and kit.lm is not None and ranks_only(kit.lm):
            raise NeedError(
                f"selector {self.name!r} computes with log-probabilities, and {kit.lm.name} tells none; use another LM"
            )
        if self.needs.token_vectors and "encode_tokens" not in dir(kit.embedder):
            assert kit.embedder is not None
            raise NeedError(
                f"selector {self.name!r} needs token vectors, and embedder {kit.embedder.name!r} gives none"
            )
        if self.needs.pool and not len(pool):
            raise DataError(
                f"the pool is empty and selector {self.name!r} has nothing to choose from; add examples first"
            )
        if self.needs.labels and not self._has_labels(pool, kit):
            raise NeedError(f"selector {self.name!r} needs labelled examples, and the pool has one output only")
        if isinstance(kit.embedder, Retriever) and kit.task:
            kit = replace(kit, embedder=kit.embedder.for_task(kit.task))
        self.pool_, self.kit_ = pool, kit
        self.prepare()
        self.fitted_ = True
        return self

    def prepare(self) -> None:  # noqa: B027
        """Hook: learn from ``self.pool_`` and ``self.kit_`` whatever ``choose`` needs."""

    @abstractmethod
    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """At most k row numbers of the pool, best first, with their scores. ``allowed`` (n,) masks the pool's rows."""

    def choose_many(self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]) -> list[Choice]:
        """Batched ``choose``; the default is the loop."""
        return [self.choose(q, k, a) for q, a in zip(queries, allowed, strict=True)]

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

    def select(self, query: Query, k: int) -> Selection:
        """The best k demonstrations for a query. DataError before ``fit``, for k < 0."""
        return self.select_many([query], k)[0]

    def select_many(self, queries: Sequence[Query], k: int) -> list[Selection]:
        """One Selection per query, each as ``select`` would give it."""
        if not self.fitted_:
            raise DataError(f"selector {self.name!r} has not seen a pool yet; call fit(pool, kit) first")
        if k < 0:
            raise DataError(f"k is {k}; give 0 or more")
        size = max(1, _MASK_BYTES // max(1, len(self.pool_)))
        return [s for at in range(0, len(queries), size) for s in self._select_batch(queries[at : at + size], k)]

    def _select_batch(self, queries: Sequence[Query], k: int) -> list[Selection]:
        masks = self._masks(queries)
        nothing = Choice(np.empty(0, np.int64), np.empty(0))
        chosen = self.choose_many(queries, k, masks) if k else [nothing] * len(queries)
        spec = self.spec
        return [self._selection(q, k, m, c, spec) for q, m, c in zip(queries, masks, chosen, strict=True)]

    def _masks(self, queries: Sequence[Query]) -> list[BoolArray]:
        everything = np.ones(len(self.pool_), dtype=np.bool_)
        everything.flags.writeable = False
        return [self._allowed(q, everything) for q in queries]

    def _allowed(self, query: Query, everything: BoolArray) -> BoolArray:
        rows = self.pool_.positions_of_ids(query.exclude)
        if not rows:
            return everything
        mask = everything.copy()
        mask[rows] = False
        return mask

    def _selection(self, query: Query, k: int, allowed: BoolArray, choice: Choice, spec: Spec) -> Selection:
        rows = [int(r) for r in choice.rows]
        assert len(rows) <= k, f"{self.name}: {len(rows)} picks for k={k}"
        assert len(set(rows)) == len(rows), f"{self.name}: an example was picked twice"
        assert all(allowed[r] for r in rows), f"{self.name}: an excluded example was picked"
        picks = tuple(
            Pick(self.pool_.ids[r], float(s), n, RANDOM_FILL if n > len(rows) - choice.random else "")
            for n, (r, s) in enumerate(zip(rows, choice.scores, strict=True), start=1)
        )
        notes = self.shortfall_note(k, len(rows), allowed)
        if choice.random:
            notes += (f"{choice.random} picks have nothing in common with the query and are random",)
        return Selection(query, picks, spec, notes + choice.notes)

    def shortfall_note(self, k: int, got: int, allowed: BoolArray) -> tuple[str, ...]:
        if got == k:
            return ()
        return (
            f"{got} of {k} demonstrations: {int(allowed.sum())} of the pool's {len(allowed)} examples were allowed",
        )

    @staticmethod
    def _has_labels(pool: PoolView, kit: Kit) -> bool:
        return len(kit.labels) > 1 or len({e.output for e in pool.examples}) > 1

    def _vectors(self) -> FloatArray:
        """(n, dim) float32: the pool's vectors by the kit's embedder, which ``needs`` has made sure is there."""
        assert self.kit_.embedder is not None
        return self.pool_.vectors(self.kit_.embedder)

    def _query_vectors(self, queries: Sequence[Query]) -> FloatArray:
        """(q, dim) float32."""
        assert self.kit_.embedder is not None
        return encode_checked(self.kit_.embedder, [q.text for q in queries], "query")

    def _nearest(self, vectors: FloatArray, k: int, allowed: Sequence[BoolArray]) -> list[Ranked]:
        """The k nearest allowed rows for each query vector (q, dim), by exact inner product."""
        assert self.kit_.embedder is not None
        return [*self.pool_.search(self.kit_.embedder, vectors, k, allowed)]

    def _label(self, row: int) -> str:
        """A row for people: its output and the beginning of its input, on one line."""
        example = self.pool_.examples[row]
        text = " ".join(example.text.split())
        return f"{example.output}: {text if len(text) <= _SHORT else text[: _SHORT - 1] + '…'}"

    def _examples(self, rows: IntArray) -> list[Example]:
        return [self.pool_.examples[int(r)] for r in rows]


def selector_info(cls: Any) -> dict[str, Json]:
    """One row of the table: name, summary, needs, LM calls, settings with their defaults, source."""
    settings = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
    # a selector made of others has the needs of its parts: ask one as it comes
    complete = all(v is not dataclasses.MISSING for v in settings.values())
    needs: Needs = cls().needs if complete else Needs()
    return {
        "name": cls.name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "needs": [p for p in ("embedder", "lm", "labels", "reranker") if getattr(needs, p)],
        "lm_calls_per_query": needs.lm_calls_per_query,
        "lm_calls_per_task": needs.lm_calls_per_task,
        "settings": {k: v for k, v in settings.items() if v is not dataclasses.MISSING},
        "source": cls.source,
    }
