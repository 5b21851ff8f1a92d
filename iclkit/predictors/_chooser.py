"""From a file to messages in two lines: ``iclkit.chooser``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iclkit.datasets import Task, infer_template, is_pool, load_task
from iclkit.embed import EmbedderLike, Reranker
from iclkit.errors import DataError
from iclkit.lm import LM
from iclkit.pool import Pool, PoolView
from iclkit.prompts import Template
from iclkit.records import Json, Spec
from iclkit.selectors import Chooser, Kit, Selector, make_selector


def chooser(
    data: str | Path | Task | Pool | PoolView | Iterable[object],
    *,
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    keep: Sequence[str] = (),
    selector: str | Spec | Selector = "knn",
    k: int = 8,
    embedder: EmbedderLike | str = "all-minilm-l6-v2",
    lm: LM | str | None = None,
    reranker: Reranker | str | None = None,
    template: Template | str | None = None,
    chat: bool = True,
    labels: Sequence[str] = (),
    order: str = "best-last",
    seed: int = 0,
    where: Mapping[str, Json] | None = None,
    follow: bool = False,
) -> Chooser:
    """A fitted selector over your examples, with the prompt that shows its picks.

    ``data``: what ``iclkit eval`` takes as a task (a file, a folder, a task's name), whose train rows are shown; a pool
    or its path; or what ``Pool.of`` takes: rows, a DataFrame, a ``datasets.Dataset``. ``input`` and ``output`` name the
    columns, ``keep`` those to keep as metadata. ``selector``, ``k``, ``order`` and ``seed`` as in ``iclkit eval``;
    ``where`` shows only examples with this metadata; ``follow`` fits it anew whenever the pool has changed.

    The embedder is loaded only where the selector needs one. ``template``: a text such as ``--template`` takes, or a
    ``Template``; the task's by default. ``chat``: demonstrations as turns. An ``lm`` is needed by selectors that ask
    one, and otherwise only bounds the prompt by its context.

    >>> rows = [("my parcel is late", "delivery"), ("I was charged twice", "billing")]
    >>> chooser(rows, selector="bm25", k=1).messages("where is my parcel")[0]["content"]
    'Input: my parcel is late\\nOutput:'
    """
    made = make_selector(selector)
    if isinstance(data, str | Path) and not is_pool(Path(data)):
        data = load_task(data, input=input, output=output, meta=keep, labels=tuple(labels), need_test=False)
    pool: Pool | None = None
    own: Template | None = None
    name = ""
    if isinstance(data, Task):
        own, labels, name = data.template, labels or data.labels, data.name
        pool = Pool.of(data.train)
    elif isinstance(data, str | Path):
        pool = Pool.open(data, create=False)
    elif not isinstance(data, PoolView):
        pool = data if isinstance(data, Pool) else Pool.of(data, input=input, output=output, keep=keep)
    view = data if isinstance(data, PoolView) else pool.view() if pool else Pool.of(()).view()
    if where:
        view = pool.view(where=where) if pool else view.only(view.matching(where))
    if not len(view):
        raise DataError("there are no examples to choose from; add some, or look at where=")
    inferred, found = infer_template(view.examples)
    labels = tuple(labels or found)
    given = Template.parse(template) if isinstance(template, str) else template
    shown = made.template_for(given or own or inferred)
    first = view.examples[0].input
    shown = shown.with_labels(labels, () if isinstance(first, str) else (*first,))
    kit = Kit(
        embedder=embedder if made.needs.embedder else None,
        lm=lm,
        template=replace(shown, chat=chat or shown.chat),
        labels=labels,
        seed=seed,
        order=order,
        reranker=reranker if made.needs.reranker else None,
        task=name,
    )
    return Chooser(made.fit(view, kit), view, kit, k=k, follow=follow, pool=pool)
