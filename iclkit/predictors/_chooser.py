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
from iclkit.predictors._protocol import TaskContext
from iclkit.predictors._tools import Tools
from iclkit.prompts import Template
from iclkit.records import Json, Spec
from iclkit.selectors import Chooser, Selector, make_selector


def chooser(
    data: str | Path | Task | Pool | PoolView | Iterable[object],
    *,
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    keep: Sequence[str] = (),
    selector: str | Spec | Selector = "knn",
    k: int = 8,
    embedder: EmbedderLike | str | None = "all-minilm-l6-v2",
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
    given = Template.parse(template) if isinstance(template, str) else template
    context = pool_context(view, made, template=given or own, labels=tuple(labels), chat=chat, name=name)
    needs = made.needs
    tools = Tools(lm, embedder if needs.embedder else None, reranker if needs.reranker else None)
    kit = tools.kit(context, seed=seed, order=order)
    return Chooser(made.fit(view, kit), view, kit, k=k, follow=follow, pool=pool)


def pool_context(
    view: PoolView,
    selector: Selector,
    *,
    template: Template | None = None,
    labels: tuple[str, ...] = (),
    chat: bool = False,
    name: str = "",
) -> TaskContext:
    """Examples without a task, as a task made of them would have it: its labels, and the template to show them with.

    Of templates the one given goes first, then one that the selector brings (a selector file), then what the examples
    suggest. ``chat``: demonstrations as turns.
    """
    inferred, found = infer_template(view.examples) if len(view) else (Template(), ())
    brings_its_own = selector.template_for(None).demo != Template().demo
    shown = selector.template_for(template or (None if brings_its_own else inferred))
    labels = labels or found
    context = TaskContext(name, "classification" if labels else "generation", labels, shown, view)
    return replace(context, template=replace(shown.with_labels(labels, context.fields), chat=chat or shown.chat))
