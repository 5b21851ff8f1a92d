"""The models that a run uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iclkit.embed import Embedder, EmbedderLike, Reranker, as_embedder, load_reranker
from iclkit.errors import NeedError
from iclkit.lm import LM, MinimalLM, as_lm
from iclkit.predictors._protocol import TaskContext
from iclkit.prompts import Template
from iclkit.records import Json, ModelName
from iclkit.selectors import Kit, Needs

_WORDS = (("embedder", "an embedder"), ("lm", "an LM"), ("reranker", "a reranker"))


@dataclass(frozen=True, slots=True)
class Tools:
    """LM, embedder and reranker, as far as there are any, and the builder of what selectors are
    given (``Kit``). Names are loaded.

    ``load_lm`` makes a second LM by name, for settings that name one, with the cache and device of the first.
    """

    lm: LM | None = None
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    load_lm: Callable[[str], LM] | None = None

    if TYPE_CHECKING:  # what may be given is more than what stands there afterwards

        def __init__(
            self,
            lm: MinimalLM | str | None = None,
            embedder: EmbedderLike | str | None = None,
            reranker: Reranker | str | None = None,
            load_lm: Callable[[str], LM] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.lm is not None:
            object.__setattr__(self, "lm", as_lm(self.lm))
        if isinstance(self.embedder, str):
            object.__setattr__(self, "embedder", as_embedder(self.embedder))
        if isinstance(self.reranker, str):
            object.__setattr__(self, "reranker", load_reranker(self.reranker))

    def kit(
        self,
        context: TaskContext,
        *,
        template: Template | None = None,
        seed: int = 0,
        order: str = "best-last",
        reserve: int = 0,
    ) -> Kit:
        """What a selector is given for a task; ``template`` is the one to show, the task's where None is given."""
        return Kit(
            embedder=self.embedder,
            lm=self.lm,
            template=template or context.template,
            labels=context.labels,
            seed=seed,
            order=order,
            reserve=reserve,
            reranker=self.reranker,
            task=context.name,
            load_lm=self.load_lm,
        )

    def with_lm(self, lm: LM | None) -> Tools:
        """The same models but for the LM."""
        return replace(self, lm=lm)

    def check(self, needs: Needs, owner: str) -> None:
        """NeedError for what is needed and not there, with the option that gives it."""
        given = {"embedder": self.embedder, "lm": self.lm, "reranker": self.reranker}
        wanted = {"embedder": needs.embedder, "lm": needs.lm, "reranker": needs.reranker}
        for part, words in _WORDS:
            if wanted[part] and given[part] is None:
                raise NeedError(f"{owner} needs {words}; give one with --{part}")

    def identities(self, needs: Needs, context: TaskContext) -> dict[str, Json]:
        """For a run's identity: name and fingerprint of the embedder and the reranker that are there and needed, and
        the ``index`` of the pool where search in it is approximate."""
        used = {"embedder": needs.embedder and self.embedder, "reranker": needs.reranker and self.reranker}
        models: dict[str, Json] = {part: ModelName(m.name, m.fingerprint).identity() for part, m in used.items() if m}
        if needs.embedder and self.embedder:
            index = context.view.approximate(self.embedder.for_task(context.name) if context.name else self.embedder)
            models |= {"index": index.identity()} if index else {}
        return models
