"""Candidates: which demonstrations are tried for which training query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from iclkit.embed import Embedder, Retriever
from iclkit.pool import Pool, PoolView
from iclkit.records import Example, Query, digest, fold_text
from iclkit.selectors import Kit, make_selector
from iclkit.trainers._config import Source
from iclkit.trainers._data import IntArray, TaskData, TrainingData

QUERY = "query"  # a training query is also a row; its Query gets an id of its own, so that draws differ from the row's


class Miner:
    """Asks selectors for candidates. A query's own content, and whatever repeats its input, is never among them."""

    def __init__(self, corpus: TrainingData, seed: int, embedder: Embedder | None = None) -> None:
        self.corpus, self.seed, self.embedder = corpus, seed, embedder
        self._same: dict[str, list[int]] = {}
        for row, text in enumerate(corpus.inputs()):
            self._same.setdefault(text, []).append(row)

    def forbidden(self, example: Example) -> list[int]:
        """Rows that give an example away: those with the same input, normalised."""
        return self._same.get(fold_text(example.text), [])

    def mine(
        self,
        course: TaskData,
        queries: Sequence[Example],
        sources: Sequence[Source],
        *,
        cross_task: bool = False,
        embedder: Embedder | None = None,
        apart: Sequence[Collection[int]] | None = None,
        draw: int = 0,
    ) -> list[IntArray]:
        """For each query the rows proposed by the sources, in their order, each once.

        ``embedder``: the retriever so far, for sources that need one; None takes the base embedder. ``apart``: rows
        that each query is not to get besides. ``draw`` numbers random draws that are to differ.
        """
        bad = [{*self.forbidden(q)} for q in queries]
        if apart is not None:
            bad = [b | {*rows} for b, rows in zip(bad, apart, strict=True)]
        view = self.corpus.view if cross_task else self.corpus.view.only(self.corpus.view.rows[course.rows])
        back = np.arange(len(self.corpus.view)) if cross_task else course.rows
        found: list[list[int]] = [[] for _ in queries]
        for source in sources:
            proposed = self._proposed(view, course, queries, source, embedder or self.embedder, bad, draw)
            for own, rows in zip(found, proposed, strict=True):
                own += [int(back[r]) for r in rows]
        return [
            np.array([r for r in dict.fromkeys(own) if r not in not_these], dtype=np.int64)
            for own, not_these in zip(found, bad, strict=True)
        ]

    def _proposed(
        self,
        view: PoolView,
        course: TaskData,
        queries: Sequence[Example],
        source: Source,
        embedder: Embedder | None,
        bad: Sequence[Collection[int]],
        draw: int,
    ) -> list[list[int]]:
        if isinstance(embedder, Retriever):
            embedder = embedder.for_task(course.name)
        hidden = [frozenset(self.corpus.examples[r].id for r in rows) for rows in bad]
        if source.output:
            # the pool as it looks from its outputs; the id as output keeps equal outputs apart
            view = Pool.of(Example(e.output, e.id) for e in view.examples).view()
            mirror = {e.output: e.id for e in view.examples}
            hidden = [frozenset(mirror[i] for i in ids if i in mirror) for ids in hidden]
        chooser = make_selector(source.spec)
        seed = int(digest([self.seed, draw], 4), 16) if draw else self.seed
        chooser.fit(view, Kit(embedder=embedder, template=course.template, labels=course.labels, seed=seed))
        asked = [
            Query(q.output if source.output else q.input, q.choices, ids, f"{QUERY}:{q.id}")
            for q, ids in zip(queries, hidden, strict=True)
        ]
        rows: Mapping[str, int] = {i: n for n, i in enumerate(view.ids)}
        return [[rows[i] for i in s.ids] for s in chooser.select_many(asked, source.count)]
