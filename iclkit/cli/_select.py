"""``iclkit select``: which demonstrations a selector shows for a query, and the prompt they make; and keeping it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    COLUMN_OPTIONS,
    EMBEDDER_SETTINGS,
    FILE_OPTIONS,
    JUDGE_OPTIONS,
    PRESET,
    QUERY_OPTIONS,
    SELECTOR,
    SPLIT_OPTIONS,
    TEMPLATE,
    TEMPLATE_OPTIONS,
    WHERE,
    LMOptions,
    conditions,
    data_options,
    lm_loader,
    lm_options,
    load_embedder,
    load_lm,
    load_queries,
    load_task,
    of_paper,
    open_pool,
    parse_template,
    reranker_for,
    tell_cuts,
    typed_names,
)
from iclkit.cli._progress import bar
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, echo, emit, emit_json
from iclkit.errors import UsageError
from iclkit.records import Example, Prompt, Query, Selection, one_line, unique_names

if TYPE_CHECKING:
    from iclkit.embed import Embedder
    from iclkit.lm import LM
    from iclkit.pool import PoolView
    from iclkit.predictors import Tools
    from iclkit.prompts import Template
    from iclkit.selectors import Chooser, Needs, Selector


FEW_QUERIES = 64
"""Queries up to which the embedder need not be loaded in full."""


DATA = (*FILE_OPTIONS, *COLUMN_OPTIONS, *SPLIT_OPTIONS, *JUDGE_OPTIONS, *TEMPLATE_OPTIONS[1:])
"""What can be said of a TASK; its template has an option of its own here."""


class _Shots(click.ParamType[int | None]):
    """A number of demonstrations, or ``max`` for as many as the LM's context holds."""

    name = "N|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "max" or value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor max", param, ctx)
        if number < 0:
            self.fail(f"{number} is less than 0", param, ctx)
        return number


@click.command()
@click.argument("named", type=click.Path(), metavar="POOL|TASK")  # as typed: as a Path, ./sst2 is sst2, another task
@click.argument("texts", nargs=-1, metavar="[QUERY]...")
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    help="A file of queries: rows (see --input) in any format of iclkit pool add, or one a line; - is standard input.",
)
@click.option(
    "--selector",
    "-s",
    default="knn",
    show_default=True,
    type=SELECTOR,
    help="See iclkit selectors ls; or my_module:MyClass.",
)
@PRESET
@click.option("-k", "--num_fewshot", "-f", "k", type=_Shots(), default="8", show_default=True, help="How many; or max.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--lm", help="For selectors that ask one, chat prompts, and the token budget.")
@click.option("--reranker", help="A cross-encoder for rerank; ,dtype=bf16 may stand behind it.")
@click.option("--task-name", "task", help="Only the pool's examples of the task of this name.")
@WHERE
@click.option("--exclude", multiple=True, metavar="ID", help="Never show this example; may repeat.")
@click.option("--order", default="best-last", show_default=True, help="Order of the demonstrations in the prompt.")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@click.option("--template", "template_text", metavar="TEXT|FILE", help=f"{TEMPLATE}  [default: that of a task made of "
              "the pool]")  # fmt: skip
@click.option("--chat", is_flag=True, help="One chat turn pair per demonstration, in the LM's own chat template.")
@lm_options
@data_options(DATA)
@click.option("--prompt", "show_prompt", is_flag=True, help="Print the assembled prompt instead of the picks.")
@click.option("--save", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the selector, fitted, in a "
              "folder; give that in the place of POOL later.")  # fmt: skip
