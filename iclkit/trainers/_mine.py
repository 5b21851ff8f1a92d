"""Candidates: the demonstrations that are scored for each training query."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from iclkit.embed import Embedder
from iclkit.pool import Pool, PoolView
from iclkit.predictors import TaskContext, Tools
from iclkit.records import Example, Progress, Query, digest, fold_text
from iclkit.selectors import make_selector
from iclkit.trainers._config import Source
from iclkit.trainers._data import IntArray, TaskData, TrainingData

QUERY = "query"  # a training query is also a row; its Query gets an id of its own, so that draws differ from the row's


class Miner:
    """Finds candidates with selectors. The query's own row, and whatever repeats its input, is never among them.

    ``bar``: begins a progress for a step with a title; asked for where demonstrations must be encoded.
    """

    def __init__(
        self,
        corpus: TrainingData,
        seed: int,
        embedder: Embedder | None = None,
        bar: Callable[[str], Progress | None] = lambda title: None,  # noqa: ARG005
    ) -> None:
        self.corpus, self.seed, self.embedder, self._bar = corpus, seed, embedder, bar
        self._rows_by_input: dict[str, list[int]] = {}
        for row, text in enumerate(corpus.inputs()):
            self._rows_by_input.setdefault(text, []).append(row)

    def forbidden(self, example: Example) -> list[int]:
        """Rows that give an example away: those with the same input, normalised."""
        return self._rows_by_input.get(fold_text(example.text), [])

    def mine(
        self,
        task: TaskData,
        queries: Sequence[Example],
        sources: Sequence[Source],
        *,
        cross_task: bool = False,
        embedder: Embedder | None = None,
        excluded: Sequence[Collection[int]] | None = None,
        draw: int = 0,
    ) -> list[IntArray]:
        """For each query the rows proposed by the sources, in their order, each once.

        ``embedder``: the retriever so far, for sources that need one; None takes the base embedder. ``excluded``:
        further rows that are excluded for each query. ``draw`` numbers random draws that are to differ.
        """
        forbidden = [{*self.forbidden(q)} for q in queries]
        if excluded is not None:
            forbidden = [rows | {*more} for rows, more in zip(forbidden, excluded, strict=True)]
        view = self.corpus.view if cross_task else self.corpus.view.only(self.corpus.view.rows[task.rows])
        back = np.arange(len(self.corpus.view)) if cross_task else task.rows
        candidates: list[list[int]] = [[] for _ in queries]
        for source in sources:
            proposed = self._proposed(view, task, queries, source, embedder or self.embedder, forbidden, draw)
            for of_query, rows in zip(candidates, proposed, strict=True):
                of_query += [int(back[r]) for r in rows]
        return [
            np.array([r for r in dict.fromkeys(of_query) if r not in not_these], dtype=np.int64)
            for of_query, not_these in zip(candidates, forbidden, strict=True)
        ]

    def _proposed(
        self,
        view: PoolView,
        task: TaskData,
        queries: Sequence[Example],
        source: Source,
        embedder: Embedder | None,
        forbidden: Sequence[Collection[int]],
        draw: int,
    ) -> list[list[int]]:
        hidden = [frozenset(self.corpus.examples[r].id for r in rows) for rows in forbidden]
        if source.output:
            # a pool of the outputs; the id as output keeps equal outputs apart
            view = Pool.of(Example(e.output, e.id) for e in view.examples).view()
            mirrored = {e.output: e.id for e in view.examples}
            hidden = [frozenset(mirrored[i] for i in ids if i in mirrored) for ids in hidden]
        selector = make_selector(source.spec)
        seed = int(digest([self.seed, draw], 4), 16) if draw else self.seed
        context = TaskContext(task.name, "", task.labels, task.template, view)
        if selector.needs.embedder and embedder:
            view.index(embedder.for_task(task.name), self._encoding(task))
        selector.fit(view, Tools(embedder=embedder).kit(context, seed=seed))
        searched = [
            Query(q.output if source.output else q.input, q.choices, ids, f"{QUERY}:{q.id}")
            for q, ids in zip(queries, hidden, strict=True)
        ]
        rows: Mapping[str, int] = {i: n for n, i in enumerate(view.ids)}
        return [[rows[i] for i in s.ids] for s in selector.select_many(searched, source.count)]

    def _encoding(self, task: TaskData) -> Progress:
        """Progress of encoding a task's demonstrations, whose bar begins with the first that must be."""
        begun: list[Progress | None] = []

        def report(done: int, total: int) -> None:
            begun[:] = begun or [self._bar(f"{task.name}: demonstrations encoded")]
            if begun[0]:
                begun[0](done, total)

        return report
