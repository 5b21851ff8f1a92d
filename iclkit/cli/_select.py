"""``iclkit select``: which demonstrations a selector shows for a query, and the prompt they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    SELECTOR,
    LMOptions,
    conditions,
    lm_options,
    load_embedder,
    load_lm,
    load_reranker,
    open_pool,
    parse_template,
)
from iclkit.cli._progress import bar
from iclkit.cli._terminal import console, echo, emit, emit_json
from iclkit.errors import UsageError
from iclkit.records import Example, Prompt, Query, Selection, one_line, unique_names

if TYPE_CHECKING:
    from iclkit.embed import Embedder
    from iclkit.lm import LM
    from iclkit.pool import PoolView
    from iclkit.prompts import Template
    from iclkit.selectors import Selector


FEW_QUERIES = 64
"""Queries up to which the embedder need not be loaded in full."""


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
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[QUERY]...")
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    help="A file of queries: rows with `input` (JSONL, JSON, CSV, TSV, Parquet), or one a line.",
)
@click.option(
    "--selector",
    "-s",
    default="knn",
    show_default=True,
    type=SELECTOR,
    help="See iclkit selectors ls; or my_module:MyClass.",
)
@click.option("-k", "--num_fewshot", "-f", "k", type=_Shots(), default="8", show_default=True, help="How many; or max.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--lm", help="For selectors that ask one, chat prompts, and the token budget.")
@click.option("--reranker", help="A cross-encoder for rerank; ,dtype=bf16 may stand behind it.")
@click.option("--task-name", "task", help="Only the pool's examples of the task of this name.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only examples with this metadata; may repeat.")
@click.option("--exclude", multiple=True, metavar="ID", help="Never show this example; may repeat.")
@click.option("--order", default="best-last", show_default=True, help="Order of the demonstrations in the prompt.")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@click.option("--template", "template_text", help="Demonstration with {input} and {output}, instruction above it.")
@click.option("--chat", is_flag=True, help="One chat turn pair per demonstration, in the LM's own chat template.")
@lm_options
@click.option("--prompt", "show_prompt", is_flag=True, help="Print the assembled prompt instead of the picks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of picks, or of queries with --prompt.")
def command(
    pool: Path,
    texts: tuple[str, ...],
    queries: Path | None,
    selector: str,
    k: int | None,
    embedder: str,
    lm: str | None,
    reranker: str | None,
    task: str | None,
    where: tuple[str, ...],
    exclude: tuple[str, ...],
    order: str,
    seed: int,
    template_text: str | None,
    chat: bool,
    lm_options: LMOptions,
    show_prompt: bool,
    as_json: bool,
) -> None:
    """Choose demonstrations from POOL for each QUERY."""
    from dataclasses import replace

    from iclkit.prompts import ORDERS
    from iclkit.selectors import Kit, make_selector

    chooser = make_selector(selector)
    ORDERS.get(order)
    given = parse_template(template_text)
    template = replace(chooser.template_for(given), chat=chat)
    asked = [Query(t) for t in texts] + (_read(queries) if queries else [])
    if not asked:
        raise UsageError("no query; give QUERY on the command line or --queries FILE")
    if k is None and not lm:
        raise UsageError("-k max fills an LM's context; give one with --lm")
    with open_pool(pool) as store:
        hidden = frozenset(store.get(i).id for i in exclude)
        # two queries of one text are two queries
        names = unique_names(q.id for q in asked)
        asked = [replace(q, id=name, exclude=hidden) for q, name in zip(asked, names, strict=True)]
        view = store.view(task=task, where=conditions(where) or None)
        model = load_lm(lm, lm_options) if lm else None
        kit = Kit(lm=model, template=template, seed=seed, order=order, task=task or "")
        if chooser.needs.embedder:
            kit = replace(kit, embedder=_embedder(embedder, view, lm_options.device, len(asked)))
        if chooser.needs.reranker and reranker:
            kit = replace(kit, reranker=load_reranker(reranker, lm_options.device))
        chooser.fit(view, kit)
        shots = len(view) if k is None else k
        _say_cost(chooser, len(asked), shots)
        selections = chooser.select_many(asked, shots)
        prompts = [_assemble(template, s, view, model, order, seed) for s in selections] if show_prompt else []
        _print(selections, prompts, view, as_json)


def _read(queries: Path) -> list[Query]:
    from iclkit.datasets import read_queries

    return read_queries(queries)


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


def _assemble(template: Template, chosen: Selection, view: PoolView, lm: LM | None, order: str, seed: int) -> Prompt:
    from iclkit.prompts import assemble

    return assemble(
        template,
        chosen.query,
        view.examples_of(chosen.ids),
        order=order,
        budget=lm.context_size if lm else None,
        count_tokens=lm.count_tokens if lm else None,
        render_chat=lm.render_chat if lm else None,
        seed=seed,
        reserve=64 if lm else 0,
    )


def _say_cost(chooser: Selector, queries: int, k: int) -> None:
    cost = chooser.cost(k)
    if total := cost.per_task + cost.per_query * queries:
        echo(f"the LM reads at most {total:,} texts ({cost.per_task:,} once, {cost.per_query:,} per query)", err=True)


def _embedder(name: str, view: PoolView, device: str | None, queries: int) -> Embedder:
    embedder = load_embedder(name, device, few=queries <= FEW_QUERIES)
    with bar("embedding the pool") as progress:
        view.vectors(embedder, progress)
    return embedder