@click.option("--with-pool", is_flag=True, help="With --save: the examples and vectors too, to move the folder.")
@click.option("--follow", is_flag=True, help="With --save, or a kept selector: fit it anew when the pool has changed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of picks, or of queries with --prompt.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    named: str,
    texts: tuple[str, ...],
    queries: Path | None,
    preset: str,
    k: int | None,
    lm: str | None,
    where: tuple[str, ...],
    exclude: tuple[str, ...],
    lm_options: LMOptions,
    data: Mapping[str, Any],
    show_prompt: bool,
    save: Path | None,
    with_pool: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Choose demonstrations from POOL for each QUERY.

    POOL is a pool's file, a TASK (its train rows are chosen from; without a task file all rows), or a folder that
    --save wrote: then the selector, its settings and its pool are those that were kept. The options of columns and
    files are for the TASK; with a pool they are for --queries.
    """
    from iclkit.datasets import is_pool
    from iclkit.predictors import pool_context
    from iclkit.selectors import Chooser, is_saved_selector

    pool = Path(named)
    kept = is_saved_selector(pool)
    of_pool = kept or is_pool(pool) or pool.suffix in (".db", ".sqlite")
    if of_pool and (others := [key for key in data if key not in QUERY_OPTIONS or not queries]):
        raise UsageError(f"--{others[0].replace('_', '-')} says how a task or --queries is read; {pool} is a pool")
    asked = [Query(t) for t in texts] + (load_queries(queries, data if of_pool else {}) if queries else [])
    if not asked and save is None:
        raise UsageError("no query; give QUERY on the command line or --queries FILE")
    if with_pool and save is None:
        raise UsageError("--with-pool goes with --save FOLDER")
    if k is None and (save is not None or not lm):
        raise UsageError("a kept selector has a number: give -k N" if save else
                         "-k max fills an LM's context; give one with --lm")  # fmt: skip
    if not kept:  # what is wrong is said before anything is loaded
        if preset == "paper":
            (settings["selector"],), settled = of_paper([settings["selector"]], typed_names())
            k, settings["embedder"] = settled.get("k", k), settled.get("embedder", settings["embedder"])
        selector, given = _checked(settings)
        if of_pool:
            store = ctx.with_resource(open_pool(pool))
        else:
            from iclkit.eval import task_pool

            task = load_task(named, data, need_test=False)
            store, given = ctx.with_resource(task_pool(task)), given or task.template
    model = load_lm(lm, lm_options) if lm else None
    if kept:
        typed = typed_names()
        chooser = _kept(pool, typed, model, settings, lm_options.device, len(asked))
        shots = k if "k" in typed else chooser.k
        conditions_of_each = conditions(where)
    else:
        view = store.view(task=settings["task"], where=conditions(where) or None)
        context = pool_context(view, selector, template=given, chat=settings["chat"], name=settings["task"] or "")
        tools = _tools(selector.needs, view, model, settings, lm_options, len(asked))
        kit = tools.kit(context, seed=settings["seed"], order=settings["order"])
        chooser = Chooser(selector.fit(view, kit), view, kit, k=k or 0, pool=store)
        shots, conditions_of_each = k, {}
    chooser.follow = chooser.follow or settings["follow"]
    view = chooser.view
    hidden = [chooser.pool.get(i).id for i in exclude]
    # two queries of one text are two queries
    names = unique_names(q.id for q in asked)
    asked = [
        Query.of(replace(q, id=name), where=conditions_of_each, exclude=hidden)
        for q, name in zip(asked, names, strict=True)
    ]
    if asked:
        shots = len(view) if shots is None else shots
        _say_cost(chooser.selector, len(asked), shots)
        selections = chooser.select_many(asked, shots)
        view = chooser.view
        prompts = [chooser.prompt_of(s) for s in selections] if show_prompt else []
        _print(selections, prompts, view, as_json)
    if save is not None:
        chooser.save(save, copy_pool=with_pool)
        echo(f"kept in {save}; ask it with: iclkit select {save} QUERY", err=True)


KEPT = {
    "selector": "--selector",
    "preset": "--preset",
    "order": "--order",
    "seed": "--seed",
    "template_text": "--template",
    "chat": "--chat",
    "task": "--task-name",
}
"""Options that a kept selector has its own answers to."""


def _kept(
    folder: Path, given: set[str], lm: LM | None, settings: Mapping[str, Any], device: str | None, queries: int
) -> Chooser:
    from iclkit.selectors import load_selector

    if clash := [option for name, option in KEPT.items() if name in given]:
        raise UsageError(f"the selector in {folder} was kept with its own {clash[0]}; leave that out, or keep another")
    say(f"loading {folder} …")
    chooser = load_selector(
        folder,
        lm=lm,
        embedder=settings["embedder"] if "embedder" in given else None,
        reranker=settings["reranker"],
        device=device,
        follow=True if settings["follow"] else None,
        few=queries <= FEW_QUERIES,
    )
    tell_cuts(chooser.kit.embedder, chooser.kit.reranker)
    for note in chooser.notes:
        say(f"note: {note}")
    return chooser


def _checked(settings: Mapping[str, Any]) -> tuple[Selector, Template | None]:
    from iclkit.prompts import ORDERS
    from iclkit.selectors import make_selector

    selector = make_selector(settings["selector"])
    ORDERS.get(settings["order"])
    return selector, parse_template(settings["template_text"])


def _tools(
    needs: Needs, view: PoolView, lm: LM | None, settings: Mapping[str, Any], lm_options: LMOptions, queries: int
) -> Tools:
    from iclkit.predictors import Tools

    device = lm_options.device
    return Tools(
        lm,
        _embedder(settings["embedder"], view, device, queries) if needs.embedder else None,
        reranker_for([needs], settings["reranker"], device),
        lm_loader(lm_options),
    )


def _print(selections: Sequence[Selection], prompts: Sequence[Prompt], view: PoolView, as_json: bool) -> None:
    for note, queries in _by_note(selections).items():
        which = f"{queries} of {len(selections)} queries: " if len(selections) > 1 else ""
        echo(f"note: {which}{note}", err=True)
    if dropped := sum(len(p.dropped) for p in prompts):
        reason = next(d.reason for p in prompts for d in p.dropped)
        echo(f"note: {dropped} demonstrations are not shown: {reason}", err=True)
    picks = [
        [
            {
                "query": s.query.id,
                "rank": p.rank,
                "id": p.example_id,
                "score": _rounded(p.score),
                **_shown(view, p.example_id),
            }
            for p in s
        ]
        for s in selections
    ]
    if as_json and prompts:
        data: list[dict[str, Any]] = [
            {"query": {"id": s.query.id, "input": s.query.input}, "picks": rows, "notes": s.notes, "prompt": asdict(p)}
            for s, rows, p in zip(selections, picks, prompts, strict=True)
        ]
        emit_json(data, indent=2)
    elif as_json:
        emit_json([row for rows in picks for row in rows], indent=2)
    elif prompts:
        for n, prompt in enumerate(prompts):
            emit(("\n" + "-" * 40 + "\n" if n else "") + prompt.text)
    else:
        _tables(selections, view)


def _rounded(score: float) -> float:
    """To six decimals; small ones, e.g. probabilities, to six digits."""
    return round(score, 6) if abs(score) >= 0.1 else float(f"{score:.6g}")


def _tables(selections: Sequence[Selection], view: PoolView) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console(piped_width=120)
    for selection in selections:
        out.print(Text(one_line(selection.query.text), style="bold"))
        table = Table("rank", "score", "id", "output", "input", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for pick in selection:
            example = _example(view, pick.example_id)
            score = f"{pick.score:.4f}" if abs(pick.score) >= 0.001 or not pick.score else f"{pick.score:.3g}"
            cells = (str(pick.rank), score, pick.example_id[:12], example.output, example.text)
            table.add_row(*(Text(one_line(c), overflow="ellipsis", no_wrap=True) for c in cells))
        out.print(table)


def _example(view: PoolView, example_id: str) -> Example:
    return view.examples_of([example_id])[0]


def _shown(view: PoolView, example_id: str) -> dict[str, Any]:
    example = _example(view, example_id)
    return {"input": example.input if isinstance(example.input, str) else dict(example.input), "output": example.output}


def _by_note(selections: Sequence[Selection]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for selection in selections:
        for note in selection.notes:
            counts[note] = counts.get(note, 0) + 1
    return counts


def _say_cost(chooser: Selector, queries: int, k: int) -> None:
    cost = chooser.cost(k)
    if total := cost.per_task + cost.per_query * queries:
        echo(f"the LM reads at most {total:,} texts ({cost.per_task:,} once, {cost.per_query:,} per query)", err=True)


def _embedder(name: str, view: PoolView, device: str | None, queries: int) -> Embedder:
    embedder = load_embedder(name, device, few=queries <= FEW_QUERIES)
    with bar("embedding the pool") as progress:
        view.index(embedder, progress)
    return embedder
